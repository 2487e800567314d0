"""``make bench``: pgbench against PostgreSQL itself, distribcache, PgBouncer and pgpool-II, as ratios in one run.

    python benchmarks/run.py                              everything, some fifteen minutes
    python benchmarks/run.py --quick                      two rounds of a second: shows that it works, not how fast
    python benchmarks/run.py --workload point --clients 8 --rounds 5
    python benchmarks/run.py --write                      also put the tables into benchmarks/RESULTS.md

Rules: the targets take turns inside every round, and the turn order rotates, so that what else the machine does hurts
all alike. A figure is the median of its rounds, and only ratios inside one run mean anything. What is warm is warmed
before the first round and checked by the proxy's own counters: the hit ratio stands beside the figure. Everything
listens on loopback on free ports and is stopped by process id at the end. Exit 3: distribcache did not start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.report import machine, tables, write_section
from benchmarks.workloads import COMPILED, WORKERS, WORKLOADS, Measured, Workload, read_report

from distribcache.cli.postgres import Postgres

SERVER = {"max_connections": "1400", "shared_buffers": "512MB", "fsync": "on", "full_page_writes": "on",
          "max_wal_size": "4GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
MANY = 100
OURS = ("distribcache", COMPILED, WORKERS)
HITS, MISSES = "hits_total", "misses_total"


@dataclass(slots=True)
class Cell:
    """All rounds of one target on one workload with one number of clients."""

    runs: list[Measured] = field(default_factory=list)
    hits: float = 0.0
    lookups: float = 0.0
    why: str = ""

    @property
    def tps(self) -> float:
        return median(run.tps for run in self.runs) if self.runs else 0.0

    @property
    def latency_ms(self) -> float:
        return median(run.latency_ms for run in self.runs) if self.runs else 0.0

    @property
    def hit_ratio(self) -> float | None:
        return self.hits / self.lookups if self.lookups else None


Results = dict[tuple[str, int], dict[str, Cell]]


class Bench:
    """The targets that are up, and pgbench."""

    def __init__(self, server: Postgres, asked: argparse.Namespace, work: Path) -> None:
        self.server, self.asked, self.work = server, asked, work
        self.ports: dict[str, int] = {}
        self.proxies: dict[str, servers.Program] = {}
        self.missing: dict[str, str] = {}
        self.scripts: dict[str, Path] = {}
        self.rows = 0

    def start(self, stack: contextlib.ExitStack, wanted: Sequence[str]) -> None:
        """Start every wanted target. Raises RuntimeError when distribcache does not start: others are left out, and it
        is said.
        """
        self.ports["direct"] = self.server.port
        for name in (name for name in OURS if name in wanted):
            arguments, env = shlex.split(self.asked.serve_args), {}
            if name == WORKERS:
                arguments += ["--workers", "2"]
            if name == COMPILED:
                try:
                    env["PYTHONPATH"] = str(servers.compiled_package(self.work))
                except RuntimeError as error:
                    self.missing[name] = str(error)
                    continue
            program = servers.distribcache(self.server.url(), self.work, arguments=arguments, env=env, name=name)
            self.proxies[name] = stack.enter_context(program)
            self.ports[name] = program.port
        for name, make in (("pgbouncer", servers.pgbouncer), ("pgpool", servers.pgpool)):
            if name not in wanted:
                continue
            if servers.which(name) is None:
                self.missing[name] = "not installed"
                continue
            try:
                self.ports[name] = stack.enter_context(make(self.server.port, self.work)).port
            except RuntimeError as error:
                self.missing[name] = str(error)
        if "canned" in wanted:
            program = servers.canned(self.work)
            if program is None:
                self.missing["canned"] = "no C compiler, or no epoll"
            else:
                self.ports["canned"] = stack.enter_context(program).port

    def prepare(self) -> None:
        """Tables, the size of the 100 ms aggregate, and the scripts."""
        scale = self.asked.scale
        self._pgbench(self.server.port, ["-i", "-q", "-s", str(scale)])
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            self.rows = _calibrate(connection, 100_000 * scale, WORKLOADS["aggregate"].script)
        for workload in WORKLOADS.values():
            if workload.script:
                path = self.work / f"{workload.name}.sql"
                path.write_text(workload.script.format(scale=scale, rows=self.rows))
                self.scripts[workload.name] = path

    def measure(self, workload: Workload, clients: int) -> dict[str, Cell]:
        """All rounds of all targets, taking turns."""
        names = [n for n in workload.targets if n in self.ports and not (n == "pgpool" and clients > 64)]
        cells = {name: Cell() for name in names}
        if workload.warm:
            for name in names:
                self._warm(name, workload)
        for number in range(self.asked.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                cell = cells[name]
                if cell.why:
                    continue
                before = self._counters(name)
                try:
                    cell.runs.append(self._one(name, workload, clients, self.asked.seconds * workload.seconds))
                except (ValueError, subprocess.TimeoutExpired) as error:
                    cell.why = str(error)[:300]
                after = self._counters(name)
                hits, misses = (after.get(key, 0) - before.get(key, 0) for key in (HITS, MISSES))
                cell.hits += hits
                cell.lookups += hits + misses
        return cells

    def _warm(self, name: str, workload: Workload) -> None:
        """Ask everything once or more, and where the proxy counts hits, until a run has hardly a miss."""
        for _ in range(6):
            before = self._counters(name)
            with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
                self._one(name, workload, 4, 1.0)
            after = self._counters(name)
            hits, misses = (after.get(key, 0) - before.get(key, 0) for key in (HITS, MISSES))
            if name not in self.proxies or hits > 50 * misses:
                return

    def _one(self, name: str, workload: Workload, clients: int, seconds: float) -> Measured:
        jobs = min(clients, os.cpu_count() or 1)
        arguments = ["-n", "-M", workload.protocol, "-c", str(clients), "-j", str(jobs)]
        if clients <= MANY:
            arguments += ["-T", str(max(1, round(seconds)))]
        else:
            # The time of -T runs while clients still connect: with many of them nothing of it would be left.
            arguments += ["-t", str(max(10, round(15_000 * seconds / clients)))]
        if workload.name in self.scripts:
            arguments += ["-f", str(self.scripts[workload.name])]
        options = workload.options if name in self.proxies else ""
        return read_report(self._pgbench(self.ports[name], arguments, options, limit_s=seconds * 5 + 120))

    def _pgbench(self, port: int, arguments: Sequence[str], options: str = "", limit_s: float = 600.0) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        done = subprocess.run(
            [self.server.binary("pgbench"), *where, *arguments, "postgres"],
            env={**clean, "PGSSLMODE": "disable", **({"PGOPTIONS": options} if options else {})},
            capture_output=True, text=True, check=False, timeout=limit_s, stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0 and "tps = " not in done.stdout:
            raise ValueError(" | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
        return done.stdout

    def _counters(self, name: str) -> dict[str, float]:
        return servers.stats(self.proxies[name]) if name in self.proxies else {}


def _calibrate(
    connection: psycopg.Connection[tuple[object, ...]], rows: int, script: str, *, wanted_s: float = 0.1
) -> int:
    """How many rows make the aggregate take about ``wanted_s`` seconds on this machine."""
    most = rows
    for _ in range(4):
        took: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            connection.execute(script.format(rows=rows).encode()).fetchall()
            took.append(time.perf_counter() - began)
        factor = wanted_s / median(took)
        if 0.85 < factor < 1.15:
            break
        rows = max(1000, min(most, int(rows * factor)))
    return rows


def _words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="", help="some of " + ",".join(WORKLOADS))
    parser.add_argument("--target", default="direct,distribcache,distribcache-compiled,pgbouncer,pgpool,canned")
    parser.add_argument("--clients", default="", help="numbers of clients instead of each workload's own")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=10, help="pgbench scale: 100,000 accounts each")
    parser.add_argument("--serve-args", default="", help="more options for distribcache serve")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    asked = parser.parse_args(argv)
    if asked.quick:
        asked.seconds, asked.rounds, asked.scale = 1.0, 2, min(asked.scale, 5)
    bin_dir = servers.pg_bin()
    if bin_dir is None:
        print("no PostgreSQL server is installed on this machine (Debian: apt install postgresql)")
        return 3
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    results: Results = {}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-bench-")))
        work.chmod(0o755)
        server = stack.enter_context(Postgres(bin_dir=bin_dir, options=SERVER))
        bench = Bench(server, asked, work)
        try:
            bench.prepare()
            bench.start(stack, _words(asked.target))
        except RuntimeError as error:
            print(error)
            return 3
        for name, why in bench.missing.items():
            print(f"left out: {name}: {why}")
        for name in _words(asked.workload) or WORKLOADS:
            workload = WORKLOADS[name]
            for clients in [int(part) for part in _words(asked.clients)] or workload.clients:
                if clients * 2 + 200 > files:
                    print(f"left out: {clients} clients: ulimit -n is {files}")
                    continue
                print(f"{name}, {clients} client{'s' if clients > 1 else ''}…", flush=True)
                results[name, clients] = bench.measure(workload, clients)
        facts = machine(server, bench.rows, asked, sys.argv)
    text = tables(results, asked.rounds)
    print("\n" + facts + "\n\n" + text)
    if asked.json:
        Path(asked.json).write_text(json.dumps({
            f"{name}/{clients}/{target}": {"tps": cell.tps, "latency_ms": cell.latency_ms, "hit_ratio": cell.hit_ratio}
            for (name, clients), cells in results.items() for target, cell in cells.items()
        }, indent=1))
    if asked.write:
        write_section("pgbench", facts + "\n\n" + text)
    return 0


if __name__ == "__main__":
    # A polite end by whoever started us must stop our servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
