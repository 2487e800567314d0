"""What following the change stream costs: the primary under TPC-B, and everybody during a million-row UPDATE.

    python benchmarks/following.py                     both parts
    python benchmarks/following.py --part bulk --rows 1000000
    python benchmarks/following.py --part tpcb --rounds 5 --seconds 5

tpcb   pgbench's TPC-B with 4 clients on PostgreSQL itself, with and without a distribcache that follows its database
       and has traffic, taking turns: the ratio of transactions per second.
bulk   One client asks through the proxy, without pause, for a row of another table and then for SHOW distribcache.last,
       which the proxy answers by itself: its slowest answer bounds how long the event loop stood still. Meanwhile one
       UPDATE changes every row of a big table. How long were reads of the other table not answered from memory, why,
       and when were they again?
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.report import write_section
from benchmarks.run import SERVER
from benchmarks.workloads import read_report

from distribcache.cli.postgres import Postgres

CLIENTS = 4


@dataclass(slots=True)
class Watcher:
    """Reads and looks at what became of each read. Times are perf_counter seconds."""

    conninfo: str
    ending: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[float, str, str]] = field(default_factory=list)
    """Sent at, status, reason."""
    local: list[tuple[float, float]] = field(default_factory=list)
    """Sent at, seconds that the proxy took for an answer of its own."""

    def run(self) -> None:
        with psycopg.connect(self.conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            while not self.ending.is_set():
                sent = time.perf_counter()
                connection.execute("SELECT value FROM other WHERE id = 1").fetchone()
                asked = time.perf_counter()
                row: Any = connection.execute("SHOW distribcache.last").fetchone()
                self.local.append((asked, time.perf_counter() - asked))
                self.seen.append((sent, row[0], row[2] or ""))
                if self.ending.wait(0.001):
                    break

    def hits_since(self, at: float) -> bool:
        """Have the last hundred reads all been hits, and were they all sent after ``at``?"""
        last = self.seen[-100:]
        return len(last) == 100 and last[0][0] > at and all(status == "hit" for _, status, _ in last)


def _until(what: Any, seconds: float = 300.0) -> None:
    deadline = time.perf_counter() + seconds
    while not what():
        if time.perf_counter() > deadline:
            raise RuntimeError("it never came to that")
        time.sleep(0.01)


def bulk(server: Postgres, proxy: servers.Program, rows: int) -> str:
    """See the module."""
    with psycopg.connect(server.conninfo(), autocommit=True) as direct:
        direct.execute("CREATE TABLE big (id int PRIMARY KEY, value int)")
        direct.execute("INSERT INTO big SELECT i, 0 FROM generate_series(1, %s) i", [rows])
        direct.execute("CREATE TABLE other (id int PRIMARY KEY, value int)")
        direct.execute("INSERT INTO other SELECT i, 0 FROM generate_series(1, 100) i")
        watcher = Watcher(proxy.conninfo())
        thread = threading.Thread(target=watcher.run, daemon=True)
        thread.start()
        _until(lambda: watcher.hits_since(0.0))
        time.sleep(2.0)
        before = max(seconds for _, seconds in watcher.local[-500:])
        began = time.perf_counter()
        direct.execute("UPDATE big SET value = value + 1")
        committed = time.perf_counter()
        _until(lambda: watcher.hits_since(committed))
        time.sleep(2.0)
        _until(lambda: watcher.hits_since(time.perf_counter() - 1.0))
        watcher.ending.set()
        thread.join()
    reads = [each for each in watcher.seen if each[0] >= began]
    others = [each for each in reads if each[1] != "hit"]
    stall = max(seconds for at, seconds in watcher.local if at >= began)
    text = (
        f"UPDATE of {rows:,} rows in {committed - began:.1f} s: slowest answer of the proxy's own {stall * 1000:.1f} ms"
        f" ({before * 1000:.1f} ms in the two seconds before)"
    )
    if not others:
        return text + f"; all {len(reads):,} reads of the other table came from memory"
    why = collections.Counter(f"{status} {reason}".strip() for _, status, reason in others)
    causes = ", ".join(f"{reason}: {count:,}" for reason, count in why.most_common(4))
    return text + (
        f"; reads of the other table were not from memory from {others[0][0] - committed:+.2f} s to "
        f"{others[-1][0] - committed:+.2f} s of the commit ({causes}), "
        f"{len(reads) - len(others):,} of {len(reads):,} were"
    )


def tpcb(server: Postgres, work: Path, rounds: int, seconds: float) -> str:
    """See the module."""
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]

    def pgbench(*arguments: str) -> str:
        done = subprocess.run(
            [server.binary("pgbench"), *where, *arguments, "postgres"], capture_output=True, text=True, check=True
        )
        return done.stdout

    pgbench("-i", "-q", "-s", "5")
    alone: list[float] = []
    followed: list[float] = []

    def measure(into: list[float]) -> None:
        into.append(read_report(pgbench("-n", "-c", str(CLIENTS), "-j", "2", "-T", str(round(seconds)))).tps)

    for _ in range(rounds):
        measure(alone)
        with servers.distribcache(server.url(), work, name="following") as proxy:
            ending = threading.Event()
            thread = threading.Thread(target=_traffic, args=(proxy.conninfo(), ending), daemon=True)
            thread.start()
            time.sleep(2.0)
            measure(followed)
            ending.set()
            thread.join()
    ratios = [b / a for a, b in zip(alone, followed, strict=True)]
    return (
        f"TPC-B on the primary, {CLIENTS} clients: {median(alone):,.0f} transactions a second alone, "
        f"{median(followed):,.0f} while followed: {median(ratios):.2f}× (rounds "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}; the follower runs on the same cores)"
    )


def _traffic(conninfo: str, ending: threading.Event) -> None:
    """Now and then a read, so that the database counts as used."""
    with psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        while not ending.wait(0.1):
            connection.execute("SELECT bbalance FROM pgbench_branches WHERE bid = 1").fetchone()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["tpcb", "bulk"], action="append")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    asked = parser.parse_args(argv)
    lines = []
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-following-")))
        work.chmod(0o755)
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin(), options=SERVER))
        try:
            if "tpcb" in (asked.part or ["tpcb", "bulk"]):
                lines.append(tpcb(server, work, asked.rounds, asked.seconds))
                print(lines[-1], flush=True)
            if "bulk" in (asked.part or ["tpcb", "bulk"]):
                lines.append(bulk(server, stack.enter_context(servers.distribcache(server.url(), work)), asked.rows))
                print(lines[-1], flush=True)
        except RuntimeError as error:
            print(error)
            return 3
    if asked.write:
        write_section("What following costs", "\n".join(f"* {line}" for line in lines))
    return 0


if __name__ == "__main__":
    # A polite end by whoever started us must stop our servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
