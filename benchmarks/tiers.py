"""How long a look-up takes in each tier, beside a dict, diskcache, cashews and redis-py, in one run.

``python benchmarks/tiers.py [--rounds N] [--sizes 1024,4096,65536] [--write]`` prints one table per size. All targets
take turns inside every round and every look-up is timed by itself; the figures are over all rounds. What means
something is the ratios of one table: ÷ dict for what is in memory, ÷ L2 for what is on disk. The time of the two calls
of the clock around a look-up is measured too and taken off the p50.

* *dict*: a dict of payloads, which is what any cache in memory pays at least.
* *L1*: what a hit does: look up, compare the expiry, mark.
* *L2*: ``WarmCache.get`` from the page cache, checksum and unpacking and a new record included.
* *cold*: the same after the files were dropped from the page cache, for few keys each time, so that what is read ahead
  of one look-up seldom serves the next. The disk may have a cache of its own.
* *one read*: a payload read from a known place in a file, in one call: what this disk and this machine can do.
* *diskcache*, *cashews*: bytes with an expiry; nothing is compressed and nothing checked. cashews is awaited.
* *L3*: ``DistributedCache.get`` from a Valkey cluster of three primaries with a replica each, on this machine, beside
  redis-py on the same cluster and cashews on a server alone. All are awaited.

Half of a payload can be compressed away. The last lines say whether L2 keeps to its budget for 4 KB: p50 below 20 µs,
p99 of cold look-ups below 1 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cashews
import diskcache
import redis.asyncio
from benchmarks.nodes import three_and_three
from benchmarks.report import write_section

from distribcache.cli.valkey import Valkey
from distribcache.clock import wall_time
from distribcache.config.tiers import DistributedTier, WarmTier
from distribcache.entry import EXPIRES, PAYLOAD, TOUCHED, make_entry
from distribcache.tiers.base import Digest, Record
from distribcache.tiers.distributed import DistributedCache
from distribcache.tiers.hot import HotCache
from distribcache.tiers.warm import WarmCache

BUDGET_BYTES, BUDGET_P50_US, BUDGET_COLD_P99_US = 4096, 20, 1000
COLD = " cold"


@dataclass(slots=True)
class Target:
    """One way to keep payloads. ``get`` returns the payload; ``cool`` drops it from the page cache, if it can."""

    name: str
    get: Callable[[Digest], Any]
    put: Callable[[Digest, bytes], Any]
    settle: Callable[[], object] = lambda: None
    cool: Callable[[], object] | None = None
    end: Callable[[], object] = lambda: None
    is_awaited: bool = False
    is_disk: bool = False
    times: list[int] = field(default_factory=list)
    cold_times: list[int] = field(default_factory=list)


def drop(paths: Iterable[Path]) -> None:
    """Let the page cache forget files."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def of_dict() -> Target:
    cache: dict[Digest, bytes] = {}
    return Target("dict", cache.__getitem__, cache.__setitem__)


def of_hot() -> Target:
    cache = HotCache(1 << 31, 1 << 20)
    entries, far = cache.entries, wall_time() + 1e6

    def get(digest: Digest) -> bytes:
        entry = entries.get((1, digest))
        assert entry is not None
        if entry[EXPIRES] <= 0:
            raise AssertionError("nothing expires here")
        entry[TOUCHED][0] = 1
        return entry[PAYLOAD]

    def put(digest: Digest, payload: bytes) -> None:
        cache.put(
            (1, digest),
            make_entry(
                payload, fill=1, analysis=1, slots=(1,), epoch=1, expires=far, cost_ns=1, at_ns=1, tables="public.t",
                workload="oltp",
            ),
        )  # fmt: skip

    return Target("L1", get, put)


def of_warm(compression: str, where: Path) -> Target:
    path = where / compression
    settings = WarmTier(path=path, size="2GB", compression=compression, write_queue="1GB")
    cell = [WarmCache(settings, wall_time)]
    cell[0].open()

    def get(digest: Digest) -> bytes:
        found = cell[0].get(digest)
        assert found is not None
        return found.payload

    def put(digest: Digest, payload: bytes) -> None:
        now = wall_time()
        record = Record(
            payload, 1 << 33, 1 << 32, (b"r\0\0\0\1", b"w\0\0\0\1"), b"e" * 16, now, now + 1e6, 10**6, 1, "public.t",
            "olap",
        )  # fmt: skip
        assert cell[0].put(digest, record)

    def settle() -> None:
        assert cell[0].flush(300)

    def cool() -> None:
        cell[0].close(300)
        drop(path.glob("data.mdb"))
        cell[0] = WarmCache(settings, wall_time)
        cell[0].open()
        assert not cell[0].reason

    def end() -> None:
        cell[0].close()

    return Target(f"L2 {compression}", get, put, settle, cool, end, is_disk=True)


