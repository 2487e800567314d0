"""Framing: whole, byte by byte, with trailing bytes, every prefix, every length; pieces that add up."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from wire_cases import CASES, Case

from distribcache.errors import ProtocolError
from distribcache.wire.buffer import MAX_MESSAGE, Flow, Inbox
from distribcache.wire.messages import Back, copy_data, data_row, query

LIMIT = 1000


def flow(hold: int = 64) -> Flow:
    return Flow(LIMIT, hold=hold, runs=frozenset({Back.DATA_ROW}))


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


@pytest.mark.parametrize("make", [lambda: Inbox(LIMIT), flow])
@pytest.mark.parametrize("length", [0, 3, LIMIT + 1, 2**31 - 1, -1, -(2**31)])
def test_bad_lengths_are_refused_before_the_body(make: object, length: int) -> None:
    box = make()  # type: ignore[operator]
    box.feed(query(b"good") + b"Q" + struct.pack(">i", length))
    first = next(box)
    assert query(b"good") in (first, first[1])
    for _ in range(2):  # dead from then on, whatever comes
        with pytest.raises(ProtocolError):
            next(box)
        box.feed(query(b"good"))


@pytest.mark.parametrize("make", [lambda: Inbox(LIMIT), flow])
def test_lengths_at_the_limits_pass(make: object) -> None:
    box = make()  # type: ignore[operator]
    small, large = b"S\0\0\0\4", copy_data(b"x" * (LIMIT - 4))
    box.feed(small + large)
    came = [item if isinstance(item, bytes) else item[1] for item in box]
    assert came == [small, large]


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


def test_a_run_of_rows_is_one_piece() -> None:
    box = flow()
    rows = [data_row([b"%d" % i]) for i in range(5)]
    box.feed(b"".join(rows) + b"Z\0\0\0\5I" + rows[0] + rows[1][:4])
    assert list(box) == [(Back.DATA_ROW, b"".join(rows), 5), (ord("Z"), b"Z\0\0\0\5I", 1), (Back.DATA_ROW, rows[0], 1)]
    assert box.pending == 4


def test_only_the_given_types_are_joined() -> None:
    box = flow()
    box.feed(query(b"a") + query(b"a"))
    assert list(box) == [(ord("Q"), query(b"a"), 1)] * 2


def test_a_long_message_comes_in_pieces() -> None:
    box = flow(hold=20)
    long = data_row([b"x" * 500])
    box.feed(data_row([b"a"]) + long[:100])
    assert list(box) == [(Back.DATA_ROW, data_row([b"a"]), 1), (Back.DATA_ROW, long[:100], 0)]
    assert box.mid_message
    assert box.pending == 0
    box.feed(long[100:200])
    assert list(box) == [(Back.DATA_ROW, long[100:200], 0)]
    box.feed(long[200:] + b"Z\0\0\0\5I")
    assert list(box) == [(Back.DATA_ROW, long[200:], 1), (ord("Z"), b"Z\0\0\0\5I", 1)]
    assert not box.mid_message


def test_a_message_up_to_hold_is_never_cut() -> None:
    row = data_row([b"x" * 40])
    box = flow(hold=len(row))
    for byte in row[:-1]:
        box.feed(bytes((byte,)))
        assert list(box) == []
    box.feed(row[-1:])
    assert list(box) == [(Back.DATA_ROW, row, 1)]


def test_rest_after_a_change_of_protocol() -> None:
    box = Inbox(LIMIT)
    box.feed(query(b"a") + b"rest")
    assert next(box) == query(b"a")
    assert box.take_rest() == b"rest"
    assert box.pending == 0
    assert list(box) == []
