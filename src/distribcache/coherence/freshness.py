"""The numbers of coherence that people look at: ``SHOW distribcache.freshness`` and the metrics read this."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

__all__ = ["INVALIDATIONS", "Freshness", "Watched"]

INVALIDATIONS = ("row", "wildcard", "table", "schema")
"""What a store into the ledger was for."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A registered column set: how often changes touched all of its rows at once (its wildcard), because they did not
    show the values, and whether a replica identity would help.
    """

    table: str
    columns: tuple[str, ...]
    touches: int
    advice: str


@dataclass(slots=True)
class Freshness:
    """Counters of one database since the process started; only ``lag_bytes`` and the two ``last_`` do not just grow.

    ``waits``: hits that had to wait for proof of their freshness, of which ``waits_late`` got none in time.
    ``fences``: how often the moment moved up to which the ledger is known to be complete.
    The three by cause have few causes: those that the code names.
    """

    lag_bytes: int = 0
    commits: int = 0
    rows: int = 0
    probes: int = 0
    fences: int = 0
    waits: int = 0
    waits_late: int = 0
    flushes: int = 0
    pings: int = 0
    alarms: int = 0
    rereads: int = 0
    polls: int = 0
    catalogue_changes: int = 0
    epoch_changes: int = -1
    reconnects: int = 0
    wait_ns: int = 0
    probe_ns: int = 0
    reread_ns: int = 0
    last_alarm: str = ""
    last_error: str = ""
    alarms_by: Counter[str] = field(default_factory=Counter)
    epoch_changes_by: Counter[str] = field(default_factory=Counter)
    invalidations_by: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(INVALIDATIONS, 0)))

    def report(self) -> dict[str, object]:
        """Names and values; those by cause have the cause in their name: ``alarms_by.ddl``."""
        found: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Counter):
                found.update({f"{each.name}.{cause}": count for cause, count in sorted(value.items())})
            else:
                found[each.name] = value
        return found
