"""``python -m distribcache``."""

from distribcache.cli import main

if __name__ == "__main__":
    main()
