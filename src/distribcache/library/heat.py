"""What was asked for, when, and what memory saved: by table and by template, in buckets of time.

A look-up notes one tuple in a queue; the sums are made behind it, on the keeper's loop. The queue and the sums are
bounded: names beyond the bound of a bucket are counted as ``other``, buckets older than the retention are dropped, and
what the queue could not take is counted as such. Time saved is the measured cost of the fill, never an assumption.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from distribcache.clock import wall_time
from distribcache.sql.fingerprint import template

__all__ = ["Access", "Cell", "Heat", "Share"]

BUCKET_S: Final = 300
RETENTION_S: Final = 7 * 86400
_NAMES: Final = 64
"""Tables, and templates, that a bucket tells apart."""
_QUEUE: Final = 65536
_TEMPLATES: Final = 1024
_LONGEST: Final = 200
OTHER: Final = "other"


class Access(NamedTuple):
    """One look-up. ``tables`` with commas between; ``label`` is a text or the name of a function."""

    hit: bool
    tables: str
    label: str
    workload: str
    saved_ns: int


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
        self._buckets: dict[int, dict[tuple[str, str], list[int]]] = {}
        self._workloads: dict[str, list[int]] = {}
        self._told: Counter[str] = Counter()
        self._templates: dict[str, str] = {}

    def gather(self) -> None:
        """Add up what was noted."""
        queue = self._queue
        if not queue:
            return
        begin = int(wall_time()) // BUCKET_S * BUCKET_S
        bucket = self._buckets.get(begin)
        if bucket is None:
            bucket = self._buckets[begin] = {}
            self._told.clear()
            for old in [each for each in self._buckets if each < begin - RETENTION_S]:
                del self._buckets[old]
        for _ in range(len(queue)):
            try:
                access = queue.popleft()
            except IndexError:  # another thread gathers too
                return
            for table in filter(None, access.tables.split(",")):
                self._add(bucket, "table", table, access)
            if access.label:
                self._add(bucket, "template", self._template(access.label), access)
            sums = self._workloads.setdefault(access.workload, [0, 0])
            sums[0 if access.hit else 1] += 1

    def _template(self, label: str) -> str:
        known = self._templates.get(label)
        if known is None:
            if len(self._templates) >= _TEMPLATES:
                self._templates.clear()
            known = self._templates[label] = template(label)[:_LONGEST]
        return known

    def _add(self, bucket: dict[tuple[str, str], list[int]], kind: str, name: str, access: Access) -> None:
        cell = bucket.get((kind, name))
        if cell is None:
            if self._told[kind] >= _NAMES:
                name = OTHER
            else:
                self._told[kind] += 1
            cell = bucket.setdefault((kind, name), [0, 0, 0])
        cell[0 if access.hit else 1] += 1
        cell[2] += access.saved_ns

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
