"""Rows through the library: every driver, hits equal to misses, what passes by and why."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import ipaddress
import uuid
from typing import Any

import asyncpg
import psycopg
import psycopg.sql
import psycopg_pool
import pytest
from fix_library import Shop, hit, hit_sync

from distribcache import DistribCache, Row
from distribcache.errors import ClientError

ONE = "SELECT id, name FROM item WHERE id = 5"


async def twice(cache: DistribCache, source: Any, sql: str, *args: Any) -> list[Row]:
    """A read and its repetition: a miss, then a hit, equal in values and classes."""
    first = await cache.fetch(source, sql, *args)
    second = await hit(cache, source, sql, *args)
    assert first == second
    assert [type(row) for row in first] == [type(row) for row in second]
    assert [[type(each) for each in row] for row in first] == [[type(each) for each in row] for row in second]
    return second


async def test_asyncpg_pool_and_connection(shop: Shop, cache: DistribCache) -> None:
    async with asyncpg.create_pool(shop.url, min_size=1, max_size=2) as pool:
        rows = await twice(cache, pool, "SELECT id, name FROM item WHERE id = $1", 5)
        assert rows[0].name == rows[0]["name"] == rows[0][1] == "item 5"
        async with pool.acquire() as connection:
            await hit(cache, connection, "SELECT id, name FROM item WHERE id = $1", 5)
    single = await asyncpg.connect(shop.url)
    await twice(cache, single, "SELECT id, name FROM item WHERE id = $1", 5)
    await single.close()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_psycopg_connection(shop: Shop, cache: DistribCache, autocommit: bool) -> None:
    connection = await shop.psycopg(autocommit=autocommit)
    for sql, args in [
        ("SELECT id, name FROM item WHERE id = %s", (5,)),
        ("SELECT id, name FROM item WHERE id = %(id)s AND name LIKE '%%5'", ({"id": 5},)),
        ("SELECT id, name FROM item WHERE id = $1", (5,)),
    ]:
        assert await twice(cache, connection, sql, *args) == [(5, "item 5")]
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.autocommit is autocommit
    await connection.close()


async def test_psycopg_pool(shop: Shop, cache: DistribCache) -> None:
    async with psycopg_pool.AsyncConnectionPool(shop.conninfo(), min_size=1, open=False) as pool:
        await twice(cache, pool, ONE)
        await cache.fetch(pool, "INSERT INTO note VALUES (%s, %s, %s) RETURNING id", 70, "ann", "new")
        assert cache.last.status == "bypass"
        assert (await cache.fetchval(pool, "SELECT count(*) FROM note WHERE id = 70")) == 1
        await cache.execute(pool, "DELETE FROM note WHERE id = 70")


async def test_without_asyncio(shop: Shop, cache: DistribCache) -> None:
    def story() -> None:
        with psycopg.connect(shop.conninfo()) as connection:
            assert hit_sync(cache, connection, "SELECT name FROM item WHERE id = %s", 8) == [("item 8",)]
            cache.execute_sync(connection, "UPDATE item SET name = 'eight' WHERE id = 8")
            assert cache.fetch_sync(connection, "SELECT name FROM item WHERE id = %s", 8) == [("eight",)]
            assert cache.last.reason == "transaction"
            connection.rollback()
        with psycopg_pool.ConnectionPool(shop.conninfo(), min_size=1, open=True) as pool:
            assert hit_sync(cache, pool, ONE) == [(5, "item 5")]

    await asyncio.to_thread(story)


def test_a_blocking_program_needs_no_event_loop(shop: Shop) -> None:
    with DistribCache(shop.config(), log=lambda _: None) as cache, psycopg.connect(shop.conninfo()) as connection:
        assert cache.ready_sync("20s")
        assert hit_sync(cache, connection, ONE) == [(5, "item 5")]


TYPES = """SELECT 1::int2 a, 2::int8 b, 1.50::numeric c, 'NaN'::numeric d, '-0'::float8 e, 'NaN'::float4 f, true g,
    'ü'::text h, '\\x00ff'::bytea i, '2004-02-29'::date j, '10:00'::time k,
    '2024-01-01 12:00'::timestamp m, '2024-01-01 12:00+02'::timestamptz n, '1 day 2 hours'::interval o,
    '00000000-0000-0000-0000-000000000007'::uuid p, '10.0.0.1'::inet q, '10.0.0.0/8'::cidr r,
    '{"a": [1, null]}'::jsonb s, ARRAY[1, NULL, 3] t, ARRAY['x', 'y'] u, int4range(1, 5) v, 'empty'::int4range w,
    NULL::int x, ARRAY['00000000-0000-0000-0000-000000000007'::uuid] y, count(*) z FROM item"""


async def test_types_come_back_as_they_were(shop: Shop, cache: DistribCache) -> None:
    single = await asyncpg.connect(shop.url)
    (row,) = await hit(cache, single, TYPES)
    assert type(row.p) is uuid.UUID and type(row.y[0]) is uuid.UUID
    assert type(row.v) is asyncpg.Range and row.v.upper == 5 and row.w.isempty
    assert row.c == decimal.Decimal("1.50") and str(row.c) == "1.50" and row.d.is_nan()
    assert str(row.e) == "-0.0" and row.i == b"\x00\xff" and row.n.tzinfo is dt.UTC
    await single.close()
    connection = await shop.psycopg()
    (row,) = await hit(cache, connection, TYPES)
    assert row.s == {"a": [1, None]} and row.q == ipaddress.ip_address("10.0.0.1")
    await connection.close()


async def test_unknown_types_are_given_back_and_not_kept(shop: Shop, cache: DistribCache) -> None:
    single = await asyncpg.connect(shop.url)
    for _ in range(2):
        await cache.fetch(single, "SELECT '(1,2)'::point, id FROM item WHERE id = 1")
        assert (cache.last.status, cache.last.reason) == ("miss", "unknown_type")
    await single.close()


async def test_what_passes_by_and_why(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg()
    for sql, args, reason in [
        ("SELECT now(), id FROM item", (), "time_dependent"),
        ("SELECT random(), id FROM item", (), "volatile_function"),
        ("SELECT id FROM item FOR UPDATE", (), "locking_read"),
        ("SELECT 1", (), "no_relation"),
        ("SELECT relname FROM pg_class LIMIT 1", (), "catalog_relation"),
        ("SELECT id FROM item WHERE %s::text::date IS NOT NULL LIMIT 1", ("today",), "time_parameter"),
        ("UPDATE item SET price = price WHERE id = 1", (), "not_a_read"),
    ]:
        await cache.fetch(connection, sql, *args)
        assert cache.last.status in ("refused", "bypass")
        assert cache.last.reason == reason, cache.last
    assert sum(cache.stats().refusals.values()) >= 5
    await connection.close()


async def test_in_a_transaction_nothing_is_served_or_stored(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg(autocommit=False)
    await twice(cache, connection, ONE)
    async with connection.transaction():
        await connection.execute("UPDATE item SET name = 'mine' WHERE id = 5")
        assert await cache.fetchval(connection, "SELECT name FROM item WHERE id = %s", 5) == "mine"
        assert cache.last.reason == "transaction"
        raise psycopg.Rollback
    assert await cache.fetchval(connection, "SELECT name FROM item WHERE id = %s", 5) == "item 5"
    await connection.close()


async def test_one_connection_shared_by_tasks(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg(autocommit=False)
    reads = [cache.fetchval(connection, "SELECT name FROM item WHERE id = %s", i % 7 + 10) for i in range(50)]
    assert await asyncio.gather(*reads) == [f"item {i % 7 + 10}" for i in range(50)]
    assert not connection.autocommit
    await connection.close()


async def test_single_flight(shop: Shop, cache: DistribCache) -> None:
    async with asyncpg.create_pool(shop.url, min_size=4, max_size=4) as pool:
        await hit(cache, pool, ONE)
        before = cache.stats().misses
        slow = "SELECT count(*) FROM item a, item b, item c"
        rows = await asyncio.gather(*(cache.fetch(pool, slow) for _ in range(64)))
        assert all(row == [(1000000,)] for row in rows)
        assert cache.stats().misses - before <= 2  # a change of the catalogue may end the first one


async def test_loaders_of_ones_own_are_honoured(shop: Shop, cache: DistribCache) -> None:
    class Loud(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode()

    plain, loud = await shop.psycopg(), await shop.psycopg()
    loud.adapters.register_loader("numeric", Loud)
    assert await hit(cache, plain, "SELECT price FROM item WHERE id = 20") == [(decimal.Decimal("30.0"),)]
    assert await cache.fetchval(loud, "SELECT price FROM item WHERE id = 20") == "30.0"
    assert cache.last.reason == "adapters_differ"
    await plain.close()
    await loud.close()


async def test_codecs_of_asyncpg_connections_are_not_mixed(shop: Shop, cache: DistribCache) -> None:
    one, other = await asyncpg.connect(shop.url), await asyncpg.connect(shop.url)
    await other.set_type_codec("text", schema="pg_catalog", encoder=lambda v: v + "0", decoder=lambda v: v.upper())
    assert await cache.fetchval(one, "SELECT name FROM item WHERE id = 21") == "item 21"
    assert await cache.fetchval(other, "SELECT name FROM item WHERE id = 21") == "ITEM 21"
    # What it sends is not what it was given: the answer depends on the whole table, not on a row of that name.
    assert await cache.fetchval(other, "SELECT id FROM item WHERE name = $1", "item 1") == 10
    shop.outside("UPDATE item SET name = 'item ten' WHERE id = 10")
    assert await cache.fetchval(other, "SELECT id FROM item WHERE name = $1", "item 1", consistency="strict") is None
    shop.outside("UPDATE item SET name = 'item 10' WHERE id = 10")
    await one.close()
    await other.close()


async def test_mistakes_are_named(shop: Shop, cache: DistribCache) -> None:
    with pytest.raises(ClientError, match="no connection or pool"):
        await cache.fetch(object(), ONE)
    connection = await shop.psycopg()
    with pytest.raises(ClientError, match="fetch"):
        cache.fetch_sync(connection, ONE)
    with pytest.raises(ClientError, match="placeholders"):
        await cache.fetch(connection, "SELECT %s, %s", 1)
    for text in (b"SELECT 1", psycopg.sql.SQL("SELECT 1"), 5):
        with pytest.raises(ClientError, match="is a str, not"):
            await cache.fetch(connection, text)  # type: ignore[arg-type]
    with pytest.raises(psycopg.errors.UndefinedTable):
        await cache.fetch(connection, "SELECT * FROM nowhere")
    await connection.close()


async def test_a_stopped_cache_passes_by(shop: Shop) -> None:
    cache = DistribCache(shop.config(), log=lambda _: None)
    connection = await shop.psycopg()
    assert await cache.fetch(connection, ONE) == [(5, "item 5")]
    assert cache.last.reason == "stopped"
    async with cache:
        assert await cache.ready("20s")
        await twice(cache, connection, ONE)
    assert await cache.fetch(connection, ONE) == [(5, "item 5")]
    assert cache.last.reason == "stopped"
    await connection.close()


async def test_loaders_changed_for_all_are_honoured_by_pools(shop: Shop, cache: DistribCache) -> None:
    class Plain(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode()

    text = "SELECT price FROM item WHERE id = 22"
    before = psycopg.adapters.get_loader(1700, psycopg.pq.Format.TEXT)
    assert before is not None
    async with psycopg_pool.AsyncConnectionPool(shop.conninfo(), min_size=1, open=False) as pool:
        assert await hit(cache, pool, text) == [(decimal.Decimal("33.0"),)]
    psycopg.adapters.register_loader("numeric", Plain)
    try:
        async with psycopg_pool.AsyncConnectionPool(shop.conninfo(), min_size=1, open=False) as pool:
            assert await cache.fetch(pool, text) == [("33.0",)]
            assert cache.last.reason == "adapters_differ"
    finally:
        psycopg.adapters.register_loader("numeric", before)
