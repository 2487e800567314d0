"""A stretch of the extended protocol, up to Sync or Flush, cut into what can be answered and what cannot.

A *run* is ``[Parse] Bind [Describe portal] Execute``, all about one portal: the unit that memory can answer. Everything
else is a loose message. A Parse belongs to a run only when it is unnamed: a named statement must exist upstream.

The key of a run is its own bytes, from the Parse on when there is one, else from behind the two names in Bind. A run
with a named portal is never answered: its client may come back to it.
"""

from __future__ import annotations

import struct
from struct import Struct, unpack_from
from typing import TYPE_CHECKING

from distribcache.wire.codes import Front

if TYPE_CHECKING:
    from distribcache.proxy.lookup import Considered, Wait

__all__ = ["Loose", "Message", "Run", "Values", "cut", "parse_message", "read_values", "used_later"]

_u16 = Struct("!H").unpack_from
_i32 = Struct("!i").unpack_from

Values = tuple[list[bytes | None], tuple[int, ...], tuple[int, ...]]
"""Of a Bind: its parameters, their formats, and those of the columns."""


class Message:
    """One message of a group, in ``data[start:end]``; ``kind`` 0 is one that is malformed (the server will say so).

    ``name`` is the statement of Parse, Bind and Describe/Close S, the portal of Execute and Describe/Close P.
    """

    __slots__ = ("end", "kind", "limit", "name", "oids", "portal", "sql", "start", "tail", "target")

    def __init__(self, kind: int, start: int, end: int) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.name = b""
        self.portal = b""
        self.target = b""
        self.sql = b""
        self.oids: tuple[int, ...] = ()
        self.limit = 0
        self.tail = 0
        """Bind only: where the bytes after both names begin."""


class Run:
    """``[Parse] Bind [Describe] Execute`` on the unnamed portal, in ``data[start:end]``."""

    __slots__ = ("bind", "considered", "describe", "end", "execute", "messages", "parse", "start")

    def __init__(self, messages: list[Message], parse: Message | None, describe: Message | None) -> None:
        self.messages = messages
        self.parse = parse
        self.bind = messages[0 if parse is None else 1]
        self.describe = describe
        self.execute = messages[-1]
        self.start = messages[0].start
        self.end = self.execute.end
        self.considered: tuple[bytes, Considered | Wait] | None = None
        """A text and what was found out about it. It is true only now: who looks again cuts the group again."""


class Loose:
    """A message that belongs to no run."""

    __slots__ = ("message", "messages", "start")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.messages = [message]
        self.start = message.start


def parse_message(data: bytes, start: int, end: int) -> Message:
    """Read the names of the one message in ``data[start:end]``."""
    kind = data[start]
    message = Message(kind, start, end)
    body = start + 5
    well = True
    if kind == Front.BIND:
        first = data.find(0, body, end)
        second = data.find(0, first + 1, end) if first >= 0 else -1
        well = second >= 0
        if well:
            message.portal, message.name, message.tail = data[body:first], data[first + 1 : second], second + 1
    elif kind == Front.EXECUTE:
        first = data.find(0, body, end)
        well = first >= 0 and first + 5 == end
        if well:
            message.name, message.limit = data[body:first], _i32(data, first + 1)[0]
    elif kind == Front.DESCRIBE or kind == Front.CLOSE:
        target = data[body : body + 1] if body < end else b""
        well = (target == b"P" or target == b"S") and data.find(0, body + 1, end) == end - 1
        if well:
            message.target, message.name = target, data[body + 1 : end - 1]
    elif kind == Front.PARSE:
        first = data.find(0, body, end)
        second = data.find(0, first + 1, end) if first >= 0 else -1
        count = _u16(data, second + 1)[0] if 0 <= second <= end - 3 else -1
        well = count >= 0 and second + 3 + 4 * count == end
        if well:
            message.name, message.sql = data[body:first], data[first + 1 : second]
            if count:
                message.oids = unpack_from(f"!{count}I", data, second + 3)
    if not well:
        message.kind = 0
    return message


def read_values(data: bytes, bind: Message) -> Values | None:
    """All of a Bind behind its names; None when it is malformed: as strict as ``wire.decode.read_bind``."""
    body = data[bind.tail : bind.end]
    try:
        formats, at = _formats(body, 0)
        params: list[bytes | None] = []
        count = _u16(body, at)[0]
        at += 2
        for _ in range(count):
            size = _i32(body, at)[0]
            at += 4
            if size == -1:
                params.append(None)
                continue
            if not 0 <= size <= len(body) - at:
                return None
            params.append(body[at : at + size])
            at += size
        results, at = _formats(body, at)
    except struct.error:
        return None
    known = (not formats or max(formats) <= 1) and (not results or max(results) <= 1)
    return (params, formats, results) if known and at == len(body) and len(formats) in (0, 1, count) else None


def _formats(body: bytes, at: int) -> tuple[tuple[int, ...], int]:
    count = _u16(body, at)[0]
    return (unpack_from(f"!{count}H", body, at + 2) if count else ()), at + 2 + 2 * count


def cut(messages: list[Message]) -> list[Run | Loose]:
    """Cut a group into runs and loose messages, in order."""
    items: list[Run | Loose] = []
    at = 0
    while at < len(messages):
        run = _run(messages, at)
        if run is None:
            items.append(Loose(messages[at]))
            at += 1
        else:
            items.append(run)
            at += len(run.messages)
    return items


def used_later(items: list[Run | Loose], at: int) -> bool:
    """Does the client come back to the portal of the run ``items[at]`` in a way that memory cannot answer?

    It can say that the portal is finished, right behind the run; it cannot describe it, nor run it once others went up.
    """
    behind = True
    for item in items[at + 1 :]:
        if isinstance(item, Run):
            return False
        message = item.message
        if message.kind == Front.BIND and not message.portal:
            return False
        again = message.kind == Front.EXECUTE and not message.name
        if (again and not behind) or (message.kind == Front.DESCRIBE and message.target == b"P" and not message.name):
            return True
        behind = behind and again
    return False


def _run(messages: list[Message], start: int) -> Run | None:
    size = len(messages)
    at = start
    parse = describe = None
    if messages[at].kind == Front.PARSE and not messages[at].name:
        parse = messages[at]
        at += 1
    if at + 1 >= size:
        return None
    bind = messages[at]
    if bind.kind != Front.BIND or bind.portal or (parse is not None and bind.name):
        return None
    at += 1
    if messages[at].kind == Front.DESCRIBE and messages[at].target == b"P" and not messages[at].name:
        describe = messages[at]
        at += 1
    if at < size and messages[at].kind == Front.EXECUTE and not messages[at].name:
        return Run(messages[start : at + 1], parse, describe)
    return None
