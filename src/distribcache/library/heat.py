"""What was asked for, when, and what memory saved: by table and by template, in buckets of time.

A look-up notes one tuple in a queue; the sums are made behind it, on the keeper's loop. The queue and the sums are
bounded: names beyond the bound of a bucket are counted as ``other``, buckets older than the retention are dropped, and
where more than ``_QUEUE`` look-ups come between two ticks, the oldest of them are not counted. Time saved is the
measured cost of the fill, never an assumption.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from distribcache.clock import wall_time
from distribcache.entry import COST_NS, TABLES, WORKLOAD, Entry
from distribcache.library.forks import concerns
from distribcache.sql.fingerprint import template
from distribcache.tiers.base import Key

__all__ = ["Access", "Cell", "Heat", "Share"]

BUCKET_S: Final = 300
RETENTION_S: Final = 7 * 86400
_NAMES: Final = 64
"""Tables, and templates, that a bucket tells apart."""
_QUEUE: Final = 65536
_TEMPLATES: Final = 1024
_KEYS: Final = 100_000
"""Keys whose hits are counted one by one; beyond it, those that have left memory are forgotten."""
_LONGEST: Final = 200
OTHER: Final = "other"


Access = tuple[Entry, Key, str] | tuple[None, str, str, str]
"""One look-up. A hit: the entry, its key, and a text or the name of a function. A miss: None, the tables with commas
between, that text or name, the class of workload.
"""

Bucket = dict[tuple[str, str], list[int]]
"""By kind and name: hits, misses, nanoseconds saved."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One name in one bucket. ``kind`` is ``table`` or ``template``; ``begin`` in seconds since the Unix epoch."""

    begin: int
    kind: str
    name: str
    hits: int
    misses: int
    seconds_saved: float

    @property
    def accesses(self) -> int:
        return self.hits + self.misses


@dataclass(frozen=True, slots=True)
class Share:
    """How much of what was asked was of one class. ``percent`` of all accesses, 0 when there were none."""

    workload: str
    hits: int
    misses: int
    percent: float


class Heat:
    """See the module. ``note`` may be called from any thread, the rest from the loop, or when that is not running."""

    def __init__(self) -> None:
        self._queue: deque[Access] = deque(maxlen=_QUEUE)
        self.note = self._queue.append
        self._buckets: dict[int, Bucket] = {}
        self._workloads: dict[str, list[int]] = {}
        self._told: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.kept: Container[Key] = ()
        """What is in memory at the moment: hits are counted for those only."""
        self.hits: dict[Key, int] = {}
        self._templates: dict[str, str] = {}
        concerns(self)

    def forked(self) -> None:
        """Whoever holds the lock is the parent's."""
        self._lock = threading.Lock()

    def gather(self) -> None:
        """Add up what was noted."""
        if self._queue:
            with self._lock:
                self._gather()

    def _gather(self) -> None:
        queue = self._queue
        begin = int(wall_time()) // BUCKET_S * BUCKET_S
        bucket = self._buckets.get(begin)
        if bucket is None:
            bucket = self._buckets[begin] = {}
            self._told.clear()
            for old in [each for each in self._buckets if each < begin - RETENTION_S]:
                del self._buckets[old]
        counts: dict[Key, int] = {}
        shown: dict[Key, tuple[Entry, str]] = {}
        for _ in range(len(queue)):
            access = queue.popleft()
            if access[0] is None:
                self._sum(bucket, access[1], access[2], access[3], 1, 1, 0)
            else:
                key = access[1]
                counts[key] = counts.get(key, 0) + 1
                shown[key] = access[0], access[2]
        for key, (entry, label) in shown.items():
            times = counts[key]
            self.hits[key] = self.hits.get(key, 0) + times
            self._sum(bucket, entry[TABLES], label, entry[WORKLOAD], 0, times, entry[COST_NS] * times)
        if len(self.hits) > _KEYS:
            self.hits = {key: count for key, count in self.hits.items() if key in self.kept}

    def _template(self, label: str) -> str:
        known = self._templates.get(label)
        if known is None:
            if len(self._templates) >= _TEMPLATES:
                self._templates.clear()
            known = self._templates[label] = template(label)[:_LONGEST]
        return known

    def _sum(
        self, bucket: Bucket, tables: str, label: str, workload: str, place: int, times: int, saved: int
    ) -> None:
        for table in filter(None, tables.split(",")):
            self._add(bucket, "table", table, place, times, saved)
        if label:
            self._add(bucket, "template", self._template(label), place, times, saved)
        self._workloads.setdefault(workload, [0, 0])[place] += times

    def _add(self, bucket: Bucket, kind: str, name: str, place: int, times: int, saved: int) -> None:
        cell = bucket.get((kind, name))
        if cell is None:
            if self._told[kind] >= _NAMES:
                name = OTHER
            else:
                self._told[kind] += 1
            cell = bucket.setdefault((kind, name), [0, 0, 0])
        cell[place] += times
        cell[2] += saved

    def hits_of(self, key: Key) -> int:
        """How often that key was hit since it was first, as far as it is still known."""
        self.gather()
        return self.hits.get(key, 0)

    def left(self, key: Key) -> None:
        """The key has left memory."""
        self.hits.pop(key, None)

    def cells(self) -> list[Cell]:
        """All buckets, oldest first; in each the most asked first."""
        self.gather()
        found = []
        for begin in sorted(self._buckets):
            cells = [Cell(begin, *name, sums[0], sums[1], sums[2] / 1e9) for name, sums in self._buckets[begin].items()]
            found += sorted(cells, key=lambda cell: (cell.kind, -cell.accesses, cell.name))
        return found

    def shares(self) -> list[Share]:
        """By class, the largest first."""
        self.gather()
        total = sum(map(sum, self._workloads.values()))
        shares = [
            Share(name, hits, misses, 100 * (hits + misses) / total if total else 0.0)
            for name, (hits, misses) in self._workloads.items()
        ]
        return sorted(shares, key=lambda share: (-share.percent, share.workload))
