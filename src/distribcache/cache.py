"""``DistribCache``: the cache as a library.

    async with DistribCache(DistribCacheConfig(upstream_url="postgresql://app@db/shop")) as cache:
        rows = await cache.fetch(pool, "SELECT name FROM item WHERE id = $1", 5)

Four ways to use it, over one memory, one set of tiers and one change stream:

* ``fetch`` reads rows through it, from asyncpg or psycopg (``fetch_sync``: psycopg without asyncio);
* ``cached`` decorates functions;
* ``get`` and ``insert`` keep bytes under a ``QueryFingerprint``;
* ``integrations.sqlalchemy`` reads ORM objects through it.

With ``upstream.url`` the commits of that database end what was made of the tables they touch, whoever made them, by the
rules of the coherence page; without one only time ends entries, and ``stats()`` says ``ttl``.

A write made through the library (``execute``, ``writing``, or told by ``wrote()``) is seen by every read that begins
after it. One made around it is seen within ``freshness.max_staleness``; by ``consistency="strict"`` at once.

A failure of the cache is never an error of a read, only a slower answer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, ParamSpec, Self, TypeVar, overload

from distribcache.clock import now_ns
from distribcache.config.units import parse_duration
from distribcache.entry import EPOCH, EXPIRES, TOUCHED, Entry
from distribcache.errors import ExpiredError, InvalidationError, MissError, TooLargeError
from distribcache.library.config import DistribCacheConfig
from distribcache.library.drivers import session_of
from distribcache.library.entries import RAW, Entries, key_for
from distribcache.library.fetching import Fetching
from distribcache.library.fingerprint import QueryFingerprint
from distribcache.library.heat import Cell, Heat, Share
from distribcache.library.keeper import TIMELESS, Keeper
from distribcache.library.memo import Cached, Memo
from distribcache.library.memos import Memos
from distribcache.library.outcome import CacheStats, Outcome, Tally, last
from distribcache.library.plan import Wish
from distribcache.library.record import CacheEntry, Kept
from distribcache.library.rows import Row
from distribcache.library.steps import block, go
from distribcache.library.terms import Terms
from distribcache.library.writing import Writing
from distribcache.query import Consistency, QueryContext, WorkloadType
from distribcache.tiers.base import Cause, Key, TierStats

__all__ = ["CacheEntry", "DistribCache", "DistribCacheConfig", "QueryContext", "QueryFingerprint", "Row"]

P = ParamSpec("P")
R = TypeVar("R")
Duration = float | str

_POLL_S: Final = 0.01
_logger: Final = logging.getLogger("distribcache")


def _say(text: str) -> None:
    _logger.warning("distribcache: %s", " ".join(text.split()))


class DistribCache:
    """See the module. One object serves tasks of any event loop, and threads.

    ``log`` is called with each line that people should read, such as why nothing is cached now; by default these are
    warnings of the logger ``distribcache``.
    """

    def __init__(self, config: DistribCacheConfig | None = None, *, log: Callable[[str], None] = _say) -> None:
        self.config = config if config is not None else DistribCacheConfig()
        self._tally = Tally()
        self._heat = Heat()
        self._keeper = Keeper(self.config.settings, log, self._left)
        self._keeper.on_tick = self._heat.gather
        self._fetching = Fetching(self._keeper, self._tally, self._heat)
        self._bytes = Entries(self._keeper, self._tally, self._heat)
        self._memos = Memos(self._keeper, self._tally, self._heat)
        self._heat.kept = self._entries = self._keeper.entries
        self._clock = self._keeper.clock
        self._note = self._heat.note
        self._hits_of = self._heat.hits_of
        self._marks = self._keeper.l1.touch is None
        """Is a mark on the entry all that the eviction policy wants to know of a hit?"""
        self._max_entry = self.config.settings.l1.max_entry

    # -- life

    async def start(self) -> None:
        """Begin to serve. A database that cannot be followed yet is no error: reads go to it meanwhile."""
        await asyncio.to_thread(self._keeper.start)

    async def stop(self) -> None:
        """Let go of everything, the slot on the server included."""
        self._memos.stop()
        await asyncio.to_thread(self._keeper.stop)

    async def ready(self, timeout: Duration = "10s") -> bool:  # noqa: ASYNC109 - as asyncio's own waits are called
        """Wait until hits are served; False if that takes longer. ``stats()`` says what is missing."""
        until = now_ns() + int(parse_duration(timeout) * 1e9)
        while self._keeper.why_not():
            if now_ns() > until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def ready_sync(self, timeout: Duration = "10s") -> bool:
        """``ready`` without asyncio."""
        until, pause = now_ns() + int(parse_duration(timeout) * 1e9), threading.Event()
        while self._keeper.why_not():
            if now_ns() > until:
                return False
            pause.wait(_POLL_S)
        return True

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._memos.stop()
        self._keeper.stop()

    # -- rows

    async def fetch(
        self, source: Any, sql: str, *args: Any, consistency: Consistency | str | None = None,
        max_staleness: Duration | None = None, ttl: Duration | None = None,
        workload: WorkloadType | str | None = None,
    ) -> list[Row]:  # fmt: skip
        """The rows of one statement, from memory or from PostgreSQL; ``last`` says which, and why.

        ``source`` is an asyncpg or psycopg pool or connection. Placeholders are the driver's own. In a transaction, and
        for whatever is not understood, the statement goes to PostgreSQL as it is.
        """
        wish = Wish.of(consistency, max_staleness, ttl, workload)
        return await go(self._fetching.rows(session_of(source, blocking=False), sql, args, wish))

    async def fetchrow(self, source: Any, sql: str, *args: Any, **wishes: Any) -> Row | None:
        """The first row of ``fetch``, None if there is none."""
        rows = await self.fetch(source, sql, *args, **wishes)
        return rows[0] if rows else None

    async def fetchval(self, source: Any, sql: str, *args: Any, **wishes: Any) -> Any:
        """The first field of the first row of ``fetch``, None if there is none."""
        rows = await self.fetch(source, sql, *args, **wishes)
        return rows[0][0] if rows else None

    def fetch_sync(
        self, source: Any, sql: str, *args: Any, consistency: Consistency | str | None = None,
        max_staleness: Duration | None = None, ttl: Duration | None = None,
        workload: WorkloadType | str | None = None,
    ) -> list[Row]:  # fmt: skip
        """``fetch`` without asyncio: ``source`` is a psycopg Connection or ConnectionPool."""
        wish = Wish.of(consistency, max_staleness, ttl, workload)
        return block(self._fetching.rows(session_of(source, blocking=True), sql, args, wish))

    async def execute(self, source: Any, sql: str, *args: Any) -> list[Row]:
        """A statement that may write, as the driver sends it; reads that begin after it see what it did.

        Inside a transaction that is true of reads that begin after its end only if that is told: see ``writing``.
        """
        return await go(self._fetching.write(session_of(source, blocking=False), sql, args))

    def execute_sync(self, source: Any, sql: str, *args: Any) -> list[Row]:
        """``execute`` without asyncio."""
        return block(self._fetching.write(session_of(source, blocking=True), sql, args))

    def wrote(self) -> None:
        """Something was written around the library: every read that begins after this sees it."""
        self._keeper.raise_floor()

    def writing(self, *, ddl: bool = False) -> Writing:
        """``async with cache.writing():``, or ``with``: whatever is committed inside is seen by every read that begins
        after it. ``ddl``: tables, roles or rights may have been changed.
        """
        return Writing(self._keeper, ddl=ddl)

    # -- bytes under a fingerprint

    async def get(self, fingerprint: QueryFingerprint, context: QueryContext | None = None) -> CacheEntry | None:
        """What is stored for that query in that context, None if there is nothing."""
        # The way of a hit is written out: its budget is a microsecond.
        if context is None:
            key: Key = (RAW, None, None, fingerprint.key)
        else:
            key = (RAW, context.branch, context.as_of, fingerprint.key)
        entry = self._entries.get(key)
        if entry is not None:
            if entry[EPOCH] == TIMELESS:
                if entry[EXPIRES] >= self._clock.now and self._marks:
                    entry[TOUCHED][0] = 1
                    self._tally.hits += 1
                    self._note((entry, key, fingerprint.template))
                    return Kept(entry, key, self._hits_of)
            else:
                keeper = self._keeper
                if keeper.fresh(keeper.floor(None, now_ns())) and keeper.find(key) is entry:
                    return self._bytes.hit(key, entry, fingerprint)
        return await go(self._bytes.get(key, fingerprint))

    async def get_or_raise(self, fingerprint: QueryFingerprint, context: QueryContext | None = None) -> CacheEntry:
        """``get``; raises ExpiredError where there was an entry whose time is over, MissError where there is none."""
        entry = self._entries.get(key_for(fingerprint, context))
        found = await self.get(fingerprint, context)
        if found is not None:
            return found
        kind = MissError if entry is None else ExpiredError
        raise kind(f"no entry for {fingerprint.key.hex()}", where="get", hint="ask the database, and insert the answer")

    async def insert(
        self, fingerprint: QueryFingerprint, entry: CacheEntry, context: QueryContext | None = None
    ) -> bool:
        """Store an answer. Its TTL, if it has none, is that of the class of workload.

        With a database followed, an entry of tables is stored only behind a ``get`` of the same query that missed, in
        the same task or thread, and before the answer was read: that dates it (coherence rule R2). False: it was not
        stored, and ``stats().fills`` says why.
        """
        return await go(self._bytes.insert(fingerprint, entry, context)) == "stored"

    async def insert_or_raise(
        self, fingerprint: QueryFingerprint, entry: CacheEntry, context: QueryContext | None = None
    ) -> None:
        """``insert``; raises TooLargeError, or CacheError for any other reason."""
        became = await go(self._bytes.insert(fingerprint, entry, context))
        if became == "too_large":
            raise TooLargeError(entry.size, self._max_entry)
        if became != "stored":
            raise InvalidationError(
                f"not stored: {became}", where="insert", hint="call get() first, then read, then insert()"
            )

    async def invalidate(self, fingerprint: QueryFingerprint, context: QueryContext | None = None) -> bool:
        """Drop what is stored for that query, and what is being made of it; was there something?"""
        return await go(self._bytes.forget(key_for(fingerprint, context)))

    async def invalidate_table(self, table: str) -> int:
        """Drop everything in memory that was made of this table, and what is being made of it; how much was there.

        A name without a schema means ``public``. Raises InvalidationError for what is no name of a table.
        """
        return await go(self._bytes.forget_table(table))

    def tier_or_raise(self, name: str) -> TierStats:
        """A reading of ``L1``, ``L2`` or ``L3``; raises TierUnavailableError for one that is off: StorageError when its
        disk is the reason, PeerNotFoundError when it has found no server, NetworkError when none of them answers.
        """
        return self.stats().tier(name)

    # -- functions

    @overload
    def cached(self, function: Callable[P, R]) -> Cached[P, R]: ...

    @overload
    def cached(
        self, *, ttl: Duration | None = None, tables: Iterable[str] = (), key: Callable[..., Any] | None = None,
        stale: Duration = 0.0, refresh_ahead: Duration = 0.0, negative_ttl: Duration | None = None,
        negative: type[Exception] | Iterable[type[Exception]] = (),
        tags: Callable[..., Iterable[str]] | Iterable[str] = (),
    ) -> Callable[[Callable[P, R]], Cached[P, R]]: ...  # fmt: skip

    def cached(
        self, function: Any = None, *, ttl: Duration | None = None, tables: Iterable[str] = (),
        key: Callable[..., Any] | None = None, stale: Duration = 0.0, refresh_ahead: Duration = 0.0,
        negative_ttl: Duration | None = None, negative: type[Exception] | Iterable[type[Exception]] = (),
        tags: Callable[..., Iterable[str]] | Iterable[str] = (),
    ) -> Any:  # fmt: skip
        """Decorate a function, asynchronous or not: its results are kept by its arguments.

        ``ttl``: how long (``[ttl] default``). ``tables``: a commit that touches one of them ends it at once. ``stale``:
        so long after the TTL the old value is still given back, while one caller's call makes a new one behind it.
        ``refresh_ahead``: so long before its end. ``negative_ttl``: how long None, and the exceptions ``negative``, are
        kept. ``tags``: names for ``invalidate_tag``, in which ``{argument}`` stands for an argument. ``key``: called
        with the arguments, what tells one call from another. Durations are seconds, or such as "5min".

        The decorated function has ``invalidate(…)``, which drops the value for these arguments, and ``uncached``.
        Raises ConfigError for terms that cannot be kept; a call raises TypeError for arguments that tell nothing apart,
        such as ``self``, unless there is a ``key``.
        """
        terms = Terms.of(
            ttl=self.config.settings.ttl.default if ttl is None else ttl, tables=tables, key=key, stale=stale,
            refresh_ahead=refresh_ahead, negative_ttl=negative_ttl, negative=negative, tags=tags,
        )  # fmt: skip

        def decorate(function: Any) -> Any:
            return Memo(self._memos, function, terms).wrap()

        return decorate if function is None else decorate(function)

    def invalidate_tag(self, tag: str) -> None:
        """Nothing that bears this tag is served any more."""
        self._memos.invalidate(tag)

    # -- what is known

    @property
    def last(self) -> Outcome:
        """What became of the last read of this task or thread."""
        return last.get()

    def stats(self) -> CacheStats:
        """One reading of everything that is counted."""
        return CacheStats.of(self._keeper, self._tally, self._fetching.askers.passed_by())

    def heatmap(self) -> list[Cell]:
        """Accesses by table and by template, in buckets of five minutes, for a week."""
        return self._heat.cells()

    def workload_distribution(self) -> list[Share]:
        """How much of what was asked was of each class."""
        return self._heat.shares()

    # -- behind it

    def _left(self, key: Key, entry: Entry, cause: Cause) -> None:
        if cause is not Cause.REPLACED:
            self._heat.left(key)
