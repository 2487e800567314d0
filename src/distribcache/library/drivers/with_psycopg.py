"""psycopg 3, asynchronous and blocking: connections, and the pools of psycopg_pool.

The text is written in psycopg's manner (``%s``, ``%(name)s``, ``%%``) or with ``$1`` and no per cent sign at all. It is
sent by a raw cursor, so that what is analysed is what is sent.

What psycopg sends for an argument is asked of its own adaptation, and how it reads a type can be asked of any
connection: so connections share answers as long as they adapt alike.

A connection may be shared by tasks or threads, as psycopg allows: fetches of ours take turns on it. Between two of our
statements somebody else may begin a transaction, so what a connection was like is looked at under its own lock, where
the statement is sent; what has run inside another's transaction is never kept.

On an idle connection that is not in autocommit mode no transaction is begun for a read: a read from memory cannot leave
one open behind it, so one from the server should not either. The mode itself stays as it is, for others to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import AsyncRawCursor, RawCursor
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import Format, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from distribcache.catalog.resolve import Ask
from distribcache.coherence.tags import Bound
from distribcache.errors import ClientError
from distribcache.library.drivers.base import CALM, Question, Result, Session, as_sent, named_once

__all__ = ["maker"]

_PLAIN_POOL: Final = "psycopg pool"
_BEGIN: Final = f"BEGIN READ ONLY; {CALM}"
_END: Final = "ROLLBACK"
_PLACEHOLDER: Final = re.compile(r"%(?:(?P<percent>%)|\((?P<name>[^)]+)\)[sbt]|(?P<next>[sbt])|.?)", re.DOTALL)


def maker(kind: type) -> Callable[[Any], Session] | None:
    """What makes sessions of objects of this class; None when it is none of psycopg's."""
    if issubclass(kind, psycopg.AsyncConnection):
        return lambda source: AsyncSession(None, source)
    if issubclass(kind, psycopg.Connection):
        return lambda source: BlockingSession(None, source)
    with contextlib.suppress(ImportError):
        import psycopg_pool

        if issubclass(kind, psycopg_pool.AsyncConnectionPool):
            return lambda source: AsyncSession(source, None)
        if issubclass(kind, psycopg_pool.ConnectionPool):
            return lambda source: BlockingSession(source, None)
    return None


def translate(sql: str, args: tuple[Any, ...]) -> Question:
    """psycopg's placeholders as the server's. Raises ClientError where they and the values do not match."""
    named = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else None
    if not args or ("%" not in sql and named is None):
        return Question(sql, args)
    order: dict[str, int] = {}
    used = 0

    def numbered(match: re.Match[str]) -> str:
        nonlocal used
        if match["percent"]:
            return "%"
        if match["name"] is not None and named is not None:
            return f"${order.setdefault(match['name'], len(order) + 1)}"
        if match["next"] and named is None:
            used += 1
            return f"${used}"
        raise ClientError(
            f"the placeholder {match[0]!r} does not go with these values", where="fetch",
            hint="write %s for values, %(name)s for one mapping, and %% for a per cent sign", sqlstate="42P02",
        )

    text = _PLACEHOLDER.sub(numbered, sql)
    if named is None:
        if used != len(args):
            raise ClientError(
                f"{used} placeholders and {len(args)} values", where="fetch", hint="give one value for each %s",
                sqlstate="42P02",
            )
        return Question(text, args)
    missing = [name for name in order if name not in named]
    if missing:
        raise ClientError(
            f"no value for {', '.join(missing)}", where="fetch", hint="name every %(name)s in the mapping",
            sqlstate="42P02",
        )
    return Question(text, tuple(named[name] for name in order))


