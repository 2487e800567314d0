"""How long a look-up in L3 takes, beside redis-py on the same servers, in one run.

``python benchmarks/l3.py`` starts a Valkey server and a cluster of 3 primaries with 3 replicas on this machine.
``tier`` is all of ``DistributedCache.get`` (checksum and unpacking included), ``connection`` is our connection alone,
``hiredis`` the same with the parser of hiredis in the place of ours, ``redis-py`` its asyncio client. Rounds are
interleaved: compare within a row.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
import redis.asyncio
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from distribcache.cli.valkey import Valkey, form_cluster
from distribcache.clock import wall_time
from distribcache.config.tiers import DistributedTier
from distribcache.tiers import connection as connection_module
from distribcache.tiers.base import Record
from distribcache.tiers.connection import BULK
from distribcache.tiers.distributed import DistributedCache
from distribcache.tiers.resp import Refusal, Replies, command
from distribcache.tiers.topology import slot_of

KEYS = 200
Get = Callable[[int], Awaitable[object]]


class Hiredis:
    """The parser of hiredis, in the manner of ours."""

    def __init__(self, max_bulk: int) -> None:
        self._reader = hiredis.Reader(replyError=lambda text: Refusal(text.encode()))

    def feed(self, data: bytes) -> Sequence[Any]:
        reader = self._reader
        reader.feed(data)
        replies = []
        while (reply := reader.gets()) is not False:
            replies.append(reply)
        return replies


def record(size: int) -> Record:
    """Half of it can be compressed."""
    payload = os.urandom(size // 2).hex().encode()
    return Record(payload, 1, 1, (b"table",), b"e" * 16, wall_time(), wall_time() + 3600, 1, 1, "t", "olap")


async def one_by_one(get: Get, count: int) -> list[int]:
    """Nanoseconds of each."""
    times = []
    for at in range(count):
        began = time.perf_counter_ns()
        await get(at % KEYS)
        times.append(time.perf_counter_ns() - began)
    return times


async def together(get: Get, count: int, tasks: int = 64) -> float:
    """Look-ups per second of many tasks."""

    async def work(first: int) -> None:
        for at in range(first, count, tasks):
            await get(at % KEYS)

    began = time.perf_counter()
    await asyncio.gather(*(work(first) for first in range(tasks)))
    return count / (time.perf_counter() - began)


async def raw(settings: DistributedTier, parser: Any) -> tuple[DistributedCache, Get]:
    """Our connection without the tier, for keys as the tier writes them."""
    connection_module.Replies = parser
    tier = DistributedCache(settings, wall_time, lambda line: None)
    await tier.start()
    connection_module.Replies = Replies
    mesh = tier._mesh
    assert mesh is not None
    asked = [b"dc:bench:" + digest(at).hex().encode() for at in range(KEYS)]
    requests = [command(b"GETRANGE", key, b"0", b"2000000") for key in asked]
    slots = [slot_of(key) for key in asked]

    async def get(at: int) -> object:
        return await mesh.owners[slots[at]].reads.connection.ask(requests[at], BULK)  # type: ignore[union-attr]

    return tier, get


def digest(at: int) -> bytes:
    return at.to_bytes(16, "big")


async def measure(name: str, server: Valkey, clustered: bool, asked: argparse.Namespace) -> None:
    settings = DistributedTier(
        peers=server.address, password=server.password, namespace="bench", deadline=1.0, replication_factor=1
    )
    tier = DistributedCache(settings, wall_time, lambda line: None)
    await tier.start()
    ours, ours_get = await raw(settings, Replies)
    theirs, theirs_get = await raw(settings, Hiredis)
    how: dict[str, Any] = {"host": server.host, "port": server.port, "password": server.password or None}
    how["retry"] = Retry(NoBackoff(), 0)  # type: ignore[no-untyped-call]
    client: Any = redis.asyncio.RedisCluster(**how) if clustered else redis.asyncio.Redis(**how)
    keys = [b"dc:bench:" + digest(at).hex().encode() for at in range(KEYS)]
    contenders: dict[str, Get] = {
        "tier": lambda at: tier.get(digest(at)),
        "connection": ours_get,
        "hiredis": theirs_get,
        "redis-py": lambda at: client.get(keys[at]),
    }
    for size in (1 << 10, 1 << 12, 1 << 16):
        for at in range(KEYS):
            assert tier.put(digest(at), record(size))
        assert await tier.flush(30.0)
        times: dict[str, list[int]] = {each: [] for each in contenders}
        rates: dict[str, list[float]] = {each: [] for each in contenders}
        count = asked.count if size < 1 << 16 else asked.count // 4
        for _ in range(asked.rounds):
            for each, get in contenders.items():
                assert await get(7) is not None
                times[each] += await one_by_one(get, count)
                rates[each].append(await together(get, 2 * count))
        for each in contenders:
            cuts = statistics.quantiles(times[each], n=100)
            rate = statistics.median(rates[each])
            base = statistics.median(rates["redis-py"])
            base_p50 = statistics.median(times["redis-py"])
            print(
                f"| {name} | {size >> 10} KiB | {each} | {cuts[49] / 1000:.0f} | {cuts[98] / 1000:.0f} "
                f"| {base_p50 / cuts[49]:.1f}x | {rate / 1000:.1f}k | {rate / base:.1f}x |",
                flush=True,
            )
    failures = tier.stats().failures
    if failures:
        print("failures:", dict(failures))
    await client.aclose()
    for each_tier in (tier, ours, theirs):
        await each_tier.stop()


async def main(asked: argparse.Namespace) -> None:
    print("| servers | size | client | p50 us | p99 us | faster than redis-py | 64 tasks | more than redis-py |")
    print("|---|---|---|---|---|---|---|---|")
    with Valkey() as server:
        await measure("one", server, False, asked)
    servers = [Valkey(clustered=True) for _ in range(6)]
    try:
        for each in servers:
            each.start()
        await asyncio.to_thread(form_cluster, servers)
        await measure("3+3", servers[0], True, asked)
    finally:
        for each in servers:
            each.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000, help="look-ups in a round")
    parser.add_argument("--rounds", type=int, default=3)
    uvloop.run(main(parser.parse_args()))
