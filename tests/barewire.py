"""A client of raw bytes from the very first packet on, for what no driver would send, and the messages it needs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def startup(user: str = "postgres", database: str = "postgres", **more: str) -> bytes:
    pairs = {"user": user, "database": database, **more}
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in pairs.items()) + b"\0"
    return struct.pack("!ii", len(body) + 8, 3 << 16) + body


def cancel(pid: int, secret: bytes) -> bytes:
    return struct.pack("!iii", 12 + len(secret), 80877102, pid) + secret


def query(sql: str) -> bytes:
    return message("Q", sql.encode() + b"\0")


def parse(sql: str, name: str = "") -> bytes:
    return message("P", name.encode() + b"\0" + sql.encode() + b"\0\0\0")


def bind(*values: str, name: str = "", portal: str = "") -> bytes:
    body = portal.encode() + b"\0" + name.encode() + b"\0" + struct.pack("!hh", 0, len(values))
    for value in values:
        body += struct.pack("!i", len(value)) + value.encode()
    return message("B", body + b"\0\0")


DESCRIBE = message("D", b"P\0")
EXECUTE = message("E", b"\0\0\0\0\0")
SYNC = message("S")
FLUSH = message("H")


def ask(sql: str, *values: str) -> bytes:
    """An unnamed extended query, whole."""
    return parse(sql) + bind(*values) + DESCRIBE + EXECUTE + SYNC


class Bare:
    """One socket; ``read`` gives whole messages as (type, body), the end of the stream as ``None``."""

    def __init__(self, host: str, port: int, timeout: float = 60.0) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.pid = 0
        self.secret = b""
        self._kept = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, count: int) -> bytes:
        while len(self._kept) < count:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionResetError("closed")
            self._kept += data
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    def read(self) -> tuple[str, bytes] | None:
        try:
            head = self.take(5)
            return chr(head[0]), self.take(struct.unpack("!i", head[1:])[0] - 4)
        except ConnectionError:
            return None

    def until_ready(self) -> list[tuple[str, bytes]]:
        """Messages up to ReadyForQuery. Raises ConnectionError when the stream ends before it."""
        seen = []
        while True:
            one = self.read()
            if one is None:
                raise ConnectionResetError(seen)
            seen.append(one)
            if one[0] == "K":
                self.pid, self.secret = struct.unpack("!i", one[1][:4])[0], one[1][4:]
            if one[0] == "Z":
                return seen

    def rest(self) -> list[tuple[str, bytes]]:
        """Messages up to the end of the stream."""
        return list(iter(self.read, None))

    def login(self, database: str, user: str = "postgres", **more: str) -> Bare:
        self.send(startup(user, database, **more))
        self.until_ready()
        return self

    def simple(self, sql: str) -> list[tuple[str, bytes]]:
        self.send(query(sql))
        return self.until_ready()

    def extended(self, sql: str, *values: str) -> list[tuple[str, bytes]]:
        self.send(ask(sql, *values))
        return self.until_ready()

    def close(self) -> None:
        self.socket.close()


@contextmanager
def bare(host: str, port: int, timeout: float = 60.0) -> Iterator[Bare]:
    client = Bare(host, port, timeout)
    try:
        yield client
    finally:
        client.close()


def fields(body: bytes) -> dict[str, str]:
    """An ErrorResponse by its field codes."""
    return {chr(part[0]): part[1:].decode() for part in body.split(b"\0") if part}


def first_column(messages: list[tuple[str, bytes]]) -> list[str]:
    """The first column of every DataRow, as text."""
    found = []
    for kind, body in messages:
        if kind == "D":
            length = struct.unpack_from("!i", body, 2)[0]
            found.append(body[6 : 6 + length].decode())
    return found
