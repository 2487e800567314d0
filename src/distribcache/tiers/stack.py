"""The tiers below memory, and what belongs where.

Placement: to L2 what is larger than ``l2.min_entry`` and lives longer than ``l2.min_ttl``; to L3 everything but OLTP,
whose answers are cheaper than the way to another machine. L1 is above this module: it holds entries, which only whoever
has the ledger can make of records.

A tier that fails is a miss and a counter of that tier. Nothing here raises, and a look-up waits for L3's deadline at
the most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from distribcache.config.tiers import DistributedTier, WarmTier
from distribcache.query import WorkloadType
from distribcache.tiers.base import Digest, Record, TierStats
from distribcache.tiers.outcomes import Large

__all__ = ["Far", "Near", "Stack", "check", "stack_of"]


class Near(Protocol):
    """L2: on this machine; a look-up takes microseconds."""

    def open(self) -> None: ...
    def find(self, digest: Digest) -> Record | Large | None: ...
    def get(self, digest: Digest) -> Record | None: ...
    def put(self, digest: Digest, record: Record) -> bool: ...
    def discard(self, digest: Digest) -> None: ...
    def flush(self, timeout: float) -> bool: ...
    def stats(self) -> TierStats: ...
    def close(self) -> None: ...


class Far(Protocol):
    """L3: on other machines; a look-up is awaited."""

    async def start(self) -> None: ...
    async def get(self, digest: Digest) -> Record | None: ...
    def put(self, digest: Digest, record: Record) -> bool: ...
    async def discard(self, digest: Digest) -> None: ...
    async def lease(self, digest: Digest, seconds: float) -> bool: ...
    async def unlease(self, digest: Digest) -> None: ...
    async def flush(self, timeout: float) -> bool: ...  # noqa: ASYNC109
    def stats(self) -> TierStats: ...
    async def stop(self) -> None: ...


class Stack:
    """L2 and L3, each of which may be absent. ``now``: seconds since the Unix epoch."""

    def __init__(
        self, near: Near | None, far: Far | None, now: Callable[[], float], *,
        min_entry: int = 1024, min_ttl: float = 60,
    ) -> None:  # fmt: skip
        self.near = near
        self.far = far
        self._now = now
        self._min_entry = min_entry
        self._min_ttl = min_ttl

    def __bool__(self) -> bool:
        return self.near is not None or self.far is not None

    async def start(self) -> None:
        """Open the tiers. Raises ConfigError for a setting that can never work."""
        if self.near is not None:
            await asyncio.to_thread(self.near.open)
        if self.far is not None:
            await self.far.start()

    async def stop(self) -> None:
        """Write what is queued, as far as that goes quickly, and let go."""
        if self.near is not None:
            await asyncio.to_thread(self.near.close)
        if self.far is not None:
            await self.far.stop()

    def takes_near(self, size: int, ttl: float) -> bool:
        """Does an answer of so many bytes that lives so many seconds go to L2? Exactly at a bound it does not."""
        return self.near is not None and size > self._min_entry and ttl > self._min_ttl

    def takes_far(self, workload: WorkloadType | str) -> bool:
        """Do answers of this class go to L3?"""
        return self.far is not None and workload not in (WorkloadType.OLTP, WorkloadType.OLTP.value)

    def put_near(self, digest: Digest, record: Record) -> bool:
        """Give a record to L2; False when it is not taken."""
        return self.near is not None and self.near.put(digest, record)

    def put_far(self, digest: Digest, record: Record) -> bool:
        """Give a record to L3; False when it is not taken."""
        return self.far is not None and self.far.put(digest, record)

    def find_near(self, digest: Digest) -> Record | Large | None:
        """Look in L2; ``LARGE``: it is there, and reading it would hold the event loop up (``fetch_near``)."""
        found = None if self.near is None else self.near.find(digest)
        return found if isinstance(found, Large) else self._live(found)

    async def fetch_near(self, digest: Digest) -> Record | None:
        """Read something large from L2, in a thread."""
        return None if self.near is None else self._live(await asyncio.to_thread(self.near.get, digest))

    async def find_far(self, digest: Digest) -> Record | None:
        """Look in L3."""
        return None if self.far is None else self._live(await self.far.get(digest))

    def _live(self, record: Record | None) -> Record | None:
        return None if record is None or record.expires_at <= self._now() else record

    async def discard(self, digest: Digest) -> None:
        """Drop a record from both."""
        if self.near is not None:
            self.near.discard(digest)
        if self.far is not None:
            await self.far.discard(digest)

    def stats(self) -> dict[str, TierStats]:
        """By the name of the tier."""
        tiers = {"l2": self.near, "l3": self.far}
        return {name: tier.stats() for name, tier in tiers.items() if tier is not None}


def stack_of(l2: WarmTier, l3: DistributedTier, now: Callable[[], float], log: Callable[[str], None]) -> Stack:
    """The tiers that the settings ask for."""
    near: Near | None = None
    far: Far | None = None
    if l2.path is not None:
        from distribcache.tiers.warm import WarmCache

        near = WarmCache(l2, now, log=log)
    if l3.peers:
        from distribcache.tiers.distributed import DistributedCache

        far = DistributedCache(l3, now, log)
    return Stack(near, far, now, min_entry=l2.min_entry, min_ttl=l2.min_ttl)


def check(l2: WarmTier, l3: DistributedTier) -> None:
    """Raises ConfigError for what can never work, as ``Stack.start`` would: for a process that starts none itself."""
    if l2.path is not None:
        from distribcache.tiers.place import Place

        Place(l2.path).check()
    if l3.peers:
        from distribcache.tiers.access import check_access

        check_access(l3)
