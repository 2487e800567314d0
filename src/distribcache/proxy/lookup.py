"""What simple and extended units share: may this statement be served, is it there, and how is it filled."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, Literal

from distribcache.catalog.statement import Analysis
from distribcache.clock import now_ns
from distribcache.coherence.ledger import FRESH_AT, W
from distribcache.coherence.scope import Scope
from distribcache.coherence.tags import UNBOUND, Bound, slots_of
from distribcache.coherence.ttl import reaches
from distribcache.coherence.validity import valid
from distribcache.entry import AT_NS, COST_NS, FILL, Entry
from distribcache.proxy.fill import Fill
from distribcache.proxy.node import Outcome
from distribcache.sql.cacheability import Kind, Parsed, Statement
from distribcache.store import Place

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["WAIT", "Considered", "Wait", "consider", "find", "is_ping", "miss", "only", "serve_entry", "start_fill"]

Key = tuple[int, bytes]


class Wait(enum.Enum):
    """The type of ``WAIT``: something is being awaited; the same unit will be looked at again."""

    WAIT = enum.auto()


WAIT: Final[Literal[Wait.WAIT]] = Wait.WAIT

_PATIENCE = 1.0
"""Seconds that a statement waits for its analysis; the question goes on without it."""
_FAILED = "analysis_failed"
_PINGS = frozenset({b"select 1", b""})
_LONGEST_PING = 64
_READS = (Kind.READ, Kind.SHOW, Kind.EMPTY)

Considered = tuple[Analysis | None, Outcome]


def only(parsed: Parsed) -> Statement | None:
    """The statement of a text that is understood and holds just one."""
    return parsed.statements[0] if len(parsed.statements) == 1 and not parsed.error else None


def is_ping(sql: bytes) -> bool:
    """Does this text only ask whether the connection lives?"""
    return len(sql) < _LONGEST_PING and sql.strip(b" \t\r\n;").lower() in _PINGS


def consider(s: Session, sql: bytes, parsed: Parsed) -> Considered | Wait:
    """The analysis of a text that may be a read, and why it may not be served: an outcome with a status, or an empty
    one.
    """
    if parsed.error:
        return None, Outcome("refused", reason="not_understood")
    for each in parsed.statements:
        if each.kind not in _READS:
            refusal = each.refusal if len(parsed.statements) == 1 else None
            return None, Outcome("bypass", reason=refusal.code if refusal else "not_a_read")
    why = s.why_not()
    if why == "scope_unknown" and s.questions.learn_scope():
        return WAIT
    scope = s.scope
    if scope is None or not s.coherence.serving:
        return None, Outcome("bypass", reason=why)
    analyst = s.database.analyst
    analysis = analyst.recall(sql, scope.schemas)
    if analysis is None and "analysis" not in s.tried:
        s.wait("analysis", asyncio.wait_for(_analysed(s, sql, scope), _PATIENCE))
        return WAIT
    if analysis is None:
        if not why and _FAILED in s.tried:
            return None, Outcome("refused", reason=_FAILED)
        return None, Outcome("bypass", reason=why or "analysis_unsettled")
    tables, workload = ",".join(analysis.tables), (scope.workload or analysis.workload).value
    if why:
        return analysis, Outcome("bypass", reason=why, tables=tables, workload=workload)
    if analysis.refusal is not None:
        return analysis, Outcome("refused", reason=analysis.refusal.code, tables=tables, workload=workload)
    if not analysis.settings <= scope.settings:
        # A policy reads what this session was never seen to set: from now on it is part of the scope.
        s.touched.update(dict.fromkeys(analysis.settings))
        if s.questions.learn_scope():
            return WAIT
        return analysis, Outcome("bypass", reason="scope_unknown", tables=tables, workload=workload)
    return analysis, Outcome(tables=tables, workload=workload)


async def _analysed(s: Session, sql: bytes, scope: Scope) -> None:
    analysis = await s.database.analyst.analyse(sql, scope.schemas)
    if analysis.refusal is not None and analysis.refusal.code == _FAILED:
        s.tried.add(_FAILED)


def find(s: Session, key: Key, analysis: Analysis) -> Entry | Wait | None:
    """A valid and fresh enough entry (coherence rules R4, then R1), or None, or WAIT for freshness or for L3."""
    hot = s.hot
    entry = hot.entries.get(key)
    if entry is None:
        risen = _rise(s, key, analysis)
        if not isinstance(risen, tuple):
            return risen
        entry = risen
    words = hot.words
    head = hot.head
    if not valid(entry, words, hot.clock.now, head):
        if entry[FILL] > head[W]:
            return None
        s.node.l1.discard(key)
        risen = _rise(s, key, analysis)  # another node may have asked since
        if not isinstance(risen, tuple):
            return risen
        entry = risen
    now = now_ns()
    if s.careful and s.coherence.mode == "ttl":  # no floor is ever missed there
        young = not s.strict and now - (entry[AT_NS] - entry[COST_NS]) <= s.staleness_of(entry)
        return entry if young else None
    floor = now - s.staleness_of(entry)
    floor = max(floor, s.floor())
    if s.strict:
        floor = max(floor, s.arrival)
    if head[FRESH_AT] >= floor:
        return entry
    if "fresh" not in s.tried:
        s.wait("fresh", s.coherence.wait_fresh(floor, s.node.settings.freshness.hit_wait))
        return WAIT
    return None


def place_of(s: Session, key: Key, analysis: Analysis) -> Place | None:
    """Where the answer is kept below L1, if it is."""
    store, scope = s.node.store, s.scope
    if scope is None or not store.stack or not reaches(s.coherence, scope.server):
        return None
    workload = scope.workload or analysis.workload
    identity = s.node.idents.digest(key[0])
    return store.place(s.coherence, identity, key[1], workload=workload.value, ttl=s.node.ttl(workload))


def _rise(s: Session, key: Key, analysis: Analysis) -> Entry | Wait | None:
    """The answer from a tier below, or WAIT for L3; each is asked once per unit."""
    store = s.node.store
    if not store.stack or key in s.node.flights or ("far", key) in s.tried:
        return None
    place = place_of(s, key, analysis)
    if place is None:
        return None
    found = store.rise_near(key, place, s.coherence)
    if isinstance(found, tuple):
        s.risen = "L2", s.hot.hits + 1
        return found
    large = found is not None
    if place.far or large:
        s.tried.add(("far", key))
        tier = "L2" if large else "L3"
        s.wait("far", _risen(s, tier, store.rise_far(key, place, s.coherence, large=large)))
        return WAIT
    return None


async def _risen(s: Session, tier: str, way: Coroutine[Any, Any, Entry | None]) -> None:
    """Remember which tier the next hit comes from, if it is one."""
    if await way is not None:
        s.risen = tier, s.hot.hits + 1


def serve_entry(s: Session, key: Key, entry: Entry, asked: bytes) -> bytes:
    """Count a hit that the hit path did not see, and return its bytes. ``asked``: the Query or the run."""
    hot = s.hot
    if hot.touch is None:
        entry[6][0] = 1
    else:
        hot.touch(key)
    hot.hits += 1
    s.txn.read = s.txn.read or s.txn.local
    hot.saved_ns += entry[7]
    hot.last = entry
    hot.age_ns = now_ns() - hot.head[FRESH_AT]
    hot.oldest_ns = max(hot.oldest_ns, hot.age_ns)
    if s.armed:
        s.node.audits.answered(s, key, entry, asked)
    return entry[0]


def start_fill(
    s: Session, key: Key, analysis: Analysis, sql: bytes, bound: Bound = UNBOUND, *, alone: bool
) -> Fill | Wait | None:
    """Begin to fill ``key``, or WAIT for someone else's fill of it; None when nothing may be stored.

    F is read here, before the first message that can make the server take its snapshot is sent (coherence rule R2).
    ``alone``: the unit is one statement, so it may wait for another's fill and others may wait for its own.
    """
    scope = s.scope
    flights = s.node.flights
    if scope is None or (s.open and not scope.read_committed):  # its snapshot may be that of an earlier group
        return None
    if alone and key in flights and "flight" not in s.tried:
        s.tried.discard("fresh")
        s.wait("flight", _landed(flights.join(key), _patience(s, scope)))
        return WAIT
    place = place_of(s, key, analysis)
    if alone and place is not None and key not in flights and s.node.store.dear(key, place) and "lease" not in s.tried:
        tier = "L3" if place.far else "L2"
        s.wait("lease", _risen(s, tier, s.node.store.lead(key, place, s.coherence, _patience(s, scope))))
        return WAIT
    slots = slots_of(s.coherence, analysis, sql, bound)
    point = s.coherence.fill_point()
    if point is None:
        if place is not None:
            s.node.store.landed(place)
        return None
    fill = Fill(
        key,
        analysis=analysis,
        slots=slots,
        fill_lsn=point,
        epoch=s.coherence.epoch,
        scope=scope.ident,
        began_ns=now_ns(),
        ttl=s.node.ttl(scope.workload or analysis.workload),
        cap=s.node.settings.l1.max_entry,
        budget=s.budget,
    )
    fill.place = place
    if alone:
        fill.leads = flights.lead(key)
    return fill


def _patience(s: Session, scope: Scope) -> float:
    """Seconds that this session waits for another's fill: no longer than a statement of its may take."""
    seconds = s.node.settings.cache.single_flight_wait
    return min(seconds, scope.statement_timeout_ms / 1000) if scope.statement_timeout_ms else seconds


def miss(s: Session, fill: Fill | None, considered: Outcome) -> Outcome:
    """What to report of a cacheable read that goes upstream."""
    reason = "no_fill_point" if fill is None else "not_fresh" if "fresh" in s.tried else ""
    return Outcome("miss", reason=reason, tables=considered.tables, workload=considered.workload)


async def _landed(flight: asyncio.Future[None], seconds: float) -> None:
    await asyncio.wait([flight], timeout=seconds)
