"""A checker: is any of a million answers from memory older than what was promised, or somebody else's?

    python benchmarks/checker.py                                 a server and distribcache of its own, 1,000,000 hits
    python benchmarks/checker.py --mute rows --seconds 20        a rule is muted: this must fail
    python benchmarks/checker.py --mute rows --first             it must fail, and does not go on then

Writers increment numbers, through the proxy and around it, in ones and in transactions; a view is made anew and tables
change their names meanwhile. Readers ask in pipelines of raw messages, in both protocols, for the numbers in every way
there is (``checked``), in all three consistencies, as different roles, with settings that shape answers. What each may
be shown at least stands in ``checking``. When the writers have stopped, nobody may be behind for good.

Every commit waits for a receiver of the log, as with a synchronous standby, and that rests for a third of the time: so
each commit is in the change stream for a while before any snapshot shows it (coherence rule R3).

Exit 1: a wrong answer, or too few hits to prove anything.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks import servers
from benchmarks.checked import PEOPLE, STOCK
from benchmarks.checking import Found, Place, Truth, change_catalogue, final, read, write

from distribcache.cli.postgres import Postgres

BOUND_S = 1.0
_AWAKE_S, _REST_S = 0.2, 0.1
_SETTINGS = {"DISTRIBCACHE_FRESHNESS_HIT_WAIT": "50ms", "DISTRIBCACHE_FRESHNESS_MAX_STALENESS": f"{BOUND_S:g}s"}
MUTES = ("rows", "visibility", "schema", "settings", "people", "validity", "own_writes", "arrival")
"""Names of ``tests/mutes.py``; the last two take ``--late``."""
_DDL_S, _LEAST_DDL = 15.0, 4
"""Seconds between changes of the catalogue; but a short run has some of them too."""


@contextlib.contextmanager
def _receiver(server: Postgres, work: Path) -> Iterator[None]:
    """A synchronous receiver of the log, for which every commit waits."""
    program = server.bin_dir / "pg_receivewal"
    if not program.exists():
        print("no pg_receivewal: commits wait for nobody")
        yield
        return
    folder = work / "received"
    folder.mkdir()
    conninfo = server.conninfo("postgres") + " application_name=receiver"
    process = subprocess.Popen(
        [program, "--directory", folder, "--synchronous", "--dbname", conninfo],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    ended = threading.Event()
    resting = threading.Thread(target=_rest, args=(process, ended), daemon=True)
    try:
        with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
            seen = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'receiver'"
            deadline = time.monotonic() + 20
            while not (connection.execute(seen).fetchone() or (0,))[0]:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError("pg_receivewal does not receive")
                time.sleep(0.05)
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'receiver'")
            connection.execute("SELECT pg_reload_conf()")
        resting.start()
        yield
    finally:
        ended.set()
        if resting.is_alive():
            resting.join()
        with psycopg.connect(server.conninfo("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _rest(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    """Stop it now and then."""
    while not ended.wait(_AWAKE_S):
        process.send_signal(signal.SIGSTOP)
        ended.wait(_REST_S)
        process.send_signal(signal.SIGCONT)


def _ended(how: str) -> Found:
    found = Found()
    found.blame("a process ended", how)
    return found


def _hits(proxy: servers.Program) -> float:
    return servers.stats(proxy)["hits_total"]


def check(place: Place, proxy: servers.Program, asked: argparse.Namespace) -> tuple[Found, float, float]:
    """Writers and readers until there are hits enough; (what was found, hits, seconds)."""
    truth, total = Truth(), Found()
    results = multiprocessing.get_context("fork").Queue()
    spawn = partial(servers.spawn, results, _ended)
    began, before = time.monotonic(), _hits(proxy)
    processes = [spawn(write, place, truth, i, asked.writers, asked.pause) for i in range(asked.writers)]
    ddl = min(_DDL_S, asked.seconds / _LEAST_DDL) if asked.ddl is None else asked.ddl
    processes.append(spawn(change_catalogue, place, truth, ddl))
    processes += [spawn(read, place, truth, i) for i in range(asked.readers)]
    end, said, hits = began + asked.seconds, began, 0.0
    early: list[Found] = []
    while hits < asked.hits and time.monotonic() < end and proxy.alive and not early:
        if asked.first and truth.harmed:
            break
        time.sleep(0.5)
        while not results.empty():
            early.append(results.get())  # nobody ends by itself
        hits = _hits(proxy) - before
        if time.monotonic() - said > 20:
            said = time.monotonic()
            print(f"  {hits:,.0f} hits after {said - began:.0f} s", flush=True)
    truth.stop()
    for _ in range(len(processes) - len(early)):
        early.append(results.get(timeout=60))
    for process in processes:
        process.join(30)
    seconds = time.monotonic() - began
    for found in early:
        total.add(found)
    if proxy.alive and not (asked.first and truth.harmed):
        total.add(final(place, truth))
    return total, hits, seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hits", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1800.0, help="end by then, whatever there is")
    parser.add_argument("--readers", type=int, default=len(PEOPLE))
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between the writes of a writer")
    parser.add_argument("--ddl", type=float, help="seconds between changes of the catalogue, which empty the cache")
    parser.add_argument("--first", action="store_true", help="end at the first wrong answer")
    parser.add_argument("--mute", choices=MUTES, help="a rule that shall not hold")
    parser.add_argument("--late", action="store_true", help="the stream of changes comes in gusts of 200 ms")
    asked = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Postgres(bin_dir=servers.pg_bin()))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-checker-")))
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            connection.execute(STOCK)  # type: ignore[arg-type]
        names = ",".join(filter(None, ("late" if asked.late else "", asked.mute)))
        muted = [sys.executable, servers.HERE.parent / "tests" / "mutes.py", names, "serve"] if names else []
        try:
            proxy = stack.enter_context(servers.distribcache(server.url(), work, command=muted, env=_SETTINGS))
            stack.enter_context(_receiver(server, work))
            servers.wait_serving(proxy)
        except RuntimeError as error:
            print(error)
            return 3
        place = Place("127.0.0.1", proxy.port, server.port, "postgres", BOUND_S)
        total, hits, seconds = check(place, proxy, asked)
        died = not proxy.alive
        if died:
            print(proxy.log()[-2000:])
    reads = sum(total.reads.values())
    print(f"{seconds:.0f} s, {total.writes:,} writes, {total.ddl} changes of the catalogue, {os.cpu_count()} cores")
    print(f"{reads:,} reads, {hits:,.0f} hits: " + ", ".join(f"{total.reads[name]:,} {name}" for name in total.reads))
    print("a sample of them: " + ", ".join(f"{count} {name}" for name, count in sorted(total.asked.items())))
    for line in total.lines[:40]:
        print(f"  {line}")
    failures = [f"{count} × {what}" for what, count in total.wrong.most_common()]
    failures += ["the proxy died"] * died
    failures += [f"only {hits:,.0f} hits"] * (hits < min(asked.hits, 1000))
    print("FAILED: " + "; ".join(failures) if failures else "ok: no answer was older than promised, none was another's")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
