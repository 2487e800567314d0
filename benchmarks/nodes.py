"""Two nodes on one 3+3 cluster, writers around them, and faults: what clients notice, and whether anything is outdated.

    python benchmarks/nodes.py                                   two nodes, two workers each, five minutes
    python benchmarks/nodes.py --seconds 60 --workers 1          shorter
    python benchmarks/nodes.py --mute validity --seconds 30      a rule is muted: this must fail

Each of a number of tables holds one number, which a writer that knows nothing of the nodes increments now and then.
Readers ask each node for sums over these tables, in all consistencies, and know what had been acknowledged before they
asked: ``strict`` may show nothing older, the others nothing older than the bound. New scopes make sure that L1 does not
have everything. The time is cut into parts:

before     nothing happens
primary    a primary of the cluster is killed, and comes back as a replica at the end of the part
paused     every server of the cluster is stopped (SIGSTOP) for a while
no stream  the change stream of the first node is cut again and again
after      nothing happens any more

Exit 1: a wrong or outdated answer, an error of any client, or too few answers from L3 to prove anything.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers

from distribcache.cli.postgres import Postgres
from distribcache.cli.valkey import Valkey, form_cluster

TABLES = 24
BOUND_S = 1.0
PARTS = {"before": 0.2, "primary": 0.25, "paused": 0.15, "no stream": 0.15, "after": 0.25}
CONSISTENCIES = ("session", "eventual", "strict")
_SCOPES = 3
"""Branches per reader: so many scopes ask for the same sums."""
_STOP, _PART = TABLES, TABLES + 1
_MOST_LINES = 12

Words = Any


@dataclass
class Found:
    """What one process counted, by part."""

    reads: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    writes: int = 0

    def add(self, other: Found) -> None:
        self.reads += other.reads
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.lines += other.lines
        self.writes += other.writes
        for part, times in other.times.items():
            self.times.setdefault(part, []).extend(times)

    def failures(self, most: int) -> list[str]:
        """What was wrong, by kind; how much was read and ``most`` of the wrong answers are printed."""
        print(f"{sum(self.reads.values()):,} reads, {self.writes:,} writes, statuses {dict(self.statuses)}")
        for line in self.lines[:most]:
            print(f"  {line}")
        return [f"{count} × {what}" for what, count in self.wrong.most_common()]


def write(conninfo: str, words: Words, pause: float, number: int) -> Found:
    """Increment tables around the nodes."""
    found, draw = Found(), random.Random(number)
    mine = range(number, TABLES, 2)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while not words[_STOP]:
            table = draw.choice(mine)
            text = f"UPDATE t{table} SET value = value + 1 RETURNING value"
            row = connection.execute(text).fetchone()  # type: ignore[arg-type]
            assert row is not None
            words[table] = row[0]
            found.writes += 1
            time.sleep(pause)
    return found


@dataclass(slots=True)
class Bound:
    """What had been acknowledged when the bound began."""

    history: deque[tuple[float, list[int]]] = field(default_factory=deque)

    def least(self, now: float, known: list[int]) -> list[int]:
        if not self.history or now - self.history[-1][0] > 0.05:
            self.history.append((now, known))
        while len(self.history) > 1 and self.history[1][0] <= now - BOUND_S:
            self.history.popleft()
        return self.history[0][1] if self.history[0][0] <= now - BOUND_S else [0] * TABLES


def read(conninfo: str, words: Words, consistency: str, number: int) -> Found:
    """Ask one node, and compare."""
    found, draw, names = Found(), random.Random(f"{consistency} {number}"), list(PARTS)
    bound = Bound()
    with contextlib.ExitStack() as stack:
        connections = []
        for scope in range(_SCOPES):
            connection = stack.enter_context(psycopg.connect(conninfo, autocommit=True, prepare_threshold=None))
            for name, value in (("consistency", consistency), ("workload", "olap"), ("branch", f"b{scope}")):
                connection.execute(f"SET distribcache.{name} = '{value}'")  # type: ignore[arg-type]
            connections.append(connection)
        count = 0
        while not words[_STOP]:
            part, now = names[words[_PART]], time.monotonic()
            known = words[:TABLES].tolist()
            acknowledged = bound.least(now, known)
            least = known if consistency == "strict" else acknowledged
            connection, table = draw.choice(connections), draw.randrange(TABLES)
            try:
                row = connection.execute(
                    f"SELECT sum(value), max(pad) FROM t{table}"  # type: ignore[arg-type]
                ).fetchone()
            except psycopg.Error as error:
                found.wrong[f"error in part {part}"] += 1
                found.lines.append(f"{part}: {type(error).__name__} {str(error)[:150]}")
                if connection.closed:
                    break
                continue
            found.times.setdefault(part, []).append(time.monotonic() - now)
            found.reads[part] += 1
            if row is None or row[0] < least[table]:
                found.wrong[f"outdated in part {part}"] += 1
                found.lines.append(f"{part}: {consistency}: t{table} {row and row[0]} < {least[table]}")
            count += 1
            if not count % 16:
                told = connection.execute("SHOW distribcache.last").fetchone()
                assert told is not None
                found.statuses[part, f"{told[0]} {told[1] or told[2] or ''}".strip()] += 1
    del found.lines[_MOST_LINES:]
    return found


def ended(how: str) -> Found:
    return Found(wrong=Counter({"a process ended": 1}), lines=[how])


def _sleep_until(end: float) -> None:
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


_CUT = """SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
WHERE active AND slot_name <> ALL(%s)"""


def faults(words: Words, cluster: list[Valkey], server: Postgres, spared: set[str], seconds: float) -> None:
    """Play all parts; ``spared``: the slots of the node whose stream is never cut."""
    at = time.monotonic()
    for number, (part, share) in enumerate(PARTS.items()):
        words[_PART] = number
        end = at = at + share * seconds
        print(f"  {part} ...", flush=True)
        if part == "primary":
            cluster[0].stop()
            _sleep_until(end - 0.2 * share * seconds)
            cluster[0].start()
        elif part == "paused":
            for each in cluster:
                os.kill(each.pid, signal.SIGSTOP)
            try:
                _sleep_until(end - 0.3 * share * seconds)
            finally:
                for each in cluster:
                    os.kill(each.pid, signal.SIGCONT)
        elif part == "no stream":
            with psycopg.connect(server.conninfo(), autocommit=True) as connection:
                while time.monotonic() < end - 0.3 * share * seconds:
                    connection.execute(_CUT, (list(spared),))
                    time.sleep(0.05)
        _sleep_until(end)


def slots_of(server: Postgres) -> set[str]:
    """The replication slots that somebody reads from."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        return {str(row[0]) for row in connection.execute("SELECT slot_name FROM pg_replication_slots WHERE active")}


