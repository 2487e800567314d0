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

__all__ = ["Op", "Replies"]

_length = Struct("!I").unpack_from

CONTROL_CAP = 64 * 1024 * 1024
"""Largest message other than rows and copy data that is accepted from a server, bytes."""

_COMMON = b"NSAE"
_BODY = b"TDCIGHdcsn"
_ALLOWED: dict[int, frozenset[int]] = {
    ord("P"): frozenset(b"1" + _COMMON),
    ord("B"): frozenset(b"2" + _COMMON),
    ord("C"): frozenset(b"3" + _COMMON),
    ord("D"): frozenset(b"tTn" + _COMMON),
    ord("E"): frozenset(b"DCIsGHdc" + _COMMON),
    ord("Q"): frozenset(_BODY + b"Z" + _COMMON),
    ord("F"): frozenset(b"VZ" + _COMMON),
    ord("S"): frozenset(b"Z" + _COMMON),
    ord("q"): frozenset(b"T" + _COMMON),
    ord("r"): frozenset(b"DC" + _COMMON),
}
"""``q`` and ``r``: a simple Query whose reply is being gathered: one description, rows, one completion."""
_FOLLOWS: dict[tuple[int, int], int] = {(ord("q"), ord("T")): ord("r"), (ord("r"), ord("C")): ord("S")}
_IDLE = frozenset(_COMMON)
_STREAMED = frozenset(b"DdV")
_DATA_ROW, _READY, _ERROR, _COPY_IN = b"DZEG"
_EXECUTE, _SYNC, _SUSPENDED, _COMPLETE = b"ESsC"
_QUERY, _GATHERED = b"Qq"
_COMMITS = (b"COMMIT", b"PREPARE TRANSACTION", b"CALL", b"DO")
_SPOILS = frozenset(b"GHdcI")
_ALWAYS_RELAYED = frozenset(b"SA")
"""Changed parameters and notifications are the client's even in the middle of a question of ours."""
_ENDS: dict[int, frozenset[int]] = {
    ord("P"): frozenset(b"1"),
    ord("B"): frozenset(b"2"),
    ord("C"): frozenset(b"3"),
    ord("D"): frozenset(b"Tn"),
    ord("E"): frozenset(b"CIs"),
    ord("Q"): frozenset(b"Z"),
    ord("F"): frozenset(b"Z"),
    ord("S"): frozenset(b"Z"),
    ord("q"): frozenset(),
    ord("r"): frozenset(),
}


def _fatal(error: bytes) -> bool:
    return b"VFATAL\0" in error or b"VPANIC\0" in error


class Op:
    """One message sent upstream that will be answered.

    ``kind`` is its type byte. ``ours``: its reply is not the client's, unless ``relay_error`` and it is an error.
    ``fill`` gathers the reply, ``rows`` the rows of a reply that is ours. ``done`` is called with the type byte of the
    last message of the reply (or of the error) and that message's bytes.
    """

    __slots__ = ("copies", "done", "fill", "kind", "ours", "relay_error", "rows")

    def __init__(
        self,
        kind: int,
        *,
        ours: bool = False,
        relay_error: bool = False,
        fill: Fill | None = None,
        done: Callable[[int, bytes], None] | None = None,
        rows: list[bytes] | None = None,
    ) -> None:
        self.copies = 0
        """How many ends of copy data the client had sent before this message."""
        self.kind = kind if fill is None or kind != _QUERY else _GATHERED
        self.ours = ours
        self.relay_error = relay_error
        self.fill = fill
        self.done = done
        self.rows = rows


