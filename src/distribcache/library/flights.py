"""Single flight: of all who miss the same key at a time, one asks and the others wait for it.

Callers may be tasks of any event loop and threads of any kind, so a flight is a future that belongs to no loop. Who
waited looks again: what the leader has stored reaches him only *as a hit*, through freshness and validity of his own
(coherence rule R2, coherence trap 10).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from distribcache.library.forks import concerns

__all__ = ["Flight", "Flights", "whoami"]


def whoami() -> object:
    """The task or thread that runs now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task


class Flight:
    """One question under way. ``failure`` is what it ended with, if it did. ``landing``: it has ended, and its answer
    is being stored.
    """

    __slots__ = ("done", "failure", "landing", "owner")

    def __init__(self, owner: object) -> None:
        self.done: Future[None] = Future()
        self.owner = owner
        self.landing = False
        self.failure: BaseException | None = None


class Flights:
    """The questions under way, by key."""

    __slots__ = ("__weakref__", "_lock", "_open")

    def __init__(self) -> None:
        self.forked()
        concerns(self)

    def forked(self) -> None:
        """Those under way are the parent's, and so is whoever holds the lock."""
        self._lock = threading.Lock()
        self._open: dict[Any, Flight] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: Any) -> bool:
        return key in self._open

    def lead(self, key: Any) -> Flight | None:
        """Begin a flight; None when there is one under way."""
        with self._lock:
            if key in self._open:
                return None
            flight = self._open[key] = Flight(whoami())
            return flight

    def join(self, key: Any) -> Flight | None:
        """The flight under way; None when there is none, or when it is one's own (a function that calls itself)."""
        flight = self._open.get(key)
        return None if flight is None or (not flight.landing and flight.owner == whoami()) else flight

    def land(self, key: Any, flight: Flight, failure: BaseException | None = None) -> None:
        """End a flight, if that has not been done, and wake who waits for it."""
        with self._lock:
            if self._open.get(key) is not flight:
                return
            del self._open[key]
        flight.failure = failure
        flight.done.set_result(None)
