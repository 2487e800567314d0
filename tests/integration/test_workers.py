"""``serve --workers 2``: what is promised of one process is promised of several."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last
from muted import kept_and_muted
from wait import until

PATIENT = {"listen.workers": "2", "freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}
"""Freshness may take its time, so that on a busy machine a read that can be served is served."""

Connection = psycopg.Connection[Any]


def worker_of(connection: Connection) -> str:
    return dict(connection.execute("SHOW distribcache.stats").fetchall())["worker"]


@dataclass(frozen=True)
class Pair:
    """A client of each worker."""

    proxy: ProxyProcess
    first: Connection
    second: Connection


@contextmanager
def a_client_of_each(proxy: ProxyProcess, user: str = "postgres", **more: Any) -> Iterator[tuple[Connection, ...]]:
    """Connections of one user, one per worker, in the order of the workers."""
    found: dict[str, Connection] = {}
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(proxy.connect(user, cursor_factory=psycopg.ClientCursor, **more))
            if found.setdefault(worker_of(connection), connection) is not connection:
                connection.close()
            if len(found) == 2:
                break
        assert len(found) == 2, "all clients came to one worker"
        yield tuple(found[index] for index in sorted(found))


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, value int NOT NULL)",
        "INSERT INTO item SELECT i, 0 FROM generate_series(1, 100) i",
    )
    return database


@pytest.fixture
def pair(shop: Database, make_proxy: MakeProxy) -> Iterator[Pair]:
    proxy = make_proxy(shop.url(), PATIENT)
    with a_client_of_each(proxy) as clients:
        yield Pair(proxy, *clients)


def value(connection: Connection, row: int = 1) -> int:
    found = connection.execute(f"SELECT value FROM item WHERE id = {row}").fetchone()
    assert found is not None
    return int(found[0])


def until_hit(connection: Connection, text: str) -> None:
    def hit() -> bool:
        connection.execute(text).fetchall()
        return last(connection)["status"] == "hit"

    until(lambda: hit() and hit(), lambda: f"never a hit: {last(connection)}")


def muted_proxy(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, url: str, mutes: str, more: dict[str, str] | None = None
) -> ProxyProcess:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
    monkeypatch.setenv("MUTED", mutes)
    settings = {"listen.workers": "2", "freshness.max_staleness": "10s", **(more or {})}
    return make_proxy(url, settings, module="muted_crew")


# -- writes


@kept_and_muted
def test_a_write_through_one_worker_is_read_through_the_other(
    shop: Database, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence rule R4 in session mode, while the stream of changes comes in gusts: only the floors hold hits back."""
    proxy = muted_proxy(make_proxy, monkeypatch, shop.url(), "late,own_writes" if muted else "late")
    stale = 0
    with a_client_of_each(proxy) as clients:
        for each in clients:
            until_hit(each, "SELECT value FROM item WHERE id = 1")
        for number in range(1, 301):
            writer, reader = clients[number % 2], clients[1 - number % 2]
            writer.execute(f"UPDATE item SET value = {number} WHERE id = 1")
            stale += value(reader) != number
            if muted and stale:
                break
    assert bool(stale) is muted


def test_thousands_of_writes_are_each_read_at_once_through_the_other(pair: Pair) -> None:
    """The same with the stream as it is: many hits, none of them old."""
    clients = pair.first, pair.second
    for number in range(1, 2001):
        writer, reader = clients[number % 2], clients[1 - number % 2]
        writer.execute(f"UPDATE item SET value = {number} WHERE id = 1")
        assert value(reader) == number
        assert value(reader, 2) == 0
    assert pair.proxy.statistics()["hits_total"] > 1000, "row 2 is never written"


def test_a_strict_session_sees_every_write_made_around_the_proxy(pair: Pair, shop: Database) -> None:
    clients = pair.first, pair.second
    for each in clients:
        each.execute("SET distribcache.consistency = strict")
    with shop.connect() as direct:
        for number in range(1, 201):
            direct.execute(f"UPDATE item SET value = {number} WHERE id = 1")
            for each in clients:
                assert value(each) == number
                assert value(each, 2) == 0
    assert pair.proxy.statistics()["hits_total"] > 50


