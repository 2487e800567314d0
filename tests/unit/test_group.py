"""How a group is cut: what memory can answer as one, and everything that it must leave alone."""

from __future__ import annotations

import pytest

from distribcache.proxy.group import Loose, Message, Run, cut, parse_message, used_later
from distribcache.wire.messages import bind, close, describe, execute, message, parse

P, B, DP, E = parse(b"", b"SELECT 1"), bind(b"", b""), describe(b"P", b""), execute(b"")
BS, DS = bind(b"", b"s1"), describe(b"S", b"s1")


def read(*messages: bytes) -> tuple[bytes, list[Message]]:
    data = b"".join(messages)
    found = []
    at = 0
    for each in messages:
        found.append(parse_message(data, at, at + len(each)))
        at += len(each)
    return data, found


def shape(*messages: bytes) -> str:
    """Runs in brackets, loose messages as they are."""
    data, found = read(*messages)
    items = cut(found)
    letters = [
        (f"[{data[item.start : item.end][:0].decode()}" if isinstance(item, Run) else "")
        + "".join(chr(data[each.start]) for each in item.messages)
        + ("]" if isinstance(item, Run) else "")
        for item in items
    ]
    assert [each for item in items for each in item.messages] == found, "nothing lost, nothing out of order"
    return " ".join(letters)


@pytest.mark.parametrize(
    ("messages", "cut_as"),
    [
        ((P, B, DP, E), "[PBDE]"),
        ((P, B, E), "[PBE]"),
        ((BS, DP, E), "[BDE]"),
        ((BS, E), "[BE]"),
        ((B, E), "[BE]"),  # of an unnamed statement prepared before
        ((P, B, E, BS, DP, E, BS, E), "[PBE] [BDE] [BE]"),
        ((parse(b"s1", b"SELECT 1"), BS, E), "P [BE]"),  # a named statement must exist upstream
        ((parse(b"s1", b"SELECT 1"), DS), "P D"),
        ((P, describe(b"S", b""), B, E), "P D [BE]"),
        ((P, BS, E), "P [BE]"),  # the Parse is not of the statement that is bound
        ((bind(b"p", b"s1"), E), "B E"),  # a named portal: its client may come back to it
        ((bind(b"p", b"s1"), execute(b"p")), "B E"),
        ((BS, execute(b"p")), "B E"),
        ((BS, describe(b"P", b"p"), E), "B D E"),
        ((BS, DS, E), "B D E"),
        ((BS, close(b"P", b""), E), "B C E"),
        ((BS,), "B"),
        ((P, B), "P B"),
        ((P, B, DP), "P B D"),
        ((E,), "E"),
        ((BS, E, E), "[BE] E"),
        ((P, P, B, E), "P [PBE]"),
        ((close(b"S", b"s1"), BS, E), "C [BE]"),
        ((), ""),
    ],
)
def test_cut(messages: tuple[bytes, ...], cut_as: str) -> None:
    assert shape(*messages) == cut_as


def test_a_run_spans_its_messages() -> None:
    data, messages = read(DS, P, B, DP, E, BS, E)
    loose, first, second = cut(messages)
    assert isinstance(loose, Loose)
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert data[first.start : first.end] == P + B + DP + E
    assert data[second.start : second.end] == BS + E
    assert loose.start == 0


@pytest.mark.parametrize(
    ("messages", "used"),
    [
        ((BS, E, DP), True),
        ((BS, E, E, DP), True),
        ((BS, E, E, E), False),  # answered here: it is finished
        ((BS, E, DS, E), True),
        ((BS, E, E, DS, E), True),
        ((BS, E, bind(b"p", b"s1"), execute(b"p"), E), True),
        ((BS, E, DS, B, close(b"P", b"p"), E), False),  # a new portal
        ((BS, E), False),
        ((BS, E, DS), False),
        ((BS, E, describe(b"P", b"p")), False),
        ((BS, E, BS, E, DP), False),  # of the next run's portal
        ((BS, DP, E), False),
    ],
)
def test_a_portal_that_is_used_after_its_end(messages: tuple[bytes, ...], used: bool) -> None:
    assert used_later(cut(read(*messages)[1]), 0) is used


def test_what_is_read_of_each_message() -> None:
    _, (p, b, d, c, e) = read(
        parse(b"s", b"SELECT $1", [23]), bind(b"p", b"s", [1], [b"x"]), describe(b"S", b"s"), close(b"P", b"p"),
        execute(b"p", 5),
    )  # fmt: skip
    assert (p.name, p.sql, p.oids) == (b"s", b"SELECT $1", (23,))
    assert (b.portal, b.name) == (b"p", b"s")
    assert (d.target, d.name) == (b"S", b"s")
    assert (c.target, c.name) == (b"P", b"p")
    assert (e.name, e.limit) == (b"p", 5)


def test_the_tail_of_a_bind_begins_behind_both_names() -> None:
    """Two connections may call the same statement by different names: behind the names all is equal."""
    tails = set()
    for name in (b"a", b"a_longer_name"):
        data, (found, _) = read(bind(b"", name, [1], [b"\0\0\0\7"], [1]), E)
        tails.add(data[found.tail : found.end])
    assert len(tails) == 1


@pytest.mark.parametrize(
    "broken",
    [message(ord("P"), b"no end"), message(ord("B"), b""), message(ord("D"), b"X\0"), message(ord("E"), b"\0")],
)
def test_a_malformed_message_is_loose_and_has_no_kind(broken: bytes) -> None:
    """The server will say what is wrong with it."""
    _, (found,) = read(broken)
    assert found.kind == 0
    assert shape(broken, E) == f"{broken[:1].decode()} E"
    assert shape(P, broken, E) == f"P {broken[:1].decode()} E"
