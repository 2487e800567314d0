"""What coherence can be told: the part of the settings that it needs, in seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distribcache.config import Settings

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """Durations in seconds, sizes in bytes. ``tables`` is the number of dense ledger slots."""

    max_staleness_s: float = 1.0
    tightest_s: float = 1.0
    """The shortest bound of any class of statements: probes keep up with that."""
    max_wal_lag: int = 256 << 20
    schema_poll_s: float = 1.0
    quick_poll_s: float = 0.25
    connect_timeout_s: float = 10.0
    slot_deadline_s: float = 30.0
    retry_min_s: float = 0.1
    retry_max_s: float = 5.0
    max_databases: int = 16
    linger_s: float = 30.0
    invalidation: str = "wal"
    plugin: str = "auto"
    enrol_s: float = 60.0
    """With pgoutput: a stream that is older than this ends for tables that could be added to the publications."""
    tables: int = 1 << 16
    slot: str = "temporary"
    keep_at: Path | None = None
    """The directory of L2, where the state of a warm restart lies too."""
    keep_s: float = 10.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Options:
        freshness = settings.freshness
        return cls(
            max_staleness_s=freshness.max_staleness,
            tightest_s=min([freshness.max_staleness, *settings.staleness.bounds.values()]),
            max_wal_lag=freshness.max_wal_lag,
            schema_poll_s=min(freshness.schema_poll_s, freshness.max_staleness),
            quick_poll_s=min(0.25, freshness.max_staleness),
            connect_timeout_s=settings.upstream.connect_timeout,
            max_databases=freshness.max_databases,
            linger_s=freshness.database_linger,
            invalidation=freshness.invalidation,
            plugin=freshness.plugin,
            slot=freshness.slot,
            keep_at=settings.l2.path,
        )
