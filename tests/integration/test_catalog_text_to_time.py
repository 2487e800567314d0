"""Stored text that says 'today': no query that we would cache may read it as a date.

The clock cannot be moved, but the day can: Kiritimati and Pago Pago are 25 hours apart, so 'today' always differs
between them. The table holds nothing else that depends on the time zone. Random queries convert its columns in all
the ways that the grammar offers; whatever we call cacheable must give one answer in both places.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from catalog_world import analyst
from fix_postgres import Database, create_database, drop_database
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from distribcache.catalog import resolve

SCHEMAS = ("pg_catalog", "public")
TABLE = """
CREATE TYPE mood AS ENUM ('today');
CREATE DOMAIN moment AS date;
CREATE TYPE pair AS (a date, b int);
CREATE TABLE t (id int, name text, v varchar, c char(5), tags text[], j jsonb, m mood, b bytea, day date, ts timestamp,
                n numeric);
INSERT INTO t VALUES (1, 'today', 'today', 'today', '{today,today}', '{"d": "today", "day": "today"}', 'today',
                      'today', '2024-05-05', '2024-05-05 05:05', 5);
CREATE TABLE u (id int, value date, d timestamp);
INSERT INTO u VALUES (1, '2024-06-06', '2024-06-06');
CREATE VIEW w AS SELECT id, name AS day, day AS name FROM t;
CREATE FUNCTION same(x text) RETURNS text IMMUTABLE LANGUAGE sql RETURN x;
CREATE FUNCTION after(x date) RETURNS date IMMUTABLE LANGUAGE sql RETURN x + 1;
"""
TEXTS = [
    "name", "v", "c", "tags[1]", "j->>'d'", "j#>>'{d}'", "m::text", "convert_from(b, 'UTF8')", "'to' || 'day'",
    "'todayx'::varchar(5)", "'\\x746f646179'::bytea::text", "same(name)", "same('to' || 'day')", "t.name",
    "reverse('yadot')", "left('todayx', 5)", "(SELECT name)", "(SELECT max(x.name) FROM t x)",
    "jsonb_extract_path_text(j, 'd')",
]
PLAIN = [
    "day", "ts", "t.day", "after(day)", "day + 1", "date_trunc('day', ts)", "'2024-01-01'",
    "make_date(id + 2000, 1, 1)",
]
WRAPS = [
    "{}", "({})", "coalesce({0}, {0})", "greatest({0}, {0})", "nullif({}, NULL)", "CASE WHEN id = 1 THEN {} END",
    "CASE id WHEN 1 THEN {0} ELSE {0} END", "max({}) OVER ()", "first_value({}) OVER ()", "lag({0}, 0, {0}) OVER ()",
    "({})::text", "({})::varchar", '({})::text COLLATE "C"', "concat({})", "format('%s', {})", "trim(({})::text)",
    "(ARRAY[{}])[1]", "array_to_string(ARRAY[{}], '')", "(ROW({})).f1", "(SELECT {})", "(VALUES ({}))",
    "CAST({} AS name)", "to_jsonb({})->>0", "min({}) FILTER (WHERE true) OVER ()",
]
TARGETS = [
    "({})::date", "CAST({} AS timestamp)", "date({})", "({})::moment", "moment({})", "({})::pg_catalog.date",
    "('{{' || ({}) || '}}')::date[]", "(ARRAY[{}])::date[]", "('(' || ({}) || ',1)')::pair", "ROW({}, 1)::pair",
    "daterange(({})::date, NULL)", "('[' || ({}) || ',)')::daterange", "({})::text::date", "pair_of.a",
]
ALIASES = st.sampled_from(["day", "name", "d", "value", "date", "max", "column1", "f1"])


def _wrapped() -> SearchStrategy[str]:
    leaf = st.sampled_from(TEXTS + PLAIN)
    wraps = st.lists(st.sampled_from(WRAPS), max_size=2)

    def wrap(parts: tuple[str, list[str]]) -> str:
        value, around = parts
        for each in around:
            value = each.format(value)
        return value

    return st.tuples(leaf, wraps).map(wrap)


def _query(parts: tuple[str, str, str, str]) -> str:
    form, value, target, alias = parts
    converted = target.replace("pair_of.a", "({})::date").format(alias if "{alias}" in form else value)
    return form.replace("{alias}", alias).replace("{value}", value).replace("{converted}", converted)


FORMS = [
    "SELECT {converted} FROM t",
    "SELECT {converted} AS {alias}x FROM (SELECT id, {value} AS {alias} FROM t) s",
    "SELECT {converted} FROM (SELECT {value} FROM t) s({alias})",
    "SELECT {converted} FROM (SELECT {value} AS {alias} FROM t) s, u WHERE u.id = 1",
    "WITH q AS (SELECT {value} AS {alias} FROM t) SELECT {converted} FROM q",
    "WITH q({alias}) AS (SELECT {value} FROM t) SELECT {converted} FROM q",
    "SELECT {converted} FROM t x, LATERAL (SELECT {value} AS {alias} FROM t) s WHERE x.id = 1",
    "SELECT {converted} FROM (SELECT day AS {alias} FROM t UNION ALL SELECT ts FROM t) s",
    "SELECT {converted} FROM (SELECT {value} AS {alias} FROM t UNION ALL SELECT {value} FROM t) s",
    "SELECT {converted} FROM t, unnest(tags) AS {alias} WHERE {alias} IS NOT NULL",
    "SELECT {converted} FROM u, jsonb_each_text((SELECT j FROM t)) AS s(key, {alias}) WHERE u.id = 1",
    "SELECT s.value::date FROM u, jsonb_each_text((SELECT j FROM t)) AS s",
    "SELECT {converted} FROM (VALUES ((SELECT name FROM t))) AS s({alias})",
    "SELECT {converted} FROM w",
    "SELECT s.d FROM t, jsonb_to_record(j) AS s(d date)",
    "SELECT ({value}) < ANY (SELECT {converted} FROM t) FROM t",
    "SELECT {converted} FROM (SELECT id, {value} FROM t) AS s",
    "SELECT {converted}, {value} FROM t ORDER BY {converted}",
]


def queries() -> SearchStrategy[str]:
    return st.tuples(st.sampled_from(FORMS), _wrapped(), st.sampled_from(TARGETS), ALIASES).map(_query)


@pytest.fixture
async def places(postgres: Any) -> AsyncIterator[tuple[Database, list[psycopg.Connection[Any]]]]:
    database = create_database(postgres, "days")
    with database.connect() as setup:
        setup.execute(TABLE.encode())
    zones = ("Pacific/Kiritimati", "Pacific/Pago_Pago")
    connections = [database.connect(options=f"-c TimeZone={zone}") for zone in zones]
    yield database, connections
    for connection in connections:
        connection.close()
    drop_database(database)


def _answer(connection: psycopg.Connection[Any], sql: str) -> list[Any] | None:
    try:
        return connection.execute(sql.encode()).fetchall()
    except psycopg.Error:
        return None


def _drawn(examples: int) -> list[str]:
    drawn: set[str] = set()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(queries())
    def draw(sql: str) -> None:
        drawn.add(sql)

    draw()
    # Every plain combination besides the random ones.
    for target in TARGETS:
        pattern = target.replace("pair_of.a", "({})::date")
        drawn.update(f"SELECT {pattern.format(leaf)} FROM t" for leaf in TEXTS + PLAIN)
    return sorted(drawn)


async def _served_wrongly(
    places: tuple[Database, list[psycopg.Connection[Any]]], examples: int
) -> tuple[list[str], int, int]:
    """Queries that we would cache though their answer moves with the day; how many are cacheable; how many move."""
    database, connections = places
    cacheable = moving = 0
    wrong: list[str] = []
    async with analyst(database.conninfo()) as one:
        for sql in _drawn(examples):
            here, there = (_answer(connection, sql) for connection in connections)
            if here is None or there is None:
                continue
            verdict = await one.analyse(sql.encode(), SCHEMAS)
            cacheable += verdict.refusal is None
            moving += here != there
            if here != there and verdict.refusal is None:
                wrong.append(sql)
    return wrong, cacheable, moving


async def test_no_cacheable_query_reads_stored_text_as_a_date(
    places: tuple[Database, list[psycopg.Connection[Any]]],
) -> None:
    wrong, cacheable, moving = await _served_wrongly(places, 700)
    assert wrong == []
    assert cacheable > 30
    assert moving > 100


@pytest.mark.sabotage
async def test_without_the_rule_stale_days_would_be_served(
    places: tuple[Database, list[psycopg.Connection[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "turns_with_the_clock", lambda *_: None)
    wrong, _, _ = await _served_wrongly(places, 50)
    assert len(wrong) > 20
