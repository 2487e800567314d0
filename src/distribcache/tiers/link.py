"""A connection to one server that is kept up in the background.

Rules:

1. ``connection`` is there exactly while the server may be asked. Nobody ever waits for it to come: without it a
   question is a miss at once.
2. The breaker's trial is the connection itself: opening it logs in and asks one question (``connection.dial``). So no
   request ever pays for a trial, and a server that hung starts again with an empty connection.
3. A server that answered questions and then went away is tried again soon; one that fails again and again is left
   alone for longer and longer, up to ten times ``pause``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distribcache.clock import now_ns
from distribcache.config.units import Address
from distribcache.errors import internal_error
from distribcache.tiers.breaker import Breaker
from distribcache.tiers.connection import Access, Connection, UnusableError, dial

__all__ = ["LONGEST_PAUSES", "UNTRIED", "Link"]

UNTRIED = ("connecting", "not connected yet")
LONGEST_PAUSES = 10
_SOON = 0.1


class Link:
    """``deadline`` is that of a question; ``changed`` is called whenever ``connection`` came or went."""

    def __init__(
        self,
        address: Address,
        access: Access,
        *,
        deadline: float,
        failures: int,
        pause: float,
        high_water: int,
        changed: Callable[[], None],
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.reason, self.detail = UNTRIED
        """Why there is no connection, in one stable word and for people."""
        self.breaker = Breaker(failures, pause, pause * LONGEST_PAUSES)
        self._pause = pause
        self._access = access
        self._deadline = deadline
        self._high_water = high_water
        self._changed = changed
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def stop(self) -> asyncio.Task[None] | None:
        """End the connection; what waits for it is lost. The task is done when that is done."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def _keep(self) -> None:
        while True:
            try:
                wait = await self._try()
            except Exception as error:  # noqa: BLE001 - a failure of ours is a reason, never an end
                self._say("internal", internal_error(error).message)
                wait = self.breaker.rest()
            await asyncio.sleep(wait)

    async def _try(self) -> float:
        """Connect and stay for as long as it lasts; how long to wait before the next time."""
        self.breaker.try_again()
        try:
            connection = await dial(self.address, self._access, self._deadline, self.breaker, self._high_water)
        except UnusableError as error:
            self.breaker.lost()
            self._say(error.code, str(error))
            return self.breaker.rest()
        self.breaker.close()
        self.connection = connection
        connection.gone = self._gone
        before = connection.answered
        began = now_ns()
        self.reason = self.detail = ""
        self._changed()
        try:
            await connection.ended
        finally:
            connection.end("stopped", "stopped")
        if connection.answered > before and connection.code == "lost":
            return min(_SOON, self._pause)
        if now_ns() - began > self._pause * LONGEST_PAUSES * 1e9:
            self.breaker.calm()
        return self.breaker.rest()

    def _gone(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            self._say(connection.code, connection.why)

    def _say(self, reason: str, detail: str) -> None:
        changed = self.detail != detail
        self.reason, self.detail = reason, detail
        if changed:
            self._changed()
