"""The store that a proxy and the library have in common: L1, the tiers below it, and the way between them.

Down. An answer is given to the tiers below once it is *settled*: a probe that began after its reply has been reached by
the change stream, so all that it shows is durable, and rule R1 still holds then. Until then it waits here, in order. So
whatever is found below was true at a position that no crash of the server takes back. The position of its analysis is
raised to the last look at the catalogue that confirmed it: other nodes' schema slots may be younger than the analysis.

Up. A record becomes an entry of this process only when its epoch is this one, all that it depends on is followed here,
its positions make sense, and R1 holds; the check of freshness (R4) is the caller's, as with every hit. Epochs: a record
of L3 has the server's, which all nodes share; one of L2 has that of this coverage, because only this ledger has
followed it.

Expensive misses. One node of the cluster asks PostgreSQL, the others wait for what it puts into L3 (a *lease*); whoever
waits takes the result only as any other record, by all rules of the way up. How dear a miss is, is known once it was
asked; a key that was cheap needs no lease. Workers of one node that has L2 and no L3 do the same over L2, and main says
whose turn it is (``turns``); what is too small for L2 is placed there if somebody waits for it.

Keys of the tiers below are digests of the server's epoch, of the identity by content, and of the request as L1 knows
it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from distribcache.clock import CoarseClock, now_ns, wall_time
from distribcache.coherence.database import Coherence
from distribcache.coherence.epoch import digest as digest_of
from distribcache.coherence.ledger import FRESH_AT
from distribcache.coherence.validity import valid
from distribcache.entry import (
    ANALYSIS,
    AT_NS,
    COST_NS,
    FILL,
    PAYLOAD,
    SLOTS,
    TABLES,
    WORKLOAD,
    Entry,
    make_entry,
)
from distribcache.query import WorkloadType
from distribcache.tiers.base import Key, Record
from distribcache.tiers.hot import HotCache
from distribcache.tiers.outcomes import Large
from distribcache.tiers.stack import Stack

__all__ = ["Place", "Store"]

_WAITING: Final = 4096
_WAITING_BYTES: Final = 64 << 20
"""What may wait to be settled, per process; the oldest give way."""
_POLL_S: Final = 0.002
_POLL_MOST_S: Final = 0.025
_PROOF_S: Final = 1.0
_WORTH_A_TURN: Final = frozenset({WorkloadType.OLAP.value, WorkloadType.VECTOR.value})
"""Classes whose misses are dear as a rule: a turn costs a message to main and back, some 0.2 ms."""
_PATIENCE_NS: Final = 10_000_000_000
"""What has not settled by then goes nowhere: the stream is late or gone."""


class Place(NamedTuple):
    """Where an answer is kept below L1: its digest, and which of the tiers it belongs to. ``turn``: no L3, and other
    workers may want it.
    """

    digest: bytes
    near: bool
    far: bool
    turn: bool = False


class Peers(Protocol):
    """Other workers of this node."""

    async def take(self, digest: bytes, seconds: float, patience: float) -> bool: ...
    def give_back(self, digest: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class _Unsettled:
    key: Key
    entry: Entry
    place: Place
    coherence: Coherence
    since_ns: int
    rows: int
    ttl: float


class Store:
    """One per process."""

    def __init__(
        self, l1: HotCache, stack: Stack, clock: CoarseClock, *,
        lease_cost_ns: int = 20_000_000, patience_s: float = 5.0,
    ) -> None:  # fmt: skip
        self.l1 = l1
        self.stack = stack
        self.clock = clock
        self._lease_cost_ns = lease_cost_ns
        self.patience_s = patience_s
        """How long anybody waits for another's miss, and so how long a lease lives."""
        self._cheap: OrderedDict[Key, None] = OrderedDict()
        self._leases: dict[bytes, asyncio.Future[None]] = {}
        self._leased: set[bytes] = set()
        self.turns: Peers | None = None
        """Where there are several workers."""
        self._wanted: set[bytes] = set()
        """What another worker waits for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: deque[_Unsettled] = deque()
        self._waiting_bytes = 0

    def place(
        self, coherence: Coherence, identity: bytes, request: bytes, *, workload: str, ttl: float
    ) -> Place | None:
        """Where an answer to ``request`` for ``identity`` (a digest of its content) is kept below L1; None: nowhere.

        Both are what L1's key means to every process.
        """
        stack = self.stack
        if not stack or not identity:
            return None
        near, far = stack.takes_near(1 << 62, ttl), stack.takes_far(workload)
        epoch = coherence.shared_epoch() if near or far else b""
        if not epoch:
            return None
        turn = near and stack.far is None and self.turns is not None and workload in _WORTH_A_TURN
        return Place(digest_of(epoch, identity, request), near, far, turn)

    # -- down

    def put(self, key: Key, entry: Entry, place: Place | None, coherence: Coherence, *, ttl: float, rows: int) -> bool:
        """Keep an entry in L1, and below it as soon as it is settled. False: it is too large for L1."""
        kept = self.l1.put(key, entry)
        if place:
            if (place.far or place.turn) and entry[COST_NS] < self._lease_cost_ns:
                self._cheap[key] = None
                if len(self._cheap) > _WAITING:
                    self._cheap.popitem(last=False)
            self._wait(_Unsettled(key, entry, place, coherence, now_ns(), rows, ttl))
        return kept

    def _wait(self, one: _Unsettled) -> None:
        self._waiting.append(one)
        self._waiting_bytes += len(one.entry[PAYLOAD])
        while len(self._waiting) > _WAITING or self._waiting_bytes > _WAITING_BYTES:
            self._next()

    def _next(self) -> _Unsettled:
        one = self._waiting.popleft()
        self._waiting_bytes -= len(one.entry[PAYLOAD])
        return one

    def forget(self, key: Key) -> None:
        """Its answer was dropped by hand: what waits of it goes nowhere."""
        self._waiting = deque(one for one in self._waiting if one.key != key)
        self._waiting_bytes = sum(len(one.entry[PAYLOAD]) for one in self._waiting)

    def settle(self) -> None:
        """Give down what has settled meanwhile. Call it now and then, and when freshness has moved."""
        waiting, now = self._waiting, now_ns()
        for _ in range(len(waiting)):
            one = self._next()
            coherence = one.coherence
            if now - one.since_ns > _PATIENCE_NS:
                continue
            if coherence.head[FRESH_AT] < one.since_ns:
                coherence.note_traffic()  # the proof is asked for even if nobody reads any more
                self._wait(one)
            elif valid(one.entry, coherence.words, self.clock.now, coherence.head):
                self._give(one)

    def _give(self, one: _Unsettled) -> None:
        entry, coherence = one.entry, one.coherence
        tags = coherence.tags_of(entry[SLOTS])
        if tags is None:
            return
        wall, now = wall_time(), now_ns()
        age = max(0.0, (now - entry[AT_NS]) / 1e9)
        record = Record(
            payload=entry[PAYLOAD],
            fill=entry[FILL],
            analysis=min(max(entry[ANALYSIS], coherence.confirmed()), entry[FILL]),
            tags=tags,
            epoch=coherence.shared_epoch(),
            filled_at=wall - age,
            expires_at=wall - age + one.ttl,
            cost_ns=entry[COST_NS],
            rows=one.rows,
            tables=entry[TABLES],
            workload=entry[WORKLOAD],
        )
        self._place(one.place, record, coherence)

    def _place(self, place: Place, record: Record, coherence: Coherence) -> None:
        """Put a record, which has the server's epoch, where it belongs."""
        size = 1 << 62 if place.digest in self._wanted else len(record.payload)
        if place.near and self.stack.takes_near(size, record.expires_at - record.filled_at):
            self.stack.put_near(place.digest, replace(record, epoch=coherence.own_epoch()))
        if place.far:
            self.stack.put_far(place.digest, record)

    # -- up

    def rise_near(self, key: Key, place: Place, coherence: Coherence) -> Entry | Large | None:
        """The answer from L2, in L1 too now; None when it is gone or not valid. ``LARGE``: ask ``rise_far``."""
        found = self.stack.find_near(place.digest) if place.near else None
        return found if isinstance(found, Large) else self._from_near(key, found, coherence)

    def _from_near(self, key: Key, record: Record | None, coherence: Coherence) -> Entry | None:
        if record is None or record.epoch != coherence.own_epoch():
            return None
        return self._rise(key, record, coherence)

    async def rise_far(self, key: Key, place: Place, coherence: Coherence, *, large: bool = False) -> Entry | None:
        """The answer from L3, now in the tiers above too; None when it is not there or no longer valid.

        ``large``: L2 has it, and ``rise_near`` has left it, because reading it takes its time.
        """
        if large:
            entry = self._from_near(key, await self.stack.fetch_near(place.digest), coherence)
            if entry is not None:
                return entry
        record = await self.stack.find_far(place.digest) if place.far else None
        if record is None or record.epoch != coherence.shared_epoch():
            return None
        entry = self._rise(key, record, coherence)
        if entry is not None:
            self._place(Place(place.digest, place.near, far=False), record, coherence)
        return entry

    def _rise(self, key: Key, record: Record, coherence: Coherence) -> Entry | None:
        """An entry of this process, or None; the caller has compared epochs."""
        slots = coherence.slots_for(record.tags)
        if slots is None or not 0 < record.analysis <= record.fill:
            return None
        now, wall = now_ns(), wall_time()
        if coherence.mode == "ttl" and record.is_ahead(wall):
            return None
        entry = make_entry(
            record.payload,
            fill=record.fill,
            analysis=record.analysis,
            slots=slots,
            epoch=coherence.epoch,
            expires=self.clock.now + record.left(wall),
            cost_ns=record.cost_ns,
            at_ns=now - int(max(0.0, wall - record.filled_at) * 1e9),
            tables=record.tables,
            workload=record.workload,
        )
        if not valid(entry, coherence.words, self.clock.now, coherence.head):
            return None
        self.l1.put(key, entry)
        return entry

    # -- expensive misses

    def dear(self, key: Key, place: Place) -> bool:
        """May this miss be so expensive that one node should ask for all?"""
        return (place.far or place.turn) and self.patience_s > 0 and key not in self._cheap

    async def lead(self, key: Key, place: Place, coherence: Coherence, seconds: float) -> Entry | None:
        """The answer, from the node that asked; None: this node may ask PostgreSQL, or ``seconds`` are over.

        All who ask for one key wait for one lease.
        """
        waiting = self._leases.get(place.digest)
        if waiting is not None:
            await asyncio.wait([waiting], timeout=seconds)
            entry = self.l1.entries.get(key)  # a commit may have ended it since the leader looked
            return entry if entry and valid(entry, coherence.words, self.clock.now, coherence.head) else None
        mine = self._leases[place.digest] = asyncio.get_running_loop().create_future()
        try:
            return await self._lease(key, place, coherence, now_ns() + int(seconds * 1e9))
        except asyncio.CancelledError:
            self.landed(place)  # whoever would have asked has gone
            raise
        finally:
            del self._leases[place.digest]
            mine.set_result(None)

    async def _lease(self, key: Key, place: Place, coherence: Coherence, until: int) -> Entry | None:
        if place.digest in self._leased:  # it is this process's, and whoever took it does not ask
            return None
        pause = _POLL_S
        while place.far or place.turn:
            if await self._claim(place, until):
                self._leased.add(place.digest)
                # Between the last look and the lease, its former owner may have put the answer there.
                entry = await self._rise_shared(key, place, coherence)
                if entry is not None:
                    self.landed(place)
                return entry
            if now_ns() > until:
                return None
            # What happens on another machine sends no event here.
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _POLL_MOST_S)
            entry = await self._rise_shared(key, place, coherence)
            if entry is not None:
                return entry
        return None

    async def _claim(self, place: Place, until: int) -> bool:
        """May this process ask? Without anybody to ask about that it may."""
        if place.far:
            return self.stack.far is None or await self.stack.far.lease(place.digest, self.patience_s)
        patience = max(0.0, (until - now_ns()) / 1e9)
        return self.turns is None or await self.turns.take(place.digest, self.patience_s, patience)

    async def _rise_shared(self, key: Key, place: Place, coherence: Coherence) -> Entry | None:
        """From the tier that is shared with whoever asked."""
        if place.far:
            return await self.rise_far(key, place, coherence)
        found = self.rise_near(key, place, coherence)
        return await self.rise_far(key, place, coherence, large=True) if isinstance(found, Large) else found

    def wanted(self, digest: bytes) -> None:
        """Another worker waits for what this one asks."""
        if len(self._wanted) < _WAITING:
            self._wanted.add(digest)

    def landed(self, place: Place) -> None:
        """The miss that a lease was for has ended: the others may have its answer, or ask themselves."""
        if place.digest in self._leased:
            self._leased.discard(place.digest)
            task = asyncio.get_running_loop().create_task(self._unlease(place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _unlease(self, place: Place) -> None:
        """Give the answer down as soon as it can be proved to be durable, then the lease back."""
        near, far = self.stack.near, self.stack.far
        wanted = place.far or place.digest in self._wanted
        mine = [one for one in self._waiting if one.place.digest == place.digest] if wanted else []
        if mine:
            await mine[-1].coherence.wait_fresh(now_ns(), _PROOF_S)
            self.settle()
        if place.far and far is not None:
            await far.flush(_PROOF_S)
            await far.unlease(place.digest)
        elif self.turns is not None:
            try:
                if mine and near is not None:
                    await asyncio.to_thread(near.flush, _PROOF_S)
            finally:
                self._wanted.discard(place.digest)
                self.turns.give_back(place.digest)
