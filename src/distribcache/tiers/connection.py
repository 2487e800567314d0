"""One connection to a Valkey or Redis server, shared by everybody who asks: questions are pipelined, and the order of
the replies says whose each is.

Rules:

1. A question is a future that always gets a result: the reply, or a ``Lost`` that says why there is none. It never
   raises, and it never waits longer than the connection's ``deadline``.
2. A question whose time is up stays in its place until its reply comes, which is then thrown away. So no reply is ever
   taken for that of another question, however late it is.
3. What was not asked for, is of another kind than what was asked for, or is no RESP2 ends the connection: nothing that
   comes after it can be trusted to be in its place. All waiting questions are lost at once.
4. All questions of a connection have the same deadline, so the oldest is always the next to be late: one timer looks
   at it, instead of one per question.
5. When the loop itself was held up, questions may still lie here and replies unread in the socket: the timer then lets
   the loop send and read first, for a quarter of the deadline.
6. Questions that are late together, while others were answered in time, are one failure to the breaker: large replies
   in a row fill the line, which says nothing of the server.
7. Questions of one turn of the loop leave in one write. A server that does not read is asked no more.

``dial`` opens a connection and makes sure that it is of use: it logs in and asks one trial question.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from distribcache.clock import now_ns
from distribcache.config.units import Address
from distribcache.tiers.breaker import Breaker, State
from distribcache.tiers.resp import MalformedReplyError, Refusal, Replies, Reply, command

__all__ = ["ARRAY", "BULK", "INTEGER", "OK", "Access", "Answer", "Connection", "Lost", "UnusableError", "dial"]

_HELD_UP_NS = 2_000_000
_SICK = frozenset("busy clusterdown loading masterdown noauth noperm readonly".split())
"""Errors that say that the server is of no use at present, whatever the question."""


_SLOW = ("slow", "it does not answer within l3.deadline")
_CLOSED = ("lost", "it closed the connection")


class Lost(enum.Enum):
    """Why a question has no reply; the value is the name under which it is counted."""

    LATE = "deadline"
    ENDED = "lost"
    BUSY = "busy"


Answer = Reply | Lost

Kinds = tuple[type, ...]
BULK: Final[Kinds] = (bytes, type(None), Refusal)
OK: Final[Kinds] = (bytes, type(None), Refusal, bytes)  # told from BULK by its identity: only +OK and nil will do
INTEGER: Final[Kinds] = (int, Refusal)
ARRAY: Final[Kinds] = (list, Refusal)


class UnusableError(Exception):
    """A server that cannot be used at present: ``code`` in one stable word, the text for people. It is ours."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """How servers are reached and what they are asked to be let in."""

    user: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None
    connect_timeout: float
    max_bulk: int
    trial: bytes
    """A key that may be asked for."""


class Connection(asyncio.Protocol):
    """``deadline`` in seconds; ``breaker`` hears how each question went."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, max_bulk: int, deadline: float, breaker: Breaker, high_water: int
    ) -> None:
        self._deadline_ns = round(deadline * 1e9)
        self.why = ""
        """Why it ended; ``code`` is the same in one stable word."""
        self.code = ""
        self.ended: asyncio.Future[None] = loop.create_future()
        self.gone: Callable[[], None] | None = None
        """Called at once when it ends: whoever asks next must not find it any more."""
        self.answered = 0
        """Replies in time."""
        self._answered_at = 0
        self._blamed = False
        """A question was late since the last reply in time."""
        self._loop = loop
        self._breaker = breaker
        self._high_water = high_water
        self._replies = Replies(max_bulk)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Answer], int, Kinds]] = deque()
        self._late = 0
        """How many of the waiting, from the oldest on, have been given up."""
        self._out: list[bytes] = []
        self._full = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0

    # -- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: bytes, kinds: Kinds) -> asyncio.Future[Answer]:
        """Send ``request``; only a reply of ``kinds`` is taken."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._full or self.why:
            future.set_result(Lost.ENDED if self.why else Lost.BUSY)
            return future
        due = now_ns() + self._deadline_ns
        self._waiting.append((future, due, kinds))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(request)
        if self._timer is None:
            self._look_at(due, self._deadline_ns)
        return future

    def hasten(self, deadline: float) -> None:
        """Another deadline from now on. Nothing may be waiting: the oldest question has to be the next to be late."""
        assert not self._waiting
        self._deadline_ns = round(deadline * 1e9)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self.why:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _look_at(self, due: int, away_ns: int) -> None:
        self._timer_due = due
        self._timer = self._loop.call_later(away_ns / 1e9, self._tick)

    def _tick(self) -> None:
        """Give up the questions whose time is up, and look again when the next one's is. Between two replies in time
        that counts as one failure: those who asked one after the other wait behind the same replies.
        """
        self._timer = None
        now = now_ns()
        if now - self._timer_due > _HELD_UP_NS:
            grace = self._deadline_ns >> 2
            self._look_at(now + grace, grace)
            return
        waiting = self._waiting
        while self._late < len(waiting) and not self.why:
            future, due, _ = waiting[self._late]
            if due > now:
                self._look_at(due, due - now)
                return
            self._late += 1
            if not future.done():
                future.set_result(Lost.LATE)
            if (not self._blamed or not self._is_answering(now)) and self._breaker.failed():
                self.end(*_SLOW)
            self._blamed = True

    def _is_answering(self, now: int) -> bool:
        """Did a reply come in time, not longer ago than a question may take?"""
        return now - self._answered_at < self._deadline_ns

    # -- hearing -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._replies.feed(data)
        except MalformedReplyError as error:
            self.end("malformed", f"it sent {error}")
            return
        waiting = self._waiting
        worked = False
        for reply in replies:
            if not waiting:
                self.end("malformed", "it sent an answer to no question")
                return
            future, _, kinds = waiting.popleft()
            if not isinstance(reply, kinds) or (
                kinds is OK and reply != b"OK" and reply is not None and type(reply) is bytes
            ):
                if not future.done():
                    future.set_result(Lost.ENDED)
                self.end("malformed", "it sent an answer to another question")
                return
            if self._late:
                self._late -= 1
                continue
            if not future.done():
                future.set_result(reply)
            if type(reply) is Refusal and reply.code in _SICK:
                # While it is tried, whoever tries it judges: not every refusal matters then.
                if self._breaker.state is State.CLOSED and self._breaker.failed():
                    self.end(*_said(reply))
                    return
            else:
                worked = True
                self.answered += 1
        if worked:
            self._breaker.worked()
            self._answered_at = now_ns()
            self._blamed = False

    # -- beginning and ending ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # those of uvloop do not say that they are
        self._transport.set_write_buffer_limits(high=self._high_water)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, error: Exception | None) -> None:
        self.end(*_CLOSED)

    def end(self, code: str, why: str) -> None:
        """Close at once; everything that waits is lost. Only the first reason counts."""
        if self.why:
            return
        self.code, self.why = code, why
        self._breaker.lost()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future, _, _ in self._waiting:
            if not future.done():
                future.set_result(Lost.ENDED)
        self._waiting.clear()
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()
        if not self.ended.done():
            self.ended.set_result(None)
        if self.gone is not None:
            self.gone()


async def dial(address: Address, access: Access, deadline: float, breaker: Breaker, high_water: int) -> Connection:
    """A connection that is logged in and has answered one question, within ``access.connect_timeout``.

    Raises UnusableError with the reason.
    """
    loop = asyncio.get_running_loop()
    # Connecting is slower than a question: the deadline of questions counts from the trial on.
    connection = Connection(loop, access.max_bulk, access.connect_timeout, breaker, high_water)
    try:
        async with asyncio.timeout(access.connect_timeout):
            host = address.host if access.tls is not None else None
            await loop.create_connection(
                lambda: connection, address.host, address.port, ssl=access.tls, server_hostname=host
            )
            await _greet(connection, access)
            connection.hasten(deadline)
            trial = await connection.ask(command(b"GETRANGE", access.trial, b"0", b"0"), BULK)
        if isinstance(trial, Lost):
            raise UnusableError(*_SLOW if trial is Lost.LATE else _CLOSED)
        if isinstance(trial, Refusal) and trial.code not in ("moved", "ask"):
            raise UnusableError(*_said(trial))
    except TimeoutError:
        raise _unusable(connection, "timeout", "no answer within l3.connect_timeout") from None
    except ssl.SSLCertVerificationError as error:
        raise _unusable(connection, "untrusted", f"its certificate: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise _unusable(connection, "no_tls", f"no TLS: {error.reason}") from None
    except (OSError, UnicodeError) as error:  # the latter from names that no resolver takes
        raise _unusable(connection, "unreachable", f"not reached: {_plainly(error)}") from None
    except BaseException:
        connection.end("unusable", "given up")
        raise
    return connection


def _unusable(connection: Connection, code: str, text: str) -> UnusableError:
    connection.end(code, text)
    return UnusableError(code, text)


def _plainly(error: Exception) -> str:
    """What the system says, or the name of the failure; hosts and ports are named elsewhere."""
    if isinstance(error, socket.gaierror):
        return error.strerror or "the name is not known"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


async def _greet(connection: Connection, access: Access) -> None:
    if access.user or access.password:
        words = (access.user.encode(), access.password.encode()) if access.user else (access.password.encode(),)
        answer = await connection.ask(command(b"AUTH", *words), OK)
        if answer != b"OK":
            raise UnusableError(*_said(answer) if isinstance(answer, Refusal) else _CLOSED)
    # A name for people who look at the server; a user who may not set it is no worse a user.
    if isinstance(await connection.ask(command(b"CLIENT", b"SETNAME", b"distribcache"), OK), Lost):
        raise UnusableError(*_CLOSED)


_DENIED = frozenset("noauth noperm wrongpass".split())


def _said(refusal: Refusal) -> tuple[str, str]:
    """An error of a server as a code and a text; the server's own words are not repeated beyond the first."""
    word = refusal.code.upper()
    known = word.isascii() and word.isalpha() and len(word) <= 20
    return "denied" if refusal.code in _DENIED else "refused", f"it answers {word if known else 'with an error'}"
