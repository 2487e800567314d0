"""A prepared statement means what its names meant at its Parse: PostgreSQL looks them up again only when an object that
it found has changed. What is made later in an earlier schema changes the same text for others, and not for it.

Each case is played by the same steps directly and through the proxy. Muted, a statement is taken for its text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import MakeInnerProxy, MakeProxy, last
from muted import kept_and_muted
from wait import until

from distribcache.catalog.meaning import Meaning
from distribcache.cli.postgres import Postgres
from distribcache.proxy.prepared import Prepared

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """``change`` gives the text ``sql`` another meaning; ``touch`` changes what the old one reads. ``fixed``: by a name
    that is never looked up again.
    """

    name: str
    sql: str
    change: str
    touch: str = "UPDATE public.t SET n = 'changed' WHERE id = 1"
    fixed: bool = False


_WORLD = """
CREATE SCHEMA early;
CREATE TABLE pin AS SELECT 1 AS id;
CREATE TABLE t (id int PRIMARY KEY, n text);
INSERT INTO t VALUES (1, 'b'), (2, 'B'), (3, 'a');
CREATE FUNCTION f(bigint) RETURNS text IMMUTABLE LANGUAGE sql RETURN 'bigint';
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE COLLATION mine FROM "C";
CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple);
CREATE TABLE configured (c regconfig);
INSERT INTO configured VALUES (NULL);
"""
_CASES = [
    Case("table", "SELECT n FROM t WHERE id = %s", "CREATE TABLE early.t AS SELECT 1 AS id, 'early' AS n"),
    Case("view", "SELECT n FROM t WHERE id = %s", "CREATE VIEW early.t AS SELECT 1 AS id, 'view'::text AS n FROM pin"),
    Case(
        "function", "SELECT f(id) || n FROM t WHERE id = %s",
        "CREATE FUNCTION f(int) RETURNS text IMMUTABLE LANGUAGE sql RETURN 'int'",
    ),
    Case(
        "type", "SELECT CASE WHEN 'sad'::mood < 'glad'::mood THEN n ELSE 'turned' END FROM t WHERE id = %s",
        "CREATE TYPE early.mood AS ENUM ('glad', 'sad')",
    ),
    Case(
        "text search", "SELECT to_tsvector('plain', n || ' running')::text FROM t WHERE id = %s",
        "CREATE TEXT SEARCH CONFIGURATION early.plain (COPY = english)", fixed=True,
    ),
    Case(
        "text search renamed", "SELECT to_tsvector('public.plain', n || ' running')::text FROM t WHERE id = %s",
        "ALTER TEXT SEARCH CONFIGURATION plain RENAME TO old; CREATE TEXT SEARCH CONFIGURATION plain (COPY = english)",
        fixed=True,
    ),
    Case(
        "text search of the server", "SELECT to_tsvector('danish', n || ' running')::text FROM t WHERE id = %s",
        "ALTER TEXT SEARCH CONFIGURATION pg_catalog.danish RENAME TO was; "
        "CREATE TEXT SEARCH CONFIGURATION pg_catalog.danish (COPY = english)", fixed=True,
    ),
    Case(
        "collation renamed", "SELECT upper((chr(233) || n) COLLATE public.mine) FROM t WHERE id = %s",
        "ALTER COLLATION mine RENAME TO old; CREATE COLLATION mine (provider = builtin, locale = 'C.UTF-8')",
        fixed=True,
    ),
    Case(
        "column of names",
        "SELECT coalesce(c, 'plain')::text || n FROM configured, t WHERE id = %s",
        "CREATE TEXT SEARCH CONFIGURATION early.plain (COPY = english)", fixed=True,
    ),
]  # fmt: skip


def _play(
    case: Case, database: Database, connect: Callable[[], contextlib.AbstractContextManager[Connection]],
    settled: Callable[[], None],
) -> list[object]:
    """What two connections of before, and one of after the change, are told."""
    told: list[object] = []
    with contextlib.ExitStack() as stack:

        def one() -> Connection:
            connection = stack.enter_context(connect())
            connection.execute("SET search_path = early, public", prepare=False)
            return connection

        def ask(*connections: Connection) -> None:
            for connection in connections:
                for _ in range(3):
                    try:
                        told.append(connection.execute(case.sql, [1], prepare=True).fetchall())
                    except psycopg.Error as error:
                        told.append(str(error))

        first, second = one(), one()
        ask(first, second)
        database.execute(*case.change.split("; "))
        settled()
        ask(first)
        third = one()
        ask(third, first, second)
        database.execute(case.touch)
        settled()
        ask(first, second, third)
    return told


@kept_and_muted
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_statement_prepared_before_reads_what_it_found_then(
    postgres: Postgres, database_on: Callable[[Postgres], Database], make_inner_proxy: MakeInnerProxy, case: Case,
    muted: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    directly, cached = database_on(postgres), database_on(postgres)
    for each in (directly, cached):
        each.execute(*_WORLD.strip().split(";\n"))
    expected = _play(case, directly, lambda: psycopg.connect(directly.url(), autocommit=True), lambda: None)
    if muted and case.fixed:
        monkeypatch.setattr(Meaning, "is_fixed_since", lambda *_: True)
    elif muted:
        monkeypatch.setattr(Prepared, "runs_as_written", lambda *_: True)
        monkeypatch.setattr(Prepared, "reads_as_written", lambda *_: True)
    patient = {"freshness.max_staleness": "30s", "freshness.hit_wait": "2s", "freshness.schema_poll": "500ms"}
    proxy = make_inner_proxy(cached.url(), patient)
    with proxy.connect() as watcher:

        def settled() -> None:
            """Everything up to now is known to the cache."""
            watcher.execute("SET distribcache.consistency = strict")
            until(lambda: bool(watcher.execute("SELECT id FROM pin")) and last(watcher)["status"] == "hit")

        told = _play(case, cached, proxy.connect, settled)
        assert int(dict(watcher.execute("SHOW distribcache.stats").fetchall())["hits_total"]) > 5
    assert (told == expected) is not muted, [pair for pair in zip(told, expected, strict=True) if pair[0] != pair[1]]


def test_it_is_cached_again_when_a_change_was_none_of_its_names(database: Database, make_proxy: MakeProxy) -> None:
    """Pools keep their statements for days: neither a new table elsewhere, nor a column, a partition or another table
    in the old one's place costs them their hits. What might have been found elsewhere before does, of names that are
    never looked up again, until they are prepared anew.
    """
    database.execute(*_WORLD.strip().split(";\n"), "CREATE TABLE p (id int) PARTITION BY RANGE (id)")
    proxy = make_proxy(database.url())
    texts = (
        "SELECT n FROM t WHERE id = %s", "SELECT count(*) FROM p WHERE id > %s",
        "SELECT n COLLATE \"C\" < 'a', n COLLATE public.mine < 'a' FROM t WHERE id = %s",
        "SELECT to_tsvector('simple', n), to_tsquery('public.plain', 'a') FROM t WHERE id = %s",
    )  # fmt: skip
    vague = "SELECT n COLLATE mine < 'a' FROM t WHERE id = %s"
    with proxy.connect() as connection:

        def becomes(text: str, status: str, reason: str | None = None) -> None:
            def so() -> bool:
                connection.execute(text, [1], prepare=True)
                told = last(connection)
                return (told["status"], told["reason"]) == (status, reason)

            until(so, lambda: f"{text}: {last(connection)}")

        for text in (*texts, vague):
            becomes(text, "hit")
        for change in (
            "CREATE TABLE other (id int)", "ALTER TABLE t ADD COLUMN more int",
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)", "CREATE VIEW v AS SELECT id FROM t",
            "ALTER TABLE t RENAME TO away; CREATE TABLE t (id int PRIMARY KEY, n text)",
        ):
            database.execute(*change.split("; "))
            for text in texts:
                becomes(text, "hit")
        becomes(vague, "bypass", "prepared_before")
        connection.execute("DEALLOCATE ALL")
        becomes(vague, "hit")
