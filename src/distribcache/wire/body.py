"""A bounds-checked cursor over the body of one message.

Every read says how much it needs and fails with ``ProtocolError`` when that is not there; ``end`` fails when anything
is left over. So a decoder built from these calls cannot read past its message, nor ignore a part of it.
"""

from __future__ import annotations

import struct

from distribcache.errors import ProtocolError

__all__ = ["Body", "Bytes"]

Bytes = bytes | bytearray | memoryview

_i16 = struct.Struct(">h").unpack_from
_u16 = struct.Struct(">H").unpack_from
_i32 = struct.Struct(">i").unpack_from
_u32 = struct.Struct(">I").unpack_from


class Body:
    """Reads from the front of a body; ``what`` names the message in errors."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: Bytes, what: str) -> None:
        self._data = bytes(data)
        self._at = 0
        self._what = what

    def broken(self, reason: str) -> ProtocolError:
        """The error for this message; never contains its bytes, which may be secret."""
        return ProtocolError(reason, where=self._what, hint="close the connection")

    def _need(self, count: int) -> int:
        at = self._at
        if count < 0 or count > len(self._data) - at:
            raise self.broken(f"{count} bytes wanted at offset {at}, {len(self._data) - at} left")
        self._at = at + count
        return at

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def i16(self) -> int:
        (value,) = _i16(self._data, self._need(2))
        return int(value)

    def u16(self) -> int:
        (value,) = _u16(self._data, self._need(2))
        return int(value)

    def i32(self) -> int:
        (value,) = _i32(self._data, self._need(4))
        return int(value)

    def u32(self) -> int:
        (value,) = _u32(self._data, self._need(4))
        return int(value)

    def take(self, count: int) -> bytes:
        at = self._need(count)
        return self._data[at : at + count]

    def cstring(self) -> bytes:
        """Bytes up to the next NUL, which is consumed and not part of the answer."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise self.broken(f"string at offset {self._at} has no terminator")
        text = self._data[self._at : end]
        self._at = end + 1
        return text

    def value(self) -> bytes | None:
        """An int32 length and that many bytes; -1 is NULL."""
        length = self.i32()
        if length == -1:
            return None
        return self.take(length)

    def count(self, each: int) -> int:
        """An unsigned 16-bit count of items of at least ``each`` bytes, refused when they cannot all be there."""
        items = self.u16()
        if items * each > self.left:
            raise self.broken(f"{items} items announced, {self.left} bytes left")
        return items

    def rest(self) -> bytes:
        rest = self._data[self._at :]
        self._at = len(self._data)
        return rest

    def end(self) -> None:
        if self.left:
            raise self.broken(f"{self.left} bytes left over")