def test_a_write_around_the_proxy_reaches_the_memory_of_both(pair: Pair, shop: Database) -> None:
    clients = pair.first, pair.second
    for number in range(1, 11):
        shop.execute(f"UPDATE item SET value = {number} WHERE id = 1")
        for each in clients:
            until(lambda each=each, number=number: value(each) == number, "an old value stays")  # type: ignore[misc]
    for each in clients:
        until_hit(each, "SELECT value FROM item WHERE id = 1")
        assert value(each) == 10


def test_rows_are_told_apart_in_every_worker(pair: Pair) -> None:
    """Writes of one row end answers about that row only, once both workers were told the column set."""
    clients = pair.first, pair.second
    for each in clients:
        until_hit(each, "SELECT value FROM item WHERE id = 7")
    sets = {row[0]: row[3] for row in pair.first.execute("SHOW distribcache.tables").fetchall()}
    assert sets["public.item"] == "id"

    def survives() -> bool:
        pair.first.execute("UPDATE item SET value = value + 1 WHERE id = 8")
        for each in clients:
            value(each, 7)
            if last(each)["status"] != "hit":
                return False
        return True

    until(survives, "an answer about another row ends with each write")
    for number in range(50):
        pair.first.execute(f"UPDATE item SET value = {number} WHERE id = 7")
        assert value(pair.second, 7) == number


# -- the catalogue


@pytest.mark.parametrize("consistency", ["session", "eventual"])
def test_a_change_of_a_table_through_one_worker_is_seen_through_the_other(pair: Pair, consistency: str) -> None:
    pair.second.execute(f"SET distribcache.consistency = {consistency}")
    for number in range(10):
        until_hit(pair.second, "SELECT * FROM item WHERE id = 3")
        pair.first.execute(f"ALTER TABLE item ADD COLUMN extra{number} int DEFAULT {number}")
        row = pair.second.execute("SELECT * FROM item WHERE id = 3").fetchone()
        assert row is not None and len(row) == 3 + number and row[-1] == number


@pytest.mark.parametrize("consistency", ["session", "eventual"])
def test_rights_taken_through_one_worker_are_taken_in_the_other(
    pair: Pair, shop: Database, consistency: str
) -> None:
    user = f"reader_{shop.name}_{consistency}"
    shop.execute(f"CREATE ROLE {user} LOGIN", f"GRANT SELECT ON item TO {user}")
    try:
        with a_client_of_each(pair.proxy, user) as (_, second):
            second.execute(f"SET distribcache.consistency = {consistency}")
            for _ in range(10):
                until_hit(second, "SELECT value FROM item WHERE id = 4")
                pair.first.execute(f"REVOKE SELECT ON item FROM {user}")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    value(second, 4)
                pair.first.execute(f"GRANT SELECT ON item TO {user}")
    finally:
        shop.execute(f"DROP OWNED BY {user}", f"DROP ROLE {user}")


