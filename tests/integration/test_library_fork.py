"""A program that forks with a running cache in it, as servers do that load an application before they fork workers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fix_library import Shop

PROGRAM = """
import asyncio, json, os, signal, sys, time
import psycopg
from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint
from distribcache.library import forks

url, mode = sys.argv[1:]
READ = "SELECT name FROM item WHERE id = 1"
raw = QueryFingerprint.from_query("SELECT 1")
cache = DistribCache(DistribCacheConfig(upstream_url=url, freshness_hit_wait="2s"), log=lambda _: None)
calls = []

@cache.cached(ttl=60)
def twice(number):
    calls.append(number)
    return 2 * number

def status(connection):
    rows = cache.fetch_sync(connection, READ)
    return [cache.last.status, rows[0].name]

def until_hit(connection):
    for _ in range(3000):
        found = status(connection)
        if found[0] == "hit":
            break
        time.sleep(0.02)
    return found

def child():
    signal.alarm(200)  # where it hangs, it ends
    time.sleep(2.5)  # the entry's time is over
    said = {"raw": asyncio.run(cache.get(raw)) is not None}
    if mode == "muted":
        return said
    with psycopg.connect(url, autocommit=True) as connection:
        said["reads"] = [status(connection), status(connection), cache.last.reason]
        began = time.monotonic()
        said["calls"] = [twice(1), twice(1), list(calls), time.monotonic() - began < 4]
        twice.invalidate(1)
        cache.execute_sync(connection, "SELECT count(*) FROM item")
        asyncio.run(cache.stop())  # of nothing
        asyncio.run(cache.start())
        said["started"] = [until_hit(connection), twice(1), twice(1), list(calls)]
        asyncio.run(cache.stop())
    return said

with cache, psycopg.connect(url, autocommit=True) as connection:
    until_hit(connection)
    twice(1)
    asyncio.run(cache.insert(raw, CacheEntry(b"x", ttl=2)))
    assert asyncio.run(cache.get(raw)) is not None
    flight = cache._keeper.flights.lead("of the parent")
    locks = [cache._keeper.flights._lock, cache._heat._lock, cache._keeper._floor_lock]
    locks.append(cache._fetching.askers._scopes._lock)
    if mode == "muted":
        forks._concerned.clear()
    elif mode == "locked":  # by threads that the child does not have
        for lock in locks:
            lock.acquire()
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(theirs, json.dumps(child()).encode())
        finally:
            os._exit(0)
    if mode == "locked":
        for lock in locks:
            lock.release()
    os.close(theirs)
    os.waitpid(pid, 0)
    said = os.read(ours, 65536)
    print(json.dumps([json.loads(said or b"null"), until_hit(connection)[0], "of the parent" in cache._keeper.flights]))
"""


def forked(shop: Shop, mode: str) -> tuple[dict[str, Any], str, bool]:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, shop.url, mode], capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    child, parent, flight = json.loads(found.stdout)
    return child, parent, flight


def test_a_child_reads_from_postgresql_until_it_starts_the_cache_itself(shop: Shop) -> None:
    child, parent, flight = forked(shop, "locked")
    assert not child["raw"]
    first, second, reason = child["reads"]
    assert first == second == ["bypass", "item 1"] and reason == "stopped"
    assert child["calls"] == [2, 2, [1, 1, 1], True]
    read, *values = child["started"]
    assert read[0] == "hit" and values == [2, 2, [1, 1, 1, 1]]
    assert parent == "hit" and flight


def test_without_being_told_of_the_fork_a_child_keeps_entries_for_ever(shop: Shop) -> None:
    child, parent, _ = forked(shop, "muted")
    assert child["raw"] and parent == "hit"
