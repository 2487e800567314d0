"""``distribcache`` with its row tags muted, for comparison: every entry depends on whole tables."""

from __future__ import annotations

import sys

from distribcache.catalog import statement
from distribcache.cli import main

if __name__ == "__main__":
    statement.row_tags = lambda occurrences, relations, slots: ()
    sys.exit(main())