@kept_and_muted
def test_an_eventual_session_of_another_worker_stops_with_a_ddl(
    shop: Database, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence rule R6: DDL seen by the proxy stops hits before it is acknowledged, also where no floor would."""
    proxy = muted_proxy(make_proxy, monkeypatch, shop.url(), "late,ddl" if muted else "late")
    old = 0
    with a_client_of_each(proxy) as (first, second):
        second.execute("SET distribcache.consistency = eventual")
        for number in range(10):
            until_hit(second, "SELECT * FROM item WHERE id = 3")
            first.execute(f"ALTER TABLE item ADD COLUMN extra{number} int")
            row = second.execute("SELECT * FROM item WHERE id = 3").fetchone()
            assert row is not None
            old += len(row) != 3 + number
            if old:
                break
    assert bool(old) is muted


def test_a_role_changed_in_one_database_is_changed_in_another(pair: Pair, shop: Database) -> None:
    """A change that concerns all databases: the other worker has none of its clients in the same one."""
    user = f"wide_{shop.name}"
    other = f"{shop.name}_other"
    shop.execute(f"CREATE ROLE {user} LOGIN SUPERUSER", f"CREATE DATABASE {other}")
    try:
        with a_client_of_each(pair.proxy, user, dbname=other) as (first, second):
            first.execute("CREATE TABLE secret (value int)")
            first.execute("INSERT INTO secret VALUES (1)")
            for each in (first, second):
                each.execute("SET distribcache.consistency = eventual")
                until_hit(each, "SELECT value FROM secret")
            pair.first.execute(f"ALTER ROLE {user} NOSUPERUSER")
            pair.first.execute("SELECT 1")
            for each in (first, second):
                each.execute("SELECT value FROM secret")
                assert last(each)["status"] != "hit", "what superusers may see was asked for before"
    finally:
        pair.first.close()
        shop.execute(
            f"ALTER ROLE {user} SUPERUSER",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{other}'",
        )
        pair.proxy.stop()
        shop.execute(f"DROP DATABASE {other}", f"DROP ROLE {user}")


def test_a_database_can_be_dropped_through_one_worker_while_the_other_knows_it(pair: Pair, shop: Database) -> None:
    """Proxy trap 11: reader, slot and the side connections of every worker are gone first."""
    other = f"{shop.name}_gone"
    shop.execute(f"CREATE DATABASE {other}")
    with a_client_of_each(pair.proxy, dbname=other) as clients:
        clients[0].execute("CREATE TABLE thing AS SELECT 1 AS value")
        for each in clients:
            until_hit(each, "SELECT value FROM thing")
    pair.first.execute(f"DROP DATABASE {other}")
    assert value(pair.second) == 0


# -- together


def test_figures_are_those_of_both(pair: Pair) -> None:
    before = pair.proxy.statistics()
    reads = 0
    for number in range(30):
        for each in (pair.first, pair.second):
            value(each, 1 + number % 5)
            reads += 1
    after = pair.proxy.statistics()
    known = ("hits_total", "misses_total", "bypasses_total", "refusals_total")
    assert sum(after[name] - before[name] for name in known) == reads
    shown = [dict(each.execute("SHOW distribcache.stats").fetchall()) for each in (pair.first, pair.second)]
    for name in known:
        assert [float(each[name]) for each in shown] == [after[name]] * 2
    assert [each["worker"] for each in shown] == ["0", "1"]
    assert float(shown[0]["sessions"]) == 2
    with urllib.request.urlopen(f"{pair.proxy.admin}/metrics", timeout=30) as reply:
        assert f"distribcache_hits_total {after['hits_total']:.1f}" in reply.read().decode()
    entries = [each.execute("SHOW distribcache.tiers").fetchall()[0][3] for each in (pair.first, pair.second)]
    assert entries == [str(int(after["l1_entries"]))] * 2
    tables = {row[0]: row for row in pair.second.execute("SHOW distribcache.tables").fetchall()}
    assert tables["public.item"][1] == entries[0]
    queries = pair.first.execute("SHOW distribcache.queries").fetchall()
    assert sum(int(row[1]) for row in queries) == int(entries[0])


def test_shows_are_prepared_and_pipelined_too(pair: Pair) -> None:
    with psycopg.connect(pair.proxy.conninfo(), autocommit=True) as connection:
        for _ in range(8):
            rows = connection.execute("SHOW distribcache.refusals", prepare=True).fetchall()
            found = connection.execute("SHOW distribcache.freshness", prepare=True).fetchall()
            assert ("serving", "True") in found and isinstance(rows, list)
        with connection.pipeline():
            cursors = [connection.execute(f"SHOW distribcache.{name}") for name in ("stats", "tiers", "freshness")]
        assert all(cursor.fetchall() for cursor in cursors)


def test_refusals_are_those_of_both(pair: Pair) -> None:
    for each in (pair.first, pair.second):
        each.execute("SELECT now(), value FROM item WHERE id = 1")
    for each in (pair.first, pair.second):
        rows = each.execute("SHOW distribcache.refusals").fetchall()
        assert max(int(row[2]) for row in rows if row[0] == "refused") == 2
        assert all(row[3] for row in rows), "each with what to do"


def test_all_hits_of_all_workers_can_be_audited(pair: Pair) -> None:
    body = b'{"seconds": 30, "max_cost_s": 1}'
    question = urllib.request.Request(
        f"{pair.proxy.admin}/api/audit", body, {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(question, timeout=30).close()

    def audited() -> bool:
        for each in (pair.first, pair.second):
            value(each)
        with urllib.request.urlopen(f"{pair.proxy.admin}/api/audit", timeout=30) as reply:
            facts = reply.read().decode()
        return '"running":true' in facts and pair.proxy.statistics()["audits_total"] >= 20

    until(audited, lambda: str(pair.proxy.statistics()))
    assert pair.proxy.statistics()["stale_audits_total"] == 0


def test_a_cancel_reaches_who_waits_for_another_in_any_worker(pair: Pair, shop: Database) -> None:
    """The request comes to whichever worker; the statement waits for the same read of another client."""
    slow = "SELECT count(*) FROM item a, item b, item c, item d WHERE a.id + b.id + c.id + d.id > {}"
    with a_client_of_each(pair.proxy) as others:
        pairs = list(zip((pair.first, pair.second), others, strict=True))
        for number in range(6):
            leader, follower = pairs[number % 2]
            failures: list[str] = []

            def follow(follower: Connection = follower, failures: list[str] = failures, number: int = number) -> None:
                try:
                    follower.execute(slow.format(number))
                except psycopg.errors.QueryCanceled:
                    failures.append("canceled")

            def lead(leader: Connection = leader, number: int = number) -> None:
                with suppress(psycopg.errors.QueryCanceled):
                    leader.execute(slow.format(number))

            leading = threading.Thread(target=lead)
            following = threading.Thread(target=follow)
            leading.start()
            seen = f"SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT count%> {number}' AND state = 'active'"
            until(lambda seen=seen: shop.execute(seen))  # type: ignore[misc]
            following.start()
            began = time.monotonic()
            while not failures and following.is_alive() and time.monotonic() - began < 60:
                follower.cancel_safe(timeout=30)
                following.join(0.05)
            following.join(60)
            assert failures == ["canceled"]
            leader.cancel_safe(timeout=30)
            leading.join(60)


@kept_and_muted
def test_an_expensive_miss_is_asked_once_for_all_workers(
    shop: Database, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, muted: bool
) -> None:
    """They share an L2 and no L3; the answer is too small to be kept there for anybody who does not wait. Muted: each
    asks for itself.
    """
    settings = {**PATIENT, "l2.path": str(tmp_path / "l2"), "ttl.olap": "10min", "cache.single_flight_wait": "60s"}
    text = "SELECT sum(value) FROM item WHERE id <> {}"
    if muted:
        proxy = muted_proxy(make_proxy, monkeypatch, shop.url(), "turns", settings)
    else:
        proxy = make_proxy(shop.url(), settings)
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT sum(value)%' AND wait_event_type = 'Lock'"

    def round_of(number: int, clients: tuple[Connection, ...]) -> bool:
        """Was the second answered by what the first one asked?"""
        threads = [
            threading.Thread(target=lambda client=client: client.execute(text.format(-number)).fetchall())
            for client in clients
        ]  # fmt: skip
        with shop.connect() as outside:
            outside.execute("BEGIN")
            outside.execute("LOCK TABLE item IN ACCESS EXCLUSIVE MODE")
            threads[0].start()
            until(lambda: outside.execute(blocked).fetchall() == [(1,)], "the first never asked")
            threads[1].start()
            if muted:
                until(lambda: outside.execute(blocked).fetchall() == [(2,)], "the second never asked")
            else:
                time.sleep(0.2 * 2**number)  # that it waits, and where, nobody else can see
                assert outside.execute(blocked).fetchall() == [(1,)]
            outside.execute("ROLLBACK")
        for thread in threads:
            thread.join(60)
        told = [last(client) for client in clients]
        assert told[0]["status"] == "miss"
        return (told[1]["status"], told[1]["tier"]) == ("hit", "L2")

    with a_client_of_each(proxy) as clients:
        for client in clients:
            client.execute("SET distribcache.workload = 'olap'")
            until_hit(client, text.format(0))
        asked_once = any(round_of(number, clients) for number in range(1, 4 if muted else 7))
        assert asked_once is not muted
