"""A client that says exactly the bytes that a test wants said."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

from distribcache.wire.messages import SYNC, bind, execute, parse, read_data_row

__all__ = ["RawClient", "run", "split"]


def split(data: bytes) -> list[bytes]:
    """Whole messages, with their headers."""
    messages = []
    at = 0
    while at < len(data):
        end = at + 1 + struct.unpack_from("!I", data, at + 1)[0]
        messages.append(data[at:end])
        at = end
    return messages


def run(sql: bytes) -> bytes:
    """Parse, Bind and Execute of the unnamed statement, with no Sync behind them."""
    return parse(b"", sql) + bind(b"", b"") + execute(b"")


class RawClient:
    """Logs in without a password and reads whole messages; every read has a deadline."""

    def __init__(
        self, host: str, port: int, database: str, user: str = "postgres", seconds: float = 60.0, **parameters: str
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout=seconds)
        pairs = {"user": user, "database": database, **parameters}
        body = b"".join(text.encode() + b"\0" for pair in pairs.items() for text in pair) + b"\0"
        self.socket.sendall(struct.pack("!II", len(body) + 8, 196608) + body)
        self._buffer = b""
        self.greeting = self.until(b"Z")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def message(self) -> bytes:
        """The next message; EOFError when the other side has closed."""
        while len(self._buffer) < 5 or len(self._buffer) < 1 + struct.unpack_from("!I", self._buffer, 1)[0]:
            more = self.socket.recv(65536)
            if not more:
                raise EOFError
            self._buffer += more
        end = 1 + struct.unpack_from("!I", self._buffer, 1)[0]
        message, self._buffer = self._buffer[:end], self._buffer[end:]
        return message

    def until(self, kind: bytes) -> list[bytes]:
        """Messages up to and with the first of type ``kind``."""
        messages = [self.message()]
        while messages[-1][:1] != kind:
            messages.append(self.message())
        return messages

    def exchange(self, data: bytes) -> list[bytes]:
        """Send, and read up to ReadyForQuery."""
        self.send(data)
        return self.until(b"Z")

    def rows_until_ready(self) -> list[list[bytes | None]]:
        """The values of the rows in the reply that comes now."""
        return [list(read_data_row(message[5:]).values) for message in self.until(b"Z") if message[:1] == b"D"]

    def rows(self, data: bytes) -> list[list[bytes | None]]:
        """Send, and read the values of the rows up to ReadyForQuery."""
        self.send(data)
        return self.rows_until_ready()

    def sync(self) -> list[bytes]:
        return self.exchange(SYNC)
