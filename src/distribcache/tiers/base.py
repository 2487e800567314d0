"""What all tiers have in common: keys, why an entry left, and the figures that a tier reports.

A tier holds bytes at rest. It knows keys and entries, nothing of SQL, sessions or validity: whether an entry may be
served is asked of the ledger by whoever reads it, whatever tier it came from (coherence rule R1).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distribcache.entry import Entry

__all__ = ["Cause", "Key", "OnEvict", "TierStats"]

Key = tuple[Any, ...]
"""A hashable tuple of atoms whose last item is the request as ``bytes`` or ``str``."""


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
