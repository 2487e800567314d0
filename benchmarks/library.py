"""What a hit costs in the library: ``get`` and ``fetch`` of 1, 4 and 64 KiB, beside cashews' memory and a dict.

``python benchmarks/library.py [--rounds N] [--json]`` starts a PostgreSQL of its own. All targets take turns in slices
of a few milliseconds inside every round; a figure is the median of all slices, in microseconds per call.

* *dict*: ``d[key]`` in a coroutine, which is what any asynchronous cache pays at least.
* *cashews*: its memory backend; it gives back the very object that was stored, ours builds rows or slices bytes anew.
* *get*: bytes under a fingerprint, ended by time alone, and the same dated by the change stream (``get, dated``).
* *fetch, pool*: rows of that size, of a pool whose connections are believed to be alike. *connection*: one question on
  that connection comes first. *direct*: the driver alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import asyncpg
import psycopg
import uvloop

from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint
from distribcache.cli.postgres import Postgres

SIZES = (1, 4, 64)
ROWS = 16
SLICE_S = 0.004
TEXT = "SELECT id, body FROM page WHERE size = $1 ORDER BY id"

Call = Callable[[], Awaitable[Any]]


async def measure(calls: dict[str, Call], slices: int) -> dict[str, list[float]]:
    """Microseconds per call, the targets in turns of a few milliseconds each."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(slices):
        for name, call in calls.items():
            await call()
            number, began = 0, time.perf_counter()
            while time.perf_counter() - began < SLICE_S:
                for _ in range(10):
                    await call()
                number += 10
            found[name].append((time.perf_counter() - began) / number * 1e6)
            await asyncio.sleep(0)
    return found


async def run(rounds: int, slices: int) -> dict[str, dict[str, float]]:
    with Postgres(options={"autovacuum": "off"}) as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE page (id serial PRIMARY KEY, size int, body text)")
            for size in SIZES:
                connection.execute(
                    "INSERT INTO page (size, body) SELECT %s, repeat('x', %s) FROM generate_series(1, %s)",
                    [size, size * 1024 // ROWS, ROWS],
                )
        config = DistribCacheConfig(upstream_url=server.url(), freshness_hit_wait="2s")
        async with DistribCache(config, log=lambda _: None) as cache:
            assert await cache.ready("30s")
            await asyncio.sleep(2)
            pool = await asyncpg.create_pool(server.url(), min_size=2, max_size=2)
            psy = await psycopg.AsyncConnection.connect(server.conninfo(), autocommit=True)
            results: dict[str, dict[str, list[float]]] = {}
            async with pool.acquire() as single:
                for _ in range(rounds):
                    for size in SIZES:
                        calls = await targets(cache, pool, single, psy, size)
                        gc.collect()
                        for name, value in (await measure(calls, slices)).items():
                            results.setdefault(f"{size} KiB", {}).setdefault(name, []).extend(value)
            await psy.close()
            pool.terminate()
    return {
        size: {name: statistics.median(values) for name, values in of.items()} for size, of in results.items()
    }


async def targets(
    cache: DistribCache, pool: Any, single: Any, psy: Any, size: int
) -> dict[str, Call]:
    data = bytes(size * 1024)
    plain = {"key": data}
    by_time, dated = QueryFingerprint(f"time {size}"), QueryFingerprint.from_query(f"SELECT {size} FROM page")
    assert await cache.insert(by_time, CacheEntry(data))
    while await cache.get(dated) is None:
        await cache.insert(dated, CacheEntry(data))

    async def from_dict() -> bytes:
        return plain["key"]

    async def get() -> Any:
        return await cache.get(by_time)

    async def get_data() -> Any:
        found = await cache.get(by_time)
        return found and found.data

    async def get_dated() -> Any:
        return await cache.get(dated)

    @cache.cached(key=lambda: size, ttl="1h")
    async def function() -> bytes:
        return data

    calls: dict[str, Call] = {
        "dict": from_dict,
        "get": get,
        "get, data": get_data,
        "get, dated": get_dated,
        "cached function": function,
        "fetch, pool": lambda: cache.fetch(pool, TEXT, size),
        "fetch, connection": lambda: cache.fetch(single, TEXT, size),
        "fetch, psycopg connection": lambda: cache.fetch(psy, TEXT.replace("$1", "%s"), size),
        "direct, asyncpg": lambda: single.fetch(TEXT, size),
    }
    try:
        memory: Any = import_module("cashews").Cache()
        memory.setup("mem://")
        await memory.set("key", data, expire="1h")
        calls["cashews"] = lambda: memory.get("key")
    except ImportError:
        pass
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = uvloop.run(run(arguments.rounds, arguments.slices))
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    names = list(next(iter(found.values())))
    print(f"{'microseconds per call':28}" + "".join(f"{size:>12}" for size in found))
    for name in names:
        print(f"{name:28}" + "".join(f"{of[name]:12.2f}" for of in found.values()))


if __name__ == "__main__":
    main()
