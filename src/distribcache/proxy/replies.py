"""What upstream still owes, in order, and what to do with each of its messages.

Theory. Every message sent upstream adds the reply it will cause to ``pending``; every message that comes back belongs
to the head of that queue. That is enough to know when an exchange is over, which bytes belong to a fill, and which
replies are ours and must not reach the client (a deferred BEGIN, a question about the session).

Rules:
1. A message that the head does not allow is a ProtocolError: both sides are closed and every fill is dropped.
2. After an error the server skips everything up to the next Sync, and so does this queue.
3. In copy-in mode the server ignores Sync and Flush, so those already queued behind the copy never get a reply.
4. Rows are never buffered whole: a message of rows or copy data that is still incomplete is relayed as it comes.

No IO here: bytes in, bytes to relay out, events through ``on_*`` callables.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct

from distribcache.errors import ProtocolError
from distribcache.proxy.fill import Fill
from distribcache.wire.buffer import MAX_MESSAGE
from distribcache.wire.messages import BIND_COMPLETE, PARSE_COMPLETE

__all__ = ["BARE", "DESCRIBED", "PARSED_BARE", "PARSED_DESCRIBED", "Op", "Replies"]

_length = Struct("!I").unpack_from

DESCRIBED, BARE, PARSED_DESCRIBED, PARSED_BARE = b"bvpw"
"""Kinds of ``Op`` that are a whole unit: ``[Parse] Bind [Describe portal] Execute Sync``."""

CONTROL_CAP = 64 * 1024 * 1024
"""Largest message other than rows and copy data that is accepted from a server, bytes."""

_PLAIN, _OTHER, _NEXT, _LAST, _ANY_TIME, _FORBIDDEN = range(6)
"""What a message does to the operation that it answers: nothing, something to look at, goes on, ends it; or it may come
at any time, or never.
"""
_COMMON = dict.fromkeys(b"NSAE", _ANY_TIME)


def _may(*, plain: bytes = b"", other: bytes = b"", goes_on: bytes = b"", last: bytes = b"") -> dict[int, int]:
    steps = ((plain, _PLAIN), (other, _OTHER), (goes_on, _NEXT), (last, _LAST))
    return {kind: step for kinds, step in steps for kind in kinds} | _COMMON


_STEPS: dict[int, dict[int, int]] = {
    ord("P"): _may(last=b"1"),
    ord("B"): _may(last=b"2"),
    ord("C"): _may(last=b"3"),
    ord("D"): _may(plain=b"t", last=b"Tn"),
    ord("E"): _may(plain=b"D", other=b"GHdc", last=b"CIs"),
    ord("Q"): _may(plain=b"TDns", other=b"CIGHdc", last=b"Z"),
    ord("F"): _may(plain=b"V", last=b"Z"),
    ord("S"): _may(last=b"Z"),
    ord("q"): _may(goes_on=b"T"),
    ord("r"): _may(plain=b"D", goes_on=b"C"),
    ord("p"): _may(goes_on=b"1"),
    ord("b"): _may(goes_on=b"2"),
    ord("t"): _may(goes_on=b"Tn"),
    ord("w"): _may(goes_on=b"1"),
    ord("v"): _may(goes_on=b"2"),
    ord("x"): _may(plain=b"D", other=b"GHdc", goes_on=b"CIs"),
}
"""``q`` and ``r``: a simple Query whose reply is being gathered: one description, rows, one completion. ``p`` to ``x``:
the same of a unit of the extended protocol, from its Parse, its Bind or its description on.
"""
_FOLLOWS = {ord(one): ord(other) for one, other in ("qr", "rS", "pb", "bt", "tx", "wv", "vx", "xS")}
_HEADS = {
    ord("q"): (b"", True),
    DESCRIBED: (BIND_COMPLETE, True),
    BARE: (BIND_COMPLETE, False),
    PARSED_DESCRIBED: (PARSE_COMPLETE + BIND_COMPLETE, True),
    PARSED_BARE: (PARSE_COMPLETE + BIND_COMPLETE, False),
}
"""How the reply to a whole unit begins, and whether a description follows."""
_STREAMED = frozenset(b"DdV")
_UNITS = frozenset(b"qrpbtwvx")
_ENDED_BY_READY = frozenset(b"QFS") | _UNITS
_DATA_ROW, _READY, _ERROR, _COPY_IN = b"DZEG"
_EXECUTE, _SYNC, _SUSPENDED, _COMPLETE = b"ESsC"
_QUERY, _GATHERED = b"Qq"
_STATUSES = (b"I", b"T", b"E")
_READYS = tuple(b"Z\0\0\0\5" + each for each in _STATUSES)
_READY_SIZE = 6
_DESCRIPTION = ord("T")
_PARSED = frozenset((PARSED_DESCRIBED, PARSED_BARE))
_COMMITS = (b"COMMIT", b"PREPARE TRANSACTION", b"CALL", b"DO")
_SPOILS = frozenset(b"GHdcI")
_ALWAYS_RELAYED = frozenset(b"SA")
"""Changed parameters and notifications are the client's even in the middle of a question of ours."""


