"""``distribcache serve`` with invalidation muted: for pass D of the foreign suites, and for nothing else.

The reader goes on, W and ``fresh_at`` move, hits are served; but an entry is taken for valid whatever the ledger says,
and a change of the catalogue stops nothing. A suite that stays green through this proxy would prove nothing about
ours. It lives among the tests, so that no installed command and no setting can ever do this.
"""

from __future__ import annotations

import sys

from distribcache.cli import main
from distribcache.coherence.coverage import Coverage
from distribcache.entry import Entry
from distribcache.proxy import hit, lookup


def _always(entry: Entry, words: memoryview, now: float, head: memoryview | None = None) -> bool:
    """In the place of coherence rule R1."""
    return True


def _deaf(self: Coverage, reason: str, hold: int, xid: int = -1) -> None:
    """In the place of a catalogue alarm."""


if __name__ == "__main__":
    assert callable(hit.valid) and callable(lookup.valid) and callable(Coverage._alarm)
    hit.valid = lookup.valid = _always  # type: ignore[assignment]
    Coverage._alarm = _deaf  # type: ignore[method-assign]
    print("INVALIDATION IS MUTED: this proxy serves stale answers on purpose", file=sys.stderr, flush=True)
    main()
