"""Questions to the catalogue, on the cache's own connection to a database, one at a time.

Two kinds share the connection: ``look`` (rule R6) and ``ask`` (the analysis of statements). An ``ask`` may name
functions that lock what they describe, so the connection has a short ``lock_timeout``: nobody's DDL holds up the
looks for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import psycopg
from psycopg.pq.abc import PGresult

from distribcache.catalog.generation import MAP_PARTS, PREPARE_SQL, CatalogueView, relations_from
from distribcache.coherence.connections import Connection
from distribcache.coherence.lsn import parse_lsn
from distribcache.coherence.visibility import Snapshot
from distribcache.errors import UpstreamError

__all__ = ["LOCK_MS", "STATEMENT_MS", "Catalogue", "Look"]

LOCK_MS = 250
STATEMENT_MS = 15_000
_MANY = 2000
"""Rows from which on they are taken apart in a thread: the event loop must not stall (R7)."""

Rows = list[tuple[bytes | None, ...]]

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; EXECUTE distribcache_look"
# A transaction gives its lock on its own id back only after it has sent its invalidations to all other processes.
_HELD = (
    "SELECT coalesce(string_agg(transactionid::text, ' '), '') FROM pg_lock_status() "
    "WHERE locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock'"
)
_REST = "COMMIT; SELECT pg_current_wal_insert_lsn()"
_MAP = "EXECUTE distribcache_map"


class Look(NamedTuple):
    """``settled``: whatever the look saw has also reached the server's own caches; ``insert``: the insert position,
    asked after it.
    """

    view: CatalogueView
    settled: bool
    insert: int


class Catalogue:
    """Serialised questions on ``connection``. Everything raises psycopg.Error, but ``ask`` raises UpstreamError."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._turn = asyncio.Lock()
        self._map_parts: tuple[int, ...] = ()
        self._prepared = False

    async def prepare(self) -> None:
        """Before the first look."""
        async with self._turn:
            if not self._prepared:
                await self._rows(PREPARE_SQL)
            self._prepared = True

    def forget(self) -> None:
        """Nobody has kept the map of the last look: the next one shows it again."""
        self._map_parts = ()

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one question with psycopg's ``%s`` parameters. Raises UpstreamError."""
        try:
            async with self._turn:
                cursor = await self.connection.execute(sql.encode(), params or None)
                return await cursor.fetchall()
        except psycopg.Error as error:
            raise UpstreamError(
                "a question about the catalogue failed: " + " ".join(str(error).split())[:200],
                where="catalogue", hint="the statement goes to PostgreSQL; see its log if this persists",
            ) from error

    async def idle(self) -> None:
        """Wait until nobody's question is under way."""
        async with self._turn:
            pass

    async def look(self, differs: Callable[[CatalogueView], bool]) -> Look | CatalogueView:
        """The fingerprint; and if ``differs`` says so when it is shown that, all of a ``Look`` from the same snapshot.

        Its view has a map of the relations only if that is another one than the last look's.
        """
        async with self._turn:
            snapshot, full, quick = (await self._rows(_BEGIN))[-1][0]
            hashes, roles = _numbers(full), _numbers(quick)
            view = CatalogueView(Snapshot.parse(snapshot or b""), hashes + roles, roles, None)
            if not differs(view):
                await self._rows("COMMIT")
                return view
            parts = tuple(hashes[place] for place in MAP_PARTS)
            again = parts != self._map_parts
            results = await self._rows("; ".join([_MAP, _HELD, _REST] if again else [_HELD, _REST]))
            if again:
                rows = results[0]
                found = relations_from(rows) if len(rows) < _MANY else await asyncio.to_thread(relations_from, rows)
                view = replace(view, relations=found)
                self._map_parts = parts
        held = [int(xid) for xid in (results[-3][0][0] or b"").split()]
        return Look(view, not any(map(view.snapshot.sees, held)), parse_lsn(results[-1][0][0] or b""))

    async def quick(self) -> tuple[int, ...]:
        """The fingerprint of roles and settings alone."""
        async with self._turn:
            results = await self._rows("EXECUTE distribcache_quick")
        return _numbers(results[0][0][0])

    async def one(self, sql: str) -> tuple[bytes | None, ...]:
        """The first row of a question, as text."""
        async with self._turn:
            results = await self._rows(sql)
        return results[0][0] if results and results[0] else ()

    async def _rows(self, sql: str) -> list[Rows]:
        """All results of a text of statements, every value as the bytes that the server sent. To be called in turn."""
        cursor = await self.connection.execute(sql.encode())
        results: list[Rows] = []
        more: bool | None = True
        while more:
            result = cursor.pgresult
            if result is not None:
                small = result.ntuples < _MANY
                results.append(_values(result) if small else await asyncio.to_thread(_values, result))
            more = cursor.nextset()
        return results


def _values(result: PGresult) -> list[tuple[bytes | None, ...]]:
    columns = range(result.nfields)
    return [tuple(result.get_value(row, column) for column in columns) for row in range(result.ntuples)]


def _numbers(array: bytes | None) -> tuple[int, ...]:
    """``{1,-2}`` as numbers. Raises ValueError."""
    return tuple(map(int, (array or b"").strip(b"{}").split(b",")))
