"""A checker: writers on both sides, readers of every kind, and what each was promised (coherence rules R1–R4 together).

Every write increments a counter and is recorded when it is acknowledged. A read may then return nothing older than what
its consistency promises: ``strict`` the newest acknowledged before it began, by anybody; ``session`` the newest
acknowledged through the proxy; ``eventual`` the newest that is older than the bound. When the writers have stopped,
nobody may be behind for good.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy, ProxyProcess, last
from wait import until

from distribcache.clock import now_ns
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.reader import Reader
from distribcache.proxy import hit, lookup

ROWS = 4
SECONDS = 3.0
BOUND = 1.0

READS: dict[str, Callable[[int], str]] = {
    "by key": lambda row: f"SELECT value FROM counter WHERE id = {row}",
    "through a view": lambda row: f"SELECT value FROM seen WHERE id = {row}",
    "of a partition's root": lambda row: f"SELECT value FROM parts WHERE id = {row}",
    "of what a trigger wrote": lambda row: f"SELECT value FROM copy WHERE id = {row}",
}


@dataclass
class Truth:
    """What was acknowledged, per row: (time of the acknowledgement, value), by all writers and by the proxy's."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    everywhere: dict[int, list[tuple[float, int]]] = field(
        default_factory=lambda: {row: [(0.0, 0)] for row in range(ROWS)}
    )
    here: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: {row: [(0.0, 0)] for row in range(ROWS)})

    def acknowledge(self, row: int, value: int, *, through_proxy: bool) -> None:
        now = time.monotonic()
        with self.lock:
            self.everywhere[row].append((now, value))
            if through_proxy:
                self.here[row].append((now, value))

    def least(self, row: int, consistency: str, began: float) -> int:
        """The oldest value that a read of ``row`` begun then may return."""
        with self.lock:
            if consistency == "strict":
                return max(value for at, value in self.everywhere[row] if at <= began)
            old = max(value for at, value in self.everywhere[row] if at <= began - BOUND)
            if consistency == "eventual":
                return old
            return max(old, *(value for at, value in self.here[row] if at <= began), 0)


@dataclass
class Report:
    reads: int = 0
    hits: int = 0
    stale: list[str] = field(default_factory=list)


def write(conninfo: str, truth: Truth, stop: threading.Event, *, through_proxy: bool, pause: float) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        number = 0
        while not stop.is_set():
            row = number % ROWS
            number += 1
            with connection.transaction():
                found = connection.execute(
                    "UPDATE counter SET value = value + 1 WHERE id = %s RETURNING value", (row,)
                ).fetchone()
                assert found is not None
                connection.execute("UPDATE parts SET value = %s WHERE id = %s", (found[0], row))
            truth.acknowledge(row, found[0], through_proxy=through_proxy)
            stop.wait(pause)


def read(conninfo: str, consistency: str, kind: str, truth: Truth, stop: threading.Event, report: Report) -> None:
    with psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(f"SET distribcache.consistency = {consistency}")
        number = 0
        while not stop.is_set():
            row = number % ROWS
            number += 1
            began = time.monotonic()
            found = connection.execute(READS[kind](row)).fetchone()
            least = truth.least(row, consistency, began)
            assert found is not None
            report.reads += 1
            if found[0] < least:
                report.stale.append(f"{consistency} {kind} row {row}: {found[0]} < {least}, {last(connection)}")
            if number % 7 == 0:
                report.hits += last(connection)["status"] == "hit"


@pytest.fixture
def world(database: Database) -> Database:
    database.execute(
        "CREATE TABLE counter (id int PRIMARY KEY, value int NOT NULL)",
        f"INSERT INTO counter SELECT i, 0 FROM generate_series(0, {ROWS - 1}) i",
        "CREATE VIEW seen AS SELECT * FROM counter",
        "CREATE TABLE parts (id int PRIMARY KEY, value int NOT NULL) PARTITION BY RANGE (id)",
        "CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (2)",
        "CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (2) TO (100)",
        "INSERT INTO parts SELECT * FROM counter",
        "CREATE TABLE copy (id int, value int)",  # without a key
        "INSERT INTO copy SELECT * FROM counter",
        "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        "  UPDATE copy SET value = NEW.value WHERE id = NEW.id; RETURN NULL; END$$",
        "CREATE TRIGGER follow AFTER UPDATE ON counter FOR EACH ROW EXECUTE FUNCTION follow()",
    )
    return database


