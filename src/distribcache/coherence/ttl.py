"""``invalidation = "ttl"``: an explicit choice to let only time end an entry.

No stream, no proof: ``fresh_at`` and W are always satisfied, and every status view says ``ttl``. What is promised: an
answer was PostgreSQL's to this very identity, no longer ago than its TTL. Where positions of the log stand elsewhere,
the time of day stands here, in microseconds, so that other nodes and later processes can compare it.

Changes of the catalogue end more than was promised, because that costs little:

* DDL seen by the proxy drops everything that this process has, at once;
* so does a look at the whole catalogue that finds another fingerprint than the last one. There is one a minute while
  there is traffic, and three behind DDL, because counters in the fingerprint lag by seconds.

Rules for the tiers below memory:
1. Their epoch is a digest of the server, its start, the database and the fingerprint of the last look. Who has seen
   another catalogue, on another node or after a restart, does not find what was placed under this one.
2. Nothing is placed or found before the first look, nor between DDL and the end of a look that began behind it, nor
   while looks fail.
3. The schema slot is the moment of the last drop. What was analysed before it, and not confirmed by a look since, is
   not valid here any more (R1), wherever it lies: a right that came and went may leave no trace in a fingerprint.
   And a statement that was prepared before it is executed upstream first: its client may know the old result types.
4. Only sessions on the very server that was looked at take part (``reaches``, R9): with several hosts in the URL
   there may be others.

The one connection is opened when first needed and again after a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from distribcache.catalog.generation import FINGERPRINT_SQL
from distribcache.clock import now_ns, wall_time
from distribcache.coherence.catalogue import LOCK_MS, STATEMENT_MS
from distribcache.coherence.connections import Connection, connect
from distribcache.coherence.epoch import VERSION, digest
from distribcache.coherence.ledger import EPOCH, FLOORS, FRESH_AT, NEVER, SCHEMA, Ledger, V, W, next_epoch
from distribcache.coherence.link import IDENTITY
from distribcache.coherence.options import Options
from distribcache.coherence.questions import Questions
from distribcache.coherence.scope import ServerFacts
from distribcache.coherence.unfollowed import Unfollowed
from distribcache.errors import UpstreamError

__all__ = ["TtlOnly", "reaches"]

_S: Final = 1_000_000_000
_LOOK_NS: Final = 60 * _S
_BEHIND_DDL_NS: Final = (1 * _S, 10 * _S)
_RETRY_NS: Final = 5 * _S
_LOOK: Final = (
    f"SELECT i.*, d.oid::int8, f.hashes, f.roles FROM ({IDENTITY}) AS i(system, began, standby), pg_database AS d, "
    f"({FINGERPRINT_SQL}) AS f(snapshot, hashes, roles) WHERE d.datname = current_database()"
)


class TtlOnly(Unfollowed):
    """The same face as ``DatabaseCoherence``, without coherence. Without a name there is no database to look at."""

    mode = "ttl"

    def __init__(
        self, conninfo: str, name: str, options: Options | None = None, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self.options = options or Options()
        super().__init__(name, Ledger(self.options.tables, 1), NEVER)
        self.alarm_listeners: list[Callable[[str, str], None]] = []
        self.epoch = 0
        self.serving = True
        self.reason = ""
        self.detail = "only time ends an entry: answers may be as old as their TTL"
        self.hint = "set freshness.invalidation to wal" if name else "set upstream.url: then commits end entries"
        self.server: tuple[object, ...] = ()
        """The server that was looked at: its system identifier and start, and whether it is a standby."""
        self._conninfo = make_conninfo(conninfo, dbname=name)
        self._questions = Questions(self._connect)
        self._log = log
        self._said = ""
        self._view: tuple[object, ...] = ()
        self._shared = b""
        self._confirmed = 0
        self._outdated = 0
        self._last = 0
        self._drops = 0
        self._due = 0
        self._soon: list[int] = []
        self._looking: asyncio.Task[None] | None = None
        self._renew(0)

    def _renew(self, schema: int) -> None:
        self.epoch = next_epoch()
        self.words[SCHEMA] = schema
        self.words[EPOCH] = self.epoch
        self.words[W] = self.words[V] = self.words[FRESH_AT] = NEVER

    def _moment(self) -> int:
        """The time of day; it does not go back within a process."""
        self._last = max(int(wall_time() * 1e6), self._last + 1)
        return self._last

    @property
    def floor_ns(self) -> int:
        return self.words[FLOORS]

    def raise_floor(self, now: int) -> None:
        """Nothing here is fresher than anything else."""

    def fill_point(self) -> int | None:
        return self._moment()

    def visible(self) -> int:
        return self._moment()

    def schema_lsn(self) -> int:
        """Analyses older than the last look are made again, so what was not there once may be found later."""
        return max(self._outdated, self.words[SCHEMA])

    # -- below memory

    def confirmed(self) -> int:
        return self._confirmed

    def shared_epoch(self) -> bytes:
        """See rules 1 and 2."""
        return self._shared

    def own_epoch(self) -> bytes:
        """The same: a record of our own has no other end than one of another node."""
        return self._shared

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        """Nobody touches any slot."""
        return () if self._shared else None

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        return None if tags else ()

    # -- what ends everything

    def catalogue_alarm(self, reason: str) -> None:
        """Everything stored so far is dropped."""
        self.dropped(reason)
        for listener in self.alarm_listeners:
            listener(self.name, reason)

    def dropped(self, reason: str) -> None:
        """As ``catalogue_alarm``, of which others know."""
        self.counters.alarms += 1
        self.counters.alarms_by[reason] += 1
        self.counters.last_alarm = reason
        self._drop("catalogue_alarm")
        self._due = 0
        self._soon = list(_BEHIND_DDL_NS)

    def _drop(self, cause: str) -> None:
        self.counters.epoch_changes += 1
        self.counters.epoch_changes_by[cause] += 1
        self._drops += 1
        self._shared = b""
        self._renew(self._moment())
        for listener in self.epoch_listeners:
            listener(self.epoch)

    def schedule_poll(self) -> None:
        """What ran may have changed the catalogue: look soon."""
        self._due = min(self._due, now_ns() + _BEHIND_DDL_NS[0])

    def note_traffic(self) -> None:
        """Somebody uses this database: the catalogue is looked at now and then."""
        if self._looking is None and self.name and now_ns() >= self._due:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        drops, began = self._drops, self._moment()
        self._due = now_ns() + _RETRY_NS
        try:
            row = (await self.ask(_LOOK))[0]
        except Exception as error:  # noqa: BLE001 - whatever it is, memory goes on without
            self._shared = b""
            self._say(f"{type(error).__name__}: {error}"[:300])
        else:
            self.counters.polls += 1
            if drops == self._drops:
                self._saw(row, began)
        finally:
            self._outdated = began
            self._looking = None

    def _saw(self, row: tuple[Any, ...], began: int) -> None:
        system, started, standby, oid, hashes, roles = row
        view = (VERSION, system, started, standby, oid, *hashes, *roles)
        if self._view and view != self._view:
            self.counters.catalogue_changes += 1
            self._drop("catalogue_changed")
        self._view, self.server = view, (system, started, standby)
        self._shared = digest(b"ttl", *(str(field).encode() for field in view)) if system else b""
        self._confirmed = began
        self._due = now_ns() + (self._soon.pop(0) if self._soon else _LOOK_NS)
        self._say("" if system else "the server does not tell its system identifier")

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._said:
            self._log(
                f"{self.name}: the catalogue cannot be looked at ({trouble}): changes of it that are made around the "
                "proxy are not noticed, and L2 and L3 are not used"
            )
        self._said = trouble

    # -- questions

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """A question about the catalogue on the cache's own connection. Raises UpstreamError."""
        return await self._questions.ask(sql, params)

    async def _connect(self) -> Connection:
        try:
            connection = await connect(
                self._conninfo, timeout_s=self.options.connect_timeout_s, statement_ms=STATEMENT_MS, lock_ms=LOCK_MS
            )
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise UpstreamError(
                "PostgreSQL cannot be asked about its catalogue", where=self.name,
                hint="check upstream.url: host, port, user and password",
            ) from error
        self.server_version_num = connection.info.server_version
        return connection

    def report(self) -> dict[str, object]:
        """Names and values for ``SHOW distribcache.freshness``."""
        return {
            "mode": self.mode, "serving": True, "reason": None, "detail": self.detail, "hint": self.hint,
            "staleness_ms": None, "epoch": self.epoch,
            **self.counters.report(),
        }

    async def stop(self) -> None:
        """Leave the database: afterwards nothing of ours is connected to it."""
        looking = self._looking
        if looking is not None:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
        await self._questions.close()


def reaches(coherence: object, server: ServerFacts) -> bool:
    """Rule 4. Where commits end entries, a session has proved it before anything of it is cached."""
    if not isinstance(coherence, TtlOnly):
        return True
    return coherence.server == (server.system_identifier, server.postmaster_start, server.in_recovery)
