"""Which received commits are proved visible to every new snapshot (coherence rule R3).

The stream carries a commit before snapshots show it: PostgreSQL writes the commit record, waits for its flush and for
synchronous standbys, and only then leaves the list of running transactions. An entry filled in between holds the old
value, and no further event would ever come for it. So a fill may only be dated V:

    V = greatest position ≤ W with no unproved received commit at or below it.

Rules:
1. A commit is proved when its xid is below ``xmax`` of a snapshot and not in ``xip``. The stream prints 32 bits,
   snapshots 64: the comparison is modular, relative to ``xmax``. ``xmin`` alone proves nothing that this does not,
   and lags.
2. Any snapshot will do, also one asked before the commit was received: what one snapshot sees, all later ones see.
3. The first snapshot after the stream has started (S0) lists the transactions whose commit records may lie *before*
   the start and which are not visible yet. While one of them is neither gone from a later snapshot nor received, V is
   undefined and nothing may be filled.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Snapshot", "Visibility"]

_XIDS = 1 << 32
_HALF = 1 << 31


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``pg_current_snapshot()``: 64-bit ids; ``running`` is its xip list."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: bytes | str) -> Snapshot:
        """From ``xmin:xmax:xip,xip``. Raises ValueError for anything else."""
        if isinstance(text, bytes):
            text = text.decode("ascii")
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())

    def sees(self, xid: int) -> bool:
        """Does it show the committed top-level transaction with this 32-bit id?"""
        distance = (self.xmax - xid) % _XIDS
        if distance == 0 or distance >= _HALF:
            return False
        return self.xmax - distance not in self.running


class Visibility:
    """The set of unproved commits of one stream."""

    __slots__ = ("_at_start", "_unproved", "proved", "seen_start")

    def __init__(self) -> None:
        self._unproved: dict[int, int] = {}  # xid → end of its commit record, in stream order
        self._at_start: frozenset[int] = frozenset()
        self.seen_start = False
        self.proved = 0

    def received(self, xid: int, lsn: int) -> None:
        """A commit record has arrived."""
        self._unproved[xid] = lsn
        if self._at_start:
            # It was received after all, so its record lies behind the start: from now on it is an ordinary one.
            self._at_start = frozenset(x for x in self._at_start if x % _XIDS != xid)

    def observe(self, snapshot: Snapshot) -> None:
        """Use a snapshot of the server; the first one is S0 and must have been asked after the stream started."""
        if self.seen_start:
            self._at_start &= snapshot.running
        else:
            self._at_start = snapshot.running
            self.seen_start = True
        sees = snapshot.sees
        done = [xid for xid in self._unproved if sees(xid)]
        for xid in done:
            del self._unproved[xid]
        self.proved += len(done)

    @property
    def defined(self) -> bool:
        """False while a transaction of before the start may still be invisible."""
        return self.seen_start and not self._at_start

    @property
    def waits_for(self) -> frozenset[int]:
        """64-bit ids of the transactions of S0 that keep V undefined."""
        return self._at_start

    def is_unproved(self, xid: int) -> bool:
        return xid in self._unproved

    def __len__(self) -> int:
        return len(self._unproved) + len(self._at_start)

    def visible(self, applied: int) -> int:
        """V for a watermark W; 0 when undefined."""
        if not self.defined:
            return 0
        for first in self._unproved.values():
            return min(applied, first - 1)
        return applied
