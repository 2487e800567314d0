"""What is measured: latencies, commits, and how out of date an answer was. No IO; time is an argument.

Rules:
1. A latency counts from before the query is handed to the driver until its rows are there.
2. An answer is *old* when, before its read began, a commit was acknowledged that it does not show. Its age is the time
   from that acknowledgement to the beginning of the read: what came later than the beginning, nobody could ask for.
3. An answer is *stale* when its age exceeds what the session was promised: ``max_staleness``, in strict sessions zero.
4. Nothing is estimated. A figure that was not measured is None.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass

__all__ = ["Answers", "Commits", "Durations", "Latency", "Panel", "Report", "Story", "Writes"]

_BASE = math.log(1.01)


class Durations:
    """How long things took, nanoseconds, in buckets of 1 %: percentiles are that exact, memory is bounded."""

    __slots__ = ("_buckets", "_most", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets: Counter[int] = Counter()
        self._most = 0

    def add(self, nanoseconds: int) -> None:
        """Take one in."""
        self._buckets[int(math.log(max(1, nanoseconds)) / _BASE)] += 1
        self._most = max(self._most, nanoseconds)
        self.count += 1

    def percentile_ms(self, percent: float) -> float | None:
        """The nearest-rank percentile in milliseconds; None when there was nothing."""
        # A copy: another thread may be adding.
        buckets = sorted(self._buckets.copy().items())
        wanted = math.ceil(sum(count for _, count in buckets) * percent / 100)
        for bucket, count in buckets:
            wanted -= count
            if wanted <= 0:
                return round(math.exp((bucket + 0.5) * _BASE) / 1e6, 4)
        return None

    def most_ms(self) -> float | None:
        """The longest, exactly; None when there was nothing."""
        return round(self._most / 1e6, 4) if self.count else None


class Commits:
    """The commits of one writer to one subject, numbered from 1: version n is what n of them left behind.

    ``number`` how many were acknowledged; ``pending`` whether one more may or may not be visible by now.
    """

    __slots__ = ("_acknowledged", "pending")

    def __init__(self) -> None:
        self._acknowledged: list[int] = []
        self.pending = False

    @property
    def number(self) -> int:
        return len(self._acknowledged)

    def acknowledge(self, at_ns: int) -> None:
        """The writer was told that its next commit is done."""
        self._acknowledged.append(at_ns)
        self.pending = False

    def age_ns(self, version: int, began_ns: int) -> int:
        """How long an answer that shows ``version`` was out of date when its read began; 0 when it was not."""
        if version >= len(self._acknowledged):
            return 0
        return max(0, began_ns - self._acknowledged[version])


class Answers:
    """Answers that were compared with what had been committed. Threads share one."""

    __slots__ = ("_lock", "compared", "different", "old", "oldest_ns", "stale")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.compared = 0
        self.different = 0
        self.old = 0
        self.stale = 0
        self.oldest_ns = 0

    def aged(self, age_ns: int, bound_ns: int) -> None:
        """An answer had this age and this bound."""
        with self._lock:
            self.compared += 1
            self.old += age_ns > 0
            self.stale += age_ns > bound_ns
            self.oldest_ns = max(self.oldest_ns, age_ns)

    def same(self, is_same: bool) -> None:
        """An answer about rows that nobody changes was compared with PostgreSQL's."""
        with self._lock:
            self.compared += 1
            self.different += not is_same


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one kind of read."""

    reads: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None

    @classmethod
    def of(cls, durations: Durations) -> Latency:
        return cls(durations.count, durations.percentile_ms(50), durations.percentile_ms(99))


@dataclass(frozen=True, slots=True)
class Story:
    """The same reads, asked of PostgreSQL and through the cache."""

    direct: Latency = Latency()
    cached: Latency = Latency()
    hits: int = 0

    @property
    def times_faster(self) -> float | None:
        """Ratio of the medians."""
        if self.direct.p50_ms is None or not self.cached.p50_ms:
            return None
        return self.direct.p50_ms / self.cached.p50_ms

    @property
    def hit_ratio(self) -> float | None:
        return self.hits / self.cached.reads if self.cached.reads else None


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of the dashboard: its last answer, and how long that took on either way."""

    title: str
    finding: str = ""
    direct_ms: float | None = None
    cached_ms: float | None = None
    hit: bool = False


@dataclass(frozen=True, slots=True)
class Writes:
    """Commits by the outside writer, and when a reader that asked again and again was first shown them.

    ``shown`` of ``committed`` were seen at all, ``at_once`` by the very first read of a session; ``after_…`` from the
    acknowledgement of the commit to the end of the first read that showed it. ``strict_…``: those that a session in
    strict consistency was asked for; they are among ``committed`` and ``shown``, not among the others.
    """

    committed: int = 0
    shown: int = 0
    at_once: int = 0
    after_p50_ms: float | None = None
    after_p99_ms: float | None = None
    after_most_ms: float | None = None
    strict_committed: int = 0
    strict_at_once: int = 0
    strict_p50_ms: float | None = None
    last: str = ""
    last_after_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything so far. ``first_hit_ns`` is a reading of ``clock.now_ns``, 0 before it happened."""

    elapsed_s: float = 0.0
    final: bool = False
    error: str = ""
    point: Story = Story()
    dashboard: Story = Story()
    outside: Story = Story()
    panels: tuple[Panel, ...] = ()
    writes: Writes = Writes()
    compared: int = 0
    different: int = 0
    old_answers: int = 0
    stale_answers: int = 0
    oldest_answer_ms: float = 0.0
    not_cached: tuple[str, ...] = ()
    first_hit_ns: int = 0

    @property
    def hit_ratio(self) -> float | None:
        stories = (self.point, self.dashboard, self.outside)
        reads = sum(story.cached.reads for story in stories)
        return sum(story.hits for story in stories) / reads if reads else None