class Replies:
    """The queue of owed replies of one upstream connection, and the relay through it."""

    __slots__ = (
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

    def expect(self, op: Op) -> None:
        """Note a message that is being sent upstream now."""
        if self.skipping:
            if op.fill is not None:
                op.fill.spoil()
            if op.kind == _SYNC:  # Sync ends the skipping on the server's side
                self.skipping = False
                self.pending.append(op)
            return
        if self.copying_in and op.kind == _SYNC and self.copies == self._since:
            return
        op.copies = self.copies
        self.pending.append(op)

    @property
    def ends(self) -> bool:
        """Is a ReadyForQuery owed?"""
        return any(op.kind in b"SQFqr" for op in reversed(self.pending))

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the server; returns the bytes that are the client's. Raises ProtocolError."""
        out: list[bytes] = []
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
        head = pending[0] if pending else None
        filled = pos  # the range [filled:pos] belongs to the head's fill
        while size - pos >= 5:
            kind = data[pos]
            length = _length(data, pos + 1)[0]
            if length < 4:
                raise ProtocolError(f"message {chr(kind)!r} from the server has length {length}")
            end = pos + 1 + length
            if head is None:
                if kind not in _IDLE:
                    raise ProtocolError(f"message {chr(kind)!r} from the server, which owes nothing")
            elif kind not in _ALLOWED[head.kind]:
                raise ProtocolError(f"message {chr(kind)!r} from the server in reply to {chr(head.kind)!r}")
            ours = head is not None and head.ours and kind not in _ALWAYS_RELAYED
            if end > size:
                if kind in _STREAMED and not ours:
                    self._stream = end - size
                    self._stream_fill = None if head is None else head.fill
                    pos = size
                elif length > CONTROL_CAP:
                    raise ProtocolError(f"message {chr(kind)!r} from the server has {length} bytes")
                break
            if kind == _DATA_ROW and not ours:
                pos = end
                continue
            message = data[pos:end]
            popped: Op | None = None
            if kind in _IDLE:
                if kind == _ERROR and ours and head is not None and (head.relay_error or _fatal(message)):
                    ours = False
                popped = self._common(kind, message, head)
            elif head is not None:
                if kind in _ENDS[head.kind]:
                    popped = pending.popleft()
                elif (head.kind, kind) in _FOLLOWS:
                    head.kind = _FOLLOWS[head.kind, kind]
                elif kind == _COPY_IN:
                    self._copy_in(head)
                if kind == _COMPLETE and message.startswith(_COMMITS, 5):
                    self.on_commit()
                if head.fill is not None:
                    if kind in _SPOILS or (kind == _SUSPENDED and not head.fill.limited):
                        head.fill.spoil()
                    elif kind == _COMPLETE or kind == _SUSPENDED:
                        head.fill.whole = True
            if kind == _READY:
                self.status = message[5:6]
                if self.status not in (b"I", b"T", b"E") or length != 5:
                    raise ProtocolError("ReadyForQuery from the server with an unknown status")
            if ours:
                if kind == _DATA_ROW and head is not None and head.rows is not None:
                    head.rows.append(message)
                if start < pos:
                    out.append(data[start:pos])
                start = end
            if popped is not None:
                if popped.fill is not None:
                    popped.fill.add(data[filled : pos if kind == _READY else end])
                if popped.kind == _EXECUTE:
                    self.copying_in = False
                filled = end
                if popped.done is not None:
                    popped.done(kind, message)
                if kind == _READY:
                    self.on_ready(self.status, popped.ours)
                head = pending[0] if pending else None
            pos = end
        if head is not None and head.fill is not None and filled < pos:
            head.fill.add(data[filled:pos])
        if start < pos:
            out.append(data if start == 0 and pos == size else data[start:pos])
        if pos < size:
            self._tail = data[pos:]
        return out[0] if len(out) == 1 else b"".join(out)

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
        if head.kind in b"QFSqr":  # ReadyForQuery is still owed
            if head.kind in b"qr":
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
        if head.kind != _EXECUTE:
            return
        self.copying_in = True
        self._since = head.copies
        kept = [op for op in self.pending if op.kind != _SYNC or op.copies != head.copies]
        self.pending.clear()
        self.pending.extend(kept)
