"""The change stream of one database: a logical replication connection, driven by the event loop.

What it must do: hand every message to ``apply`` strictly in the order of the stream, keepalives too (coherence trap
18); never hold the event loop longer than a slice (R7); and behave as a good guest of the server (coherence traps 3
and 22).

Manners:
1. No feedback before ``allow_feedback``: the owner first makes sure that the server does not count us as a
   synchronous standby.
2. Feedback names what was received, never zero: zeros would keep a fast shutdown waiting for ever. It is sent when
   the server asks, and at least every five seconds. For a persistent slot it names as flushed what the owner has
   made durable (``confirm``), and the owner is told when the server asks.
3. A ping only asks for a keepalive. Its answer counts for the position that it carries and for nothing else: the
   server answers from inside a large decode with an old one (R5).
4. The slot is temporary, unless the owner keeps what it has seen: it dies with the connection, whatever happens to us.

Memory stays bounded because libpq reads from the socket only when its buffer holds no whole message.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import psycopg
from psycopg import pq

from distribcache.catalog.publications import ALL, CHANGES
from distribcache.clock import now_ns, wall_time
from distribcache.coherence.connections import Connection, readable
from distribcache.coherence.decoding import Collector, Commit, Decoder
from distribcache.coherence.pgoutput import PgoutputDecoder
from distribcache.coherence.watching import Plan
from distribcache.errors import ProtocolError, UpstreamError

__all__ = ["FEEDBACK_NS", "SLICE_NS", "Reader"]

SLICE_NS = 3_000_000
FEEDBACK_NS = 5_000_000_000
_LARGE = 1 << 16
_POSTGRES_EPOCH = 946_684_800
_KEEPALIVE = struct.Struct(">cQQ?")
_STATUS = struct.Struct(">cQQQQ?")
_XLOG_DATA, _KEEPALIVE_BYTE = ord("w"), ord("k")
_PLUGINS: dict[str, tuple[type[Collector], str]] = {
    "test_decoding": (
        Decoder,
        "\"include-xids\" '1', \"include-timestamp\" '0', \"skip-empty-xacts\" '0', \"include-rewrites\" '0'",
    ),
    "pgoutput": (PgoutputDecoder, f"proto_version '1', messages 'true', publication_names '{ALL},{CHANGES}'"),
}


class Reader:
    """Messages of the stream → ``on_commit``, ``on_position``, and ``on_slice`` at the end of each slice.

    ``on_lost(error)`` is called once when the stream has ended by itself; after that, nothing more is called.
    ``plan_of`` tells which rows of a relation are watched; ``plugin`` is the slot's.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        on_commit: Callable[[Commit], None],
        on_position: Callable[[int], None],
        on_slice: Callable[[], None],
        on_lost: Callable[[Exception], None],
        plan_of: Callable[[bytes], Plan | None],
        plugin: str = "test_decoding",
    ) -> None:
        self.connection = connection
        self.pid = connection.pgconn.backend_pid
        self.received = 0
        self.durable: int | None = None
        """With a persistent slot: the position up to which the server may forget the stream."""
        self.on_asked: Callable[[], None] = lambda: None
        self.rows = 0
        self.heard_at = now_ns()
        self._pgconn = connection.pgconn
        self._on_commit, self._on_position = on_commit, on_position
        self._on_slice, self._on_lost = on_slice, on_lost
        decoder, self._how = _PLUGINS[plugin]
        self._decoder = decoder(plan_of)
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._queued = False
        self._may_answer = False
        self._asked = False
        self._fed_at = 0

    async def start(self, slot: str, start: int) -> None:
        """Begin streaming from ``slot``; ``start`` is its consistent point. Raises UpstreamError when refused."""
        pgconn = self._pgconn
        command = f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0 ({self._how})'
        pgconn.send_query(command.encode())
        pgconn.flush()
        while pgconn.is_busy():
            await readable(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            text = result.get_error_message("utf-8") if result is not None else "no answer"
            raise UpstreamError(f"the change stream was refused: {text}", where="START_REPLICATION")
        pgconn.nonblocking = 1
        self.received = start
        self._fed_at = now_ns()
        self._fd = pgconn.socket
        self._loop.add_reader(self._fd, self._pump)
        # What came with the answer lies in libpq's buffer already and does not make the socket readable again.
        self._queued = True
        self._loop.call_soon(self._continue)

    def allow_feedback(self) -> None:
        """The server does not count us as a synchronous standby: from now on it may know what we have."""
        self._may_answer = True
        self.feedback(ask=self._asked)

    def stop(self) -> None:
        """Stop reading; the owner closes the connection."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1

    def ping(self) -> None:
        """Ask the server where it is; the answer comes as an ordinary keepalive."""
        self.feedback(ask=True)

    def tick(self, now: int) -> None:
        """Now and then: feedback that is due, and whatever TLS may hold back without the socket being readable."""
        if self._fd < 0:
            return
        if now - self._fed_at >= FEEDBACK_NS:
            self.feedback(ask=True)
        self._pump()

    def feedback(self, *, ask: bool = False) -> None:
        """Tell the server what was received; ``ask`` for a keepalive in return."""
        if self._fd < 0 or not self._may_answer:
            return
        at = self.received
        kept = at if self.durable is None else self.durable
        micros = int((wall_time() - _POSTGRES_EPOCH) * 1e6)
        self._fed_at = now_ns()
        self._asked = False
        try:
            self._pgconn.put_copy_data(_STATUS.pack(b"r", at, kept, kept, micros, ask))
            self._pgconn.flush()
        except psycopg.Error as error:
            self._lose(error)

    def confirm(self, durable: int) -> None:
        """What was received up to here is not needed again, whatever happens."""
        self.durable = max(durable, self.durable or 0)
        self.feedback()

    def _continue(self) -> None:
        self._queued = False
        self._pump()

    def _pump(self) -> None:
        if self._queued or self._fd < 0:
            return
        try:
            more = self._slice(now_ns() + SLICE_NS)
            if self._fd < 0:
                return
            self._on_slice()
        except Exception as error:  # noqa: BLE001 - whatever it is, something may have been skipped: a new epoch
            self._lose(error)
            return
        if self._asked:
            self.on_asked()
            self.feedback()
        if more and self._fd >= 0:
            self._queued = True
            self._loop.call_soon(self._continue)

    def _slice(self, until: int) -> bool:
        """Apply messages until there are none (False) or the time is up (True)."""
        get, clock = self._pgconn.get_copy_data, now_ns
        again, feed = self._decoder.again, self._decoder.feed
        dry = False
        count = 0
        while True:
            size, data = get(1)
            if size > 0:
                dry = False
                kind = data[0]
                if kind == _XLOG_DATA:
                    commit = None if again(data, 25) else feed(data[25:], int.from_bytes(data[1:9], "big"))
                    if commit is not None:
                        self.rows += commit.rows
                        self.received = max(self.received, commit.lsn)
                        self._on_commit(commit)
                elif kind == _KEEPALIVE_BYTE:
                    _, end, _, asked = _KEEPALIVE.unpack(data)
                    self.received = max(self.received, end)
                    self._on_position(end)
                    self._asked = self._asked or asked
                else:
                    raise ProtocolError("the change stream sent an unknown message", where="replication")
                count += 1
                if (not count & 31 or size > _LARGE) and clock() > until:
                    self.heard_at = until
                    return True
            elif size == 0:
                if dry:
                    if count:
                        self.heard_at = clock()
                    return False
                self._pgconn.consume_input()
                dry = True
            else:
                raise psycopg.OperationalError(self._last_words())

    def _last_words(self) -> str:
        result = self._pgconn.get_result()
        text = result.get_error_message("utf-8") if result is not None else ""
        return text.strip() or "the server ended the change stream"

    def _lose(self, error: Exception) -> None:
        if self._fd >= 0:
            self.stop()
            self._on_lost(error)
