"""The tiers below memory, under the library: answers go down once they are settled, and come up by the same rules."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
from fix_library import Shop, hit

from distribcache import DistribCache
from distribcache.clock import now_ns
from distribcache.library.steps import go
from distribcache.tiers.base import Cause

WIDE = "SELECT id, repeat(name, 50) AS body FROM item ORDER BY id"
L2: dict[str, Any] = {"l2_min_ttl": "1s"}


async def sunk(cache: DistribCache) -> None:
    """What is in memory has gone down; then it leaves memory."""
    for _ in range(400):
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
    async with shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache:
        async with asyncpg.create_pool(shop.url, min_size=1) as pool:
            rows = await hit(cache, pool, WIDE)
            await sunk(cache)
            assert await cache.fetch(pool, WIDE) == rows
            assert (cache.last.status, cache.last.tier) == ("hit", "L2")
            await sunk(cache)
            shop.outside("UPDATE item SET name = name WHERE id = 1")
            assert await cache.fetch(pool, WIDE, consistency="strict") == rows
            assert cache.last.status == "miss"


async def test_what_was_invalidated_by_hand_does_not_come_up(shop: Shop, tmp_path: Path) -> None:
    async with shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache:
        async with asyncpg.create_pool(shop.url, min_size=1) as pool:
            await hit(cache, pool, WIDE)
            await sunk(cache)
            await cache.invalidate_table("item")
            await cache.fetch(pool, WIDE)
            assert cache.last.status == "miss"


async def test_users_are_told_apart_below_memory_too(shop: Shop, tmp_path: Path) -> None:
    text = "SELECT repeat(body, 500) AS body FROM note ORDER BY id"
    async with shop.cache(l2_path=str(tmp_path / "warm"), **L2) as cache:
        async with (
            asyncpg.create_pool(shop.database.url("ann"), min_size=1) as ann,
            asyncpg.create_pool(shop.database.url("bob"), min_size=1) as bob,
        ):
            assert await hit(cache, ann, text) == [("of ann" * 500,)]
            await sunk(cache)
            assert await cache.fetch(bob, text) == [("of bob" * 500,)]
            assert await cache.fetch(ann, text) == [("of ann" * 500,)]
            assert cache.last.tier == "L2"
