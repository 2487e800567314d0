"""What goes wrong around a read: the stream is cut, the caller gives up, the cache is stopped meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from fix_library import Shop, hit
from wait import until

from distribcache import DistribCache, QueryFingerprint
from distribcache.errors import ConfigError
from distribcache.library.keeper import Keeper
from distribcache.library.planning import Planning

NAME = "SELECT name FROM item WHERE id = $1"
SLOW = "SELECT count(*) FROM item a, item b, item c, item d WHERE a.id + b.id + c.id + d.id > $1"


async def test_a_cut_stream_ends_the_epoch_and_hits_resume(shop: Shop, cache: DistribCache) -> None:
    pool = await asyncpg.create_pool(shop.url, min_size=1)
    await hit(cache, pool, NAME, 60)
    shop.outside(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'distribcache'",
        "UPDATE item SET name = 'unseen' WHERE id = 60",
    )
    assert await cache.fetch(pool, NAME, 60, consistency="strict") == [("unseen",)]
    assert await hit(cache, pool, NAME, 60) == [("unseen",)]
    shop.outside("UPDATE item SET name = 'item 60' WHERE id = 60")
    await pool.close()


async def test_a_log_that_fails_is_a_counter(shop: Shop) -> None:
    def broken(line: str) -> None:
        raise LookupError(line)

    async with DistribCache(shop.config(), log=broken) as cache:
        assert await cache.ready("60s"), cache.stats()
        epoch = cache._keeper.coherence.epoch
        shop.outside(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'distribcache'",
        )
        until(lambda: cache._keeper.coherence.epoch != epoch, lambda: f"{cache.stats()}")
        assert await cache.ready("60s"), cache.stats()
        assert cache.stats().failures["log LookupError"]


def test_a_start_that_fails_leaves_nothing_behind(shop: Shop, tmp_path: Path) -> None:
    """Its tiers are opened one after the other, and the last one cannot be."""

    def there() -> tuple[list[str], int]:
        open_files = sum(tmp_path.name in str(link.resolve()) for link in Path("/proc/self/fd").iterdir())
        return sorted(thread.name for thread in threading.enumerate()), open_files

    before = there()
    settings = {"l2_path": str(tmp_path / "warm"), "l3_peers": "127.0.0.1:1", "l3_password_file": "/no/such/file"}
    with pytest.raises(ConfigError):
        DistribCache(shop.config(**settings), log=lambda _: None).__enter__()
    assert there() == before
    used = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'distribcache' AND datname = '{}'"
    until(lambda: shop.outside(used.format(shop.database.name)) == [(0,)])


async def test_who_gives_up_leaves_nothing_behind(shop: Shop, cache: DistribCache) -> None:
    pool = await asyncpg.create_pool(shop.url, min_size=1, max_size=1)
    other = psycopg_pool.AsyncConnectionPool(shop.conninfo(), min_size=1, max_size=1, open=False)
    await other.open(wait=True)
    connection = await shop.psycopg(autocommit=False)
    for source in (pool, other, connection):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cache.fetch(source, SLOW, 5), 0.3)
        assert await cache.fetch(source, NAME, 61) == [("item 61",)]
    until(lambda: not len(cache._keeper.flights))
    assert not connection.autocommit
    await connection.close()
    await other.close()
    await pool.close()


async def test_a_follower_that_gives_up_is_not_the_others(shop: Shop, cache: DistribCache) -> None:
    pool = await asyncpg.create_pool(shop.url, min_size=3, max_size=3)
    text = "SELECT count(*) FROM item a, item b, item c, item d WHERE d.id <= 10"
    first = asyncio.create_task(cache.fetch(pool, text))
    while not len(cache._keeper.flights):
        await asyncio.sleep(0.001)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(cache.fetch(pool, text), 0.005)
    third = asyncio.create_task(cache.fetch(pool, text))
    assert await first == await third == [(10_000_000,)]
    await pool.close()


async def test_an_error_of_postgresql_is_an_error_of_the_read(shop: Shop, cache: DistribCache) -> None:
    pool = await asyncpg.create_pool(shop.url, min_size=2)
    reads = [cache.fetch(pool, "SELECT 1 / (id - id) FROM item WHERE id = $1", 5) for _ in range(8)]
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(each) for each in results} == {asyncpg.DivisionByZeroError}
    assert await cache.fetch(pool, NAME, 62) == [("item 62",)]
    until(lambda: not len(cache._keeper.flights))
    await pool.close()


@pytest.mark.parametrize("place", ["find", "_plan", "floor", "put"])
async def test_a_failure_of_the_cache_is_not_one_of_the_read(
    shop: Shop, cache: DistribCache, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    pool = await asyncpg.create_pool(shop.url, min_size=1)
    await hit(cache, pool, NAME, 63)

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(Planning if place == "_plan" else Keeper, place, broken)
    assert await cache.fetch(pool, NAME, 63) == [("item 63",)]
    assert await cache.fetch(pool, NAME, 64) == [("item 64",)]
    until(lambda: "RuntimeError" in cache.stats().failures)  # what is kept is kept behind the answer
    monkeypatch.undo()
    assert await hit(cache, pool, NAME, 63) == [("item 63",)]
    await pool.close()


@pytest.mark.parametrize("place", ["find", "fresh", "floor", "put", "touch"])
async def test_a_failure_of_the_cache_is_a_call_of_the_function(
    cache: DistribCache, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    @cache.cached(tables=["item"])
    async def double(number: int) -> int:
        return 2 * number

    assert await double(1) == 2

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(Keeper, place, broken)
    assert [await double(each) for each in (1, 1, 2, 2)] == [2, 2, 4, 4]
    assert await cache.get(QueryFingerprint.from_query("SELECT * FROM item")) is None


def test_stopped_while_threads_read(shop: Shop) -> None:
    cache = DistribCache(shop.config(), log=lambda _: None)
    ended = threading.Event()
    failures: list[BaseException] = []
    reads: list[int] = []

    def read() -> None:
        try:
            with psycopg.connect(shop.conninfo(), autocommit=True) as connection:
                while not ended.is_set():
                    assert cache.fetch_sync(connection, "SELECT name FROM item WHERE id = 65") == [("item 65",)]
                    reads.append(1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with cache:
            seen = len(reads)
            until(lambda seen=seen: len(reads) > seen + 20 or failures)
    ended.set()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_one_cache_for_several_event_loops(shop: Shop) -> None:
    async def story(cache: DistribCache) -> None:
        async with asyncpg.create_pool(shop.url, min_size=1) as pool:
            assert await hit(cache, pool, NAME, 66) == [("item 66",)]

    with DistribCache(shop.config(), log=lambda _: None) as cache:
        for _ in range(3):
            asyncio.run(story(cache))
