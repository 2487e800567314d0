"""Nobody sees another's rows through one cache object; each rule also muted, and then somebody does."""

from __future__ import annotations

import asyncio
import json
from contextvars import ContextVar
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from fix_library import Shop, hit
from muted import kept_and_muted

from distribcache import DistribCache
from distribcache.coherence.scope import Idents
from distribcache.library import scope as scopes
from distribcache.library.drivers import with_psycopg
from distribcache.library.drivers.with_asyncpg import AsyncpgSession
from distribcache.library.scope import Scopes, Standing

NOTES = "SELECT body FROM note ORDER BY id"
DIARY = "SELECT body FROM diary ORDER BY id"


@pytest.fixture
def muted_identity(muted: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    """All contents of scopes are the same one."""
    if muted:
        plain = Idents.of
        monkeypatch.setattr(Idents, "of", lambda self, content: plain(self, 0))
    return muted


@kept_and_muted
async def test_two_users(shop: Shop, cache: DistribCache, muted_identity: bool) -> None:
    ann, bob = await shop.psycopg("ann"), await shop.psycopg("bob")
    assert await hit(cache, ann, NOTES) == [("of ann",)]
    assert (await cache.fetch(bob, NOTES) == [("of bob",)]) is not muted_identity
    assert await cache.fetch(ann, NOTES) == [("of ann",)]
    await ann.close()
    await bob.close()


@kept_and_muted
async def test_set_role_on_one_connection(shop: Shop, cache: DistribCache, muted_identity: bool) -> None:
    connection = await shop.psycopg("app")
    await connection.execute("SET ROLE ann")
    assert await hit(cache, connection, NOTES) == [("of ann",)]
    await connection.execute("SET ROLE bob")
    assert (await cache.fetch(connection, NOTES) == [("of bob",)]) is not muted_identity
    await connection.execute("RESET ROLE")
    assert (await cache.fetch(connection, NOTES) == []) is not muted_identity
    await connection.close()


@kept_and_muted
async def test_a_setting_that_a_policy_reads(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:  # the settings of policies are not asked for
        plain = Scopes.read

        def blind(self: Scopes, answer: str, pid: int, coherence: Any, extra: tuple[str, ...], *rest: Any) -> Any:
            fields = json.loads(answer, parse_int=str, parse_float=str)
            last = max(fields, key=lambda name: int(name[1:]))
            fields[last] = [None if i >= len(fields[last]) - len(extra) else v for i, v in enumerate(fields[last])]
            return plain(self, json.dumps(fields), pid, coherence, extra, *rest)

        monkeypatch.setattr(Scopes, "read", blind)
    connection = await shop.psycopg("app")
    await connection.execute("SET app.tenant = 'red'")
    assert await hit(cache, connection, DIARY) == [("of red",)]
    await connection.execute("SET app.tenant = 'blue'")
    assert (await cache.fetch(connection, DIARY) == [("of blue",)]) is not muted
    await connection.close()


async def test_search_path_and_temporary_tables(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg()
    assert await hit(cache, connection, "SELECT count(*) FROM item") == [(100,)]
    await connection.execute("CREATE SCHEMA IF NOT EXISTS other; CREATE TABLE IF NOT EXISTS other.item (id int)")
    await connection.execute("SET search_path = other, public")
    assert await cache.fetch(connection, "SELECT count(*) FROM item") == [(0,)]
    await connection.execute("RESET search_path; CREATE TEMP TABLE item (id int)")
    for _ in range(3000):
        assert await cache.fetch(connection, "SELECT count(*) FROM item") == [(0,)]
        if cache.last.reason == "temporary_schema":
            break
        await asyncio.sleep(0.02)  # the schema made above is being looked at
    else:
        raise AssertionError(cache.last)
    await connection.execute("DROP TABLE pg_temp.item; DROP SCHEMA other CASCADE")
    await connection.close()


async def test_settings_that_shape_values(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg()
    text = "SELECT '2024-01-01 12:00+00'::timestamptz, id FROM item WHERE id = 1"
    await connection.execute("SET timezone = 'UTC'")
    (one,) = await cache.fetch(connection, text)
    await connection.execute("SET timezone = 'Asia/Tokyo'")
    (other,) = await cache.fetch(connection, text)
    assert str(one[0].tzinfo) != str(other[0].tzinfo)
    await connection.close()


async def pool_of(shop: Shop, size: int = 2) -> psycopg_pool.AsyncConnectionPool[Any]:
    pool: psycopg_pool.AsyncConnectionPool[Any] = psycopg_pool.AsyncConnectionPool(
        shop.conninfo("app"), min_size=size, max_size=size, open=False, kwargs={"autocommit": True}
    )
    await pool.open(wait=True)
    return pool


@kept_and_muted
async def test_a_pool_with_a_differing_connection(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection of the pool was left with a role: the first miss that meets it ends the belief in the pool."""
    if muted:
        monkeypatch.setattr(scopes, "told_apart", lambda one, other: False)
        monkeypatch.setattr("distribcache.library.fetching.told_apart", lambda one, other: False)
    pool = await pool_of(shop)
    assert await hit(cache, pool, NOTES) == []  # what was passed by at the start has told nobody who they are
    first, second = await pool.getconn(), await pool.getconn()
    await first.execute("SET ROLE ann")
    await pool.putconn(first)
    await cache.fetch(pool, "SELECT body FROM note WHERE id = 1")  # a miss, on the connection that is left
    await pool.putconn(second)
    assert (cache.last.reason == "pool_differs") is not muted
    for _ in range(4):
        await cache.fetch(pool, NOTES)
        assert (cache.last.reason == "pool_differs") is not muted
    assert bool(cache.stats().pools) is not muted
    # Another pool is not concerned.
    other = await pool_of(shop, 1)
    assert await hit(cache, other, NOTES) == []
    await pool.close()
    await other.close()


@kept_and_muted
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_pool_that_makes_connections_somebodys_at_check_out(
    shop: Shop, cache: DistribCache, muted: bool, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit takes no connection, so what would be done to one must not matter."""
    if muted:
        believing = property(lambda self: True, lambda self, value: None)
        monkeypatch.setattr(AsyncpgSession, "uniform", believing, raising=False)
        monkeypatch.setattr(with_psycopg, "_is_uniform", lambda pool: True)
    tenant = ContextVar("tenant", default="red")

    async def setup(connection: Any) -> None:
        await connection.execute(f"SET app.tenant = '{tenant.get()}'")

    pool: Any
    if driver == "asyncpg":
        pool = await asyncpg.create_pool(shop.database.url("app"), min_size=1, max_size=1, setup=setup)
    else:
        pool = psycopg_pool.AsyncConnectionPool(
            shop.conninfo("app"), min_size=1, max_size=1, open=False, check=setup, kwargs={"autocommit": True}
        )
        await pool.open()
    tenant.set("red")
    assert await hit(cache, pool, DIARY) == [("of red",)]
    tenant.set("blue")
    assert (await cache.fetch(pool, DIARY) == [("of blue",)]) is not muted
    tenant.set("red")
    assert await cache.fetch(pool, DIARY) == [("of red",)]
    await pool.close()


async def test_two_pools_of_two_users(shop: Shop, cache: DistribCache) -> None:
    async with (
        asyncpg.create_pool(shop.database.url("ann"), min_size=1) as ann,
        asyncpg.create_pool(shop.database.url("bob"), min_size=1) as bob,
    ):
        assert await hit(cache, ann, NOTES) == [("of ann",)]
        assert await hit(cache, bob, NOTES) == [("of bob",)]
        results = await asyncio.gather(*(cache.fetch(pool, NOTES) for pool in [ann, bob] * 50))
        assert results == [[("of ann",)], [("of bob",)]] * 50


async def test_the_belief_in_a_pool_ends_with_its_time(shop: Shop, cache: DistribCache) -> None:
    standing = Standing()
    assert standing.believed((), cache._keeper.coherence.words, 1) is None
    pool = await pool_of(shop, 1)
    await hit(cache, pool, NOTES)
    known = next(iter(cache._fetching.askers._pools.values()))
    known.at_ns -= 60_000_000_000
    async with pool.connection() as connection:
        await connection.execute("SET ROLE ann")
    assert await cache.fetch(pool, NOTES) == [("of ann",)]
    assert cache.last.reason == "pool_differs"
    await pool.close()


async def test_a_revoked_right_ends_hits(shop: Shop, cache: DistribCache) -> None:
    shop.outside("CREATE TABLE secret (id int)", "INSERT INTO secret VALUES (7)", "GRANT SELECT ON secret TO ann")
    ann = await shop.psycopg("ann")
    assert await hit(cache, ann, "SELECT id FROM secret") == [(7,)]
    owner = await shop.psycopg()
    await cache.execute(owner, "REVOKE SELECT ON secret FROM ann")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await cache.fetch(ann, "SELECT id FROM secret")
    await ann.close()
    await owner.close()
    shop.outside("DROP TABLE secret")


async def test_another_database_or_server_is_passed_by(shop: Shop, cache: DistribCache) -> None:
    elsewhere = await psycopg.AsyncConnection.connect(
        shop.database.server.conninfo("postgres"), autocommit=True
    )
    await elsewhere.execute("CREATE TABLE IF NOT EXISTS item (id int)")
    await cache.fetch(elsewhere, "SELECT id FROM item")
    assert cache.last.reason == "another_database"
    await elsewhere.execute("DROP TABLE item")
    await elsewhere.close()


async def test_a_connection_that_is_not_the_followed_server(
    shop: Shop, cache: DistribCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence rule R9."""
    connection = await shop.psycopg()
    await hit(cache, connection, NOTES)
    identity = cache._keeper.coherence.identity
    assert identity is not None
    object.__setattr__(identity, "postmaster_start", "1.5")
    await cache.fetch(connection, NOTES)
    assert cache.last.reason == "wrong_server"
    await connection.close()
