"""Properties of the wire: what is written is read back, whatever the cuts; garbage is only ever a ProtocolError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from wire_cases import CASES, READABLE, Case

from distribcache.errors import ProtocolError
from distribcache.wire import messages as m
from distribcache.wire.buffer import Inbox
from distribcache.wire.startup import NEED_DATA, Startup, cancel_request, read_startup, startup_message

names = st.binary(max_size=70).map(lambda raw: raw.replace(b"\0", b"_"))
oids = st.lists(st.integers(0, 2**32 - 1), max_size=20)
values = st.lists(st.none() | st.binary(max_size=100), max_size=20)
form = st.integers(0, 1)
DECODERS: list[Callable[[bytes], object]] = [case.read for case in READABLE if case.read is not None]
DECODERS.append(m.read_sasl_mechanisms)


@given(names, names, oids)
def test_parse_round_trip(name: bytes, sql: bytes, types: list[int]) -> None:
    assert m.read_parse(m.parse(name, sql, types)[5:]) == m.Parse(name, sql, tuple(types))


@given(names, names, values, st.lists(form, max_size=1), st.lists(form, max_size=5))
def test_bind_round_trip(
    portal: bytes, statement: bytes, params: list[bytes | None], formats: list[int], results: list[int]
) -> None:
    wire = m.bind(portal, statement, formats, params, results)
    assert m.read_bind(wire[5:]) == m.Bind(portal, statement, tuple(formats), tuple(params), tuple(results))
    assert m.split_bind(wire)[:2] == (portal, statement)


@given(values)
def test_data_row_round_trip(row: list[bytes | None]) -> None:
    assert m.read_data_row(m.data_row(row)[5:]).values == tuple(row)


@given(st.lists(st.tuples(names, st.integers(0, 2**32 - 1), st.integers(-(2**15), 2**15 - 1), form), max_size=10))
def test_row_description_round_trip(columns: list[tuple[bytes, int, int, int]]) -> None:
    read = m.read_row_description(m.row_description(columns)[5:])
    assert [(each.name, each.type_oid, each.size, each.form) for each in read.columns] == columns


@given(st.lists(st.sampled_from(CASES), max_size=12), st.data())
def test_any_cuts_give_the_same_messages(cases: list[Case], data: st.DataObject) -> None:
    wire = b"".join(case.wire for case in cases)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=20)))
    box = Inbox(10_000)
    whole = []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        box.feed(wire[start:end])
        whole += list(box)
    assert whole == [case.wire for case in cases]
    assert box.pending == 0


@given(st.binary(max_size=300))
def test_garbage_is_only_ever_a_protocol_error(garbage: bytes) -> None:
    for read in DECODERS:
        with contextlib.suppress(ProtocolError):
            read(garbage)
    with contextlib.suppress(ProtocolError):
        read_startup(garbage)
    with contextlib.suppress(ProtocolError):
        m.split_bind(garbage)
    box = Inbox(200)
    box.feed(garbage)
    with contextlib.suppress(ProtocolError):
        list(box)


@given(st.sampled_from(READABLE), st.data())
def test_flipped_bytes_are_only_ever_a_protocol_error(case: Case, data: st.DataObject) -> None:
    assert case.read is not None
    body = bytearray(case.wire[5:])
    for _ in range(data.draw(st.integers(1, 3))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        case.read(bytes(body))


parameters = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda s: "\0" not in s and s.isprintable() and s != "database"),
    st.text(max_size=20).filter(lambda s: "\0" not in s and s.isprintable()),
    max_size=8,
)


@given(parameters, st.integers(0, 2))
def test_startup_round_trip(given_parameters: dict[str, str], minor: int) -> None:
    expected = {**given_parameters, "user": "u"}
    wire = startup_message(expected, minor=minor)
    read = read_startup(wire + b"more")
    assert isinstance(read, Startup)
    assert (dict(read.parameters), read.minor, read.raw) == (expected, minor, wire)
    for cut in range(len(wire)):
        assert read_startup(wire[:cut]) is NEED_DATA


@given(
    st.sampled_from([startup_message({"user": "a", "database": "b"}), cancel_request(1, b"abcd")]),
    st.integers(0, 11),
    st.integers(1, 255),
)
def test_a_flipped_startup_is_only_ever_a_protocol_error(wire: bytes, at: int, flip: int) -> None:
    broken = bytearray(wire)
    broken[at] ^= flip
    try:
        read = read_startup(broken)
    except ProtocolError:
        return
    assert read is NEED_DATA or read.size <= len(wire)
