"""What raises a catalogue alarm and what does not, and a cache that lets go of a database when asked."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy
from inside import coherence_of, seen
from rawclient import RawClient
from wait import until

from distribcache.coherence.decoding import LEAVE_LOCK, LEAVE_PREFIX
from distribcache.coherence.ledger import W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.lsn import parse_lsn
from distribcache.wire.messages import SYNC, bind, execute, parse, query


@pytest.fixture
def proxy(database: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    database.execute("CREATE TABLE t (a int)")
    return make_inner_proxy(database.url())


def alarms(proxy: InnerProxy) -> dict[str, int]:
    return {each.name: each.counters.alarms for each in proxy.proxy.databases if isinstance(each, DatabaseCoherence)}


def run(connection: psycopg.Connection[object], sql: str) -> None:
    try:
        connection.execute(sql)
    except psycopg.Error:
        pass


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT FROM WHERE", "CREATE TABLE ("])
def test_a_text_that_nobody_understands_was_never_run(proxy: InnerProxy, sql: str) -> None:
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        before = alarms(proxy)
        run(connection, sql)
        connection.execute("SELECT 1")
        assert alarms(proxy) == before


def test_ddl_is_an_alarm_before_it_is_acknowledged(proxy: InnerProxy, database: Database) -> None:
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        before = alarms(proxy)[database.name]
        connection.execute("ALTER TABLE t ADD COLUMN b int")
        assert alarms(proxy)[database.name] > before


@pytest.mark.parametrize(
    "sql", ["CREATE ROLE everywhere_{0}", "GRANT pg_monitor TO postgres", "ALTER ROLE postgres SET work_mem = '5MB'"]
)
def test_what_concerns_roles_is_an_alarm_in_every_database(proxy: InnerProxy, database: Database, sql: str) -> None:
    elsewhere = proxy.conninfo(dbname="postgres")
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection, psycopg.connect(elsewhere, autocommit=True):
        both = proxy.proxy.databases
        until(lambda: sum(each.serving for each in both) == 2, "the second database is never served")
        before = alarms(proxy)
        connection.execute(sql.format(database.name))
        after = alarms(proxy)
        assert all(after[name] > before[name] for name in before)
    database.execute(
        f"DROP ROLE IF EXISTS everywhere_{database.name}",
        "REVOKE pg_monitor FROM postgres",
        "ALTER ROLE postgres RESET ALL",
    )


def test_a_running_cache_lets_go_of_a_database_when_asked(database: Database, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(database.url())
    elsewhere = database.server.url("postgres")
    command = [sys.executable, "-m", "distribcache", "teardown", "--upstream", elsewhere, "--db", database.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{database.name}"')  # fails while anything of ours is connected
        connection.execute(f'CREATE DATABASE "{database.name}"')
    until(lambda: proxy.status()["databases"][0]["reason"] == "asked_to_leave", "it never said why it left")


@pytest.mark.parametrize("who", ["a_nobody", "postgres"])
def test_only_who_may_can_make_a_cache_leave(proxy: InnerProxy, database: Database, who: str) -> None:
    """Anybody can write a message into the log, and take a lock."""
    database.execute("DO $$ BEGIN CREATE ROLE a_nobody LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    followed = coherence_of(proxy)
    with database.connect(who) as connection:
        connection.execute("SELECT pg_advisory_lock_shared(%s::int, %s::int)", LEAVE_LOCK)
        for _ in range(3):
            connection.execute("SELECT pg_logical_emit_message(true, %s, '')", [LEAVE_PREFIX.decode()])
        if who == "postgres":
            until(lambda: followed.reason == "asked_to_leave", "it does not leave")
            return
        row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        until(lambda: followed.words[W] >= parse_lsn(row[0].encode()), "the stream is late")
        until(lambda: followed._following is not None and followed._following._leaving is None, "it still asks")
        assert proxy.settled() or followed.reason != "asked_to_leave"
        until(proxy.settled, "it does not go on")


_ROWS = b", ".join([b"(1)"] * 50_000)
_LONG: dict[str, tuple[bytes, bool]] = {
    "insert": (b"INSERT INTO t VALUES " + _ROWS, False),
    "several": (b"/* a: 1 */ INSERT INTO t VALUES " + _ROWS + b"; -- b\n DELETE FROM t WHERE a = 2;", False),
    "query": (b"SELECT count(*) FROM t WHERE a IN (" + b", ".join([b"1"] * 70_000) + b")", False),
    "beyond": (b"INSERT INTO t VALUES " + b", ".join([b"(1)"] * 250_000), True),
    "ddl behind": (b"INSERT INTO t VALUES " + _ROWS + b"; ALTER TABLE t ADD COLUMN c int", True),
    "ddl in front": (b"ALTER TABLE t ADD COLUMN d int; INSERT INTO t (a) VALUES " + _ROWS, True),
    "nested comment": (b"/* /* */ INSERT */ CREATE TABLE t2 AS VALUES " + _ROWS, True),
    "select into": (b"SELECT a INTO t3 FROM t WHERE a IN (" + b", ".join([b"1"] * 70_000) + b")", True),
    "do": (b"DO $$ BEGIN CREATE TABLE t4 (a int); END $$ -- " + b"x" * 100_000, True),
}


def test_a_long_text_is_an_alarm_only_if_it_may_be_ddl(proxy: InnerProxy, database: Database) -> None:
    seen(proxy, database)  # what was made before, and the cache's own publication
    with RawClient(proxy.host, proxy.port, database.name) as client:
        until(lambda: proxy.proxy.node._known, "never logged in")  # only then is it asked what code there is
        for name, (sql, alarming) in _LONG.items():
            assert len(sql) > 200_000 or alarming
            until(proxy.settled, "never settled")
            before = alarms(proxy)[database.name]
            replies = client.exchange(query(sql))
            assert not any(each[:1] == b"E" for each in replies), replies
            assert (alarms(proxy)[database.name] > before) == alarming, name


def test_a_long_parameter_is_no_alarm(proxy: InnerProxy, database: Database) -> None:
    database.execute("CREATE TABLE blob (a text)")
    seen(proxy, database)
    with RawClient(proxy.host, proxy.port, database.name) as client:
        client.exchange(parse(b"named", b"INSERT INTO blob VALUES ($1)") + SYNC)
        for name in (b"named", b""):
            until(proxy.settled, "never settled")
            before = alarms(proxy)[database.name]
            unnamed = b"" if name else parse(b"", b"INSERT INTO blob VALUES ($1)")
            for size in (1_000, 60_000, 200_000, 900_000):
                data = unnamed + bind(b"", name, params=[b"x" * size]) + execute(b"") + SYNC
                for at in range(0, len(data), 50_000):
                    client.send(data[at : at + 50_000])
                replies = client.until(b"Z")
                assert not any(each[:1] == b"E" for each in replies), replies
            assert alarms(proxy)[database.name] == before
    assert database.execute("SELECT count(*), sum(length(a)) FROM blob") == [(8, 2 * 1_161_000)]
