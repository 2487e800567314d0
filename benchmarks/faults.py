"""One node under load while what it stands on dies, one thing after the other: what clients notice, and is it right?

    python benchmarks/faults.py                              all parts, some two minutes
    python benchmarks/faults.py --part disk,immediate        some of them; "before" and "after" always are
    python benchmarks/faults.py --mute validity              a rule is muted: this must fail

The node has two workers, L2 on a small file system of its own, one Valkey server, and a persistent slot. Each of a
number of tables holds one number that only grows. One writer knows nothing of the node, another writes through it and
reads its own writes. Readers ask in all consistencies and know what had been acknowledged before they asked: ``strict``
may show nothing older, the others nothing older than the bound. Nor may anything be newer than a write in flight and
one whose client was lost.

before     nothing happens
disk       the file system of L2 is filled to the last byte, and emptied later
valkey     the Valkey server is killed, and started anew
worker     each worker is killed in its turn
kill       all processes of the node are killed, and it is started anew with what L2 and the slot have kept
fast       PostgreSQL is restarted, its clients are told
immediate  PostgreSQL is restarted as by a crash
promotion  PostgreSQL dies, and its address leads to a standby that is promoted
after      nothing happens any more

A client may see an error only where a server connection or a process that served it has died, and only one that says
so. After each part hits must come back. Exit 1: a wrong or outdated answer, another error, or no more hits.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.nodes import BOUND_S, CONSISTENCIES, TABLES, Bound, Found, Words, ended, quantile
from tests.relay import Relay

from distribcache.cli.postgres import Postgres
from distribcache.cli.valkey import Valkey

PARTS = ("before", "disk", "valkey", "worker", "kill", "fast", "immediate", "promotion", "after")
_STOP, _PART = TABLES, TABLES + 1
_MOST_LINES = 12
_BACK_S = 90.0
"""Hits must be back by then, however busy the machine is."""
_LOST = r"closed the connection unexpectedly|[Cc]onnection (?:refused|reset)|[Bb]roken pipe|connection is lost"
_SERVER = (
    _LOST + "|terminating connection|the database system is (?:starting up|shutting down|not yet accepting|in recovery)"
    "|cannot reach PostgreSQL|closed its connection"
)
_MAY = {
    "worker": _LOST, "kill": _LOST + "|terminating connection", "fast": _SERVER, "immediate": _SERVER,
    "promotion": _SERVER,
}  # fmt: skip


class Client:
    """A connection that is opened anew when it is lost; every error is counted, and said where it may not be."""

    def __init__(self, conninfo: str, words: Words, found: Found, settings: Sequence[str] = ()) -> None:
        self._conninfo, self._words, self._found, self._settings = conninfo, words, found, settings
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def ask(self, text: str, *, prepare: bool | None = None) -> tuple[Any, ...] | None:
        """The first row; None when there was an error, after a short rest."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=30)
                for each in self._settings:
                    self._connection.execute(each.encode())
            return self._connection.execute(text.encode(), prepare=prepare).fetchone()
        except psycopg.Error as error:
            part, said = PARTS[self._words[_PART]], " ".join(str(error).split())
            if re.search(_MAY.get(part, "(?!)"), said):
                self._found.statuses[part, "an error that may be"] += 1
            else:
                self._found.wrong[f"error in part {part}"] += 1
                self._found.lines.append(f"{part}: {type(error).__name__} {error.sqlstate} {said[:250]}")
            time.sleep(0.05)
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def write(conninfo: str, words: Words, number: int, pause: float, through: bool) -> Found:
    """Increment our tables. Whether a write was done whose answer is lost is asked before the next one."""
    found, draw, known = Found(), random.Random(number), set[int]()
    client = Client(conninfo, words, found if through else Found())
    while not words[_STOP]:
        table = draw.randrange(number, TABLES, 2)
        if table not in known:
            row = client.ask(f"SELECT value FROM t{table} FOR UPDATE")
        else:
            row = client.ask(f"UPDATE t{table} SET value = value + 1 RETURNING value")
        if row is None:
            known.discard(table)
            continue
        known.add(table)
        words[table] = row[0]
        found.writes += 1
        told = client.ask(f"SELECT sum(value), max(pad) FROM t{table}") if through else None
        if told is not None and told[0] < row[0]:
            found.wrong["own write not read"] += 1
            found.lines.append(f"{PARTS[words[_PART]]}: t{table} {told[0]} instead of {row[0]}")
        time.sleep(pause)
    client.close()
    return found


