"""The server or the network fails under the proxy, and the client does; nobody is told anything but the truth."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from barewire import ask, bare, fields, first_column, message, query, startup
from fix_postgres import Database, MakePostgres
from fix_proxy import MakeProxy, ProxyProcess, last
from relay import Relay
from wait import until

READ = "SELECT name FROM item WHERE id = 7"


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 100) i",
    )
    return database


@pytest.fixture
def relay(shop: Database) -> Iterator[Relay]:
    with Relay(shop.server.port, only=b"victim") as relay:
        yield relay


@pytest.fixture
def relayed(shop: Database, relay: Relay, make_proxy: MakeProxy) -> ProxyProcess:
    # A hit must not go upstream because its proof is late on a busy machine: the network there may be frozen.
    settings = {"freshness.max_staleness": "60s", "freshness.hit_wait": "10s"}
    return make_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{shop.name}", settings)


def hot(connection: psycopg.Connection[Any], sql: str = READ) -> list[Any]:
    rows: list[Any] = []

    def hit() -> bool:
        rows[:] = connection.execute(sql).fetchall()
        return bool(last(connection)["status"] == "hit")

    until(hit, lambda: str(last(connection)))
    return rows


def clean(proxy: ProxyProcess) -> None:
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)


def backends(database: Database) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    return int(database.execute(f"{sql} AND application_name <> 'distribcache'")[0][0]) - 1


def test_a_client_that_vanishes_takes_its_server_connection_with_it(shop: Database, relayed: ProxyProcess) -> None:
    for data in (query("SELECT pg_sleep(0.3)"), ask(READ)[:-3], query("BEGIN; LOCK item"), query(READ) * 100):
        with bare(relayed.host, relayed.port) as client:
            client.login(shop.name)
            client.send(data)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no goodbye
    until(lambda: backends(shop) == 0)
    until(lambda: relayed.statistics()["sessions"] == 0, "a session stays")
    with relayed.connect() as connection:
        assert hot(connection) == [("item 7",)]
    clean(relayed)


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "unasked"])
@pytest.mark.parametrize("behind", [b"X\0\0\0\4", b"d\0\0", query("SELECT 1")], ids=["goodbye", "cut", "query"])
def test_a_client_that_leaves_a_copy_leaves_no_server_connection_behind(
    shop: Database, make_proxy: MakeProxy, asked: bool, behind: bytes
) -> None:
    """The server answers a Query that copies when the data has ended, and nobody will send it. It holds its locks."""
    proxy = make_proxy(shop.url())
    with bare(proxy.host, proxy.port) as client:
        client.login(shop.name)
        client.send(query("COPY item FROM STDIN; COPY item FROM STDIN") + message("d", b"101\tnew\n") + message("c"))
        if asked:
            copied = [(client.read() or ("", b""))[0] for _ in range(3)]
            assert copied == ["G", "C", "G"]
        client.send(message("d", b"102\tnever\n") + behind)
    until(lambda: backends(shop) == 0, "it still copies")
    until(lambda: proxy.statistics()["sessions"] == 0, "a session stays")
    assert shop.execute("SELECT count(*) FROM item") == [(100,)]
    clean(proxy)


def test_copies_that_are_whole_are_done_though_the_client_has_left(shop: Database, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(shop.url())
    whole = b"".join(message("d", b"%d\tnew\n" % key) + message("c") for key in (101, 102))
    with bare(proxy.host, proxy.port) as client:
        client.login(shop.name)
        client.send(query("COPY item FROM STDIN; COPY item FROM STDIN") + whole + message("X"))
        until(lambda: backends(shop) == 0)
    assert shop.execute("SELECT count(*) FROM item") == [(102,)]
    clean(proxy)


def test_the_server_dies_in_the_middle_of_a_reply(shop: Database, relay: Relay, relayed: ProxyProcess) -> None:
    sql = "SELECT name FROM item ORDER BY id"
    for position in range(4, 12):
        with bare(relayed.host, relayed.port) as victim:
            victim.login(shop.name, application_name="victim")
            relay.arm(lambda count, one, at=position: None if count == at else one)
            victim.send(ask(f"{sql} -- {position}"))
            seen = victim.rest()
            assert "Z" not in [kind for kind, _ in seen]
            relay.disarm()
        with bare(relayed.host, relayed.port) as honest:
            honest.login(shop.name)
            for _ in range(3):
                assert len(first_column(honest.extended(f"{sql} -- {position}"))) == 100
    clean(relayed)


def test_a_frozen_network_freezes_one_client_only(shop: Database, relay: Relay, relayed: ProxyProcess) -> None:
    text = relayed.conninfo(application_name="victim")
    # What psycopg would prepare by itself would go upstream once more.
    with psycopg.connect(text, autocommit=True, prepare_threshold=None) as victim, relayed.connect() as other:
        hot(victim)
        relay.thawed.clear()
        with bare(relayed.host, relayed.port) as stuck:
            stuck.send(startup("postgres", shop.name, application_name="victim"))
            assert hot(victim) == [("item 7",)]  # memory needs no network
            assert other.execute("SELECT count(*) FROM item").fetchone() == (100,)
        relay.thawed.set()
        assert victim.execute("SELECT count(*) + 0 FROM item").fetchone() == (100,)
    clean(relayed)


def test_a_slow_network_changes_no_byte(shop: Database, relay: Relay, relayed: ProxyProcess) -> None:
    relay.delay, relay.slice_bytes = 0.002, 700
    with psycopg.connect(relayed.conninfo(application_name="victim"), autocommit=True) as victim:
        rows = victim.execute("SELECT * FROM item ORDER BY id").fetchall()
        assert rows == shop.execute("SELECT * FROM item ORDER BY id")


def test_restart_of_the_server(make_postgres: MakePostgres, make_proxy: MakeProxy) -> None:
    server = make_postgres(fresh=True)
    database = Database(server, "postgres")
    database.execute("CREATE TABLE item (id int PRIMARY KEY, name text)", "INSERT INTO item VALUES (7, 'item 7')")
    proxy = make_proxy(database.url())
    with proxy.connect() as connection:
        hot(connection)
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            for _ in range(10):
                connection.execute("UPDATE item SET name = 'never' WHERE id = 7")
    with pytest.raises(psycopg.OperationalError, match="cannot reach PostgreSQL"):
        proxy.connect()
    until(lambda: not proxy.serving())
    server.start()
    database.execute("UPDATE item SET name = 'changed while away' WHERE id = 7")
    with proxy.connect() as connection:
        assert connection.execute(READ).fetchall() == [("changed while away",)]
        until(proxy.serving, lambda: str(proxy.status()))
        assert hot(connection) == [("changed while away",)]
    server.stop("fast")  # our change stream must not hold a shutdown up
    clean(proxy)


def test_the_server_shuts_down_fast_with_us_connected(make_postgres: MakePostgres, make_proxy: MakeProxy) -> None:
    """Coherence trap 3."""
    server = make_postgres(fresh=True)
    proxy = make_proxy(server.url())
    server.stop("fast", timeout_s=60)
    assert "received immediate shutdown request" not in server.log()
    clean(proxy)


def test_a_statement_prepared_before_the_stream_has_begun_hits_later(
    shop: Database, relay: Relay, make_proxy: MakeProxy
) -> None:
    relay.refusing = True
    proxy = make_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{shop.name}", serving=False)
    relay.only = b"distribcache"  # the cache itself goes on waiting, clients do not
    relay.thawed.clear()
    relay.refusing = False
    with proxy.connect(prepare_threshold=0) as connection:
        for _ in range(3):
            assert connection.execute(READ).fetchall() == [("item 7",)]
            assert last(connection)["status"] == "bypass"
        relay.thawed.set()
        assert hot(connection) == [("item 7",)]


def test_unreachable_at_the_start(make_postgres: MakePostgres, make_proxy: MakeProxy) -> None:
    server = make_postgres(fresh=True)
    server.stop()
    proxy = make_proxy(server.url(), serving=False)
    proxy.database = "postgres"
    with bare(proxy.host, proxy.port) as client:
        client.send(startup())
        (error,) = [fields(body) for kind, body in client.rest() if kind == "E"]
    assert (error["S"], error["C"]) == ("FATAL", "08006")
    assert "upstream.url" in error["H"]
    assert proxy.status()["databases"][0]["reason"] == "unreachable"
    server.start()
    until(proxy.serving, lambda: str(proxy.status()))  # by itself
    with proxy.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    clean(proxy)


@pytest.mark.parametrize("what", ["listen", "admin"])
def test_busy_port(shop: Database, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", what: f"127.0.0.1:{port}"}
        ended = serve("--upstream", shop.url(), "--listen", address["listen"], "--admin", address["admin"])
    assert ended.returncode == 2
    assert f"--{what}" in ended.stderr
    assert str(port) in ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root@localhost/db", "nonsense", "", "postgresql://u@h:port/db", "postgresql://u@h:5432,h2:port/db",
        "postgresql://u@h/db?sslmode=maybe", "postgresql://u@h/db?no_such_option=1", "postgresql://u:p w@h/db",
        "postgresql://u:hidden@h:99999999/db", "postgresql://u@127.0.0.1/db?sslmode=verify-full&sslrootcert=/no/such",
    ],
)  # fmt: skip
def test_bad_url(url: str) -> None:
    ended = serve("--upstream", url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    assert ended.returncode == 2, ended.stderr
    assert "hint" in ended.stderr
    assert "hidden" not in ended.stderr


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distribcache", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return ended


def test_databases_are_created_dropped_and_renamed_through_the_proxy(shop: Database, make_proxy: MakeProxy) -> None:
    """Proxy trap 11. Our slot and our sessions would make each of these fail."""
    proxy = make_proxy(shop.url())
    name, copy, moved = shop.name, f"{shop.name}_copy", f"{shop.name}_moved"
    with psycopg.connect(proxy.conninfo(dbname="postgres"), autocommit=True) as admin:
        with proxy.connect() as connection:
            hot(connection)
        for factory in (psycopg.Cursor, psycopg.ClientCursor):
            run = factory(admin).execute
            until(proxy.serving)
            run(f"CREATE DATABASE {copy} TEMPLATE {name}")
            with psycopg.connect(proxy.conninfo(dbname=copy), autocommit=True) as connection:
                hot(connection)
            run(f"ALTER DATABASE {copy} RENAME TO {moved}")
            with psycopg.connect(proxy.conninfo(dbname=moved), autocommit=True) as connection:
                hot(connection)
            run(f"DROP DATABASE {moved}")
            run(f"ALTER DATABASE {name} RENAME TO {moved}")
            run(f"ALTER DATABASE {moved} RENAME TO {name}")
            with psycopg.connect(proxy.conninfo(dbname="template1"), autocommit=True) as inside:
                assert inside.execute("SELECT 1").fetchone() == (1,)
                assert last(inside)["status"] != "hit"
            run(f"CREATE DATABASE {copy}")  # from template1, where a client of ours has just been
            run(f"DROP DATABASE {copy} WITH (FORCE)")
            with pytest.raises(psycopg.errors.InvalidCatalogName):
                run("DROP DATABASE no_such_database")
            with proxy.connect() as connection:
                hot(connection)
    clean(proxy)
