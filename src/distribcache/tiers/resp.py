"""RESP2, the protocol of Valkey and Redis: requests to bytes, bytes to replies. No IO.

The server is untrusted input, like any other peer. Rules:

1. ``Replies.feed`` takes bytes as they come, in any pieces, and returns the replies that are complete.
2. Every length is checked before anything is kept for it: a bulk is at most ``max_bulk`` bytes, a line 4 KiB, an array
   with all that it holds 2^18 items and 4 MiB, five arrays deep. A number is digits and nothing else.
3. What breaks a rule raises ``MalformedReplyError``. What follows cannot be told apart any more: the connection has to
   end.
4. An error of the server is an ordinary reply, a ``Refusal``: questions after it are answered all the same.

Pieces of a long bulk are joined once, when the last has come; a reply that is trickled costs no more than its length.
Pure Python, on purpose: hiredis makes room for as many items as an array claims to have before they come, and takes
bulks of any length. One by one a look-up costs the same with either; under load hiredis would spare about 2 of the 20
microseconds of a look-up in the tier (``benchmarks/l3.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_LINE", "MalformedReplyError", "Refusal", "Replies", "Reply", "command"]

MAX_LINE = 4096
_MAX_ITEMS = 1 << 18
_MAX_ARRAY_BYTES = 4 << 20
_MAX_DEPTH = 5

_KINDS = b"+-:$*"
_SIMPLE, _ERROR, _INTEGER, _BULK, _ARRAY = _KINDS


class MalformedReplyError(Exception):
    """Bytes that are no RESP2, or beyond the bounds. The text holds nothing that the server sent."""


class Refusal:
    """An error reply; ``code`` is its first word in lower case, ``text`` the whole of it."""

    __slots__ = ("code", "text")

    def __init__(self, line: bytes) -> None:
        self.text = line.decode("utf-8", "replace")
        self.code = self.text.partition(" ")[0].lower()

    def __repr__(self) -> str:
        return f"Refusal({self.text!r})"


Reply = bytes | int | Refusal | list["Reply"] | None


def command(*words: bytes) -> bytes:
    """A request."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Replies:
    """Cuts one connection's bytes into replies."""

    __slots__ = ("_array_bytes", "_have", "_items", "_max_bulk", "_need", "_open", "_pieces")

    def __init__(self, max_bulk: int) -> None:
        self._max_bulk = max_bulk
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = 0
        """Bytes that the pieces must have together before looking again can get any further."""
        self._open: list[tuple[list[Reply], int]] = []
        """Arrays that have begun and not ended, the outermost first, with the number of items that each has to get."""
        self._items = 0
        self._array_bytes = 0

    def feed(self, data: bytes) -> Sequence[Reply]:  # noqa: C901 - one loop without calls, for speed
        """The replies that ``data`` completes. Raises MalformedReplyError, after which nothing may be fed any more."""
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return ()
            data = b"".join(self._pieces)
            self._pieces.clear()
        replies: list[Reply] = []
        at, end = 0, len(data)
        while at < end:
            kind = data[at]
            stop = data.find(b"\r\n", at, at + MAX_LINE)
            if stop < 0:
                if end - at >= MAX_LINE or kind not in _KINDS:
                    raise MalformedReplyError("a line without end")
                self._keep(data, at, end - at + 1)
                break
            value: Reply
            if kind == _BULK:
                length = _number(data, at + 1, stop)
                at_value = stop + 2
                if length < 0:
                    if length != -1:
                        raise MalformedReplyError("a bulk of negative length")
                    value = None
                    after = at_value
                else:
                    if length > self._max_bulk:
                        raise MalformedReplyError("a bulk beyond the bound")
                    after = at_value + length + 2
                    if after > end:
                        self._keep(data, at, after - at)
                        break
                    if data[after - 2 : after] != b"\r\n":
                        raise MalformedReplyError("a bulk without its end")
                    value = data[at_value : after - 2]
            elif kind == _SIMPLE:
                value, after = data[at + 1 : stop], stop + 2
            elif kind == _ERROR:
                value, after = Refusal(data[at + 1 : stop]), stop + 2
            elif kind == _INTEGER:
                value, after = _number(data, at + 1, stop), stop + 2
            elif kind == _ARRAY:
                length = _number(data, at + 1, stop)
                after = stop + 2
                if length > 0:
                    self._begin(length)
                    at = after
                    continue
                if length < -1:
                    raise MalformedReplyError("an array of negative length")
                value = [] if length == 0 else None
            else:
                raise MalformedReplyError("a reply of no kind")
            if not self._open:
                replies.append(value)
            elif self._add(value, after - at):
                replies.append(self._open.pop()[0])
            at = after
        return replies

    def _keep(self, data: bytes, at: int, need: int) -> None:
        self._pieces.append(data[at:])
        self._have = len(data) - at
        self._need = need

    def _begin(self, length: int) -> None:
        if not self._open:
            self._items = self._array_bytes = 0
        if length > _MAX_ITEMS or len(self._open) >= _MAX_DEPTH:
            raise MalformedReplyError("an array beyond the bound")
        self._open.append(([], length))

    def _add(self, value: Reply, size: int) -> bool:
        """Put an item into the innermost open array; True when that ended the outermost, which is then left alone."""
        self._items += 1
        self._array_bytes += size
        if self._items > _MAX_ITEMS or self._array_bytes > _MAX_ARRAY_BYTES:
            raise MalformedReplyError("an array beyond the bound")
        while True:
            items, length = self._open[-1]
            items.append(value)
            if len(items) < length:
                return False
            if len(self._open) == 1:
                return True
            self._open.pop()
            value = items


def _number(data: bytes, at: int, stop: int) -> int:
    """Digits, perhaps behind a minus: ``int`` alone would take blanks, underscores and a plus."""
    digits = data[at:stop]
    bare = digits[1:] if digits[:1] == b"-" else digits
    if not bare.isdigit() or len(bare) > 19:
        raise MalformedReplyError("not a number")
    return int(digits)
