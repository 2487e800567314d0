"""The servers of a cluster, or one server alone: links to all that own slots, and looks at who owns which.

Rules:

1. A primary has two links: one for questions that somebody waits for, one for what is written in the background, so
   that a large entry on its way out never makes a question late.
2. A look is a short connection of its own to any server that answers: those with a link that is up first. It is taken
   at the start, every 30 s, and when there is a doubt: a MOVED, a server that says it owns nothing or may not be
   written, a link that went down. While a doubt stays, looks come at most every 1/4 s, growing to 1 s.
3. What a look finds replaces what was known as a whole: links of servers that own nothing any more end.
4. A slot whose owner is down or unknown is a miss. Fewer copies than ``replication_factor`` are said once and kept as a
   note; they are no reason to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distribcache.clock import now_ns
from distribcache.config.units import Address
from distribcache.errors import internal_error
from distribcache.tiers.breaker import Breaker
from distribcache.tiers.connection import ARRAY, Access, Lost, UnusableError, dial
from distribcache.tiers.link import UNTRIED, Link
from distribcache.tiers.resp import MalformedReplyError, Refusal, command
from distribcache.tiers.topology import SLOTS, Topology, read_role, read_slots

__all__ = ["Limits", "Mesh", "Peer"]

_LOOK_S = 30.0
_LEAST_GAP_S = 0.25
_MOST_GAP_S = 1.0
_LINES = 10
_LINE_NS = 6_000_000_000
"""So many lines at once, and one in so many nanoseconds for ever."""
_READ_WATER = 1 << 18
_WRITE_WATER = 1 << 24


@dataclass(frozen=True, slots=True)
class Limits:
    deadline: float
    write_deadline: float
    failures: int
    pause: float
    replication_factor: int


class Peer:
    """A server that owns slots."""

    __slots__ = ("address", "reads", "writes")

    def __init__(self, address: Address, access: Access, limits: Limits, changed: Callable[[], None]) -> None:
        self.address = address
        self.reads, self.writes = (
            Link(
                address, access, deadline=deadline, failures=limits.failures, pause=limits.pause, high_water=water,
                changed=changed,
            )
            for deadline, water in ((limits.deadline, _READ_WATER), (limits.write_deadline, _WRITE_WATER))
        )  # fmt: skip

    def stop(self) -> list[asyncio.Task[None]]:
        """End both; the tasks are done when that is done."""
        return [task for task in (self.reads.stop(), self.writes.stop()) if task is not None]


class Mesh:
    """``owners[slot]`` is the peer to ask, or None."""

    def __init__(self, seeds: Sequence[Address], access: Access, limits: Limits, log: Callable[[str], None]) -> None:
        self.owners: list[Peer | None] = [None] * SLOTS
        self.peers: dict[Address, Peer] = {}
        self.looks = 0
        self._seeds = tuple(seeds)
        self._access = access
        self._limits = limits
        self._log = log
        self._topology: Topology | None = None
        self._failed_look = UNTRIED
        self._hint: Address | None = None
        self._doubt = asyncio.Event()
        self._well = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._said = ""
        self._lines_until = 0
        """Up to when lines are spent, as a time: each takes some seconds of it."""

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def known(self) -> int:
        """How many servers there should be to ask."""
        return len(self.peers) or len(self._seeds)

    @property
    def healthy(self) -> int:
        return sum(peer.reads.connection is not None for peer in self.peers.values())

    @property
    def reason(self) -> tuple[str, str]:
        """Why nobody can be asked, in one stable word and for people; both empty when somebody can."""
        if self.healthy:
            return "", ""
        for peer in self.peers.values():
            return peer.reads.reason, f"{peer.address.host}:{peer.address.port}: {peer.reads.detail}"
        return self._failed_look

    @property
    def note(self) -> str:
        """What people should know though the tier is on."""
        notes = []
        topology = self._topology
        if topology is not None:
            wanted = self._limits.replication_factor
            if 0 < topology.copies < wanted:
                notes.append(f"l3.replication_factor is {wanted}, but some keys have {topology.copies} copies")
            if not topology.writable:
                notes.append("the server is a replica: nothing can be stored")
            if topology.clustered and topology.covered < SLOTS:
                notes.append(f"{SLOTS - topology.covered} of {SLOTS} slots have no owner")
        if 0 < self.healthy < len(self.peers) and all(peer.reads.reason != UNTRIED[0] for peer in self.peers.values()):
            notes.append(f"{len(self.peers) - self.healthy} of {len(self.peers)} servers cannot be asked")
        unwritable = sum(not each.writes.connection for each in self.peers.values() if each.reads.connection)
        if unwritable and all(peer.writes.reason != UNTRIED[0] for peer in self.peers.values()):
            notes.append(f"{unwritable} of {len(self.peers)} servers cannot be written")
        return "; ".join(notes)

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        task, self._task = self._task, None
        self._log = _unsaid  # that it ends is no news
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self.owners = [None] * SLOTS
        peers, self.peers = list(self.peers.values()), {}
        for peer in peers:
            self._leave(peer)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def well(self, seconds: float) -> bool:
        """Wait until every server that owns slots can be asked; False when that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._well.wait()
        return self._well.is_set()

    def doubt(self, hint: Address | None = None) -> None:
        """What is known may be out of date: look soon, if possible at ``hint``."""
        self._hint = hint
        self._doubt.set()

    # -- looking -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        gap = _LEAST_GAP_S
        while True:
            began = now_ns()
            self._doubt.clear()
            try:
                found = await self._look()
            except Exception as error:  # noqa: BLE001 - a failure of ours is a reason, never an end
                found, self._failed_look = None, ("internal", internal_error(error).message)
            if found is not None and found != self._topology:
                gap = _LEAST_GAP_S
                self._take(found)
            self._tell()
            in_doubt = found is None or self.healthy < len(self.peers) or not self.peers
            if in_doubt or self._doubt.is_set():
                gap_now, gap = gap, min(2 * gap, _MOST_GAP_S)
            else:
                gap_now = gap = _LEAST_GAP_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):  # wait_for may swallow a cancellation
                        await self._doubt.wait()
            await asyncio.sleep(max(0.0, gap_now - (now_ns() - began) / 1e9))

    async def _look(self) -> Topology | None:
        """The topology as the first server that answers says it."""
        self.looks += 1
        asked: set[Address] = set()
        replica = None
        for address in self._candidates():
            if address in asked:
                continue
            asked.add(address)
            try:
                found = await self._ask(address)
            except UnusableError as error:
                self._failed_look = error.code, f"{address.host}:{address.port}: {error}"
                continue
            if found.writable and found.ranges:
                return found
            replica = replica or (found if found.ranges else None)
            self._failed_look = "no_owner", f"{address.host}:{address.port}: no slot has an owner"
        return replica

    def _candidates(self) -> list[Address]:
        hint, self._hint = self._hint, None
        peers = sorted(self.peers.values(), key=lambda peer: peer.reads.connection is None)
        replicas = self._topology.replicas if self._topology is not None else ()
        return [*([hint] if hint else []), *(peer.address for peer in peers), *replicas, *self._seeds]

    async def _ask(self, address: Address) -> Topology:
        """Raises UnusableError."""
        breaker = Breaker(1, 1.0, 1.0)
        breaker.try_again()
        timeout = self._access.connect_timeout
        connection = await dial(address, self._access, timeout, breaker, _READ_WATER)
        try:
            answer = await connection.ask(command(b"CLUSTER", b"SLOTS"), ARRAY)
            if isinstance(answer, Refusal) and "cluster support disabled" in answer.text:
                answer = await connection.ask(command(b"ROLE"), ARRAY)
                if not isinstance(answer, Lost):
                    return read_role(answer, address)
            if isinstance(answer, Refusal):
                denied = answer.code == "noperm"
                raise UnusableError(
                    "denied" if denied else "refused",
                    f"it refuses CLUSTER SLOTS{' to this user' if denied else ''}",
                )
            if isinstance(answer, Lost):
                raise UnusableError(connection.code or "timeout", connection.why or "it does not say who owns what")
            return read_slots(answer, address)
        except MalformedReplyError as error:
            raise UnusableError("malformed", f"it sent {error}") from None
        finally:
            connection.end("stopped", "asked")

    def _take(self, found: Topology) -> None:
        self._topology = found
        wanted = found.primaries
        gone = [self.peers.pop(address) for address in list(self.peers) if address not in wanted]
        for address in wanted:
            if address not in self.peers:
                peer = self.peers[address] = Peer(address, self._access, self._limits, self._changed)
                peer.reads.start()
                peer.writes.start()
        owners: list[Peer | None] = [None] * SLOTS
        for first, last, address in found.ranges:
            owners[first : last + 1] = [self.peers[address]] * (last + 1 - first)
        self.owners = owners
        self._changed()
        for peer in gone:
            self._leave(peer)

    def _leave(self, peer: Peer) -> None:
        for task in peer.stop():
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _changed(self) -> None:
        """A link came or went."""
        peers = self.peers.values()
        if peers and all(each.reads.connection and each.writes.connection for each in peers):
            self._well.set()
        else:
            self._well.clear()
            if any(each.reads.reason not in ("", UNTRIED[0]) for each in peers):
                self._doubt.set()
        self._tell()

    def _tell(self) -> None:
        """One line when what people should know has changed; where it goes to and fro, only now and then."""
        reason, detail = self.reason
        now = f"off: {detail}" if reason else (self.note or "on")
        if now == self._said or reason == UNTRIED[0]:
            return
        clock = now_ns()
        self._lines_until = max(self._lines_until, clock - _LINES * _LINE_NS) + _LINE_NS
        if self._lines_until > clock:
            self._lines_until -= _LINE_NS  # the next look tells it, if it is still so
            return
        self._said = now
        self._log(f"L3 {now}")


def _unsaid(line: str) -> None:
    """To nobody."""
