"""Where the change stream is not to be had: everything passes through, nothing is cached, and the remedy is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from fix_postgres import Database, MakePostgres
from fix_proxy import MakeProxy, ProxyProcess, last
from pooler import pgbouncer
from relay import Relay
from wait import until

from distribcache.cli.postgres import Postgres

DatabaseOn = Callable[[Postgres], Database]


def freshness(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SHOW distribcache.freshness").fetchall())


def passes_through(proxy: ProxyProcess, reason: str, remedy: str) -> None:
    """Reads and writes work, none is a hit, and SHOW, status and log name reason and remedy."""
    with proxy.connect(prepare_threshold=None) as connection:
        until(lambda: freshness(connection)["reason"] == reason, lambda: str(freshness(connection)))
        assert remedy in freshness(connection)["hint"]
        connection.execute("CREATE TABLE IF NOT EXISTS item (id int PRIMARY KEY, name text)")
        connection.execute("INSERT INTO item VALUES (1, 'one') ON CONFLICT DO NOTHING")
        for _ in range(5):
            assert connection.execute("SELECT name FROM item WHERE id = 1").fetchone() == ("one",)
            assert (last(connection)["status"], last(connection)["reason"]) == ("bypass", reason)
        connection.execute("UPDATE item SET name = 'two'")
        assert connection.execute("SELECT name FROM item WHERE id = 1").fetchone() == ("two",)
    (status,) = [each for each in proxy.status()["databases"] if each["name"] == proxy.database]
    assert (status["serving"], status["reason"]) == (False, reason)
    assert remedy in status["hint"]
    assert proxy.statistics()["hits_total"] == 0
    log = "".join(proxy.log)
    assert f"({reason})" in log
    assert remedy in log
    assert "Traceback" not in log


def test_stock_wal_level(make_postgres: MakePostgres, database_on: DatabaseOn, make_proxy: MakeProxy) -> None:
    """Coherence trap 25."""
    database = database_on(make_postgres(options={"wal_level": "replica"}))
    passes_through(make_proxy(database.url(), serving=False), "wal_level", "ALTER SYSTEM SET wal_level")


def test_no_replication_privilege(database: Database, make_proxy: MakeProxy) -> None:
    role = f"plain_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN")
    proxy = make_proxy(database.url(role), serving=False)
    passes_through(proxy, "no_replication_privilege", f"ALTER ROLE {role} REPLICATION")
    database.execute(f"ALTER ROLE {role} REPLICATION")
    until(proxy.serving, lambda: str(proxy.status()))  # mended without a restart
    database.execute(f"ALTER ROLE {role} NOREPLICATION")


def test_wrong_password_of_the_caches_own_url(
    make_postgres: MakePostgres, database_on: DatabaseOn, make_proxy: MakeProxy
) -> None:
    server = make_postgres(hba=("host all keeper 127.0.0.1/32 scram-sha-256",))
    database = database_on(server)
    database.execute("CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'right one'")
    try:
        proxy = make_proxy(database.url("keeper", "wrong one"), serving=False)
        passes_through(proxy, "login_refused", "upstream.url")
        assert "wrong one" not in "".join(proxy.log)
        assert "wrong one" not in str(proxy.status())
    finally:
        database.execute("DROP ROLE keeper")


def test_no_free_slot(make_postgres: MakePostgres, database_on: DatabaseOn, make_proxy: MakeProxy) -> None:
    database = database_on(make_postgres(options={"max_replication_slots": "2"}))
    passes_through(make_proxy(database.url(), serving=False), "no_free_slot", "max_replication_slots")


@contextmanager
def open_transaction(database: Database) -> Iterator[int]:
    with psycopg.connect(database.conninfo()) as connection:
        connection.execute("SELECT pg_current_xact_id()")
        yield connection.info.backend_pid
        connection.rollback()


def test_an_open_transaction_delays_the_slot(
    make_postgres: MakePostgres, database_on: DatabaseOn, make_proxy: MakeProxy
) -> None:
    """Coherence trap 22."""
    database = database_on(make_postgres(options={"max_replication_slots": "30"}))
    with open_transaction(database) as pid:
        proxy = make_proxy(database.url(), serving=False)
        passes_through(proxy, "slot_waits", f"pg_terminate_backend({pid})")
    until(proxy.serving, lambda: str(proxy.status()))


def test_synchronous_standby_names_star(make_postgres: MakePostgres, make_proxy: MakeProxy) -> None:
    """Coherence trap 3. With a real standby writers go on; they must not begin to wait for us."""
    primary = make_postgres(fresh=True, options={"hot_standby": "on"})
    make_postgres(fresh=True, standby_of=primary)
    database = Database(primary, "postgres")
    until(lambda: database.execute("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(1,)])
    database.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    proxy = make_proxy(database.url(), serving=False)
    passes_through(proxy, "synchronous_standby", "synchronous_standby_names")
    with proxy.connect(options="-c statement_timeout=30s") as connection:
        for number in range(20):
            connection.execute("INSERT INTO item VALUES (%s, 'written')", [100 + number])
    database.execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    until(proxy.serving, lambda: str(proxy.status()))


def test_a_transaction_mode_pooler_between_us_and_the_server(database: Database, make_proxy: MakeProxy) -> None:
    """Not even our own SETs may stay on its server connections, where clients would find them."""
    with pgbouncer(database) as port:
        proxy = make_proxy(f"postgresql://postgres@127.0.0.1:{port}/{database.name}", serving=False)
        passes_through(proxy, "pooler", "upstream.url")
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname={database.name}") as pooled:
            shown = [pooled.execute(f"SHOW {name}").fetchone() for name in ("search_path", "synchronous_commit")]
            assert shown == [('"$user", public',), ("on",)]


def test_clients_through_a_pooler_while_we_follow_the_server(database: Database, make_proxy: MakeProxy) -> None:
    """Coherence trap 13. The cache's own connections reach the server, its clients' connections a pooler in front of
    it: R9 tells.
    """
    from pooler import pgbouncer

    with pgbouncer(database) as port, Relay(database.server.port, only=b"") as relay:
        relay.divert = (b"pooled", port)
        proxy = make_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{database.name}")
        text = proxy.conninfo(application_name="pooled")
        with psycopg.connect(text, autocommit=True, prepare_threshold=None) as connection:
            connection.execute("CREATE TABLE item AS SELECT 1 AS id, 'one' AS name")
            for _ in range(10):
                assert connection.execute("SELECT name FROM item WHERE id = 1").fetchone() == ("one",)
                assert last(connection)["status"] == "bypass", last(connection)
            until(
                lambda: (
                    connection.execute("SELECT name FROM item WHERE id = 1") and last(connection)["reason"] == "pooler"
                ),
                lambda: str(last(connection)),
            )
