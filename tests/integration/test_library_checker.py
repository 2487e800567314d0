"""Random readers and writers through one cache: nobody is given what is older than a write acknowledged before.

Each row holds a counter that only grows. A writer notes what was acknowledged, a reader notes that before it asks and
compares. Writes through the cache count for ``session`` reads, all writes for ``strict`` ones.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import asyncpg
import psycopg_pool
import pytest
from fix_library import Shop
from muted import kept_and_muted

from distribcache.library import keeper as keepers
from distribcache.library.keeper import Keeper

ROWS = 6
SECONDS = 4.0


@kept_and_muted
async def test_no_answer_is_older_than_promised(
    shop: Shop, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.outside(
        "CREATE TABLE IF NOT EXISTS counter (id int PRIMARY KEY, n int NOT NULL)", "TRUNCATE counter",
        f"INSERT INTO counter SELECT i, 0 FROM generate_series(1, {ROWS}) i",
    )  # fmt: skip
    random.seed(1)
    if muted:
        monkeypatch.setattr(keepers, "valid", lambda *_: True)
        monkeypatch.setattr(Keeper, "fresh", lambda self, floor: True)
    through, anyhow, stale = Counter[int](), Counter[int](), []
    reads = Counter[str]()
    async with shop.cache(freshness_hit_wait="50ms", freshness_max_staleness="1s") as cache:
        pool = await asyncpg.create_pool(shop.url, min_size=2, max_size=4)
        other = psycopg_pool.AsyncConnectionPool(shop.conninfo(), min_size=1, max_size=2, open=False)
        await other.open()
        outside = await asyncpg.create_pool(shop.url, min_size=2)

        @cache.cached(tables=["counter"])
        async def everything() -> list[int]:
            return [row["n"] for row in await pool.fetch("SELECT n FROM counter ORDER BY id")]

        def going() -> bool:
            """For some seconds; a busy machine takes longer until there was enough to see."""
            hits = sum(count for name, count in reads.items() if name.endswith("hit"))
            enough = hits > 100 and (stale or not muted)
            return loop.time() < least or (not enough and loop.time() < least + 60)

        async def write() -> None:
            while going():
                number = random.randint(1, ROWS)
                source: Any = random.choice([pool, other, None])
                if source is None:
                    n = await outside.fetchval("UPDATE counter SET n = n + 1 WHERE id = $1 RETURNING n", number)
                else:
                    text = "UPDATE counter SET n = n + 1 WHERE id = $1 RETURNING n"
                    n = (await cache.execute(source, text, number))[0].n
                    through[number] = max(through[number], n)
                anyhow[number] = max(anyhow[number], n)
                await asyncio.sleep(random.random() * 0.02)

        async def read() -> None:
            while going():
                number, strict = random.randint(1, ROWS), random.random() < 0.3
                kind = random.choice(["one", "one", "all", "function"])
                promised = Counter(anyhow if strict else through)
                wish = {"consistency": "strict"} if strict else {}
                if kind == "one":
                    source = random.choice([pool, other])
                    text = "SELECT n FROM counter WHERE id = $1"
                    found = {number: await cache.fetchval(source, text, number, **wish)}
                elif kind == "all":
                    rows = await cache.fetch(pool, "SELECT id, n FROM counter", **wish)
                    found = {row.id: row.n for row in rows}
                else:
                    promised = Counter(through)
                    found = dict(enumerate(await everything(), 1))
                reads[f"{kind} {cache.last.status}"] += 1
                stale.extend((kind, strict, each) for each, n in found.items() if n < promised[each])
                await asyncio.sleep(random.random() * 0.004)

        loop = asyncio.get_running_loop()
        least = loop.time() + (1.5 if muted else SECONDS)
        await asyncio.gather(write(), write(), *(read() for _ in range(8)))
        await outside.close()
        await other.close()
        await pool.close()
        fills = cache.stats().fills
    assert bool(stale) is muted, (stale[:5], reads)
    hits = sum(count for name, count in reads.items() if name.endswith("hit"))
    assert hits > 20, (reads, fills)
