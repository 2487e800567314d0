"""What a restart of distribcache costs, second by second, with a warm restart and without.

    python benchmarks/restart.py                 stopped and killed, with a persistent slot and a temporary one
    python benchmarks/restart.py --keys 2000 --seconds 6 --rounds 2 --write

Every key of a set is read until its answer lies in L2. Then the proxy ends, rows are changed around it, and it is
started again. From the moment at which it accepts clients on, four of them read keys at random; each second has its
share of hits, and *asked* is how many reads PostgreSQL had to answer in all. Meanwhile rows are changed from outside,
and an answer older than the newest value acknowledged ``max_staleness`` (1 s) before the read was sent is stale: one
such makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.report import write_section

from distribcache.cli.postgres import Postgres

BOUND_S = 1.0
CLIENTS = 4
DOWN_SHARE = 0.02
WRITES_PER_S = 50
READ = "SELECT id, value, repeat('x', 1500) AS pad FROM stock WHERE id = %s"
SLOTS, ENDS = ("persistent", "temporary"), ("stopped", "killed")


@dataclass(slots=True)
class Writer:
    """Changes rows around the proxy, and remembers what was acknowledged when."""

    conninfo: str
    keys: int
    history: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    value: int = 1

    def write(self, connection: psycopg.Connection[Any], key: int) -> None:
        self.value += 1
        connection.execute("UPDATE stock SET value = %s WHERE id = %s", (self.value, key))
        self.history.setdefault(key, []).append((time.monotonic(), self.value))

    def run(self, ended: threading.Event) -> None:
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            while not ended.wait(1 / WRITES_PER_S):
                self.write(connection, random.randint(1, self.keys))

    def least(self, key: int, at: float) -> int:
        """What a read sent then has to show at least."""
        return max((value for when, value in self.history.get(key, []) if when <= at), default=0)


@dataclass(slots=True)
class Seconds:
    """What one restart was like: reads and hits by second, stale answers, and when the first hit came."""

    reads: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    stale: int = 0
    up_s: float = 0.0
    said: str = ""


def hits_of(connection: psycopg.Connection[Any]) -> int:
    found = dict(connection.execute("SHOW distribcache.stats").fetchall())
    return int(float(found["hits_total"]))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("it never came to that")
        time.sleep(0.05)


def warm(proxy: servers.Program, database: str, keys: int) -> None:
    """Read every key until its answer lies in L2."""
    with psycopg.connect(proxy.conninfo(database), autocommit=True, prepare_threshold=None) as connection:

        def stored() -> bool:
            for key in range(1, keys + 1):
                connection.execute(READ, (key,)).fetchone()
            tiers = {row[0]: row for row in connection.execute("SHOW distribcache.tiers").fetchall()}
            return int(tiers["L2"][3] or 0) >= keys

        until(stored, 120)


def read_on(proxy: servers.Program, database: str, writer: Writer, seconds: int) -> Seconds:
    found, ended, lock = Seconds(), threading.Event(), threading.Lock()
    counts = [0] * (seconds + 1)
    began = time.monotonic()

    def client(seed: int) -> None:
        chosen = random.Random(seed)
        with psycopg.connect(proxy.conninfo(database), autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                key, sent = chosen.randint(1, writer.keys), time.monotonic()
                row = connection.execute(READ, (key,)).fetchone()
                assert row is not None
                with lock:
                    counts[min(seconds, int(sent - began))] += 1
                    found.stale += row[1] < writer.least(key, sent - BOUND_S)

    threads = [threading.Thread(target=client, args=(seed,), daemon=True) for seed in range(CLIENTS)]
    threads.append(threading.Thread(target=writer.run, args=(ended,), daemon=True))
    with psycopg.connect(proxy.conninfo(database), autocommit=True, prepare_threshold=None) as connection:
        before, done = hits_of(connection), 0
        for each in threads:
            each.start()
        for second in range(seconds):
            time.sleep(max(0.0, began + second + 1 - time.monotonic()))
            now, total = hits_of(connection), sum(counts)
            found.hits.append(now - before)
            found.reads.append(total - done)
            before, done = now, total
    ended.set()
    for each in threads:
        each.join(10)
    return found


def restart(server: Postgres, work: Path, slot: str, end: str, asked: argparse.Namespace) -> Seconds:
    """One restart on a database of its own."""
    database = f"{slot}_{end}_{len(list(work.iterdir()))}"
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    conninfo = server.conninfo(database)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)")
        connection.execute("INSERT INTO stock SELECT i, 1 FROM generate_series(1, %s) i", (asked.keys,))
    env = {
        "DISTRIBCACHE_FRESHNESS_SLOT": slot, "DISTRIBCACHE_L2_PATH": str(work / f"{database}-l2"),
        "DISTRIBCACHE_TTL_OLTP": "1h",
    }  # fmt: skip
    state = work / f"{database}-l2"
    first = servers.distribcache(server.url(database), work, env=env, name=f"{database}-1").start()
    writer = Writer(conninfo, asked.keys)
    try:
        warm(first, database, asked.keys)
        if end == "killed":
            if slot == "persistent":
                before = time.time()
                until(lambda: any(path.stat().st_mtime > before for path in state.glob("*.state")))
            os.kill(first.pid, signal.SIGKILL)
    finally:
        first.stop()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for key in random.sample(range(1, asked.keys + 1), int(asked.keys * DOWN_SHARE)):
            writer.write(connection, key)
    began = time.monotonic()
    second = servers.distribcache(server.url(database), work, env=env, name=f"{database}-2").start()
    try:
        found = read_on(second, database, writer, asked.seconds)
        found.up_s = time.monotonic() - began - asked.seconds
        found.said = next((line for line in second.log().splitlines() if "warm restart" in line), "")
    finally:
        second.stop()
        with contextlib.suppress(psycopg.Error), psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    return found


def table(results: dict[tuple[str, str], list[Seconds]], asked: argparse.Namespace) -> str:
    head = "| slot | ended | " + " | ".join(f"second {n}" for n in range(1, asked.seconds + 1)) + " | asked | stale |"
    lines = [head, "|" + "---|" * (asked.seconds + 4)]
    for (slot, end), rounds in results.items():
        medians = [median(100 * each.hits[n] / max(1, each.reads[n]) for each in rounds) for n in range(asked.seconds)]
        shares = [f"{share:.1f} %" for share in medians]
        stale, reads = sum(each.stale for each in rounds), sum(sum(each.reads) for each in rounds)
        misses = median(sum(each.reads) - sum(each.hits) for each in rounds)
        lines.append(f"| {slot} | {end} | " + " | ".join(shares) + f" | {misses:,.0f} | {stale} of {reads:,} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    asked = parser.parse_args()
    results: dict[tuple[str, str], list[Seconds]] = {(slot, end): [] for end in ENDS for slot in SLOTS}
    with (
        Postgres(options={"max_slot_wal_keep_size": "4GB", "autovacuum": "off"}) as server,
        tempfile.TemporaryDirectory(prefix="distribcache-restart-") as folder,
    ):
        for number in range(asked.rounds):
            for (slot, end), rounds in results.items():
                found = restart(server, Path(folder), slot, end, asked)
                rounds.append(found)
                print(f"round {number + 1} {slot} {end}: hits {found.hits} of {found.reads}, stale {found.stale}")
                print(f"  {found.said}")
        with psycopg.connect(server.conninfo()) as connection:
            version = connection.info.parameter_status("server_version")
    facts = (
        f"* {datetime.now(UTC):%Y-%m-%d}, PostgreSQL {version}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores\n"
        f"* {asked.keys:,} answers of 1.6 KB in L2, {asked.rounds} rounds; {CLIENTS} clients read keys at random; "
        f"{DOWN_SHARE:.0%} of the rows changed while the proxy was down, {WRITES_PER_S} a second afterwards\n"
        "* share of hits by second, from the moment at which clients are accepted"
    )
    text = table(results, asked)
    print(text)
    if asked.write:
        write_section("Restart", f"{facts}\n\n{text}\n")
    return int(any(each.stale for rounds in results.values() for each in rounds))


if __name__ == "__main__":
    sys.exit(main())
