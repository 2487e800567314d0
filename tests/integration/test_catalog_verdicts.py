"""What may be cached and what is a proven pure read, asked of real servers: one line per rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from catalog_cases import CASES, EXTENDED, SHADOWED, VECTOR, Case
from catalog_world import SCHEMAS, analyst, build
from fix_postgres import Database, create_database, drop_database

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
            assert bool(result.slots) == (result.refusal is None)
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


async def test_what_shadows_a_builtin_name_is_judged(world: Database) -> None:
    found = await _differences(world, SHADOWED, ("shadow", "pg_catalog", "public"))
    assert not found, "\n".join(found)


async def test_temporal_world_without_timetz_in_reach(world: Database) -> None:
    """extract() has an overload for timetz: that alone refuses nothing."""
    async with analyst(world.conninfo()) as one:
        assert (await one.analyse(b"SELECT extract(hour FROM created) FROM t", SCHEMAS)).refusal is None


async def test_a_materialized_view_is_a_leaf_when_refreshes_are_reported(world: Database) -> None:
    oid = world.execute("SELECT 'mv'::regclass::oid::int8")[0][0]
    async with analyst(world.conninfo(), matviews=True) as one:
        result = await one.analyse(b"SELECT * FROM mv", SCHEMAS)
    assert result.refusal is None
    assert result.slots == (oid,)
