"""The databases as a worker has them: ``Databases`` whose deeds are done by the main process.

Main decides which databases are followed and tells every worker of each; here clients are counted and passed on as one
per database. Where only time ends an entry each worker has a ``TtlOnly`` of its own, and passes on what it sees of the
catalogue: the others drop what they have as soon as they are told, which is all that mode promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from distribcache.coherence.channel import Message, State
from distribcache.coherence.database import Coherence, Databases
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.mirror import Mirror, Place
from distribcache.coherence.passing import PassThrough
from distribcache.coherence.ttl import TtlOnly

__all__ = ["Mirrors"]


class Mirrors(Databases):
    """See the module. ``files``: the socket over which the descriptors of ledgers come."""

    def __init__(self, place: Place, files: socket.socket, log: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(place.conninfo, place.options, log)
        self._place = place
        self._files = files
        self._channel = place.channel
        self._numbers: dict[int, Mirror] = {}
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._asked = 0
        self.told = asyncio.Event()
        """Set when main has told of all databases: clients may be let in."""

    # -- what the proxy asks

    def acquire(self, name: str) -> Coherence:
        clients = self._clients[name] = self._clients.get(name, 0) + 1
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = self._make(name)
        if clients == 1 and not isinstance(found, PassThrough):
            self._channel.send({"kind": "acquire", "name": name})
        return found

    def release(self, name: str) -> None:
        left = self._clients.get(name, 0) - 1
        if left > 0:
            self._clients[name] = left
            return
        self._clients.pop(name, None)
        found = self._open.get(name)
        if not isinstance(found, PassThrough):
            self._channel.send({"kind": "release", "name": name})
        if isinstance(found, PassThrough) or (isinstance(found, Mirror) and not found.number):
            self._forget(name)

    def _make(self, name: str) -> Coherence:
        found = self._local(name)
        if isinstance(found, TtlOnly):
            found.alarm_listeners.append(self._drop_elsewhere)
        return Mirror(name, self._place) if found is None else found

    def _drop_elsewhere(self, name: str, reason: str) -> None:
        self._channel.send({"kind": "ttl_alarm", "name": name, "reason": reason})

    def _forget(self, name: str) -> None:
        coherence = self._open.pop(name, None)
        if coherence is not None:
            self._spawn(coherence.stop())

    async def close_for_ddl(self, names: Iterable[str]) -> None:
        if self._channel.ended:
            return
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        self._channel.send({"kind": "close_for_ddl", "names": sorted(set(names)), "id": self._asked})
        await answer

    def reopen(self, names: Iterable[str]) -> None:
        self._channel.send({"kind": "reopen", "names": sorted(set(names))})

    def catalogue_alarm(self, reason: str) -> None:
        for coherence in self:
            coherence.catalogue_alarm(reason)
        if self._options.invalidation == "ttl":  # the others may have databases that are not in use here
            self._drop_elsewhere("", reason)

    async def stop(self) -> None:
        for coherence in self:
            await coherence.stop()
        self._open.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def lost(self) -> None:
        """Main is gone: nothing is served any more."""
        self.told.set()
        for mirror in self._numbers.values():
            mirror.stop_serving()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_result(None)

    # -- what main tells

    def hear(self, message: Message) -> None:
        """A message of main that is for databases; others are ignored."""
        if isinstance(message, State):
            mirror = self._numbers.get(message.database)
            if mirror is not None:
                mirror.move(message)
        elif isinstance(message, dict):
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "told":
            self.told.set()
        elif kind == "open":
            self._opened(message)
        elif kind == "leave":
            self._leaving(message)
        elif kind == "close":
            self._closed(message)
        elif kind == "answer":
            answer = self._answers.pop(message["id"], None)
            if answer is not None and not answer.done():
                answer.set_result(None)
        elif kind == "ttl_alarm":
            for each in self:
                if isinstance(each, TtlOnly) and message["name"] in ("", each.name):
                    each.dropped(message["reason"])
        elif "db" in message:
            mirror = self._numbers.get(message["db"])
            if mirror is not None:
                self._hear_of(mirror, message)

    def _hear_of(self, mirror: Mirror, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "slots":
            mirror.learn(message)
        elif kind == "facts":
            mirror.know(message)
        elif kind == "unwatched":
            mirror.refuse(message["oid"], tuple(message["columns"]))
        elif kind == "back":
            mirror.come_back()

    def _closed(self, message: dict[str, Any]) -> None:
        mirror = self._numbers.pop(message["db"], None)
        if mirror is not None:
            mirror.detach("stopped")
        name = message["name"]
        found = self._open.get(name)
        if not self._clients.get(name) and (found is mirror or isinstance(found, TtlOnly)):
            self._forget(name)

    def _opened(self, message: dict[str, Any]) -> None:
        name, number = message["name"], message["db"]
        found = self._open.get(name)
        if message["shared"]:
            _, files, _, _ = socket.recv_fds(self._files, 1, 1)
            fd = files[0]
            try:
                ledger = Ledger(message["tables"], fd=fd, writer=False)
            finally:
                os.close(fd)
            if not isinstance(found, Mirror):
                found = self._open[name] = Mirror(name, self._place)
            self._numbers.pop(found.number, None)
            self._numbers[number] = found
            found.attach(number, ledger)
            self._channel.send({"kind": "mapped", "db": number})
        elif message["mode"] == "off" and isinstance(found, Mirror):
            found.detach(message["reason"], "off")

    def _leaving(self, message: dict[str, Any]) -> None:
        found = self._open.get(message["name"])
        if isinstance(found, Mirror) and found.number == message["db"]:
            found.go()
        self._spawn(self._leave_now(found, message["db"]))

    async def _leave_now(self, found: Coherence | None, number: int) -> None:
        with contextlib.suppress(Exception):
            if isinstance(found, Mirror):
                await found.leave()
            elif found is not None:
                await found.stop()
        self._channel.send({"kind": "left", "db": number})


