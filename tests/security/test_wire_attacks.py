"""Clients that break the protocol: before TLS, before the login, and after it. Only their own connection may end."""

from __future__ import annotations

import random
import struct
from contextlib import ExitStack

import psycopg
import pytest
from barewire import DESCRIBE, EXECUTE, SSL_REQUEST, SYNC, Bare, bare, bind, fields, message, parse, query, startup
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last
from wait import until


def survives(proxy: ProxyProcess) -> None:
    """The process goes on serving others and has printed no traceback."""
    assert proxy.process.poll() is None
    with proxy.connect_at_last() as connection:
        assert connection.execute("SELECT 42").fetchone() == (42,)
    assert "Traceback" not in "".join(proxy.log)


def refused(client: Bare, sqlstate: str = "08P01") -> dict[str, str]:
    """The stream is one FATAL error with a hint, then closed."""
    messages = client.rest()
    assert [kind for kind, _ in messages] == ["E"], messages
    error = fields(messages[0][1])
    assert (error["S"], error["C"]) == ("FATAL", sqlstate), error
    assert error["H"]
    return error


def test_cve_2021_23214_bytes_after_ssl_request(proxy: ProxyProcess) -> None:
    """Security row 5."""
    with bare(proxy.host, proxy.port) as client:
        client.send(SSL_REQUEST + startup(database=proxy.database) + query("SELECT 1"))
        assert "unencrypted" in refused(client)["M"]
    survives(proxy)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(struct.pack("!ii", length, 3 << 16), id=f"length {length}")
        for length in (0, 3, 4, 7, 10_001, 2**31 - 1, -1, -(2**31))
    ]
    + [
        pytest.param(struct.pack("!ii", 12, 80877103) + b"body", id="ssl request with a body"),
        pytest.param(struct.pack("!ii", 8, 3 << 16), id="no parameters"),
        pytest.param(startup("u" * 64), id="long user"),
        pytest.param(startup(database="d" * 64), id="cve_2012_4575_long_database"),
        pytest.param(startup()[:-1] + b"x", id="no terminator"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, id="tls without request"),
    ],
)
def test_cve_2026_6664_malformed_startup(shared_proxy: ProxyProcess, packet: bytes) -> None:
    """Security row 7."""
    with bare(shared_proxy.host, shared_proxy.port) as client:
        client.send(packet)
        messages = client.rest()
        assert [kind for kind, _ in messages] == ["E"], messages
        assert fields(messages[0][1])["S"] == "FATAL"
    survives(shared_proxy)


@pytest.mark.parametrize("length", [0, 3, -1, 2**31 - 1, -(2**31), 4, 5000])
def test_cve_2026_6664_sasl_flood(scram_proxy: ProxyProcess, length: int) -> None:
    """Security row 7."""
    with bare(scram_proxy.host, scram_proxy.port) as client:
        client.send(startup("alice", "postgres"))
        kind, body = client.read() or ("", b"")
        assert (kind, body[:4]) == ("R", struct.pack("!i", 10))
        client.send(b"p" + struct.pack("!i", length) + b"x" * max(0, min(length - 4, 5000)))
        assert [kind for kind, _ in client.rest()] == ["E"]
    assert scram_proxy.process.poll() is None
    assert "Traceback" not in "".join(scram_proxy.log)


def test_flood_before_the_login_is_bounded(scram_proxy: ProxyProcess) -> None:
    """Security row 7."""
    with bare(scram_proxy.host, scram_proxy.port) as client:
        client.send(startup("alice", "postgres"))
        client.read()
        client.socket.settimeout(5)
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(2000):
                client.send(message("Q", b"SELECT 1\0") * 100)
        assert scram_proxy.process.poll() is None
    assert "Traceback" not in "".join(scram_proxy.log)


@pytest.mark.parametrize("length", [0, 3, 2**31 - 1, 2**31, 2**32 - 1, 0x40000000])
@pytest.mark.parametrize("kind", ["Q", "P", "B", "E", "S", "d", "?"])
def test_cve_2024_27304_impossible_lengths(shared_proxy: ProxyProcess, kind: str, length: int) -> None:
    """Security row 14."""
    with bare(shared_proxy.host, shared_proxy.port) as client:
        client.login(shared_proxy.database)
        client.send(kind.encode() + struct.pack("!I", length) + b"SELECT 1\0" * 3)
        refused(client)
    assert shared_proxy.process.poll() is None


