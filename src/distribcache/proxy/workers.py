"""The main process of several: it holds the listening sockets, starts workers, and starts again those that end.

A worker is a process of its own (``python -m distribcache worker``, by exec; nothing is forked with a running loop). It
inherits the listening sockets and two pairs of Unix sockets: one for messages, one for descriptors. Settings go over
the first as its first message, because they hold a password: never in arguments or the environment.

Rules:
1. A worker that ends is started again, after a pause that grows while it does not live long. Clients of the others
   notice nothing.
2. What is asked of all workers is answered by those that answer in time, with the last figures of those that do not.
3. What a worker has counted is kept when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

from distribcache.clock import now_ns
from distribcache.coherence.channel import Channel, Message, open_channel, pair
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.sharing import Peer, SharedDatabases
from distribcache.config import Settings
from distribcache.proxy.figures import Figures, figures_as_table, join, left_behind
from distribcache.proxy.turns import Turns

__all__ = ["COMMAND", "Workers"]

COMMAND: Final = [sys.executable, "-P", "-m", "distribcache", "worker"]
"""With the numbers of descriptors behind it: messages, files, listening sockets. Nothing is imported from the directory
that we happen to be in."""

_OWN: Final = frozenset({"ready", "figures", "said", "show", "cancel", "turn", "turn_over"})
"""Messages that are not for databases."""
_STEADY_NS: Final = 10_000_000_000
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_PATIENCE_S: Final = 1.0
_CANCEL_PATIENCE_S: Final = 0.3
_LAST_S: Final = 5.0


class _Worker:
    """One process and what is known of it."""

    def __init__(self, process: asyncio.subprocess.Process, peer: Peer) -> None:
        self.process = process
        self.peer = peer
        self.ready = False
        self.lost = asyncio.Event()
        self.figures = Figures()


class Workers:
    """See the module."""

    def __init__(
        self, settings: Settings, databases: SharedDatabases, sockets: Sequence[socket.socket],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.databases = databases
        self.running: dict[int, _Worker] = {}
        self.turns = Turns(self._tell)
        self._sockets = sockets
        self._log = log
        self._gone = Figures()
        self._keepers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._stopping = False
        self._numbers = count(1)
        self._asked: dict[int, tuple[dict[int, dict[str, Any]], set[int], asyncio.Event]] = {}
        """Questions to all: what was answered, who owes an answer, and that nobody does."""

    @property
    def count(self) -> int:
        return self.settings.listen.workers

    async def start(self) -> None:
        """Returns when every worker lets clients in."""
        self._keepers = [
            asyncio.create_task(self._keep(index), name=f"worker {index}") for index in range(self.count)
        ]
        await self._ready.wait()

    async def stop(self) -> None:
        """End all workers: their clients are told as by a server that shuts down."""
        self._stopping = True
        for worker in self.running.values():
            worker.peer.channel.send({"kind": "stop"})
        _, late = await asyncio.wait(self._keepers, timeout=_LAST_S) if self._keepers else (set(), set())
        for worker in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
        for keeper in late:
            keeper.cancel()
        if late:
            await asyncio.wait(late)

    # -- processes

    async def _keep(self, index: int) -> None:
        pause = _PAUSE_S
        while True:
            began = now_ns()
            try:
                status = await self._live(index)
            except OSError as error:
                status = error.errno or 0
            if self._stopping:
                return
            if now_ns() - began > _STEADY_NS:
                pause = _PAUSE_S
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self._log(f"worker {index} has ended ({how}); it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _live(self, index: int) -> int:
        """One process from its beginning to its end; returns its status."""
        ours, theirs = pair()
        files, their_files = pair()
        inherited = [theirs.fileno(), their_files.fileno(), *(sock.fileno() for sock in self._sockets)]
        try:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, *map(str, inherited), pass_fds=inherited,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            ours.close()
            files.close()
            raise
        finally:
            theirs.close()
            their_files.close()
        channel = Channel(lambda message: self._hear(worker, message), lambda: self._lost(worker))
        worker = _Worker(process, Peer(index, channel, files))
        self.running[index] = worker
        channel.on_room = lambda: self.databases.flush(worker.peer)
        try:
            await open_channel(ours, channel)
            settings = self.settings
            channel.send(
                {
                    "kind": "hello", "index": index, "count": self.count,
                    "settings": settings.model_dump(mode="json"), "sources": dict(settings.sources),
                }
            )
            self.databases.join(worker.peer)
            status = await process.wait()
            with contextlib.suppress(TimeoutError):  # its last words
                async with asyncio.timeout(_PATIENCE_S):
                    await worker.lost.wait()
            return status
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            self._ended(worker)

    def _lost(self, worker: _Worker) -> None:
        """Its channel has ended: so must the process."""
        worker.lost.set()
        if self.running.get(worker.peer.index) is worker:
            self.turns.gone(worker.peer.index)
        if worker.peer.hangs:  # what it held is let go when it has ended, and its connections with it
            self._kill(worker)
            return
        self.databases.part(worker.peer)
        if worker.process.returncode is None:
            asyncio.get_running_loop().call_later(_LAST_S, self._kill, worker)

    def _kill(self, worker: _Worker) -> None:
        if worker.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def _ended(self, worker: _Worker) -> None:
        self.databases.part(worker.peer)
        worker.peer.channel.abort()
        worker.peer.files.close()
        if self.running.get(worker.peer.index) is worker:
            del self.running[worker.peer.index]
        self._gone = join([self._gone, left_behind(worker.figures)])
        for _, owing, done in self._asked.values():
            owing.discard(worker.peer.index)
            if not owing:
                done.set()

    # -- what workers say

    def _hear(self, worker: _Worker, message: Message) -> None:
        kind = message["kind"] if isinstance(message, dict) else ""
        if not isinstance(message, dict) or kind not in _OWN:
            self.databases.hear(worker.peer, message)
        elif kind in ("turn", "turn_over"):
            self.turns.hear(worker.peer.index, message)
        elif kind == "ready":
            worker.ready = True
            if sum(each.ready for each in self.running.values()) == self.count:
                self._ready.set()
        elif kind == "figures":
            worker.figures = Figures.read(message)
        elif kind == "said":
            self._said(worker, message)
        elif kind == "show":
            self._spawn(self._show(worker, message))
        elif kind == "cancel":
            self._spawn(self._cancel(worker, message))

    def _tell(self, index: int, message: dict[str, Any]) -> None:
        worker = self.running.get(index)
        if worker is not None:
            worker.peer.channel.send(message)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _said(self, worker: _Worker, message: dict[str, Any]) -> None:
        asked = self._asked.get(message["id"])
        if asked is not None:
            said, owing, done = asked
            said[worker.peer.index] = message
            owing.discard(worker.peer.index)
            if not owing:
                done.set()

    async def ask(
        self, message: dict[str, Any], but: _Worker | None = None, seconds: float = _PATIENCE_S
    ) -> dict[int, dict[str, Any]]:
        """What the workers answer in time, by their index."""
        number = next(self._numbers)
        asked = [worker for worker in self.running.values() if worker is not but and worker.ready]
        said: dict[int, dict[str, Any]] = {}
        done = asyncio.Event()
        self._asked[number] = said, {worker.peer.index for worker in asked}, done
        for worker in asked:
            worker.peer.channel.send({**message, "kind": "asked", "id": number})
        try:
            if asked:
                async with asyncio.timeout(seconds):
                    await done.wait()
        except TimeoutError:
            pass
        finally:
            del self._asked[number]
        return said

    async def _show(self, worker: _Worker, message: dict[str, Any]) -> None:
        """The parts of all others, with what is left of workers that are gone or late."""
        show, tables = message["show"], []
        if show != "freshness":
            said = await self.ask({"what": "show", "show": show}, but=worker)
            tables = [each["table"] for each in said.values()]
            late = [
                each.figures
                for index, each in self.running.items()
                if each is not worker and index not in said
            ]
            rest = figures_as_table(show, join([self._gone, *late]))
            if rest is not None:
                tables.append(rest)
        found = next((each for each in self.databases if each.name == message["name"]), None)
        followed = isinstance(found, DatabaseCoherence)
        worker.peer.channel.send(
            {
                "kind": "answered", "id": message["id"], "tables": tables,
                "report": found.report() if found is not None and followed else {},
                "watched": [
                    (each.table, each.columns, each.touches, each.advice)
                    for each in (found.watched() if found is not None and show == "tables" else ())
                ],
            }
        )

    async def _cancel(self, worker: _Worker, message: dict[str, Any]) -> None:
        question = {"what": "cancel", "pid": message["pid"], "secret": message["secret"]}
        said = await self.ask(question, but=worker, seconds=_CANCEL_PATIENCE_S)
        silent = any(each["silent"] for each in said.values())
        worker.peer.channel.send({"kind": "answered", "id": message["id"], "silent": silent})

    # -- what people ask

    async def figures(self) -> tuple[Figures, list[dict[str, Any]]]:
        """Those of all workers, past and present; and what each says of the audits that somebody has asked for."""
        said = await self.ask({"what": "figures"})
        for index, each in said.items():
            worker = self.running.get(index)
            if worker is not None:
                worker.figures = Figures.read(each)
        whole = join([self._gone, *(worker.figures for worker in self.running.values())])
        return whole, [each["campaign"] for each in said.values() if each["campaign"] is not None]

    def audit(self, seconds: float, max_cost_s: float) -> None:
        """Have all hits audited for a while; 0 seconds: no longer."""
        for worker in self.running.values():
            worker.peer.channel.send({"kind": "audit", "seconds": seconds, "max_cost": max_cost_s})
