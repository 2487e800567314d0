"""Shapes: what a driver sends, written down message by message, and the bytes that come back.

A *shape* is a list of ``step``s: bytes to send and the type of the message that ends the answer. ``play`` sends a
shape and returns the bytes of each answer, so that two servers can be compared byte for byte. What differs between any
two connections (pid, secret, start-up parameters) is read at the login and no part of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rawclient import RawClient, split

from distribcache.wire.messages import FLUSH, SYNC, bind, close, describe, execute, parse, query, read_error

__all__ = ["CS", "DP", "DS", "B", "E", "H", "P", "Q", "S", "Step", "answer", "kinds", "play", "step"]

P, B, E, Q, S, H = parse, bind, execute, query, SYNC, FLUSH
"""The letters in which the shapes of drivers are written down."""


def DP(portal: bytes = b"") -> bytes:
    return describe(b"P", portal)


def DS(statement: bytes = b"") -> bytes:
    return describe(b"S", statement)


def CS(statement: bytes = b"") -> bytes:
    return close(b"S", statement)


@dataclass(frozen=True)
class Step:
    """Send ``data``, then read until ``count`` messages of type ``ends`` have come. Where ReadyForQuery is not waited
    for, an error ends the answer too."""

    data: bytes
    ends: bytes = b"Z"
    count: int = 1


def step(*messages: bytes, ends: bytes = b"Z", count: int = 1) -> Step:
    return Step(b"".join(messages), ends, count)


def answer(client: RawClient, one: Step) -> bytes:
    """The bytes of one answer. Raises TimeoutError when its end does not come."""
    client.send(one.data)
    messages: list[bytes] = []
    left = one.count
    while left:
        try:
            messages.append(client.message())
        except (TimeoutError, EOFError) as error:
            raise type(error)(f"the answer stops after: {kinds(b''.join(messages))}") from None
        kind = messages[-1][:1]
        left -= kind == one.ends
        if kind == b"E" and one.ends != b"Z":
            break
    return b"".join(messages)


def play(client: RawClient, shape: Sequence[Step]) -> list[bytes]:
    """The bytes of each answer."""
    return [answer(client, one) for one in shape]


def kinds(data: bytes) -> str:
    """Types of messages in order, for a failing assertion; errors with what they say."""
    return " ".join(
        f"E({read_error(memoryview(each)[5:]).text})" if each[:1] == b"E" else each[:1].decode() for each in split(data)
    )
