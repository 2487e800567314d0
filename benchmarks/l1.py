"""Nanoseconds per get and put of L1, per policy, beside a dict and whichever of cachetools and cachebox is installed.

``python benchmarks/l1.py [--entries N] [--rounds N]`` prints one table. All targets take turns inside every round and a
figure is the median of its rounds; the ratios to the dict of the same run are what means something.

* *hit*: what the hit path does: look up, mark, tell the policy where it asks for it.
* *put*: a new key into a full cache, so that one leaves.
* *again*: an entry put in the place of the one under the same key.
* *zipf*: look up, fill on a miss; 1 : 10 cache to keys, exponent 1. Its hit ratio stands beside it.

Making keys and entries is not measured. The dict has no bound; the caches of cachetools and cachebox count entries, not
bytes, and tell no listener.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, get_args

from distribcache.entry import TOUCHED, Entry, make_entry
from distribcache.tiers.base import Key
from distribcache.tiers.eviction import PolicyName
from distribcache.tiers.hot import HotCache


@dataclass
class Target:
    """``make`` gives (get-and-mark or None for a miss, put) of a cache for so many entries."""

    name: str
    make: Callable[[int], tuple[Callable[[Key], Entry | None], Callable[[Key, Entry], object]]]
    times: dict[str, list[float]] = field(default_factory=dict)
    ratio: float = 0.0


def entry() -> Entry:
    return make_entry(
        b"x" * 200, fill=10**10, analysis=10**10, slots=(1,), epoch=1, expires=1e9, cost_ns=10**6, at_ns=10**15,
        tables="public.t", workload="oltp",
    )  # fmt: skip


def key(number: int) -> Key:
    return (1, b"Q%012d" % number)


def of_dict(entries: int) -> tuple[Any, Any]:
    cache: dict[Key, Entry] = {}
    return cache.get, cache.__setitem__


def of_hot(policy: PolicyName) -> Callable[[int], tuple[Any, Any]]:
    def make(entries: int) -> tuple[Any, Any]:
        one = HotCache(10**9, 10**9, policy).size_of(key(0), entry())
        cache = HotCache(one * entries, one * entries, policy)
        get, touch = cache.entries.get, cache.touch

        def hit(k: Key) -> Entry | None:
            found = get(k)
            if found is not None:
                found[TOUCHED][0] = 1
            return found

        def hit_and_touch(k: Key) -> Entry | None:
            found = get(k)
            if found is not None:
                found[TOUCHED][0] = 1
                touch(k)  # type: ignore[misc]
            return found

        return hit if touch is None else hit_and_touch, cache.put

    return make


def of_library(module: Any, name: str) -> Callable[[int], tuple[Any, Any]]:
    def make(entries: int) -> tuple[Any, Any]:
        cache = getattr(module, name)(entries)
        return cache.get, cache.__setitem__

    return make


def targets() -> list[Target]:
    found = [Target("dict", of_dict)]
    found += [Target(f"L1 {policy}", of_hot(policy)) for policy in get_args(PolicyName)]
    for library in ("cachetools", "cachebox"):
        try:
            module = import_module(library)
        except ImportError:
            print(f"{library} is not installed: left out")
            continue
        found += [
            Target(f"{library} {name}", of_library(module, name)) for name in ("LRUCache", "LFUCache", "FIFOCache")
        ]
    return found


def each(call: Callable[..., object], *arguments: list[Any]) -> float:
    """Nanoseconds of processor time per call: what else the machine does hurts less."""
    gc.collect()
    gc.disable()
    began = time.process_time_ns()
    for row in zip(*arguments, strict=True):
        call(*row)
    spent = time.process_time_ns() - began
    gc.enable()
    return spent / len(arguments[0])


def zipf(rng: random.Random, items: int, count: int) -> list[int]:
    weights = list(itertools.accumulate(1 / (n + 1) for n in range(items)))
    return [bisect.bisect_left(weights, rng.random() * weights[-1]) for _ in range(count)]


def measure(target: Target, entries: int, trace: list[Key]) -> None:
    get, put = target.make(entries)
    old, new = [key(n) for n in range(entries)], [key(n) for n in range(entries, 2 * entries)]
    for k in old:
        put(k, entry())
    shuffled = random.Random(1).sample(old, len(old))
    target.times.setdefault("hit", []).append(each(get, shuffled))
    target.times.setdefault("again", []).append(each(put, shuffled, [entry() for _ in old]))
    target.times.setdefault("put", []).append(each(put, new, [entry() for _ in new]))
    get, put = target.make(entries)
    hits = 0
    spare = [entry() for _ in trace]

    def use(k: Key, fresh: Entry) -> None:
        nonlocal hits
        if get(k) is None:
            put(k, fresh)
        else:
            hits += 1

    target.times.setdefault("zipf", []).append(each(use, trace, spare))
    target.ratio = hits / len(trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    trace = [key(n) for n in zipf(random.Random(7), 10 * options.entries, 20 * options.entries)]
    all_targets = targets()
    for _ in range(options.rounds):
        for target in all_targets:
            measure(target, options.entries, trace)
    kinds = ("hit", "again", "put", "zipf")
    base = {kind: statistics.median(all_targets[0].times[kind]) for kind in kinds}
    print(f"{'ns per operation (÷ dict)':<24}" + "".join(f"{kind:>16}" for kind in kinds) + f"{'hit ratio':>12}")
    for target in all_targets:
        medians = {kind: statistics.median(target.times[kind]) for kind in kinds}
        figures = "".join(f"{medians[kind]:>8.0f} ({medians[kind] / base[kind]:>4.1f})" + " " for kind in kinds)
        print(f"{target.name:<24} {figures}{target.ratio:>11.1%}")


if __name__ == "__main__":
    main()
