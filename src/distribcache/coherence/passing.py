"""A database that is never followed: nothing of it is cached, and the reason is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distribcache.coherence.ledger import Ledger, next_epoch
from distribcache.coherence.reasons import REASONS
from distribcache.coherence.unfollowed import Unfollowed
from distribcache.errors import UpstreamError

__all__ = ["PassThrough"]


class PassThrough(Unfollowed):
    """The same face as ``DatabaseCoherence``; it serves and asks nothing."""

    mode = "off"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, Ledger(2, 1), max_staleness_ns=0)
        self.epoch = next_epoch()
        self.serving = False
        self.reason = reason
        self.detail, self.hint = REASONS[reason]
        self.floor_ns = 0
        self.ledger.renew(self.epoch)

    def raise_floor(self, now: int) -> None:
        """Nothing is served."""

    def fill_point(self) -> int | None:
        return None

    def visible(self) -> int:
        return 0

    def schema_lsn(self) -> int:
        return 0

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

    async def stop(self) -> None:
        """Nothing to stop."""
