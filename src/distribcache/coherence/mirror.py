"""One database as a worker sees it: its ledger in shared memory, and what the process that follows it tells.

The reader and its rules live in the main process (``live``, ``coverage``). A worker has the same face of it:

* slots, schema and epoch are read from the shared words;
* W, V, ``fresh_at`` and the epoch of fills stand in ``head``, words of its own. They move by messages only, which are
  sent after the stores, so nothing rests on the order in which a processor shows stores to others (coherence trap 18);
* its own floor is stored in its own word, before the reply is relayed that raised it; a hit asks for the highest of all
  workers (rule R4).

Rules:
1. A relation that was not told of has the slot that no entry satisfies. Main gives every relation that the catalogue
   shows a slot and tells of it before it tells of the look's end, so an analysis that counts knows them all.
2. A column set is used only when main has told its wildcard: then it is registered, and F is read later (coherence
   trap 1). Until then the answer depends on the whole relation.
3. A change of the catalogue that was seen here is counted in this worker's word *first*, and then the clock is read for
   its floor. Main compares the counts before it stores ``fresh_at``. So a ``fresh_at`` beyond that floor comes from a
   question that was asked after the count was there, and the alarm was seen (R6). Sessions that ask for no floor,
   ``eventual`` ones, have one in the moment of the last such change. While main has heard of fewer alarms than were
   counted there are no fills either, and no write is believed to leave a session what it is.
4. The epoch of a fill is that which main has told with V, not the one in the shared words, which may be younger: a
   position of one epoch is never dated by another.
5. Questions of the analysis go over a connection of the worker's own, to the very server that main's reader follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from distribcache.clock import now_ns
from distribcache.coherence.catalogue import LOCK_MS, STATEMENT_MS
from distribcache.coherence.channel import Channel, State, Traffic, Want
from distribcache.coherence.connections import Connection, close, connect
from distribcache.coherence.epoch import digest, server_epoch
from distribcache.coherence.freshness import Freshness, Watched
from distribcache.coherence.ledger import (
    ALARMED,
    ALARMS,
    EPOCH,
    FLOORS,
    FRESH_AT,
    SCHEMA,
    Columns,
    Ledger,
    V,
    W,
    next_epoch,
)
from distribcache.coherence.link import IDENTITY, ServerIdentity
from distribcache.coherence.options import Options
from distribcache.coherence.questions import Questions
from distribcache.coherence.reasons import REASONS, NotServing
from distribcache.coherence.waiting import Waiting
from distribcache.errors import UpstreamError

__all__ = ["Mirror", "Place"]

_TRAFFIC_NS = 20_000_000
_MOST_REFUSED = 10_000


class Place:
    """Which worker this is, of how many."""

    __slots__ = ("channel", "conninfo", "count", "index", "options")

    def __init__(self, channel: Channel, index: int, count: int, conninfo: str, options: Options) -> None:
        self.channel = channel
        self.index = index
        self.count = count
        self.conninfo = conninfo
        self.options = options


class Mirror:
    """The same face as ``DatabaseCoherence``."""

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.mode = "wal"
        self.counters = Freshness(epoch_changes=0)
        self.max_staleness_ns = int(place.options.max_staleness_s * 1e9)
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.number = 0
        self.looked_at = 0
        self.identity: ServerIdentity | None = None
        self.server_version_num = 0
        self.ledger: Ledger
        self.words: memoryview
        self.head = memoryview(bytearray(8 * 8)).cast("Q")
        self.floors: memoryview | None = None
        self.alarmed: memoryview | None = None
        self._place = place
        self._serving = self._fills = False
        self._confirmed = self._heard = 0
        self._counts = memoryview(b"")
        self._facts: Mapping[str, Any] = {}
        self._waiting = Waiting()
        self._want: tuple[int, float] | None = None
        self._told_traffic = 0
        self._refused: set[tuple[int, Columns]] = set()
        self._asked: set[tuple[int, Columns]] = set()
        self._questions = Questions(self._connect)
        self._left = False
        self.detach("starting")

    # -- what main tells

    def attach(self, number: int, ledger: Ledger) -> None:
        """Main follows this database now, with this ledger, under this number."""
        self.number = number
        self.mode = "wal"
        self._left = False
        self._use(ledger, self._place.count)

    def detach(self, reason: str, mode: str = "wal") -> None:
        """Main has left it, or never followed it: nothing is served, and no entry of before ever will be."""
        self.number = 0
        self.mode = mode
        self.know({"reason": reason})
        ledger = Ledger(2, 1)
        ledger.renew(next_epoch())
        self._use(ledger, 1)

    def _use(self, ledger: Ledger, workers: int) -> None:
        self.ledger, self.words = ledger, ledger.words
        self.floors = ledger.words[FLOORS : FLOORS + workers]
        self.alarmed = ledger.words[ALARMED : ALARMED + workers]
        self._counts = ledger.words[ALARMS : ALARMS + workers]
        self._asked.clear()
        self._refused.clear()
        self.head[:] = memoryview(bytes(len(self.head) * 8)).cast("Q")
        self._serving = self._fills = False
        self.looked_at = self._confirmed = self._heard = 0
        self._ended()

    def learn(self, message: Mapping[str, Any]) -> None:
        """Slots that main has made."""
        self.ledger.learn(message.get("slots", ()))
        for oid, columns, slot in message.get("wildcards", ()):
            self.ledger.learn_wildcard(oid, tuple(columns), slot)
            self._asked.discard((oid, tuple(columns)))

    def refuse(self, oid: int, columns: Columns) -> None:
        """There is no room for a column set."""
        self._asked.discard((oid, columns))
        if len(self._refused) >= _MOST_REFUSED:
            self._refused.clear()
        self._refused.add((oid, columns))

    def know(self, facts: Mapping[str, Any]) -> None:
        """Reason, detail and hint, the server, and the nonce of the coverage."""
        if facts.get("where") != self._facts.get("where") or facts.get("identity") != self._facts.get("identity"):
            self._questions.drop()  # its connection may be one to another server by now
        self._facts = facts
        fields = facts.get("identity")
        self.identity = ServerIdentity(*fields) if fields else None
        self.server_version_num = int(facts.get("version", 0))

    def move(self, state: State) -> None:
        """The ledger has moved."""
        head, fresh_at = self.head, state.fresh_at
        ended = head[EPOCH] != state.epoch
        head[EPOCH], head[W], head[V], head[FRESH_AT] = state.epoch, state.applied, state.visible, fresh_at
        self._serving, self._fills, self._heard = state.serving, state.fills, state.heard
        self.looked_at, self._confirmed = state.looked_at, state.confirmed
        if ended:
            self._ended()
        if fresh_at:
            self._waiting.reached(fresh_at)

    def _ended(self) -> None:
        for listener in self.epoch_listeners:
            listener(self.epoch)

    def stop_serving(self) -> None:
        """Main is gone: nothing more is known."""
        self.head[FRESH_AT] = 0
        self._serving = self._fills = False
        self._waiting.give_up()

    async def leave(self) -> None:
        """Close what is ours in the database. Nothing is opened there from ``go`` until ``come_back``."""
        self.go()
        await self._questions.close()

    def go(self) -> None:
        """Main is about to leave the database."""
        self._left = True

    def come_back(self) -> None:
        """The reason to leave is over."""
        self._left = False

    # -- what the proxy asks

    @property
    def _current(self) -> bool:
        """Is what main has told still all that there is to know of epochs and alarms?"""
        return self.words[EPOCH] == self.head[EPOCH] and sum(self._counts) == self._heard

    @property
    def epoch(self) -> int:
        """The epoch under which V is known here (rule 4)."""
        return self.head[EPOCH]

    @property
    def serving(self) -> bool:
        return self._serving and self._current

    @property
    def plugin(self) -> str:
        return str(self._facts.get("plugin", ""))

    @property
    def reason(self) -> str:
        if self._serving:
            return "" if self._current else "catalogue_alarm"
        return str(self._facts.get("reason") or "catching_up")

    @property
    def detail(self) -> str:
        reason = self.reason
        return str(self._facts.get("detail") or REASONS[reason][0]) if reason else ""

    @property
    def hint(self) -> str:
        reason = self.reason
        return str(self._facts.get("hint") or REASONS[reason][1]) if reason else ""

    @property
    def floor_ns(self) -> int:
        return max(self.floors or (0,))

    def raise_floor(self, now: int) -> None:
        """An exchange through this worker ended that was not a proven pure read (R4)."""
        at = FLOORS + self._place.index if self.number else FLOORS
        if now > self.words[at]:
            self.words[at] = now

    def fill_point(self) -> int | None:
        """V for a fill that begins now; None when nothing may be filled."""
        return (self.head[V] or None) if self._fills and self._current else None

    def visible(self) -> int:
        """The position that dates an analysis begun now; 0 when none can be dated, which no entry survives."""
        return self.fill_point() or 0

    def schema_lsn(self) -> int:
        """An analysis older than this is outdated."""
        return self.words[SCHEMA]

    def confirmed(self) -> int:
        """See ``DatabaseCoherence``."""
        return self._confirmed

    def shared_epoch(self) -> bytes:
        """See ``DatabaseCoherence``."""
        identity = self.identity
        return b"" if identity is None or not self.number else server_epoch(identity, self.ledger.row_slots)

    def own_epoch(self) -> bytes:
        """See ``DatabaseCoherence``."""
        shared = self.shared_epoch()
        return shared and digest(shared, bytes.fromhex(self._facts.get("nonce", "")))

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        return self.ledger.tags_of(slots)

    def slots_for(self, tags: Sequence[bytes]) -> tuple[int, ...] | None:
        return self.ledger.slots_for(tags, self.slot_of)

    def slot_of(self, oid: int) -> int:
        """See rule 1."""
        return self.ledger.known(oid)

    def watch(self, oid: int, columns: Columns) -> int:
        """The wildcard of a column set; 0 where it is not known, which asks for it (rule 2)."""
        slot = self.ledger.known_wildcard(oid, columns)
        wanted = (oid, columns)
        if not slot and self.number and wanted not in self._asked and wanted not in self._refused:
            self._asked.add(wanted)
            self._send({"kind": "watch", "oid": oid, "columns": columns})
        return slot

    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int:
        return self.ledger.row_slot(oid, columns, values)

    def wait_fresh(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """True as soon as ``fresh_at >= floor_ns``; False after ``timeout_s``, or when main is gone."""
        loop = asyncio.get_running_loop()
        fresh = self.head[FRESH_AT] >= floor_ns
        if fresh or not self.number or self._place.channel.ended:
            known: asyncio.Future[bool] = loop.create_future()
            known.set_result(fresh)
            return known
        future = self._waiting.add(floor_ns, timeout_s)
        if self._want is None:
            loop.call_soon(self._ask_for_proof)
            self._want = floor_ns, timeout_s
        else:
            self._want = max(self._want[0], floor_ns), max(self._want[1], timeout_s)
        return future

    def _ask_for_proof(self) -> None:
        want, self._want = self._want, None
        if want is not None:
            self._waiting.prune()
            if not self._place.channel.full:  # main does not read: nobody is helped by asking again and again
                self._place.channel.send(Want(self.number, *want))

    def catalogue_alarm(self, reason: str) -> None:
        """A DDL, GRANT or REVOKE was seen, and is about to be acknowledged (rule 3)."""
        if not self.number:
            return
        words, index = self.words, self._place.index
        words[ALARMS + index] += 1
        now = now_ns()
        words[ALARMED + index] = now
        self.raise_floor(now)
        self._send({"kind": "alarm", "reason": reason})

    def schedule_poll(self) -> None:
        """Something opaque ran that may have changed the catalogue: look soon."""
        self._send({"kind": "poll"})

    def note_traffic(self) -> None:
        """Somebody uses this database: probes and polls keep up with it."""
        now = now_ns()
        if now - self._told_traffic > _TRAFFIC_NS and self.number and not self._place.channel.full:
            self._told_traffic = now
            self._place.channel.send(Traffic(self.number))

    def _send(self, message: dict[str, Any]) -> None:
        if self.number:
            self._place.channel.send({**message, "db": self.number})

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """A question about the catalogue on the worker's own connection. Raises UpstreamError."""
        self._may_ask()
        return await self._questions.ask(sql, params)

    def _may_ask(self) -> Mapping[str, str]:
        """Where the server is that main follows. Raises UpstreamError."""
        where: Mapping[str, str] | None = self._facts.get("where")
        if self._left or not where:
            raise UpstreamError("this database is not followed now", where=self.name, hint=self.hint)
        return where

    async def _connect(self) -> Connection:
        """See rule 5; as in ``Link``, addresses may lead to several servers."""
        where, place, expected = self._may_ask(), self._place, self._facts["identity"]
        conninfo = make_conninfo(place.conninfo, dbname=self.name, **where)
        try:
            connection = await connect(
                conninfo, timeout_s=place.options.connect_timeout_s, statement_ms=STATEMENT_MS, lock_ms=LOCK_MS
            )
            row = await (await connection.execute(IDENTITY.encode())).fetchone()
        except (psycopg.Error, OSError, TimeoutError, NotServing) as error:
            raise UpstreamError(
                "PostgreSQL cannot be asked about its catalogue", where=self.name,
                hint="each worker needs a connection of its own per database: see max_connections",
            ) from error
        if row is None or list(row) != list(expected)[: len(row)] or self._facts["identity"] != expected:
            await close(connection)
            raise UpstreamError(
                "another server answered than the one that is followed", where=self.name,
                hint="name one host in upstream.url, not several and no load balancer",
            )
        return connection

    def report(self) -> dict[str, object]:
        """Names and values for ``SHOW distribcache.freshness``, as far as they are known here."""
        fresh_at = self.head[FRESH_AT]
        return {
            "mode": self.mode, "plugin": self.plugin or None, "serving": self.serving, "reason": self.reason or None,
            "detail": self.detail or None, "hint": self.hint or None,
            "staleness_ms": round((now_ns() - fresh_at) / 1e6, 3) if fresh_at else None,
        }  # fmt: skip

    def watched(self) -> list[Watched]:
        """Main knows them."""
        return []

    async def start(self) -> None:
        """Main does that."""

    async def stop(self) -> None:
        """Leave the database."""
        self.stop_serving()
        await self.leave()
