"""One main process and its workers inside a test, without processes: messages go when the test says so.

``Crew`` has real ``SharedDatabases`` and ``Mirrors``, whose channels are queues, and one database, ``shop``, with
tables t and u, whose change stream, probe and catalogue are played by the test.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from distribcache.catalog.generation import CatalogueView, Relation, Relations
from distribcache.clock import CoarseClock, now_ns
from distribcache.coherence.channel import Channel, Message, State, Traffic, Want
from distribcache.coherence.decoding import Commit
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.mirror import Mirror, Place
from distribcache.coherence.mirrors import Mirrors
from distribcache.coherence.options import Options
from distribcache.coherence.sharing import Peer, SharedDatabases
from distribcache.coherence.visibility import Snapshot
from distribcache.entry import Entry, make_entry
from distribcache.proxy.hit import Hot, serve
from distribcache.wire.messages import query

T, U, NEW = 16384, 16385, 16390
OPTIONS = Options(tables=64)
READ = query(b"SELECT v FROM t")


class Line:
    """One end of a channel that keeps what is sent until it is delivered."""

    def __init__(self) -> None:
        self.ended = False
        self.full = False
        self.queue: deque[Message] = deque()
        self.hear: Callable[[Message], None] = lambda _: None

    def send(self, message: Message) -> None:
        """As a real one: what cannot be written as JSON, or packed, is an error here."""
        if self.ended:
            return
        if isinstance(message, dict):
            self.queue.append(json.loads(json.dumps(message)))
        else:
            assert isinstance(message, State | Want | Traffic) and message.packed()
            self.queue.append(message)

    def abort(self) -> None:
        self.ended = True

    close = abort

    def deliver(self, most: int = 1 << 30) -> None:
        """Let the other side hear."""
        while self.queue and most:
            most -= 1
            self.hear(self.queue.popleft())


class Hand:
    """One worker."""

    def __init__(self, main: SharedDatabases, index: int, workers: int) -> None:
        self.down, self.up = Line(), Line()
        files, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets = files, theirs
        self.place = Place(cast("Channel", self.up), index, workers, "host=nowhere", OPTIONS)
        self.mirrors = Mirrors(self.place, theirs)
        self.peer = Peer(index, cast("Channel", self.down), files)
        self.down.hear = self.mirrors.hear
        self.up.hear = lambda message: main.hear(self.peer, message)

    @property
    def shop(self) -> Mirror:
        return cast("Mirror", next(each for each in self.mirrors if each.name == "shop"))


class Crew:
    """See the module."""

    def __init__(self, workers: int = 2) -> None:
        self.main = SharedDatabases("host=nowhere", OPTIONS, workers=workers)
        self.hands = [Hand(self.main, index, workers) for index in range(workers)]
        self.at = 0
        self.generation = 0

    async def begin(self) -> Crew:
        """The database is served, and every worker was told."""
        for hand in self.hands:
            self.main.join(hand.peer)
        self.coherence = cast("DatabaseCoherence", self.main.acquire("shop"))
        await self.settle()
        self.coherence._state = None  # as when the link is up
        self.coverage = self.coherence.coverage
        self.coverage.begin(1000)
        self.probe(1000)
        self.look(1000, t=T, u=U)
        await self.settle()
        assert all(hand.shop.serving for hand in self.hands)
        return self

    async def run(self) -> None:
        """Let every task and callback go as far as it can; nothing is delivered."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """The same, and deliver everything."""
        for _ in range(6):
            await self.run()
            for hand in self.hands:
                hand.down.deliver()
                hand.up.deliver()

    def close(self) -> None:
        for hand in self.hands:
            for sock in hand.sockets:
                sock.close()

    # -- the server

    def commit(self, lsn: int, *names: str, slots: frozenset[int] = frozenset()) -> None:
        encoded = frozenset(f"public.{name}".encode() for name in names)
        self.coverage.commit(Commit(400, lsn, encoded, False, False, len(names), slots=slots))
        self.coverage.publish()

    def probe(self, insert: int) -> int:
        """Asked now, and answered at once."""
        self.at = now_ns()
        assert self.coverage.observe(self.at, 0, Snapshot(500, 500, frozenset()), insert)
        self.coverage.publish()
        return self.at

    def look(self, insert: int, **names: int) -> None:
        """A complete look at the catalogue, with these relations."""
        self.generation += 1
        by_name = {f"public.{name}".encode(): (oid,) for name, oid in names.items()}
        by_oid = {oid: Relation(oid, "r", "d", False, ()) for oid in names.values()}
        view = CatalogueView(
            Snapshot(500, 500, frozenset()), (self.generation,), (1,), Relations(by_name, by_oid, frozenset(by_oid))
        )
        self.coverage.reread(
            view, mark=self.coverage.alarms.mark, began_at=now_ns(), insert=insert, settled=True, began_lsn=insert
        )
        self.coverage.publish()


def entry_of(mirror: Mirror, *slots: int) -> Entry:
    """An entry that is filled now."""
    fill = mirror.fill_point()
    assert fill is not None
    return make_entry(
        b"answer", fill=fill, analysis=fill, slots=slots, epoch=mirror.epoch, expires=1e12, cost_ns=1, at_ns=1,
        tables="public.t", workload="oltp",
    )  # fmt: skip


def session_of(mirror: Mirror, entry: Entry, *, eventual: bool = False) -> Hot:
    """The hit path of a session whose scope is known under the present schema."""
    hot = Hot({(1, READ): entry}, None, CoarseClock(1.0), lambda _: None)
    hot.words, hot.head = mirror.words, mirror.head
    hot.floors = mirror.alarmed if eventual else mirror.floors
    hot.eventual = eventual
    hot.ident, hot.max_staleness = 1, 10**12
    hot.epoch, hot.schema = mirror.epoch, mirror.schema_lsn()
    return hot


def hits(hot: Hot) -> bool:
    """Is the read answered from memory?"""
    return serve(READ, 0, hot) == len(READ)
