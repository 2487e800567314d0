"""The databases that are followed: what the proxy imports.

A logical slot sees one database, so there is one ``DatabaseCoherence`` per database, from its first client until some
time after its last. Never for a template: a session in ``template1`` makes CREATE DATABASE fail.

``DROP``, ``ALTER DATABASE`` and ``CREATE DATABASE … TEMPLATE`` fail while our slot or our sessions exist, so the
proxy calls ``close_for_ddl`` before it passes such a statement on, and ``reopen`` when it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Protocol

from distribcache.coherence.freshness import Freshness, Watched
from distribcache.coherence.ledger import Columns, Ledger
from distribcache.coherence.link import ServerIdentity
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.options import Options
from distribcache.coherence.passing import PassThrough
from distribcache.coherence.ttl import TtlOnly

__all__ = ["Coherence", "DatabaseCoherence", "Databases", "Options", "ServerIdentity", "TtlOnly"]

_TEMPLATES = frozenset({"template0", "template1"})


class Coherence(Protocol):
    """The face of one database; see ``live.DatabaseCoherence`` for what each member means."""

    name: str
    ledger: Ledger
    words: memoryview
    head: memoryview
    floors: memoryview | None
    alarmed: memoryview | None
    counters: Freshness
    max_staleness_ns: int
    identity: ServerIdentity | None
    server_version_num: int
    epoch_listeners: list[Callable[[int], None]]

    @property
    def mode(self) -> str: ...
    @property
    def plugin(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def serving(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def hint(self) -> str: ...
    @property
    def floor_ns(self) -> int: ...
    @property
    def looked_at(self) -> int: ...
    def raise_floor(self, now: int) -> None: ...
    def fill_point(self) -> int | None: ...
    def visible(self) -> int: ...
    def schema_lsn(self) -> int: ...
    def confirmed(self) -> int: ...
    def shared_epoch(self) -> bytes: ...
    def own_epoch(self) -> bytes: ...
    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None: ...
    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None: ...
    def slot_of(self, oid: int) -> int: ...
    def watch(self, oid: int, columns: Columns) -> int: ...
    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int: ...
    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]: ...
    def catalogue_alarm(self, reason: str) -> None: ...
    def schedule_poll(self) -> None: ...
    def note_traffic(self) -> None: ...
    def ask(self, sql: str, params: Sequence[object] = ()) -> Awaitable[list[tuple[Any, ...]]]: ...
    def report(self) -> dict[str, object]: ...
    def watched(self) -> list[Watched]: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Databases:
    """Hands out the coherence of each database and counts its clients. All methods run on one event loop."""

    def __init__(self, conninfo: str, options: Options, log: Callable[[str], None] = lambda _: None) -> None:
        self._conninfo = conninfo
        self._options = options
        self._log = log
        self._open: dict[str, Coherence] = {}
        self._clients: dict[str, int] = {}
        self._linger: dict[str, asyncio.TimerHandle] = {}
        self._ddl: dict[str, int] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Coherence]:
        return iter(list(self._open.values()))

    def acquire(self, name: str) -> Coherence:
        """A client has come; the database begins to be followed if it is not yet. Never waits, never raises."""
        self._clients[name] = self._clients.get(name, 0) + 1
        timer = self._linger.pop(name, None)
        if timer is not None:
            timer.cancel()
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = self._make(name)
            self._start(name)
        return found

    def release(self, name: str) -> None:
        """A client has gone; after the last one the database lingers a while."""
        left = self._clients.get(name, 0) - 1
        if left > 0:
            self._clients[name] = left
            return
        self._clients.pop(name, None)
        if isinstance(self._open.get(name), PassThrough):
            self._leave(name)
        elif name in self._open and name not in self._linger:
            loop = asyncio.get_running_loop()
            self._linger[name] = loop.call_later(self._options.linger_s, self._abandon, name)

    async def close_for_ddl(self, names: Iterable[str]) -> None:
        """Leave these databases now; when it returns, nothing of ours is connected to any of them.

        They stay left until ``reopen`` was called as often.
        """
        for name in set(names):
            self._ddl[name] = self._ddl.get(name, 0) + 1
            if name in self._open and name not in self._stopping:
                self._stop(name, self._open[name])
        for name in set(names):
            while name in self._stopping:
                await asyncio.wait({self._stopping[name]})

    def reopen(self, names: Iterable[str]) -> None:
        """The statement has ended, well or not: follow again what still has clients; forget what has none."""
        for name in set(names):
            left = self._ddl.get(name, 0) - 1
            if left > 0:
                self._ddl[name] = left
            elif left == 0:
                del self._ddl[name]
                if self._clients.get(name):
                    self._start(name)
                else:
                    self._leave(name)

    def catalogue_alarm(self, reason: str) -> None:
        """A change of roles, memberships or settings was seen: it concerns every database of the server."""
        for coherence in self:
            coherence.catalogue_alarm(reason)

    async def stop(self) -> None:
        """Leave all databases."""
        for timer in self._linger.values():
            timer.cancel()
        self._linger.clear()
        self._clients.clear()
        for name in list(self._open):
            self._leave(name)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _make(self, name: str) -> Coherence:
        found = self._local(name)
        if found is not None:
            return found
        followed = sum(1 for coherence in self._open.values() if coherence.mode == "wal")
        if followed >= self._options.max_databases:
            return PassThrough(name, "too_many_databases")
        coherence = self._followed(name)
        # What changed there may be shared by all databases: look at once instead of at the next poll.
        coherence.alarm_listeners.append(self._look_elsewhere)
        return coherence

    def _local(self, name: str) -> Coherence | None:
        """What needs no change stream."""
        printable = name.encode("utf-8", "backslashreplace").decode()
        if printable != name:
            return PassThrough(printable, "database_name")
        if name in _TEMPLATES:
            return PassThrough(name, "template_database")
        if self._options.invalidation == "ttl":
            return TtlOnly(self._conninfo, name, self._options, self._log)
        return None

    def _followed(self, name: str) -> DatabaseCoherence:
        return DatabaseCoherence(self._conninfo, name, self._options, self._log)

    def _start(self, name: str) -> None:
        coherence = self._open.get(name)
        if coherence is not None and name not in self._ddl:
            self._spawn(self._begin(name, coherence))

    async def _begin(self, name: str, coherence: Coherence) -> None:
        """Start when nothing of ours is still leaving that database: a late stop would end the new link unseen."""
        while name in self._stopping:
            await asyncio.wait({self._stopping[name]})
        if self._open.get(name) is coherence and name not in self._ddl:
            await self._enter(coherence)

    async def _enter(self, coherence: Coherence) -> None:
        await coherence.start()

    async def _quit(self, coherence: Coherence) -> None:
        await coherence.stop()

    def _leave(self, name: str) -> None:
        self._linger.pop(name, None)
        if self._clients.get(name):
            return
        coherence = self._open.pop(name, None)
        if coherence is not None:
            self._stop(name, coherence)

    def _abandon(self, name: str) -> None:
        """The last client left a while ago."""
        coherence = self._open.get(name)
        if isinstance(coherence, DatabaseCoherence) and not self._clients.get(name):
            coherence.for_good = True
        self._leave(name)

    def _stop(self, name: str, coherence: Coherence) -> None:
        task = self._stopping[name] = self._spawn(self._quit(coherence))

        def done(_: asyncio.Task[None]) -> None:
            if self._stopping.get(name) is task:
                del self._stopping[name]

        task.add_done_callback(done)

    def _look_elsewhere(self, origin: str) -> None:
        for coherence in self:
            if coherence.name != origin:
                coherence.schedule_poll()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
