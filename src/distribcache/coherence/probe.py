"""The probe: one small question on a connection of its own, at most one in flight (coherence rule R3).

``pg_current_snapshot()`` proves received commits visible; ``pg_current_wal_insert_lsn()`` names a position T such that
everything acknowledged before the question was sent ends at or below T. The clock is read before sending, so an answer
speaks for that time, and for everyone who asked before it.

It works on libpq directly: a question costs two callbacks and no task, which is what a waiting hit pays for.

The flush (R5): on an idle server the insert position may lie behind what was flushed (a read that pruned a page, an
asynchronous commit), and the stream only carries flushed log. A tiny logical message makes the server flush.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
from psycopg import pq

from distribcache.clock import now_ns
from distribcache.coherence.connections import Connection
from distribcache.coherence.decoding import FLUSH_PREFIX
from distribcache.coherence.lsn import parse_lsn
from distribcache.coherence.visibility import Snapshot

__all__ = ["Answer", "Probe"]

_NAME = b"distribcache_probe"
_QUESTION = b"SELECT pg_current_snapshot(), pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()"
_FLUSH = b"SELECT pg_logical_emit_message(true, '" + FLUSH_PREFIX + b"', '')"
_FLUSH_17 = b"SELECT pg_logical_emit_message(false, '" + FLUSH_PREFIX + b"', '', true)"

# (asked_at ns, position applied when it was sent, snapshot, insert position, flushed position)
Answer = tuple[int, int, Snapshot, int, int]


class Probe:
    """``ask`` sends the question, ``on_answer`` gets what came, ``on_lost`` is called when the connection failed."""

    def __init__(
        self,
        connection: Connection,
        *,
        on_answer: Callable[[Answer], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self.connection = connection
        self.may_flush = True
        self.asked_at = 0  # of the question in flight, else 0
        self.flushes = 0
        self._applied = 0
        self._results: list[pq.abc.PGresult] = []
        self._flushing = False
        self._pgconn = connection.pgconn
        self._on_answer, self._on_lost = on_answer, on_lost
        self._flush_text = _FLUSH_17 if connection.info.server_version >= 170000 else _FLUSH
        self._loop = asyncio.get_running_loop()
        self._fd = -1

    async def start(self) -> None:
        """Prepare the question and take the connection over. Raises psycopg.Error."""
        await self.connection.execute(b"PREPARE " + _NAME + b" AS " + _QUESTION)
        self._pgconn.nonblocking = 1
        self._fd = self._pgconn.socket
        self._loop.add_reader(self._fd, self._readable)

    def stop(self) -> None:
        """Stop; the owner closes the connection."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1

    @property
    def busy(self) -> bool:
        return self.asked_at != 0 or self._flushing

    def ask(self, applied: int) -> bool:
        """Send the question now; ``applied`` is the position received so far. False when one is in flight."""
        if self._fd < 0 or self.busy:
            return False
        self._applied = applied
        self.asked_at = now_ns()
        self._send(lambda: self._pgconn.send_query_prepared(_NAME, None, result_format=pq.Format.TEXT))
        return True

    def flush(self) -> bool:
        """Have the server flush its log now. False when something is in flight, or it is not allowed."""
        if self._fd < 0 or self.busy or not self.may_flush:
            return False
        self._flushing = True
        self.flushes += 1
        self._send(lambda: self._pgconn.send_query(self._flush_text))
        return True

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
            self._pgconn.flush()
        except psycopg.Error as error:
            self._lose(error)

    def _readable(self) -> None:
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while self._fd >= 0 and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is not None:
                    self._results.append(result)
                elif self._results:
                    results, self._results = self._results, []
                    self._complete(results[0])
                else:
                    return
        except Exception as error:  # noqa: BLE001 - a probe that is not understood proves nothing: a new epoch
            self._lose(error)

    def _complete(self, result: pq.abc.PGresult) -> None:
        """A command has ended; only now the next one can be sent, maybe by ``on_answer`` itself."""
        asked_at, self.asked_at = self.asked_at, 0
        flushing, self._flushing = self._flushing, False
        if flushing and result.status != pq.ExecStatus.FATAL_ERROR:
            return
        if result.status == pq.ExecStatus.TUPLES_OK and asked_at:
            values = [result.get_value(0, column) for column in range(3)]
            snapshot, insert, flushed = (value or b"" for value in values)
            self._on_answer((asked_at, self._applied, Snapshot.parse(snapshot), parse_lsn(insert), parse_lsn(flushed)))
        elif flushing and self._pgconn.status == pq.ConnStatus.OK:
            self.may_flush = False
        else:
            raise psycopg.OperationalError(result.get_error_message("utf-8").strip() or "the probe got no answer")

    def _lose(self, error: Exception) -> None:
        if self._fd >= 0:
            self.stop()
            self._on_lost(error)
