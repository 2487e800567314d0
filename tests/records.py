"""Records, digests and warm tiers for the tests of what keeps them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wait import until

from distribcache.config.tiers import WarmTier
from distribcache.tiers.base import Digest, Record
from distribcache.tiers.warm import WarmCache

START = 1_800_000_000.0


class Wall:
    """A clock that is set by hand."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def digest(number: int | str) -> Digest:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def noise(number: int | str, size: int) -> bytes:
    """Bytes that do not shrink, the same for the same number."""
    return random.Random(f"{number}").randbytes(size)


def record(payload: bytes = b"x" * 100, *, ttl: float = 3600, mark: int = 0, at: float = START) -> Record:
    return Record(
        payload=payload, fill=10**10 + mark, analysis=10**9 + mark, tags=(b"r\0\1\2", b"w\0\1\2"), epoch=b"e" * 16,
        filled_at=at, expires_at=at + ttl, cost_ns=10**6 + mark, rows=3, tables="public.t,public.ü", workload="olap",
    )  # fmt: skip


def settings(path: Path, **more: Any) -> WarmTier:
    return WarmTier(path=path, **{"size": "8MB", **more})


def opened(cache: WarmCache) -> WarmCache:
    """Open it, and wait until it is on or off, which on a busy machine takes longer than ``open`` waits."""
    cache.open()
    until(lambda: cache.reason != "opening", "opened")
    return cache


@contextmanager
def warm(path: Path, wall: Wall | None = None, **more: Any) -> Iterator[WarmCache]:
    """A tier that is open, and closed afterwards."""
    cache = opened(WarmCache(settings(path, **more), wall or Wall()))
    try:
        yield cache
    finally:
        cache.close()
