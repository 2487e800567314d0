"""``python -m muted_crew serve …``: ``distribcache serve`` with the rules named in MUTED switched off, in workers too.

It lives among the tests, so that no installed command and no setting can ever do this.
"""

from __future__ import annotations

import os
import sys

from mutes import MUTES

from distribcache.cli import main
from distribcache.proxy import workers

if __name__ == "__main__":
    for name in os.environ["MUTED"].split(","):
        MUTES[name](setattr)
    workers.COMMAND[1:] = ["-m", "muted_crew", "worker"]
    print(f"{os.environ['MUTED']}: this proxy is made to fail on purpose", file=sys.stderr, flush=True)
    main()