def of_file(where: Path) -> Target:
    path = where / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    places: dict[Digest, tuple[int, int]] = {}
    end = 0

    def put(digest: Digest, payload: bytes) -> None:
        nonlocal end
        places[digest] = (len(payload), end)
        end += os.pwrite(file, payload, end)

    def cool() -> None:
        drop([path])
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

    return Target(
        "one read", lambda digest: os.pread(file, *places[digest]), put, cool=cool, end=lambda: os.close(file),
        is_disk=True,
    )  # fmt: skip


def of_diskcache(where: Path) -> Target:
    path = where / "diskcache"
    cell = [diskcache.Cache(str(path), size_limit=2 << 30)]

    def cool() -> None:
        cell[0].close()
        drop(each for each in path.rglob("*") if each.is_file())
        cell[0] = diskcache.Cache(str(path), size_limit=2 << 30)

    def get(digest: Digest) -> bytes:
        found: bytes = cell[0][digest]
        return found

    def put(digest: Digest, payload: bytes) -> None:
        cell[0].set(digest, payload, expire=10**6)

    def end() -> None:
        cell[0].close()

    return Target("diskcache", get, put, cool=cool, end=end, is_disk=True)


def of_cashews(name: str, url: str, *, is_disk: bool) -> Target:
    cache = cashews.Cache()
    cache.setup(url)

    async def get(digest: Digest) -> bytes:
        found: bytes = await cache.get(digest.hex())
        return found

    async def put(digest: Digest, payload: bytes) -> None:
        await cache.set(digest.hex(), payload, expire=10**6)

    return Target(f"cashews {name}", get, put, is_awaited=True, is_disk=is_disk)


def targets(where: Path) -> list[Target]:
    return [
        of_dict(),
        of_hot(),
        of_cashews("memory", "mem://?size=1000000", is_disk=False),
        of_warm("lz4", where),
        of_warm("zstd", where),
        of_warm("none", where),
        of_file(where),
        of_diskcache(where),
        of_cashews("disk", f"disk://?directory={where / 'cashews'}", is_disk=True),
    ]


async def far_targets(stack: contextlib.AsyncExitStack) -> list[Target]:
    """L3 and others' clients, of one cluster of three primaries with a replica each; cashews of one server."""
    cluster = stack.enter_context(three_and_three())
    single = stack.enter_context(Valkey(maxmemory="2gb"))
    settings = DistributedTier(peers=[each.address for each in cluster], deadline="5s")
    tier = DistributedCache(settings, wall_time, lambda _: None)
    await tier.start()
    stack.push_async_callback(tier.stop)
    client = redis.asyncio.RedisCluster(host=cluster[0].host, port=cluster[0].port)
    stack.push_async_callback(client.aclose)

    async def get(digest: Digest) -> bytes:
        found = await tier.get(digest)
        assert found is not None, tier.stats()
        return found.payload

    async def put(digest: Digest, payload: bytes) -> None:
        now = wall_time()
        record = Record(
            payload, 1 << 33, 1 << 32, (b"r\0\0\0\1", b"w\0\0\0\1"), b"e" * 16, now, now + 1e6, 10**6, 1, "public.t",
            "olap",
        )  # fmt: skip
        while not tier.put(digest, record):
            await tier.flush(5)

    async def redis_put(digest: Digest, payload: bytes) -> None:
        await client.set(digest.hex(), payload, ex=10**6)

    async def redis_get(digest: Digest) -> bytes:
        found: bytes = await client.get(digest.hex())
        return found

    url = f"redis://:{single.password}@{single.host}:{single.port}/0"
    return [
        Target("L3 3+3", get, put, settle=lambda: None, is_awaited=True, is_disk=True),
        Target("redis-py 3+3", redis_get, redis_put, is_awaited=True, is_disk=True),
        of_cashews("redis, one server", url, is_disk=True),
    ]


async def look_up(target: Target, digests: list[Digest], truth: dict[Digest, bytes]) -> list[int]:
    """Nanoseconds of each look-up; every answer must be right."""
    times, get, clock = [], target.get, time.perf_counter_ns
    gc.collect()
    gc.disable()
    for digest in digests:
        if target.is_awaited:
            began = clock()
            found = await get(digest)
            ended = clock()
        else:
            began = clock()
            found = get(digest)
            ended = clock()
        times.append(ended - began)
        if found != truth[digest]:
            raise SystemExit(f"{target.name} gave a wrong answer")
    gc.enable()
    return times


def quantile(times: list[int], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] / 1000


def clock_us() -> float:
    """Microseconds that timing a look-up takes by itself."""
    clock, times = time.perf_counter_ns, []
    for _ in range(20_000):
        began = clock()
        times.append(clock() - began)
    return quantile(times, 0.5)


