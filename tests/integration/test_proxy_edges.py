"""The edges of a connection and of a transaction: what comes before the login ends, after the client has ended its
direction, or where PostgreSQL refuses because a query was run.
"""

from __future__ import annotations

import socket
import struct
import threading
import urllib.request

import pytest
from barewire import ask, bare, fields, message, startup
from barewire import query as simple
from fix_postgres import Database, MakePostgres
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy
from fix_stock import warm
from rawclient import RawClient, run
from relay import Relay
from wait import until

from distribcache.coherence.catalogue import Catalogue
from distribcache.proxy import connection
from distribcache.proxy.session import Session
from distribcache.wire.messages import SYNC, bind, execute, parse, query

READ = b"SELECT value FROM stock WHERE id = 1"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int)",
    "INSERT INTO stock VALUES (1, 1), (2, 2)",
    "CREATE TABLE log (id int)",
)


# ---- the client ends its direction ----

LAST: dict[str, bytes] = {
    "queries": simple("SELECT pg_sleep(0.2)") + simple("INSERT INTO log VALUES (1)") + simple("SELECT 42"),
    "groups": ask("SELECT pg_sleep(0.2)") + ask("INSERT INTO log VALUES (1)") + ask("SELECT 42"),
    "a transaction": simple("BEGIN") + simple("SELECT pg_sleep(0.2)") + simple("INSERT INTO log VALUES (1)")
    + simple("COMMIT") + simple("SELECT 42"),
    "an unfinished message": simple("SELECT pg_sleep(0.2)") + simple("INSERT INTO log VALUES (1)")
    + simple("SELECT 42") + simple("SELECT 43")[:-3],
    "reads": simple("SELECT value FROM stock WHERE id = 1") * 3 + simple("INSERT INTO log VALUES (1)")
    + simple("SELECT 42"),
}  # fmt: skip


@pytest.mark.parametrize("how", LAST)
def test_what_was_sent_before_the_end_is_answered(stock: Database, inner: InnerProxy, how: str) -> None:
    said = []
    for host, port in ((stock.server.host, stock.server.port), (inner.host, inner.port)):
        with bare(host, port) as client:
            client.login(stock.name)
            client.send(LAST[how])
            client.socket.shutdown(socket.SHUT_WR)
            said.append([(kind, body) for kind, body in client.rest() if kind != "S"])
    assert said[0] == said[1]
    assert ("D", b"\0\1\0\0\0\x0242") in said[1]
    assert stock.execute("SELECT count(*) FROM log") == [(2,)]
    until(lambda: not inner.proxy.node.live, "the session does not end")


def test_a_copy_is_not_waited_for(stock: Database, inner: InnerProxy) -> None:
    for data in (simple("COPY log FROM STDIN"), ask("COPY log FROM STDIN")):
        with bare(inner.host, inner.port) as client:
            client.login(stock.name)
            client.send(data)
            while client.read()[0] != "G":  # type: ignore[index]
                pass
            client.send(message("d", b"1\n"))
            client.socket.shutdown(socket.SHUT_WR)
            client.rest()
        until(lambda: not inner.proxy.node.live, "the session does not end")
    assert stock.execute("SELECT count(*) FROM log") == [(0,)]


# ---- before the login has ended ----


def early(host: str, port: int, database: str, behind: bytes, user: str = "postgres") -> list[tuple[str, bytes]]:
    with bare(host, port) as client:
        client.send(startup(user, database) + behind)
        client.socket.shutdown(socket.SHUT_WR)
        return client.rest()


def test_a_query_in_the_same_segment_as_the_startup_packet(stock: Database, inner: InnerProxy) -> None:
    behind = simple("SELECT 42") + ask("SELECT 43")
    said = [
        [(kind, body) for kind, body in early(host, port, stock.name, behind) if kind in "DCZE"]
        for host, port in ((stock.server.host, stock.server.port), (inner.host, inner.port))
    ]
    assert said[0] == said[1]
    assert sum(kind == "D" for kind, _ in said[1]) == 2


