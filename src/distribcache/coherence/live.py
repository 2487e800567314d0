"""One database that is followed through its change stream: the face that the proxy sees, and what drives it.

The rules live in ``coverage`` (pure); here are the connections, the clocks and the tasks:

* one task connects, waits until the link is lost, and connects again with a growing pause. ``start`` never fails: a
  database that cannot be followed is simply not served, with a reason and a hint;
* the stream and the probe call back on the event loop; every callback ends by publishing and by deciding whether the
  next probe is due (``_drive``);
* one task reads the catalogue again when an alarm, a poll or the settling of a change asks for it;
* one timer, 20 times a second while there is traffic and once a second otherwise.

Probes (R3): at once when a hit waits; every 2 ms at most while a received commit is unproved and there is traffic;
else every quarter of ``max_staleness``, with traffic only. A probe whose position the stream does not reach at once
is followed by a ping, and if the server has not even flushed that far and a hit waits, by one flush per 10 ms at most
(R5).

If any of the three connections is lost, all are closed and the next link begins a new epoch. Losing only a side
connection leaves no hole, but proving that the next one reaches the same server is worth less than a simple rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from distribcache.clock import now_ns
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.ledger import FLOORS, FRESH_AT, Ledger, V, W
from distribcache.coherence.link import Link, ServerIdentity
from distribcache.coherence.lsn import format_lsn
from distribcache.coherence.options import Options
from distribcache.coherence.probe import Answer, Probe
from distribcache.coherence.reader import Reader
from distribcache.coherence.reasons import REASONS, NotServing
from distribcache.errors import UpstreamError

__all__ = ["DatabaseCoherence"]

_MS = 1_000_000
_UNPROVED_NS = 2 * _MS
_FLUSH_NS = 10 * _MS
_NUDGE_S = 0.001
_ACTIVE_NS = 2000 * _MS
_MANNERS_NS = 5000 * _MS
_PROBE_LOST_NS = 20_000 * _MS
_STREAM_LOST_NS = 30_000 * _MS
_KEPT = 16  # times max_wal_lag: what other people's open transactions may make our slot hold back

Log = Callable[[str], None]


class DatabaseCoherence:
    """See the module. ``conninfo`` is for libpq, without the database; ``log`` takes lines for people."""

    mode = "wal"

    def __init__(self, conninfo: str, name: str, options: Options | None = None, log: Log = lambda _: None) -> None:
        self.name = name
        self.options = options or Options()
        self.ledger = Ledger(self.options.tables)
        self.words = self.ledger.words
        self.counters = Freshness()
        self.max_staleness_ns = int(self.options.max_staleness_s * 1e9)
        self.identity: ServerIdentity | None = None
        self.server_version_num = 0
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.coverage = Coverage(
            self.ledger,
            self.counters,
            full_poll_ns=int(self.options.schema_poll_s * 1e9),
            quick_poll_ns=int(self.options.quick_poll_s * 1e9),
            on_fresh=self._on_fresh,
        )
        self._conninfo = make_conninfo(conninfo, dbname=name)
        self._log = log
        self._state: NotServing | None = NotServing("starting")
        self._link: Link | None = None
        self._reader: Reader | None = None
        self._probe: Probe | None = None
        self._lost: asyncio.Future[NotServing] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._work = asyncio.Event()
        self._poll_wanted = False
        self._waiters: list[tuple[int, asyncio.Future[bool]]] = []
        self._traffic = False
        self._active_until = 0
        self._newest_asked = 0
        self._flushed_at = 0
        self._manners_at = 0
        self._soon: asyncio.TimerHandle | None = None
        self._nudging = False

    # -- what the proxy asks

    @property
    def epoch(self) -> int:
        return self.coverage.epoch

    @property
    def serving(self) -> bool:
        return self.coverage.serving

    @property
    def reason(self) -> str:
        """A stable code while nothing is served, else empty."""
        if self.coverage.serving:
            return ""
        if self._state is not None:
            return self._state.reason
        pending = self.coverage.alarms.pending
        if pending:
            return "starting" if pending[0].reason == "starting" else "catalogue_alarm"
        return "catching_up"

    @property
    def detail(self) -> str:
        reason = self.reason
        if reason and self._state is not None:
            return self._state.detail
        return REASONS[reason][0] if reason else ""

    @property
    def hint(self) -> str:
        reason = self.reason
        if reason and self._state is not None:
            return self._state.remedy
        return REASONS[reason][1] if reason else ""

    @property
    def floor_ns(self) -> int:
        return self.words[FLOORS]

    def raise_floor(self, now: int) -> None:
        """An exchange through this node ended that was not a proven pure read: older knowledge is too old (R4)."""
        if now > self.words[FLOORS]:
            self.words[FLOORS] = now

    def fill_point(self) -> int | None:
        """V for a fill that begins now; None when nothing may be filled."""
        return self.coverage.fill_point()

    def visible(self) -> int:
        """The position that dates an analysis begun now; 0 when none can be dated, which no entry survives."""
        return self.coverage.fill_point() or 0

    def schema_lsn(self) -> int:
        """An analysis older than this is outdated."""
        return self.coverage.schema_lsn

    def slot_of(self, oid: int) -> int:
        """The ledger slot of a relation."""
        return self.coverage.slot_of(oid)

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """True as soon as ``fresh_at >= floor_ns``; False after ``timeout_s``, or when the link is lost."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if self.words[FRESH_AT] >= floor_ns:
            future.set_result(True)
        elif self._probe is None:
            future.set_result(False)
        else:
            self._waiters.append((floor_ns, future))
            timer = loop.call_later(timeout_s, _resolve, future, False)
            future.add_done_callback(lambda _: timer.cancel())
            self.note_traffic()
            if self.coverage.limit_at() < floor_ns:
                self._work.set()
            self._drive()
        return future

    def catalogue_alarm(self, reason: str) -> None:
        """A DDL, GRANT or REVOKE was seen, and is about to be acknowledged: no hit until the catalogue was read again.

        Call it when the server has ended the transaction, before its client is told.
        """
        self.coverage.catalogue_alarm(reason)
        self._work.set()

    def schedule_poll(self) -> None:
        """Something opaque ran that may have changed the catalogue: look soon."""
        self._poll_wanted = True
        self._work.set()

    def note_traffic(self) -> None:
        """Somebody uses this database: probes and polls keep up with it."""
        if not self._traffic:
            self._traffic = True
            if now_ns() > self._active_until:
                self._wake()

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """A question about the catalogue on the cache's own connection. Raises UpstreamError."""
        link = self._link
        if link is None or self._probe is None:
            raise UpstreamError("this database is not followed now", where=self.name, hint=self.hint)
        return await link.catalogue.ask(sql, params)

    def report(self) -> dict[str, object]:
        """Names and values for ``SHOW distribcache.freshness``."""
        coverage, counters, now = self.coverage, self.counters, now_ns()
        fresh_at = self.words[FRESH_AT]
        insert = coverage.highest_insert
        counters.lag_bytes = max(0, insert - coverage.received) if insert else 0
        return {
            "mode": self.mode,
            "serving": self.serving,
            "reason": self.reason or None,
            "detail": self.detail or None,
            "hint": self.hint or None,
            "staleness_ms": round((now - fresh_at) / 1e6, 3) if fresh_at else None,
            "applied": format_lsn(self.words[W]),
            "visible": format_lsn(self.words[V]),
            "schema": format_lsn(self.schema_lsn()) if coverage.running else None,
            "epoch": self.epoch,
            "unproved_commits": len(coverage.visibility),
            "pending_alarms": len(coverage.alarms.pending),
            **{name: getattr(counters, name) for name in counters.__slots__},
        }

    # -- life

    async def start(self) -> None:
        """Begin to follow the database. Never raises; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"coherence {self.name}")

    async def stop(self) -> None:
        """Leave the database: afterwards nothing of ours is connected to it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self._end(NotServing("stopped"))

    async def _run(self) -> None:
        pause = self.options.retry_min_s
        was_up = False
        while True:
            began = now_ns()
            try:
                end = await self._follow(was_up=was_up)
                was_up = True
                self.counters.reconnects += 1
            except NotServing as state:
                end = state
            except Exception as error:  # noqa: BLE001 - whatever it is, reads go to PostgreSQL and we try again
                end = NotServing("unreachable", f"{type(error).__name__}: {error}"[:300])
            self._end(end)
            if now_ns() - began > 10_000 * _MS:
                pause = self.options.retry_min_s
            await asyncio.sleep(pause)
            pause = min(2 * pause, self.options.retry_max_s)

    async def _follow(self, *, was_up: bool) -> NotServing:
        """One link from its beginning to its end; returns why it ended. Raises NotServing when it did not come up."""
        link = Link(self._conninfo, self.options, self._say)
        catalogue: asyncio.Task[None] | None = None
        try:
            await link.open(was_up=was_up)
            self._lost = asyncio.get_running_loop().create_future()
            await self._begin(link)
            catalogue = asyncio.create_task(self._watch(link), name=f"catalogue {self.name}")
            return await self._lost
        finally:
            self._detach()
            if catalogue is not None:
                catalogue.cancel()
                await asyncio.wait({catalogue})
            await asyncio.shield(asyncio.ensure_future(link.close()))

    async def _begin(self, link: Link) -> None:
        reader = Reader(
            link.stream,
            on_commit=self.coverage.commit,
            on_position=self.coverage.position,
            on_slice=self._on_slice,
            on_lost=lambda error: self._lose(NotServing("reader_lost", str(error)[:300])),
        )
        probe = Probe(
            link.probe,
            on_answer=self._on_answer,
            on_lost=lambda error: self._lose(NotServing("reader_lost", f"the probe: {error}"[:300])),
        )
        await probe.start()
        self.coverage.begin(link.start, link.segment)
        try:
            await reader.start(link.slot, link.start)
        except UpstreamError as error:
            raise NotServing("reader_lost", error.message) from error
        self._link, self._reader, self._probe = link, reader, probe
        self.identity, self.server_version_num = link.identity, link.version
        self._newest_asked = 0
        await link.manners()
        reader.allow_feedback()
        self._manners_at = now_ns()
        self._state = None
        self._wake()
        self._drive()

    def _say(self, state: NotServing) -> None:
        if self._state is None or (state.reason, state.detail) != (self._state.reason, self._state.detail):
            self._log(f"{self.name}: not cached ({state.reason}): {state.detail}; {state.remedy}")
        self._state = state

    def _lose(self, state: NotServing) -> None:
        """The link has ended: nothing is served from this moment on."""
        if self._lost is not None and not self._lost.done():
            self._end(state)
            self._lost.set_result(state)

    def _end(self, state: NotServing) -> None:
        if state.reason not in {"starting", "stopped"}:
            self.counters.last_error = f"{state.reason}: {state.detail}"[:300]
        self._say(state)
        self._detach()
        if self.coverage.running:
            self.coverage.end()
            for listener in self.epoch_listeners:
                listener(self.epoch)
        waiters, self._waiters = self._waiters, []
        for _, future in waiters:
            _resolve(future, False)

    def _detach(self) -> None:
        if self._reader is not None:
            self.counters.rows += self._reader.rows
            self._reader.stop()
        if self._probe is not None:
            self._probe.stop()
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        self._timer = self._soon = None
        self._link = self._reader = self._probe = None

    # -- the stream and the probe

    def _on_slice(self) -> None:
        coverage = self.coverage
        coverage.publish()
        if coverage.alarms and coverage.wants_reread(0):
            self._work.set()
        self._drive()

    def _on_answer(self, answer: Answer) -> None:
        asked_at, received, snapshot, insert, flushed = answer
        self.counters.probe_ns += now_ns() - asked_at
        coverage = self.coverage
        if not coverage.observe(asked_at, received, snapshot, insert):
            self._lose(NotServing("log_went_back"))
            return
        self._newest_asked = asked_at
        coverage.publish()
        if coverage.wants_reread(0):
            self._work.set()
        if insert - coverage.received > self.options.max_wal_lag:
            self._lose(NotServing("wal_lag", f"{(insert - coverage.received) >> 20} MB behind"))
            return
        if coverage.pending:
            self._nudge(flush=flushed < coverage.pending[0][1])
        self._drive()

    def _nudge(self, *, flush: bool) -> None:
        """The stream has not reached a position: ask where it is, and soon have the log flushed if that is missing."""
        reader = self._reader
        if reader is None or self._nudging:
            return
        self.counters.pings += 1
        reader.ping()
        if flush and self._waiters:
            self._nudging = True
            asyncio.get_running_loop().call_later(_NUDGE_S, self._flush)

    def _flush(self) -> None:
        self._nudging = False
        probe, now = self._probe, now_ns()
        if probe is None or not self._waiters or not self.coverage.pending:
            return
        if now - self._flushed_at >= _FLUSH_NS and probe.flush():
            self._flushed_at = now
            self.counters.flushes += 1

    def _on_fresh(self, fresh_at: int) -> None:
        self.counters.fences += 1
        if not self._waiters:
            return
        still: list[tuple[int, asyncio.Future[bool]]] = []
        for floor, future in self._waiters:
            if floor <= fresh_at:
                _resolve(future, True)
            elif not future.done():
                still.append((floor, future))
        self._waiters = still

    def _drive(self) -> None:
        """Send the next probe, now or a little later, if one is due."""
        probe = self._probe
        if probe is None or probe.busy:
            return
        coverage, now = self.coverage, now_ns()
        if self._waiters:
            self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]
        visibility = coverage.visibility
        if not visibility.seen_start or any(floor > self._newest_asked for floor, _ in self._waiters):
            probe.ask(coverage.received)
            return
        if len(visibility) and self._is_active(now):
            due = self._newest_asked + _UNPROVED_NS
        elif self._is_active(now):
            due = self._newest_asked + self.max_staleness_ns // 4
        elif len(visibility) or coverage.alarms:
            due = self._newest_asked + 1000 * _MS
        else:
            return
        if now >= due:
            probe.ask(coverage.received)
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_later((due - now) / 1e9, self._later)

    def _later(self) -> None:
        self._soon = None
        self._drive()

    def _is_active(self, now: int) -> bool:
        # Until hits are possible there is work to do, traffic or not.
        return now < self._active_until or self._traffic or not self.coverage.serving

    # -- the timer

    def _wake(self) -> None:
        if self._probe is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._tick()

    def _tick(self) -> None:
        self._timer = None
        now = now_ns()
        if self._traffic:
            self._traffic = False
            self._active_until = now + _ACTIVE_NS
        reader, probe = self._reader, self._probe
        if reader is None or probe is None:
            return
        reader.tick(now)
        if self._probe is None:
            return
        if probe.asked_at and now - probe.asked_at > _PROBE_LOST_NS:
            self._lose(NotServing("reader_lost", "the probe got no answer"))
            return
        if now - reader.heard_at > _STREAM_LOST_NS:
            self._lose(NotServing("reader_lost", "the change stream is silent"))
            return
        active = self._is_active(now)
        if self._due(now, active=active):
            self._work.set()
        self._drive()
        self._timer = asyncio.get_running_loop().call_later(0.05 if active else 1.0, self._tick)

    def _due(self, now: int, *, active: bool) -> bool:
        coverage = self.coverage
        if now - self._manners_at >= _MANNERS_NS or coverage.wants_reread(now):
            return True
        if not active or not coverage.full_at:
            return False
        return now - coverage.full_at >= coverage.full_poll_ns or now - coverage.quick_at >= coverage.quick_poll_ns

    # -- the catalogue

    async def _watch(self, link: Link) -> None:
        """Look at the catalogue whenever that is due."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while await self._look(link):
                    pass
        except NotServing as state:
            self._lose(state)
        except (psycopg.Error, OSError, ValueError, IndexError, StopIteration) as error:
            self._lose(NotServing("reader_lost", f"the catalogue: {error}"[:300]))

    async def _look(self, link: Link) -> bool:
        """Do one thing that is due; False when nothing is."""
        coverage, now = self.coverage, now_ns()
        active = self._is_active(now)
        if coverage.wants_reread(now) or self._poll_wanted:
            self._poll_wanted = False
            await self._reread(link)
        elif now - self._manners_at >= _MANNERS_NS:
            self._manners_at = now
            kept, insert = await link.manners()
            if max(insert - coverage.received, kept // _KEPT) > self.options.max_wal_lag:
                raise NotServing("wal_lag", f"the slot holds {kept >> 20} MB of log back")
        elif active and coverage.full_at and now - coverage.full_at >= coverage.full_poll_ns:
            self.counters.polls += 1
            await self._reread(link)
        elif active and coverage.full_at and now - coverage.quick_at >= coverage.quick_poll_ns:
            self.counters.polls += 1
            coverage.polled(await link.catalogue.quick(), now)
        else:
            return False
        coverage.publish()
        self._drive()
        return True

    async def _reread(self, link: Link) -> None:
        """Look at all of the catalogue, and tell the ledger what follows from it (R6)."""
        coverage, began = self.coverage, now_ns()
        epoch, mark = coverage.epoch, coverage.alarms.mark
        view, insert = await link.catalogue.fingerprint(), 0
        settling = bool(coverage.settle_at and began >= coverage.settle_at)
        if coverage.epoch == epoch and (view.fingerprint != coverage.fingerprint or settling):
            if not coverage.alarms and view.fingerprint != coverage.fingerprint:
                coverage.catalogue_alarm("changed_poll")
            began, mark = now_ns(), coverage.alarms.mark
            view, insert = await link.catalogue.read_all()
        if coverage.epoch != epoch:
            return
        self.counters.reread_ns += now_ns() - began
        coverage.reread(view, mark=mark, began_at=began, insert=insert)
        coverage.publish()
        if coverage.applied < coverage.target:
            self._nudge(flush=True)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
