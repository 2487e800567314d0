"""One hit, asked again: the messages on the client's own idle upstream connection, and what they bring.

The rules of the road are those of ``audits``, which says when and what for. Here is rule 2, that the question cannot
make the client wait for long, and rule 3, that the second answer takes no more memory than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distribcache.coherence.auditor import Served
from distribcache.entry import COST_NS, PAYLOAD, Entry
from distribcache.proxy.campaign import Campaign
from distribcache.proxy.compare import Answer, read_answer
from distribcache.proxy.group import Message, parse_message
from distribcache.proxy.replies import Op
from distribcache.wire.messages import SYNC, Front, bind, close, describe, execute, message, parse

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["Hit", "ask", "last_unit", "messages_of"]

_BOUNDS = b"distribcache bounds"
_AGAIN = b"distribcache audit"
_LOCK_MS = 50
_LEAST_MS = 100
_TIMES = 4
_ERROR = ord("E")


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit to be asked again. ``limit``: of the client's Execute; ``bound``: the Bind behind its two names.

    ``name``: the client's own prepared statement; none: ``sql`` is prepared again.
    """

    key: tuple[int, bytes]
    served: Served
    name: bytes
    sql: bytes
    oids: tuple[int, ...]
    bound: bytes
    limit: int
    campaign: Campaign | None


def ask(s: Session, hit: Hit, compare: Callable[[Answer, Answer], None]) -> None:
    """Ask again, while the session is idle; ``compare`` is told the first answer and the second."""
    entry = hit.served.entry
    first = read_answer(entry[PAYLOAD])
    second = Answer()

    def noted(kind: int, message: bytes) -> None:
        if kind == _ERROR:
            second.error = _sqlstate(message)

    def described(kind: int, message: bytes) -> None:
        second.description = message
        noted(kind, message)

    def executed(kind: int, message: bytes) -> None:
        second.end = message
        noted(kind, message)

    def done(kind: int, message: bytes) -> None:
        s.asked = False
        compare(first, second)

    statement = hit.name or _AGAIN
    closing = close(b"S", _BOUNDS) + close(b"S", _AGAIN)  # first, because a question may have failed before its end
    question = (
        closing
        + parse(_BOUNDS, _bounds(s, entry)) + bind(_BOUNDS, _BOUNDS) + execute(_BOUNDS)
        + (b"" if hit.name else parse(_AGAIN, hit.sql, hit.oids))
        + message(Front.BIND, _AGAIN, b"\0", statement, b"\0", hit.bound)
        + describe(b"P", _AGAIN)
        + execute(_AGAIN, hit.limit or len(first.rows) + 1)
        + closing
        + SYNC
    )  # fmt: skip
    for each in messages_of(question):
        if each.kind == Front.DESCRIBE:
            op = Op(each.kind, ours=True, done=described)
        elif each.kind == Front.EXECUTE and each.name == _AGAIN:
            op = Op(each.kind, ours=True, rows=second.rows, room=len(entry[PAYLOAD]), done=executed)
        else:
            op = Op(each.kind, ours=True, done=done if each.kind == Front.SYNC else noted)
        s.replies.expect(op)
    if hit.campaign is None:
        s.armed -= 1
    s.ask(question)


def messages_of(data: bytes) -> list[Message]:
    """Whole messages of the extended protocol."""
    messages, at = [], 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        messages.append(parse_message(data, at, end))
        at = end
    return messages


def last_unit(data: bytes) -> bytes:
    """The last of whole units: a Query, or messages up to Sync."""
    start = at = 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end < len(data) and data[at] in (Front.QUERY, Front.SYNC):
            start = end
        at = end
    return data[start:]


def _bounds(s: Session, entry: Entry) -> bytes:
    """Rule 2, as a statement: for the implicit transaction of the question only."""
    most = max(_LEAST_MS, _TIMES * entry[COST_NS] // 1_000_000)
    own = s.scope.statement_timeout_ms if s.scope is not None else 0
    most = min(most, own) if own else most
    return (
        f"SELECT pg_catalog.set_config('lock_timeout', '{_LOCK_MS}', true), "
        f"pg_catalog.set_config('statement_timeout', '{most}', true)"
    ).encode()


def _sqlstate(error: bytes) -> bytes:
    at = error.find(b"\0C", 5) + 2
    return error[at : at + 5]
