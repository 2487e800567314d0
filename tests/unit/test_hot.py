"""L1: refusals, exact books, expiry in slices, and the measured overhead."""

from __future__ import annotations

import gc
import tracemalloc
from sys import getsizeof
from typing import get_args

import pytest
from entries import entry, key

from distribcache.entry import TOUCHED, Entry, make_entry
from distribcache.errors import ConfigError
from distribcache.tiers.base import Cause, Key
from distribcache.tiers.eviction import POLICIES, PolicyName
from distribcache.tiers.hot import HotCache

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


def test_an_oversize_entry_is_refused() -> None:
    cache = HotCache(100_000, 5_000)
    assert not cache.put(key(1), entry(5_000))
    assert not cache.entries
    assert cache.bytes_used == 0
    fits = 5_000 - cache.size_of(key(1), entry(0))
    assert not cache.put(key(1), entry(fits + 1))
    assert cache.put(key(1), entry(fits))
    assert cache.bytes_used == 5_000
    assert cache.stats().refused == 2


def test_the_largest_entry_is_never_larger_than_the_cache() -> None:
    assert HotCache(1_000, 1_000_000).max_entry_bytes == 1_000


def test_an_oversize_answer_takes_the_old_one_with_it() -> None:
    left: list[Cause] = []
    cache = HotCache(100_000, 5_000, on_evict=lambda k, e, cause: left.append(cause))
    cache.put(key(1), entry(10))
    assert not cache.put(key(1), entry(50_000))
    assert not cache.entries
    assert cache.bytes_used == 0
    assert left == [Cause.REPLACED]


def test_a_replaced_entry_is_accounted_exactly() -> None:
    cache = HotCache(100_000, 50_000)
    cache.put(key(1), entry(100))
    before = cache.bytes_used
    cache.put(key(1), entry(350))
    assert cache.bytes_used == before + 250
    cache.put(key(1), entry(10))
    assert cache.bytes_used == before - 90
    assert len(cache.entries) == 1
    assert cache.stats().evictions[Cause.REPLACED] == 2


def test_keys_of_text_and_bytes_are_charged_what_they_take() -> None:
    cache = HotCache(100_000, 50_000)
    assert cache.size_of((1, "abc"), entry(0)) - cache.size_of((1, ""), entry(0)) == 3
    assert cache.size_of((1, "a" * 10 + "字"), entry(0)) > cache.size_of((1, "a" * 11), entry(0)) + 11
    assert cache.size_of((1, b"x" * 1000), entry(0)) == cache.size_of((1, b""), entry(0)) + 1000


@pytest.mark.parametrize("policy", NAMES)
def test_expiry_goes_round_in_slices(policy: PolicyName) -> None:
    left: list[tuple[Key, Cause]] = []
    cache = HotCache(10**7, 10**6, policy, lambda k, e, cause: left.append((k, cause)))
    for number in range(1000):
        cache.put(key(number), entry(expires=10.0 if number % 4 else 20.0))
    assert cache.expire(9.9, limit=10_000) == 0
    dropped = [cache.expire(10.0, limit=100) for _ in range(10)]
    assert sum(dropped) == 750
    assert max(dropped) <= 100
    assert len(cache.entries) == 250
    assert {cause for _, cause in left} == {Cause.EXPIRED}
    assert cache.expire(20.0, limit=10_000) == 250
    assert cache.bytes_used == 0
    assert cache.expire(20.0) == 0


def test_a_refilled_entry_does_not_expire_with_the_old_one() -> None:
    cache = HotCache(10**6, 10**6)
    for number in range(10):
        cache.put(key(number), entry(expires=1.0))
    cache.expire(0.0, limit=1)
    cache.put(key(3), entry(expires=100.0))
    cache.discard(key(4))
    assert sum(cache.expire(1.0, limit=3) for _ in range(8)) == 8
    assert list(cache.entries) == [key(3)]


def test_discarding_what_is_not_there() -> None:
    cache = HotCache(10**6, 10**6)
    assert not cache.discard(key(1))
    cache.put(key(1), entry())
    assert cache.discard(key(1))
    assert not cache.discard(key(1))
    assert cache.stats().evictions[Cause.DISCARDED] == 1


def test_only_the_policies_that_need_it_are_told_of_hits() -> None:
    assert {policy: HotCache(10**6, 10**6, policy).touch is not None for policy in NAMES} == {
        "lru": True, "lfu": True, "fifo": False, "adaptive": False,
    }  # fmt: skip


def test_stats_are_a_reading() -> None:
    cache = HotCache(10**6, 10**6)
    cache.put(key(1), entry())
    before = cache.stats()
    cache.put(key(2), entry())
    cache.clear()
    assert (before.entries, before.puts, before.evictions[Cause.CLEARED]) == (1, 1, 0)
    after = cache.stats()
    assert (after.entries, after.bytes_used, after.puts, after.evictions[Cause.CLEARED]) == (0, 0, 2, 2)


@pytest.mark.parametrize(("capacity", "largest"), [(0, 1), (1, 0), (-1, 1)])
def test_sizes_that_make_no_sense(capacity: int, largest: int) -> None:
    with pytest.raises(ConfigError):
        HotCache(capacity, largest)


def test_a_policy_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="adaptive"):
        HotCache(1000, 1000, "mru")  # type: ignore[arg-type]


def test_the_collector_does_not_track_entries() -> None:
    """Proxy trap 9."""
    cache = HotCache(10**6, 10**6)
    cache.put(key(1), entry())
    gc.collect()
    ((found_key, found),) = cache.entries.items()
    assert not gc.is_tracked(found)
    assert not gc.is_tracked(found_key)


def distinct(number: int) -> tuple[Key, Entry]:
    """As the proxy makes them: no number is shared between entries, tables and slots are."""
    made = make_entry(
        b"%d" % number + b"x" * 200, fill=10**10 + number, analysis=10**10 + 2 * number, slots=SLOTS, epoch=1,
        expires=1e6 + number, cost_ns=10**6 + number, at_ns=10**15 + number, tables="public.t", workload="oltp",
    )  # fmt: skip
    return (7, 3 + number % 5, b"B%d" % number + b"k" * 80), made


SLOTS = (1, 2)


@pytest.mark.parametrize("policy", NAMES)
@pytest.mark.parametrize("entries", [3_750, 5_500])
def test_the_overhead_is_as_measured(policy: PolicyName, entries: int) -> None:
    capacity = entries * (POLICIES[policy].OVERHEAD + getsizeof(b"x" * 205) + getsizeof(b"k" * 85))
    gc.collect()
    tracemalloc.start()
    try:
        cache = HotCache(capacity, capacity, policy)
        for number in range(2 * entries):
            cache.put(*distinct(number))
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.bytes_used > 0.99 * capacity
    assert 0.85 < used / cache.bytes_used < 1.12


def test_a_hit_in_the_small_queue_earns_a_place_in_the_main_one() -> None:
    cache = HotCache(10**5, 10**5)
    cache.put(key(0), entry())
    cache.entries[key(0)][TOUCHED][0] = 1
    for number in range(1, 1000):
        cache.put(key(number), entry())
    assert key(0) in cache.entries
