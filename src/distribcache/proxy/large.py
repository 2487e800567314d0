"""Messages that are only forwarded: too long to be held for a decision, or opaque (a function call).

What such a message does is unknown, so it counts as the worst it could be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from distribcache.errors import ClientError
from distribcache.proxy.forward import resend
from distribcache.proxy.node import Outcome
from distribcache.proxy.replies import Op
from distribcache.proxy.unnamed import refused
from distribcache.sql.effects import UNKNOWN
from distribcache.wire.messages import SYNC, Back, Front

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["forward"]


def forward(s: Session, data: bytes) -> int:
    """Send what is there of one message; returns its size, or 0 when the message has to be looked at again."""
    kind = data[0]
    if s.discarding:
        raise ClientError("a message of a failed group is too long", where="client", hint="send Sync after an error")
    if s.txn.local:
        s.questions.open_transaction()
        return 0
    s.failure = None  # the server says so by itself
    before = _before(s, data)
    s.apply(UNKNOWN)
    s.replies.expect(Op(kind, done=_when_refused(s, data)))
    s.sent(awaiting=kind in (Front.QUERY, Front.FUNCTION_CALL))
    s.wires.to_upstream(before + data)
    s.outcome = Outcome("bypass", reason="too_large")
    return len(data)


def _when_refused(s: Session, data: bytes) -> Callable[[int, bytes], None] | None:
    if data[0] != Front.QUERY and (data[0] != Front.PARSE or data[5]):
        return None

    def answered(kind: int, message: bytes) -> None:
        if kind == Back.ERROR:
            refused(s, None, message, None, ran=True)

    return answered


def _before(s: Session, data: bytes) -> bytes:
    """What upstream has to hear before a message that is only forwarded; what that may replace is forgotten."""
    kind, kept = data[0], s.hot.kept
    if kind == Front.QUERY:
        s.forget_unnamed()
    elif kind == Front.PARSE:
        name = data[5 : data.find(0, 5)]
        s.statements.pop(name, None)
        s.hot.names.pop(name, None)
        s.parsing[name] = None
        s.hot.kept = kept if name else None
    elif kind == Front.BIND and kept is not None:
        s.hot.kept = None
        return resend(s, kept)
    elif kept is not None and not s.open and s.replies.status != b"E":
        s.hot.kept = None
        before = resend(s, kept)
        s.replies.pending[-1].relay_error = False
        s.replies.expect(Op(Front.SYNC, ours=True))  # no client sends one behind a function call
        return before + SYNC
    return b""
