"""What became of one read, and of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple

from distribcache.errors import NetworkError, PeerNotFoundError, StorageError, TierUnavailableError
from distribcache.library.keeper import Keeper
from distribcache.tiers.base import TierStats

__all__ = ["CacheStats", "Outcome", "Tally", "last"]

_HINTS: Final = {
    "stopped": "await cache.start(), or: async with cache, or: with cache", "disabled": "set cache.enabled to true"
}  # fmt: skip


class Outcome(NamedTuple):
    """``status`` is hit, miss, bypass or refused; ``reason`` a stable code; ``age_ms`` how old the answer may be."""

    status: str = ""
    tier: str = ""
    reason: str = ""
    age_ms: float | None = None
    tables: str = ""
    workload: str = ""


_NOTHING: Final = Outcome()
last: ContextVar[Outcome] = ContextVar("distribcache.last", default=_NOTHING)
"""Of the task or thread that asks."""


class Tally:
    """Counts of one cache object. Several threads add to them, so a count may be off by a few; it never goes back."""

    __slots__ = ("bypasses", "fills", "hits", "misses", "refusals", "saved_ns")

    def __init__(self) -> None:
        self.hits = 0
        self.saved_ns = 0
        self.misses: Counter[str] = Counter()
        self.bypasses: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.fills: Counter[str] = Counter()

    def count(self, outcome: Outcome) -> None:
        """Remember what became of a read that was no hit."""
        last.set(outcome)
        if outcome.status == "miss":
            self.misses[outcome.reason or "absent"] += 1
        elif outcome.status == "refused":
            self.refusals[outcome.reason] += 1
        else:
            self.bypasses[outcome.reason] += 1


@dataclass(frozen=True, slots=True)
class CacheStats:
    """One reading. ``invalidation`` is ``wal`` where commits end entries, ``ttl`` where only time does.

    ``serving``, ``reason`` and ``hint``: may hits be served now, and if not, why, and what mends it. ``fills`` by what
    became of them: ``stored``, or why not.
    """

    invalidation: str
    serving: bool
    reason: str
    hint: str
    hits: int
    misses: int
    bypasses: Mapping[str, int]
    refusals: Mapping[str, int]
    fills: Mapping[str, int]
    failures: Mapping[str, int]
    seconds_saved: float
    tiers: Mapping[str, TierStats]
    pools: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, keeper: Keeper, tally: Tally, pools: Mapping[str, str]) -> CacheStats:
        """What is counted now."""
        coherence = keeper.coherence if keeper.running else None
        misses = sum(tally.misses.values())
        tiers = {"L1": replace(keeper.l1.stats(), hits=tally.hits, misses=misses)}
        if coherence is not None:
            tiers |= {name.upper(): each for name, each in keeper.store.stack.stats().items()}
        reason = keeper.why_not()
        known = coherence is not None and reason == coherence.reason
        return cls(
            invalidation="ttl" if coherence is None else coherence.mode,
            serving=not reason,
            reason=reason,
            hint=coherence.hint if coherence is not None and known else _HINTS.get(reason, ""),
            hits=tally.hits,
            misses=misses,
            bypasses=dict(tally.bypasses),
            refusals=dict(tally.refusals),
            fills=dict(tally.fills),
            failures=dict(keeper.failures),
            seconds_saved=tally.saved_ns / 1e9,
            tiers=tiers,
            pools=pools,
        )

    @property
    def hit_ratio(self) -> float:
        """Hits per read that could have been one; 0.0 when there was none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    @property
    def queries_avoided(self) -> int:
        return self.hits

    def tier(self, name: str) -> TierStats:
        """A reading of ``L1``, ``L2`` or ``L3``. Raises TierUnavailableError, by what is the matter with it."""
        stats = self.tiers.get(name.upper())
        if stats is None:
            key = {"L2": "l2.path", "L3": "l3.peers"}.get(name.upper(), "")
            raise TierUnavailableError(f"there is no tier {name}", where=key, hint="set it" if key else "L1, L2 or L3")
        if name.upper() == "L2" and stats.reason:
            raise StorageError(f"L2 is off: {stats.reason}", where="l2.path", hint=stats.detail or "see the log")
        if name.upper() == "L3" and not stats.healthy_peers:
            kind = NetworkError if stats.peers else PeerNotFoundError
            raise kind(
                f"L3 has {stats.peers} servers, none of which answers", where="l3.peers",
                hint=stats.detail or stats.reason or "check the addresses",
            )
        return stats

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(self)
        found["tiers"] = {
            name: {**asdict(tier), "evictions": {cause.value: count for cause, count in tier.evictions.items()}}
            for name, tier in self.tiers.items()
        }
        return {**found, "hit_ratio": self.hit_ratio, "queries_avoided": self.queries_avoided}
