"""The numbers of coherence that people look at: ``SHOW distribcache.freshness`` and the metrics read this."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Freshness"]


@dataclass(slots=True)
class Freshness:
    """Counters of one database since the process started; only ``lag_bytes`` and the two ``last_`` do not just grow."""

    lag_bytes: int = 0
    commits: int = 0
    rows: int = 0
    probes: int = 0
    fences: int = 0
    flushes: int = 0
    pings: int = 0
    alarms: int = 0
    rereads: int = 0
    polls: int = 0
    catalogue_changes: int = 0
    epoch_changes: int = -1
    reconnects: int = 0
    probe_ns: int = 0
    reread_ns: int = 0
    last_alarm: str = ""
    last_error: str = ""
