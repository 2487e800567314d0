"""The server is untrusted input too: garbage, lost, doubled and changed messages close both sides and drop the fill."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from barewire import DESCRIBE, EXECUTE, SYNC, bare, bind, fields, first_column, message, parse, query, startup
from fix_proxy import MakeProxy, ProxyProcess, proxies
from relay import Relay

SQL = "SELECT name FROM item WHERE id = 7"


def doubled(one: bytes) -> bytes:
    return one + one


def lost(one: bytes) -> bytes:
    return b""


def unknown(one: bytes) -> bytes:
    return b"?" + one[1:]


def short(one: bytes) -> bytes:
    return one[:1] + struct.pack("!i", 3) + one[5:]


def huge(one: bytes) -> bytes:
    return one[:1] + struct.pack("!I", 0xFFFFFFFF) + one[5:]


def next_type(one: bytes) -> bytes:
    return bytes([one[0] ^ 1]) + one[1:]


FAULTS: list[Callable[[bytes], bytes]] = [doubled, lost, unknown, short, huge, next_type]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("protocol", ["simple", "extended", "named"])
def test_desync_at_every_position(
    relay: Relay, evil: ProxyProcess, protocol: str, fault: Callable[[bytes], bytes]
) -> None:
    """Security rows 8 and 15. One message is harmed; afterwards an honest connection that asks the same has to get the
    truth.
    """
    number = FAULTS.index(fault)
    for position in range(12):
        # A text of its own for each case, so that each has its own key.
        sql = f"SELECT name /* {protocol} {number} {position} */ FROM item WHERE id = 7"
        name = "s" if protocol == "named" else ""
        request = query(sql) if protocol == "simple" else parse(sql, name) + bind(name=name) + DESCRIBE + EXECUTE + SYNC
        with bare(evil.host, evil.port) as victim:
            victim.login(evil.database, application_name="victim")
            victim.socket.settimeout(0.15)
            relay.arm(lambda count, one, at=position: fault(one) if count == at and one[:1] != b"D" else one)
            with contextlib.suppress(OSError):
                victim.send(request)
                victim.until_ready()
                victim.send(request)
                victim.until_ready()
            relay.disarm()
        with bare(evil.host, evil.port) as honest:
            honest.login(evil.database)
            shapes = []
            for _ in range(3):
                honest.send(request)
                seen = honest.until_ready()
                assert first_column(seen) == ["item 7"], (position, seen)
                shapes.append([kind for kind, _ in seen])
                if name:
                    honest.send(message("C", b"Ss\0") + SYNC)
                    honest.until_ready()
            assert shapes[0] == shapes[1] == shapes[2]
            truth = ["T", "D", "C", "Z"] if protocol == "simple" else ["1", "2", "T", "D", "C", "Z"]
            assert shapes[0] == truth, position


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sliced_replies_are_the_same(relay: Relay, evil: ProxyProcess, size: int) -> None:
    """Security row 15."""
    relay.slice_bytes = size
    try:
        for number in range(5):
            with bare(evil.host, evil.port) as victim:
                victim.login(evil.database, application_name="victim")
                for _ in range(3):
                    for sql in (SQL, f"SELECT name /* {size} {number} */ FROM item WHERE id = 7"):
                        assert first_column(victim.simple(sql)) == ["item 7"]
                        assert first_column(victim.extended(sql)) == ["item 7"]
    finally:
        relay.slice_bytes = 0


class Impostor:
    """A server that says what the test wants and nothing else."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(client,), daemon=True).start()

    def _one(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            client.settimeout(5)
            self._serve(client)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Stage:
    """One proxy in front of one impostor, whose words to ``alice`` change; it hangs up on the cache itself."""

    def __init__(self, make: MakeProxy, query: str) -> None:
        self.serve: Callable[[socket.socket], None] = lambda client: None
        self.impostor = Impostor(lambda client: self.serve(client))
        url = f"postgresql://postgres@127.0.0.1:{self.impostor.port}/postgres?{query}"
        self.proxy = make(url, serving=False)

    def says(self, serve: Callable[[socket.socket], None]) -> ProxyProcess:
        self.serve = serve
        return self.proxy


@pytest.fixture(scope="module", params=["sslmode=disable"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with proxies() as make:
        stage = Stage(make, request.param)
        yield stage
        stage.impostor.close()
        assert "Traceback" not in "".join(stage.proxy.log)


def error_of(proxy: ProxyProcess) -> dict[str, str]:
    """What a client of this proxy is told instead of a login."""
    with bare(proxy.host, proxy.port) as client:
        client.send(startup("alice"))
        seen = client.rest()
    assert seen
    assert seen[-1][0] == "E", seen
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)
    return fields(seen[-1][1])


@pytest.mark.parametrize("stage", ["sslmode=require"], indirect=True)
def test_cve_2021_23222_bytes_after_the_answer_to_ssl_request(stage: Stage) -> None:
    """Security rows 5 and 8."""
    def serve(client: socket.socket) -> None:
        client.recv(8)
        client.sendall(b"S" + message("R", struct.pack("!i", 0)) + message("Z", b"I"))
        client.recv(10)

    error = error_of(stage.says(serve))
    assert error["C"] == "08006"
    assert "TLS" in error["M"]


@pytest.mark.parametrize("stage", ["sslmode=prefer"], indirect=True)
def test_cve_2024_10977_error_before_tls_is_not_shown(stage: Stage) -> None:
    """Security rows 6 and 8."""
    def serve(client: socket.socket) -> None:
        client.recv(8)
        client.sendall(message("E", b"SFATAL\0C28000\0MSend your password to evil.example\0\0"))
        client.recv(10)

    proxy = stage.says(serve)
    error = error_of(proxy)
    assert "evil.example" not in str(error)
    assert error["C"] == "08006"


def sasl(body: bytes) -> Callable[[socket.socket], None]:
    def serve(client: socket.socket) -> None:
        if b"alice" not in client.recv(10_000):
            return
        client.sendall(message("R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"))
        client.recv(10_000)
        client.sendall(body)
        client.recv(10_000)

    return serve


def test_cve_2026_6665_long_server_nonce(stage: Stage) -> None:
    """Security row 8. A nonce of 64 KB is relayed or refused, never fatal; one of a gigabyte is not waited for."""
    proxy = stage.says(sasl(message("R", struct.pack("!i", 11) + b"r=" + b"n" * 65536)))
    with bare(proxy.host, proxy.port) as client:
        client.send(startup("alice"))
        client.read()
        client.send(message("p", b"SCRAM-SHA-256\0" + struct.pack("!i", 8) + b"n,,n=,r="))
        seen = client.read()
        assert seen is not None
        assert seen[0] in "RE"
    proxy = stage.says(sasl(b"R" + struct.pack("!i", 1 << 30) + b"x" * 1000))
    with bare(proxy.host, proxy.port) as client:
        client.send(startup("alice"))
        client.read()
        client.send(message("p", b"SCRAM-SHA-256\0" + struct.pack("!i", 8) + b"n,,n=,r="))
        assert [kind for kind, _ in client.rest()] == ["E"]
    assert "Traceback" not in "".join(proxy.log)


LOGIN = message("R", struct.pack("!i", 0)) + message("K", struct.pack("!ii", 77, 77)) + message("Z", b"I")


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(message("E", b"MNo code here\0\0"), id="cve_2026_6666_error_without_sqlstate"),
        pytest.param(message("E", b""), id="empty error"),
        pytest.param(message("E", b"\0"), id="error without fields"),
        pytest.param(message("E", b"SERROR"), id="error without end"),
        pytest.param(message("Z", b""), id="ready without status"),
        pytest.param(message("Z", b"Q"), id="ready with an unknown status"),
        pytest.param(message("Z", b"III"), id="ready too long"),
        pytest.param(message("S", b"half"), id="parameter without value"),
        pytest.param(message("A", b""), id="empty notification"),
        pytest.param(message("T", b"\x7f\xff"), id="row description without columns"),
        pytest.param(message("1"), id="parse complete for a query"),
        pytest.param(message("R", struct.pack("!i", 3)), id="asks for a password again"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(bytes(range(256)), id="all bytes"),
    ],
)
@pytest.mark.parametrize("when", ["login", "query"])
def test_garbage_from_the_server(stage: Stage, reply: bytes, when: str) -> None:
    """Security row 8."""
    def serve(client: socket.socket) -> None:
        if b"alice" not in client.recv(10_000):
            return
        if when == "query":
            client.sendall(LOGIN)
            client.recv(10_000)
        client.sendall(reply)
        client.recv(10_000)

    proxy = stage.says(serve)
    with bare(proxy.host, proxy.port, 0.3) as client:
        client.send(startup("alice"))
        with contextlib.suppress(ConnectionError, TimeoutError):
            if when == "query":
                client.until_ready()
                client.send(query("SELECT 1"))
            client.rest()
    with bare(proxy.host, proxy.port):
        pass
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)
