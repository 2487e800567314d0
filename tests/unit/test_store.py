"""The way between memory and the tiers below, played with a ledger and tiers of this test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from records import digest, record

from distribcache.clock import CoarseClock, now_ns, wall_time
from distribcache.coherence.ledger import EPOCH, FRESH_AT, SCHEMA, Ledger, W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.entry import EXPIRES, Entry, make_entry
from distribcache.query import WorkloadType
from distribcache.store import Place, Store
from distribcache.tiers.base import Digest, Key, Record, TierStats
from distribcache.tiers.hot import HotCache
from distribcache.tiers.stack import Stack

TABLE = b"t" + (16384).to_bytes(8, "little")
EVERYTHING = Place(digest(1), near=False, far=True)
KEY: Key = (1, b"request")


class Far:
    """An L3 that holds what it is given."""

    def __init__(self) -> None:
        self.held: dict[Digest, Record] = {}
        self.leases: list[Digest] = []

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def unlease(self, digest: Digest) -> None: ...

    async def get(self, digest: Digest) -> Record | None:
        return self.held.get(digest)

    def put(self, digest: Digest, record: Record) -> bool:
        self.held[digest] = record
        return True

    async def discard(self, digest: Digest) -> None:
        self.held.pop(digest, None)

    async def lease(self, digest: Digest, seconds: float) -> bool:
        self.leases.append(digest)
        return self.leases.count(digest) == 1

    async def flush(self, timeout: float) -> bool:
        return True

    def stats(self) -> TierStats:
        raise NotImplementedError


class Followed:
    """As much of a database's coherence as the store asks for."""

    mode = "wal"

    def __init__(self) -> None:
        self.ledger = Ledger(16, 16)
        self.words = self.head = self.ledger.words
        self.epoch = 7
        self.ledger.renew(7)
        self.slot = self.ledger.slot_of(16384, 0)
        for word, value in ((W, 1000), (SCHEMA, 1), (self.slot, 1)):
            self.words[word] = value

    def shared_epoch(self) -> bytes:
        return b"e" * 16

    own_epoch = shared_epoch

    def confirmed(self) -> int:
        return 0

    def note_traffic(self) -> None: ...

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        return self.ledger.tags_of(slots)

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        return self.ledger.slots_for(tags, self.ledger.known)

    def entry(self) -> Entry:
        assert self.words[EPOCH] == self.epoch
        return make_entry(
            b"x" * 2000, fill=100, analysis=100, slots=(self.slot,), epoch=7, expires=1e12, cost_ns=1, at_ns=now_ns(),
            tables="public.t", workload=WorkloadType.OLAP.value,
        )  # fmt: skip


@pytest.fixture
def followed() -> Any:
    return Followed()


@pytest.fixture
def store() -> Store:
    clock = CoarseClock()
    clock.tick()
    return Store(HotCache(1 << 20, 1 << 20), Stack(None, Far(), wall_time), clock)


def far_of(store: Store) -> Far:
    far = store.stack.far
    assert isinstance(far, Far)
    return far


def written(**more: Any) -> Record:
    wall = wall_time()
    made = record(ttl=60, at=wall)
    return replace(made, **{"fill": 100, "analysis": 100, "tags": (TABLE,), "epoch": b"e" * 16, **more})


async def test_who_waits_for_a_lease_is_given_what_is_valid_then(store: Store, followed: Any) -> None:
    """Between the leader's look and the waiter's turn a commit may have ended the answer."""
    led: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    store._leases[EVERYTHING.digest] = led
    store.l1.put(KEY, followed.entry())
    led.set_result(None)
    assert await store.lead(KEY, EVERYTHING, followed, 1) is store.l1.entries[KEY]
    followed.ledger.bump(followed.slot, 500)
    assert await store.lead(KEY, EVERYTHING, followed, 1) is None


async def test_a_lease_that_its_owner_has_forgotten_holds_nobody_of_this_process_up(
    store: Store, followed: Any
) -> None:
    """One who gave up while he waited for it has never come to ask."""
    began = now_ns()
    assert await store.lead(KEY, EVERYTHING, followed, 30) is None
    assert await store.lead(KEY, EVERYTHING, followed, 30) is None
    assert far_of(store).leases == [EVERYTHING.digest] and now_ns() - began < 20_000_000_000
    store.landed(EVERYTHING)
    assert await store.lead(KEY, EVERYTHING, followed, 0) is None
    assert len(far_of(store).leases) > 1


async def test_what_was_dropped_by_hand_is_not_given_down_when_it_settles(store: Store, followed: Any) -> None:
    other: Key = (1, b"other")
    place = Place(digest(2), near=False, far=True)
    store.put(KEY, followed.entry(), EVERYTHING, followed, ttl=60, rows=1)
    store.put(other, followed.entry(), place, followed, ttl=60, rows=1)
    store.forget(KEY)
    assert store._waiting_bytes == 2000
    followed.words[FRESH_AT] = now_ns()
    store.settle()
    assert list(far_of(store).held) == [place.digest] and not store._waiting_bytes


@pytest.mark.parametrize(("ahead_s", "left_s"), [(0, 60), (3600, 60), (-50, 10)])
async def test_an_answer_of_a_node_whose_clock_is_ahead_lives_no_longer_than_its_ttl(
    store: Store, followed: Any, ahead_s: float, left_s: float
) -> None:
    wall = wall_time() + ahead_s
    far_of(store).held[EVERYTHING.digest] = written(filled_at=wall, expires_at=wall + 60)
    entry = await store.rise_far(KEY, EVERYTHING, followed)
    assert entry is not None and left_s - 5 < entry[EXPIRES] - store.clock.now <= left_s


@pytest.mark.parametrize(("ahead_s", "found"), [(0, True), (2, True), (60, False)])
async def test_where_only_time_ends_an_answer_one_from_the_future_is_none(
    store: Store, followed: Any, ahead_s: float, found: bool
) -> None:
    """How long ago it was PostgreSQL's is all that is promised, and nobody knows it."""
    followed.mode = "ttl"
    wall = wall_time() + ahead_s
    far_of(store).held[EVERYTHING.digest] = written(filled_at=wall, expires_at=wall + 60)
    assert (await store.rise_far(KEY, EVERYTHING, followed) is not None) is found


def test_tags_from_outside_take_no_slots() -> None:
    """Whoever can write to L3 could fill the ledger with relations that nobody has."""
    database = DatabaseCoherence("dbname=shop", "shop")
    before = database.ledger.sizes()
    slots = database.slots_for([b"t" + oid.to_bytes(8, "little") for oid in range(1, 1000)])
    assert database.ledger.sizes() == before
    assert slots is None or all(database.words[slot] > 1 << 63 for slot in slots)
