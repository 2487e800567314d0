"""Values are recognised only in the form in which the change stream prints them."""

from __future__ import annotations

import pytest

from distribcache.sql.rowvalues import CASTS, FAMILY, Family, recognise, recognise_constant

COLUMN = {Family.INT: 23, Family.TEXT: 25, Family.UUID: 2950, Family.BOOL: 16, Family.DATE: 1082}
U = b"0123abcd-4567-89ab-cdef-0123456789ab"


@pytest.mark.parametrize(
    ("family", "value"),
    [
        (Family.INT, b"0"),
        (Family.INT, b"7"),
        (Family.INT, b"-12"),
        (Family.INT, b"-9223372036854775808"),
        (Family.TEXT, b""),
        (Family.TEXT, b" x'\n"),
        (Family.TEXT, "größe".encode()),
        (Family.UUID, U),
        (Family.BOOL, b"true"),
        (Family.BOOL, b"false"),
        (Family.DATE, b"2024-02-29"),
        (Family.DATE, b"0001-01-01"),
    ],
)
def test_what_is_printed_like_this_stays_as_it_is(family: Family, value: bytes) -> None:
    assert recognise(family, 0, value, False, COLUMN[family]) == value
    assert recognise_constant(family, value, quoted=True) == value


@pytest.mark.parametrize(
    ("family", "value"),
    [
        *((Family.INT, value) for value in (b"", b"01", b"+1", b" 1", b"1 ", b"1\n", b"1.0", b"1e3", b"-0", b"-")),
        (Family.INT, b"0x1"),
        (Family.INT, b"10000000000000000000"),
        (Family.INT, "١".encode()),
        (Family.TEXT, b"a\0"),
        (Family.TEXT, b"\xff"),
        (Family.TEXT, b"\xed\xa0\x80"),
        *((Family.UUID, value) for value in (U.upper(), b"{" + U + b"}", U.replace(b"-", b""), U[1:], U + b"\n", b"")),
        *((Family.BOOL, value) for value in (b"t", b"True", b"TRUE", b"1", b"yes", b"on", b" true", b"")),
        *((Family.DATE, value) for value in (b"2024-2-9", b"20240209", b"2024-02-29 ", b"2024-13-01", b"0000-01-01")),
        *((Family.DATE, value) for value in (b"infinity", b"10000-01-01", b"2024-01-01 BC", b"01/02/2024", b"today")),
    ],
)  # fmt: skip
def test_nothing_is_converted(family: Family, value: bytes) -> None:
    assert recognise(family, 0, value, False, COLUMN[family]) is None
    assert recognise_constant(family, value, quoted=True) is None


@pytest.mark.parametrize(
    ("family", "declared", "value", "expected"),
    [
        (Family.INT, 0, b"\0\0\0\5", b"5"),
        (Family.INT, 21, b"\xff\xff", b"-1"),
        (Family.INT, 23, b"\x80\0\0\0", b"-2147483648"),
        (Family.INT, 20, b"\0\0\0\1\0\0\0\0", b"4294967296"),
        (Family.INT, 20, b"\0\0\0\1", None),
        (Family.INT, 0, b"\1", None),
        (Family.INT, 0, b"", None),
        (Family.TEXT, 25, b"x", b"x"),
        (Family.TEXT, 1043, b"\xff", None),
        (Family.UUID, 2950, bytes.fromhex(U.decode().replace("-", "")), U),
        (Family.UUID, 0, b"x", None),
        (Family.BOOL, 16, b"\1", b"true"),
        (Family.BOOL, 0, b"\0", b"false"),
        (Family.BOOL, 0, b"\2", None),
        (Family.DATE, 1082, b"\0\0\0\0", b"2000-01-01"),
        (Family.DATE, 0, b"\xff\xff\xff\xff", b"1999-12-31"),
        (Family.DATE, 0, b"\x7f\xff\xff\xff", None),
        (Family.DATE, 0, b"\x80\0\0\0", None),
        (Family.DATE, 0, (2921939).to_bytes(4), b"9999-12-31"),
        (Family.DATE, 0, (2921940).to_bytes(4), None),
        (Family.DATE, 0, (-730119).to_bytes(4, signed=True), b"0001-01-01"),
        (Family.DATE, 0, (-730120).to_bytes(4, signed=True), None),
    ],
)
def test_binary_values(family: Family, declared: int, value: bytes, expected: bytes | None) -> None:
    assert recognise(family, declared, value, True, COLUMN[family]) == expected


@pytest.mark.parametrize("family", Family)
def test_a_parameter_of_another_family_is_not_recognised(family: Family) -> None:
    value = {Family.INT: b"1", Family.TEXT: b"1", Family.UUID: U, Family.BOOL: b"true", Family.DATE: b"2024-01-01"}
    # char(n), name, numeric, timestamp, "char", json and a type of a user's.
    for declared in (*FAMILY, 705, 1042, 19, 1700, 1114, 18, 114, 16500):
        good = declared == 705 or FAMILY.get(declared) is family
        found = recognise(family, declared, value[family], False, COLUMN[family])
        assert found == (value[family] if good else None)
    for column in (*FAMILY, 1042, 16500):
        found = recognise(family, 0, value[family], False, column)
        assert found == (value[family] if FAMILY.get(column) is family else None)


def test_null_is_never_a_pin() -> None:
    assert not any(recognise(family, 0, None, binary, COLUMN[family]) for family in Family for binary in (True, False))


def test_a_bare_constant_has_a_type_of_its_own() -> None:
    assert recognise_constant(Family.INT, b"5", quoted=False) == b"5"
    assert recognise_constant(Family.BOOL, b"true", quoted=False) == b"true"
    # 5::text, true::int, 1::bool
    assert recognise_constant(Family.TEXT, b"5", quoted=False) is None
    assert recognise_constant(Family.INT, b"true", quoted=False) is None
    assert recognise_constant(Family.BOOL, b"1", quoted=False) is None


def test_every_family_has_its_casts() -> None:
    assert set(CASTS.values()) == set(FAMILY.values()) == set(Family)
