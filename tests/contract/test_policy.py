"""The contract that every eviction policy passes, and what each one promises on top."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import get_args

import pytest
from entries import entry, hit_ratio, key, read, room_for, zipf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from distribcache.entry import EXPIRES, TOUCHED, Entry
from distribcache.tiers.base import Cause, Key
from distribcache.tiers.eviction import MAX_CHANCES, POLICIES, Adaptive, PolicyName, _Queue
from distribcache.tiers.hot import HotCache

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
every_policy = pytest.mark.parametrize("policy", NAMES)


def test_names_and_policies_agree() -> None:
    assert set(NAMES) == set(POLICIES)


@every_policy
def test_the_byte_bound_holds_and_is_used(policy: PolicyName) -> None:
    cache = HotCache(50_000, 20_000, policy)
    for number in range(2000):
        cache.put(key(number), entry(number * 37 % 3000))
        assert cache.bytes_used <= 50_000
        assert cache.bytes_used == sum(cache.size_of(k, e) for k, e in cache.entries.items())
    assert cache.bytes_used > 40_000


@every_policy
def test_a_new_entry_is_there(policy: PolicyName) -> None:
    cache = room_for(10, policy)
    for number in range(100):
        assert cache.put(key(number), entry())
        assert key(number) in cache.entries


@every_policy
def test_the_mapping_stays_the_same_object(policy: PolicyName) -> None:
    cache = room_for(5, policy)
    entries, get = cache.entries, cache.entries.get
    for number in range(20):
        cache.put(key(number), entry())
    cache.clear()
    cache.put(key(1), entry())
    assert cache.entries is entries
    assert get(key(1)) is not None


@every_policy
def test_one_that_needs_everything_gets_it(policy: PolicyName) -> None:
    cache = HotCache(50_000, 50_000, policy)
    for number in range(60):
        cache.put(key(number), entry(10))
    big = entry(50_000 - cache.size_of(key(99), entry(0)))
    assert cache.put(key(99), big)
    assert cache.entries == {key(99): big}
    assert cache.bytes_used == 50_000


@every_policy
def test_a_replaced_entry_that_grows_makes_others_leave(policy: PolicyName) -> None:
    cache = room_for(10, policy)
    for number in range(10):
        cache.put(key(number), entry())
    assert cache.put(key(9), entry(1000))
    assert cache.bytes_used <= cache.capacity_bytes
    assert len(cache.entries) < 10


@every_policy
def test_the_listener_sees_each_once(policy: PolicyName) -> None:
    left: Counter[tuple[Key, int]] = Counter()
    causes: Counter[Cause] = Counter()

    def listen(k: Key, e: Entry, cause: Cause) -> None:
        assert cache.entries.get(k) is not e
        left[k, id(e)] += 1
        causes[cause] += 1

    cache = HotCache(40_000, 5_000, policy, listen)
    kept = []  # so that no id is used twice
    for number in range(400):
        new = entry(number % 7 * 100, expires=number % 13)
        kept.append((key(number * 7 % (20 if number < 200 else 90)), new))
        cache.put(*kept[-1])
        if number % 11 == 0:
            cache.discard(kept[-1][0])
        if number % 50 == 0:
            cache.expire(5)
    cache.clear()
    assert set(left.values()) == {1}
    assert set(left) == {(k, id(e)) for k, e in kept}
    assert set(causes) == set(Cause)
    assert cache.stats().evictions == causes


@every_policy
def test_popular_beats_unpopular(policy: PolicyName) -> None:
    numbers = zipf(3, 5000)
    ratio = hit_ratio(room_for(500, policy), list(itertools.islice(numbers, 20_000)))
    assert ratio > {"fifo": 0.53, "lru": 0.57, "lfu": 0.62, "adaptive": 0.63}[policy]


class PolicyMachine(RuleBasedStateMachine):
    """Any order of operations: the books are exact, nothing leaves unseen, nothing comes back by itself."""

    policy: PolicyName

    @initialize(capacity=st.integers(2000, 20_000))
    def create(self, capacity: int) -> None:
        self.present: dict[Key, Entry] = {}  # by what the listener says, never by looking into the cache
        self.cache = HotCache(capacity, capacity // 2, self.policy, self.listen)
        self.oversize = 0
        self.now = 0

    def listen(self, k: Key, e: Entry, cause: Cause) -> None:
        assert self.present.pop(k) is e
        if cause is Cause.EXPIRED:
            assert e[EXPIRES] <= self.now

    @rule(number=st.integers(0, 30), size=st.integers(0, 3000), expires=st.integers(0, 10))
    def put(self, number: int, size: int, expires: int) -> None:
        new = entry(size, expires=expires)
        fits = self.cache.size_of(key(number), new) <= self.cache.max_entry_bytes
        stored = self.cache.put(key(number), new)
        assert stored == (self.cache.entries.get(key(number)) is new)
        if stored:
            assert key(number) not in self.present  # the old one was reported
            self.present[key(number)] = new
        assert fits or not stored
        self.oversize += not fits

    @rule(number=st.integers(0, 30))
    def hit(self, number: int) -> None:
        found = self.cache.entries.get(key(number))
        if found is not None:
            found[TOUCHED][0] = 1
            if self.cache.touch is not None:
                self.cache.touch(key(number))
            assert self.cache.entries.get(key(number)) is found

    @rule(number=st.integers(0, 30))
    def discard(self, number: int) -> None:
        was_there = key(number) in self.present
        assert self.cache.discard(key(number)) == was_there
        assert key(number) not in self.present

    @rule(now=st.integers(0, 10), limit=st.integers(1, 40))
    def expire(self, now: int, limit: int) -> None:
        self.now = now
        before = len(self.present)
        assert self.cache.expire(now, limit) == before - len(self.present)

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def books_are_exact(self) -> None:
        cache = self.cache
        assert cache.entries == self.present
        assert cache.bytes_used == sum(cache.size_of(k, e) for k, e in cache.entries.items())
        assert cache.bytes_used <= cache.capacity_bytes
        stats = cache.stats()
        assert (stats.entries, stats.bytes_used, stats.refused) == (len(self.present), cache.bytes_used, self.oversize)
        assert stats.puts - sum(stats.evictions.values()) == len(self.present)
        policy = cache._policy
        if isinstance(policy, Adaptive):
            assert policy._small_bytes == sum(cache.size_of(k, cache.entries[k]) for k in policy._in_small)
            assert len(policy._small) == len(policy._in_small)
            assert len(policy._small) + len(policy._main) == len(cache.entries)
            assert len(policy._ghost) == len(policy._in_ghost)


@every_policy
def test_any_order_of_operations(policy: PolicyName) -> None:
    machine = type(f"{policy.title()}Machine", (PolicyMachine,), {"policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=60))


# --- what each policy promises on top --------------------------------------------------------------------------------


def numbers(cache: HotCache) -> list[int]:
    return sorted(int(k[1]) for k in cache.entries)


def test_fifo_lets_the_first_leave_whatever_was_read() -> None:
    cache = room_for(3, "fifo")
    for number in (1, 2, 3, 1, 1, 4):
        read(cache, number)
    assert numbers(cache) == [2, 3, 4]


def test_fifo_takes_a_refill_as_coming() -> None:
    cache = room_for(3, "fifo")
    for number in (1, 2, 3):
        cache.put(key(number), entry())
    cache.put(key(1), entry())
    cache.put(key(4), entry())
    assert numbers(cache) == [1, 3, 4]


def test_lru_lets_the_longest_unread_leave() -> None:
    cache = room_for(3, "lru")
    for number in (1, 2, 3, 1, 4, 3, 5):
        read(cache, number)
    assert numbers(cache) == [3, 4, 5]


def test_lfu_keeps_what_is_read_often() -> None:
    cache = room_for(3, "lfu")
    for number in (1, 1, 1, 2, 2, 3, 4, 5):
        read(cache, number)
    assert numbers(cache) == [1, 2, 5]


def test_lfu_forgets_what_was_read_often() -> None:
    cache = room_for(100, "lfu")
    for _ in range(1000):
        for number in range(100):
            read(cache, number)
    for number in itertools.islice(zipf(5, 200), 20_000):
        read(cache, 1000 + number)
    assert not [number for number in numbers(cache) if number < 100]


def test_adaptive_survives_a_scan() -> None:
    left = {}
    for policy in NAMES:
        cache = room_for(500, policy)
        for _ in range(20):
            for number in range(300):
                read(cache, number)
        for number in range(10_000, 10_000 + 2000):  # a report that reads each row once
            read(cache, number)
        left[policy] = sum(number < 300 for number in numbers(cache))
    assert left["adaptive"] == 300
    assert left["lru"] == left["fifo"] == 0


def test_adaptive_beats_lru_on_popular_reads_with_scans() -> None:
    trace, source, scanned = [], zipf(7, 10_000), 10**6
    while len(trace) < 60_000:
        trace += itertools.islice(source, 2000)
        trace += range(scanned, scanned + 1000)
        scanned += 1000
    ratios = {policy: hit_ratio(room_for(500, policy), trace) for policy in NAMES}
    assert ratios["adaptive"] > ratios["lru"] + 0.06
    assert ratios["adaptive"] == max(ratios.values())


def test_adaptive_takes_back_what_left_too_early() -> None:
    cache = room_for(100, "adaptive")
    for number in range(300):
        read(cache, number)
    lost = 195
    assert lost not in numbers(cache)
    read(cache, lost)  # the ghost remembers it: straight to the main queue
    for number in range(1000, 1500):
        read(cache, number)
    assert lost in numbers(cache)


def test_adaptive_keeps_an_entry_that_is_refilled_after_each_write() -> None:
    cache = room_for(100, "adaptive")
    for number in range(500):
        cache.discard(key(-1))  # a write, and the next reader fills it anew
        read(cache, -1)
        read(cache, number)
    assert -1 in numbers(cache)


def test_adaptive_bounds_the_walk_of_one_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * MAX_CHANCES
    cache = room_for(size, "adaptive")
    for number in range(size):
        read(cache, number)
        read(cache, number)
    pops = 0
    pop = _Queue.pop

    def count(self: _Queue[Key]) -> Key:
        nonlocal pops
        pops += 1
        return pop(self)

    monkeypatch.setattr(_Queue, "pop", count)
    read(cache, size)
    assert MAX_CHANCES <= pops <= MAX_CHANCES + 1


def test_adaptive_remembers_no_more_ghosts_than_entries() -> None:
    cache = room_for(50, "adaptive")
    policy = cache._policy
    assert isinstance(policy, Adaptive)
    for number in range(5000):
        read(cache, number)
        assert len(policy._in_ghost) <= len(cache.entries)


@given(st.lists(st.tuples(st.sampled_from("push take pop".split()), st.integers(0, 300)), max_size=600))
def test_a_queue_with_holes_is_a_queue(steps: list[tuple[str, int]]) -> None:
    queue: _Queue[int] = _Queue()
    model: set[int] = set()
    for step, item in steps:
        if step == "push" and item not in model:
            queue.push(item)
            model.add(item)
        elif step == "take" and item in model:
            queue.take(item)
            model.remove(item)
        elif step == "pop" and model:
            model.remove(queue.pop())  # raises when it is not there
        assert len(queue) == len(model)
    assert sorted(queue.pop() for _ in range(len(queue))) == sorted(model)


def test_a_queue_is_first_in_first_out() -> None:
    queue: _Queue[int] = _Queue()
    for item in range(1000):
        queue.push(item)
    for item in range(0, 1000, 2):
        queue.take(item)
    assert [queue.pop() for _ in range(len(queue))] == list(range(1, 1000, 2))


def test_holes_of_a_queue_stay_bounded() -> None:
    queue: _Queue[int] = _Queue()
    for item in range(10_000):
        queue.push(item)
    for item in range(9_990):
        queue.take(item)
    assert len(queue._holes) < 200
    assert len(queue) == 10
    for item in range(20_000, 120_000):
        queue.push(item)
        queue.take(item)
    assert len(queue._holes) + len(queue._older) + len(queue._newer) < 1000
