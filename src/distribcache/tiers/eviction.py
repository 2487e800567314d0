"""Which entry leaves when the memory is full: four policies behind one contract.

A policy owns the mapping of key to entry and the order of leaving. It does not count the bytes of the whole and does
not know TTLs: ``hot.HotCache`` does.

The contract (``tests/contract/test_policy.py``):
1. ``entries`` is one dict for life; a hit reads it directly and sets ``entry[TOUCHED][0] = 1``.
2. A policy that needs to be told of a hit has a ``touch``; the others have ``None`` and cost a hit nothing.
3. Every operation is O(1), also in the worst case: no eviction walks over the whole cache.
4. ``OVERHEAD`` is what an entry costs beyond its request and payload (see ``hot``).

Policies:

* ``fifo``: what came first leaves first. A refill counts as coming.
* ``lru``: what was read longest ago leaves first.
* ``lfu``: what was read least often leaves first, of equals the one that has been so longest. It ages: reads count on
  top of an *age* that rises by one whenever ``LFU_GENERATION`` times the cache has been evicted, and at most
  ``LFU_CAP`` of them count. So yesterday's favourite, no longer read, is overtaken after at most that many generations.
* ``adaptive`` (S3-FIFO): new entries wait in a small queue, a tenth of the bytes, and move to the main queue only when
  they were read again by the time they reach its end; otherwise they leave, and a ghost remembers their hash: if they
  come back soon they go to the main queue at once. The main queue gives whatever was read since its last turn another
  one. One-time reads (a report, a crawler, a backup) so pass through a tenth of the cache and never push out the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import ClassVar, Final, Generic, Literal, TypeVar

from distribcache.entry import TOUCHED, Entry
from distribcache.tiers.base import Key

__all__ = ["POLICIES", "Adaptive", "Fifo", "Lfu", "Lru", "Policy", "PolicyName", "SizeOf"]

PolicyName = Literal["lru", "lfu", "fifo", "adaptive"]
SizeOf = Callable[[Key, Entry], int]

_T = TypeVar("_T")


class Policy(ABC):
    """``capacity``: bytes that the cache may use; ``size_of``: bytes that an entry is charged with."""

    OVERHEAD: ClassVar[int]

    touch: Callable[[Key], None] | None = None

    def __init__(self, capacity: int, size_of: SizeOf) -> None:
        self.capacity = capacity
        self.size_of = size_of
        self.entries: dict[Key, Entry] = {}

    @abstractmethod
    def add(self, key: Key, entry: Entry, size: int) -> None:
        """Take in a key that is not there; ``size`` is its ``size_of``."""

    @abstractmethod
    def replace(self, key: Key, entry: Entry) -> None:
        """Put another entry under a key that is there: somebody asked for it again."""

    @abstractmethod
    def remove(self, key: Key) -> Entry | None:
        """Take out a key wherever it is in the order; None when it is not there."""

    @abstractmethod
    def evict(self) -> tuple[Key, Entry, int]:
        """Choose one to leave and take it out, with its size. Raises ``KeyError`` when there is none."""

    def clear(self) -> None:
        self.entries.clear()


class Fifo(Policy):
    OVERHEAD = 600

    def __init__(self, capacity: int, size_of: SizeOf) -> None:
        super().__init__(capacity, size_of)
        self._order: OrderedDict[Key, Entry] = OrderedDict()
        self.entries = self._order

    def add(self, key: Key, entry: Entry, size: int) -> None:
        self._order[key] = entry

    def replace(self, key: Key, entry: Entry) -> None:
        self._order[key] = entry
        self._order.move_to_end(key)

    def remove(self, key: Key) -> Entry | None:
        return self._order.pop(key, None)

    def evict(self) -> tuple[Key, Entry, int]:
        key, entry = self._order.popitem(last=False)
        return key, entry, self.size_of(key, entry)


class Lru(Fifo):
    """Fifo in which a hit counts as coming."""

    def __init__(self, capacity: int, size_of: SizeOf) -> None:
        super().__init__(capacity, size_of)
        self.touch = self._order.move_to_end


LFU_CAP: Final = 8
LFU_GENERATION: Final = 2


class Lfu(Policy):
    OVERHEAD = 800

    def __init__(self, capacity: int, size_of: SizeOf) -> None:
        super().__init__(capacity, size_of)
        self._age = 0
        self._evicted = 0  # since the age last rose
        self._priority: dict[Key, int] = {}
        # Keys of equal priority in the order in which they reached it. There are only a few more than LFU_CAP levels:
        # what falls behind the age leaves before the age rises again.
        self._levels: dict[int, OrderedDict[Key, None]] = {}
        self.touch = self._touched

    def _enter(self, key: Key, priority: int) -> None:
        self._priority[key] = priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
        level[key] = None

    def _leave(self, key: Key) -> int:
        priority = self._priority.pop(key)
        level = self._levels[priority]
        del level[key]
        if not level:
            del self._levels[priority]
        return priority

    def _touched(self, key: Key) -> None:
        priority = self._priority[key]
        after = min(max(priority, self._age) + 1, self._age + LFU_CAP)
        if after == priority:
            self._levels[priority].move_to_end(key)
        else:
            self._leave(key)
            self._enter(key, after)

    def add(self, key: Key, entry: Entry, size: int) -> None:
        self.entries[key] = entry
        self._enter(key, self._age + 1)

    def replace(self, key: Key, entry: Entry) -> None:
        self.entries[key] = entry
        self._touched(key)

    def remove(self, key: Key) -> Entry | None:
        entry = self.entries.pop(key, None)
        if entry is not None:
            self._leave(key)
        return entry

    def evict(self) -> tuple[Key, Entry, int]:
        if not self._levels:
            raise KeyError("nothing to evict")
        least = min(self._levels)
        key = next(iter(self._levels[least]))
        self._leave(key)
        entry = self.entries.pop(key)
        self._evicted += 1
        if self._evicted >= LFU_GENERATION * len(self.entries):
            self._evicted = 0
            self._age += 1
        return key, entry, self.size_of(key, entry)

    def clear(self) -> None:
        super().clear()
        self._age = self._evicted = 0
        self._priority.clear()
        self._levels.clear()


class _Queue(Generic[_T]):
    """A FIFO of distinct items from which any item can be taken in O(1).

    A taken item leaves a hole: it stays in the deque until its turn comes, and coming back fills its old place. That is
    8 bytes an item where an OrderedDict takes 170. When holes are more than a quarter, each further one pays for four
    steps of a sweep that closes them, so they stay bounded without ever walking over the whole queue at once.
    """

    __slots__ = ("_holes", "_newer", "_older")

    def __init__(self) -> None:
        # Everything in `_older` comes before everything in `_newer`; a sweep moves items from here to there.
        self._older: deque[_T] = deque()
        self._newer: deque[_T] = deque()
        self._holes: set[_T] = set()

    def __len__(self) -> int:
        return len(self._older) + len(self._newer) - len(self._holes)

    def push(self, item: _T) -> bool:
        """Add at the end an item that is not there. True when it went to its old place instead."""
        if item in self._holes:
            self._holes.remove(item)
            return True
        self._newer.append(item)
        return False

    def pop(self) -> _T:
        """Take the first item. Raises ``IndexError`` when there is none."""
        holes = self._holes
        while True:
            item = self._older.popleft() if self._older else self._newer.popleft()
            if item not in holes:
                return item
            holes.remove(item)

    def take(self, item: _T) -> None:
        """Take out an item that is there."""
        self._holes.add(item)
        if len(self._holes) > 64 + (len(self._older) + len(self._newer)) // 4:
            for _ in range(4):
                self._sweep()

    def _sweep(self) -> None:
        if not self._newer:
            self._newer, self._older = self._older, self._newer
        if self._newer:
            item = self._newer.popleft()
            if item in self._holes:
                self._holes.remove(item)
            else:
                self._older.append(item)

    def clear(self) -> None:
        self._older.clear()
        self._newer.clear()
        self._holes.clear()


SMALL_SHARE: Final = 0.1
"""Share of the bytes that the small queue of ``adaptive`` may hold when the cache is full."""

MAX_CHANCES: Final = 1000
"""Entries that one eviction may spare. Without it an eviction in a cache where all was read would walk over all."""


class Adaptive(Policy):
    OVERHEAD = 700

    def __init__(self, capacity: int, size_of: SizeOf) -> None:
        super().__init__(capacity, size_of)
        self._small_limit = int(capacity * SMALL_SHARE)
        self._small_bytes = 0
        self._small: _Queue[Key] = _Queue()
        self._in_small: set[Key] = set()
        self._main: _Queue[Key] = _Queue()
        self._ghost: _Queue[int] = _Queue()
        self._in_ghost: set[int] = set()

    def add(self, key: Key, entry: Entry, size: int) -> None:
        self.entries[key] = entry
        mark = hash(key)
        if mark in self._in_ghost:
            self._in_ghost.remove(mark)
            self._ghost.take(mark)
            self._to_main(key, entry)
            return
        self._in_small.add(key)
        self._small_bytes += size
        if self._small.push(key):
            entry[TOUCHED][0] = 1

    def _to_main(self, key: Key, entry: Entry) -> None:
        # Back in its old place it may be next to leave: a chance to move to the end makes up for that.
        entry[TOUCHED][0] = 1 if self._main.push(key) else 0

    def replace(self, key: Key, entry: Entry) -> None:
        if key in self._in_small:
            self._small_bytes += self.size_of(key, entry) - self.size_of(key, self.entries[key])
        self.entries[key] = entry
        entry[TOUCHED][0] = 1

    def remove(self, key: Key) -> Entry | None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return None
        if key in self._in_small:
            self._in_small.remove(key)
            self._small_bytes -= self.size_of(key, entry)
            self._small.take(key)
        else:
            self._main.take(key)
        return entry

    def evict(self) -> tuple[Key, Entry, int]:
        if not self.entries:
            raise KeyError("nothing to evict")
        chances = MAX_CHANCES
        while True:
            from_small = bool(self._in_small) and (self._small_bytes > self._small_limit or not len(self._main))
            key = self._small.pop() if from_small else self._main.pop()
            entry = self.entries[key]
            size = 0
            if from_small:
                size = self.size_of(key, entry)
                self._in_small.remove(key)
                self._small_bytes -= size
            if entry[TOUCHED][0] and chances:
                chances -= 1
                self._to_main(key, entry)
                continue
            del self.entries[key]
            if from_small:
                self._remember(hash(key))
            return key, entry, size or self.size_of(key, entry)

    def _remember(self, mark: int) -> None:
        if mark not in self._in_ghost:
            self._in_ghost.add(mark)
            self._ghost.push(mark)
        # As many ghosts as entries: their bytes are part of OVERHEAD.
        while len(self._in_ghost) > len(self.entries):
            self._in_ghost.remove(self._ghost.pop())

    def clear(self) -> None:
        super().clear()
        self._small_bytes = 0
        for queue in (self._small, self._main):
            queue.clear()
        self._ghost.clear()
        self._in_small.clear()
        self._in_ghost.clear()


POLICIES: Final[dict[PolicyName, type[Policy]]] = {"lru": Lru, "lfu": Lfu, "fifo": Fifo, "adaptive": Adaptive}