@contextlib.contextmanager
def three_and_three() -> Iterator[list[Valkey]]:
    """A cluster of three primaries with a replica each."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(Valkey(clustered=True)) for _ in range(6)]
        form_cluster(found)
        yield found


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1000 if times else float("nan")


def report(total: Found) -> None:
    print(f"{'part':<10} {'reads':>9} {'hit ratio':>9} {'from L3':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for part in PARTS:
        told = Counter({status: count for (where, status), count in total.statuses.items() if where == part})
        hits = sum(count for status, count in told.items() if status.startswith("hit"))
        times = total.times.get(part, [])
        print(
            f"{part:<10} {total.reads[part]:>9,} {hits / max(1, told.total()):>9.3f} "
            f"{told['hit L3'] / max(1, told.total()):>8.3f} {quantile(times, 0.5):>8.2f} {quantile(times, 0.99):>8.2f}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=2, help="processes per node")
    parser.add_argument("--readers", type=int, default=3, help="per node; each has a consistency")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between the writes of one of two writers")
    parser.add_argument("--mute", help="a rule of tests/mutes.py that shall not hold")
    asked = parser.parse_args(argv)
    words = memoryview(mmap.mmap(-1, 8 * (TABLES + 2))).cast("Q")
    total = Found()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin()))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-nodes-")))
        cluster = stack.enter_context(three_and_three())
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            for table in range(TABLES):
                connection.execute(
                    f"CREATE TABLE t{table} AS SELECT 0 AS value, repeat('p', 2000) AS pad"  # type: ignore[arg-type]
                )
        settings = {
            "DISTRIBCACHE_L3_PEERS": ", ".join(each.address for each in cluster),
            "DISTRIBCACHE_FRESHNESS_MAX_STALENESS": f"{BOUND_S:g}s",
            "DISTRIBCACHE_LISTEN_WORKERS": str(asked.workers),
            "DISTRIBCACHE_L1_SIZE": "128kB", "DISTRIBCACHE_L1_MAX_ENTRY": "64kB",  # so that L2 has something to do
        }  # fmt: skip
        muted = [sys.executable, servers.HERE.parent / "tests" / "mutes.py", asked.mute, "serve"] if asked.mute else []
        nodes: list[servers.Program] = []
        firsts: set[str] = set()
        for name in ("first", "second"):
            env = {**settings, "DISTRIBCACHE_L2_PATH": str(work / f"{name}-l2")}
            program = servers.distribcache(server.url(), work, command=muted, env=env, name=name)
            nodes.append(stack.enter_context(program))
            servers.wait_serving(nodes[-1])
            firsts = firsts or slots_of(server)
        spared = slots_of(server) - firsts
        results = multiprocessing.get_context("fork").Queue()
        spawn = partial(servers.spawn, results, ended)
        processes = [spawn(write, server.conninfo(), words, asked.pause, number) for number in range(2)]
        for node in nodes:
            for number in range(asked.readers):
                consistency = CONSISTENCIES[number % len(CONSISTENCIES)]
                processes.append(spawn(read, node.conninfo(), words, consistency, number))
        try:
            faults(words, cluster, server, spared, asked.seconds)
        finally:
            words[_STOP] = 1
            for _ in processes:
                total.add(results.get(timeout=120))
            for process in processes:
                process.join(30)
        died = [node.name for node in nodes if not node.alive]
        for node in nodes:
            with psycopg.connect(node.conninfo(), autocommit=True) as connection:
                for row in connection.execute("SHOW distribcache.tiers").fetchall():
                    print(f"  {node.name} {row}")
    report(total)
    failures = total.failures(_MOST_LINES) + [f"{name} died" for name in died]
    shared = sum(count for (_, status), count in total.statuses.items() if status == "hit L3")
    failures += [f"only {shared} of the sampled answers came from L3"] * (shared < 5)
    print("FAILED: " + "; ".join(failures) if failures else "ok: no error, and no answer was older than promised")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
