"""One database that is followed through its change stream: the face that the proxy sees, and its life.

The rules live in ``coverage`` (pure), what goes on while a link is up in ``following``, opening and checking
connections in ``link``. Here one task connects, waits until the link is lost, and connects again with a growing
pause. ``start`` never fails: a database that cannot be followed is not served, with a reason and a hint, and reads go
to PostgreSQL.

If any of the three connections is lost, all are closed and the next link begins a new epoch (R8). Losing only a side
connection leaves no hole, but proving that the next one reaches the same server is worth less than a simple rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from psycopg.conninfo import make_conninfo

from distribcache.clock import now_ns
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.epoch import digest, server_epoch
from distribcache.coherence.following import Following
from distribcache.coherence.freshness import Freshness, Watched
from distribcache.coherence.keeping import Keeping
from distribcache.coherence.ledger import FLOORS, FRESH_AT, UNKNOWN, Columns, Ledger, V, W
from distribcache.coherence.link import Link, ServerIdentity
from distribcache.coherence.lsn import format_lsn
from distribcache.coherence.options import Options
from distribcache.coherence.reasons import REASONS, NotServing
from distribcache.errors import UpstreamError

__all__ = ["DatabaseCoherence"]

_STEADY_NS = 10_000_000_000
_LONG_PAUSES_S = {"template_database": 60.0, "asked_to_leave": 30.0}
"""After these, coming back at once would be in somebody's way."""

Log = Callable[[str], None]