async def store(target: Target, truth: dict[Digest, bytes]) -> None:
    for at, (digest, payload) in enumerate(truth.items()):
        done = target.put(digest, payload)
        if isinstance(done, Awaitable):
            await done
        if not at % 1000:
            target.settle()
    target.settle()


async def measure(size: int, asked: argparse.Namespace) -> tuple[str, list[str]]:
    """The table of one size, and what it says about the budget."""
    rng = random.Random(size)
    count = max(1000, min(asked.entries, asked.megabytes * (1 << 20) // size))
    truth = {rng.randbytes(16): rng.randbytes(size // 2) + bytes(size - size // 2) for _ in range(count)}
    digests = list(truth)
    where = Path(tempfile.mkdtemp(prefix="distribcache-tiers-", dir=asked.directory))
    stack = contextlib.AsyncExitStack()
    present = targets(where)
    try:
        present += await far_targets(stack)
        for target in present:
            await store(target, truth)
        for _ in range(asked.rounds):
            for target in present:
                target.times += await look_up(target, rng.choices(digests, k=asked.gets), truth)
        for _ in range(asked.cold_rounds):
            for target in present:
                if target.cool is not None:
                    target.cool()
                    chosen = rng.sample(digests, min(asked.cold_gets, len(digests)))
                    target.cold_times += await look_up(target, chosen, truth)
        return table(size, count, present), budget(size, present)
    finally:
        for target in present:
            target.end()
        await stack.aclose()
        shutil.rmtree(where, ignore_errors=True)


def table(size: int, count: int, present: list[Target]) -> str:
    timing = clock_us()
    rows = [(target.name, target.is_disk, target.times) for target in present]
    rows += [(target.name + COLD, True, target.cold_times) for target in present if target.cold_times]
    p50 = {name: max(0.001, quantile(times, 0.5) - timing) for name, _, times in rows}
    lines = [
        f"{size:,} bytes, {count:,} entries; timing takes {timing:.2f} µs",
        "",
        "| look-up | p50 µs | p99 µs | p50 ÷ dict | p50 ÷ L2 lz4 |",
        "|---|---|---|---|---|",
    ]
    for name, is_disk, times in rows:
        base = "L2 lz4" + (COLD if name.endswith(COLD) else "")
        ratio = f"{p50[name] / p50[base]:.2f}×" if is_disk else "–"
        to_dict = "–" if is_disk else f"{p50[name] / p50['dict']:.1f}×"
        lines.append(f"| {name} | {p50[name]:.2f} | {quantile(times, 0.99):.1f} | {to_dict} | {ratio} |")
    return "\n".join(lines)


def budget(size: int, present: list[Target]) -> list[str]:
    if size != BUDGET_BYTES:
        return []
    lines = []
    for target in present:
        if target.name == "one read":
            lines.append(f"one read of this disk: p99 {quantile(target.cold_times, 0.99):.0f} µs")
        if target.name == "L2 lz4":
            warm, cold = quantile(target.times, 0.5), quantile(target.cold_times, 0.99)
            lines.append(f"budget, L2 with 4 KB from the page cache: p50 {warm:.1f} µs of {BUDGET_P50_US}")
            lines.append(f"budget, L2 with 4 KB cold: p99 {cold:.0f} µs of {BUDGET_COLD_P99_US}")
    return lines


async def run(asked: argparse.Namespace) -> None:
    parts, verdicts = [], []
    for size in asked.sizes:
        text, lines = await measure(size, asked)
        print(text + "\n", flush=True)
        parts.append(text)
        verdicts += lines
    print("\n".join(verdicts))
    if asked.write:
        libraries = " · ".join(f"{name} {version(name)}" for name in ("lmdb", "lz4", "diskcache", "cashews", "redis"))
        load = "/".join(f"{part:.1f}" for part in os.getloadavg())
        facts = (
            f"* {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores · load {load}\n"
            f"* Python {platform.python_version()} · {libraries}\n"
            f"* {asked.rounds} interleaved rounds of {asked.gets:,} look-ups; command: `make bench-tiers`"
        )
        notes = "\n".join(f"* {line}" for line in verdicts)
        write_section("Look-ups in the tiers", "\n\n".join([facts, *parts, notes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = lambda text: [int(each) for each in text.split(",")]
    parser.add_argument("--sizes", type=sizes, default=[1024, 4096, 65536])
    parser.add_argument("--entries", type=int, default=20_000, help="at most")
    parser.add_argument("--megabytes", type=int, default=100, help="of payload, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gets", type=int, default=4000)
    parser.add_argument("--cold-rounds", type=int, default=10)
    parser.add_argument("--cold-gets", type=int, default=50)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk that is to be measured")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
