"""Questions to the catalogue, on the cache's own connection to a database, one at a time.

Two kinds share the connection: ``look`` (rule R6) and ``ask`` (the analysis of statements). An ``ask`` may name
functions that lock what they describe, so the connection has a short ``lock_timeout``: nobody's DDL holds up the
looks for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.pq.abc import PGresult

from distribcache.catalog.generation import (
    PREPARE_SQL,
    READ_ALL_SQL,
    CatalogueView,
    relations_from,
)
from distribcache.coherence.connections import Connection
from distribcache.coherence.lsn import parse_lsn
from distribcache.coherence.visibility import Snapshot
from distribcache.errors import UpstreamError

__all__ = ["LOCK_MS", "STATEMENT_MS", "Catalogue"]

LOCK_MS = 250
STATEMENT_MS = 15_000
_MANY = 2000
"""Rows from which on they are taken apart in a thread: the event loop must not stall (R7)."""

Rows = list[tuple[bytes | None, ...]]


class Catalogue:
    """Serialised questions on ``connection``. Everything raises psycopg.Error, but ``ask`` raises UpstreamError."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._turn = asyncio.Lock()

    async def prepare(self) -> None:
        """Once, before the first look."""
        await self._rows(PREPARE_SQL)

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

    async def fingerprint(self) -> CatalogueView:
        """Snapshot and fingerprint, from one statement."""
        return (await self._view("EXECUTE distribcache_look"))[0]

    async def read_all(self) -> tuple[CatalogueView, int]:
        """The same with the map of relations from the same snapshot; then the insert position, asked after it."""
        view, results = await self._view(READ_ALL_SQL)
        position = next(rows[0][0] for rows in reversed(results) if rows)
        return view, parse_lsn(position or b"")

    async def quick(self) -> tuple[int, ...]:
        """The fingerprint of roles and settings alone."""
        results = await self._rows("EXECUTE distribcache_quick")
        return _numbers(results[0][0][0])

    async def one(self, sql: str) -> tuple[bytes | None, ...]:
        """The first row of a question, as text."""
        results = await self._rows(sql)
        return results[0][0] if results and results[0] else ()

    async def _view(self, sql: str) -> tuple[CatalogueView, list[Rows]]:
        results = [rows for rows in await self._rows(sql) if rows]
        snapshot, full, quick = results[0][0]
        hashes, roles = _numbers(full), _numbers(quick)
        relations = None
        if sql is READ_ALL_SQL:
            # A database may have no relation at all: then its result is missing here, and the map is empty.
            rows = results[1] if len(results) > 2 else []
            relations = relations_from(rows) if len(rows) < _MANY else await asyncio.to_thread(relations_from, rows)
        return CatalogueView(Snapshot.parse(snapshot or b""), hashes + roles, roles, relations), results

    async def _rows(self, sql: str) -> list[Rows]:
        """All results of a text of statements, every value as the bytes that the server sent."""
        async with self._turn:
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
