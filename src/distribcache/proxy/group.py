"""A stretch of the extended protocol, up to Sync or Flush, cut into what can be answered and what cannot.

A *run* is ``[Parse] Bind [Describe portal] Execute``, all about one portal: the unit that memory can answer. Everything
else is a loose message. A Parse belongs to a run only when it is unnamed: a named statement must exist upstream.

The key of a run is its own bytes, from the Parse on when there is one, else from behind the two names in Bind. A run
with a named portal is never answered: its client may come back to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distribcache.errors import ProtocolError
from distribcache.wire.messages import Front, read_close, read_describe, read_execute, read_parse, split_bind

__all__ = ["Loose", "Message", "Run", "cut", "parse_message", "used_later"]


@dataclass(slots=True)
class Message:
    """One message of a group.

    ``name`` is the statement of Parse, Bind and Describe/Close S, the portal of Execute and Describe/Close P.
    """

    kind: int
    start: int
    end: int
    name: bytes = b""
    portal: bytes = b""
    target: bytes = b""
    sql: bytes = b""
    oids: tuple[int, ...] = ()
    limit: int = 0
    tail: int = 0
    """Bind only: where the bytes after both names begin."""


@dataclass(slots=True)
class Run:
    """``[Parse] Bind [Describe] Execute`` on the unnamed portal, in ``data[start:end]``."""

    parse: Message | None
    bind: Message
    describe: Message | None
    execute: Message

    @property
    def start(self) -> int:
        return self.bind.start if self.parse is None else self.parse.start

    @property
    def end(self) -> int:
        return self.execute.end

    @property
    def messages(self) -> list[Message]:
        return [each for each in (self.parse, self.bind, self.describe, self.execute) if each is not None]


@dataclass(slots=True)
class Loose:
    """A message that belongs to no run."""

    message: Message

    @property
    def start(self) -> int:
        return self.message.start

    @property
    def messages(self) -> list[Message]:
        return [self.message]


def parse_message(data: bytes, start: int, end: int) -> Message:
    """Read the names of one message; ``kind`` 0 stands for one that is malformed (the server will say so)."""
    kind = data[start]
    message = Message(kind, start, end)
    body = memoryview(data)[start + 5 : end]
    try:
        if kind == Front.PARSE:
            parse = read_parse(body)
            message.name, message.sql, message.oids = parse.name, parse.sql, parse.oids
        elif kind == Front.BIND:
            message.portal, message.name, rest = split_bind(data[start:end])
            message.tail = end - len(rest)
        elif kind == Front.DESCRIBE:
            describe = read_describe(body)
            message.target, message.name = describe.kind, describe.name
        elif kind == Front.CLOSE:
            close = read_close(body)
            message.target, message.name = close.kind, close.name
        elif kind == Front.EXECUTE:
            execute = read_execute(body)
            message.name, message.limit = execute.portal, execute.max_rows
    except ProtocolError:
        message.kind = 0
    return message


def cut(messages: list[Message]) -> list[Run | Loose]:
    """Cut a group into runs and loose messages, in order."""
    items: list[Run | Loose] = []
    at = 0
    while at < len(messages):
        here = at
        parse = None
        if messages[here].kind == Front.PARSE and not messages[here].name:
            parse = messages[here]
            here += 1
        run = _run(messages, here, parse)
        if run is None:
            items.append(Loose(messages[at]))
            at += 1
        else:
            items.append(run)
            at = here + (3 if run.describe else 2)
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


def _run(messages: list[Message], at: int, parse: Message | None) -> Run | None:
    if at >= len(messages) or messages[at].kind != Front.BIND:
        return None
    bind = messages[at]
    if bind.portal or (parse is not None and bind.name):
        return None
    at += 1
    describe = None
    if (
        at < len(messages)
        and messages[at].kind == Front.DESCRIBE
        and messages[at].target == b"P"
        and not messages[at].name
    ):
        describe = messages[at]
        at += 1
    if at < len(messages) and messages[at].kind == Front.EXECUTE and not messages[at].name:
        return Run(parse, bind, describe, messages[at])
    return None
