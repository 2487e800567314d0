"""One connection, used by several tasks or threads at a time: what others do on it stays what it is, and what they have
not committed is nobody else's answer.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import asyncpg
import psycopg
import pytest
from fix_library import Shop, hit, hit_sync

from distribcache import DistribCache, DistribCacheConfig
from distribcache.catalog.resolve import resolve
from distribcache.library import examine
from distribcache.library.drivers import with_asyncpg, with_psycopg

SLOW = "SELECT count(*) FROM item a, item b, item c WHERE a.id + b.id > c.id"
COUNT = "SELECT count(*) FROM item"
INSERT = "INSERT INTO item VALUES (1000, 'of nobody')"


async def test_a_write_beside_a_read_is_not_committed_for_its_owner(shop: Shop, cache: DistribCache) -> None:
    connection = await shop.psycopg(autocommit=False)
    for _ in range(5):
        reading = asyncio.create_task(cache.fetch(connection, f"{SLOW} /* distribcache: nocache */"))
        while not reading.done() and connection.info.transaction_status.name != "ACTIVE":
            await asyncio.sleep(0)
        await connection.execute(INSERT)  # its turn comes behind the statement that is running
        assert await reading
        assert connection.info.transaction_status.name == "INTRANS"
        await connection.rollback()
        assert shop.outside(COUNT) == [(100,)]
    await connection.close()


def test_a_write_beside_a_read_of_another_thread(shop: Shop, cache: DistribCache) -> None:
    with psycopg.connect(shop.conninfo()) as connection:
        for _ in range(5):
            reading = threading.Thread(target=cache.fetch_sync, args=(connection, SLOW))
            reading.start()
            while reading.is_alive() and connection.info.transaction_status.name != "ACTIVE":
                pass
            connection.execute(INSERT)
            reading.join()
            connection.rollback()
            assert shop.outside(COUNT) == [(100,)]


@pytest.mark.parametrize("autocommit", [True, False])
async def test_what_another_task_has_not_committed_is_not_kept(
    shop: Shop, cache: DistribCache, monkeypatch: pytest.MonkeyPatch, autocommit: bool
) -> None:
    connection = await shop.psycopg(autocommit=autocommit)
    run, seen = with_psycopg.AsyncSession.run, []

    async def among(self: Any, question: Any, **how: Any) -> Any:
        """Another task's transaction begins before the statement, and is over when anybody looks."""
        if not question.text.startswith(COUNT):
            return await run(self, question, **how)
        async with connection.transaction(force_rollback=True):
            await connection.execute(INSERT)
            seen.append(await run(self, question, **how))
            return seen[-1]

    await hit(cache, connection, "SELECT id FROM item")  # it is settled
    monkeypatch.setattr(with_psycopg.AsyncSession, "run", among)
    assert await cache.fetch(connection, COUNT) == [(101,)] and len(seen) == 1
    monkeypatch.undo()
    assert connection.autocommit is autocommit
    assert await cache.fetch(connection, COUNT) == [(100,)] == await hit(cache, connection, COUNT)
    await connection.close()


async def test_what_another_task_has_not_committed_is_not_kept_from_asyncpg(
    shop: Shop, cache: DistribCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(shop.url)
    run = with_asyncpg.AsyncpgSession.run

    async def among(self: Any, question: Any, **how: Any) -> Any:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(INSERT)
        found = await run(self, question, **how)
        await transaction.rollback()
        return found

    await hit(cache, connection, "SELECT id FROM item")
    monkeypatch.setattr(with_asyncpg.AsyncpgSession, "run", among)
    assert await cache.fetch(connection, COUNT) == [(101,)]
    monkeypatch.undo()
    assert await cache.fetch(connection, COUNT) == [(100,)] == await hit(cache, connection, COUNT)
    await connection.close()


def test_a_connection_that_is_not_in_autocommit_mode_stays_idle(shop: Shop, cache: DistribCache) -> None:
    with psycopg.connect(shop.conninfo()) as connection:
        assert hit_sync(cache, connection, COUNT) == [(100,)]
        assert not connection.autocommit and connection.info.transaction_status.name == "IDLE"
        connection.execute("SELECT 1")
        assert connection.info.transaction_status.name == "INTRANS"
        cache.fetch_sync(connection, COUNT)
        assert cache.last.reason == "transaction"


async def test_a_write_beside_a_look_at_the_catalogue_waits_for_its_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``upstream.url`` the catalogue is asked on this very connection, read-only and with a path of its own."""
    connection = await shop.psycopg(autocommit=False)
    beside: list[asyncio.Task[Any]] = []

    async def slowly(ask: Any, *names: Any) -> Any:
        beside.append(asyncio.create_task(connection.execute(INSERT)))
        await asyncio.sleep(0.02)
        return await resolve(ask, *names)

    monkeypatch.setattr(examine, "resolve", slowly)
    async with DistribCache(DistribCacheConfig(), log=lambda _: None) as cache:
        assert await cache.fetch(connection, COUNT) in ([(100,)], [(101,)])
        await beside[0]
        await connection.rollback()
        assert shop.outside(COUNT) == [(100,)]
        monkeypatch.undo()
        assert await hit(cache, connection, COUNT) == [(100,)]
    await connection.close()


def test_a_write_beside_a_look_of_another_thread_waits_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []

    def write() -> None:
        try:
            connection.execute(INSERT)
        except psycopg.Error as error:
            failures.append(error)

    async def slowly(ask: Any, *names: Any) -> Any:
        writing.start()
        writing.join(0.05)
        return await resolve(ask, *names)

    monkeypatch.setattr(examine, "resolve", slowly)
    writing = threading.Thread(target=write)
    without = DistribCache(DistribCacheConfig(), log=lambda _: None)
    with without as cache, psycopg.connect(shop.conninfo()) as connection:
        cache.fetch_sync(connection, COUNT)
        writing.join()
        connection.rollback()
        assert not failures and shop.outside(COUNT) == [(100,)]
