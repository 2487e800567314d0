"""Framing: whole, byte by byte, with trailing bytes, every prefix, every length."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from wire_cases import CASES, Case

from distribcache.errors import ProtocolError
from distribcache.wire.buffer import MAX_MESSAGE, Inbox
from distribcache.wire.messages import copy_data, query

LIMIT = 1000


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("trailing", [b"", b"Q", b"Q\0\0\0", b"Q\0\0\0\5", b"Z\0\0\0\5I"])
def test_three_ways(case: Case, trailing: bytes) -> None:
    whole = Inbox(LIMIT)
    whole.feed(case.wire + trailing)
    assert next(whole) == case.wire

    single = Inbox(LIMIT)
    came = []
    for byte in case.wire + trailing:
        single.feed(bytes([byte]))
        came += list(single)
    assert came[0] == case.wire
    assert came == [case.wire, *list(whole)]
    assert single.pending == whole.pending == (0 if trailing.startswith(b"Z") else len(trailing))
    assert single.take_rest() == whole.take_rest()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cut_at_every_length(case: Case) -> None:
    for cut in range(len(case.wire)):
        box = Inbox(LIMIT)
        box.feed(case.wire[:cut])
        assert list(box) == []
        assert box.pending == cut
        box.feed(case.wire[cut:] + case.wire)
        assert list(box) == [case.wire, case.wire]
        assert box.pending == 0


@pytest.mark.parametrize("length", [0, 3, LIMIT + 1, 2**31 - 1, -1, -(2**31)])
def test_bad_lengths_are_refused_before_the_body(length: int) -> None:
    box = Inbox(LIMIT)
    box.feed(query(b"good") + b"Q" + struct.pack(">i", length))
    assert next(box) == query(b"good")
    for _ in range(2):  # dead from then on, whatever comes
        with pytest.raises(ProtocolError):
            next(box)
        box.feed(query(b"good"))


def test_lengths_at_the_limits_pass() -> None:
    box = Inbox(LIMIT)
    small, large = b"S\0\0\0\4", copy_data(b"x" * (LIMIT - 4))
    box.feed(small + large)
    assert list(box) == [small, large]


def test_the_limit_is_never_above_the_protocols_own() -> None:
    assert Inbox(2**31).limit == MAX_MESSAGE


def test_the_limit_can_change_between_messages() -> None:
    box = Inbox(10)
    box.feed(query(b"a"))
    assert list(box) == [query(b"a")]
    box.limit = 100
    box.feed(query(b"b" * 50))
    assert list(box) == [query(b"b" * 50)]


def test_messages_are_bytes_however_they_came() -> None:
    box = Inbox(LIMIT)
    box.feed(query(b"a")[:3])
    box.feed(query(b"a")[3:] + query(b"b")[:2])
    box.feed(query(b"b")[2:])
    came = list(box)
    assert came == [query(b"a"), query(b"b")]
    assert all(type(each) is bytes for each in came)


def test_single_bytes_cost_no_memory_of_their_own() -> None:
    size = 200_000
    box = Inbox(size + 10)
    wire = copy_data(b"x" * size)
    tracemalloc.start()
    try:
        for byte in wire[:-1]:
            box.feed(bytes((byte,)))
            assert next(box, None) is None
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 2 * size
    box.feed(wire[-1:])
    assert list(box) == [wire]


def test_rest_after_a_change_of_protocol() -> None:
    box = Inbox(LIMIT)
    box.feed(query(b"a") + b"rest")
    assert next(box) == query(b"a")
    assert box.take_rest() == b"rest"
    assert box.pending == 0
    assert list(box) == []
