"""What all tiers have in common: keys, why an entry left, and the figures that a tier reports.

A tier holds bytes at rest. It knows keys and entries, nothing of SQL, sessions or validity: whether an entry may be
served is asked of the ledger by whoever reads it, whatever tier it came from (coherence rule R1).

L1 holds entries of this process (``entry.Entry``: slots of its ledger, its clock). The tiers below hold *records*,
which mean the same to every process: tags instead of slots, wall time instead of a coarse clock. Their keys are
digests: 16 bytes over everything that distinguishes two answers, the server's epoch included.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distribcache.entry import Entry

__all__ = ["Cause", "Digest", "Key", "OnEvict", "Record", "TierStats"]

Key = tuple[Any, ...]
"""A hashable tuple of atoms whose last item is the request as ``bytes`` or ``str``."""


Digest = bytes
"""16 bytes: the key of a record."""


_FUTURE_S = 5.0
"""By so much clocks may differ."""


@dataclass(frozen=True, slots=True)
class Record:
    """An answer at rest. Positions are end LSNs of commit records, times seconds since the Unix epoch."""

    payload: bytes
    fill: int
    """F: every commit up to here is in the answer."""
    analysis: int
    """A: the position of the analysis that named its tags."""
    tags: tuple[bytes, ...]
    """What it depends on, as ``coherence.ledger.Ledger.tags_of`` writes it; opaque here."""
    epoch: bytes
    """16 bytes: the epoch under which F and A mean something."""
    filled_at: float
    expires_at: float
    cost_ns: int
    """What the answer cost to get, nanoseconds."""
    rows: int
    tables: str
    """Names with commas between, for people."""
    workload: str

    def is_ahead(self, wall: float) -> bool:
        """Was it made in the future, by our clock? Then nobody knows its age, and its end means nothing."""
        return self.filled_at - wall > _FUTURE_S

    def left(self, wall: float) -> float:
        """Seconds until it ends. A clock that is ahead of ours, or one that was set back, makes none of them more."""
        return min(self.expires_at - wall, self.expires_at - self.filled_at)


class Cause(enum.Enum):
    """Why an entry left a tier; the value is a metric label."""

    CAPACITY = "capacity"
    EXPIRED = "expired"
    REPLACED = "replaced"
    DISCARDED = "discarded"
    CLEARED = "cleared"


OnEvict = Callable[[Key, Entry, Cause], None]
"""Called once for every entry that leaves, after it has left. It must neither raise nor call the tier."""


@dataclass(frozen=True, slots=True)
class TierStats:
    """One reading of a tier. Counters count since its creation."""

    entries: int
    bytes_used: int
    capacity_bytes: int
    puts: int
    refused: int
    evictions: Mapping[Cause, int] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    """What went wrong, by a short name; each was a miss and nothing more."""
    raw_bytes: int = 0
    """Bytes of payloads before compression, of everything put so far; ``stored_bytes`` after it."""
    stored_bytes: int = 0
    p50_us: float | None = None
    p99_us: float | None = None
    """Latency of look-ups, microseconds; None when there was none or it is not measured."""
    peers: int = 0
    healthy_peers: int = 0
    reason: str = ""
    """Why the tier is off at the moment, in one stable word; empty when it is on."""
    detail: str = ""
    """The same for people."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Why entries were refused, by a short name."""
    queued_bytes: int = 0
    """Bytes that wait to be written."""
    note: str = ""
    """What people should know though it is on, such as fewer replicas than asked for."""

    @property
    def compression_ratio(self) -> float:
        """Payload bytes per stored byte; 1.0 when nothing is compressed."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else 1.0

    @property
    def hit_ratio(self) -> float:
        """Hits per look-up; 0.0 when there was none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    @property
    def utilisation(self) -> float:
        """The share of the capacity in use."""
        return self.bytes_used / self.capacity_bytes if self.capacity_bytes else 0.0
