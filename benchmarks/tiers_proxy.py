"""How long an answer takes through the proxy, by the tier that it comes from, beside PostgreSQL and redis-py.

``python benchmarks/tiers_proxy.py [--rounds N] [--sizes 1024,4096,65536] [--write]``. One client asks one statement
after another by the simple protocol and times each. All targets take turns inside every round:

* *direct*: PostgreSQL itself; the row of a table by its key, so its cheapest kind of answer.
* *L1*: a proxy that has everything in memory.
* *L2*: one whose memory has room for a few answers only, and that reads the rest from LMDB (page cache warm).
* *L3*: one with as little memory and no L2, on a Valkey cluster of three primaries with a replica each.
* *redis-py*: ``RedisCluster.get`` of as many bytes from the same cluster, without any database: the floor of a
  hand-made cache.

A proxy counts by itself where its answers came from; a target of which less than nine in ten did come from its tier
is an error, not a figure.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
import redis
from benchmarks import servers
from benchmarks.nodes import three_and_three
from benchmarks.report import write_section
from tests.rawclient import RawClient

from distribcache.cli.postgres import Postgres
from distribcache.wire.messages import query

_TTL = {"DISTRIBCACHE_TTL_OLAP": "1d", "DISTRIBCACHE_AUDIT_SAMPLE": "0"}
_SMALL = {"DISTRIBCACHE_L1_SIZE": "256kB", "DISTRIBCACHE_L1_MAX_ENTRY": "128kB"}
_ROOM = 8 << 20
"""Bytes of all answers together, of which memory of ``_SMALL`` holds next to nothing."""
_MOST = 2000


@dataclass(slots=True)
class Target:
    name: str
    get: Callable[[int], object]
    proxy: servers.Program | None = None
    tier: str = ""
    times: list[int] = field(default_factory=list)


def text(key: int) -> str:
    return f"SELECT body FROM page WHERE id = {key}"


def asker(port: int, *before: str) -> Callable[[int], object]:
    """One connection of raw messages."""
    client = RawClient("127.0.0.1", port, "postgres", seconds=60)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for each in before:
        client.exchange(query(each.encode()))
    return lambda key: client.exchange(query(text(key).encode()))


def from_tier(proxy: servers.Program, tier: str) -> tuple[float, float]:
    """(hits, hits of the tiers below L1 by ``tier``) so far."""
    found = servers.stats(proxy)
    return found["hits_total"], found.get(f"{tier.lower()}_hits_total", 0.0)


def warm(target: Target, keys: range) -> None:
    """Ask for everything until next to all of it is answered from the cache."""
    assert target.proxy is not None
    deadline = time.monotonic() + 60
    while True:
        before = servers.stats(target.proxy)["hits_total"]
        for key in keys:
            target.get(key)
        if servers.stats(target.proxy)["hits_total"] - before >= 0.99 * len(keys):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{target.name} never had everything: {servers.stats(target.proxy)}")
        time.sleep(0.3)


@contextlib.contextmanager
def present(size: int, count: int) -> Iterator[list[Target]]:
    """All targets, full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin()))
        cluster = stack.enter_context(three_and_three())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-tiers-")))
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute("CREATE TABLE page (id int PRIMARY KEY, body text)")
            half = size // 64  # half of it can be compressed away, as in the other benchmark of tiers
            connection.execute(
                "INSERT INTO page SELECT i, (SELECT string_agg(md5(random()::text || i || j), '') "
                f"FROM generate_series(1, {half}) j) || repeat('x', {size // 2}) FROM generate_series(0, {count - 1}) i"
            )  # type: ignore[arg-type]
        peers = ", ".join(each.address for each in cluster)
        kinds: dict[str, dict[str, str]] = {
            "L1": {},
            "L2": {**_SMALL, "DISTRIBCACHE_L2_PATH": str(work / "l2"), "DISTRIBCACHE_L2_MIN_ENTRY": "0B"},
            "L3": {**_SMALL, "DISTRIBCACHE_L3_PEERS": peers},
        }
        keys = range(count)
        found = [Target("direct", asker(server.port))]
        for name, settings in kinds.items():
            proxy = stack.enter_context(servers.distribcache(server.url(), work, env={**_TTL, **settings}, name=name))
            servers.wait_serving(proxy)
            target = Target(name, asker(proxy.port, "SET distribcache.workload = 'olap'"), proxy, name)
            warm(target, keys)
            found.append(target)
        first = cluster[0]
        client = redis.RedisCluster(host=first.host, port=first.port, socket_timeout=5)
        stack.callback(client.close)
        payload = os.urandom(size // 2) + bytes(size // 2)
        for key in keys:
            client.set(f"page:{key}", payload)
        found.append(Target("redis-py", lambda key: client.get(f"page:{key}")))
        yield found


def quantile(times: list[int], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] / 1000


def measure(size: int, asked: argparse.Namespace) -> str:
    """The table of one size."""
    count = min(_MOST, max(200, _ROOM // size))
    clock = time.perf_counter_ns
    with present(size, count) as targets:
        before = {each.name: from_tier(each.proxy, each.tier) for each in targets if each.proxy is not None}
        draw = random.Random(size)
        for _ in range(asked.rounds):
            for target in targets:
                for key in draw.choices(range(count), k=asked.gets):
                    began = clock()
                    target.get(key)
                    target.times.append(clock() - began)
        for each in targets:
            if each.proxy is None:
                continue
            now = from_tier(each.proxy, each.tier)
            hits, below = (late - early for late, early in zip(now, before[each.name], strict=True))
            asked_for = len(each.times)
            share = below / asked_for if each.tier != "L1" else hits / asked_for
            if share < 0.9 or hits < 0.9 * asked_for:
                raise RuntimeError(f"{each.name}: only {share:.2f} from the tier, {hits / asked_for:.2f} hits")
    floor = quantile(targets[0].times, 0.5)
    lines = [f"{size} bytes, {count} answers", "", "| | p50 µs | p99 µs | p50 ÷ direct |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each.name} | {quantile(each.times, 0.5):.0f} | {quantile(each.times, 0.99):.0f} | "
        f"{quantile(each.times, 0.5) / floor:.2f} |"
        for each in targets
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--gets", type=int, default=300, help="per target and round")
    parser.add_argument("--sizes", default="1024,4096,65536")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    asked = parser.parse_args(argv)
    tables = [measure(int(size), asked) for size in asked.sizes.split(",")]
    print("\n\n".join(tables))
    if asked.write:
        write_section("Tiers through the proxy", "\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
