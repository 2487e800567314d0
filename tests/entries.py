"""Entries and traces for the tests of the tiers."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterator

from distribcache.entry import TOUCHED, Entry, make_entry
from distribcache.tiers.base import Key
from distribcache.tiers.hot import HotCache


def entry(size: int = 100, *, expires: float = 1e9, mark: int = 0) -> Entry:
    return make_entry(
        b"x" * size, fill=10**10 + mark, analysis=10**10 + mark, slots=(1,), epoch=1, expires=expires,
        cost_ns=10**6 + mark, at_ns=10**15 + mark, tables="public.t", workload="oltp",
    )  # fmt: skip


def key(number: int, width: int = 10) -> Key:
    return (1, b"%0*d" % (width, number))


def read(cache: HotCache, number: int, make: Callable[[], Entry] = entry) -> bool:
    """What the hit path does: look up, mark, tell the policy; a miss is filled. True for a hit."""
    found = cache.entries.get(key(number))
    if found is None:
        cache.put(key(number), make())
        return False
    found[TOUCHED][0] = 1
    if cache.touch is not None:
        cache.touch(key(number))
    return True


def room_for(entries: int, policy: str) -> HotCache:
    """A cache with room for exactly so many of ``entry()`` under ``key()``."""
    probe = HotCache(10**6, 10**6, policy)  # type: ignore[arg-type]
    one = probe.size_of(key(0), entry())
    return HotCache(one * entries, one * entries, policy)  # type: ignore[arg-type]


def zipf(seed: int, items: int, exponent: float = 1.0) -> Iterator[int]:
    """Numbers below ``items``; the n-th most popular comes with weight 1 / n ** exponent."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / (n + 1) ** exponent for n in range(items)))
    while True:
        yield bisect.bisect_left(weights, rng.random() * weights[-1])


def hit_ratio(cache: HotCache, trace: list[int]) -> float:
    return sum(read(cache, number) for number in trace) / len(trace)
