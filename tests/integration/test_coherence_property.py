"""End to end: writers everywhere, simulated strict reads, and not one that is older than an acknowledged commit."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import pytest
from fix_postgres import Database
from followed import Followed, Held, connect, following

from distribcache.clock import now_ns
from distribcache.coherence.coverage import Coverage

TABLES = 4
WRITERS = 3


class Truth:
    """For each table the last value whose commit was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged = [0] * TABLES
        self.hits = 0
        self.misses = 0
        self.stale: list[tuple[int, int, int]] = []


async def write(database: Database, truth: Truth, table: int, numbers: Any, stop: asyncio.Event, mode: str) -> None:
    """One writer per table, so values of a table only grow."""
    connection = await connect(database.conninfo())
    try:
        await connection.execute(f"SET synchronous_commit = {mode}".encode())
        while not stop.is_set():
            value = next(numbers)
            await connection.execute(f"UPDATE t{table} SET v = {value}".encode())
            truth.acknowledged[table] = value
            await asyncio.sleep(0.001 * (value % 3))
    finally:
        await connection.close()


async def read(followed: Followed, truth: Truth, store: dict[int, Held], table: int) -> None:
    """A strict read: what was acknowledged before it arrived must be in its answer."""
    least = truth.acknowledged[table]
    floor = now_ns()
    held = store.get(table)
    if held is not None and await followed.coherence.wait_fresh(floor, 1.0) and followed.valid(held, floor):
        truth.hits += 1
        value = held.rows[0][0]
        if value < least:
            truth.stale.append((table, value, least))
        return
    truth.misses += 1
    filled = await followed.fill(f"SELECT v FROM t{table}", f"t{table}")
    if filled is not None:
        store[table] = filled


async def load(database: Database, reads: int, *, first: bool = False) -> Truth:
    """``first``: until the first stale read."""
    await asyncio.to_thread(
        database.execute,
        *(f"CREATE TABLE t{n} (v int)" for n in range(TABLES)),
        *(f"INSERT INTO t{n} VALUES (0)" for n in range(TABLES)),
    )
    truth, store, stop = Truth(), {}, asyncio.Event()
    async with following(database.server.conninfo(), database.name) as followed:
        numbers = itertools.count(1)
        # The last table is written rarely, so that hits happen at all; the first asynchronously.
        writers = [
            asyncio.create_task(write(database, truth, n, numbers, stop, "off" if n == 0 else "on"))
            for n in range(WRITERS)
        ]
        seed = int(os.environ.get("SEED", "7"))
        for step in range(reads):
            table = (step * seed + step // 5) % TABLES
            await read(followed, truth, store, table)
            if first and truth.stale:
                break
            if step % 200 == 199:
                value = next(numbers)
                await asyncio.to_thread(database.execute, f"UPDATE t{TABLES - 1} SET v = {value}")
                truth.acknowledged[TABLES - 1] = value
        stop.set()
        await asyncio.gather(*writers)
    return truth


async def test_no_strict_read_is_older_than_what_was_acknowledged_before_it(database: Database) -> None:
    """Coherence trap 21."""
    truth = await load(database, 2000)
    assert truth.stale == []
    assert truth.hits > 100
    assert truth.misses > 0


@pytest.mark.sabotage
async def test_with_freshness_by_arrival_stale_reads_appear(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 21. Muted: an answer is dated by its arrival. Mute R3's wait for W: an answer of the probe counts
    at once.
    """
    plain = Coverage.observe

    def at_once(self: Coverage, asked_at: int, received: int, snapshot: Any, insert: int) -> bool:
        self.reached_at = asked_at
        return plain(self, asked_at, received, snapshot, insert)

    monkeypatch.setattr(Coverage, "observe", at_once)
    truth = await load(database, 20_000, first=True)
    assert truth.stale != []