def test_a_query_in_place_of_a_password(
    make_postgres: MakePostgres, make_proxy: MakeProxy
) -> None:
    server = make_postgres(hba=["host all fred 127.0.0.1/32 scram-sha-256"])
    database = Database(server, "postgres")
    database.execute("DROP ROLE IF EXISTS fred", "CREATE ROLE fred LOGIN PASSWORD 'x'")
    proxy = make_proxy(database.url(), serving=False)
    for host, port in ((server.host, server.port), (proxy.host, proxy.port)):
        said = early(host, port, "postgres", simple("SELECT 42"), "fred")
        assert [kind for kind, _ in said][-1] == "E"
        assert "expected" in fields(said[-1][1])["M"] and "got message type 81" in fields(said[-1][1])["M"]


# ---- a server that does not read ----


def test_a_server_that_does_not_read_is_not_waited_for_without_end(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LAST_WORDS", 0.3)
    with Relay(stock.server.port) as relay:
        inner = make_inner_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{stock.name}")
        with bare(inner.host, inner.port) as client:
            client.login(stock.name)
            until(lambda: [each for each in list(inner.proxy.node.live) if each.hot.ident], "no session")
            wires = next(iter(inner.proxy.node.live)).wires
            assert isinstance(wires, connection.Connection)
            relay.thawed.clear()
            client.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.socket.sendall(message("Q", b"SELECT '" + b"x" * (64 << 20) + b"'\0"))
            assert wires.upstream is not None and wires.upstream.get_write_buffer_size()
        inner.call(_finish(wires))
        until(lambda: wires._peer is not None and wires._peer.lost, "the socket stays")
        relay.thawed.set()


async def _finish(wires: connection.Connection) -> None:
    wires.finish()


# ---- what a query forbids ----

FORBIDDEN = [
    b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    b"BEGIN ISOLATION LEVEL REPEATABLE READ",
    b"SET transaction_isolation = 'serializable'",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_an_isolation_level_behind_a_read_from_memory_is_refused(client: RawClient, sql: bytes) -> None:
    client.exchange(parse(b"later", sql) + SYNC)
    warm(client, query(READ))
    warm(client, run(READ) + SYNC)
    later = bind(b"", b"later") + execute(b"") + SYNC
    for read in (query(READ), run(READ) + SYNC):
        for again in (query(sql), run(sql) + SYNC, later):
            warm(client, read)
            client.exchange(query(b"BEGIN"))
            assert client.rows(read) == [[b"1"]]
            assert client.rows(query(b"SHOW distribcache.last"))[0][0] == b"hit"
            assert any(b"C25001" in each for each in client.exchange(again))
            client.exchange(query(b"ROLLBACK"))
            assert client.rows(read) == [[b"1"]]


def test_an_isolation_level_in_front_of_the_first_read_is_not(client: RawClient) -> None:
    warm(client, query(READ))
    for read in (query(READ), run(READ) + SYNC):
        client.exchange(read)
        client.exchange(query(b"BEGIN"))
        assert not any(each[:1] == b"E" for each in client.exchange(query(FORBIDDEN[0])))
        client.exchange(query(b"ROLLBACK"))


def test_a_deallocate_that_fails_forgets_nothing(client: RawClient) -> None:
    again = bind(b"", b"s") + execute(b"") + SYNC
    client.exchange(parse(b"s", READ) + SYNC)
    for way in (query(b"DEALLOCATE ALL"), run(b"DEALLOCATE s") + SYNC):
        warm(client, again)
        client.exchange(query(b"BEGIN"))
        client.exchange(query(b"SELECT 1/0"))
        assert any(each[:1] == b"E" for each in client.exchange(way))
        client.exchange(query(b"ROLLBACK"))
        assert client.rows(again) == [[b"1"]]
        warm(client, again)
    client.exchange(query(b"BEGIN"))
    client.exchange(query(b"SELECT 1/0"))
    client.exchange(query(b"ROLLBACK; DEALLOCATE ALL"))
    assert any(b"C26000" in each for each in client.exchange(again))


# ---- names ----


def test_the_status_page_shows_any_name_of_a_database(stock: Database, inner: InnerProxy) -> None:
    name = b"caf\xe9_" + stock.name.encode()
    plain = f"{stock.name}_ascii"
    stock.execute(f"CREATE DATABASE {plain} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    try:
        with RawClient(stock.server.host, stock.server.port, plain) as client:
            client.exchange(query(b'CREATE DATABASE "' + name + b'" TEMPLATE template0'))
            with bare(inner.host, inner.port) as other:
                body = b"user\0postgres\0database\0" + name + b"\0\0"
                other.send(struct.pack("!ii", len(body) + 8, 3 << 16) + body)
                other.until_ready()
                assert ("C", b"SELECT 1\0") in other.simple("SELECT 42")
                host, port = inner.proxy.admin_address
                for page in ("api/status", "metrics"):
                    with urllib.request.urlopen(f"http://{host}:{port}/{page}", timeout=30) as reply:
                        assert "database_name" in reply.read().decode()
            client.exchange(query(b'DROP DATABASE "' + name + b'" WITH (FORCE)'))
    finally:
        stock.execute(f"DROP DATABASE {plain} WITH (FORCE)")


@pytest.mark.parametrize("first", ["SELECT value FROM stock WHERE id = 2", "UPDATE stock SET value = 5 WHERE id = 2"])
def test_a_begin_goes_upstream_together_with_what_comes_behind_it(
    client: RawClient, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    client.exchange(query(READ))
    written: list[bytes] = []
    real = connection.Connection.to_upstream

    def to_upstream(self: connection.Connection, data: bytes) -> None:
        written.append(data)
        real(self, data)

    monkeypatch.setattr(connection.Connection, "to_upstream", to_upstream)
    assert client.exchange(query(b"BEGIN READ WRITE"))[-1] == b"Z\0\0\0\5T"
    assert not written
    assert client.exchange(query(first.encode()))[-1] == b"Z\0\0\0\5T"
    assert len(written) == 1 and b"BEGIN READ WRITE" in written[0] and first.encode() in written[0]
    assert client.exchange(query(b"ROLLBACK")) == [b"C\0\0\0\rROLLBACK\0", b"Z\0\0\0\5I"]
    value = client.exchange(query(b"SELECT value FROM stock WHERE id = 2"))
    assert any(each.endswith(b"\0\0\0\0012") for each in value)


# ---- before the first statement ----


def test_a_session_is_asked_for_its_scope_before_its_client_says_anything(stock: Database, inner: InnerProxy) -> None:
    live = inner.proxy.node.live
    with inner.connect(), inner.connect():
        until(lambda: len(live) == 2 and all(each.hot.ident for each in list(live)), "nobody asks")
        until(lambda: not inner.proxy.node.newcomers, "who was asked is still to be asked")
    until(lambda: not live, "the sessions do not end")


def test_sessions_that_are_over_or_busy_are_not_asked(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = inner.proxy.node
    monkeypatch.setattr(node, "introduce", lambda most: None)
    with inner.connect():
        until(lambda: len(node.newcomers) == 1, "no session")
    until(lambda: not node.newcomers, "a session that is over is kept")
    with inner.connect() as client, inner.connect() as other:
        until(lambda: len(node.newcomers) == 2, "no sessions")
        session = next(iter(node.newcomers))
        asked = threading.Thread(target=client.execute, args=("SELECT pg_sleep(0.5), pg_advisory_lock(1)",))
        asked.start()
        until(lambda: session.awaiting, "the statement does not go upstream")
        pending = len(session.replies.pending)
        inner.call(_introduce(session))
        assert len(session.replies.pending) in (pending, 0)
        asked.join()
        assert other.execute("SELECT 1").fetchone() == (1,)


async def _introduce(session: Session) -> None:
    session.questions.introduce()


def test_a_client_that_is_accepted_while_the_proxy_ends_is_let_go(stock: Database, inner: InnerProxy) -> None:
    """It came too late to be told, and nobody would ever close it."""
    listener = inner.proxy.listener
    listener.stopped = True
    try:
        with socket.create_connection((inner.host, inner.port), timeout=30) as client:
            try:
                assert client.recv(1) == b""
            except ConnectionResetError:
                pass
    finally:
        listener.stopped = False


# ---- the catalogue cannot be asked ----


def test_a_read_about_which_the_catalogue_cannot_be_asked_says_so(
    client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered by the server, and by memory once that can be asked."""
    warm(client, query(READ))
    again = query(b"SELECT count(*) + 1 FROM stock WHERE value = 2")

    async def cannot(*_: object) -> list[tuple[object, ...]]:
        raise OSError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "ask", cannot)
        assert client.rows(again) == [[b"2"]]
        assert client.rows(query(b"SHOW distribcache.last"))[0][:3] == [b"refused", None, b"analysis_failed"]
    warm(client, again)
