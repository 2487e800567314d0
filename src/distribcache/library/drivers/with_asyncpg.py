"""asyncpg: ``Pool``, ``Connection`` and what a pool hands out.

asyncpg keeps codecs per connection and tells nobody which. So answers are shared among the connections of a pool, whose
codecs come from its ``init``, and with no other pool unless it has none; a connection of its own shares with nobody.

What it sends for an argument is known for the built-in codecs only. Whether those are in use is seen before each fill:
the server is shown one value of each kind that can be pinned and prints them back (coherence trap 6). If it prints
something else, answers depend on whole tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from datetime import date
from typing import Any, Final
from uuid import UUID

import asyncpg
from asyncpg.pgproto.pgproto import UUID as FastUUID  # noqa: N811

from distribcache.catalog.resolve import Ask
from distribcache.coherence.tags import UNBOUND, Bound
from distribcache.library.drivers.base import (
    CALM,
    Question,
    Result,
    Session,
    as_sent,
    named_once,
    only_positional,
)
from distribcache.library.values import register

__all__ = ["maker"]

_PROBE: Final = (
    "pg_catalog.json_build_array($1::pg_catalog.int2, $2::pg_catalog.int4, $3::pg_catalog.int8, $4::pg_catalog.text, "
    "$5::pg_catalog.varchar, $6::pg_catalog.uuid, $7::pg_catalog.bool, $8::pg_catalog.date)"
)
_SHOWN: Final = (-7, 1041, 1 << 40, "a'Ü", "b", UUID(int=1041), True, date(2004, 2, 29))
_ESCAPED: Final = frozenset(b'"\\')
"""Bytes that are not themselves between the quotes of an array's element."""
_PRINTED: Final = [-7, 1041, 1 << 40, "a'Ü", "b", str(UUID(int=1041)), True, "2004-02-29"]


def _range_out(value: Any) -> list[Any]:
    return [value.lower, value.upper, value.lower_inc, value.upper_inc, value.isempty]


def _range_in(value: list[Any]) -> Any:
    return asyncpg.Range(value[0], value[1], lower_inc=value[2], upper_inc=value[3], empty=value[4])


register(40, asyncpg.Range, _range_out, _range_in)


def maker(kind: type) -> Callable[[Any], Session] | None:
    """What makes sessions of objects of this class; None when it is none of asyncpg's."""
    if issubclass(kind, asyncpg.Pool):
        return lambda source: AsyncpgSession(source, None)
    if issubclass(kind, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy):
        return lambda source: AsyncpgSession(None, source)
    return None


def _of_pool(pool: Any) -> tuple[str, bool]:
    plain = getattr(pool, "_connect", None) in (None, asyncpg.connect)
    plain = plain and getattr(pool, "_connection_class", None) is asyncpg.Connection
    plain = plain and all(getattr(pool, name, True) is None for name in ("_init", "_setup", "_reset"))
    return ("asyncpg", True) if plain else (f"asyncpg {named_once(pool)}", False)


class AsyncpgSession:
    """See ``Session``."""

    blocking = False

    def __init__(self, pool: Any, connection: Any, *, representation: str = "") -> None:
        self.pool = pool
        self.uniform = pool is None or (
            getattr(pool, "_setup", True) is None and type(pool).acquire is asyncpg.Pool.acquire
        )
        self._probed = False
        self.sent = False
        self.passes = not representation
        self._representation = representation
        self._connection = connection
        self._honest = False
        self._mingled = False

    @property
    def pid(self) -> int:
        return int(self._connection.get_server_pid())

    @property
    def body(self) -> Any:
        return getattr(self._connection, "_con", self._connection)

    def question(self, sql: str, args: tuple[Any, ...]) -> Question:
        return only_positional(sql, args)

    def why_not(self) -> str:
        connection = self._connection
        if connection is None:
            return ""
        return "transaction" if self._mingled or connection.is_in_transaction() else ""

    async def open(self) -> None:
        if self._connection is None:
            self._connection = await self.pool.acquire()

    async def close(self, *, failed: bool) -> None:
        if self.pool is not None and self._connection is not None:
            connection, self._connection = self._connection, None
            await self.pool.release(connection)

    async def probe(self) -> None:
        if not self._probed:
            await self.ask("NULL", probe=True)

    async def ask(self, sql: str, *, probe: bool) -> str:
        if not probe:
            return str(await self._connection.fetchval(sql))
        self._probed = True
        try:
            row = await self._connection.fetchrow(f"SELECT ({sql}), {_PROBE}::pg_catalog.text", *_SHOWN)
            self._honest = json.loads(row[1]) == _PRINTED
            return str(row[0])
        except (asyncpg.DataError, asyncpg.InterfaceError, TypeError, ValueError, AttributeError):
            self._honest = False
            return str(await self._connection.fetchval(sql))

    async def run(self, question: Question, *, alone: bool, anew: bool = False) -> Result:
        # Another task may have begun a transaction on this connection, and may end it before anybody looks again.
        self._mingled = self._mingled or self._connection.is_in_transaction()
        if self._representation:  # whoever has one of his own needs the types, too
            statement = await self._connection.prepare(question.text)
            found = statement.get_attributes()
            rows = [tuple(record) for record in await statement.fetch(*question.args)]
            return Result([each.name for each in found], rows, None, [each.type.oid for each in found])
        if anew:  # not from asyncpg's own cache of statements
            records = await (await self._connection.prepare(question.text)).fetch(*question.args)
        else:
            records = await self._connection.fetch(question.text, *question.args)
        if not records:
            return Result((), [])
        return Result(tuple(records[0].keys()), [[_plain(each) for each in record] for record in records])

    async def catalogue(self, work: Callable[[Ask], Coroutine[Any, Any, Any]]) -> Any:
        async def ask(sql: str, params: Sequence[object]) -> list[tuple[Any, ...]]:
            text = as_sent(sql)
            return [] if text is None else [tuple(row) for row in await self._connection.fetch(text, *params)]

        async with self._connection.transaction(readonly=True):
            await self._connection.execute(CALM)
            return await work(ask)

    def representation(self, args: tuple[Any, ...]) -> tuple[str, bool]:
        if self._representation:
            return self._representation, False
        if self.pool is not None:
            return _of_pool(self.pool)
        pool = getattr(getattr(self._connection, "_holder", None), "_pool", None)
        if pool is not None:
            return _of_pool(pool)
        return f"asyncpg {named_once(self._connection)}", False

    def fits(self, marks: Any) -> bool:
        return True

    def bound(self, question: Question) -> Bound:
        if not self._honest:
            return UNBOUND
        return Bound(values=[_printed(each) for each in question.args])


def _plain(value: Any) -> Any:
    """asyncpg's own class of uuid is what another driver calls ``UUID``."""
    kind = type(value)
    if kind is FastUUID:
        return UUID(int=value.int)
    return [_plain(each) for each in value] if kind is list else value


def _printed(value: Any) -> bytes | None:
    """An argument as the server would print it, if the column it is compared with is of that kind."""
    kind = type(value)
    if kind is bool:
        return b"true" if value else b"false"
    if kind is int:
        return b"%d" % value
    if kind is str:
        return str(value).encode("utf-8", "surrogatepass")
    if kind is UUID or kind is FastUUID:
        return str(value).encode()
    if kind is list:
        elements = [_printed(each) for each in value]
        known = [each for each in elements if each is not None and not _ESCAPED.intersection(each)]
        return b'{"%s"}' % b'","'.join(known) if len(known) == len(elements) else None
    return str(value.isoformat()).encode() if kind is date else None
