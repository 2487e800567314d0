"""Values at rest come back equal in type and value, or are refused; keys of arguments are equal for equal ones only."""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import ipaddress
import math
import struct
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.types.range import Range

from distribcache.errors import SerializationError
from distribcache.library.rows import Row, row_class
from distribcache.library.values import key_of, pack, unpack

ZONES = st.sampled_from(
    [None, dt.UTC, dt.timezone(dt.timedelta(hours=2, minutes=30)), dt.timezone(dt.timedelta(0), "zero"),
     ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")]
)  # fmt: skip
ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(), st.dates(),
    st.times(timezones=ZONES), st.datetimes(timezones=ZONES), st.timedeltas(), st.uuids(), st.ip_addresses(),
    st.sampled_from([
        -0.0, math.inf, -math.inf, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, Decimal("-0"), Decimal("NaN"),
        Decimal("sNaN12"), Decimal("1E+400"), Decimal("1.00"), dt.date.min, dt.date.max, dt.timedelta.max,
        dt.datetime.max,  # noqa: DTZ901 - what an infinite timestamp is to a driver
        ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_interface("10.0.0.1/8"), ipaddress.ip_interface("::1/64"),
        ipaddress.ip_network("fe80::/10"), Range(1, 5), Range(None, 5, "(]"), Range(empty=True),
        dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    ]),
)  # fmt: skip
KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.dates(), st.tuples(st.integers()))
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.dictionaries(KEYS, inner, max_size=4),
        st.lists(inner, min_size=2, max_size=2).map(lambda values: row_class(("a", "b"))(values)),
    ),
    max_leaves=12,
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, list | tuple):
        columns = not isinstance(one, Row) or one.keys() == other.keys()
        return columns and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.keys()), list(other.keys())) and same(list(one.values()), list(other.values()))
    if isinstance(one, dt.datetime | dt.time):
        zones = type(one.tzinfo) is type(other.tzinfo) and str(one.tzinfo) == str(other.tzinfo)
        return zones and one.replace(tzinfo=None) == other.replace(tzinfo=None) and one.fold == other.fold
    return bool(one == other)


@given(VALUES)
def test_values_come_back_equal_in_type_and_value(value: Any) -> None:
    assert same(unpack(pack(value)), value)


@given(VALUES, VALUES)
def test_keys_are_equal_for_equal_values_only(one: Any, other: Any) -> None:
    assert key_of(one) == key_of(one)
    if key_of(one) == key_of(other):
        assert same(one, other) or sorted(map(repr, _flat(one))) == sorted(map(repr, _flat(other)))


def _flat(value: Any) -> list[Any]:
    """For dicts, whose order means nothing in a key."""
    if isinstance(value, dict):
        return [each for pair in value.items() for part in pair for each in _flat(part)]
    if isinstance(value, list | tuple):
        return [each for part in value for each in _flat(part)]
    return [value]


@given(st.binary())
def test_bytes_that_are_no_value_are_named(data: bytes) -> None:
    with contextlib.suppress(SerializationError):
        unpack(data)


class Word(str):
    __slots__ = ()


class Colour(enum.IntEnum):
    RED = 1


class Zone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(0)


@pytest.mark.parametrize(
    "value",
    [
        Word("x"), Colour.RED, bytearray(b"x"), memoryview(b"x"), object(), {1, 2}, frozenset(), complex(1), range(3),
        dt.datetime(2024, 1, 1, tzinfo=Zone()), type("UUID", (UUID,), {})(int=1), "\ud800", [Word("x")], {Word("x"): 1},
        (1, [Colour.RED]), type("date", (dt.date,), {})(2024, 1, 1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_would_change_is_refused(value: Any) -> None:
    with pytest.raises(SerializationError):
        pack(value)


def test_what_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    for write in (pack, key_of):
        with pytest.raises(SerializationError):
            write(value)


def test_nothing_is_shared() -> None:
    value = [[1], {"a": [2]}]
    data = pack(value)
    first = unpack(data)
    first[0].append(3)
    assert unpack(data) == value
