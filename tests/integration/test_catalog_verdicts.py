"""What may be cached and what is a proven pure read, asked of real servers: one line per rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from catalog_cases import CASES, EXTENDED, SHADOWED, VECTOR, VIRTUAL, Case
from catalog_world import SCHEMAS, analyst, build
from fix_postgres import Database, create_database, drop_database

from distribcache.catalog import resolve
from distribcache.catalog.closure_sql import CLOSURE
from distribcache.sql.cacheability import REFUSALS

EXT = ("pg_catalog", "public", "ext")


@pytest.fixture(scope="module", params=["newest", "debian"])
def world(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "newest":
        server = request.getfixturevalue("postgres")
    else:
        from distribcache.cli.postgres import Postgres

        server = Postgres(bin_dir=request.getfixturevalue("debian_bin"))
        server.start()
    database = create_database(server, "world")
    with database.connect() as connection:
        build(connection)
    yield database
    if request.param == "newest":
        drop_database(database)
    else:
        server.close()


async def _differences(world: Database, cases: list[Case], schemas: tuple[str, ...]) -> list[str]:
    found = []
    async with analyst(world.conninfo()) as one:
        for sql, code, pure in cases:
            result = await one.analyse(sql.encode(), schemas)
            got = result.refusal.code if result.refusal else ""
            if (got, result.pure) != (code, pure):
                wanted = f"{code or 'cacheable'}/{pure}"
                found.append(f"{sql}\n  expected {wanted}, got {result.refusal or ''}/{result.pure}")
            assert bool(result.slots or result.rows) == (result.refusal is None)
            assert not got or got in REFUSALS
    return found


async def test_every_rule_on_a_real_server(world: Database) -> None:
    found = await _differences(world, CASES, SCHEMAS)
    assert not found, "\n".join(found)


async def test_extensions_work_and_do_not_spoil_plain_queries(world: Database) -> None:
    found = await _differences(world, EXTENDED, EXT)
    assert not found, "\n".join(found)


async def test_vectors(world: Database) -> None:
    if not world.execute("SELECT to_regclass('docs')::text")[0][0]:
        pytest.skip("no pgvector here")
    found = await _differences(world, VECTOR, EXT)
    assert not found, "\n".join(found)


async def test_virtual_columns(world: Database) -> None:
    if not world.execute("SELECT to_regclass('virt')::text")[0][0]:
        pytest.skip("no virtual columns here")
    found = await _differences(world, VIRTUAL, SCHEMAS)
    assert not found, "\n".join(found)


async def test_a_role_without_any_right_learns_the_same(world: Database) -> None:
    """The side connection belongs to a role that need not read the tables, only the catalogue."""
    world.execute("DROP ROLE IF EXISTS nobody_special", "CREATE ROLE nobody_special LOGIN")
    found = []
    async with analyst(world.conninfo("nobody_special")) as one:
        for sql, code, pure in CASES:
            result = await one.analyse(sql.encode(), SCHEMAS)
            if ((result.refusal.code if result.refusal else ""), result.pure) != (code, pure):
                found.append(f"{sql}: {result.refusal}")
    world.execute("DROP ROLE nobody_special")
    assert not found, "\n".join(found)


async def test_a_cast_between_builtin_types_concerns_every_query(world: Database) -> None:
    world.execute(
        "CREATE FUNCTION bool_date(bool) RETURNS date IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE CAST (bool AS date) WITH FUNCTION bool_date(bool) AS IMPLICIT",
    )
    try:
        async with analyst(world.conninfo()) as one:
            refusal = (await one.analyse(b"SELECT id FROM t", SCHEMAS)).refusal
        assert refusal is not None
        assert refusal.code == "user_cast"
        assert "boolean as date" in refusal.detail
    finally:
        world.execute("DROP FUNCTION bool_date(bool) CASCADE")


async def test_a_view_that_vanishes_between_snapshot_and_text_refuses(world: Database) -> None:
    """The server prints definitions as of now, not as of the question's snapshot."""
    async with analyst(world.conninfo()) as one:
        real = one._ask

        async def ask(sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
            rows = await real(sql, parameters)
            if sql != CLOSURE:
                return rows
            return [
                (kind, oid, json.dumps(json.loads(text) | {"definition": None}) if kind == "relation" else text)
                for kind, oid, text in rows
            ]

        one._ask = ask
        result = await one.analyse(b"SELECT * FROM v1", SCHEMAS)
    assert result.refusal is not None
    assert result.refusal.code == "unsupported_syntax"
    assert not result.pure


async def test_what_shadows_a_builtin_name_is_judged(world: Database) -> None:
    found = await _differences(world, SHADOWED, ("shadow", "pg_catalog", "public"))
    assert not found, "\n".join(found)


async def test_temporal_world_without_timetz_in_reach(world: Database) -> None:
    """extract() has an overload for timetz: that alone refuses nothing."""
    async with analyst(world.conninfo()) as one:
        assert (await one.analyse(b"SELECT extract(hour FROM created) FROM t", SCHEMAS)).refusal is None


async def test_a_materialized_view_is_a_leaf_when_refreshes_are_reported(
    world: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always(_: object) -> bool:
        return True

    monkeypatch.setattr(resolve, "announces", always)
    oid = world.execute("SELECT 'mv'::regclass::oid::int8")[0][0]
    async with analyst(world.conninfo()) as one:
        result = await one.analyse(b"SELECT * FROM mv", SCHEMAS)
    assert result.refusal is None
    assert result.slots == (oid,)
