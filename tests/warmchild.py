"""What other processes do to a warm tier in the tests: ``python warmchild.py WHAT PATH ...``. A line says: ready."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import lmdb
from records import Wall, digest, noise, opened, record, settings

from distribcache.tiers.warm import WarmCache


def value(number: int) -> bytes:
    """Always the same for a number; of all the sizes that are stored in different ways."""
    rng = random.Random(number)
    size = rng.choice((60, 300, 1500, 2500, 5000, 9000))
    return rng.randbytes(size) if number % 2 else b"%09d" % number * (size // 9)


def churn(path: Path, seed: int) -> None:
    """Put, replace, drop and clear for ever."""
    cache = opened(WarmCache(settings(path, size="2MB"), Wall()))
    print(cache.reason or "on", flush=True)
    rng = random.Random(seed)
    while True:
        number = rng.randrange(800)
        what = rng.random()
        if what < 0.85:
            cache.get(digest(number))
            cache.put(digest(number), record(value(number), mark=number))
        elif what < 0.98:
            cache.discard(digest(number))
        elif what > 0.9995:
            cache.clear()
        if rng.random() < 0.02:
            cache.flush(60)


def fill(path: Path, first: int, count: int) -> None:
    """Put some, wait until they are written, and go."""
    cache = opened(WarmCache(settings(path, size="2MB"), Wall()))
    print(cache.reason or "on", flush=True)
    for number in range(first, first + count):
        while not cache.put(digest(number), record(value(number), mark=number)):
            cache.flush(60)
    cache.flush(60)
    print(cache.stats().puts, flush=True)
    cache.close()


def leave(path: Path, count: int) -> None:
    """Put some, and die once they are written."""
    cache = opened(WarmCache(settings(path, size="2MB"), Wall()))
    for number in range(count):
        cache.put(digest(number), record(value(number), mark=number))
        if not number % 20:
            cache.flush(60)
    cache.flush(60)
    print("on", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def look(path: Path) -> None:
    """Open and read what ``leave`` wrote; change some of it; say how many were right and how many wrong."""
    cache = opened(WarmCache(settings(path, size="2MB"), Wall()))
    right, wrong = judge(cache)
    for number in range(800, 1100):
        cache.get(digest(number))
        cache.get(digest(number))
        cache.put(digest(number), record(value(number), mark=number))
        cache.flush(60)
    judge(cache)
    print(cache.reason or "on", right, wrong, flush=True)
    cache.close()


def judge(cache: WarmCache) -> tuple[int, int]:
    """How many of all that may be there are right, and wrong."""
    found = [(number, cache.get(digest(number))) for number in range(1100)]
    right = sum(got == record(value(number), mark=number) for number, got in found)
    return right, sum(got is not None for _, got in found) - right


def hold(path: Path, write: str) -> None:
    """Begin a transaction, and do not end it."""
    env = lmdb.open(str(path), max_dbs=3, map_size=12 << 20, sync=False)
    entries = env.open_db(b"entries")
    with env.begin(entries, write=write == "write") as txn:
        txn.get(digest(0))
        print("on", flush=True)
        sys.stdin.readline()


def limited(path: Path, most: int) -> None:
    """A file may have so many bytes; later as many as it likes."""
    wall = Wall()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    forbidden(path, wall, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2))


def read_only(path: Path) -> None:
    if not os.geteuid():  # root may write anywhere
        os.chown(path, 65534, 65534)
        os.setgid(65534)
        os.setuid(65534)
    path.chmod(0o500)
    forbidden(path, Wall(), lambda: path.chmod(0o700))


def forbidden(path: Path, wall: Wall, allow: object) -> None:
    """Say the reason, then allow, and say what becomes of it."""
    cache = opened(WarmCache(settings(path), wall))
    for number in range(300):
        cache.put(digest(number), record(noise(number, 9000)))
    cache.flush(60)
    print(cache.reason, cache.get(digest(1)), cache.put(digest(1), record()), flush=True)
    allow()  # type: ignore[operator]
    deadline = time.monotonic() + 20
    while cache.reason and time.monotonic() < deadline:
        wall.now += 100
        cache.get(digest(1))
        time.sleep(0.01)
    print(cache.reason, cache.put(digest(1), record()), cache.flush(60), cache.get(digest(1)) == record(), flush=True)
    cache.close()


if __name__ == "__main__":
    _, what, where, *more = sys.argv
    {
        "churn": churn, "fill": fill, "leave": leave, "look": look, "hold": hold, "limited": limited,
        "read_only": read_only,
    }[what](Path(where), *[int(each) if each.isdigit() else each for each in more])  # type: ignore[operator]  # fmt: skip