class _Session:
    """What is the same for both manners."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self.pool = pool
        self.sent = False
        self.uniform = pool is None or _is_uniform(pool)
        self.passes = True
        self._mine = False
        self._mingled = False
        self._connection = connection

    @property
    def pid(self) -> int:
        return int(self._connection.info.backend_pid)

    @property
    def body(self) -> Any:
        return self._connection

    def question(self, sql: str, args: tuple[Any, ...]) -> Question:
        return translate(sql, args)

    def why_not(self) -> str:
        connection = self._connection
        if connection is None:
            return ""
        if connection.pgconn.pipeline_status != PipelineStatus.OFF:
            return "pipeline"
        if self._mingled or connection.info.transaction_status != TransactionStatus.IDLE:
            return "transaction"
        return "" if connection.info.encoding == "utf-8" else "client_encoding"

    def representation(self, args: tuple[Any, ...]) -> tuple[str, bool]:
        if self.pool is not None:
            kwargs = self.pool.kwargs or {}
            plain = isinstance(kwargs, Mapping) and "context" not in kwargs
            plain = plain and getattr(self.pool, "_configure", True) is None
            plain = plain and self.pool.connection_class in (psycopg.Connection, psycopg.AsyncConnection)
            return (_PLAIN_POOL, True) if plain else (f"psycopg {named_once(self.pool)}", False)
        adapters = self._connection.adapters
        kinds = {type(each) for each in args if each is not None}
        dumpers = sorted(f"{kind.__qualname__}={_name(adapters.get_dumper(kind, PyFormat.AUTO))}" for kind in kinds)
        return f"psycopg {','.join(dumpers)}", True

    def fits(self, marks: Any) -> bool:
        """Does this connection, or any of this pool, read those types as the one did that fetched them?"""
        if self.pool is not None and self.representation(())[0] != _PLAIN_POOL:
            return True  # only connections of this very pool share that name
        return all(self._loader(oid) == name for oid, name in marks or ())

    def bound(self, question: Question) -> Bound:
        transformer = Transformer(self._connection)
        oids: list[int] = []
        formats: list[int] = []
        values: list[bytes | None] = []
        for each in question.args:
            if each is None:
                oids.append(0)
                formats.append(0)
                values.append(None)
                continue
            dumper = transformer.get_dumper(each, PyFormat.AUTO)
            dumped = dumper.dump(each)
            oids.append(dumper.oid)
            formats.append(int(dumper.format))
            values.append(None if dumped is None else bytes(dumped))
        return Bound(tuple(oids), tuple(formats), values)

    def _loader(self, oid: int) -> str:
        adapters = psycopg.adapters if self._connection is None else self._connection.adapters
        return _name(adapters.get_loader(oid, Format.TEXT) or adapters.get_loader(0, Format.TEXT))

    def _result(self, cursor: Any, rows: list[Any]) -> Result:
        oids = [column.type_code for column in cursor.description]
        marks = [[oid, self._loader(oid)] for oid in sorted(set(oids))]
        return Result([column.name for column in cursor.description], rows, marks, oids)



class _Alone:
    """A cursor whose statement is a transaction of its own where none is open. ``alone``: none was."""

    alone = False
    _conn: Any

    def _start_query(self, query: Any = None) -> Generator[Any, Any, None]:
        connection = self._conn  # its lock is held, and nothing is waited for before its mode is what it was
        idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        self.alone = idle and connection.pgconn.pipeline_status == PipelineStatus.OFF
        mode, connection._autocommit = connection._autocommit, connection._autocommit or self.alone
        try:
            yield from super()._start_query(query)  # type: ignore[misc]
        finally:
            connection._autocommit = mode


class _BusyError(Exception):
    """Somebody else's transaction has begun meanwhile."""


class _AsyncAlone(_Alone, AsyncRawCursor[Any]):
    pass


class _BlockingAlone(_Alone, RawCursor[Any]):
    pass


def _is_uniform(pool: Any) -> bool:
    module = type(pool).getconn.__module__.partition(".")[0]
    check = getattr(pool, "_check", True)
    return module == "psycopg_pool" and (check is None or getattr(check, "__module__", "").startswith("psycopg_pool"))


_locks: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _turns(connection: Any, kind: Callable[[], Any]) -> Any:
    return _locks.get(connection) or _locks.setdefault(connection, kind())


def _name(adapter: Any) -> str:
    return "" if adapter is None else f"{adapter.__module__}.{adapter.__qualname__}"


