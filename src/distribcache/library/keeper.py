"""What a cache object keeps: memory and the tiers below it, and the database whose change stream it follows.

All of that lives on an event loop of its own, in a thread of its own. So one cache serves tasks of any loop and threads
that block, and an application that computes for a second does not stop the change stream for a second. Whoever looks an
entry up does not cross over: an entry is a tuple, a dict look-up is atomic, and the ledger is read word by word in the
order that its writer promises (coherence trap 18). Everything that changes something is done on the loop.

Without ``upstream.url`` nothing is followed: only time ends an entry, and the mode is ``ttl``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Final, TypeVar

import uvloop
from psycopg.conninfo import conninfo_to_dict

from distribcache.catalog.statement import Analyst
from distribcache.clock import CoarseClock, now_ns, wall_time
from distribcache.coherence.database import Coherence, Databases, TtlOnly
from distribcache.coherence.ledger import FRESH_AT, W
from distribcache.coherence.options import Options
from distribcache.coherence.validity import valid
from distribcache.config import Settings
from distribcache.entry import AT_NS, EPOCH, EXPIRES, FILL, TABLES, TOUCHED, Entry
from distribcache.errors import ConfigError, DistribCacheError
from distribcache.library.flights import Flight, Flights
from distribcache.library.steps import Steps
from distribcache.query import Consistency
from distribcache.store import Place, Store
from distribcache.tiers.base import Cause, Key
from distribcache.tiers.hot import HotCache
from distribcache.tiers.stack import stack_of
from distribcache.workload.classifier import classify

__all__ = ["TIMELESS", "Keeper"]

T = TypeVar("T")
Log = Callable[[str], None]

TIMELESS: Final = 0
"""As the epoch of an entry: it depends on nothing but time. Epochs of ledgers begin at 1."""
_TICK_S: Final = 0.05
_SWEEP: Final = 2000
_PATIENCE_S: Final = 10.0


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


class Keeper:
    """See the module. ``entries`` may be read from any thread, everything else is for the loop or says otherwise."""

    def __init__(self, settings: Settings, log: Log, on_evict: Callable[[Key, Entry, Cause], None]) -> None:
        self.settings = settings
        self.clock = CoarseClock()
        self.clock.tick()
        self.l1 = HotCache(settings.l1.size, settings.l1.max_entry, settings.l1.policy, on_evict)
        self.entries = self.l1.entries
        self.flights = Flights()
        self.failures: Counter[str] = Counter()
        self.forgotten = Marks()
        self.gone = Marks()
        self.coherence: Coherence
        self.analyst: Analyst
        self.store: Store
        self.reads = 0
        """Look-ups so far, whoever made them: a hint that somebody uses the database."""
        self.on_tick: Callable[[], None] = lambda: None
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._databases: Databases | None = None
        self._ended: asyncio.Event
        self._floor_lock = threading.Lock()
        self._seen = 0

    # -- life

    @property
    def running(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        """Begin; returns when everything is there, but not yet that hits are served. Raises ConfigError."""
        if self._thread is not None:
            return
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="distribcache", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise

    def stop(self) -> None:
        """Let go of everything, the slot on the server included."""
        thread, loop = self._thread, self._loop
        if thread is not None and loop is not None:
            loop.call_soon_threadsafe(self._ended.set)
            thread.join()
            self._thread = None

    def _run(self, ready: Future[None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._live(ready))

    async def _live(self, ready: Future[None]) -> None:
        self._ended = asyncio.Event()
        try:
            await self._open()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            ready.set_exception(error)
            return
        self._loop = asyncio.get_running_loop()
        ready.set_result(None)
        ticking = asyncio.create_task(self._ticks())
        try:
            await self._ended.wait()
        finally:
            self._loop = None
            ticking.cancel()
            await asyncio.wait({ticking})
            if self._databases is not None:
                await self._databases.stop()
            await self.store.stack.stop()
            self.l1.clear()

    async def _open(self) -> None:
        settings = self.settings
        self.store = Store(
            self.l1, stack_of(settings.l2, settings.l3, wall_time, self._log), self.clock,
            lease_cost_ns=int(settings.l3.lease_cost * 1e9), patience_s=settings.cache.single_flight_wait,
        )  # fmt: skip
        options = Options.from_settings(
            settings.freshness,
            connect_timeout_s=settings.upstream.connect_timeout,
            tightest_s=min(settings.staleness.bounds.values(), default=None),
            keep_at=settings.l2.path,
        )
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

    async def _ticks(self) -> None:
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
                self.failures[type(error).__name__] += 1
            await asyncio.sleep(_TICK_S)

    # -- for any thread

    @property
    def follows(self) -> bool:
        """Is there a database whose writes end entries?"""
        return self.running and self.coherence.mode == "wal"

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do it on the loop."""
        if self._loop is None:
            work.close()
            raise DistribCacheError(
                "the cache is not running", where="DistribCache", hint="await cache.start(), or: async with cache"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def ask(self, work: Coroutine[Any, Any, T], otherwise: T) -> Steps[T]:
        """What came of it on the loop; ``otherwise`` when that failed or the cache has been stopped meanwhile."""
        try:
            future = self.call(work)
        except (DistribCacheError, RuntimeError):
            work.close()
            return otherwise
        try:
            result: T = yield future
            return result
        except (asyncio.CancelledError, CancelledError):
            if not future.cancelled():  # it is the caller who was
                raise
        except Exception as error:  # noqa: BLE001 - a failure of ours is a counter, never an error of the caller
            self.failures[type(error).__name__] += 1
        return otherwise

    def land(self, key: Any, flight: Flight, failure: BaseException | None = None) -> None:
        """End a flight, behind everything that was given to the loop before."""
        flight.landing = True
        if not self.soon(self.flights.land, key, flight, failure):
            self.flights.land(key, flight, failure)

    def soon(self, work: Callable[..., object], *args: Any) -> bool:
        """Do it on the loop some time; nobody waits for it. False: there is no loop any more."""
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._guarded, work, *args)
        except RuntimeError:
            return False
        return loop is not None

    def _guarded(self, work: Callable[..., object], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001 - a failure of ours is a counter, never an error of the caller
            self.failures[type(error).__name__] += 1

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
        if self.forgotten.reaches(key, began_ns) or self._is_gone(entry, began_ns):
            return "invalidated"
        return "stored" if self.store.put(key, entry, place, self.coherence, ttl=ttl, rows=rows) else "too_large"

    def _is_gone(self, entry: Entry, began_ns: int) -> bool:
        tables = entry[TABLES]
        return bool(tables) and any(self.gone.reaches(table, began_ns) for table in tables.split(","))

    async def forget(self, key: Key) -> bool:
        """Drop a key, and whatever of it is being made at this moment."""
        self.forgotten.add(key, now_ns())
        return self.l1.discard(key)

    def forget_tables(self, tables: Sequence[str]) -> int:
        """Drop what was made of these tables, and what is being made of them at this moment; the number dropped."""
        now, wanted = now_ns(), frozenset(tables)
        for table in wanted:
            self.gone.add(table, now)
        made = ((key, entry[TABLES]) for key, entry in self.entries.items())
        found = [key for key, names in made if names and not wanted.isdisjoint(names.split(","))]
        return sum(self.l1.discard(key) for key in found)

    def rise(self, key: Key, entry: Entry | None) -> Entry | None:
        """An entry that came up from a tier below, if nobody has invalidated it by hand since it was made."""
        if entry is None or not (self.forgotten.reaches(key, entry[AT_NS]) or self._is_gone(entry, entry[AT_NS])):
            return entry
        self.l1.discard(key)
        return None


def _database(url: str) -> str:
    """The database that a URL names, as libpq reads it."""
    try:
        parts = conninfo_to_dict(url)
    except Exception as error:
        raise ConfigError(
            "not a PostgreSQL URL", where="upstream.url", hint='such as "postgresql://user@db.example.com:5432/shop"'
        ) from error
    name = parts.get("dbname") or parts.get("user")
    if not name:
        raise ConfigError("it names no database", where="upstream.url", hint="end it with /NAME")
    return str(name)
