"""What a cache object keeps: memory and the tiers below it, and the database whose change stream it follows.

All of that lives on a loop of its own (``loop``), so one cache serves tasks of any loop and threads that block. Whoever
looks an entry up does not cross over: an entry is a tuple, a dict look-up is atomic, and the ledger is read word by
word in the order that its writer promises (coherence trap 18). Everything that changes something is done on the loop.

Without ``upstream.url`` nothing is followed: only time ends an entry, and the mode is ``ttl``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from distribcache.catalog.statement import Analyst
from distribcache.clock import CoarseClock, now_ns, wall_time
from distribcache.coherence.address import read_url
from distribcache.coherence.database import Coherence, Databases, TtlOnly
from distribcache.coherence.ledger import FRESH_AT, W
from distribcache.coherence.options import Options
from distribcache.coherence.validity import valid
from distribcache.config import Settings
from distribcache.entry import AT_NS, EPOCH, EXPIRES, FILL, TABLES, TOUCHED, Entry
from distribcache.errors import ConfigError
from distribcache.library.flights import Flight, Flights
from distribcache.library.forgotten import Forgotten
from distribcache.library.forks import left_behind
from distribcache.library.loop import OwnLoop
from distribcache.library.steps import Steps
from distribcache.query import Consistency
from distribcache.store import Place, Store
from distribcache.tiers.base import Cause, Key
from distribcache.tiers.hot import HotCache
from distribcache.tiers.stack import stack_of
from distribcache.workload.classifier import classify

__all__ = ["TIMELESS", "Keeper"]

Log = Callable[[str], None]

TIMELESS: Final = 0
"""As the epoch of an entry: it depends on nothing but time. Epochs of ledgers begin at 1."""
_TICK_S: Final = 0.05
_SWEEP: Final = 2000


class Keeper(OwnLoop):
    """See the module. ``entries`` may be read from any thread, everything else is for the loop or says otherwise."""

    def __init__(self, settings: Settings, log: Log, on_evict: Callable[[Key, Entry, Cause], None]) -> None:
        super().__init__()
        self.settings = settings
        self.clock = CoarseClock()
        self.clock.tick()
        self.l1 = HotCache(settings.l1.size, settings.l1.max_entry, settings.l1.policy, on_evict)
        self.entries = self.l1.entries
        self.flights = Flights()
        self.forgotten = Forgotten()
        self.coherence: Coherence
        self.analyst: Analyst
        self.store: Store
        self.reads = 0
        """Look-ups so far, whoever made them: a hint that somebody uses the database."""
        self.on_tick: Callable[[], None] = lambda: None
        self._told = log
        self._databases: Databases | None = None
        self._floor_lock = threading.Lock()
        self._seen = 0

    # -- life

    async def _open(self) -> None:
        settings = self.settings
        self.store = Store(
            self.l1, stack_of(settings.l2, settings.l3, wall_time, self._log), self.clock,
            lease_cost_ns=int(settings.l3.lease_cost * 1e9), patience_s=settings.cache.single_flight_wait,
        )  # fmt: skip
        options = Options.from_settings(settings)
        url = settings.upstream.url
        if url:
            self._databases = Databases(url, options, self._log)
            self.coherence = self._databases.acquire(_database(url))
        else:
            self.coherence = TtlOnly("", "", options, self._log)
        coherence = self.coherence
        self.analyst = Analyst(
            coherence.ask, coherence.slot_of, coherence.visible, coherence.schema_lsn, classify=classify,
            published=lambda: coherence.plugin == "pgoutput",
        )  # fmt: skip
        # After a crash positions can go back: an old analysis would look current.
        coherence.epoch_listeners.append(lambda _: self.analyst.forget())
        await self.store.stack.start()

    async def _live(self) -> None:
        while True:
            self.clock.tick()
            try:
                self.l1.expire(self.clock.now, _SWEEP)
                self.store.settle()
                if self.reads != self._seen:
                    self._seen = self.reads
                    self.coherence.note_traffic()
                self.on_tick()
            except Exception as error:  # noqa: BLE001 - a failure of ours is a counter, never an end
                self.failed(error)
            await asyncio.sleep(_TICK_S)

    async def _close(self) -> None:
        if self._databases is not None:
            await self._databases.stop()
        await self.store.stack.stop()
        self.l1.clear()

    def forked(self) -> None:
        """In a child after a fork: nobody follows the stream here, and nobody counts the time of entries."""
        super().forked()
        left_behind(dict(vars(self)))
        self._databases = None
        self._floor_lock = threading.Lock()
        self.l1.clear()

    def _log(self, line: str) -> None:
        """A log is the application's: what fails there is no end of what is told."""
        try:
            self._told(line)
        except Exception as error:  # noqa: BLE001 - as above
            self.failed(error, "log")

    # -- for any thread

    @property
    def follows(self) -> bool:
        """Do writes end entries? They do not in a database that cannot be followed: of that nothing is kept."""
        return self.running and self.coherence.mode != "ttl"

    def land(self, key: Any, flight: Flight, failure: BaseException | None = None) -> None:
        """End a flight, behind everything that was given to the loop before."""
        flight.landing = True
        if not self.soon(self.flights.land, key, flight, failure):
            self.flights.land(key, flight, failure)

    def why_not(self) -> str:
        """Why nothing is served from memory now, as a stable code; empty when it is."""
        if self._loop is None:
            return "stopped"
        if not self.settings.cache.enabled:
            return "disabled"
        coherence = self.coherence
        return "" if coherence.serving else coherence.reason or "not_ready"

    def find(self, key: Key) -> Entry | None:
        """A valid entry (R1 and its own end). Its freshness (R4) is another question: ``fresh``, asked *before*."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        if entry[EPOCH] == TIMELESS:
            if entry[EXPIRES] >= self.clock.now:
                return entry
        elif valid(entry, self.coherence.words, self.clock.now, self.coherence.head):
            return entry
        elif entry[FILL] > self.coherence.head[W]:
            return None
        self.soon(self._drop, key, entry)
        return None

    def fresh(self, floor_ns: int) -> bool:
        """Is the ledger known to be complete up to that moment?"""
        return self.coherence.head[FRESH_AT] >= floor_ns

    def wait_fresh(self, floor_ns: int) -> Steps[bool]:
        """Whether ``fresh`` became true within ``freshness.hit_wait``."""
        return (yield from self.ask(self._wait_fresh(floor_ns), False))

    async def _wait_fresh(self, floor_ns: int) -> bool:
        return await self.coherence.wait_fresh(floor_ns, self.settings.freshness.hit_wait)

    def touch(self, key: Key, entry: Entry) -> None:
        """A hit, for the eviction policy."""
        if self.l1.touch is None:
            entry[TOUCHED][0] = 1
        else:
            self.soon(self._touch, key)

    def floor(self, consistency: Consistency | None, arrival: int, bound_ns: int | None = None) -> int:
        """The moment that the ledger must be known to be complete up to for a hit (R4)."""
        coherence = self.coherence
        if coherence.mode == "ttl":
            return 0
        consistency = consistency or self.settings.freshness.consistency
        if consistency is Consistency.STRICT:
            return max(arrival, coherence.floor_ns)
        longest = coherence.max_staleness_ns
        floor = now_ns() - (longest if bound_ns is None else min(longest, bound_ns))
        return floor if consistency is Consistency.EVENTUAL else max(floor, coherence.floor_ns)

    def raise_floor(self) -> None:
        """Something may have been written: what is known up to now is too old (R4, ``session``)."""
        if self._loop is None:
            return
        with self._floor_lock:
            self.coherence.raise_floor(now_ns())

    # -- on the loop

    def _touch(self, key: Key) -> None:
        if self.l1.touch is not None and key in self.entries:
            self.l1.touch(key)

    def _drop(self, key: Key, entry: Entry) -> None:
        if self.entries.get(key) is entry:
            self.l1.discard(key, Cause.EXPIRED if entry[EXPIRES] < self.clock.now else Cause.DISCARDED)

    def put(
        self, key: Key, entry: Entry, place: Place | None = None, *, began_ns: int, ttl: float = 0.0, rows: int = 0
    ) -> str:
        """Keep an entry that was begun at that moment; what became of it."""
        if entry[EPOCH] != TIMELESS and entry[EPOCH] != self.coherence.epoch:
            return "epoch_changed"
        if self.forgotten.covers(key, entry, began_ns):
            return "invalidated"
        return "stored" if self.store.put(key, entry, place, self.coherence, ttl=ttl, rows=rows) else "too_large"

    async def forget(self, key: Key) -> bool:
        """Drop a key, and whatever of it is being made at this moment."""
        self.forgotten.key(key, now_ns())
        return self.l1.discard(key)

    def forget_tables(self, tables: Sequence[str]) -> int:
        """Drop what was made of these tables, and what is being made of them at this moment; the number dropped."""
        wanted = frozenset(tables)
        self.forgotten.tables(wanted, now_ns())
        made = ((key, entry[TABLES]) for key, entry in self.entries.items())
        found = [key for key, names in made if names and not wanted.isdisjoint(names.split(","))]
        return sum(self.l1.discard(key) for key in found)

    def rise(self, key: Key, entry: Entry | None) -> Entry | None:
        """An entry that came up from a tier below, if nobody has invalidated it by hand since it was made."""
        if entry is None or not self.forgotten.covers(key, entry, entry[AT_NS]):
            return entry
        self.l1.discard(key)
        return None


def _database(url: str) -> str:
    """The database that a URL names. Raises ConfigError for a URL that can never work."""
    parts = read_url(url)
    name = parts.get("dbname") or parts.get("user")
    if not name:
        raise ConfigError("it names no database", where="upstream.url", hint="end it with /NAME")
    return name
