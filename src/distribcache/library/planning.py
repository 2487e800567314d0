"""What is to be done about a miss: everything that must come before the statement is sent comes here.

Rules:
1. On the keeper's loop the ledger stands still. So memory is looked at once more there, before anything is asked.
2. The analysis may refuse. What memory lacks may lie in a tier below, or be on its way to another node.
3. Slots first, then F, then the statement (coherence rule R2).
"""

from __future__ import annotations

import asyncio
from typing import Final

from distribcache.catalog.statement import Analysis
from distribcache.coherence.epoch import digest
from distribcache.coherence.tags import slots_of
from distribcache.coherence.ttl import reaches
from distribcache.entry import Entry
from distribcache.library.bounds import Bounds
from distribcache.library.drivers.base import Question, Session
from distribcache.library.examine import Examiner
from distribcache.library.keeper import Keeper
from distribcache.library.plan import Plan, Wish, ttl_of, workload_of
from distribcache.library.scope import Known
from distribcache.library.steps import Steps
from distribcache.store import Place
from distribcache.tiers.base import Key
from distribcache.tiers.outcomes import Large

__all__ = ["Planning"]

_PATIENCE_S: Final = 1.0


class Planning:
    """See the module; one per cache object."""

    def __init__(self, keeper: Keeper, bounds: Bounds) -> None:
        self._keeper = keeper
        self._bounds = bounds
        self._examiner = Examiner()

    def plan(
        self, session: Session, question: Question, key: Key, known: Known, wish: Wish, floor: int, *, shared: bool
    ) -> Steps[Plan]:
        """``shared``: may other processes read it as this session does?"""
        keeper = self._keeper
        if question.args:
            yield session.probe()
        examined: Analysis | None = None
        if not keeper.coherence.name:
            examined = yield from self._examiner.examine(session, question.text, known)
        work = self._plan(session, question, key, known, wish, floor, examined, shared=shared)
        return (yield from keeper.ask(work, Plan("internal_error")))

    async def _plan(
        self, session: Session, question: Question, key: Key, known: Known, wish: Wish, floor: int,
        examined: Analysis | None, *, shared: bool,
    ) -> Plan:  # fmt: skip
        """On the keeper's loop."""
        keeper = self._keeper
        coherence, analyst, text = keeper.coherence, keeper.analyst, question.text.encode()
        entry = keeper.find(key)
        if entry is not None and keeper.fresh(floor) and self._bounds.young(key, entry, known, wish):
            return Plan(entry=entry)
        analysis = examined
        if analysis is None:
            await analyst.read_long(text)
            try:
                analysis = await asyncio.wait_for(analyst.analyse(text, known.scope.schemas), _PATIENCE_S)
            except TimeoutError:
                return Plan("analysis_unsettled")
        if analysis.refusal is not None:
            return Plan(analysis.refusal.code, refused=True, analysis=analysis)
        if analysis.nocache:
            return Plan("nocache", refused=True, analysis=analysis)
        if not analysis.settings <= known.scope.settings:
            return Plan(missing=analysis.settings)
        place = self._place(key, known, analysis, wish) if shared else None
        if place is not None:
            risen, tier = await self._rise(key, place)
            if risen is not None and keeper.fresh(floor) and self._bounds.young(key, risen, known, wish):
                return Plan(entry=risen, tier=tier)
        slots = slots_of(coherence, analysis, text, session.bound(question))
        point = coherence.fill_point()
        if point is None:
            if place is not None:
                keeper.store.landed(place)
            return Plan(coherence.reason or "no_fill_point", analysis=analysis)
        return Plan(analysis=analysis, slots=slots, fill=point, epoch=coherence.epoch, place=place)

    def _place(self, key: Key, known: Known, analysis: Analysis, wish: Wish) -> Place | None:
        """Where such an answer belongs below memory; None for nowhere."""
        keeper, workload = self._keeper, workload_of(analysis, known, wish)
        if not reaches(keeper.coherence, known.scope.server):
            return None
        identity = digest(str(key[0]).encode(), known.identity, str(key[3]).encode()) if known.identity else b""
        ttl = ttl_of(keeper.settings, workload, wish)
        return keeper.store.place(keeper.coherence, identity, key[-1], workload=workload.value, ttl=ttl)

    async def _rise(self, key: Key, place: Place) -> tuple[Entry | None, str]:
        """An answer from below memory, now in memory, and the tier that had it."""
        keeper, store = self._keeper, self._keeper.store
        near = store.rise_near(key, place, keeper.coherence)
        risen = None if isinstance(near, Large) else keeper.rise(key, near)
        if risen is not None:
            return risen, "L2"
        risen = keeper.rise(key, await store.rise_far(key, place, keeper.coherence, large=isinstance(near, Large)))
        if risen is None and store.dear(key, place):
            seconds = keeper.settings.cache.single_flight_wait
            risen = keeper.rise(key, await store.lead(key, place, keeper.coherence, seconds))
        return risen, "L3"
