"""A reply on its way into the cache, and the readers who wait for it.

A fill gathers the bytes of one reply while they are relayed. It is stored only when the exchange has ended well
(coherence rule R2): nothing spoiled it, the epoch is still that of its beginning, the session's scope too, and every
statement since the transaction began was a proven pure read. One fill per key is in flight in the process; others who
ask for the same key meanwhile wait for it and then look it up *as a hit*, through freshness and validity of their own
(coherence trap 10).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distribcache.catalog.statement import Analysis
from distribcache.store import Place

__all__ = ["Budget", "Fill", "Flights"]

Key = tuple[int, bytes]


class Budget:
    """Bytes that the fills of one session may still hold together: a pipeline may go on for long before its end."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class Fill:
    """Bytes of one reply, at most ``cap`` of them; beyond it the fill is given up and memory released at once."""

    __slots__ = (
        "_budget",
        "_cap",
        "_parts",
        "_size",
        "analysis",
        "began_ns",
        "epoch",
        "fill_lsn",
        "key",
        "leads",
        "limited",
        "place",
        "scope",
        "slots",
        "spoiled",
        "ttl",
        "whole",
    )

    def __init__(
        self,
        key: Key,
        *,
        analysis: Analysis,
        slots: tuple[int, ...],
        fill_lsn: int,
        epoch: int,
        scope: int,
        began_ns: int,
        ttl: float,
        cap: int,
        budget: Budget | None = None,
    ) -> None:
        self.key = key
        self._budget = budget or Budget(cap)
        self.scope = scope
        self.leads = False
        """Others may wait for this fill."""
        self.limited = False
        """A suspended portal is part of the answer, because Sync ends it."""
        self.place: Place | None = None
        """Where the answer is kept below L1."""
        self.analysis = analysis
        self.slots = slots
        self.fill_lsn = fill_lsn
        self.epoch = epoch
        self.began_ns = began_ns
        self.ttl = ttl
        self.spoiled = False
        self.whole = False
        """The end of the statement has come: what the server skipped after an error is nothing to keep."""
        self._cap = cap
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Gather bytes of the reply."""
        if self.spoiled:
            return
        size = len(data)
        if self._size + size > self._cap or size > self._budget.left:
            self.spoil()
        else:
            self._size += size
            self._budget.left -= size
            self._parts.append(data)

    def spoil(self) -> None:
        """Never store this reply."""
        self.spoiled = True
        self._budget.left += self._size
        self._size = 0
        self._parts.clear()

    def payload(self) -> bytes:
        """The whole reply, without ReadyForQuery."""
        return b"".join(self._parts)


class Flights:
    """The fills in flight, by key, and who waits for them."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[Key, list[Callable[[], None]]] = {}

    def lead(self, key: Key) -> bool:
        """Begin a flight; False when someone else's is under way."""
        if key in self._waiting:
            return False
        self._waiting[key] = []
        return True

    def join(self, key: Key) -> asyncio.Future[None]:
        """A future that is done when the flight of ``key`` has landed, well or not."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[key].append(lambda: None if future.done() else future.set_result(None))
        return future

    def land(self, key: Key) -> None:
        """End a flight and wake who waits for it."""
        for wake in self._waiting.pop(key, ()):
            wake()

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting
