"""asyncpg through the proxy: named statements, Flush, all binary, its pool's reset, COPY, cursors and listeners."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from fix_world import World

ONE = "SELECT name FROM item WHERE id = $1"
SOME = "SELECT id, price FROM item WHERE id BETWEEN $1 AND $2 ORDER BY id"
TWO_ROWS = [(7, Decimal("10.5")), (8, Decimal("12.0"))]

Connection = Any


@pytest.fixture
async def connection(world: World) -> AsyncIterator[Connection]:
    made = await asyncpg.connect(world.proxy.url())
    yield made
    await made.close()


async def until_hits(world: World, reads: Callable[[], Awaitable[None]], hits: int = 1) -> None:
    """Repeat ``reads`` until two rounds in a row bring at least ``hits`` hits each."""

    async def warm() -> bool:
        before = await asyncio.to_thread(world.hits)
        await reads()
        return await asyncio.to_thread(world.hits) - before >= hits

    async with asyncio.timeout(60):
        while not (await warm() and await warm()):
            await asyncio.sleep(0.01)


async def last(connection: Connection) -> tuple[str, str, str]:
    row = await connection.fetchrow("SHOW distribcache.last")
    return row["status"], row["tier"], row["tables"]


async def test_fetch_fetchrow_fetchval(world: World, connection: Connection) -> None:
    async def reads() -> None:
        assert [tuple(row) for row in await connection.fetch(SOME, 7, 8)] == TWO_ROWS
        assert tuple(await connection.fetchrow(SOME, 7, 8)) == TWO_ROWS[0]
        assert await connection.fetchval(SOME, 7, 8, column=1) == Decimal("10.5")
        assert await connection.fetchval(ONE, 1000) is None

    await until_hits(world, reads, 4)
    assert await last(connection) == ("hit", "L1", "public.item")


async def test_simple_query_protocol(world: World, connection: Connection) -> None:
    async def reads() -> None:
        assert await connection.execute("SELECT name FROM item WHERE id = 7") == "SELECT 1"

    await until_hits(world, reads)
    assert await last(connection) == ("hit", "L1", "public.item")


async def test_prepared(world: World, connection: Connection) -> None:
    statement = await connection.prepare(SOME)
    assert [each.name for each in statement.get_parameters()] == ["int4", "int4"]
    assert [each.name for each in statement.get_attributes()] == ["id", "price"]

    async def reads() -> None:
        assert [tuple(row) for row in await statement.fetch(7, 8)] == TWO_ROWS
        assert tuple(await statement.fetchrow(8, 8)) == TWO_ROWS[1]
        assert (await statement.fetchmany([(7, 8), (8, 9)]))[0]["id"] == 7

    await until_hits(world, reads, 2)


@pytest.mark.parametrize("readonly", [False, True])
async def test_transactions(world: World, connection: Connection, readonly: bool) -> None:
    async def reads() -> None:
        async with connection.transaction(readonly=readonly):
            assert [tuple(row) for row in await connection.fetch(ONE, 1)] == [("item 1",)]
            async with connection.transaction():
                assert [tuple(row) for row in await connection.fetch(ONE, 2)] == [("item 2",)]
            assert connection.is_in_transaction()
        assert not connection.is_in_transaction()

    await until_hits(world, reads, 2)


async def test_a_row_limit_in_a_transaction_goes_upstream(world: World, connection: Connection) -> None:
    """fetchval leaves a suspended portal behind, which in a transaction its client may come back to."""
    async with connection.transaction():
        for _ in range(3):
            assert await connection.fetchval(ONE, 1) == "item 1"
            row = await connection.fetchrow("SHOW distribcache.last")
            assert (row["status"], row["reason"]) == ("bypass", "row_limit")


async def test_a_transaction_that_writes(world: World, connection: Connection) -> None:
    for _ in range(3):
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetchval("SELECT count(*) FROM note") == 0
        assert await connection.execute("INSERT INTO note (body) VALUES ('x')") == "INSERT 0 1"
        assert await connection.fetchval("SELECT count(*) FROM note") == 1
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with connection.transaction():
                await connection.fetchval("SELECT 1 / 0")
        assert await connection.fetchval("SELECT count(*) FROM note") == 1
        await transaction.rollback()
        assert await connection.fetchval("SELECT count(*) FROM note") == 0


async def test_repeatable_read_is_not_served(world: World, connection: Connection) -> None:
    async with connection.transaction(isolation="repeatable_read"):
        before = await asyncio.to_thread(world.hits)
        for _ in range(3):
            assert await connection.fetchval(ONE, 1) == "item 1"
        assert await asyncio.to_thread(world.hits) == before


async def test_pool_and_its_reset(world: World) -> None:
    """Proxy trap 8: at every release the pool sends its reset query, which must not cost the cache anything."""
    async with asyncpg.create_pool(world.proxy.url(), min_size=2, max_size=2) as pool:

        async def reads() -> None:
            for number in (1, 2, 3, 4):
                assert await pool.fetchval(ONE, number) == f"item {number}"

        await until_hits(world, reads, 4)
        await pool.execute("INSERT INTO note (body) VALUES ('pooled')")
        assert await asyncio.gather(*(pool.fetchval("SELECT count(*) FROM note") for _ in range(4))) == [1] * 4
        await pool.execute("DELETE FROM note")
        assert await asyncio.gather(*(pool.fetchval("SELECT count(*) FROM note") for _ in range(4))) == [0] * 4


async def test_pool_reset_gives_locks_back(world: World, connection: Connection) -> None:
    async with asyncpg.create_pool(world.proxy.url(), min_size=1, max_size=1) as pool:
        await pool.execute("SELECT pg_advisory_lock(77)")
        assert await connection.fetchval("SELECT pg_try_advisory_lock(77)")
        async with pool.acquire() as inner:
            await inner.execute("SET TimeZone = 'Asia/Tokyo'")
        assert await pool.fetchval("SHOW TimeZone") != "Asia/Tokyo"


async def test_executemany_and_copy(world: World, connection: Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await connection.executemany("INSERT INTO note (body) VALUES ($1)", [(f"body {i}",) for i in range(300)])
    assert await connection.fetchval("SELECT count(*) FROM note") == 300
    await connection.copy_records_to_table("note", records=[("copied",)] * 200, columns=["body"])
    await connection.copy_to_table("note", source=io.BytesIO(b"text\n"), columns=["body"])
    out = io.BytesIO()
    assert await connection.copy_from_query("SELECT body FROM note ORDER BY id LIMIT $1", 2, output=out) == "COPY 2"
    assert out.getvalue() == b"body 0\nbody 1\n"
    await transaction.rollback()
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.copy_records_to_table("nothing", records=[(1,)])
    assert await connection.fetchval(ONE, 1) == "item 1"


async def test_cursors(world: World, connection: Connection) -> None:
    for _ in range(2):
        async with connection.transaction():
            assert [
                row["id"] async for row in connection.cursor("SELECT id FROM item ORDER BY id", prefetch=7)
            ] == list(range(1, 101))
            cursor = await connection.cursor("SELECT id FROM item WHERE id < $1 ORDER BY id", 6)
            assert await cursor.forward(2) == 2
            assert [row["id"] for row in await cursor.fetch(2)] == [3, 4]
            assert (await cursor.fetchrow())["id"] == 5
            assert await connection.fetchval(ONE, 1) == "item 1"


async def test_listeners(world: World, connection: Connection) -> None:
    heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    await connection.add_listener("news", lambda _, pid, channel, payload: heard.put_nowait((pid, payload)))
    sender = await asyncpg.connect(world.proxy.url())
    try:
        await sender.execute("NOTIFY news, 'hello'")
        async with asyncio.timeout(60):
            assert await heard.get() == (sender.get_server_pid(), "hello")
    finally:
        await sender.close()
    await connection.reset()


async def test_cancel_by_timeout(world: World, connection: Connection) -> None:
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(20)", timeout=0.2)
        assert await connection.fetchval(ONE, 1) == "item 1"


async def test_errors_and_the_statement_after(world: World, connection: Connection) -> None:
    for _ in range(3):
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.fetch("SELECT nothing FROM item")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch("SELECT id / $1 FROM item", 0)
        with pytest.raises(asyncpg.DataError):
            await connection.fetchval(ONE, "seven")
        assert await connection.fetchval(ONE, 1) == "item 1"


async def test_a_changed_type_is_noticed(world: World, connection: Connection) -> None:
    """Result types change under a statement: as without the proxy, the server says so and asyncpg prepares anew."""
    await connection.execute("CREATE TABLE shifting (id int, value int); INSERT INTO shifting VALUES (1, 5)")
    try:

        async def reads() -> None:
            assert await connection.fetchval("SELECT value FROM shifting WHERE id = $1", 1) == 5

        await until_hits(world, reads)
        await connection.execute("ALTER TABLE shifting ALTER value TYPE text USING 'five'")
        assert await connection.fetchval("SELECT value FROM shifting WHERE id = $1", 1) == "five"
    finally:
        await connection.execute("DROP TABLE shifting")


async def test_statement_cache_evicts(world: World) -> None:
    connection = await asyncpg.connect(world.proxy.url(), statement_cache_size=2)
    try:
        for _ in range(3):
            for number in range(1, 5):
                text = f"SELECT {number}, name FROM item WHERE id = $1"
                assert tuple(await connection.fetchrow(text, number)) == (number, f"item {number}")
            assert await connection.fetchrow("SHOW distribcache.last") is not None
    finally:
        await connection.close()
