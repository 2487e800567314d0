"""The auditor's judgement: was an answer from memory still what it was promised to be?

Theory. A sampled hit is asked again, on the client's own connection, after its answer was sent. Equal answers prove
nothing was wrong. Different ones prove nothing either, as long as a commit may have come in between. So the ledger is
asked, at a *comparable point*: once it is known to be complete up to the moment at which the second answer was there
(``fresh_at``, coherence rule R3), every commit that the second answer shows is in it. Then:

* the entry was dead by the ledger already when it was served: *stale* (``dead``: rule R1 was not kept);
* it was served on older knowledge than its session was promised: *stale* (``old``: rule R4);
* a commit that ends it arrived later, though W had passed its position before: *stale* (``late``: the order of
  stores, coherence trap 18);
* a later commit, or a later change of the catalogue, ended it: *superseded*. It was right when it was served, and how
  old it may have been is known;
* it is valid still, and yet differs: *stale* (``missed``: a change that nobody recorded). Before that is said the
  catalogue has been read again as a whole, because changes of it are seen within the polls of rule R6 only;
* the epoch is another one by now, the ledger did not get there in time, or the answer is not determined by the data
  (``sql.order``): *undecided*.

Where only time ends an entry (``ttl``) a different answer is what was asked for: superseded, with its age.

Pure: facts in, verdicts out.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_64_intdigest

from distribcache.coherence.ledger import EPOCH, FRESH_AT, NEVER, SCHEMA, W
from distribcache.entry import ANALYSIS, AT_NS, FILL, SLOTS, Entry
from distribcache.entry import EPOCH as ENTRY_EPOCH

__all__ = ["Cause", "Finding", "Sampler", "Served", "Tally", "Verdict", "ended_at", "judge", "upper_bound"]

_TOLERANCE_NS: Final = 20_000_000
"""Between the look at the floor and the reading of the clock for the age of the answer."""


class Verdict(enum.Enum):
    """What became of an audit."""

    SAME = "same"
    SUPERSEDED = "superseded"
    STALE = "stale"
    UNDECIDED = "undecided"


class Cause(enum.Enum):
    """What is wrong with a stale answer, or why nothing can be said."""

    NONE = ""
    DEAD = "dead"
    OLD = "old"
    LATE = "late"
    MISSED = "missed"
    FAILED = "failed"
    NEW_EPOCH = "new_epoch"
    NOT_FRESH = "not_fresh"
    NOT_DETERMINED = "not_determined"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict with its reason; ``age_ns``: an upper bound of how old the answer was when it was served."""

    verdict: Verdict
    cause: Cause = Cause.NONE
    age_ns: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """An entry as it was served, and what the ledger said in that moment. ``floor_ns`` is what rule R4 demanded."""

    entry: Entry
    at_ns: int
    age_ns: int
    bound_ns: int
    fresh_at: int
    floor_ns: int
    watermark: int
    schema: int
    ended: int
    """0: the entry was valid."""
    ttl: bool

    @classmethod
    def now(
        cls, entry: Entry, words: memoryview, head: memoryview, *, at_ns: int, age_ns: int, bound_ns: int,
        floor_ns: int, ttl: bool,
    ) -> Served:  # fmt: skip
        """Facts of this moment: to be called before anything else can move the ledger."""
        return cls(
            entry, at_ns, age_ns, bound_ns, head[FRESH_AT], floor_ns, head[W], words[SCHEMA],
            _dead(entry, words, head) or ended_at(entry, words), ttl,
        )  # fmt: skip


def ended_at(entry: Entry, words: memoryview) -> int:
    """The lowest position now in the ledger that ends an entry of its epoch; 0 when none does (coherence rule R1).

    Written apart from what the hit path asks, so that one finds the other's mistakes.
    """
    fill = entry[FILL]
    ends = [words[slot] for slot in entry[SLOTS] if words[slot] > fill]
    if words[SCHEMA] > entry[ANALYSIS]:
        ends.append(words[SCHEMA])
    return min(ends, default=0)


