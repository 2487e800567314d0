"""When the catalogue is looked at while a link is up, and what else is asked on that connection (coherence rule R6).

* All of it is read again when an alarm, a poll or the settling of a change asks for it, and now and then with traffic.
* In between, and with traffic only, a quick poll compares what a change is likely to show in.
* Every five seconds, traffic or not: how much log the slot holds back, and whether the publications are as they should
  be.

One task does one of these at a time. ``soon`` wakes it; ``on_look`` is called when the ledger may have moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg

from distribcache.catalog.generation import RELOADED, CatalogueView
from distribcache.clock import now_ns
from distribcache.coherence.catalogue import Look
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.ledger import V
from distribcache.coherence.link import Link
from distribcache.coherence.options import Options
from distribcache.coherence.reasons import NotServing

__all__ = ["Looking"]

_MS = 1_000_000
_MANNERS_NS = 5000 * _MS
_POLL_GAP_NS = 100 * _MS
_REREAD_SHARE = 2  # pauses between looks, in the time that the last one took
_REREAD_MOST_NS = 250 * _MS
_KEPT = 16  # times max_wal_lag: what other people's open transactions may make our slot hold back


class Looking:
    """The catalogue of one link in use, and the coverage that learns from it."""

    def __init__(
        self,
        link: Link,
        coverage: Coverage,
        options: Options,
        *,
        lose: Callable[[NotServing], None],
        is_active: Callable[[int], bool],
        on_look: Callable[[], None],
    ) -> None:
        self.link = link
        self.coverage = coverage
        self.options = options
        self.counters = coverage.counters
        self.up = False
        self._lose = lose
        self._is_active = is_active
        self._on_look = on_look
        self._task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._poll_wanted = False
        self._polled_at = 0
        self._reread_after = 0
        self._manners_at = 0
        self._enrol_at = now_ns() + int(options.enrol_s * 1e9)

    def start(self) -> None:
        """Look from now on, whenever that is due."""
        self.up = True
        self._manners_at = now_ns()
        self._task = asyncio.create_task(self._watch(), name="catalogue")

    def stop(self) -> None:
        """What is found from here on counts no more."""
        self.up = False

    async def close(self) -> None:
        """Returns when nothing is asked any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def soon(self) -> None:
        """Something may be due."""
        self._work.set()

    def poll_soon(self) -> None:
        """Something may have changed the catalogue unseen."""
        if not self._poll_wanted:
            self._poll_wanted = True
            wait = self._polled_at + _POLL_GAP_NS - now_ns()
            if wait > 0:  # whoever calls functions all the time is not worth a look each time
                asyncio.get_running_loop().call_later(wait / 1e9, self._work.set)
                return
        self._work.set()

    def is_due(self, now: int, *, active: bool) -> bool:
        """Is there anything to do by the clock alone?"""
        coverage = self.coverage
        if now - self._manners_at >= _MANNERS_NS or coverage.wants_reread(now):
            return True
        if not active or not coverage.full_at:
            return False
        return now - coverage.full_at >= coverage.full_poll_ns or now - coverage.quick_at >= coverage.quick_poll_ns

    async def _watch(self) -> None:
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while self.up and await self._look():
                    pass
        except NotServing as state:
            self._lose(state)
        except (psycopg.Error, OSError, ValueError, IndexError, StopIteration) as error:
            self._lose(NotServing("reader_lost", f"the catalogue: {error}"[:300]))

    async def _look(self) -> bool:
        """Do one thing that is due; False when nothing is."""
        coverage, now = self.coverage, now_ns()
        polls = bool(coverage.full_at) and self._is_active(now)
        wanted = self._poll_wanted and now - self._polled_at >= _POLL_GAP_NS
        wanted = wanted or coverage.wants_reread(now)
        paused = wanted and now < self._reread_after
        if wanted and not paused:
            self._poll_wanted = False
            self._polled_at = now
            await self._reread()
        elif now - self._manners_at >= _MANNERS_NS:
            self._manners_at = now
            await self._mind_manners(now)
        elif polls and now - coverage.full_at >= coverage.full_poll_ns:
            self.counters.polls += 1
            await self._reread()
        elif polls and now - coverage.quick_at >= coverage.quick_poll_ns:
            self.counters.polls += 1
            quick = await self.link.catalogue.quick()
            if self.up:
                coverage.polled(quick, now)
                if coverage.alarms:
                    self._manners_at = 0  # a reload may have made us a synchronous standby
        else:
            if paused:
                # What changes all the time is looked at now and then: one look answers all alarms of before.
                asyncio.get_running_loop().call_later((self._reread_after - now) / 1e9, self._work.set)
            return False
        if self.up:
            self._on_look()
        return True

    async def _mind_manners(self, now: int) -> None:
        """Hold back no more log than is bearable, and keep the publications complete."""
        kept, insert = await self.link.manners()
        if max(insert - self.coverage.received, kept // _KEPT) > self.options.max_wal_lag:
            raise NotServing("wal_lag", f"the slot holds {kept >> 20} MB of log back")
        await self.link.look_at_publications()
        add = now >= self._enrol_at
        if add:
            self._enrol_at = now + int(self.options.enrol_s * 1e9)
        await self.link.see_to_publications(add=add)

    async def _reread(self) -> None:
        """Look at all of the catalogue, and tell the ledger what follows from it (R6)."""
        coverage, began = self.coverage, now_ns()
        mark = coverage.alarms.mark
        began_lsn = coverage.ledger.words[V]
        settling = bool(coverage.settle_at and began >= coverage.settle_at)
        own = 0

        def differs(view: CatalogueView) -> bool:
            nonlocal own
            if not self.up or (view.fingerprint == coverage.fingerprint and not settling):
                return False
            if view.fingerprint != coverage.fingerprint and not coverage.alarms:
                own = coverage.catalogue_alarm("changed_poll")  # hits stop now, not when all is read
            return True

        found = await self.link.catalogue.look(differs)
        if isinstance(found, Look):
            await self.link.look_at_publications()
        if not self.up:
            return
        if isinstance(found, Look):
            view, settled, insert = found
            # Each process of the server reloads its settings by itself.
            settled = settled and (not coverage.quick or view.quick[RELOADED] == coverage.quick[RELOADED])
        else:
            view, settled, insert = found, False, 0
        took = now_ns() - began
        self.counters.reread_ns += took
        self._reread_after = now_ns() + min(_REREAD_SHARE * took, _REREAD_MOST_NS)
        coverage.reread(
            view, mark=mark, began_at=began, insert=insert, settled=settled, own=own,
            began_lsn=began_lsn,
        )