def _unasked(head: Op | None) -> str:
    return ", which owes nothing" if head is None else f" in reply to {chr(head.kind)!r}"


def _fatal(error: bytes) -> bool:
    return b"VFATAL\0" in error or b"VPANIC\0" in error


class Op:
    """One message sent upstream that will be answered.

    ``kind`` is its type byte. ``ours``: its reply is not the client's, unless ``relay_error`` and it is an error.
    ``fill`` gathers the reply, ``rows`` the rows of a reply that is ours, of which those behind ``room`` bytes are
    dropped. ``done`` is called with the type byte of the last message of the reply (or of the error) and that message's
    bytes; for a unit as a whole also with each message between its parts.
    """

    __slots__ = ("copies", "done", "fill", "kind", "ours", "relay_error", "room", "rows")

    def __init__(
        self,
        kind: int,
        *,
        ours: bool = False,
        relay_error: bool = False,
        fill: Fill | None = None,
        done: Callable[[int, bytes], None] | None = None,
        rows: list[bytes] | None = None,
        room: int = CONTROL_CAP,
    ) -> None:
        self.copies = 0
        """How many ends of copy data the client had sent before this message."""
        self.kind = kind if fill is None or kind != _QUERY else _GATHERED
        self.ours = ours
        self.relay_error = relay_error
        self.fill = fill
        self.done = done
        self.rows = rows
        self.room = room