class DatabaseCoherence:
    """See the module. ``conninfo`` is for libpq, without the database; ``log`` takes lines for people. With ``workers``
    the ledger lies in the memory of ``fd``, which they share.
    """

    mode = "wal"

    def __init__(
        self, conninfo: str, name: str, options: Options | None = None, log: Log = lambda _: None, *,
        workers: int = 0, fd: int = -1,
    ) -> None:  # fmt: skip
        self.name = name
        self.options = options or Options()
        self.ledger = Ledger(self.options.tables, fd=fd)
        self.words = self.head = self.ledger.words
        self.floors: memoryview | None = None
        self.alarmed: memoryview | None = None
        self.counters = Freshness()
        self.max_staleness_ns = int(self.options.max_staleness_s * 1e9)
        self.identity: ServerIdentity | None = None
        self.server_version_num = 0
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.alarm_listeners: list[Callable[[str], None]] = []
        self.coverage = Coverage(
            self.ledger,
            self.counters,
            full_poll_ns=int(self.options.schema_poll_s * 1e9),
            quick_poll_ns=int(self.options.quick_poll_s * 1e9),
            workers=workers,
        )
        self.coverage.on_heard = self._alarmed
        self._conninfo = make_conninfo(conninfo, dbname=name)
        self._log = log
        self._keeping = self._make_keeping()
        self.for_good = False
        """Nobody is expected back: with ``stop`` a persistent slot goes too."""
        self._state: NotServing | None = NotServing("starting")
        self._following: Following | None = None
        self._lost: asyncio.Future[NotServing] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- what the proxy asks

    @property
    def epoch(self) -> int:
        return self.coverage.epoch

    @property
    def serving(self) -> bool:
        return self.coverage.serving

    @property
    def plugin(self) -> str:
        """The output plugin of the present stream; empty when there is none."""
        return "" if self._following is None else self._following.link.plugin

    @property
    def where(self) -> dict[str, str]:
        """Host, port and address of the server that is followed; empty while none is."""
        return {} if self._following is None else self._following.link.where

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

    @property
    def looked_at(self) -> int:
        """When the last complete look at the whole catalogue began; 0 when there was none."""
        return self.coverage.full_at

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

    def confirmed(self) -> int:
        """A position at which every analysis that is not outdated was looked at again and still held.

        It dates what is given to other nodes: they may have seen a change of the catalogue that this one has yet to.
        """
        return self.coverage.confirmed

    def shared_epoch(self) -> bytes:
        """The server's epoch (R8), under which positions mean the same to every node; empty when there is none."""
        return b"" if self.identity is None else server_epoch(self.identity, self.ledger.row_slots)

    def own_epoch(self) -> bytes:
        """The server's epoch and this coverage's nonce; empty when there is none."""
        shared = self.shared_epoch()
        return shared and digest(shared, self.coverage.nonce)

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        """What slots stand for, in the words of all ledgers; None when that cannot be said."""
        return self.ledger.tags_of(slots)

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        """The slots of tags that some ledger wrote; None when they are not all followed here."""
        known = self.coverage.relations.oids  # whoever writes tags of others takes no slots here
        return self.ledger.slots_for(tags, lambda oid: self.slot_of(oid) if oid in known else UNKNOWN)

    def slot_of(self, oid: int) -> int:
        """The ledger slot of a relation."""
        return self.coverage.slot_of(oid)

    def watch(self, oid: int, columns: Columns) -> int:
        """Begin to follow the rows of a relation by these columns (sorted by name), before F is read (R2).

        The slot of the set's wildcard, which belongs to every entry that has a ``row_slot`` of the set. 0: there is no
        room, or rows can not be told here; the entry takes ``slot_of`` instead.
        """
        return self.coverage.watch(oid, columns)

    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int:
        """The slot of the rows with these values, each as the change stream prints it, without quotes."""
        return self.ledger.row_slot(oid, columns, values)

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """True as soon as ``fresh_at >= floor_ns``; False after ``timeout_s``, or when the link is lost."""
        following = self._following
        fresh = self.words[FRESH_AT] >= floor_ns
        if fresh or following is None:
            future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            future.set_result(fresh)
            return future
        began = now_ns()

        def waited(future: asyncio.Future[bool]) -> None:
            self.counters.waits += 1
            self.counters.waits_late += future.cancelled() or not future.result()
            self.counters.wait_ns += now_ns() - began

        future = following.wait_fresh(floor_ns, timeout_s)
        future.add_done_callback(waited)
        return future

    def catalogue_alarm(self, reason: str) -> None:
        """A DDL, GRANT or REVOKE was seen, and is about to be acknowledged: no hit until the catalogue was read again.

        Call it when the server has ended the transaction, before its client is told.
        """
        self.coverage.catalogue_alarm(reason)
        self._alarmed()

    def hear(self, reason: str) -> None:
        """A worker says that it has raised an alarm."""
        self.coverage.hear(reason)

    def _alarmed(self) -> None:
        if self._following is not None:
            self._following.looking.soon()
        for listener in self.alarm_listeners:
            listener(self.name)

    def schedule_poll(self) -> None:
        """Something opaque ran that may have changed the catalogue: look soon."""
        if self._following is not None:
            self._following.looking.poll_soon()

    def note_traffic(self) -> None:
        """Somebody uses this database: probes and polls keep up with it."""
        if self._following is not None:
            self._following.note_traffic()

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """A question about the catalogue on the cache's own connection. Raises UpstreamError."""
        following = self._following
        if following is None:
            raise UpstreamError("this database is not followed now", where=self.name, hint=self.hint)
        return await following.link.catalogue.ask(sql, params)

    def report(self) -> dict[str, object]:
        """Names and values for ``SHOW distribcache.freshness``."""
        coverage, counters, now = self.coverage, self.counters, now_ns()
        fresh_at = self.words[FRESH_AT]
        insert = coverage.highest_insert
        counters.lag_bytes = max(0, insert - coverage.received) if insert else 0
        return {
            "mode": self.mode,
            "plugin": self.plugin or None,
            "serving": self.serving,
            "reason": self.reason or None,
            "detail": self.detail or None,
            "hint": self.hint or None,
            "staleness_ms": round((now - fresh_at) / 1e6, 3) if fresh_at else None,
            "lag_seconds": round((now - coverage.pending[0][0]) / 1e9, 6) if coverage.pending else 0.0,
            "applied": format_lsn(self.words[W]),
            "visible": format_lsn(self.words[V]),
            "schema": format_lsn(self.schema_lsn()) if coverage.running else None,
            "epoch": self.epoch,
            "unproved_commits": len(coverage.visibility),
            "pending_alarms": len(coverage.alarms.pending),
            "column_sets": len(coverage.watching),
            **counters.report(),
        }

    def watched(self) -> list[Watched]:
        """The column sets by which rows are told, and what would help them."""
        return self.coverage.watching.report()

    # -- life

    async def start(self) -> None:
        """Begin to follow the database. Never raises; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"coherence {self.name}")

    async def stop(self) -> None:
        """Leave the database: afterwards nothing of ours is connected to it."""
        if self._keeping is not None and not self.for_good:
            await self._keeping.finish()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            # Cancelled while it was closing already: that goes on by itself.
            if self._closing is not None:
                await asyncio.wait({self._closing})
        self._end(NotServing("stopped"))
        if self._keeping is not None:
            if self.for_good:
                await self._keeping.drop(self._conninfo)
            self._keeping.close()

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
            if now_ns() - began > _STEADY_NS:
                pause = self.options.retry_min_s
            await asyncio.sleep(_LONG_PAUSES_S.get(end.reason, pause))
            pause = min(2 * pause, self.options.retry_max_s)

    async def _follow(self, *, was_up: bool) -> NotServing:
        """One link from its beginning to its end; returns why it ended. Raises NotServing when it did not come up."""
        link = Link(self._conninfo, self.options, self._say, self._keeping)
        following: Following | None = None
        try:
            await link.open(was_up=was_up)
            self._lost = asyncio.get_running_loop().create_future()
            self.identity, self.server_version_num = link.identity, link.version
            following = self._following = Following(link, self.coverage, self.options, self._lose)
            await following.start()
            self._state = None
            self._log(f"{self.name}: following the change stream from {format_lsn(link.start)}")
            return await self._lost
        finally:
            self._following = None
            self._closing = asyncio.ensure_future(following.close() if following is not None else link.close())
            await asyncio.shield(self._closing)

    def _make_keeping(self) -> Keeping | None:
        options = self.options
        if options.keep_at is None:
            return None
        return Keeping(
            options.keep_at, self.coverage, lambda line: self._log(f"{self.name}: {line}"),
            wanted=options.slot == "persistent", most_behind=options.max_wal_lag // 4, every_s=options.keep_s,
        )

    def _say(self, state: NotServing) -> None:
        old, self._state = self._state, state
        if old is not None and (state.reason, state.detail) == (old.reason, old.detail):
            return
        if state.reason == "stopped":  # nothing is wrong
            self._log(f"{self.name}: no longer followed")
        else:
            self._log(f"{self.name}: not cached ({state.reason}): {state.detail}; {state.remedy}")

    def _lose(self, state: NotServing) -> None:
        """The link has ended: nothing is served from this moment on."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(state)
            self._end(state)

    def _end(self, state: NotServing) -> None:
        if state.reason != "stopped":
            self.counters.last_error = f"{state.reason}: {state.detail}"[:300]
        self._say(state)
        if self.coverage.running:
            self.counters.epoch_changes_by[state.reason] += 1
            if self._keeping is not None:
                self._keeping.end(hole=state.reason != "stopped")
            self.coverage.end()
            for listener in self.epoch_listeners:
                listener(self.epoch)
        if self._following is not None:
            self._following.stop()
            self._following = None
