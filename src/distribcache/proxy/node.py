"""What the sessions of one process share: settings, L1, fills in flight, identities, databases, and what was
counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from distribcache.catalog.statement import Analyst
from distribcache.clock import CoarseClock, now_ns, wall_time
from distribcache.coherence.auditor import Verdict
from distribcache.coherence.database import Coherence, Databases
from distribcache.coherence.ledger import NEVER
from distribcache.coherence.scope import Idents
from distribcache.config import Settings
from distribcache.entry import Entry
from distribcache.proxy.audits import Audits
from distribcache.proxy.fill import Fill, Flights
from distribcache.query import WorkloadType
from distribcache.store import Store
from distribcache.tiers.base import Cause, TierStats
from distribcache.tiers.hot import HotCache
from distribcache.tiers.stack import stack_of
from distribcache.workload.classifier import classify

if TYPE_CHECKING:
    from distribcache.proxy.peers import Peers
    from distribcache.proxy.session import Session

__all__ = ["Database", "Node", "Outcome", "Totals"]


class Outcome(NamedTuple):
    """What became of one statement: the row of ``SHOW distribcache.last``.

    ``status`` is hit, miss, bypass or refused; ``reason`` a stable code; ``age_ms`` how old the answer may be.
    """

    status: str = ""
    tier: str = ""
    reason: str = ""
    age_ms: float | None = None
    tables: str = ""
    workload: str = ""


class Totals:
    """Counters of one process. Hits are counted by the sessions themselves and added when they end."""

    __slots__ = (
        "bypasses",
        "cancels",
        "failures",
        "fills",
        "hits",
        "misses",
        "oldest_ns",
        "refusals",
        "saved_ns",
        "sessions",
        "started_ns",
    )

    def __init__(self) -> None:
        self.hits = 0
        self.saved_ns = 0
        self.misses: Counter[str] = Counter()
        self.bypasses: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.fills: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.sessions = 0
        self.cancels = 0
        self.oldest_ns = 0
        self.started_ns = now_ns()


class Database:
    """One database as the sessions see it: its coherence, and the analysis of statements against its catalogue."""

    __slots__ = ("analyst", "coherence")

    def __init__(self, coherence: Coherence, analyst: Analyst) -> None:
        self.coherence = coherence
        self.analyst = analyst


class Node:
    """The shared state of one proxy process."""

    def __init__(self, settings: Settings, databases: Databases, log: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.audits = Audits(settings.audit.sample, settings.audit.max_cost, log)
        self.staleness = {name: int(seconds * 1e9) for name, seconds in settings.staleness.bounds.items()}
        """Bounds of classes of statements, nanoseconds."""
        self.tightest = min(self.staleness.values(), default=NEVER)
        self.clock = CoarseClock()
        self.clock.tick()
        self.l1 = HotCache(
            capacity_bytes=settings.l1.size, max_entry_bytes=settings.l1.max_entry, policy=settings.l1.policy
        )
        self.store = Store(
            self.l1, stack_of(settings.l2, settings.l3, wall_time, log), self.clock,
            lease_cost_ns=int(settings.l3.lease_cost * 1e9), patience_s=settings.cache.single_flight_wait,
        )
        self.flights = Flights()
        self.idents = Idents()
        self.databases = databases
        self.totals = Totals()
        self.sessions: dict[tuple[int, bytes], Session] = {}
        self.live: set[Session] = set()
        self.newcomers: dict[Session, None] = {}
        """Live sessions that were not introduced yet, in the order in which they began."""
        self._known: dict[str, Database] = {}
        self.peers: Peers | None = None
        """Where there are several workers: the way to the others."""

    def ttl(self, workload: WorkloadType) -> float:
        """Seconds that an answer of this class may live, invalidated or not."""
        return self.settings.ttl.of(workload)

    def enter(self, name: str) -> Database:
        """A client begins a session in database ``name``."""
        coherence = self.databases.acquire(name)
        known = self._known.get(name)
        if known is None or known.coherence is not coherence:
            analyst = Analyst(
                coherence.ask, coherence.slot_of, coherence.visible, coherence.schema_lsn, classify=classify,
                published=lambda: coherence.plugin == "pgoutput",
            )
            # After a crash positions can go back: an old analysis would look current.
            coherence.epoch_listeners.append(lambda _: self._ended(coherence, analyst))
            known = self._known[name] = Database(coherence, analyst)
        return known

    def _ended(self, coherence: Coherence, analyst: Analyst) -> None:
        analyst.forget()
        for session in self.live:  # the ledger may be another one
            if session.coherence is coherence:
                session.find_ledger()

    def leave(self, name: str) -> None:
        """A client's session in database ``name`` is over."""
        self.databases.release(name)

    def introduce(self, most: int) -> None:
        """Ask for the scopes of that many sessions that have begun: their first reads need not wait for that."""
        for session in list(islice(self.newcomers, most)):
            del self.newcomers[session]
            session.questions.introduce()

    def note_traffic(self) -> None:
        """Tell each database whose sessions had hits since the last call: the hit path itself tells nobody."""
        for session in self.live:
            hits = session.hot.hits
            if hits != session.seen_hits:
                self.audits.count(session, hits - session.seen_hits)
                session.seen_hits = hits
                session.coherence.note_traffic()
        self.audits.look(self)

    def failed(self, error: Exception) -> None:
        """Something of ours failed; the client's statement goes to PostgreSQL instead."""
        self.totals.failures[type(error).__name__] += 1

    def keep(self, fill: Fill, entry: Entry, coherence: Coherence, rows: int) -> None:
        """Keep an entry, or count why not."""
        kept = self.store.put(fill.key, entry, fill.place, coherence, ttl=fill.ttl, rows=rows)
        self.totals.fills["stored" if kept else "oversize"] += 1

    def landed(self, fill: Fill) -> None:
        """A fill has ended, well or not: whoever waits for it looks again."""
        if fill.leads:
            self.flights.land(fill.key)
            if fill.place is not None:
                self.store.landed(fill.place)

    def hits(self) -> int:
        """Hits of all sessions, ended and live."""
        return self.totals.hits + sum(session.hot.hits for session in self.live)

    def tiers(self) -> dict[str, TierStats]:
        """One reading of each tier, by its name."""
        l1 = replace(self.l1.stats(), hits=self.hits(), misses=sum(self.totals.misses.values()))
        return {"L1": l1, **{name.upper(): stats for name, stats in self.store.stack.stats().items()}}

    def saved_ns(self) -> int:
        """Time that hits did not spend upstream, by the measured cost of each fill, nanoseconds."""
        return self.totals.saved_ns + sum(session.hot.saved_ns for session in self.live)

    def statistics(self) -> dict[str, float]:
        """The counters by name, as ``SHOW distribcache.stats`` and the admin endpoint report them."""
        totals, audits = self.totals, self.audits
        l1 = self.l1.stats()
        below: dict[str, float] = {}
        for name, tier in self.store.stack.stats().items():
            below |= {
                f"{name}_entries": tier.entries, f"{name}_bytes": tier.bytes_used, f"{name}_hits_total": tier.hits,
                f"{name}_misses_total": tier.misses, f"{name}_failures_total": sum(tier.failures.values()),
            }  # fmt: skip
            if tier.peers:
                below |= {f"{name}_peers": tier.peers, f"{name}_healthy_peers": tier.healthy_peers}
        return {
            "hits_total": self.hits(),
            "misses_total": sum(totals.misses.values()),
            "bypasses_total": sum(totals.bypasses.values()),
            "refusals_total": sum(totals.refusals.values()),
            "fills_total": totals.fills["stored"],
            "oversize_total": totals.fills["oversize"],
            "failures_total": sum(totals.failures.values()),
            "evictions_total": l1.evictions.get(Cause.CAPACITY, 0),
            "expirations_total": l1.evictions.get(Cause.EXPIRED, 0),
            "audits_total": sum(audits.tally.verdicts.values()),
            "stale_audits_total": audits.tally.stale,
            "superseded_audits_total": audits.tally.verdicts[Verdict.SUPERSEDED],
            "undecided_audits_total": audits.tally.verdicts[Verdict.UNDECIDED],
            "skipped_audits_total": audits.skipped,
            "oldest_superseded_ms": audits.tally.oldest_ns / 1e6,
            "seconds_saved_total": self.saved_ns() / 1e9,
            "oldest_answer_ms": max([totals.oldest_ns, *(session.hot.oldest_ns for session in self.live)]) / 1e6,
            "l1_entries": l1.entries,
            "l1_bytes": l1.bytes_used,
            **below,
            "sessions": len(self.live),
            "sessions_total": totals.sessions,
            "cancels_total": totals.cancels,
            "uptime_seconds": (now_ns() - totals.started_ns) / 1e9,
        }
