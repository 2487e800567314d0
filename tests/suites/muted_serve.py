"""``distribcache serve`` with invalidation muted: for pass D of the foreign suites, and for nothing else.

The reader goes on, W and ``fresh_at`` move, hits are served; only the stores that say which relation a commit touched,
and that the catalogue changed, do nothing. A suite that stays green through this proxy would prove nothing about ours.
It lives among the tests, so that no installed command and no setting can ever do this.
"""

from __future__ import annotations

import sys

from distribcache.cli import main
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.live import DatabaseCoherence


def _deaf(self: Ledger, first: int, lsn: int = 0) -> None:
    """In the place of a store that would have invalidated something."""


if __name__ == "__main__":
    for store in ("touch", "bump", "bump_all"):
        assert hasattr(Ledger, store)
        setattr(Ledger, store, _deaf)
    # Alarms stop hits while the catalogue is read again; muted, a suite full of DDL is answered from memory.
    DatabaseCoherence.catalogue_alarm = lambda self, reason: None  # type: ignore[method-assign]
    print("INVALIDATION IS MUTED: this proxy serves stale answers on purpose", file=sys.stderr, flush=True)
    main()
