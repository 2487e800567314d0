"""One client's session after login: every unit of client bytes is answered from memory or goes upstream, in order.

Theory. Client bytes are cut into *units*: a simple Query, or extended-protocol messages up to Sync or Flush. One unit
is decided at a time, by ``_step``, which is written so that it can be run again from the start: whatever it must wait
for (the session's scope, an analysis, freshness, another's fill, a transaction opened upstream) is awaited outside,
and then the same unit is looked at once more with that answer known. Nothing is written before the decision is
complete.

Rules:
1. A hit is answered only when nothing is outstanding upstream and no earlier message of the group went up.
2. A unit waits while upstream owes a ReadyForQuery; copy data never waits.
3. What is not understood goes upstream and counts as the worst it could be (see ``effects``).
4. The session's scope is forgotten whenever it could have changed, and learned again only while upstream owes nothing:
   between transactions, or inside one in front of a read.
5. This module owns no socket: bytes leave through ``Wires``.

``simple`` and ``extended`` decide the two kinds of units; ``lookup`` is what they share.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from struct import Struct
from typing import Any, Protocol

from distribcache.clock import now_ns
from distribcache.errors import ClientError, DistribCacheError, ProtocolError, UpstreamError, internal_error
from distribcache.proxy import extended, large, simple
from distribcache.proxy.group import parse_message
from distribcache.proxy.hit import serve
from distribcache.proxy.node import Database, Node
from distribcache.proxy.presence import Presence
from distribcache.proxy.questions import Questions
from distribcache.proxy.shows import Others
from distribcache.proxy.single import NOT_HERE, single
from distribcache.proxy.standing import Standing
from distribcache.wire.messages import Front, error_response

__all__ = ["Session", "Wires"]

_length = Struct("!I").unpack_from
_HOLD = 65536
"""Bytes of one unit that are held back for a decision; a longer one is forwarded as it comes."""
_INBOX = 1 << 20
"""Client bytes that may wait before the client's socket is no longer read. A Query or a Bind may be as long and
still be held: what a bulk INSERT does should be known."""
_LONG_BIND = 4096
_EXTENDED = frozenset(b"PBDECSH")
_COPY = frozenset(b"dcf")
_SMALL = frozenset(b"DECSHX")
_LARGE_LIMIT = (1 << 30) - 1
_SMALL_LIMIT = 10_000


class Wires(Protocol):
    """The two sockets, as a session sees them."""

    def to_client(self, data: bytes) -> None: ...
    def to_upstream(self, data: bytes) -> None: ...
    def hold_client(self, hold: bool) -> None:
        """Stop or go on reading what the client sends."""

    def fail(self, error: DistribCacheError) -> None:
        """Tell the client and close both sides."""

    def finish(self) -> None:
        """The client said goodbye: close both sides in peace."""

    def last_replies(self) -> None:
        """The client sends no more: let the server answer what it has, and end."""


class Session(Standing):
    """See the module."""

    def __init__(self, node: Node, database: Database, wires: Wires) -> None:
        super().__init__(node, database, wires.to_client)
        self.wires = wires
        self.questions = Questions(self)
        self.presence = Presence(self)
        self.failure: bytes | None = None
        """The error that answers the unit at hand."""
        self.tried: set[str | tuple[str, tuple[int, bytes]]] = set()
        """What was already awaited for the unit at hand, and what came of it."""
        self.others: dict[str, Others] = {}
        """What other workers said to the last ``SHOW distribcache.*``, by its name."""
        self.risen = ("L1", 0)
        """The tier that an answer came up from, and the number of the hit that it was for."""
        self.arrival = 0
        """When the unit at hand was first looked at, in ``now_ns``."""
        self.closed = False
        self._inbox = b""
        self._blocked = False
        self._waiting: asyncio.Task[None] | None = None
        self._stream = 0
        self._held = False
        self._sent_all = False

    # ---- bytes in ---------------------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        """Bytes that the client sent. Raises nothing: a broken client ends its own connection only."""
        hot = self.hot
        if not self._inbox and not self._blocked and not self._stream and not hot.paused:
            done = serve(data, 0, hot)
            if done == len(data):
                if self.armed:
                    self.node.audits.hit(self, data)
                return
            if done:
                data = data[done:]
            self._inbox = data
            self.pump(looked=True)
            return
        self._inbox = self._inbox + data if self._inbox else data
        self.pump()

    def from_upstream(self, data: bytes) -> None:
        """Bytes that upstream sent."""
        try:
            relay = self.replies.feed(data)
        except ProtocolError as error:
            self.wires.fail(
                UpstreamError(
                    error.message,
                    where="upstream",
                    hint="the server does not speak PostgreSQL's protocol",
                    sqlstate="08P01",
                )
            )
            return
        if relay:
            self.wires.to_client(relay)
        if self.awaiting and not self.replies.ends:
            self.sent(awaiting=False)  # a server that copies, or skips after an error: the client will send a Sync
        if self._inbox and not self._blocked:
            self.pump()
        elif self._sent_all:
            self._end_if_done()

    def sent_all(self) -> bool:
        """The client has ended its direction; True while it is still owed something."""
        self._sent_all = True
        self._end_if_done()
        return not self.closed

    def _end_if_done(self) -> None:
        """End when all that the client has sent is answered. A unit that is not whole never will be."""
        waits = self.hot.paused or (self.awaiting and not self.replies.wants_data)
        if self._blocked or (self._inbox and waits) or self.closed:
            return
        if self.replies.pending:
            self.wires.last_replies()
        else:
            self.wires.finish()

    def pump(self, *, looked: bool = False) -> None:
        """Decide as many units as can be decided now; ``looked``: the first is no hit."""
        try:
            while self._inbox and not self._blocked and not self.hot.paused and not self.closed:
                data, hit = self._inbox, 0
                if self._stream:
                    done = self._pass_stream(data)
                else:
                    hit = 0 if looked else serve(data, 0, self.hot)
                    done = hit or self._step(data)
                looked = False
                if not done:
                    break
                self._inbox = data[done:]
                if hit and self.armed and not self._inbox:  # it waited here behind the audit of the one before
                    self.node.audits.hit(self, data)
        except DistribCacheError as error:
            self.wires.fail(error)
            return
        except Exception as error:  # noqa: BLE001 - ends this connection only, and says so
            self.node.failed(error)
            self.wires.fail(internal_error(error))
            return
        if self.audited is not None:
            self.node.audits.behind(self)
        hold = len(self._inbox) > _INBOX or self.hot.paused
        if hold != self._held:
            self._held = hold
            self.wires.hold_client(hold)
        if self._sent_all:
            self._end_if_done()

    def pause(self, paused: bool) -> None:
        """The client's socket is (no longer) full: hits stop after the reply at hand, and go on."""
        self.hot.paused = paused
        if not paused:
            self.pump()

    def close(self) -> None:
        """Either side is gone."""
        if self.closed:
            return
        self.closed = True
        self.presence.end()
        if self._waiting is not None:
            self._waiting.cancel()
        if self.txn.impure:  # whatever it did may have been committed
            self.coherence.raise_floor(now_ns())
        if self.txn.ddl:
            self.coherence.catalogue_alarm("session_lost")
        self.drop_fills()
        if self._leaving is not None:  # the statement that they were left for was never sent
            leaving, names = self._leaving
            leaving.add_done_callback(lambda _: self.node.databases.reopen(names))
        if self._databases:
            self.node.databases.reopen(self._databases)
        totals = self.node.totals
        totals.hits += self.hot.hits
        totals.saved_ns += self.hot.saved_ns
        totals.oldest_ns = max(totals.oldest_ns, self.hot.oldest_ns)
        self.hot.ident = 0
        self.hot.hits = self.hot.saved_ns = 0

    # ---- units ------------------------------------------------------------------------------------------------------

    def _step(self, data: bytes) -> int:
        """Decide the unit that ``data`` begins with; returns its size, or 0 when it must wait."""
        size = len(data)
        if size < 5:
            return 0
        self.coherence.note_traffic()
        kind = data[0]
        end = self._checked(data, 0)
        if kind in _COPY:
            self.replies.copies += kind != Front.COPY_DATA
            self.wires.to_upstream(data[:end])
            self._stream = max(0, end - size)
            return min(end, size)
        if self.awaiting and not (kind == Front.TERMINATE and self.replies.wants_data):
            return 0
        if not self.arrival:
            self.arrival = now_ns()
        if kind == Front.QUERY or kind == Front.FUNCTION_CALL:
            if end > size:
                held = _INBOX if kind == Front.QUERY else _HOLD
                done = self._large(data, end) if size > _HOLD and end > held else 0
            elif self.discarding:
                done = end
            elif kind == Front.QUERY:
                done = end if self._read_long(data, end) and simple.query(self, data[:end]) else 0
            else:
                done = self._large(data[:end], end)
        elif kind in _EXTENDED:
            done = single(self, data)
            if done == NOT_HERE:
                done = self._extended(data)
        elif kind == Front.TERMINATE:
            self.wires.finish()
            return size
        else:
            raise ClientError(
                f"invalid frontend message type {kind}", where="client", hint="connect with a PostgreSQL client"
            )
        if done:
            self.tried.clear()
            self.arrival = 0
        return done

    def _read_long(self, data: bytes, end: int) -> bool:
        """Is the text of this Query short, or read already?"""
        if end <= _HOLD or end > _INBOX or "long" in self.tried:
            return True
        return self.wait("long", self.database.analyst.read_long(data[5 : end - 1]))

    def _checked(self, data: bytes, at: int) -> int:
        """End of the message at ``at``; raises ClientError when its length is impossible."""
        length: int = _length(data, at + 1)[0]
        if length < 4 or length > (_SMALL_LIMIT if data[at] in _SMALL else _LARGE_LIMIT):
            raise ClientError("invalid message length", where="client", hint="connect with a PostgreSQL client")
        return at + 1 + length

    def _extended(self, data: bytes) -> int:
        size = len(data)
        messages = []
        pos = end = ended = long = 0
        while size - pos >= 5 and data[pos] in _EXTENDED:
            end = self._checked(data, pos)
            if data[pos] == Front.BIND and end - pos > _LONG_BIND:
                long += end - pos
            if end > size:
                break
            kind = data[pos]
            if kind == Front.SYNC or kind == Front.FLUSH:
                ended, pos = kind, end
                break
            messages.append(parse_message(data, pos, end))
            pos = end
        held = size - long <= _HOLD and max(size, end) <= _INBOX
        if not ended and held and (size - pos < 5 or data[pos] in _EXTENDED):
            return 0
        if not messages and not ended:
            return self._large(data, end)
        return pos if extended.group(self, data[:pos], messages, ended) else 0

    def _large(self, data: bytes, end: int) -> int:
        """Forward a message that is too long to be held, or is opaque, and what follows of it as it comes."""
        sent = large.forward(self, data[:end])
        self._stream = end - len(data) if sent and end > len(data) else 0
        return sent

    def _pass_stream(self, data: bytes) -> int:
        count = min(self._stream, len(data))
        self._stream -= count
        self.wires.to_upstream(data[:count])
        return count

    # ---- waiting ----------------------------------------------------------------------------------------------------

    def wait(self, reason: str, awaitable: Coroutine[Any, Any, object] | asyncio.Future[Any]) -> bool:
        """Look at the same unit again when ``awaitable`` is done; once per reason and unit. Returns False for
        chaining.
        """
        self.tried.add(reason)
        self._blocked = True
        self._waiting = asyncio.get_running_loop().create_task(self._wait(awaitable))
        return False

    async def _wait(self, awaitable: Coroutine[Any, Any, object] | asyncio.Future[Any]) -> None:
        try:
            await awaitable
        except Exception as error:  # noqa: BLE001 - a failing cache is no error of the client's: the unit goes upstream
            self.node.failed(error)
        self._blocked = False
        self._waiting = None
        self.pump()

    def cancelled(self) -> bool:
        """The client asked to cancel: a unit that waits for another's fill ends; upstream is told by others.

        True when upstream must not be told: it does nothing for this client, but answers an audit of ours, behind which
        the client's unit waits; that ends here.
        """
        if self.asked:
            if self._inbox and not self._blocked:
                self.failure = error_response("ERROR", "57014", "canceling statement due to user request")
            return True
        shares = "flight" in self.tried or "lease" in self.tried
        if self._blocked and shares and self._waiting is not None:
            if self.replies.status == b"I":  # else the server has to fail the transaction: the unit goes up, to be hit
                self.failure = error_response("ERROR", "57014", "canceling statement due to user request")
            self._waiting.cancel()
            self._blocked = False
            self._waiting = None
            self.pump()
        return False

    def leave(self, names: tuple[str, ...]) -> None:
        """Wait until the cache has left these databases, for a statement that needs that."""
        leaving = asyncio.ensure_future(self.node.databases.close_for_ddl(names))
        self._leaving = leaving, names
        self.wait("left", asyncio.shield(leaving))

    def has_read(self) -> bool:
        """Was a read answered from memory since the BEGIN that is deferred?"""
        return self.txn.read or (self.txn.hits >= 0 and self.hot.hits != self.txn.hits)

    def unit_matches(self, words: re.Pattern[bytes]) -> bool:
        """Are these words in the client's bytes at hand, or in a statement that they may run?"""
        return any(words.search(text) for text in (self._inbox, *(each.sql for each in self.statements.values())))

    @property
    def waiting(self) -> bool:
        """Does a unit wait here for something that it needs?"""
        return self._blocked

    @property
    def idle(self) -> bool:
        """Has the client all its answers, and upstream nothing to do?"""
        if self._inbox or self._blocked or self._sent_all or self.hot.paused or self.closed or self.discarding:
            return False
        return self.at_rest()

    def at_rest(self, status: bytes = b"I") -> bool:
        """Is upstream logged in, outside a transaction (or in that ``status``), and owing nothing?"""
        busy = self.awaiting or self.open or self.replies.pending or not self.backend_pid
        return not busy and self.replies.status == status

    def ask(self, question: bytes) -> None:
        """Send messages of ours, whose replies are expected already, while ``idle``; the client's next one waits."""
        self.asked = True
        self.awaiting = True
        self.hot.ident = 0
        self.wires.to_upstream(question)
