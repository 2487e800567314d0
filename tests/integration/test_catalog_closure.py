"""Our closure against the server's own accounts of what a query reads, and the two lists that rest on its catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from catalog_cases import CASES
from catalog_world import SCHEMAS, ask_on, build
from fix_postgres import Database, create_database, drop_database

from distribcache.catalog.resolve import resolve
from distribcache.sql.cacheability import Kind
from distribcache.sql.functions import EXTENSION_STABLE, IMMUTABLE_DENIED, IMPURE, STABLE, TIME
from distribcache.sql.parse import read


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[Database]:
    database = create_database(request.getfixturevalue("postgres"), "closure")
    with database.connect() as connection:
        build(connection)
    yield database
    drop_database(database)


CACHEABLE = [sql for sql, code, _ in CASES if not code]


def _explained(connection: psycopg.Connection[Any], sql: str) -> set[str]:
    """Relations in the server's plan. GENERIC_PLAN takes $1 and prunes nothing."""
    plan = connection.execute(f"EXPLAIN (VERBOSE, FORMAT JSON, GENERIC_PLAN) {sql}".encode()).fetchone()[0]

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if "Relation Name" in node:
                yield f"{node['Schema']}.{node['Relation Name']}"
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    return set(walk(plan))


def _depended(connection: psycopg.Connection[Any], sql: str) -> set[str] | None:
    """Relations that a view over the query would depend on; None when it cannot be a view."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(f"CREATE TEMP VIEW probe AS {sql}".encode())
            rows = connection.execute(
                "SELECT DISTINCT n.nspname || '.' || c.relname FROM pg_rewrite r "
                "JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid "
                "JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid AND c.oid <> r.ev_class "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.ev_class = 'pg_temp.probe'::regclass"
            ).fetchall()
            return {name for (name,) in rows}
    except psycopg.Error:
        return None


async def test_the_closure_holds_what_the_server_reads(world: Database) -> None:
    missing: list[str] = []
    compared = 0
    async with await psycopg.AsyncConnection.connect(
        world.conninfo(), autocommit=True, options="-c search_path=pg_catalog"
    ) as side:
        with world.connect() as connection:
            for sql in CACHEABLE:
                names = read(sql.encode()).statements[0].names
                ours = {name for _, name in (await resolve(ask_on(side), SCHEMAS, names)).members}
                theirs = _explained(connection, sql) | (_depended(connection, sql) or set())
                compared += len(theirs)
                if theirs - ours:
                    missing.append(f"{sql}: {theirs - ours}")
    assert missing == []
    assert compared > 60


async def test_roots_are_what_is_named_and_members_what_is_reached(world: Database) -> None:
    async def names(sql: str) -> tuple[list[str], list[str]]:
        found = await resolve(ask_on(side), SCHEMAS, read(sql.encode()).statements[0].names)
        return [name for _, name in found.roots], sorted(name for _, name in found.members)

    async with await psycopg.AsyncConnection.connect(
        world.conninfo(), autocommit=True, options="-c search_path=pg_catalog"
    ) as side:
        assert await names("SELECT * FROM part") == (
            ["public.part"], ["public.part", "public.part_a", "public.part_b", "public.part_b1"],
        )
        assert await names("SELECT * FROM parent") == (["public.parent"], ["public.child", "public.parent"])
        assert await names("SELECT * FROM v2") == (
            ["public.t", "public.hid"], ["public.hid", "public.t", "public.v1", "public.v2"],
        )
        # The table inside a visible function body.
        assert (await names("SELECT f_nested(id) FROM t"))[0] == ["public.t", "public.hid"]
        # A WITH name in a view hides the table of that name.
        assert (await names("SELECT * FROM v_cte"))[0] == ["public.t"]


@pytest.fixture(scope="module", params=["newest", "debian"])
def catalog(request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    if request.param == "newest":
        with psycopg.connect(request.getfixturevalue("postgres").conninfo(), autocommit=True) as connection:
            yield connection
        return
    from distribcache.cli.postgres import Postgres

    with (
        Postgres(bin_dir=request.getfixturevalue("debian_bin")) as server,
        psycopg.connect(server.conninfo(), autocommit=True) as connection,
    ):
        yield connection


def test_every_builtin_operator_runs_an_acceptable_function(catalog: psycopg.Connection[Any]) -> None:
    """Built-in operators are not asked about: none may run a function that would be refused."""
    rows = catalog.execute(
        "SELECT DISTINCT p.proname, p.provolatile::text FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode "
        "WHERE o.oid < 16384 AND p.provolatile <> 'i'"
    ).fetchall()
    assert rows
    assert [row for row in rows if row[0] not in STABLE or row[1] == "v"] == []


def test_every_builtin_cast_but_those_named_runs_an_acceptable_function(catalog: psycopg.Connection[Any]) -> None:
    rows = catalog.execute(
        "SELECT DISTINCT p.proname, p.provolatile::text FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc "
        "WHERE k.oid < 16384 AND p.provolatile <> 'i'"
    ).fetchall()
    # Both types are refused where they are named: text becomes regclass, time becomes timetz.
    assert {name for name, _ in rows if name not in STABLE} == {"regclass", "timetz"}


def test_the_lists_name_functions_as_the_server_has_them(catalog: psycopg.Connection[Any]) -> None:
    volatility = {}
    for name, kind in catalog.execute("SELECT proname, provolatile::text FROM pg_proc WHERE oid < 16384").fetchall():
        volatility.setdefault(name, set()).add(kind)
    newer = {name for name in (*STABLE, *IMPURE, *TIME, *IMMUTABLE_DENIED) if name not in volatility}
    if catalog.info.server_version >= 180000:
        assert newer == set()
    # A listed stable name with a volatile overload would be a trap for readers of the list.
    assert [name for name in STABLE if "v" in volatility.get(name, set())] == []
    assert all("i" in volatility[name] for name in IMMUTABLE_DENIED if name in volatility)
    assert not EXTENSION_STABLE & volatility.keys()
    assert not STABLE & (IMPURE | (TIME - {"age"}) | IMMUTABLE_DENIED)


def test_stable_builtins_that_look_at_the_server_are_not_listed(catalog: psycopg.Connection[Any]) -> None:
    """Whatever the next version adds: names that read the server's state must not slip into the list."""
    suspicious = re.compile(r"^(pg_(?!typeof|client_encoding)|has_|txid|inet_|to_reg|obj_|shobj_|col_|row_sec)")
    assert [name for name in STABLE if suspicious.match(name)] == []


def test_what_is_called_pure_takes_no_lock_and_no_transaction_id(world: Database) -> None:
    """Run every proven pure read, and look at what its transaction holds."""
    ran = 0
    with world.connect() as connection:
        for sql, _, pure in CASES:
            statements = read(sql.encode()).statements
            if not pure or "$" in sql or len(statements) != 1 or statements[0].kind is not Kind.READ:
                continue
            with connection.transaction(force_rollback=True):
                try:
                    with connection.transaction():
                        connection.execute(sql.encode())
                except psycopg.Error:
                    # Text that is no date, say: the verdict does not depend on the rows.
                    continue
                held = connection.execute(
                    "SELECT pg_current_xact_id_if_assigned()::text, array_agg(DISTINCT mode) FROM pg_locks "
                    "WHERE pid = pg_backend_pid() AND NOT (locktype = 'virtualxid' AND mode = 'ExclusiveLock')"
                ).fetchone()
            assert held == (None, ["AccessShareLock"]), sql
            ran += 1
    assert ran > 90
