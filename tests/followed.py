"""A followed database with a simulated cache of it, for tests of coherence without a proxy.

``following(conninfo, name)`` starts a ``DatabaseCoherence``, waits until it serves and stops it. ``Followed.fill`` does
what the proxy does on a miss (F read before the query is sent), ``Followed.valid`` what it does on a hit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from distribcache.clock import now_ns
from distribcache.coherence.database import DatabaseCoherence, Options
from distribcache.coherence.ledger import EPOCH, FRESH_AT, SCHEMA, W

__all__ = ["Followed", "Held", "connect", "eventually", "following"]


@dataclass(frozen=True, slots=True)
class Held:
    """An entry: the rows, F, A, slots, epoch."""

    rows: list[tuple[Any, ...]]
    fill: int
    analysis: int
    slots: tuple[int, ...]
    epoch: int


async def connect(conninfo: str) -> AsyncConnection[tuple[Any, ...]]:
    return await AsyncConnection.connect(conninfo, autocommit=True)


async def eventually(
    condition: Callable[[], object], explain: Callable[[], object] = lambda: "", seconds: float = 60
) -> None:
    """Wait until ``condition`` holds; fails with ``explain``."""
    deadline = now_ns() + int(seconds * 1e9)
    while not condition():
        assert now_ns() < deadline, explain()
        await asyncio.sleep(0.005)


class Followed:
    def __init__(self, coherence: DatabaseCoherence, reads: AsyncConnection[tuple[Any, ...]]) -> None:
        self.coherence = coherence
        self.reads = reads
        self.oids: dict[str, int] = {}

    async def serving(self) -> None:
        await eventually(lambda: self.coherence.serving, self.coherence.report)

    async def reconnect(self, conninfo: str) -> None:
        """Reads come from a new connection, after a restart of the server."""
        await self.reads.close()
        self.reads = await connect(conninfo)

    async def slot(self, table: str) -> int:
        if table not in self.oids:
            cursor = await self.reads.execute("SELECT to_regclass(%s)::oid::int8", [table])
            row = await cursor.fetchone()
            assert row is not None
            self.oids[table] = row[0]
        return self.coherence.slot_of(self.oids[table])

    async def fill(self, sql: str, *tables: str) -> Held | None:
        """Like a miss; None when nothing may be stored."""
        slots = tuple([await self.slot(table) for table in tables])
        point, epoch = self.coherence.fill_point(), self.coherence.epoch
        rows = await (await self.reads.execute(sql.encode())).fetchall()
        if point is None or self.coherence.epoch != epoch:
            return None
        return Held(rows, point, point, slots, epoch)

    async def filled(self, sql: str, *tables: str) -> Held:
        """Like a miss, again until it could be stored as a valid entry."""
        deadline = now_ns() + 60_000_000_000
        while True:
            held = await self.fill(sql, *tables)
            if held is not None and self.coherence.serving and self.valid(held):
                return held
            assert now_ns() < deadline, self.coherence.report()
            await self.coherence.wait_fresh(now_ns(), 0.1)
            await asyncio.sleep(0.002)

    def valid(self, held: Held, floor: int = 0) -> bool:
        """Like a hit: R4, then R1."""
        words = self.coherence.words
        return (
            words[FRESH_AT] >= floor
            and held.epoch == words[EPOCH]
            and words[SCHEMA] <= held.analysis
            and held.fill <= words[W]
            and all(words[slot] <= held.fill for slot in held.slots)
        )

    async def strictly(self, held: Held, timeout: float = 60) -> bool:
        """Would a strict read that arrives now be answered by this entry?"""
        floor = now_ns()
        assert await self.coherence.wait_fresh(floor, timeout), self.coherence.report()
        return self.valid(held, floor)


@asynccontextmanager
async def following(conninfo: str, name: str = "", **options: Any) -> AsyncIterator[Followed]:
    """Follow a database until the end of the block; it serves when the block begins."""
    chosen = {"retry_min_s": 0.02, "retry_max_s": 0.2, **options}
    wait = chosen.pop("wait", True)
    target = make_conninfo(conninfo, dbname=name) if name else conninfo
    database = name or target.split("dbname=")[1].split()[0]
    coherence = DatabaseCoherence(conninfo, database, Options(**chosen))
    reads = await connect(target)
    followed = Followed(coherence, reads)
    await coherence.start()
    try:
        if wait:
            await followed.serving()
        yield followed
    finally:
        await coherence.stop()
        await followed.reads.close()
