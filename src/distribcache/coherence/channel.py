"""The way between the process that follows databases and one of its workers: messages over a pair of Unix sockets.

Rules:
1. A message is a length and a body. A body is a JSON object, or begins with a byte below 32 and is a few packed
   numbers: those are the ones that go hundreds of times a second. Nothing in a message can run code.
2. Order is kept. What a process stores in shared memory before it sends, the other sees when it has received: that is
   the one barrier that the ledger rests on.
3. Nobody ever waits to send. A worker that does not read gets no more states (``full``), which replace each other
   anyway; one with more than ``_MOST_UNREAD`` bytes to read is given up.
4. The end of a channel is the end of the worker: ``on_end`` is called once.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, cast

__all__ = ["Channel", "State", "Traffic", "Want", "open_channel", "pair"]

_LENGTH: Final = Struct("<I")
_LONGEST: Final = 64 << 20
_MOST_UNREAD: Final = 128 << 20
_STATE, _WANT, _TRAFFIC = 1, 2, 3
_state = Struct("<BBI7Q")
_want = Struct("<BIQd")
_traffic = Struct("<BI")


class State(NamedTuple):
    """Where a database stands, its stores all done: epoch, W, V and ``fresh_at`` as in the ledger, two dates of the
    looks at its catalogue, and how many alarms of workers were heard.
    """

    database: int
    serving: bool
    fills: bool
    epoch: int
    applied: int
    visible: int
    fresh_at: int
    looked_at: int
    confirmed: int
    heard: int

    def packed(self) -> bytes:
        flags = self.serving | self.fills << 1
        return _state.pack(_STATE, flags, self.database, *self[3:])


class Want(NamedTuple):
    """A hit waits for ``fresh_at`` to pass ``floor_ns``, for so many seconds."""

    database: int
    floor_ns: int
    seconds: float

    def packed(self) -> bytes:
        return _want.pack(_WANT, *self)


class Traffic(NamedTuple):
    """Somebody reads this database."""

    database: int

    def packed(self) -> bytes:
        return _traffic.pack(_TRAFFIC, *self)


Message = State | Want | Traffic | dict[str, Any]


def _read(body: bytes) -> Message:
    kind = body[0]
    if kind == _STATE:
        _, flags, database, *numbers = _state.unpack(body)
        return State(database, bool(flags & 1), bool(flags & 2), *numbers)
    if kind == _WANT:
        return Want(*_want.unpack(body)[1:])
    if kind == _TRAFFIC:
        return Traffic(*_traffic.unpack(body)[1:])
    return cast("dict[str, Any]", json.loads(body))


class Channel(asyncio.Protocol):
    """One end. ``on_room``: it is no longer full."""

    def __init__(self, on_message: Callable[[Message], None], on_end: Callable[[], None]) -> None:
        self.on_message = on_message
        self.on_end = on_end
        self.on_room: Callable[[], None] = lambda: None
        self.full = False
        self.ended = False
        self._transport: asyncio.WriteTransport | None = None
        self._unread = bytearray()

    def send(self, message: Message) -> None:
        """Send now, or as soon as there is room; into a channel that has ended, nothing."""
        transport = self._transport
        if transport is None or self.ended:
            return
        body = json.dumps(message).encode() if isinstance(message, dict) else message.packed()
        transport.write(_LENGTH.pack(len(body)) + body)
        if transport.get_write_buffer_size() > _MOST_UNREAD:
            transport.abort()

    def close(self) -> None:
        """End it when all is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.set_write_buffer_limits(high=1 << 16)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.on_room()

    def data_received(self, data: bytes) -> None:
        unread = self._unread
        unread += data
        at = 0
        while len(unread) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(unread, at)
            if not 0 < length <= _LONGEST:
                self._lost()
                return
            end = at + _LENGTH.size + length
            if end > len(unread):
                break
            self.on_message(_read(bytes(unread[at + _LENGTH.size : end])))
            at = end
        del unread[:at]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()

    def _lost(self) -> None:
        if not self.ended:
            self.ended = True
            if self._transport is not None:
                self._transport.abort()
            self.on_end()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    return ours, theirs


async def open_channel(sock: socket.socket, channel: Channel) -> None:
    """Let a channel use one end of a pair, which it owns from now on."""
    sock.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=sock)
