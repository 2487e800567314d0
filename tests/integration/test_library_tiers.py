"""The tiers below memory, under the library: answers go down once they are settled, and come up by the same rules."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from fix_library import Shop, hit

from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint
from distribcache.clock import now_ns
from distribcache.errors import NetworkError, PeerNotFoundError, StorageError, TierUnavailableError
from distribcache.library.steps import go
from distribcache.tiers.base import Cause

WIDE = "SELECT id, repeat(name, 50) AS body FROM item ORDER BY id"
L2: dict[str, Any] = {"l2_min_ttl": "1s"}


async def sunk(cache: DistribCache) -> None:
    """What is in memory has gone down; then it leaves memory."""
    for _ in range(3000):
        if cache.stats().tiers["L2"].entries:
            break
        await go(cache._keeper.wait_fresh(now_ns()))  # a proof that what is in memory is durable
        await asyncio.sleep(0.02)
    else:
        raise AssertionError(cache.stats())

    async def drop() -> None:
        for key in list(cache._keeper.entries):
            cache._keeper.l1.discard(key, Cause.CAPACITY)

    await asyncio.wrap_future(cache._keeper.call(drop()))


async def test_rows_come_up_from_l2(shop: Shop, tmp_path: Path) -> None:
    async with (
        shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache,
        asyncpg.create_pool(shop.url, min_size=1) as pool,
    ):
        rows = await hit(cache, pool, WIDE)
        await sunk(cache)
        assert await cache.fetch(pool, WIDE) == rows
        assert (cache.last.status, cache.last.tier) == ("hit", "L2")
        await sunk(cache)
        shop.outside("UPDATE item SET name = name WHERE id = 1")
        assert await cache.fetch(pool, WIDE, consistency="strict") == rows
        assert cache.last.status == "miss"


@pytest.mark.parametrize("meanwhile", ["nothing", "a grant"])
async def test_where_only_time_ends_rows_they_outlive_the_process(
    shop: Shop, tmp_path: Path, meanwhile: str
) -> None:
    """Unless the catalogue is another one by then."""
    settings: dict[str, Any] = {"freshness_invalidation": "ttl", "l2_path": str(tmp_path / "warm"), **L2}
    async with asyncpg.create_pool(shop.url, min_size=1) as pool:
        async with shop.cache(**settings) as cache:
            await _looked(cache, pool)
            rows = await hit(cache, pool, WIDE)
            await sunk(cache)
            assert await cache.fetch(pool, WIDE) == rows
            assert (cache.last.status, cache.last.tier) == ("hit", "L2")
        if meanwhile == "a grant":
            shop.outside("GRANT SELECT ON item TO public")
        async with shop.cache(**settings) as cache:
            await _looked(cache, pool)
            assert await cache.fetch(pool, WIDE) == rows
            assert (cache.last.tier == "L2") is (meanwhile == "nothing")


async def _looked(cache: DistribCache, pool: asyncpg.Pool) -> None:
    """The catalogue was looked at for the first time."""
    for number in range(3000):
        if cache._keeper.coherence.shared_epoch():
            return
        await cache.fetch(pool, "SELECT name FROM item WHERE id = $1", number)
        await asyncio.sleep(0.02)
    raise AssertionError("never looked")


async def test_what_was_invalidated_by_hand_does_not_come_up(shop: Shop, tmp_path: Path) -> None:
    async with (
        shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache,
        asyncpg.create_pool(shop.url, min_size=1) as pool,
    ):
        await hit(cache, pool, WIDE)
        await sunk(cache)
        await cache.invalidate_table("item")
        await cache.fetch(pool, WIDE)
        assert cache.last.status == "miss"


async def test_users_are_told_apart_below_memory_too(shop: Shop, tmp_path: Path) -> None:
    text = "SELECT repeat(body, 500) AS body FROM note ORDER BY id"
    async with (
        shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache,
        asyncpg.create_pool(shop.database.url("ann"), min_size=1) as ann,
        asyncpg.create_pool(shop.database.url("bob"), min_size=1) as bob,
    ):
        assert await hit(cache, ann, text) == [("of ann" * 500,)]
        await sunk(cache)
        assert await cache.fetch(bob, text) == [("of bob" * 500,)]
        assert await cache.fetch(ann, text) == [("of ann" * 500,)]
        assert cache.last.tier == "L2"


async def test_entries_of_an_application_live_below_memory_too(shop: Shop, tmp_path: Path) -> None:
    thing, items = QueryFingerprint("a thing"), QueryFingerprint.from_query("SELECT * FROM item")
    data = bytes(range(256)) * 20
    path = str(tmp_path / "warm")
    async with DistribCache(DistribCacheConfig(l2_path=path), log=lambda _: None) as cache:
        assert await cache.insert(thing, CacheEntry(data, ttl=600))
        assert await cache.insert(items, CacheEntry(data, ttl=600))
        for _ in range(3000):
            if cache.stats().tiers["L2"].entries:
                break
            await asyncio.sleep(0.02)
    # Another life of the process: what depends on time alone is still there, what could be ended by hand is not.
    async with DistribCache(DistribCacheConfig(l2_path=path), log=lambda _: None) as cache:
        found = await cache.get(thing)
        assert found is not None and found.data == data and found.ttl == 600
        assert await cache.get(items) is None
        assert await cache.invalidate(thing)
        assert await cache.get(thing) is None


async def test_dated_entries_come_up_until_a_commit(shop: Shop, tmp_path: Path) -> None:
    items = QueryFingerprint.from_query("SELECT * FROM item")
    data = bytes(range(256)) * 20
    async with shop.cache(l2_path=str(tmp_path / "warm")) as cache:
        for _ in range(3000):
            cache.wrote()
            if await cache.get(items) is not None:
                break
            await cache.insert(items, CacheEntry(data, ttl=600))
            await asyncio.sleep(0.02)
        await sunk(cache)
        found = await cache.get(items)
        assert found is not None and found.data == data
        await sunk(cache)
        shop.outside("UPDATE item SET name = name WHERE id = 1")
        cache.wrote()
        assert await cache.get(items) is None


async def test_tiers_that_are_off_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with DistribCache(DistribCacheConfig(l2_path=str(tmp_path / "warm")), log=lambda _: None) as cache:
        assert cache.tier_or_raise("L1").capacity_bytes and cache.tier_or_raise("l2").capacity_bytes
        for name in ("L3", "L9"):
            with pytest.raises(TierUnavailableError):
                cache.tier_or_raise(name)
    async with DistribCache(DistribCacheConfig(l2_path=str(tmp_path / "warm")), log=lambda _: None) as cache:
        near: Any = cache._keeper.store.stack.near
        off = replace(near.stats(), reason="disk_full")
        monkeypatch.setattr(type(near), "stats", lambda self: off)
        with pytest.raises(StorageError, match="disk_full") as raised:
            cache.tier_or_raise("L2")
        assert raised.value.where and raised.value.hint
    async with DistribCache(DistribCacheConfig(l3_peers="127.0.0.1:1"), log=lambda _: None) as cache:
        with pytest.raises((PeerNotFoundError, NetworkError)):
            cache.tier_or_raise("L3")
