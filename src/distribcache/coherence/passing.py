"""A database that is never followed: nothing of it is cached, and the reason is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from distribcache.coherence.freshness import Freshness, Watched
from distribcache.coherence.ledger import Columns, Ledger, next_epoch
from distribcache.coherence.link import ServerIdentity
from distribcache.coherence.reasons import REASONS
from distribcache.errors import UpstreamError

__all__ = ["PassThrough"]


class PassThrough:
    """The same face as ``DatabaseCoherence``; it serves and asks nothing."""

    mode = "off"
    plugin = ""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.ledger = Ledger(2, 1)
        self.words = self.head = self.ledger.words
        self.floors: memoryview | None = None
        self.alarmed: memoryview | None = None
        self.counters = Freshness(epoch_changes=0)
        self.max_staleness_ns = 0
        self.identity: ServerIdentity | None = None
        self.server_version_num = 0
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.epoch = next_epoch()
        self.serving = False
        self.reason = reason
        self.detail, self.hint = REASONS[reason]
        self.floor_ns = 0
        self.looked_at = 0
        self.ledger.renew(self.epoch)

    def raise_floor(self, now: int) -> None:
        """Nothing is served."""

    def fill_point(self) -> int | None:
        return None

    def visible(self) -> int:
        return 0

    def schema_lsn(self) -> int:
        return 0

    def confirmed(self) -> int:
        return 0

    def shared_epoch(self) -> bytes:
        """None: positions of the log are not known here."""
        return b""

    def own_epoch(self) -> bytes:
        return b""

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        return None

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        return None

    def slot_of(self, oid: int) -> int:
        return self.ledger.slot_of(oid, 0)

    def watch(self, oid: int, columns: Columns) -> int:
        return self.slot_of(oid)

    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int:
        return self.slot_of(oid)

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(False)
        return future

    def catalogue_alarm(self, reason: str) -> None:
        """Nothing is served."""

    def schedule_poll(self) -> None:
        """Nothing is compared."""

    def note_traffic(self) -> None:
        """Nothing keeps up."""

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Raises UpstreamError always."""
        raise UpstreamError("this database is not followed", where=self.name, hint=self.hint)

    def report(self) -> dict[str, object]:
        """Names and values for ``SHOW distribcache.freshness``."""
        return {"mode": self.mode, "serving": False, "reason": self.reason, "detail": self.detail, "hint": self.hint}

    def watched(self) -> list[Watched]:
        """Nothing is watched."""
        return []

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""
