"""``get`` and ``insert``: bytes under a fingerprint, dated where a database is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fix_library import Shop

from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryContext, QueryFingerprint
from distribcache.errors import ExpiredError, InvalidationError, MissError, TooLargeError
from distribcache.query import SessionId, WorkloadType

ITEMS = QueryFingerprint.from_query("SELECT * FROM item")


@pytest.fixture
async def alone() -> AsyncIterator[DistribCache]:
    async with DistribCache(DistribCacheConfig(l1_max_entry="8kB"), log=lambda _: None) as cache:
        yield cache


async def test_what_is_inserted_comes_back(alone: DistribCache) -> None:
    assert await alone.get(ITEMS) is None
    assert await alone.insert(ITEMS, CacheEntry(b"rows", ttl=30, row_count=3))
    found = await alone.get(ITEMS)
    assert found is not None
    assert (found.data, found.size, found.row_count, found.ttl) == (b"rows", 4, 3, 30)
    assert found.tables == ("public.item",) and not found.expired
    assert found.remaining_ttl is not None and 20 < found.remaining_ttl <= 30
    again = await alone.get(ITEMS)
    assert again is not None and again.access_count == 2
    assert await alone.get(ITEMS.with_params(1)) is None


async def test_branch_and_moment_are_part_of_the_key(alone: DistribCache) -> None:
    here = QueryContext(session=SessionId.new(), branch="main", as_of="2026-01-01")
    assert await alone.insert(ITEMS, CacheEntry(b"main"), here)
    for other in (None, QueryContext(), QueryContext(branch="main"), QueryContext(branch="dev", as_of="2026-01-01")):
        assert await alone.get(ITEMS, other) is None
    found = await alone.get(ITEMS, QueryContext(branch="main", as_of="2026-01-01"))
    assert found is not None and found.data == b"main"


async def test_ttl_by_class(alone: DistribCache) -> None:
    for hint, seconds in ((WorkloadType.OLAP, 1800.0), (WorkloadType.RAG, 900.0), (None, 60.0)):
        await alone.insert(ITEMS, CacheEntry(b"x"), QueryContext(workload_hint=hint))
        found = await alone.get(ITEMS)
        assert found is not None and found.ttl == seconds


async def test_strict_variants_raise(alone: DistribCache) -> None:
    with pytest.raises(MissError) as missed:
        await alone.get_or_raise(ITEMS)
    assert missed.value.where and missed.value.hint and missed.value.sqlstate == "02000"
    await alone.insert(ITEMS, CacheEntry(b"x", ttl=0.01))
    await asyncio.sleep(0.001)
    with pytest.raises(MissError):
        while await alone.get_or_raise(ITEMS):
            await asyncio.sleep(0.01)
    with pytest.raises(TooLargeError) as large:
        await alone.insert_or_raise(ITEMS, CacheEntry(bytes(10_000)))
    assert (large.value.size, large.value.maximum) == (10_000, 8192)
    assert not await alone.insert(ITEMS, CacheEntry(bytes(10_000)))
    assert issubclass(ExpiredError, MissError)


async def test_invalidation_by_hand(alone: DistribCache) -> None:
    other = QueryFingerprint.from_query("SELECT * FROM sales.other")
    await alone.insert(ITEMS, CacheEntry(b"x"))
    await alone.insert(other, CacheEntry(b"y"))
    assert await alone.invalidate_table("Item") == 1
    assert await alone.get(ITEMS) is None
    assert await alone.get(other) is not None
    assert await alone.invalidate(other)
    assert not await alone.invalidate(other)
    with pytest.raises(InvalidationError):
        await alone.invalidate_table("no, table")


async def test_what_is_read_before_an_invalidation_is_not_stored_after_it(alone: DistribCache) -> None:
    assert await alone.get(ITEMS) is None
    await alone.invalidate_table("item")
    assert not await alone.insert(ITEMS, CacheEntry(b"from before"))
    assert alone.stats().fills["invalidated"] == 1


async def test_a_commit_ends_an_entry_and_dates_are_kept(shop: Shop, cache: DistribCache) -> None:
    async def make() -> bool:
        cache.wrote()
        return await cache.get(ITEMS) is None and await cache.insert(ITEMS, CacheEntry(b"rows"))

    for _ in range(3000):
        await make()
        cache.wrote()
        if await cache.get(ITEMS) is not None:
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError(cache.stats())
    shop.outside("UPDATE item SET price = price WHERE id = 1")
    cache.wrote()
    assert await cache.get(ITEMS) is None  # ended; and this dates what comes now
    shop.outside("UPDATE item SET price = price WHERE id = 1")
    await cache.insert(ITEMS, CacheEntry(b"read in between"))
    cache.wrote()
    assert await cache.get(ITEMS) is None


async def test_without_a_date_nothing_of_tables_is_stored(shop: Shop, cache: DistribCache) -> None:
    assert not await cache.insert(ITEMS, CacheEntry(b"rows"))
    with pytest.raises(InvalidationError, match="no_fill_point"):
        await cache.insert_or_raise(ITEMS, CacheEntry(b"rows"))
    assert await cache.insert(QueryFingerprint("a thing"), CacheEntry(b"of no table"))