def _dead(entry: Entry, words: memoryview, head: memoryview) -> int:
    """Of another epoch, or of a time of which the ledger cannot speak yet."""
    return NEVER if words[EPOCH] != entry[ENTRY_EPOCH] or entry[FILL] > head[W] else 0


def judge(served: Served, words: memoryview) -> Finding | None:
    """The verdict on an answer that differs from a later one, up to which the ledger is complete now.

    None: the entry is valid by the ledger, which is stale unless a look at the whole catalogue ends it.
    """
    entry = served.entry
    if served.ttl:
        return Finding(Verdict.SUPERSEDED, age_ns=served.at_ns - entry[AT_NS])
    age = served.age_ns
    if served.ended:
        return Finding(Verdict.STALE, Cause.DEAD, age)
    if age > served.bound_ns + _TOLERANCE_NS or served.fresh_at < served.floor_ns:
        return Finding(Verdict.STALE, Cause.OLD, age)
    if words[EPOCH] != entry[ENTRY_EPOCH]:
        return Finding(Verdict.UNDECIDED, Cause.NEW_EPOCH, age)
    ended = ended_at(entry, words)
    if not ended:
        return None
    # A change of the catalogue takes the position at which it was found. Not "<=": all relations beyond the last slot
    # share it, and a new one among them starts at what was received.
    if words[SCHEMA] == served.schema and ended < served.watermark:
        return Finding(Verdict.STALE, Cause.LATE, age)
    return Finding(Verdict.SUPERSEDED, age_ns=age)


class Tally:
    """Audits by verdict."""

    __slots__ = ("causes", "oldest_ns", "verdicts")

    def __init__(self) -> None:
        self.verdicts: Counter[Verdict] = Counter()
        self.causes: Counter[Cause] = Counter()
        self.oldest_ns = 0
        """The greatest age among the superseded."""

    def add(self, finding: Finding) -> None:
        self.verdicts[finding.verdict] += 1
        if finding.cause is not Cause.NONE:
            self.causes[finding.cause] += 1
        if finding.verdict is Verdict.SUPERSEDED:
            self.oldest_ns = max(self.oldest_ns, finding.age_ns)

    @property
    def decided(self) -> int:
        """Audits that ended in a statement about the answer."""
        return sum(self.verdicts.values()) - self.verdicts[Verdict.UNDECIDED]

    @property
    def stale(self) -> int:
        return self.verdicts[Verdict.STALE]


class Sampler:
    """How many of the hits to come are audited, so that it is ``share`` of them in the long run.

    Gaps between samples vary by half of their mean: a load that repeats itself would otherwise be sampled at always
    the same place. The first comes after half a gap at least.
    """

    __slots__ = ("_gap", "_hits", "_number", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._number = 0
        self._hits = 0.0
        self._gap = self._next()

    def _next(self) -> float:
        if not self.share:
            return math.inf
        self._number += 1
        part = xxh3_64_intdigest(self._number.to_bytes(8, "little")) / 2.0**64
        return (0.5 + part) / self.share

    def due(self, hits: int) -> int:
        """Samples that are due after so many more hits."""
        self._hits += hits
        due = 0
        while self._hits >= self._gap:
            self._hits -= self._gap
            self._gap = self._next()
            due += 1
        return due


def upper_bound(found: int, of: int, confidence: float = 0.95) -> float:
    """The greatest rate that ``found`` in ``of`` audits leaves possible (Clopper and Pearson, one-sided).

    With none found in n it is about 3/n (the rule of three).
    """
    if of <= 0 or found >= of:
        return 1.0
    if not found:
        return float(1 - (1 - confidence) ** (1 / of))
    low, high = found / of, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        if _at_most(found, of, rate) > 1 - confidence:
            low = rate
        else:
            high = rate
    return high


def _at_most(found: int, of: int, rate: float) -> float:
    """The chance of at most ``found`` in ``of`` at this rate."""
    yes, no = math.log(rate), math.log1p(-rate)
    whole = math.lgamma(of + 1)
    return sum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * yes + (of - k) * no)
        for k in range(found + 1)
    )
