"""What is the same for every database whose change stream nobody follows: no position of the log is known, so nothing
of it has a meaning to other processes (``ttl`` has another measure), and an answer depends on whole relations, whose
slots nobody touches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from distribcache.coherence.freshness import Freshness, Watched
from distribcache.coherence.ledger import Columns, Ledger
from distribcache.coherence.link import ServerIdentity

__all__ = ["Unfollowed"]


class Unfollowed:
    """A part of the face of ``DatabaseCoherence``."""

    plugin = ""
    serving: bool

    def __init__(self, name: str, ledger: Ledger, max_staleness_ns: int) -> None:
        self.name = name
        self.ledger = ledger
        self.words = self.head = ledger.words
        self.floors: memoryview | None = None
        self.alarmed: memoryview | None = None
        self.counters = Freshness(epoch_changes=0)
        self.max_staleness_ns = max_staleness_ns
        self.identity: ServerIdentity | None = None
        self.server_version_num = 0
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.looked_at = 0

    def confirmed(self) -> int:
        return 0

    def shared_epoch(self) -> bytes:
        """None: positions of the log are not known here."""
        return b""

    def own_epoch(self) -> bytes:
        return b""

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        return None

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        return None

    def slot_of(self, oid: int) -> int:
        return self.ledger.slot_of(oid, 0)

    def watch(self, oid: int, columns: Columns) -> int:
        """Nobody touches the slot of a relation, nor of its rows."""
        return self.slot_of(oid)

    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int:
        return self.slot_of(oid)

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """As fresh as it ever will be: that is known at once."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(self.serving)
        return future

    def watched(self) -> list[Watched]:
        """Nothing is watched."""
        return []

    async def start(self) -> None:
        """Nothing to start."""
