"""What coherence can be told: the part of the settings that it needs, in seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["FreshnessSettings", "Options"]


class FreshnessSettings(Protocol):
    """The section [freshness] of the configuration, as far as it is used here."""

    @property
    def max_staleness(self) -> float: ...
    @property
    def max_wal_lag(self) -> int: ...
    @property
    def schema_poll_s(self) -> float: ...
    @property
    def max_databases(self) -> int: ...
    @property
    def database_linger(self) -> float: ...
    @property
    def invalidation(self) -> str: ...
    @property
    def plugin(self) -> str: ...
    @property
    def slot(self) -> str: ...


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
    def from_settings(
        cls, settings: FreshnessSettings, *, connect_timeout_s: float = 10.0, tightest_s: float | None = None,
        keep_at: Path | None = None,
    ) -> Options:  # fmt: skip
        """From the section [freshness]."""
        return cls(
            max_staleness_s=settings.max_staleness,
            tightest_s=settings.max_staleness if tightest_s is None else min(tightest_s, settings.max_staleness),
            max_wal_lag=settings.max_wal_lag,
            schema_poll_s=min(settings.schema_poll_s, settings.max_staleness),
            quick_poll_s=min(0.25, settings.max_staleness),
            connect_timeout_s=connect_timeout_s,
            max_databases=settings.max_databases,
            linger_s=settings.database_linger,
            invalidation=settings.invalidation,
            plugin=settings.plugin,
            slot=settings.slot,
            keep_at=keep_at,
        )
