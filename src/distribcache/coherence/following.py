"""What goes on while a link is up: the rhythm of probes and of feedback. Looks at the catalogue: ``looking``.

* Probes (R3): at once when a hit waits for a time that no answer covers yet; every 2 ms while a received commit is
  unproved and there is traffic, more slowly while nothing new is proved (a commit that waits for a standby); else
  every quarter of ``max_staleness``, with traffic only. Without traffic once a second as long as something is
  unproved.
* A probe whose position the stream does not reach at once is followed by a ping. If the server has not even flushed
  that far and a hit waits, it is made to flush, every 10 ms at most (R5).
* One timer, 20 times a second while there is traffic and once a second otherwise, does what nobody else calls for,
  and notices connections that have gone silent.

Every callback ends by publishing and by deciding whether the next probe is due (``_drive``). ``lose`` is called when
the link must end; it calls ``stop``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distribcache.clock import now_ns
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.decoding import LEAVE_LOCK, Commit
from distribcache.coherence.link import Link
from distribcache.coherence.looking import Looking
from distribcache.coherence.options import Options
from distribcache.coherence.probe import Answer, Probe
from distribcache.coherence.reader import Reader
from distribcache.coherence.reasons import NotServing
from distribcache.coherence.waiting import Waiting
from distribcache.errors import UpstreamError

__all__ = ["Following"]

_MS = 1_000_000
_UNPROVED_NS = 2 * _MS
_UNPROVED_MOST_NS = 64 * _MS
_FLUSH_NS = 10 * _MS
_NUDGE_S = 0.001
_ACTIVE_NS = 2000 * _MS
_PROBE_LOST_NS = 20_000 * _MS
_STREAM_LOST_NS = 30_000 * _MS
_WHO_ASKS = (
    "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
    "JOIN pg_roles r ON r.oid = a.usesysid JOIN pg_database d ON d.datname = current_database() "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.database = d.oid "
    "AND l.classid::int8 = %s AND l.objid::int8 = %s AND l.objsubid = 2 "
    "AND (r.rolsuper OR r.rolreplication OR r.rolname = current_user OR pg_has_role(r.oid, d.datdba, 'MEMBER')))"
)
"""Superusers, replication roles, the owner of the database, and the cache's own role."""


