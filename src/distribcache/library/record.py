"""``CacheEntry``: what an application stores under a fingerprint, and gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

from distribcache.clock import now_ns, wall_time
from distribcache.entry import AT_NS, PAYLOAD, TABLES, Entry
from distribcache.library.config import seconds_of
from distribcache.tiers.base import Key

__all__ = ["CacheEntry", "Kept", "payload_of"]

_FACTS: Final = Struct("<dQ")
"""Behind the data: TTL, row count."""


class CacheEntry:
    """``data`` are bytes. ``ttl`` is in seconds, or such as "5min"; None leaves it to the class of workload. ``tables``
    are what it was made of: with a database followed, a commit that touches one of them ends it; without names it ends
    by time alone. ``created`` and ``remaining_ttl`` are in seconds, the former since the Unix epoch.
    """

    __slots__ = ("access_count", "created", "data", "row_count", "tables", "ttl")

    data: bytes
    ttl: float | None
    row_count: int
    tables: tuple[str, ...]
    created: float
    access_count: int

    def __init__(
        self, data: bytes, *, ttl: float | str | None = None, row_count: int = 0, tables: Iterable[str] = (),
        created: float | None = None,
    ) -> None:  # fmt: skip
        """Raises ConfigError for what is no duration, TypeError for data that are not bytes."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"the data of an entry are bytes, not {type(data).__qualname__}: encode them")
        self.data = bytes(data)
        self.ttl = None if ttl is None else seconds_of("CacheEntry: ttl", ttl)
        self.row_count = row_count
        self.tables = tuple(tables)
        self.created = wall_time() if created is None else created
        self.access_count = 0

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return len(self.data)

    @property
    def remaining_ttl(self) -> float | None:
        """Seconds that are left, 0 when it has expired; None when it has no TTL of its own yet."""
        return None if self.ttl is None else max(0.0, self.created + self.ttl - wall_time())

    @property
    def expired(self) -> bool:
        return self.ttl is not None and self.created + self.ttl <= wall_time()

    def __repr__(self) -> str:
        return f"CacheEntry({self.size} bytes, ttl={self.ttl}, tables={self.tables})"


class Kept(CacheEntry):
    """One that came from memory: nothing of it is copied or computed before it is asked for."""

    __slots__ = ("_entry", "_hits_of", "_key")

    def __init__(self, entry: Entry, key: Key, hits_of: Callable[[Key], int]) -> None:
        self._entry = entry
        self._key = key
        self._hits_of = hits_of

    @property
    def access_count(self) -> int:  # type: ignore[override]
        return self._hits_of(self._key)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        return self._entry[PAYLOAD][: -_FACTS.size]

    @property
    def ttl(self) -> float:  # type: ignore[override]
        ttl: float = _FACTS.unpack_from(self._entry[PAYLOAD], len(self._entry[PAYLOAD]) - _FACTS.size)[0]
        return ttl

    @property
    def row_count(self) -> int:  # type: ignore[override]
        count: int = _FACTS.unpack_from(self._entry[PAYLOAD], len(self._entry[PAYLOAD]) - _FACTS.size)[1]
        return count

    @property
    def tables(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(filter(None, self._entry[TABLES].split(",")))

    @property
    def created(self) -> float:  # type: ignore[override]
        return wall_time() - (now_ns() - self._entry[AT_NS]) / 1e9


def payload_of(entry: CacheEntry, ttl: float) -> bytes:
    """What is stored of it."""
    return entry.data + _FACTS.pack(ttl, entry.row_count)
