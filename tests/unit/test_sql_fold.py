"""Texts that share a folded form have the same analysis, except for the limit in their shape."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distribcache.sql.cacheability import Parsed
from distribcache.sql.fold import fold, literals, places
from distribcache.sql.parse import read

SHAPES = [
    "SELECT a FROM t WHERE id = {}",
    "SELECT a + {} FROM t WHERE b IN ({}, {}) ORDER BY 1 LIMIT {}",
    'SELECT "t"."a 5" FROM "t" WHERE "t"."id" = {}',
    "SELECT a FROM t5 WHERE t5.c3 = {} AND d = '{}'",
    "SELECT a::int4, '{}'::date FROM t WHERE b = -{}",
    "SELECT count(*) FILTER (WHERE a > {}) OVER (PARTITION BY b) FROM t",
    "SELECT x[{}], y->{} FROM t",
    "SELECT a FROM t WHERE at > '2024-01-{}'::timestamptz",
    "WITH q AS (SELECT {} AS n) SELECT * FROM q, t WHERE t.id = q.n",
    "SELECT f({}), g('{}') FROM t",
    "UPDATE t SET a = {} WHERE id = {}",
    "VALUES ({}), ({})",
]


def facts(text: str) -> Parsed:
    """What is said of a text, without the limit."""
    parsed = read(text.encode())
    return Parsed(
        tuple(dataclasses.replace(each, shape=each.shape._replace(limit=None)) for each in parsed.statements),
        parsed.error,
    )


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25)
@given(data=st.data())
def test_what_shares_a_form_shares_its_facts(shape: str, data: st.DataObject) -> None:
    numbers = st.integers(0, 10**25)
    count = shape.count("{}")
    one, other = (shape.format(*(data.draw(numbers) for _ in range(count))) for _ in range(2))
    assert fold(one.encode()) == fold(other.encode()) is not None
    assert facts(one) == facts(other)


@pytest.mark.parametrize(
    "text",
    [
        "SET work_mem = 5",
        "BEGIN",
        "SELECT a FROM t WHERE id = $1",
        "SELECT 5 -- 6",
        "SELECT /* 5 */ 6",
        "SELECT E'\\n5'",
        "SELECT $$5$$",
        "SAVEPOINT s5",
    ],
)
def test_what_might_mean_something_else_is_left_alone(text: str) -> None:
    assert fold(text.encode()) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT 'now'::date", "SELECT 'abc'::date"),
        ("SELECT a FROM t1", "SELECT a FROM t2"),
        ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = '1'"),
        ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1.5"),
        ("SELECT 1::int4", "SELECT 1::int8"),
        ('SELECT "a1" FROM t', 'SELECT "a2" FROM t'),
        ("SELECT 'x 1' FROM t", "SELECT 'y 1' FROM t"),
    ],
)
def test_what_differs_in_more_keeps_a_form_of_its_own(one: str, other: str) -> None:
    assert fold(one.encode()) != fold(other.encode())


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_place_is_that_of_its_literal(shape: str, data: st.DataObject) -> None:
    numbers = [str(data.draw(st.integers(0, 10**25))) for _ in range(shape.count("{}"))]
    text = shape.format(*numbers).encode()
    found, where = literals(text), places(text)
    assert where is not None
    whole = {index: place for place, index in where.items() if index >= 0}
    assert sorted(whole) == list(range(len(found)))
    for index, value in enumerate(found):
        assert text[whole[index] :].startswith((value, b"'%b'" % value))
    assert all(any(number.encode() in value for value in found) for number in numbers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select 'x', 1, '2', \"3\", '4-5', t6, 7.8, 9", [b"1", b"2", b"4-5", b"9"]),
        ("select 'x''1'", [b"1"]),
        ("select ''", [b""]),
        ("select 1 -- 2", []),
        ("set x = 1", []),
    ],
)
def test_literals(text: str, expected: list[bytes]) -> None:
    assert literals(text.encode()) == expected


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("select 'x', 1, '2', \"3\"", {7: -1, 12: 0, 15: 1}),
        # A doubled quote, and a literal that goes on in the next line: only the end of each is whole.
        ("select '1''2'", {10: 1}),
        ("select '1'\n '2', 3", {12: 1, 17: 2}),
        ("select N'1'", {8: 0}),
        ("select -1", {8: 0}),
        ("select ü, '1'", {11: 0}),
    ],
)
def test_places_of_whole_literals(text: str, whole: dict[int, int]) -> None:
    assert places(text.encode()) == whole


def test_a_text_that_does_not_fold_has_no_places() -> None:
    assert places(b"select $1, 2") is None


@pytest.mark.parametrize(
    "condition",
    ["id = -{}", "a = 'x''{}'", "a = '{}''1'", "a = '{}'\n'1'", "a = N'{}'", "a = U&'{}'", "a = B'{}'", "id = {}.5"],
)
def test_a_value_that_is_not_one_whole_literal_is_none(condition: str) -> None:
    """Texts of one form share their levels, so nothing in there may come from one of them alone."""
    one, other = (f"SELECT a FROM t WHERE {condition.format(number)}" for number in ("10", "11"))
    if fold(one.encode()) == fold(other.encode()):
        assert facts(one) == facts(other)
    levels = facts(one).statements[0].levels
    assert levels is not None
    assert levels.levels[0].filters == ()
