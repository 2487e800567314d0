"""Workers and their main process killed, stopped and cut off: nothing stale, nobody left behind, others unharmed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last
from wait import until

SETTINGS = {"listen.workers": "2", "freshness.hit_wait": "2s", "freshness.max_staleness": "1s"}

Connection = psycopg.Connection[Any]


def workers_of(proxy: ProxyProcess) -> set[int]:
    return set(map(int, Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pid_of(connection: Connection, proxy: ProxyProcess) -> int:
    """Which process serves this client: whoever has the other end of its connection."""
    inode = _other_end(connection)
    for pid in workers_of(proxy):
        inodes = set()
        for name in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(name)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        if inode in inodes:
            return pid
    raise AssertionError("nobody serves this client")


def _other_end(connection: Connection) -> str:
    """The inode of the server's end of a loopback connection."""
    mine = os.readlink(f"/proc/self/fd/{connection.pgconn.socket}")[8:-1]
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here, there = next((line[1], line[2]) for line in lines if line[9] == mine)
    return next(line[9] for line in lines if (line[1], line[2]) == (there, here))


def value(connection: Connection, row: int = 1) -> int:
    found = connection.execute(f"SELECT value FROM item WHERE id = {row}").fetchone()
    assert found is not None
    return int(found[0])


def hit(connection: Connection) -> bool:
    value(connection)
    return bool(last(connection)["status"] == "hit")


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, value int NOT NULL)",
        "INSERT INTO item SELECT i, 0 FROM generate_series(1, 100) i",
    )
    return database


