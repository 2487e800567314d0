"""How long after a commit elsewhere is the old answer still served? Measured, not derived.

    python benchmarks/commit_lag.py                    an idle server
    python benchmarks/commit_lag.py --busy             while pgbench's TPC-B runs in another table
    python benchmarks/commit_lag.py --port P --url U   a proxy that already runs

A writer connected to PostgreSQL directly commits the next version of one row. A reader in ``eventual`` consistency asks
for it through the proxy without pause, so that the answer is hot. The lag of a commit is the time from its
acknowledgement to the *sending* of the last read that still got an older version: later reads never do. Zero means that
the first read sent after the acknowledgement had it. A lag beyond --limit-ms at the 99th percentile exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.report import write_section

from distribcache.cli.postgres import Postgres

READ = "SELECT version FROM lag_row WHERE id = 1"


class Reader(threading.Thread):
    """Asks without pause; keeps (sent at, version) of every answer. Times are perf_counter seconds."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[float, int]] = []
        self.newest = -1
        self.error: Exception | None = None
        self.ending = threading.Event()
        self._conninfo = conninfo

    def run(self) -> None:
        try:
            with psycopg.connect(self._conninfo, autocommit=True) as connection:
                cursor = psycopg.ClientCursor(connection)
                while not self.ending.is_set():
                    sent = time.perf_counter()
                    row = cursor.execute(READ).fetchone()
                    assert row is not None
                    self.newest = row[0]
                    self.answers.append((sent, self.newest))
        except psycopg.Error as error:
            self.error = error


def lags(commits: Sequence[tuple[float, int]], answers: Sequence[tuple[float, int]]) -> list[float]:
    """Seconds of lag per commit: from its acknowledgement to the sending of the last read that got an older version."""
    found, at = [], 0
    for number, (acknowledged, version) in enumerate(commits):
        until = commits[number + 1][0] if number + 1 < len(commits) else float("inf")
        last = acknowledged
        while at < len(answers) and answers[at][0] < until:
            if answers[at][0] > acknowledged and answers[at][1] < version:
                last = answers[at][0]
            at += 1
        found.append(last - acknowledged)
    return found


def _measure(direct: str, through: str, commits: int, pause: float) -> tuple[list[float], int]:
    with psycopg.connect(direct, autocommit=True) as writer:
        writer.execute("DROP TABLE IF EXISTS lag_row")
        writer.execute("CREATE TABLE lag_row (id int PRIMARY KEY, version int NOT NULL)")
        writer.execute("INSERT INTO lag_row VALUES (1, 0)")
        reader = Reader(through)
        reader.start()
        time.sleep(3.0)
        done: list[tuple[float, int]] = []
        for version in range(1, commits + 1):
            writer.execute("UPDATE lag_row SET version = %s WHERE id = 1", [version])
            done.append((time.perf_counter(), version))
            deadline = time.perf_counter() + 30
            while reader.newest < version and reader.is_alive() and time.perf_counter() < deadline:
                time.sleep(0.0005)
            time.sleep(pause)
        reader.ending.set()
        reader.join(10)
        if reader.error is not None:
            raise RuntimeError(f"the reader failed: {reader.error}")
        if reader.newest < commits:
            raise RuntimeError(f"version {commits} was never seen: the last answer was {reader.newest}")
        return lags(done, reader.answers), len(reader.answers)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between commits")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--url", default="")
    parser.add_argument("--limit-ms", type=float, default=0.0, help="fail when the 99th percentile is above it")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args(argv)
    options = "options='-c distribcache.consistency=eventual'"
    with contextlib.ExitStack() as stack:
        port, direct = asked.port, asked.url
        before = after = {}
        if not port:
            server = stack.enter_context(Postgres(bin_dir=servers.pg_bin(), options={"fsync": "on"}))
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-lag-")))
            try:
                port = stack.enter_context(servers.distribcache(server.url(), work)).port
            except RuntimeError as error:
                print(error)
                return 3
            direct = server.url()
            if asked.busy:
                where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres"]
                pgbench = server.binary("pgbench")
                subprocess.run([pgbench, *where, "-i", "-q", "-s", "5", "postgres"], check=True, capture_output=True)
                load = subprocess.Popen(
                    [pgbench, *where, "-c", "4", "-T", "3600", "postgres"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
                stack.callback(load.wait)
                stack.callback(load.terminate)
        through = f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable"
        before = servers.stats(through)
        try:
            found, reads = _measure(direct, f"{through} {options}", asked.commits, asked.pause)
        except RuntimeError as error:
            print(f"FAILED: {error}")
            return 1
        after = servers.stats(through)
    hits = after.get("hits_total", 0) - before.get("hits_total", 0)
    cuts = quantiles([each * 1000 for each in found], n=100)
    text = (
        f"{'busy' if asked.busy else 'idle'} server, {len(found)} commits, {reads:,} reads of which {hits / reads:.1%} "
        f"from memory: p50 {cuts[49]:.2f} ms, p90 {cuts[89]:.2f}, p99 {cuts[98]:.2f}, most {max(found) * 1000:.2f}; "
        f"{sum(each == 0 for each in found) / len(found):.0%} of the commits were in the first read after them"
    )
    print(text)
    if asked.write:
        write_section(f"commit to no longer served, {'busy' if asked.busy else 'idle'}", "* " + text)
    return 1 if asked.limit_ms and cuts[98] > asked.limit_ms else 0


if __name__ == "__main__":
    # A polite end by whoever started us must stop our servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