class Following:
    """One link in use, feeding one coverage."""

    def __init__(self, link: Link, coverage: Coverage, options: Options, lose: Callable[[NotServing], None]) -> None:
        self.link = link
        self.coverage = coverage
        self.options = options
        self.lose = lose
        self.counters = coverage.counters
        self.quarter_ns = int(min(options.max_staleness_s, options.tightest_s) * 1e9) // 4
        self.reader = Reader(
            link.stream,
            on_commit=self._on_commit,
            on_position=coverage.position,
            on_slice=self._on_slice,
            on_lost=lambda error: lose(NotServing("reader_lost", str(error)[:300])),
            plan_of=coverage.watching.plan_of,
            plugin=link.plugin,
        )
        self.probe = Probe(
            link.probe,
            on_answer=self._on_answer,
            on_lost=lambda error: lose(NotServing("reader_lost", f"the probe: {error}"[:300])),
        )
        self.looking = Looking(link, coverage, options, lose=lose, is_active=self._is_active, on_look=self._on_look)
        self.up = False
        self._loop = asyncio.get_running_loop()
        self._leaving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._soon_due = 0  # kept beside the handle: below half a millisecond uvloop returns one that does not know
        self._flushing: asyncio.TimerHandle | None = None
        self._waiting = Waiting()
        self._traffic = True
        self._active_until = 0
        self._answered = 0  # when the newest answered probe was asked
        self._gap_ns = _UNPROVED_NS
        self._flushed_at = 0
        coverage.on_fresh = self._on_fresh

    async def start(self) -> None:
        """Begin to stream. Raises NotServing or psycopg.Error."""
        link = self.link
        self.up = True
        await self.probe.start()
        await link.catalogue.prepare()
        if link.keeping is not None:
            link.keeping.begin(link, self.reader)
        if link.kept is None or link.view is None:
            self.coverage.begin(link.start, link.segment)
        else:
            self.coverage.resume(link.kept, link.view, link.segment)
        try:
            await self.reader.start(link.slot, link.start)
        except UpstreamError as error:
            raise NotServing("reader_lost", error.message) from error
        if link.keeping is not None and not await link.keeping.holds(link):
            raise NotServing("reader_lost", "the slot was moved while it was taken over")
        await link.manners()
        self.reader.allow_feedback()
        self.looking.start()
        self._tick()

    def stop(self) -> None:
        """Nothing is called from here on; hits that wait get False."""
        if not self.up:
            return
        self.up = False
        self.reader.stop()
        self.probe.stop()
        self.looking.stop()
        for timer in (self._timer, self._soon, self._flushing):
            if timer is not None:
                timer.cancel()
        self._waiting.give_up()

    async def close(self) -> None:
        """Stop, and close the connections; returns when the server's processes have ended."""
        self.stop()
        await self.looking.close()
        await self.link.close()

    # -- what hits ask for

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """True as soon as ``fresh_at >= floor_ns``; False after ``timeout_s``, or when the link ends."""
        future = self._waiting.add(floor_ns, timeout_s)
        self.note_traffic()
        if self.coverage.limit_at() < floor_ns:
            self.looking.soon()
        self._drive()
        return future

    def note_traffic(self) -> None:
        """Probes and polls keep up with whoever uses the database."""
        if not self._traffic:
            self._traffic = True
            if self.up and now_ns() > self._active_until:
                if self._timer is not None:
                    self._timer.cancel()
                self._tick()

    # -- the stream and the probe

    def _on_commit(self, commit: Commit) -> None:
        self.coverage.commit(commit)
        if commit.leave and self._leaving is None:
            self._leaving = asyncio.create_task(self._consider_leaving(), name="leave")

    async def _consider_leaving(self) -> None:
        """Leave, if somebody asks who may: any user can write the message, and would else keep the cache away."""
        try:
            rows = await self.link.catalogue.ask(_WHO_ASKS, LEAVE_LOCK)
            if self.up and rows[0][0]:
                self.lose(NotServing("asked_to_leave"))
        except UpstreamError:
            pass  # the link is ending
        finally:
            self._leaving = None

    def _on_slice(self) -> None:
        coverage = self.coverage
        coverage.publish()
        if coverage.alarms and coverage.wants_reread(0):
            self.looking.soon()
        self._drive()

    def _on_answer(self, answer: Answer) -> None:
        asked_at, received, snapshot, insert, flushed = answer
        coverage, visibility = self.coverage, self.coverage.visibility
        proved = visibility.proved
        if not coverage.observe(asked_at, received, snapshot, insert):
            self.lose(NotServing("log_went_back"))
            return
        self._answered = asked_at
        self.counters.probe_ns += now_ns() - asked_at
        self._gap_ns = _UNPROVED_NS if visibility.proved > proved else min(2 * self._gap_ns, _UNPROVED_MOST_NS)
        coverage.publish()
        if insert - coverage.received > self.options.max_wal_lag:
            self.lose(NotServing("wal_lag", f"the change stream is {(insert - coverage.received) >> 20} MB behind"))
            return
        if coverage.wants_reread(0):
            self.looking.soon()
        if coverage.pending:
            self._nudge(flush=flushed < coverage.pending[-1][1])
        self._drive()

    def _nudge(self, *, flush: bool) -> None:
        """The stream has not reached a position: ask where it is, and soon have the log flushed if that is missing."""
        if not self.up:
            return
        self.counters.pings += 1
        self.reader.ping()
        if flush and self._flushing is None:
            self._flushing = self._loop.call_later(_NUDGE_S, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        coverage, now = self.coverage, now_ns()
        late = bool(coverage.pending) and bool(self._waiting)
        if not self.up or not self.probe.may_flush or not (late or coverage.applied < coverage.target):
            return
        wait = self._flushed_at + _FLUSH_NS - now
        if wait <= 0 and self.probe.flush():
            self._flushed_at = now
            self.counters.flushes += 1
        else:
            self._flushing = self._loop.call_later(max(_NUDGE_S, wait / 1e9), self._flush)

    def _on_fresh(self, fresh_at: int) -> None:
        self.counters.fences += 1
        self._waiting.reached(fresh_at)

    def _on_look(self) -> None:
        self.coverage.publish()
        if self.coverage.applied < self.coverage.target:
            self._nudge(flush=True)
        self._drive()

    def _drive(self) -> None:
        """Send the next probe, now or a little later, if one is due."""
        if not self.up or self.probe.busy:
            return
        coverage, now = self.coverage, now_ns()
        self._waiting.prune()
        visibility = coverage.visibility
        if not visibility.seen_start or self._waiting.beyond(self._answered):
            self.probe.ask(coverage.received)
            return
        active = self._is_active(now)
        if len(visibility):
            gap = self._gap_ns if active else 1000 * _MS
        elif active:
            gap = self.quarter_ns
        else:
            return
        due = self._answered + gap
        if now >= due:
            self.probe.ask(coverage.received)
        elif self._soon is None or self._soon_due > due + _MS // 2:
            if self._soon is not None:
                self._soon.cancel()
            self._soon_due = due
            self._soon = self._loop.call_later((due - now) / 1e9, self._later)

    def _later(self) -> None:
        self._soon = None
        self._drive()

    def _is_active(self, now: int) -> bool:
        # Until hits are possible there is work to do, traffic or not.
        return self._traffic or now < self._active_until or not self.coverage.serving

    # -- the timer

    def _tick(self) -> None:
        self._timer = None
        now = now_ns()
        if self._traffic:
            self._traffic = False
            self._active_until = now + _ACTIVE_NS
        self.reader.tick(now)
        if self.up and self.probe.asked_at and now - self.probe.asked_at > _PROBE_LOST_NS:
            self.lose(NotServing("reader_lost", "the probe got no answer"))
        if self.up and now - self.reader.heard_at > _STREAM_LOST_NS:
            self.lose(NotServing("reader_lost", "the change stream is silent"))
        if self._stopped():
            return
        active = self._is_active(now)
        if self.looking.is_due(now, active=active):
            self.looking.soon()
        self._drive()
        if self.link.keeping is not None:
            self.link.keeping.tick(now)
        self._timer = self._loop.call_later(0.05 if active else 1.0, self._tick)

    def _stopped(self) -> bool:
        return not self.up