def read(conninfo: str, words: Words, consistency: str, number: int) -> Found:
    """Ask the node, and compare."""
    found, draw, bound = Found(), random.Random(f"{consistency} {number}"), Bound()
    settings = [f"SET distribcache.consistency = '{consistency}'", f"SET distribcache.branch = 'b{number}'"]
    client, count = Client(conninfo, words, found, settings), 0
    while not words[_STOP]:
        part, now, known = PARTS[words[_PART]], time.monotonic(), words[:TABLES].tolist()
        least, table = bound.least(now, known), draw.randrange(TABLES)
        row = client.ask(f"SELECT sum(value), max(pad) FROM t{table}", prepare=draw.random() < 0.5)
        if row is None:
            continue
        found.times.setdefault(part, []).append(time.monotonic() - now)
        found.reads[part] += 1
        wanted, told, most = known[table] if consistency == "strict" else least[table], row[0], words[table] + 2
        if not wanted <= told <= most:
            found.wrong[f"outdated or from nowhere in part {part}"] += 1
            found.lines.append(f"{part}: {consistency}: t{table} {told} is not in {wanted} to {most}")
        count += 1
        if not count % 16 and (last := client.ask("SHOW distribcache.last")) is not None:
            found.statuses[part, f"{last[0]} {last[1] or last[2] or ''}".strip()] += 1
    client.close()
    del found.lines[_MOST_LINES:]
    return found


