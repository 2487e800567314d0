"""``distribcache worker``: one of the processes that ``serve --workers N`` starts; nothing that people run.

Its arguments are numbers of inherited descriptors: messages, files, listening sockets. It ends when main says so, or at
once when the channel to main has ended: what it knows would grow old, and nobody would start another.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from typing import Any

import uvloop

from distribcache.cli.serve import say, unforeseen
from distribcache.coherence.channel import Channel, Message, open_channel
from distribcache.coherence.mirror import Place
from distribcache.coherence.mirrors import Mirrors
from distribcache.coherence.options import Options
from distribcache.config import restore
from distribcache.errors import ConfigError
from distribcache.proxy.listener import Listener
from distribcache.proxy.node import Node
from distribcache.proxy.peers import Peers
from distribcache.proxy.upstream import read_target

__all__ = ["main"]

_FILES_S = 5.0
_LEAST = 3


class Worker:
    """What one worker runs."""

    def __init__(self, files: socket.socket, sockets: list[socket.socket]) -> None:
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()
        self.channel = Channel(self._hear, self._lost)
        self.databases: Mirrors
        self.node: Node
        self.peers: Peers
        self.listener: Listener
        self._files = files
        self._sockets = sockets

    def _hear(self, message: Message) -> None:
        if not isinstance(message, dict):
            self.databases.hear(message)
        elif message["kind"] == "hello":
            self._begin(message)
        elif message["kind"] == "stop":
            self.ended.set()
        else:
            self.databases.hear(message)
            self.peers.hear(message)

    def _begin(self, message: dict[str, Any]) -> None:
        settings = restore(message["settings"], message["sources"])
        url = settings.upstream_url()
        place = Place(self.channel, message["index"], message["count"], url, Options.from_settings(settings))

        def log(text: str) -> None:
            say(f"worker {place.index}: {text}")

        self.databases = Mirrors(place, self._files, log)
        self.node = Node(settings, self.databases, log)
        self.peers = self.node.peers = self.node.store.turns = Peers(self.channel, self.node, message["index"])
        target = read_target(url, settings.upstream.connect_timeout)
        self.listener = Listener(self.node, target, log, self._sockets)
        self.begun.set()

    def _lost(self) -> None:
        if self.begun.is_set():
            self.databases.lost()
        self.begun.set()
        self.ended.set()

    async def run(self, sock: socket.socket) -> None:
        """Serve until the end."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(unforeseen)
        loop.add_signal_handler(signal.SIGTERM, self.ended.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # main hears of it too, and says what is to be done
        await open_channel(sock, self.channel)
        await self.begun.wait()
        if self.channel.ended:
            return
        await self.databases.told.wait()
        await self.listener.start()
        self.peers.start()
        gc.collect()
        gc.freeze()
        self.channel.send({"kind": "ready"})
        await self.ended.wait()
        await self.listener.stop()
        self.peers.stop()
        await self.databases.stop()
        self.channel.close()


async def _run(descriptors: list[int]) -> None:
    channel, files, *sockets = [socket.socket(fileno=number) for number in descriptors]
    files.settimeout(_FILES_S)
    await Worker(files, sockets).run(channel)


def main(arguments: list[str]) -> None:
    """Entry point. Raises ConfigError when it was not started by ``serve``."""
    if len(arguments) < _LEAST or not all(each.isdigit() for each in arguments):
        raise ConfigError("workers are started by serve", where="worker", hint="distribcache serve --workers 2")
    uvloop.run(_run([int(each) for each in arguments]))
