"""The rules of coherence through the library: each kept, and muted so that the harm shows."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import asyncpg
import psycopg
import pytest
from fix_library import Shop, hit, hit_sync
from muted import kept_and_muted

from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint
from distribcache.coherence.ledger import W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.library import fetching
from distribcache.library import keeper as keepers
from distribcache.library.drivers.with_asyncpg import AsyncpgSession
from distribcache.library.keeper import Keeper

NAME = "SELECT name FROM item WHERE id = $1"
ALL = "SELECT count(*) FROM item WHERE name LIKE $1"


async def pool_of(shop: Shop) -> Any:
    return await asyncpg.create_pool(shop.url, min_size=1, max_size=4)


@kept_and_muted
async def test_a_commit_of_a_stranger_ends_an_entry(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R1, with ``strict``: at once."""
    if muted:
        monkeypatch.setattr(keepers, "valid", lambda *_: True)
    pool = await pool_of(shop)
    assert await hit(cache, pool, NAME, 30) == [("item 30",)]
    assert await hit(cache, pool, ALL, "new%") == [(0,)]
    shop.outside("UPDATE item SET name = 'new' WHERE id = 30")
    assert (await cache.fetch(pool, NAME, 30, consistency="strict") == [("new",)]) is not muted
    assert (await cache.fetch(pool, ALL, "new%", consistency="strict") == [(1,)]) is not muted
    shop.outside("UPDATE item SET name = 'item 30' WHERE id = 30")
    await pool.close()


async def test_other_rows_stay(shop: Shop, cache: DistribCache) -> None:
    """Row tags, from values as asyncpg and psycopg send them."""
    pool = await pool_of(shop)
    connection = await shop.psycopg()
    await hit(cache, pool, NAME, 31)
    await hit(cache, connection, "SELECT name FROM item WHERE id = %s", 31)
    for turn in range(50):
        shop.outside(f"UPDATE item SET name = 'round {turn}' WHERE id = 32")
        await cache.fetch(pool, NAME, 31, consistency="strict")
        one = cache.last
        await cache.fetch(connection, "SELECT name FROM item WHERE id = %s", 31, consistency="strict")
        if one.status == cache.last.status == "hit":
            break
    else:
        raise AssertionError((one, cache.last))
    await pool.close()
    await connection.close()