class Pair:
    """A client of each of two workers."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy = proxy
        self.clients: dict[int, Connection] = {}
        for _ in range(200):
            self.add()
            if len(self.clients) == 2:
                break
        assert len(self.clients) == 2
        (self.one, self.first), (self.other, self.second) = self.clients.items()
        for each in (self.first, self.second):
            until(lambda each=each: hit(each) and hit(each), "never a hit")  # type: ignore[misc]

    def add(self) -> None:
        connection = self.proxy.connect(cursor_factory=psycopg.ClientCursor)
        pid = pid_of(connection, self.proxy)
        if self.clients.setdefault(pid, connection) is not connection:
            connection.close()

    def close(self) -> None:
        for each in self.clients.values():
            each.close()


@pytest.fixture
def pair(shop: Database, make_proxy: MakeProxy) -> Iterator[Pair]:
    made = Pair(make_proxy(shop.url(), SETTINGS))
    yield made
    made.close()


def test_a_worker_that_is_killed_is_started_again_and_the_others_go_on(pair: Pair, shop: Database) -> None:
    proxy = pair.proxy
    time.sleep(3)  # what it has counted is told once a second
    before = proxy.statistics()
    os.kill(pair.one, signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        for _ in range(100):
            value(pair.first)
    for number in range(1, 20):
        pair.second.execute(f"UPDATE item SET value = {number} WHERE id = 1")
        assert value(pair.second) == number
    until(lambda: hit(pair.second), "the other worker hits no more")
    until(lambda: len(workers_of(proxy)) == 2, "never started again")
    assert any("has ended (signal 9)" in line for line in proxy.log)
    after = proxy.statistics()
    assert all(after[name] >= value for name, value in before.items() if name.endswith("_total"))

    def back() -> bool:
        pair.add()
        return len(pair.clients) == 3

    until(back, "no client comes to the new worker")
    fresh = list(pair.clients.values())[-1]
    until(lambda: hit(fresh) and hit(fresh), "the new worker never hits")
    for number in range(100, 200):
        writer, reader = (fresh, pair.second) if number % 2 else (pair.second, fresh)
        writer.execute(f"UPDATE item SET value = {number} WHERE id = 1")
        assert value(reader) == number


def test_a_worker_that_dies_in_a_ddl_leaves_nothing_old(pair: Pair, shop: Database) -> None:
    """Its DDL may have been committed though nobody was told."""
    pair.first.execute("BEGIN")
    pair.first.execute("ALTER TABLE item ADD COLUMN extra int DEFAULT 7")
    os.kill(pair.one, signal.SIGKILL)
    until(lambda: any("has ended" in line for line in pair.proxy.log), "nobody noticed")
    shop.execute("ALTER TABLE item ADD COLUMN more int DEFAULT 8")

    def seen() -> bool:
        row = pair.second.execute("SELECT * FROM item WHERE id = 1").fetchone()
        return row is not None and row[-1] == 8

    until(seen, "never seen")
    until(lambda: pair.proxy.status()["databases"][0]["alarms_by.session_lost"] >= 1, "no alarm")


def test_without_main_there_are_no_workers(pair: Pair, shop: Database) -> None:
    pids = workers_of(pair.proxy)
    os.kill(pair.proxy.pid, signal.SIGKILL)
    pair.proxy.process.wait(60)
    until(lambda: not any(map(alive, pids)), "a worker outlives main")
    with pytest.raises(psycopg.OperationalError):
        value(pair.first)
    until(lambda: not shop.execute("SELECT FROM pg_replication_slots"), "a slot stays")


def test_hits_stop_while_main_is_stopped_and_resume(pair: Pair, shop: Database) -> None:
    os.kill(pair.proxy.pid, signal.SIGSTOP)
    try:
        shop.execute("UPDATE item SET value = 5 WHERE id = 1")
        stopped = time.monotonic()
        while time.monotonic() - stopped < 3.0:
            for each in (pair.first, pair.second):
                began = time.monotonic()
                found = value(each)
                assert found == 5 or began - stopped < 1.0, "older than max_staleness"
        for each in (pair.first, pair.second):
            assert value(each) == 5
            each.execute("UPDATE item SET value = value + 1 WHERE id = 2")
        assert value(pair.first, 2) == value(pair.second, 2) == 2
    finally:
        os.kill(pair.proxy.pid, signal.SIGCONT)
    for each in (pair.first, pair.second):
        until(lambda each=each: hit(each) and hit(each), "hits never resume")  # type: ignore[misc]
        assert value(each) == 5


def test_a_worker_that_was_stopped_serves_nothing_old_when_it_goes_on(pair: Pair, shop: Database) -> None:
    os.kill(pair.one, signal.SIGSTOP)
    try:
        pair.second.execute("UPDATE item SET value = 9 WHERE id = 1")
        pair.second.execute("ALTER TABLE item ADD COLUMN extra int")
        assert value(pair.second) == 9
        time.sleep(1.5)
    finally:
        os.kill(pair.one, signal.SIGCONT)
    assert value(pair.first) == 9
    until(lambda: hit(pair.first) and hit(pair.first), "hits never resume")


def test_a_worker_that_hangs_holds_up_no_drop_of_a_database(pair: Pair, shop: Database) -> None:
    """It has a connection there: it is ended, and what is left of it is started again."""
    other = f"{shop.name}_gone"
    shop.execute(f"CREATE DATABASE {other}")
    clients: dict[int, Connection] = {}
    while len(clients) < 2:
        connection = pair.proxy.connect(dbname=other, cursor_factory=psycopg.ClientCursor)
        if clients.setdefault(pid_of(connection, pair.proxy), connection) is not connection:
            connection.close()
    for each in clients.values():
        each.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, value int)")
        each.execute("SELECT value FROM item WHERE id = 1")
        each.close()
    os.kill(pair.one, signal.SIGSTOP)
    try:
        pair.second.execute(f"DROP DATABASE {other} WITH (FORCE)")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pair.one, signal.SIGCONT)
    assert not alive(pair.one)
    assert not shop.execute(f"SELECT FROM pg_database WHERE datname = '{other}'")
    until(lambda: len(workers_of(pair.proxy)) == 2, "never started again")
    assert value(pair.second) == 0


def test_the_end_of_the_stream_reaches_every_worker(pair: Pair, shop: Database) -> None:
    for number in range(1, 4):
        before = pair.proxy.status()["databases"][0]["epoch_changes"]
        shop.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()"
        )
        shop.execute(f"UPDATE item SET value = {number} WHERE id = 1")
        until(lambda before=before: pair.proxy.status()["databases"][0]["epoch_changes"] > before)  # type: ignore[misc]
        until(pair.proxy.serving, "never serving again")
        for each in (pair.first, pair.second):
            until(lambda each=each, number=number: value(each) == number, "an old value stays")  # type: ignore[misc]
            until(lambda each=each: hit(each) and hit(each), "never a hit again")  # type: ignore[misc]
            assert value(each) == number


def test_clients_are_told_of_the_end(pair: Pair) -> None:
    pids = workers_of(pair.proxy)
    pair.proxy.process.terminate()
    assert pair.proxy.process.wait(60) == 0
    assert not any(map(alive, pids))
    for each in (pair.first, pair.second):
        with pytest.raises(psycopg.OperationalError, match="administrator command"):
            value(each)


def test_a_server_that_is_restarted_is_followed_again_by_all(
    make_postgres: Any, make_proxy: MakeProxy
) -> None:
    server = make_postgres(options={"wal_level": "logical"}, fresh=True)
    with psycopg.connect(server.conninfo(), autocommit=True) as direct:
        direct.execute("CREATE TABLE item (id int PRIMARY KEY, value int NOT NULL)")
        direct.execute("INSERT INTO item VALUES (1, 1)")
    proxy = make_proxy(server.url(), SETTINGS)
    before = Pair(proxy)
    before.close()
    server.restart()
    until(proxy.serving, "never serving again")
    after = Pair(proxy)
    try:
        for number in range(2, 12):
            after.first.execute(f"UPDATE item SET value = {number} WHERE id = 1")
            assert value(after.second) == number
    finally:
        after.close()


def test_settings_with_a_password_are_nowhere_to_be_read(shop: Database, make_proxy: MakeProxy) -> None:
    """Neither in the arguments nor in the environment of a worker."""
    proxy = make_proxy(shop.url("postgres", "dull-secret"), SETTINGS)
    for pid in workers_of(proxy):
        for name in ("cmdline", "environ"):
            assert b"dull-secret" not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_nobody_waits_for_a_worker_that_died_in_its_turn(
    shop: Database, make_proxy: MakeProxy, tmp_path: Path
) -> None:
    """It was asking for an expensive miss, for both of them. The other one asks as soon as it is gone."""
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2"), "ttl.olap": "10min", "cache.single_flight_wait": "10min"}
    pair = Pair(make_proxy(shop.url(), settings))
    text = "SELECT sum(value) FROM item WHERE id <> {}"
    for client in (pair.first, pair.second):
        client.execute("SET distribcache.workload = 'olap'")
        client.execute(text.format(0))

    def ask(client: Connection) -> None:
        with suppress(psycopg.OperationalError):
            client.execute(text.format(1))

    def asks(client: Connection) -> bool:
        rows = outside.execute(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [client.info.backend_pid]
        )
        return rows.fetchone() is not None

    threads = [threading.Thread(target=ask, args=(client,)) for client in (pair.first, pair.second)]
    with shop.connect() as outside:
        outside.execute("BEGIN")
        outside.execute("LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
        threads[0].start()
        until(lambda: asks(pair.first), "the first never asked")
        threads[1].start()
        time.sleep(1)  # that it waits for the first one, nobody else can see
        assert not asks(pair.second)
        os.kill(pair.one, signal.SIGKILL)
        until(lambda: asks(pair.second), "it waits for a worker that is gone")
        outside.execute("ROLLBACK")
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    pair.close()