def test_empty_and_cut_messages_on_the_hit_path(shared_proxy: ProxyProcess) -> None:
    """Security row 7. Every message type without a body, and valid ones cut short, sent by a session that is being
    served.
    """
    good = parse("SELECT name FROM item WHERE id = 1") + bind() + DESCRIBE + EXECUTE + SYNC
    for kind in "QPBDECSHFX?":
        for tail in (b"", SYNC):
            with bare(shared_proxy.host, shared_proxy.port) as client:
                client.login(shared_proxy.database)
                client.simple("SELECT name FROM item WHERE id = 1")
                client.simple("SELECT name FROM item WHERE id = 1")
                client.socket.settimeout(0.1)
                client.send(message(kind) + tail)
                try:
                    client.rest()
                except TimeoutError:
                    pass
    for size in range(1, len(good)):
        with bare(shared_proxy.host, shared_proxy.port) as client:
            client.login(shared_proxy.database)
            client.send(good[:size])
    survives(shared_proxy)


def test_unknown_type_and_wrong_order(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Security row 7."""
    with bare(shared_proxy.host, shared_proxy.port) as client:
        client.login(shared_proxy.database)
        client.send(message("y", b"?"))
        assert "121" in refused(client)["M"]
    wrong = [bind(name="none"), EXECUTE, DESCRIBE, message("D", b"Snone\0"), message("C", b"X\0"), message("B", b"\0")]
    for first in wrong:
        answers = []
        for host, port in ((shared_proxy.host, shared_proxy.port), (shared_shop.server.host, shared_shop.server.port)):
            with bare(host, port) as client:
                client.login(shared_proxy.database)
                client.send(first + SYNC + query("SELECT 1"))
                seen = client.until_ready() + client.until_ready()
                answers.append([(kind, fields(body)["C"] if kind == "E" else body) for kind, body in seen])
        assert answers[0] == answers[1]
    with bare(shared_proxy.host, shared_proxy.port) as client:  # copy messages where nothing is copied are ignored
        client.login(shared_proxy.database)
        client.send(message("d", b"stray") + message("c") + query("SELECT 1"))
        assert [kind for kind, _ in client.until_ready()] == ["T", "D", "C", "Z"]
    survives(shared_proxy)


def test_random_bytes_end_only_their_own_connection(shared_proxy: ProxyProcess) -> None:
    """Security row 7."""
    dice = random.Random(20211)
    sql = "SELECT name FROM item WHERE id = 2"
    good = query(sql) + parse(sql) + bind() + EXECUTE + SYNC
    for _ in range(60):
        data = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        with bare(shared_proxy.host, shared_proxy.port) as client:
            client.login(shared_proxy.database)
            client.socket.settimeout(0.05)
            try:
                client.send(bytes(data))
                client.rest()
            except (TimeoutError, ConnectionError):
                pass
    survives(shared_proxy)


def test_slowloris_is_disconnected(database: Database, make_proxy: MakeProxy) -> None:
    """Security row 17."""
    proxy = make_proxy(database.url(), {"listen.login_timeout": "2s"})  # longer than a login on a busy machine
    with ExitStack() as stack:
        patient = stack.enter_context(proxy.connect_at_last())  # whoever has logged in stays
        slow = [stack.enter_context(bare(proxy.host, proxy.port)) for _ in range(3)]
        for client, first in zip(slow, (b"", startup(database=database.name)[:20], SSL_REQUEST), strict=True):
            client.send(first)
        assert slow[2].take(1) == b"N"
        for client in slow:
            assert "login timeout" in refused(client, "08006")["M"]
        until(lambda: "login timeout" in "".join(proxy.log))
        assert patient.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_max_clients_is_said(database: Database, make_proxy: MakeProxy, sslmode: str) -> None:
    """Security row 17."""
    proxy = make_proxy(database.url(), {"listen.max_clients": "2"})
    with proxy.connect(), proxy.connect() as second:
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            psycopg.connect(proxy.conninfo(sslmode=sslmode))
        second.close()
        until(lambda: proxy.statistics()["sessions"] == 1)
        with proxy.connect() as third:
            assert last(third)["status"] is None


def test_half_open_connections_do_not_lock_others_out_for_ever(database: Database, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(database.url(), {"listen.max_unauthenticated": "50", "listen.login_timeout": "1s"})
    crowd = [Bare(proxy.host, proxy.port) for _ in range(300)]
    try:
        until(proxy.accepts)
    finally:
        for one in crowd:
            one.close()
    survives(proxy)
