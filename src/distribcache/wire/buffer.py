"""From the bytes of a socket to messages: framing, and nothing else.

After start-up every message of the protocol is a type byte, a big-endian int32 length that counts itself but not the
type byte, and the body. ``Inbox`` hands out whole messages, for what has to be understood before it goes on.

Rules:
1. A length is checked as soon as its four bytes are there, before a byte of the body is kept. Below 4 or above the
   limit is a ``ProtocolError``; so memory is bounded by the limit plus one read of the socket.
2. After an error the reader is dead: every later call raises again. Bytes after a bad length are never reinterpreted.
3. The reader does not know who is client and who is server, nor what a type byte means.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from distribcache.errors import ProtocolError

__all__ = ["HEADER", "MAX_MESSAGE", "Inbox"]

HEADER = 5
"""Bytes before the body: type and length."""

MAX_MESSAGE = 0x3FFFFFFF
"""Greatest length that PostgreSQL sends or takes (1 GiB - 1); counts the length's own four bytes, not the type."""

_length_at = struct.Struct(">i").unpack_from


def _checked(length: int, limit: int) -> int:
    if length < 4:
        raise ProtocolError(f"message length {length} is below 4", where="framing", hint="close the connection")
    if length > limit:
        raise ProtocolError(
            f"message length {length} is over the limit of {limit} bytes",
            where="framing",
            hint="raise the message limit if such messages are expected",
        )
    return length


class Inbox:
    """Whole messages: ``feed`` bytes, then iterate. Each item is one message with its header, as ``bytes``.

    Iterating ends when the next message is incomplete and may be taken up again after the next ``feed``.
    Raises ``ProtocolError`` for a length below 4 or over ``limit``.
    """

    __slots__ = ("_at", "_dead", "_kept", "limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        """``limit``: greatest length field accepted, in bytes; it may be changed between messages."""
        self.limit = min(limit, MAX_MESSAGE)
        # bytes as they came while messages are complete in one read (the usual case, no copy); a bytearray while a
        # message is being gathered, so that a peer sending single bytes costs neither quadratic time nor objects.
        self._kept: bytes | bytearray = b""
        self._at = 0
        self._dead: ProtocolError | None = None

    def feed(self, data: bytes) -> None:
        """Add what the socket gave. Never raises for bad bytes: reading the messages does."""
        if self._at == len(self._kept):
            self._kept, self._at = data, 0
        elif isinstance(self._kept, bytearray):
            if self._at:
                del self._kept[: self._at]
                self._at = 0
            self._kept += data
        else:
            gathered = bytearray(memoryview(self._kept)[self._at :])
            gathered += data
            self._kept, self._at = gathered, 0

    @property
    def pending(self) -> int:
        """Bytes that have come and belong to no message handed out yet."""
        return len(self._kept) - self._at

    def take_rest(self) -> bytes:
        """Hand out and forget the pending bytes, for a connection that changes its protocol (TLS, replication)."""
        rest = bytes(memoryview(self._kept)[self._at :])
        self._kept, self._at = b"", 0
        return rest

    def _slice(self, start: int, end: int) -> bytes:
        kept = self._kept
        if isinstance(kept, bytes):
            return kept[start:end]
        return bytes(memoryview(kept)[start:end])

    def _fail(self, error: ProtocolError) -> ProtocolError:
        self._dead = error
        self._kept, self._at = b"", 0
        return error

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._dead is not None:
            raise self._dead
        at = self._at
        have = len(self._kept) - at
        if have < HEADER:
            raise StopIteration
        (length,) = _length_at(self._kept, at + 1)
        try:
            end = at + 1 + _checked(length, self.limit)
        except ProtocolError as error:
            raise self._fail(error) from None
        if have < 1 + length:
            raise StopIteration
        message = self._slice(at, end)
        self._at = end
        return message
