"""95 reads to 5 writes by key on a table of 100,000 rows, the writes from outside: what does the cache still answer?

    python benchmarks/mixed.py                   direct, distribcache, the same without row tags, and pgpool-II
    python benchmarks/mixed.py --rounds 3 --seconds 10 --write

Readers are pgbench through each target; the writer is pgbench on PostgreSQL itself, at a rate that makes its updates
5 % of all statements of that target. Every key is warm before the first round. While distribcache is measured, a
checker writes rows of its own directly and reads them through the proxy: an answer older than the newest value
acknowledged ``max_staleness`` (1 s) before the read was sent is stale, and one such makes the exit status 1.

The targets take turns inside every round, each with a table of its own: what is written in another's turn would be no
part of its mix. A figure is the median of its rounds. pgpool-II does not hear of writes from outside at all and its
answers grow stale, which is why a column says how many of a thousand rows were wrong at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.report import machine, write_section
from benchmarks.run import SERVER
from benchmarks.workloads import Measured, read_report

from distribcache.cli.postgres import Postgres

ROWS = 100_000
BOUND_S = 1.0
CHECKED = 50
READ = "SELECT abalance FROM {table} WHERE aid = {aid};"
READ_SCRIPT = f"\\set aid random(1, {ROWS})\n" + READ.replace("{aid}", ":aid") + "\n"
WRITE_SCRIPT = (
    f"\\set aid random({CHECKED + 1}, {ROWS})\n"
    "UPDATE {table} SET abalance = abalance + 1 WHERE aid = :aid;\n"
)
COPY = "CREATE TABLE {table} (LIKE pgbench_accounts INCLUDING ALL); INSERT INTO {table} SELECT * FROM pgbench_accounts"
LONG_LIVED = {"DISTRIBCACHE_TTL_OLTP": "1h"}
"""Between two of its rounds a target rests for longer than the usual 60 s: nothing but writes should end an answer."""
TABLE_LEVEL = Path(__file__).with_name("table_level.py")


@dataclass(slots=True)
class Target:
    port: int
    table: str
    """Its own: what is written in another target's turn is no part of this one's mix."""
    proxy: servers.Program | None = None
    rate: float = 0.0
    """Updates per second from outside."""
    runs: list[Measured] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """Of all statements of a round, those that wrote."""

    @property
    def tps(self) -> float:
        return median(run.tps for run in self.runs)


class Checker(threading.Thread):
    """Writes a few rows directly and reads them through the proxy; see the module. Times are perf_counter seconds."""

    def __init__(self, direct: str, through: str, table: str) -> None:
        super().__init__(daemon=True)
        self.table = table
        self.reads = 0
        self.stale: list[str] = []
        self.ending = threading.Event()
        self._direct, self._through = direct, through

    def run(self) -> None:
        history: dict[int, list[tuple[float, int]]] = {}
        with (
            psycopg.connect(self._direct, autocommit=True) as writer,
            psycopg.connect(self._through, autocommit=True, cursor_factory=psycopg.ClientCursor) as reader,
        ):
            for row in range(1, CHECKED + 1):
                found = writer.execute(READ.format(table=self.table, aid=row).encode()).fetchone()
                assert found is not None
                history[row] = [(0.0, found[0])]
            while not self.ending.is_set():
                row = random.randint(1, CHECKED)
                if random.random() < 0.2:
                    value = history[row][-1][1] + 1
                    writer.execute(f"UPDATE {self.table} SET abalance = {value} WHERE aid = {row}".encode())
                    history[row].append((time.perf_counter(), value))
                sent = time.perf_counter()
                answer = reader.execute(READ.format(table=self.table, aid=row)).fetchone()
                least = max(value for at, value in history[row] if at <= max(0.0, sent - BOUND_S))
                self.reads += 1
                if answer is None or answer[0] < least:
                    self.stale.append(f"row {row}: {answer} < {least}")
                self.ending.wait(0.002)


def _pgbench(server: Postgres, port: int, arguments: Sequence[str]) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    where = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
    done = subprocess.run(
        [server.binary("pgbench"), *where, *arguments, "postgres"], env={**clean, "PGSSLMODE": "disable"},
        capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if "tps = " not in done.stdout and done.returncode != 0:
        raise RuntimeError(" | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]))
    return done.stdout


def _followed(proxy: servers.Program) -> None:
    """Wait until the proxy has caught up with the loading of the table: before that, nothing is kept."""
    with psycopg.connect(proxy.conninfo(), autocommit=True) as connection:
        while True:
            connection.execute("SELECT count(*) FROM pgbench_branches")
            facts = dict(connection.execute("SHOW distribcache.freshness").fetchall())
            if facts["serving"] == "True" and facts["lag_bytes"] == "0":
                return
            time.sleep(0.2)


def _warm(target: Target) -> None:
    """Ask for every key once."""

    def some(first: int) -> None:
        conninfo = f"host=127.0.0.1 port={target.port} user=postgres dbname=postgres sslmode=disable"
        with psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            for aid in range(first, ROWS + 1, 4):
                connection.execute(READ.format(table=target.table, aid=aid).encode())

    threads = [threading.Thread(target=some, args=(first,)) for first in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(server: Postgres, target: Target, asked: argparse.Namespace, work: Path) -> None:
    """One round of one target: readers through it, the writer beside it."""
    scripts = {"read": work / "read.sql", "write": work / "write.sql"}
    scripts["read"].write_text(READ_SCRIPT.format(table=target.table))
    scripts["write"].write_text(WRITE_SCRIPT.format(table=target.table))
    load: subprocess.Popen[bytes] | None = None
    seconds = str(round(asked.seconds))
    written = _written(server, target)
    if target.rate:
        load = subprocess.Popen(
            [
                server.binary("pgbench"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-n", "-c", "2",
                "-R", str(round(target.rate)), "-T", str(round(asked.seconds) + 2), "-f", scripts["write"], "postgres",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        before = servers.stats(target.proxy) if target.proxy else {}
        arguments = ["-n", "-M", "simple", "-c", str(asked.clients), "-j", "2", "-T", seconds]
        target.runs.append(read_report(_pgbench(server, target.port, [*arguments, "-f", str(scripts["read"])])))
        after = servers.stats(target.proxy) if target.proxy else {}
    finally:
        if load is not None:
            load.terminate()
            load.wait()
    written = _written(server, target) - written
    target.shares.append(written / (written + target.runs[-1].tps * asked.seconds))
    target.rate = target.runs[-1].tps * 5 / 95
    if target.proxy is not None:
        hits, misses = (after[key] - before[key] for key in ("hits_total", "misses_total"))
        target.ratios.append(hits / max(1.0, hits + misses))


def _written(server: Postgres, target: Target) -> int:
    """How many updates there have been: each adds one."""
    with psycopg.connect(server.conninfo(), autocommit=True) as direct:
        found = direct.execute(f"SELECT sum(abalance) FROM {target.table}".encode()).fetchone()
    assert found is not None
    return int(found[0])


def _wrong(server: Postgres, target: Target) -> int:
    """How many of a thousand rows are answered otherwise than PostgreSQL does."""
    through = f"host=127.0.0.1 port={target.port} user=postgres dbname=postgres sslmode=disable"
    with (
        psycopg.connect(server.conninfo(), autocommit=True) as direct,
        psycopg.connect(through, autocommit=True, cursor_factory=psycopg.ClientCursor) as other,
    ):
        texts = [READ.format(table=target.table, aid=aid).encode() for aid in range(CHECKED + 1, CHECKED + 1001)]
        return sum(direct.execute(each).fetchone() != other.execute(each).fetchone() for each in texts)


def _measure(
    server: Postgres, targets: dict[str, Target], asked: argparse.Namespace, work: Path
) -> tuple[int, list[str]]:
    reads, stale = 0, []
    for name, target in targets.items():
        if name != "direct":
            print(f"warming {name} …", flush=True)
            if target.proxy is not None:
                _followed(target.proxy)
            _warm(target)
    for name, target in targets.items():  # how fast it reads decides how fast must be written in its next round
        for _ in range(2):
            _run(server, target, asked, work)
        target.runs.clear()
        target.ratios.clear()
        target.shares.clear()
        print(f"{name}: {target.rate:,.0f} updates a second beside it", flush=True)
    names = list(targets)
    for number in range(asked.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            checker = None
            if name == "distribcache":
                through = f"host=127.0.0.1 port={targets[name].port} user=postgres dbname=postgres sslmode=disable"
                checker = Checker(server.conninfo(), through, targets[name].table)
                checker.start()
            _run(server, targets[name], asked, work)
            if checker is not None:
                checker.ending.set()
                checker.join()
                reads += checker.reads
                stale += checker.stale
    return reads, stale


def _report(targets: dict[str, Target], wrong: dict[str, int], reads: int, stale: list[str]) -> str:
    base = targets["direct"].tps
    lines = ["| target | reads/s | ÷ direct | writes | hit ratio | wrong of 1,000 rows at the end |", "|---" * 6 + "|"]
    for name, target in targets.items():
        ratio = f"{median(target.ratios):.1%}" if target.ratios else "–"
        speed = f"{target.tps:,.0f} | {target.tps / base:.2f}× | {median(target.shares):.1%}"
        lines.append(f"| {name} | {speed} | {ratio} | {wrong.get(name, '–')} |")
    if "pgpool" in targets:
        lines += ["", f"distribcache ÷ pgpool: {targets['distribcache'].tps / targets['pgpool'].tps:.2f}×"]
    return "\n".join([*lines, "", f"Answers older than the bound: {len(stale)} of {reads:,} checked reads."])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    asked = parser.parse_args(argv)
    asked.scale = 1
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-mixed-")))
        work.chmod(0o755)
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin(), options=SERVER))
        _pgbench(server, server.port, ["-i", "-q", "-s", "1"])
        tables = ("of_direct", "of_rows", "of_tables", "of_pgpool")
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            for table in tables:
                connection.execute(COPY.format(table=table).encode())
                connection.execute(f"VACUUM ANALYZE {table}".encode())
        targets = {"direct": Target(server.port, tables[0])}
        try:
            for name, table, command in (
                ("distribcache", tables[1], ()), ("table level", tables[2], (sys.executable, TABLE_LEVEL, "serve")),
            ):  # fmt: skip
                proxy = stack.enter_context(
                    servers.distribcache(
                        server.url(), work, command=command, name=name.replace(" ", "-"), env=LONG_LIVED
                    )
                )
                targets[name] = Target(proxy.port, table, proxy)
        except RuntimeError as error:
            print(error)
            return 3
        if servers.which("pgpool") is not None:
            with contextlib.suppress(RuntimeError):
                targets["pgpool"] = Target(
                    stack.enter_context(servers.pgpool(server.port, work)).port, tables[3]
                )
        reads, stale = _measure(server, targets, asked, work)
        wrong = {name: _wrong(server, target) for name, target in targets.items() if name != "direct"}
        facts = machine(server, ROWS, asked, sys.argv)
    text = _report(targets, wrong, reads, stale)
    print("\n" + facts + "\n\n" + text)
    for line in stale[:5]:
        print("stale:", line)
    if asked.write:
        write_section("95 reads to 5 writes by key", facts + "\n\n" + text)
    return 1 if stale or wrong["distribcache"] else 0


if __name__ == "__main__":
    # A polite end by whoever started us must stop our servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
