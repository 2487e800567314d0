"""What waits to be written to the warm tier: bounded in bytes, found by look-ups meanwhile.

The last word on a digest counts: a record, or that what is under it must go (``Drop``). Of records there are at most
``capacity`` bytes; of drops, which are small and must not be lost, half as much beside them.

An item is *waiting*, then *being written*, then gone. It is in the second place before it leaves the first, and is
written before it leaves the second: a look-up that asks in this order always finds it. A clearing hides the second
place and what is stored, until it is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from distribcache.tiers.base import Digest, Record
from distribcache.tiers.outcomes import Drop

__all__ = ["Queue", "weight"]

_OVERHEAD: Final = 700
"""Bytes of a waiting record besides its parts."""
_DROP: Final = 250
"""Bytes of a waiting drop."""

Item = Record | Drop


def weight(item: Item) -> int:
    """Bytes that an item is charged with while it waits."""
    if not isinstance(item, Record):
        return _DROP
    tags = sum(map(len, item.tags)) + 40 * len(item.tags)
    return len(item.payload) + tags + len(item.tables) + len(item.workload) + _OVERHEAD


class Queue:
    """``capacity``: bytes that may wait; ``batch`` and ``at_once``: bytes and items that are taken, or one item."""

    __slots__ = (
        "_asked", "_at_once", "_batch", "_capacity", "_changed", "_closed", "_done", "_drops", "_waiting", "_woken",
        "_writing", "bytes_used",
    )  # fmt: skip

    bytes_used: int
    """Of records that wait."""

    def __init__(self, capacity: int, batch: int, at_once: int = 512) -> None:
        self._capacity = capacity
        self._at_once = at_once
        self._batch = batch
        self._changed = threading.Condition()
        self._waiting: dict[Digest, Item] = {}
        self._writing: dict[Digest, Item] = {}
        self._drops = 0
        self._asked = 0
        self._done = 0
        self._closed = True
        self._woken = False
        self.bytes_used = 0

    # For those who ask and put.

    def find(self, digest: Digest) -> Item | None:
        found = self._waiting.get(digest)
        if found is None and self._asked == self._done:
            found = self._writing.get(digest)
        return found

    @property
    def is_clearing(self) -> bool:
        """Must nothing that is stored be found?"""
        return self._asked != self._done

    def put(self, digest: Digest, record: Record) -> bool:
        """False: there is no room."""
        size = weight(record)
        with self._changed:
            old = self._waiting.get(digest)
            freed = weight(old) if isinstance(old, Record) else 0
            if self._closed or self.bytes_used - freed + size > self._capacity:
                return False
            self._forget(digest)
            self._waiting[digest] = record
            self.bytes_used += size
            self._changed.notify_all()
        return True

    def drop(self, digest: Digest, drop: Drop) -> bool:
        """False: there is no room, or nobody who would do it."""
        with self._changed:
            if self._closed or self._drops * _DROP > self._capacity // 2:
                return False
            self._forget(digest)
            self._waiting[digest] = drop
            self._drops += 1
            self._changed.notify_all()
        return True

    def clear(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._drops = self.bytes_used = 0
            self._asked += 1
            self._changed.notify_all()

    def wait_empty(self, timeout: float, or_else: Callable[[], bool]) -> bool:
        """Wait until nothing waits or is being written, or ``or_else``; False: neither in time."""
        with self._changed:
            return self._changed.wait_for(lambda: or_else() or not (self.has_work or self._writing), timeout)

    def open(self) -> None:
        """Somebody writes from now on."""
        self._closed = False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """In a child after a fork: its locks may be held by threads that are not here."""
        self.__init__(self._capacity, self._batch, self._at_once)  # type: ignore[misc]

    def wake(self) -> None:
        """Let the writer look around now."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # For the one who writes.

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._asked != self._done

    @property
    def clears(self) -> int:
        """To be handed to ``cleared`` by who clears from now on."""
        return self._asked

    def cleared(self, until: int) -> None:
        with self._changed:
            self._done = until
            self._changed.notify_all()

    def wait_work(self, timeout: float) -> bool:
        """Wait until there is something to do, or until woken or closed; False: nothing is to be done."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_work or self._woken or self._closed, timeout)
            self._woken = False
            return self.has_work

    def rest(self, timeout: float) -> None:
        """Wait until woken or closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._closed, timeout)
            self._woken = False

    def take(self) -> dict[Digest, Item]:
        """The oldest items, to be written."""
        with self._changed:
            taken: dict[Digest, Item] = {}
            size = 0
            for digest, item in self._waiting.items():
                size += weight(item)
                if taken and (size > self._batch or len(taken) >= self._at_once):
                    break
                taken[digest] = item
            self._writing = taken
            for digest in taken:
                self._forget(digest)
            return taken

    def written(self) -> None:
        with self._changed:
            self._writing = {}
            self._changed.notify_all()

    def gave_up(self) -> None:
        """Nothing will be written for now: let go of records. Drops wait on, where nothing newer has come."""
        with self._changed:
            taken, self._writing = self._writing, {}
            for digest in [each for each, item in self._waiting.items() if isinstance(item, Record)]:
                self._forget(digest)
            for digest, item in taken.items():
                if isinstance(item, Drop) and digest not in self._waiting:
                    self._waiting[digest] = item
                    self._drops += 1
            self._changed.notify_all()

    def _forget(self, digest: Digest) -> None:
        old = self._waiting.pop(digest, None)
        if isinstance(old, Record):
            self.bytes_used -= weight(old)
        elif old is not None:
            self._drops -= 1
