"""Entries of an application in the tiers below memory.

An entry of tables is dated: it goes the way of every answer, down once it is settled and up by rule R1. One that
depends on nothing but time needs no proof, and is the same for all processes that share a tier, whatever database they
follow. A timeless entry *of tables* stays in memory: when somebody drops a table's entries by hand, those below could
not be found.

What is dropped by its fingerprint is dropped from all tiers. Other processes may hold it in their own memory still,
until its time is over.
"""

from __future__ import annotations

from typing import Any, Final

from distribcache.clock import now_ns, wall_time
from distribcache.coherence.epoch import digest
from distribcache.entry import AT_NS, EPOCH, PAYLOAD, TABLES, WORKLOAD, Entry, make_entry
from distribcache.library.keeper import TIMELESS, Keeper
from distribcache.library.values import key_of
from distribcache.store import Place
from distribcache.tiers.base import Digest, Key, Record
from distribcache.tiers.outcomes import Large

__all__ = ["Below"]

_IDENTITY: Final = b"distribcache entries of an application"
_EPOCH: Final = digest(_IDENTITY, b"timeless")
_ANY: Final = "rag"
"""A class that every tier takes, to ask for the place of an entry whose class is not known yet."""


class Below:
    """See the module; everything runs on the keeper's loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def put(self, key: Key, entry: Entry, *, began_ns: int, ttl: float) -> str:
        """Keep an entry in memory and where else it belongs; what became of it."""
        keeper = self._keeper
        stack = keeper.store.stack
        timeless = entry[EPOCH] == TIMELESS
        place = self._place(key, entry[WORKLOAD], ttl) if stack and not timeless else None
        became = keeper.put(key, entry, place, began_ns=began_ns, ttl=ttl)
        if became == "stored" and stack and timeless and not entry[TABLES]:
            wall = wall_time()
            record = Record(
                payload=entry[PAYLOAD], fill=1, analysis=1, tags=(), epoch=_EPOCH, filled_at=wall,
                expires_at=wall + ttl, cost_ns=0, rows=0, tables="", workload=entry[WORKLOAD],
            )  # fmt: skip
            if stack.takes_near(len(entry[PAYLOAD]), ttl):
                stack.put_near(_timeless(key), record)
            if stack.takes_far(entry[WORKLOAD]):
                stack.put_far(_timeless(key), record)
        return became

    async def rise(self, key: Key) -> Entry | None:
        """An entry that memory lacks, now in memory; the caller asks for its freshness and validity, as of any."""
        keeper = self._keeper
        store, stack = keeper.store, keeper.store.stack
        if not stack:
            return None
        place = self._place(key, _ANY, 1e9)
        if place is not None:
            dated = store.rise_near(key, place, keeper.coherence)
            if not isinstance(dated, tuple):
                dated = await store.rise_far(key, place, keeper.coherence, large=dated is not None)
            if dated is not None:
                return keeper.rise(key, dated)
        near = stack.find_near(_timeless(key))
        found = await stack.fetch_near(_timeless(key)) if isinstance(near, Large) else near
        found = found or await stack.find_far(_timeless(key))
        now, wall = now_ns(), wall_time()
        if found is None or found.epoch != _EPOCH or found.is_ahead(wall):
            return None
        entry = make_entry(
            found.payload, fill=0, analysis=0, slots=(), epoch=TIMELESS,
            expires=keeper.clock.now + found.left(wall), cost_ns=0,
            at_ns=now - int(max(0.0, wall - found.filled_at) * 1e9), tables="", workload=found.workload,
        )  # fmt: skip
        return entry if keeper.put(key, entry, began_ns=entry[AT_NS]) == "stored" else None

    async def forget(self, key: Key) -> bool:
        """Drop a key from all tiers; was it in memory?"""
        keeper = self._keeper
        there = await keeper.forget(key)
        keeper.store.forget(key)
        stack = keeper.store.stack
        if stack:
            await stack.discard(_timeless(key))
            place = self._place(key, _ANY, 1e9)
            if place is not None:
                await stack.discard(place.digest)
        return there

    def _place(self, key: Key, workload: str, ttl: float) -> Place | None:
        keeper = self._keeper
        if not keeper.follows:
            return None
        return keeper.store.place(keeper.coherence, digest(_IDENTITY), _request(key), workload=workload, ttl=ttl)


def _request(key: Key) -> bytes:
    parts: list[Any] = list(key)
    return key_of(parts)


def _timeless(key: Key) -> Digest:
    return digest(_IDENTITY, _request(key))