def enough(reports: list[Report]) -> bool:
    """A busy machine takes longer for it."""
    return sum(each.reads for each in reports) > 200 and any(each.hits for each in reports)


def some_stale(reports: list[Report]) -> bool:
    return any(each.stale for each in reports)


def play(
    world: Database, proxy: InnerProxy | ProxyProcess, over: Callable[[list[Report]], bool] = enough
) -> Report:
    """Writers and readers for some seconds and until it is over, then the end state; what was seen."""
    truth, stop = Truth(), threading.Event()
    reports = [Report() for _ in range(6)]
    kinds = list(READS)
    plan = ["strict", "session", "eventual", "strict", "session", "eventual"]
    threads = [
        threading.Thread(target=read, args=(proxy.conninfo(), plan[i], kinds[i % len(kinds)], truth, stop, reports[i]))
        for i in range(len(reports))
    ]
    threads.append(
        threading.Thread(
            target=write, args=(world.conninfo(), truth, stop), kwargs={"through_proxy": False, "pause": 0.02}
        )
    )
    threads.append(
        threading.Thread(
            target=write, args=(proxy.conninfo(), truth, stop), kwargs={"through_proxy": True, "pause": 0.05}
        )
    )
    for thread in threads:
        thread.start()
    stop.wait(SECONDS)
    with contextlib.suppress(AssertionError):
        until(lambda: over(reports) or not any(thread.is_alive() for thread in threads))
    stop.set()
    for thread in threads:
        thread.join()
    total = Report(
        sum(r.reads for r in reports), sum(r.hits for r in reports), [line for r in reports for line in r.stale]
    )
    if total.stale:
        return total
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        for kind, sql in READS.items():
            for row in range(ROWS):
                newest = max(value for _, value in truth.everywhere[row])
                try:
                    until(lambda: connection.execute(sql(row)).fetchone() == (newest,), seconds=20 * BOUND)  # noqa: B023
                except AssertionError:
                    total.stale.append(f"for ever: {kind} row {row}")
    return total


def test_no_read_is_older_than_promised(world: Database, make_inner_proxy: MakeInnerProxy) -> None:
    report = play(world, make_inner_proxy(world.url()))
    assert report.stale == []
    assert report.reads > 200
    assert report.hits > 0


def test_no_read_is_older_than_promised_by_two_workers(world: Database, make_proxy: MakeProxy) -> None:
    report = play(world, make_proxy(world.url(), {"listen.workers": "2"}))
    assert report.stale == []
    assert report.reads > 200
    assert report.hits > 0


def mute_validity(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: entries are served whatever the ledger says."""
    for module in (hit, lookup):
        monkeypatch.setattr(module, "valid", lambda entry, words, now, head=None: True)


def mute_own_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """R4: a write through the proxy raises no floor, and the stream that would tell of it is late."""
    monkeypatch.setattr(DatabaseCoherence, "raise_floor", lambda self, now: None)
    original = Reader._slice

    def late(self: Reader, until: int) -> bool:
        if now_ns() // 400_000_000 % 2:
            return False
        return original(self, until)

    monkeypatch.setattr(Reader, "_slice", late)


@pytest.mark.parametrize("mute", [mute_validity, mute_own_writes], ids=lambda mute: str(mute.__name__))
def test_the_checker_sees_a_muted_rule(
    world: Database,
    make_inner_proxy: MakeInnerProxy,
    monkeypatch: pytest.MonkeyPatch,
    mute: Callable[[pytest.MonkeyPatch], None],
) -> None:
    proxy = make_inner_proxy(world.url())
    mute(monkeypatch)
    assert play(world, proxy, some_stale).stale