class AsyncSession(_Session):
    """See ``Session``."""

    blocking = False

    async def open(self) -> None:
        if self._connection is None:
            self._connection = await self.pool.getconn()
        elif self.pool is None and not self._mine:
            await _turns(self._connection, asyncio.Lock).acquire()
            self._mine = True

    async def close(self, *, failed: bool) -> None:
        connection = self._connection
        if self._mine:
            self._mine = False
            _turns(connection, asyncio.Lock).release()
        if self.pool is None or connection is None:
            return
        self._connection = None
        try:
            if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await (connection.rollback() if failed else connection.commit())
        finally:
            await self.pool.putconn(connection)

    async def probe(self) -> None:
        """psycopg tells how it sends arguments: see ``bound``."""

    async def ask(self, sql: str, *, probe: bool) -> str:
        result = await self.run(Question(sql, ()), alone=True)
        return str(result.rows[0][0])

    async def run(self, question: Question, *, alone: bool, anew: bool = False) -> Result:
        kind = _AsyncAlone if alone else AsyncRawCursor
        async with kind(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(question.text.encode(), question.args or None, prepare=False if anew else None)
            self._mingled = self._mingled or (isinstance(cursor, _Alone) and not cursor.alone)
            return self._result(cursor, await cursor.fetchall()) if cursor.description else Result((), [])

    async def catalogue(self, work: Callable[[Ask], Coroutine[Any, Any, Any]]) -> Any:
        async def ask(sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
            text = as_sent(sql)
            if text is None:
                return []
            cursor = await send(AsyncRawCursor(connection, row_factory=tuple_row), text, params)
            rows: list[tuple[Any, ...]] = await cursor.fetchall()
            return rows

        async def send(cursor: Any, text: str, params: Sequence[object] = ()) -> Any:
            await connection.wait(cursor._execute_gen(text.encode(), tuple(params) or None))
            return cursor

        connection = self._connection
        async with connection.lock:  # nobody else's statement may be part of it
            if self.why_not():
                raise _BusyError
            await send(_AsyncAlone(connection), _BEGIN)
            try:
                return await work(ask)
            finally:
                await send(AsyncRawCursor(connection), _END)


class BlockingSession(_Session):
    """See ``Session``."""

    blocking = True

    def open(self) -> None:
        if self._connection is None:
            self._connection = self.pool.getconn()
        elif self.pool is None and not self._mine:
            _turns(self._connection, threading.Lock).acquire()
            self._mine = True

    def close(self, *, failed: bool) -> None:
        connection = self._connection
        if self._mine:
            self._mine = False
            _turns(connection, threading.Lock).release()
        if self.pool is None or connection is None:
            return
        self._connection = None
        try:
            if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                if failed:
                    connection.rollback()
                else:
                    connection.commit()
        finally:
            self.pool.putconn(connection)

    def probe(self) -> None:
        """As above."""

    def ask(self, sql: str, *, probe: bool) -> str:
        return str(self.run(Question(sql, ()), alone=True).rows[0][0])

    def run(self, question: Question, *, alone: bool, anew: bool = False) -> Result:
        kind = _BlockingAlone if alone else RawCursor
        with kind(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(question.text.encode(), question.args or None, prepare=False if anew else None)
            self._mingled = self._mingled or (isinstance(cursor, _Alone) and not cursor.alone)
            return self._result(cursor, cursor.fetchall()) if cursor.description else Result((), [])

    def catalogue(self, work: Callable[[Ask], Coroutine[Any, Any, Any]]) -> Any:
        async def ask(sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
            text = as_sent(sql)
            if text is None:
                return []
            rows: list[tuple[Any, ...]] = send(RawCursor(connection, row_factory=tuple_row), text, params).fetchall()
            return rows

        def send(cursor: Any, text: str, params: Sequence[object] = ()) -> Any:
            connection.wait(cursor._execute_gen(text.encode(), tuple(params) or None))
            return cursor

        connection = self._connection
        with connection.lock:
            if self.why_not():
                raise _BusyError
            send(_BlockingAlone(connection), _BEGIN)
            try:
                return _driven(work(ask))
            finally:
                send(RawCursor(connection), _END)


def _driven(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits, because whatever it asks blocks."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")
