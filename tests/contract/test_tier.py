"""The contract that every tier passes: what was put is found, whole, under its own key, until it expires or is dropped.

To add a tier, write a ``Subject`` for it and enter it in ``SUBJECTS``. A subject is made for each test, with a clock
that is set by hand, a capacity of about ``CAPACITY`` bytes and entries of at most ``MAX_ENTRY``. Its attributes say
what its tier cannot do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import START, Wall, digest, noise, opened, record
from records import settings as warm_settings

from distribcache.cli.valkey import Valkey
from distribcache.config.tiers import DistributedTier
from distribcache.entry import EXPIRES, PAYLOAD, SLOTS, TABLES, make_entry
from distribcache.tiers.base import Digest, Record, TierStats
from distribcache.tiers.distributed import DistributedCache
from distribcache.tiers.hot import HotCache
from distribcache.tiers.warm import WarmCache

CAPACITY = 1 << 20
MAX_ENTRY = 100_000


class Subject(Protocol):
    """A tier under test. Times are of the ``Wall`` that it was made with."""

    is_bounded: bool
    """Does it keep to CAPACITY by itself?"""
    counts_look_ups: bool

    async def get(self, digest: Digest) -> Record | None: ...
    async def put(self, digest: Digest, record: Record) -> bool: ...
    async def discard(self, digest: Digest) -> None: ...
    async def settle(self) -> None:
        """Wait until what was put has arrived."""

    def stats(self) -> TierStats: ...
    async def end(self) -> None:
        """Close it; may be called twice."""


class Hot:
    """L1: what its callers do, records made of entries and back. Its hits are counted by who has the entry."""

    is_bounded = True
    counts_look_ups = False

    def __init__(self, wall: Wall) -> None:
        self.wall = wall
        self.cache = HotCache(CAPACITY, MAX_ENTRY + 2000)
        self.beside: list[Record] = []

    async def get(self, digest: Digest) -> Record | None:
        entry = self.cache.entries.get((1, digest))
        if entry is None or entry[EXPIRES] <= self.wall():
            return None
        whole = self.beside[entry[SLOTS][0]]
        assert (entry[PAYLOAD], entry[TABLES]) == (whole.payload, whole.tables)
        return whole

    async def put(self, digest: Digest, record: Record) -> bool:
        self.beside.append(record)
        entry = make_entry(
            record.payload, fill=record.fill, analysis=record.analysis, slots=(len(self.beside) - 1,), epoch=1,
            expires=record.expires_at, cost_ns=record.cost_ns, at_ns=0, tables=record.tables, workload=record.workload,
        )  # fmt: skip
        return self.cache.put((1, digest), entry)

    async def discard(self, digest: Digest) -> None:
        self.cache.discard((1, digest))

    async def settle(self) -> None: ...

    def stats(self) -> TierStats:
        return self.cache.stats()

    async def end(self) -> None:
        self.cache.clear()


class Warm:
    """L2. ``settle`` makes it forget what it has queued: what is found then comes from the file."""

    is_bounded = True
    counts_look_ups = True

    def __init__(self, path: Path, wall: Wall, compression: str) -> None:
        given = warm_settings(path, size=CAPACITY, max_entry=MAX_ENTRY, compression=compression)
        self.cache = opened(WarmCache(given, wall))
        assert not self.cache.reason, self.cache.stats().detail

    async def get(self, digest: Digest) -> Record | None:
        return self.cache.get(digest)

    async def put(self, digest: Digest, record: Record) -> bool:
        return self.cache.put(digest, record)

    async def discard(self, digest: Digest) -> None:
        self.cache.discard(digest)

    async def settle(self) -> None:
        assert self.cache.flush(60), self.cache.stats()

    def stats(self) -> TierStats:
        return self.cache.stats()

    async def end(self) -> None:
        self.cache.close()


def _warm(compression: str) -> Callable[[Path, Wall], AbstractAsyncContextManager[Subject]]:
    @asynccontextmanager
    async def make(path: Path, wall: Wall) -> AsyncIterator[Subject]:
        subject = Warm(path / "l2", wall, compression)
        try:
            yield subject
        finally:
            await subject.end()

    return make


class Distributed:
    """L3, on a server of its own. What is put is there at once for those who ask through another connection."""

    is_bounded = False
    counts_look_ups = True

    def __init__(self, server: Valkey, wall: Wall) -> None:
        self.cache = DistributedCache(
            DistributedTier(
                peers=server.address, password=server.password, max_entry=MAX_ENTRY, deadline=10.0,
                connect_timeout=20.0, replication_factor=1,
            ),
            wall, lambda line: None,
        )  # fmt: skip

    async def get(self, digest: Digest) -> Record | None:
        return await self.cache.get(digest)

    async def put(self, digest: Digest, record: Record) -> bool:
        taken = self.cache.put(digest, record)
        await self.settle()
        return taken

    async def discard(self, digest: Digest) -> None:
        await self.cache.discard(digest)

    async def settle(self) -> None:
        assert await self.cache.flush(60), self.cache.stats()

    def stats(self) -> TierStats:
        return self.cache.stats()

    async def end(self) -> None:
        await self.cache.stop()


@asynccontextmanager
async def _distributed(path: Path, wall: Wall) -> AsyncIterator[Subject]:
    with Valkey() as server:
        subject = Distributed(server, wall)
        await subject.cache.start()
        try:
            yield subject
        finally:
            await subject.end()


@asynccontextmanager
async def _hot(path: Path, wall: Wall) -> AsyncIterator[Subject]:
    yield Hot(wall)


SUBJECTS: dict[str, Callable[[Path, Wall], AbstractAsyncContextManager[Subject]]] = {
    "l1": _hot,
    "l2-lz4": _warm("lz4"),
    "l2-zstd": _warm("zstd"),
    "l2-none": _warm("none"),
    "l3": _distributed,
}


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=SUBJECTS)
async def tier(request: pytest.FixtureRequest, tmp_path: Path, wall: Wall) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](tmp_path, wall) as subject:
        yield subject


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1024, 1900, 2048, 4096, 65536, 99_000])
@pytest.mark.parametrize("kind", ["even", "noise"])
async def test_what_was_put_is_found_whole(tier: Subject, size: int, kind: str) -> None:
    given = record(b"x" * size if kind == "even" else noise(1, size), mark=size)
    assert await tier.put(digest(1), given)
    assert await tier.get(digest(1)) == given
    await tier.settle()
    assert await tier.get(digest(1)) == given
    assert await tier.get(digest(2)) is None


async def test_every_field_comes_back(tier: Subject) -> None:
    given = Record(
        payload=bytes(range(256)) * 3, fill=(1 << 64) - 1, analysis=0, tags=(b"", b"t" * 1000, bytes(range(256))),
        epoch=bytes(range(16)), filled_at=START - 0.5, expires_at=float("inf"), cost_ns=(1 << 63), rows=0,
        tables="ü" * 500, workload="",
    )  # fmt: skip
    assert await tier.put(digest(1), given)
    await tier.settle()
    assert await tier.get(digest(1)) == given


async def test_keys_are_apart(tier: Subject) -> None:
    for number in range(60):
        assert await tier.put(digest(number), record(noise(number, 500), mark=number))
    await tier.settle()
    for number in range(60):
        assert await tier.get(digest(number)) == record(noise(number, 500), mark=number)
    assert tier.stats().puts == 60


async def test_the_last_put_counts(tier: Subject) -> None:
    for mark in range(5):
        assert await tier.put(digest(1), record(noise(mark, 3000), mark=mark))
        assert await tier.get(digest(1)) == record(noise(mark, 3000), mark=mark)
    await tier.settle()
    assert await tier.get(digest(1)) == record(noise(4, 3000), mark=4)
    await tier.put(digest(1), record(b"later", mark=9))
    await tier.settle()
    assert await tier.get(digest(1)) == record(b"later", mark=9)


async def test_an_expired_record_is_a_miss(tier: Subject, wall: Wall) -> None:
    assert await tier.put(digest(1), record(b"short", ttl=100))
    assert await tier.put(digest(2), record(b"long", ttl=1000))
    await tier.settle()
    wall.now += 99.5
    assert await tier.get(digest(1)) is not None
    wall.now += 0.5
    assert await tier.get(digest(1)) is None
    await tier.settle()
    assert await tier.get(digest(1)) is None
    assert await tier.get(digest(2)) is not None


async def test_what_is_discarded_is_gone(tier: Subject) -> None:
    for number in (1, 2):
        await tier.put(digest(number), record(mark=number))
    await tier.settle()
    await tier.discard(digest(1))
    assert await tier.get(digest(1)) is None
    await tier.settle()
    assert await tier.get(digest(1)) is None
    assert await tier.get(digest(2)) == record(mark=2)
    await tier.discard(digest(3))
    assert await tier.put(digest(1), record(mark=5))
    await tier.settle()
    assert await tier.get(digest(1)) == record(mark=5)


async def test_what_was_discarded_while_queued_is_gone(tier: Subject) -> None:
    await tier.put(digest(1), record(mark=1))
    await tier.discard(digest(1))
    assert await tier.get(digest(1)) is None
    await tier.settle()
    assert await tier.get(digest(1)) is None


async def test_what_is_too_large_is_refused_and_leaves_nothing_older(tier: Subject) -> None:
    assert await tier.put(digest(1), record(b"small"))
    await tier.settle()
    before = tier.stats().refused
    assert not await tier.put(digest(1), record(noise(1, MAX_ENTRY + 5000)))
    assert tier.stats().refused == before + 1
    await tier.settle()
    assert await tier.get(digest(1)) is None


async def test_the_byte_bound_holds(tier: Subject) -> None:
    if not tier.is_bounded:
        pytest.skip("its capacity is set elsewhere")
    for number in range(400):
        await tier.get(digest(number))
        await tier.get(digest(number))
        await tier.put(digest(number), record(noise(number, 5000 + 37 * number % 4000)))
        if not number % 20:
            await tier.settle()
            assert tier.stats().bytes_used <= CAPACITY
    await tier.settle()
    stats = tier.stats()
    assert CAPACITY // 2 < stats.bytes_used <= CAPACITY
    assert stats.entries == sum([await tier.get(digest(number)) is not None for number in range(400)]) > 20


async def test_the_figures_add_up(tier: Subject) -> None:
    for number in range(10):
        await tier.put(digest(number), record(mark=number))
    await tier.settle()
    found = [await tier.get(digest(number)) is not None for number in range(30)]
    stats = tier.stats()
    assert (sum(found), len(found)) == (10, 30)
    assert (stats.puts, stats.refused, dict(stats.failures)) == (10, 0, {})
    if tier.is_bounded:
        assert stats.entries == 10
        assert 0 < stats.utilisation < 1
    if tier.counts_look_ups:
        assert (stats.hits, stats.misses) == (10, 20)
        assert stats.p50_us is not None
        assert 0 < stats.p50_us <= (stats.p99_us or 0)


async def test_after_its_end_everything_is_a_miss(tier: Subject) -> None:
    await tier.put(digest(1), record())
    await tier.end()
    assert await tier.get(digest(1)) is None
    if tier.counts_look_ups:
        assert not await tier.put(digest(1), record())
    await tier.discard(digest(1))
    await tier.end()


@pytest.mark.parametrize("name", SUBJECTS)
@settings(max_examples=15)
@given(steps=st.lists(st.tuples(st.sampled_from("pppdgs"), st.integers(0, 5), st.integers(0, 3000)), max_size=40))
async def test_any_order_of_calls_gives_what_a_dict_gives(
    name: str, steps: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model: dict[int, Record] = {}
    async with SUBJECTS[name](tmp_path_factory.mktemp("tier"), Wall()) as tier:
        for at, (what, number, size) in enumerate(steps):
            if what == "p":
                model[number] = record(noise(at, size), mark=at)
                assert await tier.put(digest(number), model[number])
            elif what == "d":
                model.pop(number, None)
                await tier.discard(digest(number))
            elif what == "s":
                await tier.settle()
            assert await tier.get(digest(number)) == model.get(number)
        await tier.settle()
        for number in range(6):
            assert await tier.get(digest(number)) == model.get(number)