@kept_and_muted
async def test_ones_own_write_is_read(
    shop: Shop, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4 with ``session``: after ``execute`` no read is older, by whatever connection. The stream is held up."""
    if muted:
        monkeypatch.setattr(Keeper, "raise_floor", lambda self: None)
    async with shop.cache(freshness_hit_wait="0s") as cache:
        pool = await pool_of(shop)
        await hit(cache, pool, NAME, 33)
        monkeypatch.setattr("distribcache.coherence.reader.Reader._slice", lambda self, until: False)
        await cache.execute(pool, "UPDATE item SET name = 'mine' WHERE id = 33")
        assert (await cache.fetch(pool, NAME, 33) == [("mine",)]) is not muted
        monkeypatch.undo()
        await cache.execute(pool, "UPDATE item SET name = 'item 33' WHERE id = 33")
        await pool.close()


async def test_writing_and_wrote_raise_the_floor(shop: Shop, cache: DistribCache) -> None:
    pool = await pool_of(shop)
    connection = await shop.psycopg(autocommit=False)
    await hit(cache, pool, NAME, 34)
    async with cache.writing(), connection.transaction():
        await connection.execute("UPDATE item SET name = 'one' WHERE id = 34")
    assert await cache.fetch(pool, NAME, 34) == [("one",)]
    await hit(cache, pool, NAME, 34)
    shop.outside("UPDATE item SET name = 'item 34' WHERE id = 34")
    cache.wrote()
    assert await cache.fetch(pool, NAME, 34) == [("item 34",)]
    await connection.close()
    await pool.close()


@kept_and_muted
async def test_a_commit_between_f_and_the_store(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registration race (coherence trap 1): the row changes after it was read and before it is stored."""
    pool = await pool_of(shop)
    await hit(cache, pool, NAME, 35)
    if muted:  # F is read when the entry is stored
        plain = Keeper.put

        def late(self: Keeper, key: Any, entry: Any, *args: Any, **more: Any) -> str:
            point = self.coherence.head[W]
            return plain(self, key, (entry[0], point, point, *entry[3:]), *args, **more)

        monkeypatch.setattr(Keeper, "put", late)
    run = AsyncpgSession.run

    async def slowly(self: AsyncpgSession, question: Any, **how: Any) -> Any:
        result = await run(self, question, **how)
        if question.args == (36,):
            shop.outside("UPDATE item SET name = 'changed' WHERE id = 36")
            assert await asyncio.wrap_future(cache._keeper.call(_caught_up(cache)))
        return result

    monkeypatch.setattr(AsyncpgSession, "run", slowly)
    assert await cache.fetch(pool, NAME, 36) == [("item 36",)]
    monkeypatch.setattr(AsyncpgSession, "run", run)
    assert (await cache.fetch(pool, NAME, 36) == [("changed",)]) is not muted
    shop.outside("UPDATE item SET name = 'item 36' WHERE id = 36")
    await pool.close()


async def _caught_up(cache: DistribCache) -> bool:
    """The change stream has reached this moment, and what it told of is visible."""
    from distribcache.clock import now_ns

    coherence = cache._keeper.coherence
    for _ in range(3):
        if await coherence.wait_fresh(now_ns(), 30):
            return True
    return False


@kept_and_muted
async def test_a_follower_does_not_take_what_is_older_than_its_own_write(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 10: the leader's snapshot is older than a write that the follower made before it joined."""
    pool = await pool_of(shop)
    await hit(cache, pool, NAME, 37)
    if muted:
        monkeypatch.setattr(keepers, "valid", lambda *_: True)
        monkeypatch.setattr(Keeper, "fresh", lambda self, floor: True)
    read, go_on = asyncio.Event(), asyncio.Event()
    run = AsyncpgSession.run

    async def held(self: AsyncpgSession, question: Any, **how: Any) -> Any:
        result = await run(self, question, **how)
        if question.args == (38,) and not read.is_set():
            read.set()
            await go_on.wait()
        return result

    monkeypatch.setattr(AsyncpgSession, "run", held)
    leader = asyncio.create_task(cache.fetch(pool, NAME, 38))
    await read.wait()
    await cache.execute(pool, "UPDATE item SET name = 'mine' WHERE id = 38")
    follower = asyncio.create_task(cache.fetch(pool, NAME, 38))
    under_way = cache._keeper.flights._open
    while not any(flight.done._waiters or flight.done._done_callbacks for flight in under_way.values()):
        await asyncio.sleep(0.005)  # until the follower waits
    go_on.set()
    assert await leader == [("item 38",)]
    assert (await follower == [("mine",)]) is not muted
    await cache.execute(pool, "UPDATE item SET name = 'item 38' WHERE id = 38")
    await pool.close()


@kept_and_muted
async def test_the_catalogue_changes(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDL through the library is an alarm before it is acknowledged (R6)."""
    if muted:
        monkeypatch.setattr(fetching, "wrote", lambda *_, **__: iter(()))
        monkeypatch.setattr(keepers, "valid", lambda *_: True)
        monkeypatch.setattr(Keeper, "fresh", lambda self, floor: True)
        monkeypatch.setattr(Keeper, "why_not", lambda self: "")
    connection = await shop.psycopg()
    await connection.execute("CREATE TABLE one (id int); INSERT INTO one VALUES (1)")
    await connection.execute("CREATE TABLE two (id int); INSERT INTO two VALUES (2)")
    assert await hit(cache, connection, "SELECT id FROM one") == [(1,)]
    await cache.execute(connection, "ALTER TABLE one RENAME TO three")
    await cache.execute(connection, "ALTER TABLE two RENAME TO one")
    assert (await cache.fetch(connection, "SELECT id FROM one") == [(2,)]) is not muted
    await connection.execute("DROP TABLE one, three")
    await connection.close()


async def test_without_the_stream_reads_go_to_postgresql(
    shop: Shop, cache: DistribCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await pool_of(shop)
    await hit(cache, pool, NAME, 39)
    coherence = cache._keeper.coherence
    assert isinstance(coherence, DatabaseCoherence)
    await asyncio.wrap_future(cache._keeper.call(coherence.stop()))
    shop.outside("UPDATE item SET name = 'unseen' WHERE id = 39")
    assert await cache.fetch(pool, NAME, 39) == [("unseen",)]
    assert (cache.last.status, cache.last.reason) == ("bypass", "stopped")
    stats = cache.stats()
    assert (stats.serving, stats.reason) == (False, "stopped") and stats.hint
    shop.outside("UPDATE item SET name = 'item 39' WHERE id = 39")
    await pool.close()


async def test_only_time_where_that_was_chosen(shop: Shop) -> None:
    async with shop.cache(freshness_invalidation="ttl", ttl_oltp="1s") as cache:
        pool = await pool_of(shop)
        assert cache.stats().invalidation == "ttl"
        await hit(cache, pool, NAME, 40)
        shop.outside("UPDATE item SET name = 'later' WHERE id = 40")
        assert await cache.fetch(pool, NAME, 40) in ([("item 40",)], [("later",)])
        await asyncio.sleep(1.2)
        assert await cache.fetch(pool, NAME, 40) == [("later",)]
        assert await cache.fetch(pool, NAME, 40, consistency="strict") == [("later",)]
        assert cache.last.status == "miss"
        shop.outside("UPDATE item SET name = 'item 40' WHERE id = 40")
        await pool.close()


async def test_without_a_url_only_time_ends_entries(shop: Shop) -> None:
    """The verdict is asked for on the connection at hand; whatever must not be cached is not cached there either."""
    async with DistribCache(DistribCacheConfig(ttl_oltp="1s"), log=lambda _: None) as cache:
        pool = await pool_of(shop)
        user = await shop.psycopg("app", autocommit=False)
        assert await hit(cache, pool, NAME, 41) == [("item 41",)]
        assert await hit(cache, user, NAME, 41) == [("item 41",)]
        assert user.info.transaction_status == 0 and not user.autocommit
        cursor = await user.execute("SHOW search_path")
        assert await cursor.fetchone() == ('"$user", public',)
        await user.rollback()
        shop.outside("UPDATE item SET name = 'later' WHERE id = 41")
        await asyncio.sleep(1.2)
        assert await cache.fetch(pool, NAME, 41) == [("later",)]
        shop.outside("UPDATE item SET name = 'item 41' WHERE id = 41")
        for text, reason in [
            ("SELECT random(), id FROM item", "volatile_function"), ("SELECT now(), id FROM item", "time_dependent"),
            ("SELECT nothing FROM nowhere", "unknown_relation"),
        ]:  # fmt: skip
            with contextlib.suppress(asyncpg.UndefinedTableError):
                await cache.fetch(pool, text)
            assert cache.last.reason == reason
        for role, tenant in [("ann", "red"), ("bob", "blue"), ("ann", "blue")]:
            await user.execute(f"SET ROLE {role}; SET app.tenant = '{tenant}'")
            await user.commit()
            for _ in range(3):
                assert await cache.fetch(user, "SELECT body FROM note ORDER BY id") == [(f"of {role}",)]
                assert await cache.fetch(user, "SELECT body FROM diary ORDER BY id") == [(f"of {tenant}",)]
        await user.close()
        await asyncio.to_thread(_blocking, cache, shop)
        stats = cache.stats()
        assert (stats.invalidation, stats.serving) == ("ttl", True)
        fingerprint = QueryFingerprint.from_query("SELECT * FROM item")
        assert await cache.insert(fingerprint, CacheEntry(b"rows", ttl=60))
        found = await cache.get(fingerprint)
        assert found is not None and found.data == b"rows"
        await pool.close()


def _blocking(cache: DistribCache, shop: Shop) -> None:
    with psycopg.connect(shop.conninfo()) as connection:
        assert hit_sync(cache, connection, "SELECT name FROM item WHERE id = %s", 46) == [("item 46",)]
        cache.fetch_sync(connection, "SELECT random(), id FROM item")
        assert cache.last.reason == "volatile_function"


async def test_ones_own_bound_and_ttl(shop: Shop, cache: DistribCache) -> None:
    pool = await pool_of(shop)
    await hit(cache, pool, NAME, 42, max_staleness="5s")
    await asyncio.sleep(0.05)
    await cache.fetch(pool, NAME, 42, ttl="10ms")
    assert cache.last.status == "miss"
    await hit(cache, pool, NAME, 42, consistency="eventual")
    await hit(cache, pool, NAME, 42, consistency="strict")
    await pool.close()


async def test_what_is_counted(shop: Shop, cache: DistribCache) -> None:
    pool = await pool_of(shop)
    await hit(cache, pool, NAME, 43)
    cells = cache.heatmap()
    assert {(cell.kind, cell.name) for cell in cells} == {("table", "public.item"), ("template", NAME)}
    assert all(cell.hits >= 1 and cell.misses >= 1 and cell.seconds_saved > 0 for cell in cells)
    (share,) = cache.workload_distribution()
    assert (share.workload, share.percent) == ("oltp", 100.0)
    stats = cache.stats()
    assert stats.hits >= 1 and 0 < stats.hit_ratio < 1 and stats.tiers["L1"].entries == 1
    assert stats.as_dict()["queries_avoided"] == stats.hits
    await pool.close()
