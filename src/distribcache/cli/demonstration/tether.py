"""A process that ends with its parent: ``python -m distribcache.cli.demonstration.tether COMMAND …`` runs a command of
distribcache and ends it, as SIGTERM would, when standard input ends.

Standard input is a pipe whose other end only the parent holds, so it ends however the parent does: even by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from distribcache.cli import main

__all__ = ["tie"]


def tie() -> None:
    """From now on the end of standard input is a SIGTERM to this process."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="tether", daemon=True).start()


if __name__ == "__main__":
    tie()
    sys.argv[0] = "distribcache"
    main()