class Replies:
    """The queue of owed replies of one upstream connection, and the relay through it."""

    __slots__ = (
        "_dropped",
        "_since",
        "_stream",
        "_stream_fill",
        "_tail",
        "copies",
        "copying_in",
        "on_commit",
        "on_notification",
        "on_parameter",
        "on_ready",
        "pending",
        "skipping",
        "status",
    )

    def __init__(
        self,
        on_ready: Callable[[bytes, bool], None],
        on_parameter: Callable[[bytes], None],
        on_notification: Callable[[], None],
    ) -> None:
        self.pending: deque[Op] = deque()
        self.skipping = False
        """After an error: the server ignores everything up to the next Sync."""
        self.copying_in = False
        self.copies = 0
        """How many times the client has ended copy data, with CopyDone or CopyFail."""
        self._since = 0
        self.status = b"I"
        self.on_ready = on_ready
        self.on_parameter = on_parameter
        self.on_notification = on_notification
        self.on_commit: Callable[[], None] = lambda: None
        """Called before a completion is relayed that may say that something was committed."""
        self._tail = b""
        self._stream = 0
        self._stream_fill: Fill | None = None
        self._dropped = 0
        """Bytes still to come of a row of ours that is too long."""

    def expect(self, op: Op) -> None:
        """Note a message that is being sent upstream now."""
        if self.skipping:
            if op.fill is not None:
                op.fill.spoil()
            if op.kind == _SYNC:  # Sync ends the skipping on the server's side
                self.skipping = False
                self.pending.append(op)
            return
        if op.kind == _SYNC and self.wants_data:
            return
        op.copies = self.copies
        self.pending.append(op)

    @property
    def ends(self) -> bool:
        """Is a ReadyForQuery owed?"""
        for op in reversed(self.pending):
            if op.kind in _ENDED_BY_READY:
                return True
        return False

    @property
    def wants_data(self) -> bool:
        """Does the server copy what the client sends, and wait for more? It answers when the client has ended it."""
        return self.copying_in and self.copies == self._since

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the server; returns the bytes that are the client's. Raises ProtocolError."""
        if len(self.pending) == 1 and self._at_once(data):
            return data
        out: list[bytes] = []
        pos = 0
        if self._dropped:
            pos = min(self._dropped, len(data))
            self._dropped -= pos
            data = data[pos:]
            pos = 0
        if self._stream:
            pos = min(self._stream, len(data))
            self._stream -= pos
            if self._stream_fill is not None:
                self._stream_fill.add(data[:pos])
            out.append(data if pos == len(data) else data[:pos])
            if pos == len(data):
                return data
        if self._tail:
            data = self._tail + data[pos:]
            self._tail = b""
            pos = 0
        size = len(data)
        pending = self.pending
        start = pos  # the range [start:pos] is the client's and not yet in ``out``
        filled = pos  # the range [filled:pos] belongs to the head's fill
        head = pending[0] if pending else None
        steps = _COMMON if head is None else _STEPS[head.kind]
        while size - pos >= 5:
            kind = data[pos]
            length = _length(data, pos + 1)[0]
            if length < 4:
                raise ProtocolError(f"message {chr(kind)!r} from the server has length {length}")
            end = pos + 1 + length
            step = steps.get(kind, _FORBIDDEN)
            if step == _FORBIDDEN:
                raise ProtocolError(f"message {chr(kind)!r} from the server{_unasked(head)}")
            ours = head is not None and head.ours and kind not in _ALWAYS_RELAYED
            if end > size:
                if length > MAX_MESSAGE:
                    raise ProtocolError(f"message {chr(kind)!r} from the server has length {length}")
                if kind in _STREAMED and not ours:
                    self._stream = end - size
                    self._stream_fill = None if head is None else head.fill
                    pos = size
                elif kind == _DATA_ROW and head is not None and length >= head.room:
                    head.room = -1
                    self._dropped = end - size
                    if start < pos:
                        out.append(data[start:pos])
                    return out[0] if len(out) == 1 else b"".join(out)
                elif length > CONTROL_CAP:
                    raise ProtocolError(f"message {chr(kind)!r} from the server has {length} bytes")
                break
            if step == _PLAIN and not ours:
                pos = end
                continue
            message = data[pos:end]
            popped: Op | None = None
            if step == _ANY_TIME:
                if kind == _ERROR and ours and head is not None and (head.relay_error or _fatal(message)):
                    ours = False
                popped = self._common(kind, message, head)
                steps = _COMMON if head is None else _STEPS[head.kind]
            elif head is not None:
                if step == _LAST:
                    popped = pending.popleft()
                elif step == _NEXT:
                    if head.done is not None:
                        head.done(kind, message)
                    head.kind = _FOLLOWS[head.kind]
                    steps = _STEPS[head.kind]
                elif kind == _COPY_IN:
                    self._copy_in(head)
                if kind == _COMPLETE and message.startswith(_COMMITS, 5):
                    self.on_commit()
                fill = head.fill
                if fill is not None:
                    if kind in _SPOILS or (kind == _SUSPENDED and not fill.limited):
                        fill.spoil()
                    elif kind == _COMPLETE or kind == _SUSPENDED:
                        fill.whole = True
            if kind == _READY:
                self.status = message[5:6]
                if self.status not in _STATUSES or length != 5:
                    raise ProtocolError("ReadyForQuery from the server with an unknown status")
            if ours:
                if kind == _DATA_ROW and head is not None and head.rows is not None:
                    head.room -= length + 1
                    if head.room >= 0:
                        head.rows.append(message)
                if start < pos:
                    out.append(data[start:pos])
                start = end
            if popped is not None:
                if popped.kind == _EXECUTE or kind == _READY:
                    self.copying_in = False
                fill = popped.fill
                if fill is None:
                    filled = end
                elif not pending or pending[0].fill is not fill:  # else they are added together
                    fill.add(data[filled : pos if kind == _READY else end])
                    filled = end
                if popped.done is not None:
                    popped.done(kind, message)
                if kind == _READY:
                    self.on_ready(self.status, popped.ours)
                head = pending[0] if pending else None
                steps = _COMMON if head is None else _STEPS[head.kind]
            pos = end
        if head is not None and head.fill is not None and filled < pos:
            head.fill.add(data[filled:pos])
        if start < pos:
            out.append(data if start == 0 and pos == size else data[start:pos])
        if pos < size:
            self._tail = data[pos:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _at_once(self, data: bytes) -> bool:
        """Take the whole reply to a unit that is gathered, as it should be; False when it is another, and unchanged."""
        head = self.pending[0]
        known = _HEADS.get(head.kind)
        end = len(data) - _READY_SIZE
        if known is None or self._tail or self._stream or self._dropped or not data.endswith(_READYS):
            return False
        before, described = known
        if not data.startswith(before):
            return False
        pos = len(before)
        while pos + 5 <= end:
            kind, length = data[pos], _length(data, pos + 1)[0]
            if length < 4 or kind != (_DESCRIPTION if described else _DATA_ROW):
                break
            described = False
            pos += 1 + length
        if described or pos + 5 > end or data[pos] != _COMPLETE or pos + 1 + _length(data, pos + 1)[0] != end:
            return False
        if data.startswith(_COMMITS, pos + 5):
            return False
        fill = head.fill
        if fill is not None:
            fill.whole = True
            fill.add(data[:end])
        if head.done is not None:
            if head.kind in _PARSED:
                head.done(PARSE_COMPLETE[0], PARSE_COMPLETE)
            head.done(_READY, data[end:])
        self.pending.popleft()
        self.status = data[-1:]
        self.on_ready(self.status, head.ours)
        return True

    def _common(self, kind: int, message: bytes, head: Op | None) -> Op | None:
        """Notice, parameter, notification or error: what may come at any time. Returns the operation that it ends."""
        for op in self.pending:
            if op.fill is not None:
                op.fill.spoil()
        if kind == 0x53:  # ParameterStatus
            self.on_parameter(message)
        elif kind == 0x41:  # NotificationResponse
            self.on_notification()
        elif kind == _ERROR and head is not None:
            return self._failed(head, message)
        return None

    def _failed(self, head: Op, message: bytes) -> Op | None:
        """An error ends the head; in the extended protocol everything up to the next Sync goes unanswered."""
        self.copying_in = False
        if head.kind in _ENDED_BY_READY:  # ReadyForQuery is still owed
            if head.kind in _UNITS:
                head.kind = _SYNC
            if head.done is not None:
                head.done(_ERROR, message)
            return None
        self.pending.popleft()
        while self.pending and self.pending[0].kind != _SYNC:
            self.pending.popleft()
        if not self.pending:
            self.skipping = True
        return head

    def _copy_in(self, head: Op) -> None:
        self.copying_in = True
        self._since = head.copies
        if head.kind == _EXECUTE:
            kept = [op for op in self.pending if op.kind != _SYNC or op.copies != head.copies]
            self.pending.clear()
            self.pending.extend(kept)
        head.copies += 1  # a Query may copy more than once
