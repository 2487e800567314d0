"""What was invalidated by hand, key by key or table by table, and when.

Dropping an entry is not enough: at the same moment somebody may be making it from what was read before. So the moment
is kept, and whatever was begun before it is neither stored nor brought up from a tier below.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable

from distribcache.entry import TABLES, Entry
from distribcache.tiers.base import Key

__all__ = ["Forgotten", "Marks"]


class Marks:
    """When something was invalidated by hand. Bounded: what was dropped counts as invalidated when the last of it
    was.
    """

    __slots__ = ("_before", "_most", "_times")

    def __init__(self, most: int = 65536) -> None:
        self._times: OrderedDict[Hashable, int] = OrderedDict()
        self._most = most
        self._before = 0

    def add(self, name: Hashable, now: int) -> None:
        self._times[name] = now
        self._times.move_to_end(name)
        if len(self._times) > self._most:
            self._before = self._times.popitem(last=False)[1]

    def reaches(self, name: Hashable, since_ns: int) -> bool:
        """Was it invalidated at that moment or later?"""
        return self._times.get(name, self._before) >= since_ns


class Forgotten:
    """The marks of keys and of tables."""

    __slots__ = ("_keys", "_tables")

    def __init__(self) -> None:
        self._keys = Marks()
        self._tables = Marks()

    def key(self, key: Key, now: int) -> None:
        self._keys.add(key, now)

    def tables(self, tables: Iterable[str], now: int) -> None:
        for table in tables:
            self._tables.add(table, now)

    def covers(self, key: Key, entry: Entry, began_ns: int) -> bool:
        """Was this entry, which was begun at that moment, invalidated since?"""
        if self._keys.reaches(key, began_ns):
            return True
        tables = entry[TABLES]
        return bool(tables) and any(self._tables.reaches(table, began_ns) for table in tables.split(","))