@dataclass
class World:
    """What a part may harm."""

    server: Postgres
    relay: Relay
    valkey: Valkey
    proxy: servers.Program
    disk: Path | None
    stack: contextlib.ExitStack
    logs: str = ""

    def workers(self) -> list[int]:
        listed = Path(f"/proc/{self.proxy.pid}/task/{self.proxy.pid}/children").read_text().split()
        return [int(pid) for pid in listed if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def disk_full(self, rest: float) -> None:
        if self.disk is None:
            print("  no small file system may be mounted here: L2 keeps its disk")
            return
        fat = self.disk / "fat"
        with contextlib.suppress(OSError), fat.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        time.sleep(2 * rest)
        fat.unlink()

    def valkey_dies(self, rest: float) -> None:
        self.valkey.stop()
        time.sleep(2 * rest)
        self.valkey.start()

    def workers_die(self, rest: float) -> None:
        for pid in self.workers():
            os.kill(pid, signal.SIGKILL)
            time.sleep(rest)

    def node_dies(self, rest: float) -> None:
        os.killpg(self.proxy.pid, signal.SIGKILL)
        self.logs += self.proxy.log()
        self.proxy.stop()
        time.sleep(rest / 2)
        self.proxy.start()

    def restart(self, mode: str, rest: float) -> None:
        self.server.stop(mode)
        time.sleep(rest / 2)
        self.server.start()

    def promote(self, rest: float) -> None:
        """Whatever was acknowledged is on the standby: commits have waited for it."""
        old = self.server
        new = Postgres(bin_dir=servers.pg_bin(), options=old.options, standby_of=old)
        self.stack.enter_context(new)
        for text in ("ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'", "SELECT pg_reload_conf()"):
            self._direct(text)
        deadline = time.monotonic() + 30
        while not self._direct("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"):
            if time.monotonic() > deadline:
                raise RuntimeError("the standby does not follow")
            time.sleep(0.1)
        time.sleep(rest)
        old.stop("immediate")
        self.server = new
        self._direct("SELECT count(*) FROM (SELECT pg_promote()) AS promoted")
        self.relay.target = new.port
        self.relay.cut(everything=True)

    def _direct(self, text: str) -> object:
        with psycopg.connect(self.server.conninfo(), autocommit=True) as connection:
            cursor = connection.execute(text.encode())
            return (cursor.fetchone() or (0,))[0] if cursor.description else 0

    def back(self) -> float:
        """Seconds until hits are served again. Raises RuntimeError."""
        began = time.monotonic()
        while time.monotonic() - began < _BACK_S:
            with contextlib.suppress(psycopg.OperationalError):
                servers.wait_serving(self.proxy, max(1.0, _BACK_S - (time.monotonic() - began)))
                return time.monotonic() - began
            time.sleep(0.1)
        raise RuntimeError("no hits any more")


def play(world: World, words: Words, wanted: Sequence[str], rest: float) -> None:
    """All parts, each until hits are back and a rest has passed. Raises RuntimeError."""
    faults: dict[str, Callable[[float], None]] = {
        "disk": world.disk_full, "valkey": world.valkey_dies, "worker": world.workers_die, "kill": world.node_dies,
        "fast": partial(world.restart, "fast"), "immediate": partial(world.restart, "immediate"),
        "promotion": world.promote,
    }  # fmt: skip
    for part in wanted:
        words[_PART] = PARTS.index(part)
        began = time.monotonic()
        if part in faults:
            faults[part](rest)
        print(f"  {part}: {time.monotonic() - began:.1f} s, and hits are served {world.back():.1f} s later", flush=True)
        time.sleep(2 * rest)


def final(conninfo: str, words: Words) -> Found:
    """The writers have stopped: is anything behind for good?"""
    found = Found()
    words[_PART] = PARTS.index("after")
    for consistency in CONSISTENCIES:
        client = Client(conninfo, words, found, [f"SET distribcache.consistency = '{consistency}'"])
        deadline = time.monotonic() + 10 * BOUND_S
        for table in range(TABLES):
            while (row := client.ask(f"SELECT sum(value), max(pad) FROM t{table}")) is None or row[0] != words[table]:
                if time.monotonic() > deadline:
                    found.wrong["for ever"] += 1
                    found.lines.append(f"for ever: {consistency}: t{table} {row and row[0]} is not {words[table]}")
                    break
                time.sleep(0.05)
        client.close()
    return found


@contextlib.contextmanager
def small_disk(work: Path) -> Iterator[Path | None]:
    """A file system with little room, where mounting is allowed."""
    path = work / "disk"
    path.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def report(total: Found, wanted: Sequence[str]) -> None:
    print(f"{'part':<10} {'reads':>9} {'hit ratio':>9} {'L1':>6} {'L2':>6} {'L3':>6} {'p99 ms':>8} {'errors':>7}")
    for part in wanted:
        told = Counter({status: count for (where, status), count in total.statuses.items() if where == part})
        errors = told.pop("an error that may be", 0)
        hits = sum(count for status, count in told.items() if status.startswith("hit"))
        print(
            f"{part:<10} {total.reads[part]:>9,} {hits / max(1, told.total()):>9.3f} {told['hit L1']:>6} "
            f"{told['hit L2']:>6} {told['hit L3']:>6} {quantile(total.times.get(part, []), 0.99):>8.2f} {errors:>7}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="", help=f"some of {','.join(PARTS[1:-1])}, by commas")
    parser.add_argument("--rest", type=float, default=4.0, help="seconds: a fault lasts one or two of them")
    parser.add_argument("--readers", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between the writes of one of two writers")
    parser.add_argument("--mute", help="a rule of tests/mutes.py that shall not hold")
    asked = parser.parse_args(argv)
    parts = asked.part.split(",") if asked.part else PARTS
    wanted = [part for part in PARTS if part in parts or part in ("before", "after")]
    words = memoryview(mmap.mmap(-1, 8 * (TABLES + 2))).cast("Q")
    total, failures = Found(), list[str]()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-faults-")))
        disk = stack.enter_context(small_disk(work))
        options = {"max_slot_wal_keep_size": "1GB"}
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin(), options=options))
        relay, valkey = stack.enter_context(Relay(server.port)), stack.enter_context(Valkey())
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            for table in range(TABLES):
                text = f"CREATE TABLE t{table} AS SELECT 0 AS value, repeat('p', 2000) AS pad"
                connection.execute(text.encode())
        settings = {
            "DISTRIBCACHE_L3_PEERS": valkey.address, "DISTRIBCACHE_L3_PASSWORD": valkey.password,
            "DISTRIBCACHE_L3_REPLICATION_FACTOR": "1", "DISTRIBCACHE_L2_PATH": str((disk or work) / "l2"),
            "DISTRIBCACHE_FRESHNESS_SLOT": "persistent", "DISTRIBCACHE_FRESHNESS_MAX_STALENESS": f"{BOUND_S:g}s",
            "DISTRIBCACHE_LISTEN_WORKERS": "2", "DISTRIBCACHE_TTL_OLTP": "10min",
            "DISTRIBCACHE_L1_SIZE": "128kB", "DISTRIBCACHE_L1_MAX_ENTRY": "64kB",  # so that L2 has something to do
        }  # fmt: skip
        muted = [sys.executable, servers.HERE.parent / "tests" / "mutes.py", asked.mute, "serve"] if asked.mute else []
        upstream = f"postgresql://postgres@127.0.0.1:{relay.port}/postgres"
        proxy = stack.enter_context(servers.distribcache(upstream, work, command=muted, env=settings))
        servers.wait_serving(proxy)
        world = World(server, relay, valkey, proxy, disk, stack)
        results = multiprocessing.get_context("fork").Queue()
        spawn = partial(servers.spawn, results, ended)
        processes = [spawn(write, upstream, words, 0, asked.pause, False)]
        processes.append(spawn(write, proxy.conninfo(), words, 1, asked.pause, True))
        for number in range(asked.readers):
            processes.append(spawn(read, proxy.conninfo(), words, CONSISTENCIES[number % 3], number))
        try:
            play(world, words, wanted, asked.rest)
        except (RuntimeError, psycopg.Error) as error:
            failures.append(f"{PARTS[words[_PART]]}: {error}")
        finally:
            words[_STOP] = 1
            for _ in processes:
                total.add(results.get(timeout=120))
            for process in processes:
                process.join(30)
        if not failures:
            total.add(final(proxy.conninfo(), words))
        logs = world.logs + proxy.log()
        failures += ["the node died"] * (not proxy.alive) + ["a traceback in the log"] * ("Traceback" in logs)
    report(total, wanted)
    failures += total.failures(4 * _MOST_LINES)
    if failures:
        print(logs[-6000:])
    print("FAILED: " + "; ".join(failures) if failures else "ok: no error but of what died, and every answer was right")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
