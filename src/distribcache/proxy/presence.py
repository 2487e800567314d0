"""Telling the server that a client is there, of whom it hears nothing.

Theory. PostgreSQL ends a session that is silent for ``idle_session_timeout``, one that is silent in a transaction for
``idle_in_transaction_session_timeout``, and a transaction that is older than ``transaction_timeout``. It hears nothing
of a client that is answered from memory, so it would end one that is busy; and it does not know of a transaction whose
BEGIN was deferred, so that one it would never end.

Where one of these is set, the session is looked at four times in the shortest of them. A transaction that was deferred
is opened. If a hit was served since the last look, or a message waits here, a Sync is sent: it says nothing but that
somebody is there. So the server ends nobody too early, and the idle at most a quarter of that time later.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["Presence"]

_LOOKS = 4


class Presence:
    """See the module; one per session. It costs nothing where no timeout is set."""

    __slots__ = ("_every", "_hits", "_session", "_timer")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._every = 0.0
        self._hits = 0
        self._timer: asyncio.TimerHandle | None = None

    def expected(self, idle_ms: int) -> None:
        """How long the server waits for a sign; 0: it does not look at the clock."""
        every = idle_ms / 1000 / _LOOKS
        if every != self._every:
            self.end()
            self._every = every
            if every:
                self._timer = asyncio.get_running_loop().call_later(every, self._look)

    def end(self) -> None:
        """The session is over, or nobody expects a sign any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._every = 0.0

    def _look(self) -> None:
        s = self._session
        self._timer = asyncio.get_running_loop().call_later(self._every, self._look)
        hits, self._hits = self._hits, s.hot.hits
        if s.replies.pending or s.awaiting or s.open:  # the server is at work for this client
            return
        if s.txn.local and not s.waiting:
            s.questions.open_transaction()
        elif s.waiting or hits != s.hot.hits:
            s.questions.sync()
