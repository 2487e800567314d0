"""Bytes under a fingerprint: what an application asked itself and keeps here (``get``, ``insert``, ``invalidate``).

Rules:
1. An entry that names no tables depends on nothing but time, and so does every entry where no database is followed.
2. An entry of tables is dated by the ``get`` that missed before it (coherence rule R2): F, the epoch and the moment are
   remembered by task or thread until the ``insert`` comes. Without them it is not stored.
3. What was invalidated by hand between the two is not stored.
4. A failure of the cache is a miss.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final, NamedTuple

from distribcache.clock import now_ns
from distribcache.entry import EPOCH, Entry, make_entry
from distribcache.library.below import Below
from distribcache.library.dependence import qualified, relations
from distribcache.library.fingerprint import QueryFingerprint
from distribcache.library.heat import Heat
from distribcache.library.keeper import TIMELESS, Keeper
from distribcache.library.outcome import Tally
from distribcache.library.record import CacheEntry, Kept, payload_of
from distribcache.library.steps import Steps
from distribcache.query import QueryContext, WorkloadType
from distribcache.tiers.base import Key

__all__ = ["RAW", "Entries", "key_for"]

RAW: Final = "raw"
_MOST_POINTS: Final = 256


class Point(NamedTuple):
    """What dates an entry: F (0 when there was none), the epoch, and when it was asked for."""

    fill: int
    epoch: int
    at_ns: int


_NO_POINTS: Final[Mapping[tuple[int, Key], Point]] = MappingProxyType({})
_points: ContextVar[Mapping[tuple[int, Key], Point]] = ContextVar("distribcache.points", default=_NO_POINTS)
"""What was missed in this task or thread, for the ``insert`` that follows."""


def key_for(fingerprint: QueryFingerprint, context: QueryContext | None) -> Key:
    """The key of that query in that context."""
    if context is None:
        return (RAW, None, None, fingerprint.key)
    return (RAW, context.branch, context.as_of, fingerprint.key)


class Entries:
    """See the module; one per cache object."""

    def __init__(self, keeper: Keeper, tally: Tally, heat: Heat) -> None:
        self._keeper = keeper
        self._tally = tally
        self._heat = heat
        self._below = Below(keeper)

    def hit(self, key: Key, entry: Entry, fingerprint: QueryFingerprint) -> CacheEntry:
        """What is given back of an entry that was found, and counted."""
        keeper = self._keeper
        keeper.reads += 1
        keeper.touch(key, entry)
        self._tally.hits += 1
        self._heat.note((entry, key, fingerprint.template))
        return Kept(entry, key, self._heat.hits_of)

    def get(self, key: Key, fingerprint: QueryFingerprint) -> Steps[CacheEntry | None]:
        """What is stored under that key, wherever it is."""
        try:
            return (yield from self._get(key, fingerprint))
        except Exception as error:  # noqa: BLE001 - rule 4
            self._keeper.failed(error)
            return None

    def _get(self, key: Key, fingerprint: QueryFingerprint) -> Steps[CacheEntry | None]:
        keeper = self._keeper
        if not keeper.running or not keeper.settings.cache.enabled:
            return None
        for _ in range(2):
            floor = keeper.floor(None, now_ns())
            entry, fresh = self._find(key, floor)
            if entry is not None and fresh:
                return self.hit(key, entry, fingerprint)
            if entry is None or not (yield from keeper.wait_fresh(floor)):
                break
        if (yield from keeper.ask(self._below.rise(key), None)) is not None:
            entry, fresh = self._find(key, keeper.floor(None, now_ns()))
            if entry is not None and fresh:
                return self.hit(key, entry, fingerprint)
        self._tally.misses["absent"] += 1
        self._heat.note((None, ",".join(fingerprint.tables), fingerprint.template, fingerprint.workload.value))
        self._remember(key)
        return None

    def _find(self, key: Key, floor: int) -> tuple[Entry | None, bool]:
        """A valid entry, and whether it is fresh enough: that is asked first (R4, then R1)."""
        fresh = self._keeper.fresh(floor)
        entry = self._keeper.find(key)
        return entry, entry is not None and (fresh or entry[EPOCH] == TIMELESS)

    def _remember(self, key: Key) -> None:
        """Rule 2. The first miss counts: what is stored may have been read at any time after it."""
        points = _points.get()
        if (id(self), key) not in points:
            coherence = self._keeper.coherence
            kept = list(points.items())[-_MOST_POINTS:]
            point = Point(coherence.fill_point() or 0, coherence.epoch, now_ns())
            _points.set({**dict(kept), (id(self), key): point})

    def insert(
        self, fingerprint: QueryFingerprint, entry: CacheEntry, context: QueryContext | None
    ) -> Steps[str]:
        """What became of it."""
        keeper, key = self._keeper, key_for(fingerprint, context)
        points = dict(_points.get())
        point = points.pop((id(self), key), None) or Point(0, 0, now_ns())
        _points.set(points)
        hint = None if context is None else context.workload_hint
        workload = hint or fingerprint.workload
        ttl = keeper.settings.ttl.of(workload) if entry.ttl is None else entry.ttl
        tables = entry.tables or fingerprint.tables
        became = "stopped" if not keeper.running else "expired" if entry.expired else ""
        if not became:
            work = self._store(key, payload_of(entry, ttl), tables, point, ttl, workload)
            became = yield from keeper.ask(work, "internal_error")
        self._tally.fills[became] += 1
        return became

    async def _store(
        self, key: Key, payload: bytes, tables: tuple[str, ...], point: Point, ttl: float, workload: WorkloadType
    ) -> str:
        """On the keeper's loop."""
        keeper = self._keeper
        fill, epoch = 0, TIMELESS
        slots: tuple[int, ...] = ()
        analysis, names = 0, ",".join(".".join(qualified(table)) for table in tables)
        if tables and keeper.follows:
            if not point.fill:
                return "no_fill_point"
            base = await relations(keeper, tables)
            if base.reason:
                return base.reason
            fill, epoch = point.fill, point.epoch
            slots, analysis, names = base.slots, min(base.analysis, fill), base.tables
        entry = make_entry(
            payload, fill=fill, analysis=analysis, slots=slots, epoch=epoch, expires=keeper.clock.now + ttl,
            cost_ns=0, at_ns=now_ns(), tables=names, workload=workload.value,
        )  # fmt: skip
        return self._below.put(key, entry, began_ns=point.at_ns, ttl=ttl)

    def forget(self, key: Key) -> Steps[bool]:
        """Drop a key from all tiers, and what is being made of it; was it in memory?"""
        return (yield from self._keeper.ask(self._below.forget(key), False))

    def forget_table(self, table: str) -> Steps[int]:
        """Drop what was made of a table, and what is being made of it; how much was there. Raises InvalidationError."""
        schema, name = qualified(table)
        return (yield from self._keeper.ask(self._forget_table(table, f"{schema}.{name}"), 0))

    async def _forget_table(self, table: str, name: str) -> int:
        keeper = self._keeper
        names = [name]
        if keeper.follows:
            found = await relations(keeper, [table])
            names += filter(None, found.tables.split(","))
        return keeper.forget_tables(names)
