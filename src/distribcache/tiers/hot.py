"""L1: entries in the memory of this process, bounded in bytes.

Rules:
1. ``bytes_used`` is exactly the sum of the sizes of what is in ``entries``, and never above ``capacity_bytes``.
2. The hit path does not call into this module: it reads ``entries`` itself, honours ``entry[EXPIRES]`` and the ledger
   itself, sets ``entry[TOUCHED][0] = 1``, and calls ``touch`` where that is not None.
3. An entry larger than ``max_entry_bytes`` is refused; what was under its key leaves too, as it is out of date.
4. Whatever leaves is reported once to ``on_evict``, with the cause.

Size of an entry: ``sys.getsizeof`` of the request (last item of the key) and of the payload, plus the policy's
``OVERHEAD``: what the rest costs per entry, measured with tracemalloc as the memory of a full cache of 30,000 to 90,000
entries through which twice as many have gone, less those two. It covers the tuples of key and entry, the LSNs, times
and other numbers, the touched byte, the slots of dict and queues (near their worst: a dict grows in steps) and the
ghost. Strings and slots that entries share (names of tables, ledger slots) are not counted. ``tests/unit/test_hot.py``
repeats the measurement and fails when it is off.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof

from distribcache.entry import EXPIRES, PAYLOAD, Entry
from distribcache.errors import ConfigError
from distribcache.tiers.base import Cause, Key, OnEvict, TierStats
from distribcache.tiers.eviction import POLICIES, PolicyName

__all__ = ["HotCache"]


class HotCache:
    """``capacity_bytes``: bound of the memory; ``max_entry_bytes``: the largest entry taken, overhead included."""

    __slots__ = (
        "_evictions", "_on_evict", "_overhead", "_policy", "_puts", "_refused", "_round", "bytes_used",
        "capacity_bytes", "entries", "max_entry_bytes", "touch",
    )  # fmt: skip

    entries: dict[Key, Entry]
    touch: Callable[[Key], None] | None

    def __init__(
        self,
        capacity_bytes: int,
        max_entry_bytes: int,
        policy: PolicyName = "adaptive",
        on_evict: OnEvict | None = None,
    ) -> None:
        """Raises ``ConfigError`` for a policy that does not exist or a size below 1."""
        if policy not in POLICIES:
            raise ConfigError(f"no policy {policy!r}", where="l1.policy", hint=f"one of {', '.join(POLICIES)}")
        if capacity_bytes < 1 or max_entry_bytes < 1:
            raise ConfigError("a size below 1 byte", where="l1.size, l1.max_entry", hint='a size such as "256MB"')
        self.capacity_bytes = capacity_bytes
        self.max_entry_bytes = min(max_entry_bytes, capacity_bytes)
        self.bytes_used = 0
        self._policy = POLICIES[policy](capacity_bytes, self.size_of)
        self._overhead = self._policy.OVERHEAD
        self.entries = self._policy.entries
        self.touch = self._policy.touch
        self._on_evict = on_evict
        self._puts = 0
        self._refused = 0
        self._evictions = dict.fromkeys(Cause, 0)
        self._round: list[Key] = []  # keys that the present round of expire() has still to look at

    def size_of(self, key: Key, entry: Entry) -> int:
        """Bytes that an entry is charged with."""
        return getsizeof(key[-1]) + getsizeof(entry[PAYLOAD]) + self._overhead

    def put(self, key: Key, entry: Entry) -> bool:
        """Store an entry, or put it in the place of the one under the same key. False: it was refused."""
        size = self.size_of(key, entry)
        if size > self.max_entry_bytes:
            self._refused += 1
            self.discard(key, Cause.REPLACED)
            return False
        self._puts += 1
        old = self.entries.get(key)
        if old is None:
            self._make_room(self.capacity_bytes - size)
            self._policy.add(key, entry, size)
            self.bytes_used += size
            return True
        self._policy.replace(key, entry)
        self.bytes_used += size - self.size_of(key, old)
        self._left(key, old, Cause.REPLACED)
        self._make_room(self.capacity_bytes)
        return self.entries.get(key) is entry

    def _make_room(self, limit: int) -> None:
        while self.bytes_used > limit:
            key, entry, size = self._policy.evict()
            self.bytes_used -= size
            self._left(key, entry, Cause.CAPACITY)

    def _left(self, key: Key, entry: Entry, cause: Cause) -> None:
        self._evictions[cause] += 1
        if self._on_evict is not None:
            self._on_evict(key, entry, cause)

    def discard(self, key: Key, cause: Cause = Cause.DISCARDED) -> bool:
        """Drop a key; False when it was not there."""
        entry = self._policy.remove(key)
        if entry is None:
            return False
        self.bytes_used -= self.size_of(key, entry)
        self._left(key, entry, cause)
        return True

    def clear(self) -> None:
        """Drop everything. Takes time proportional to the cache; entries of an old epoch need no clearing."""
        gone = list(self.entries.items())
        self._policy.clear()
        self.bytes_used = 0
        self._round = []
        for key, entry in gone:
            self._left(key, entry, Cause.CLEARED)

    def expire(self, now: float, limit: int = 2000) -> int:
        """Drop what has expired at ``now`` (coarse-clock seconds) among the next ``limit`` keys; the number dropped.

        Calls go round the whole cache, slice by slice; an entry put after a round began waits for the next one. Only
        the start of a round looks at all keys, to list them (about 10 ns each).
        """
        if not self._round:
            self._round = list(self.entries)
        due = self._round[-limit:]
        del self._round[-limit:]
        dropped = 0
        for key in due:
            entry = self.entries.get(key)
            if entry is not None and entry[EXPIRES] <= now:
                dropped += self.discard(key, Cause.EXPIRED)
        return dropped

    def stats(self) -> TierStats:
        return TierStats(
            entries=len(self.entries),
            bytes_used=self.bytes_used,
            capacity_bytes=self.capacity_bytes,
            puts=self._puts,
            refused=self._refused,
            evictions=dict(self._evictions),
        )
