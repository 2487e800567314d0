"""Cached functions: what tells calls apart, one run at a time, what ends a value, and what never is served."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import pytest
from fix_library import Shop
from muted import kept_and_muted
from wait import until

from distribcache import DistribCache, DistribCacheConfig
from distribcache.errors import ConfigError, InvalidationError
from distribcache.library import forgotten
from distribcache.library import keeper as keepers
from distribcache.library.flights import Flights


@pytest.fixture
async def alone() -> AsyncIterator[DistribCache]:
    """A cache without a database."""
    async with DistribCache(DistribCacheConfig(), log=lambda _: None) as cache:
        yield cache


class Colour(enum.Enum):
    RED = 1


async def test_arguments_are_told_apart_by_type_and_value(alone: DistribCache) -> None:
    calls: list[Any] = []

    @alone.cached()
    async def note(*args: Any, **kwargs: Any) -> list[Any]:
        calls.append((args, kwargs))
        return [repr(args), repr(kwargs)]

    many: list[Any] = [
        1, True, 1.0, "1", b"1", None, 0.0, -0.0, (1,), [1], {1}, frozenset({1}), {"a": 1}, {"a": True}, Colour.RED, "",
        (), [], {},
    ]  # fmt: skip
    for _ in range(2):
        for each in many:
            assert await note(each) == [repr((each,)), "{}"]
            assert await note(a=each) == ["()", repr({"a": each})]
    assert len(calls) == 2 * len(many)
    assert await note({"a": 1, "b": 2}) == await note({"b": 2, "a": 1})


async def test_one_call_is_one_however_its_arguments_are_given(alone: DistribCache) -> None:
    """Else a value would outlive the ``invalidate`` of somebody who gives them in another way."""
    calls: list[Any] = []
    unkept = object()

    @alone.cached()
    async def page(number: int, size: int = 10, *, order: str = "id", of: object = unkept) -> int:
        calls.append((number, size, order))
        return len(calls)

    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}), ((1, 10), {}), ((), {"number": 1}), ((), {"size": 10, "number": 1}), ((1,), {"order": "id"}),
        ((1, 10), {"order": "id"}),
    ]  # fmt: skip
    for made, (args, kwargs) in enumerate(ways, 1):
        assert {await page(*more, **named) for more, named in ways} == {made}
        page.invalidate(*args, **kwargs)
    assert await page(1, 11) == len(calls) == len(ways) + 1
    with pytest.raises(TypeError, match="give key="):
        await page(1, of=unkept)
    with pytest.raises(TypeError, match="unexpected keyword"):
        await page(1, sise=3)  # type: ignore[call-arg]


async def test_what_has_no_key_is_named(alone: DistribCache) -> None:
    class Service:
        @alone.cached()
        async def by_self(self, number: int) -> int:
            return number

        @alone.cached(key=lambda self, number: ("service", number))
        async def by_key(self, number: int) -> int:
            return number

    with pytest.raises(TypeError, match="give key="):
        await Service().by_self(1)
    assert await Service().by_key(1) == 1
    with pytest.raises(ConfigError, match="not a duration"):
        alone.cached(ttl="soon")
    with pytest.raises(ConfigError, match="list"):
        alone.cached(tables="item")
    with pytest.raises(InvalidationError):
        alone.cached(tables=["a.b.c"])


async def test_functions_made_in_a_loop_are_different(alone: DistribCache) -> None:
    def make(number: int) -> Any:
        @alone.cached()
        async def constant() -> int:
            return number

        return constant

    assert [await each() for each in [make(1), make(2)]] == [1, 2]


@kept_and_muted
async def test_one_run_for_64_tasks(alone: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if muted:
        monkeypatch.setattr(Flights, "join", lambda self, key: None)
    runs = 0

    @alone.cached()
    async def slow(number: int) -> list[int]:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.05)
        return [number]

    results = await asyncio.gather(*(slow(7) for _ in range(64)))
    assert results == [[7]] * 64
    assert (runs == 1) is not muted
    results[0].append(8)  # changes nothing for the others
    assert results[1] == await slow(7) == [7]


def test_one_run_for_64_threads() -> None:
    with DistribCache(DistribCacheConfig(), log=lambda _: None) as cache:
        runs: list[int] = []
        gate = threading.Event()

        @cache.cached()
        def slow(number: int) -> int:
            runs.append(number)
            gate.wait(60)
            return number

        with ThreadPoolExecutor(64) as threads:
            waiting = [threads.submit(slow, 7) for _ in range(64)]
            until(lambda: runs)
            gate.set()
            assert [each.result() for each in waiting] == [7] * 64
        assert runs == [7]


async def test_a_function_that_calls_itself(alone: DistribCache) -> None:
    depth = 0

    @alone.cached(key=lambda number: "one")
    async def again(number: int) -> int:
        nonlocal depth
        depth += 1
        return number if number == 0 else await again(number - 1)

    assert await asyncio.wait_for(again(3), 60) == 0


async def test_a_failure_is_everybodys_and_is_not_kept(alone: DistribCache) -> None:
    runs = 0

    @alone.cached()
    async def fails() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.02)
        raise LookupError("no")

    results = await asyncio.gather(*(fails() for _ in range(8)), return_exceptions=True)
    assert [type(each) for each in results] == [LookupError] * 8
    assert runs == 1
    with pytest.raises(LookupError):
        await fails()
    assert runs == 2


async def test_a_cancelled_run_is_not_the_others(alone: DistribCache) -> None:
    runs = 0
    started, go_on = asyncio.Event(), asyncio.Event()

    @alone.cached()
    async def slow() -> int:
        nonlocal runs
        runs += 1
        started.set()
        await go_on.wait()
        return runs

    first = asyncio.create_task(slow())
    await started.wait()
    second = asyncio.create_task(slow())
    await asyncio.sleep(0.02)  # it waits for the first
    assert runs == 1
    first.cancel()
    go_on.set()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first


class Missing(LookupError):
    def __init__(self, table: str, number: int) -> None:
        super().__init__(f"nobody has {number} in {table}")
        self.number = number


class Coded(LookupError):
    code = 0


async def test_a_failure_that_would_come_back_as_another_one_is_not_kept(alone: DistribCache) -> None:
    runs = 0

    @alone.cached(negative_ttl="1h", negative=(Missing, Coded, FileNotFoundError, KeyError))
    async def find(number: int) -> None:
        nonlocal runs
        runs += 1
        if number == 1:
            raise Missing("item", number)
        if number == 2:
            failure = Coded("no")
            failure.code = 7
            raise failure
        if number == 3:
            raise FileNotFoundError(2, "no such file", "/item")
        raise KeyError(number)

    for _ in range(2):
        with pytest.raises(Missing, match="nobody has 1 in item") as missing:
            await find(1)
        assert missing.value.number == 1
        with pytest.raises(Coded) as coded:
            await find(2)
        assert coded.value.code == 7
        with pytest.raises(FileNotFoundError, match="/item"):
            await find(3)
    assert runs == 6 and alone.stats().fills["unknown_type"] == 6
    for _ in range(2):
        with pytest.raises(KeyError):
            await find(4)
    assert runs == 7


async def test_negative_results(alone: DistribCache) -> None:
    runs = 0

    @alone.cached(ttl="1h", negative_ttl="2s", negative=KeyError)
    async def find(number: int) -> Any:
        nonlocal runs
        runs += 1
        if number == 0:
            raise KeyError("nobody", number)
        if number == 1:
            raise LookupError("not this one")
        return None

    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            await find(0)
        assert raised.value.args == ("nobody", 0)
    assert runs == 1
    assert [await find(2), await find(2)] == [None, None]
    assert runs == 2
    for _ in range(2):
        with pytest.raises(LookupError):
            await find(1)
    assert runs == 4
    while runs == 4:
        assert await find(2) is None
        await asyncio.sleep(0.05)
    assert runs == 5


async def test_stale_while_it_is_made_anew(alone: DistribCache) -> None:
    runs = 0
    go_on = asyncio.Event()

    @alone.cached(ttl="100ms", stale="1h")
    async def slow() -> int:
        nonlocal runs
        runs += 1
        mine = runs
        if mine > 1:
            await go_on.wait()
        return mine

    assert await slow() == 1
    while runs == 1:
        assert await slow() == 1
        await asyncio.sleep(0.01)
    assert [await slow() for _ in range(20)] == [1] * 20  # nobody waits
    go_on.set()
    while await slow() == 1:
        await asyncio.sleep(0.01)
    assert runs == 2 or await slow() >= 2


def test_stale_in_threads() -> None:
    with DistribCache(DistribCacheConfig(), log=lambda _: None) as cache:
        runs: list[int] = []

        @cache.cached(ttl="100ms", stale="1h")
        def slow() -> int:
            runs.append(1)
            return len(runs)

        assert slow() == 1
        until(lambda: slow() > 1)


async def test_refresh_ahead(alone: DistribCache) -> None:
    runs = 0

    @alone.cached(ttl="1h", refresh_ahead="1h")
    async def number() -> int:
        nonlocal runs
        runs += 1
        return runs

    assert await number() == 1
    assert await number() in (1, 2)
    while await number() == 1:
        await asyncio.sleep(0.01)


async def test_tags_and_hands(alone: DistribCache) -> None:
    runs = 0

    @alone.cached(tags=["all", "user:{user}"])
    async def page(user: int, part: str = "a") -> int:
        nonlocal runs
        runs += 1
        return runs

    assert [await page(1), await page(1), await page(2), await page(1, part="b")] == [1, 1, 2, 3]
    alone.invalidate_tag("user:1")
    assert [await page(2), await page(1), await page(1, part="b")] == [2, 4, 5]
    alone.invalidate_tag("all")
    assert [await page(1), await page(2)] == [6, 7]
    page.invalidate(1)
    assert [await page(1), await page(2)] == [8, 7]


@kept_and_muted
async def test_invalidated_while_it_is_made(
    alone: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:
        monkeypatch.setattr(forgotten.Marks, "reaches", lambda self, name, since: False)
    started, go_on = asyncio.Event(), asyncio.Event()
    runs = 0

    @alone.cached(tables=["item"])
    async def made() -> int:
        nonlocal runs
        runs += 1
        mine = runs
        started.set()
        await go_on.wait()
        return mine

    making = asyncio.create_task(made())
    await started.wait()
    await alone.invalidate_table("item")
    made.invalidate()
    go_on.set()
    assert await making == 1
    assert (await made() == 2) is not muted


@kept_and_muted
async def test_a_commit_ends_what_was_made_of_its_table(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes while the function runs: F was read before."""
    if muted:
        monkeypatch.setattr(keepers, "valid", lambda *_: True)
    pool = await asyncpg.create_pool(shop.url, min_size=1)
    runs = 0

    @cache.cached(tables=["item"], ttl="1h", stale="1h")
    async def name(number: int, *, interrupted: bool = False) -> str:
        nonlocal runs
        runs += 1
        found = str(await pool.fetchval("SELECT name FROM item WHERE id = $1", number))
        if interrupted and runs < 3:
            shop.outside(f"UPDATE item SET name = 'changed' WHERE id = {number}")
        return found

    async def strictly(number: int, *, interrupted: bool = False) -> str:
        cache.wrote()
        return str(await name(number, interrupted=interrupted))

    assert await strictly(50) == "item 50"
    shop.outside("UPDATE item SET name = 'other' WHERE id = 50")
    assert (await strictly(50) == "other") is not muted
    runs = 0
    assert await strictly(51, interrupted=True) == "item 51"
    assert (await strictly(51, interrupted=True) == "changed") is not muted
    shop.outside("UPDATE item SET name = 'item ' || id WHERE id IN (50, 51)")
    await pool.close()


async def test_what_cannot_be_followed_is_not_kept(shop: Shop, cache: DistribCache) -> None:
    shop.outside("CREATE UNLOGGED TABLE scratch (id int)")
    runs = 0

    @cache.cached(tables=["scratch"])
    async def number() -> int:
        nonlocal runs
        runs += 1
        return runs

    assert [await number(), await number()] == [1, 2]
    assert cache.stats().fills["unlogged_relation"] == 2
    shop.outside("DROP TABLE scratch")


async def test_values_that_are_no_plain_values_are_given_back(alone: DistribCache) -> None:
    @alone.cached()
    async def thing() -> Any:
        return Colour.RED

    assert [await thing(), await thing()] == [Colour.RED] * 2
    assert alone.stats().fills["unknown_type"] == 2


async def test_a_cache_that_does_not_run_calls_the_function() -> None:
    cache = DistribCache(DistribCacheConfig(), log=lambda _: None)
    runs = 0

    @cache.cached()
    async def number() -> int:
        nonlocal runs
        runs += 1
        return runs

    assert [await number(), await number()] == [1, 2]
    async with cache:
        assert [await number(), await number()] == [3, 3]
    assert await number() == 4
