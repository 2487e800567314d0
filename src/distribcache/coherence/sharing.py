"""What the process that follows databases does for its workers: it tells them where each one stands, and does for them
what they cannot.

``SharedDatabases`` is ``Databases`` with workers. A worker counts as one client of each database that it has clients
in. Every worker maps the ledger of every database, used or not: a change of roles concerns them all.

Rules:
1. A database begins to be followed only when all workers have its ledger: from then on each can raise an alarm there.
   A worker is told of all databases before it lets clients in.
2. To leave a database means that every worker has closed its side connection too.
3. States replace each other: one per worker and database is sent behind a round of the event loop, at once where a hit
   waits for it or hits must stop, else a millisecond's worth at a time; and none while the worker does not read. What
   they rest on (slots, wildcards, facts) is sent before them.
4. What a worker held ends with it: clients, databases that were left for it. Its last exchanges may have written or
   changed the catalogue: its floor is raised and an alarm too.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from distribcache.clock import now_ns
from distribcache.coherence.channel import Channel, Message, State, Traffic, Want
from distribcache.coherence.database import Coherence, Databases
from distribcache.coherence.ledger import FLOORS, FRESH_AT, V, W, memory
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.options import Options

__all__ = ["Peer", "SharedDatabases"]

_PATIENCE_S = 10.0
_GATHER_S = 0.001
_MOST_WANTED = 256
_AT_ONCE = 4000
"""Slots in one message."""


class Peer:
    """One worker, as the main process sees it. ``files``: the socket over which descriptors go."""

    def __init__(self, index: int, channel: Channel, files: socket.socket) -> None:
        self.index = index
        self.channel = channel
        self.files = files
        self.held: set[str] = set()
        """Databases that it has clients in."""
        self.left: list[str] = []
        """Databases that are left for a statement of one of its clients, once for each."""
        self.states: dict[int, State] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.facts: dict[int, dict[str, Any]] = {}
        self.hangs = False
        """It was given up."""
        self.owes: set[tuple[str, int]] = set()
        """Answers that others wait for: ("mapped" or "left", database)."""


class SharedDatabases(Databases):
    """See the module."""

    def __init__(
        self, conninfo: str, options: Options, log: Callable[[str], None] = lambda _: None, *, workers: int
    ) -> None:
        super().__init__(conninfo, options, log)
        self.peers: dict[int, Peer] = {}
        self._workers = workers
        self._shared: dict[int, tuple[Coherence, int]] = {}
        """Databases by number, with the descriptor of their ledger, or -1."""
        self._numbers: dict[int, int] = {}
        """Numbers by the identity of the object."""
        self._next = 1
        self._flushing = False
        self._later: asyncio.TimerHandle | None = None
        self._wanted: dict[int, list[int]] = {}
        """By the identity of a database: the floors that hits in some worker wait for."""
        self._answered = asyncio.Condition()

    # -- databases

    def acquire(self, name: str) -> Coherence:
        found = super().acquire(name)
        if id(found) not in self._numbers:
            self._announce(found, -1)
        return found

    def _followed(self, name: str) -> DatabaseCoherence:
        fd = memory()
        coherence = DatabaseCoherence(
            self._conninfo, name, self._options, self._log, workers=self._workers, fd=fd
        )
        coherence.coverage.on_move = lambda: self._moved(coherence)
        self._announce(coherence, fd)
        return coherence

    def _announce(self, coherence: Coherence, fd: int) -> None:
        number, self._next = self._next, self._next + 1
        self._shared[number] = coherence, fd
        self._numbers[id(coherence)] = number
        for peer in self.peers.values():
            self._open_for(peer, number)

    def _open_for(self, peer: Peer, number: int) -> None:
        coherence, fd = self._shared[number]
        if fd >= 0:
            try:
                socket.send_fds(peer.files, [b"\0"], [fd])
            except OSError:
                peer.channel.abort()
                return
            peer.owes.add(("mapped", number))
        options = self._options
        peer.channel.send(
            {
                "kind": "open", "db": number, "name": coherence.name, "mode": coherence.mode,
                "reason": coherence.reason, "tables": options.tables, "shared": fd >= 0,
            }
        )

    async def _enter(self, coherence: Coherence) -> None:
        number = self._numbers.get(id(coherence))
        if number is not None:
            await self._settled("mapped", number)  # rule 1
            self._tell({"kind": "back", "db": number})
        await super()._enter(coherence)
        self._flush_soon()

    async def _quit(self, coherence: Coherence) -> None:
        number = self._numbers.get(id(coherence))
        if number is not None:
            for peer in self.peers.values():
                peer.owes.add(("left", number))
                peer.channel.send({"kind": "leave", "db": number, "name": coherence.name})
        await super()._quit(coherence)
        if number is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._settled("left", number)  # rule 2
        except TimeoutError:
            for peer in self.peers.values():
                if ("left", number) in peer.owes:
                    peer.hangs = True  # its connections end with it
                    peer.channel.abort()
            await self._settled("left", number)
        if self._open.get(coherence.name) is not coherence:
            _, fd = self._shared.pop(number)
            del self._numbers[id(coherence)]
            self._wanted.pop(id(coherence), None)
            self._tell({"kind": "close", "db": number, "name": coherence.name})
            for peer in self.peers.values():
                for known in (peer.states, peer.sizes, peer.facts):
                    known.pop(number, None)
            if fd >= 0:
                os.close(fd)

    async def _settled(self, what: str, number: int) -> None:
        """Wait until no worker owes this answer any more; one that is gone owes nothing."""
        async with self._answered:
            await self._answered.wait_for(
                lambda: not any((what, number) in peer.owes for peer in self.peers.values())
            )

    def _answer(self, peer: Peer, what: str, number: int) -> None:
        peer.owes.discard((what, number))
        self._spawn(self._wake())

    async def _wake(self) -> None:
        async with self._answered:
            self._answered.notify_all()

    def _tell(self, message: dict[str, Any], but: Peer | None = None) -> None:
        for peer in self.peers.values():
            if peer is not but:
                peer.channel.send(message)

    # -- workers

    def join(self, peer: Peer) -> None:
        """A worker has begun; what it says is given to ``hear``."""
        self.peers[peer.index] = peer
        for number in self._shared:
            self._open_for(peer, number)
        self._flush(peer)
        peer.channel.send({"kind": "told"})

    def part(self, peer: Peer) -> None:
        """A worker is gone."""
        if self.peers.get(peer.index) is not peer:
            return
        del self.peers[peer.index]
        peer.owes.clear()
        self._spawn(self._wake())
        for coherence, fd in list(self._shared.values()):
            if fd >= 0 and isinstance(coherence, DatabaseCoherence):
                words, at = coherence.words, FLOORS + peer.index
                coherence.catalogue_alarm("session_lost")
                words[at] = max(words[at], now_ns())
        self.reopen_all(peer.left)
        for name in peer.held:
            self.release(name)

    def reopen_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.reopen([name])

    def hear(self, peer: Peer, message: Message) -> None:
        """What a worker says. What is not for databases is ignored."""
        if isinstance(message, dict):
            self._hear(peer, message)
            return
        coherence, _ = self._shared.get(message.database, (None, -1))
        if coherence is None:
            return
        if isinstance(message, Traffic):
            coherence.note_traffic()
        elif isinstance(message, Want):
            wanted = self._wanted.setdefault(id(coherence), [])
            if len(wanted) < _MOST_WANTED:  # those beyond it are told a little later
                wanted.append(message.floor_ns)
            coherence.wait_fresh(message.floor_ns, message.seconds)
            if coherence.head[FRESH_AT] >= message.floor_ns:
                self._flush_soon()

    def _hear(self, peer: Peer, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "acquire":
            if message["name"] not in peer.held:
                peer.held.add(message["name"])
                found = self.acquire(message["name"])
                if found.mode == "off":
                    self._open_for(peer, self._numbers[id(found)])
        elif kind == "release":
            if message["name"] in peer.held:
                peer.held.discard(message["name"])
                self.release(message["name"])
        elif kind == "close_for_ddl":
            peer.left += message["names"]
            self._spawn(self._leave_for(peer, message))
        elif kind == "reopen":
            for name in message["names"]:
                if name in peer.left:
                    peer.left.remove(name)
                    self.reopen([name])
        elif kind == "ttl_alarm":
            for each in self:
                if each.mode == "ttl" and message["name"] in ("", each.name):
                    each.catalogue_alarm(message["reason"])
            self._tell(message, but=peer)
        elif kind in ("mapped", "left"):
            self._answer(peer, kind, message["db"])
        elif "db" in message:
            coherence, _ = self._shared.get(message["db"], (None, -1))
            if isinstance(coherence, DatabaseCoherence):
                self._hear_of(peer, coherence, message)

    def _hear_of(self, peer: Peer, coherence: DatabaseCoherence, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "alarm":
            coherence.hear(message["reason"])
        elif kind == "poll":
            coherence.schedule_poll()
        elif kind == "watch":
            oid, columns = int(message["oid"]), tuple(map(str, message["columns"]))
            if coherence.watch(oid, columns):
                self._flush_soon()
            else:
                peer.channel.send({**message, "kind": "unwatched"})

    async def _leave_for(self, peer: Peer, message: dict[str, Any]) -> None:
        await self.close_for_ddl(message["names"])
        peer.channel.send({"kind": "answer", "id": message["id"]})

    # -- states

    def _moved(self, coherence: DatabaseCoherence) -> None:
        """Now, if somebody waits for it or hits must stop. Else a busy stream would wake all workers all the time."""
        fresh_at, wanted = coherence.words[FRESH_AT], self._wanted.get(id(coherence), [])
        waiting = [floor for floor in wanted if floor > fresh_at]
        if len(waiting) < len(wanted) or not fresh_at:
            self._wanted[id(coherence)] = waiting
            self._flush_soon()
        elif self._later is None and not self._flushing:
            self._later = asyncio.get_running_loop().call_later(_GATHER_S, self._flush_soon)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush_all)

    def _flush_all(self) -> None:
        self._flushing = False
        if self._later is not None:
            self._later.cancel()
            self._later = None
        for peer in self.peers.values():
            self._flush(peer)

    def flush(self, peer: Peer) -> None:
        """It reads again."""
        self._flush(peer)

    def _flush(self, peer: Peer) -> None:
        if peer.channel.full:
            return
        for number, (coherence, fd) in self._shared.items():
            if fd < 0 or not isinstance(coherence, DatabaseCoherence):
                continue
            self._flush_slots(peer, number, coherence)
            facts = _facts(coherence)
            if peer.facts.get(number) != facts:
                peer.facts[number] = facts
                peer.channel.send({"kind": "facts", "db": number, **facts})
            words, coverage = coherence.words, coherence.coverage
            state = State(
                number, coherence.serving, coverage.running and not coverage.alarms, coherence.epoch,
                words[W], words[V], words[FRESH_AT], coherence.looked_at, coverage.confirmed, coverage.heard,
            )  # fmt: skip
            if peer.states.get(number) != state:
                peer.states[number] = state
                peer.channel.send(state)

    def _flush_slots(self, peer: Peer, number: int, coherence: DatabaseCoherence) -> None:
        ledger = coherence.ledger
        sizes, told = ledger.sizes(), peer.sizes.get(number, (0, 0))
        if sizes == told:
            return
        peer.sizes[number] = sizes
        slots, wildcards = ledger.slots(told[0]), ledger.wildcards(told[1])
        for at in range(0, max(len(slots), len(wildcards)), _AT_ONCE):
            peer.channel.send(
                {
                    "kind": "slots", "db": number, "slots": slots[at : at + _AT_ONCE],
                    "wildcards": wildcards[at : at + _AT_ONCE],
                }
            )


def _facts(coherence: DatabaseCoherence) -> dict[str, Any]:
    identity = coherence.identity
    return {
        "reason": coherence.reason, "detail": coherence.detail, "hint": coherence.hint, "plugin": coherence.plugin,
        "version": coherence.server_version_num, "nonce": coherence.coverage.nonce.hex(), "where": coherence.where,
        "identity": identity and [
            identity.system_identifier, identity.postmaster_start, identity.in_recovery, identity.timeline,
            identity.database_oid,
        ],
    }  # fmt: skip
