"""``invalidation = "ttl"``: an explicit choice to let only time end an entry.

No stream, no proof: ``fresh_at`` is always satisfied, W and V stand still at 1, and every status view says ``ttl``.
DDL seen by the proxy still drops everything, because that costs nothing. The one connection is for the analysis of
statements; it is opened when first needed and again after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from distribcache.clock import now_ns
from distribcache.coherence.catalogue import LOCK_MS, STATEMENT_MS
from distribcache.coherence.connections import Connection, connect
from distribcache.coherence.ledger import EPOCH, FLOORS, FRESH_AT, NEVER, SCHEMA, Ledger, V, W, next_epoch
from distribcache.coherence.options import Options
from distribcache.coherence.questions import Questions
from distribcache.coherence.unfollowed import Unfollowed
from distribcache.errors import UpstreamError

__all__ = ["TtlOnly"]

_LOOK_NS = 60_000_000_000


class TtlOnly(Unfollowed):
    """The same face as ``DatabaseCoherence``, without coherence."""

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
        self.hint = "set freshness.invalidation to wal"
        self._conninfo = make_conninfo(conninfo, dbname=name)
        self._questions = Questions(self._connect)
        self._look = 1  # counts looks at the catalogue; stands where positions of the log stand elsewhere
        self._looked_at = now_ns()
        self._renew()

    def _renew(self) -> None:
        self.epoch = next_epoch()
        self.words[EPOCH] = self.epoch
        self.words[W] = self.words[V] = self._look
        self.words[SCHEMA] = 0
        self.words[FRESH_AT] = NEVER

    @property
    def floor_ns(self) -> int:
        return self.words[FLOORS]

    def raise_floor(self, now: int) -> None:
        """Nothing here is fresher than anything else."""

    def fill_point(self) -> int | None:
        return self._look

    def visible(self) -> int:
        return self._look

    def schema_lsn(self) -> int:
        """Analyses older than the last look are made again, so what was not there once may be found later."""
        return self._look

    def catalogue_alarm(self, reason: str) -> None:
        """Everything stored so far is dropped."""
        self.dropped(reason)
        for listener in self.alarm_listeners:
            listener(self.name, reason)

    def dropped(self, reason: str) -> None:
        """As ``catalogue_alarm``, of which others know."""
        self.counters.alarms += 1
        self.counters.alarms_by[reason] += 1
        self.counters.epoch_changes_by["catalogue_alarm"] += 1
        self.counters.last_alarm = reason
        self.counters.epoch_changes += 1
        self._look += 1
        self._renew()
        for listener in self.epoch_listeners:
            listener(self.epoch)

    def schedule_poll(self) -> None:
        """There is nothing to compare with."""

    def note_traffic(self) -> None:
        """Once a minute analyses begin to be made anew: DDL from elsewhere is not seen in this mode."""
        now = now_ns()
        if now - self._looked_at > _LOOK_NS:
            self._looked_at = now
            self._look += 1
            self.words[W] = self.words[V] = self._look

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
        await self._questions.close()
