"""The scope of WITH, against the server: over random nested queries our relations are those of its own views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, create_database, drop_database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distribcache.sql.parse import read

NAMES = st.sampled_from(["a", "b", "c", "d"])


def _select(parts: tuple[list[str], str | None]) -> str:
    tables, where = parts
    listed = ", ".join(f"{table} AS r{number}" for number, table in enumerate(tables))
    return f"SELECT r0.x FROM {listed}" + (f" WHERE r0.x IN ({where})" if where else "")


def _with(parts: tuple[bool, list[tuple[str, str]], str]) -> str:
    recursive, expressions, body = parts
    unique = dict(expressions)
    listed = ", ".join(f"{name}(x) AS ({query})" for name, query in unique.items())
    return f"WITH {'RECURSIVE ' if recursive else ''}{listed} {body}"


def _deeper(queries: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    tables = st.one_of(NAMES, NAMES.map("public.{}".format), queries.map("({})".format))
    select = st.tuples(st.lists(tables, min_size=1, max_size=2), st.none() | queries).map(_select)
    union = st.tuples(queries, queries).map(lambda both: f"({both[0]}) UNION ALL ({both[1]})")
    loop = NAMES.map("WITH RECURSIVE {0}(x) AS (SELECT 1 UNION SELECT x FROM {0}) SELECT x FROM {0}".format)
    with_clause = st.tuples(
        st.booleans(), st.lists(st.tuples(NAMES, queries), min_size=1, max_size=2), select
    ).map(_with)
    return st.one_of(select, union, loop, with_clause)


QUERIES = st.recursive(NAMES.map(lambda name: f"SELECT x FROM {name}"), _deeper, max_leaves=7)


@pytest.fixture(scope="module")
def connection(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    database: Database = create_database(request.getfixturevalue("postgres"), "scope")
    with database.connect() as connection:
        for name in "abcd":
            connection.execute(f"CREATE TABLE {name} (x int)".encode())
        yield connection
    drop_database(database)


def _server(connection: psycopg.Connection[Any], sql: str) -> set[str] | None:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(f"CREATE TEMP VIEW probe AS {sql}".encode())
            rows = connection.execute(
                "SELECT DISTINCT c.relname FROM pg_rewrite r "
                "JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid "
                "JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid AND c.oid <> r.ev_class "
                "WHERE r.ev_class = 'pg_temp.probe'::regclass"
            ).fetchall()
            return {name for (name,) in rows}
    except psycopg.errors.ProgrammingError:
        # A recursive query that the server refuses.
        return None
    except psycopg.errors.NotSupportedError:
        return None


def test_random_nested_queries(connection: psycopg.Connection[Any]) -> None:
    compared: list[int] = []

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(QUERIES)
    def compare(sql: str) -> None:
        theirs = _server(connection, sql)
        if theirs is not None:
            compared.append(len(theirs))
            (statement,) = read(sql.encode()).statements
            assert {name.name for name in statement.relations} == theirs

    compare()
    assert len(compared) > 100
    assert sum(compared) > 150
