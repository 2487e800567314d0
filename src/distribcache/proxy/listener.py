"""The listening socket: who is let in, TLS towards clients, and the ticking of the coarse clock."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from distribcache.config.units import Address
from distribcache.errors import ClientError, ConfigError, DistribCacheError
from distribcache.proxy.connection import Connection
from distribcache.proxy.node import Node
from distribcache.proxy.upstream import Target

__all__ = ["Listener", "address_of", "bind", "cannot_listen", "client_tls"]

_TICK = 0.05
_PAUSE = 0.2
_BACKLOG = 1024
_LOOK = 4
"""Ticks between two looks at which databases are being read from memory."""
_INTRODUCED = 20
"""Sessions whose scope is asked for per tick, at most."""
_SWEEP = 1000
"""Entries looked at for their end per tick."""


class Listener:
    """Accepts clients for one node."""

    def __init__(
        self, node: Node, target: Target, log: Callable[[str], None], sockets: Sequence[socket.socket] = ()
    ) -> None:
        self.node = node
        self._sockets = sockets
        """Listening already, and shared with other processes; empty: one of its own is opened."""
        self.target = target
        self.log = log
        self.tls, self.certificate = client_tls(node.settings.listen.tls_cert, node.settings.listen.tls_key)
        self._server: asyncio.Server | None = None
        self._accepting: set[asyncio.Task[None]] = set()
        self.stopped = False
        self._connections: set[Connection] = set()
        self._strangers: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0

    async def start(self) -> tuple[str, int]:
        """Listen; returns the address. Raises ConfigError when that is not possible."""
        await self.node.store.stack.start()
        endpoint = self.node.settings.listen.endpoint
        loop = asyncio.get_running_loop()
        if self._sockets:
            for sock in self._sockets:
                sock.setblocking(False)
                loop.add_reader(sock.fileno(), self._accept, sock)
            self._tick()
            return address_of(self._sockets)
        try:
            self._server = await loop.create_server(
                lambda: Connection(self), endpoint.host, endpoint.port, backlog=_BACKLOG
            )
        except OSError as error:
            raise cannot_listen("listen", endpoint, error) from None
        for sock in self._server.sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tick()
        return address_of(self._server.sockets)

    def _accept(self, sock: socket.socket) -> None:
        """One client per turn of the loop: the other processes take those that this one has no time for."""
        loop = asyncio.get_running_loop()
        try:
            client, _ = sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was first
        except OSError as error:  # no descriptor is left: a pause, instead of being called again at once
            self.log(f"cannot accept a client: {error.strerror or error}")
            loop.remove_reader(sock.fileno())
            loop.call_later(_PAUSE, self._accept_again, sock)
            return
        client.setblocking(False)
        task = loop.create_task(self._serve(client))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    def _accept_again(self, sock: socket.socket) -> None:
        if not self.stopped:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    async def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone already
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Connection(self), client)

    async def stop(self) -> None:
        """Stop listening and end every connection with the error that a server shutting down would send."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        if self._server is not None:
            self._server.close()
        for connection in self._connections | self._strangers:
            connection.fail(
                DistribCacheError(
                    "terminating connection due to administrator command", hint="connect again", sqlstate="57P01"
                )
            )
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._server.wait_closed()
        await self.node.store.stack.stop()

    def admit(self, connection: Connection) -> DistribCacheError | None:
        """Count a new client; the refusal when there are too many."""
        listen = self.node.settings.listen
        self._strangers.add(connection)
        if len(self._connections) >= listen.max_clients:
            return ClientError(
                "sorry, too many clients already", where="client", hint="raise listen.max_clients", sqlstate="53300"
            )
        if len(self._strangers) > listen.max_unauthenticated:
            return ClientError(
                "too many clients are logging in",
                where="client",
                hint="try again, or raise listen.max_unauthenticated",
                sqlstate="53300",
            )
        self._connections.add(connection)
        return None

    @property
    def overrun(self) -> bool:
        """So many strangers that a refused one is not even listened to."""
        return len(self._strangers) > 2 * self.node.settings.listen.max_unauthenticated

    def logged_in(self, connection: Connection) -> None:
        """A client has passed the server's authentication."""
        self._strangers.discard(connection)

    def gone(self, connection: Connection) -> None:
        """A client has left."""
        self._connections.discard(connection)
        self._strangers.discard(connection)

    def _tick(self) -> None:
        node = self.node
        node.clock.tick()
        node.l1.expire(node.clock.now, _SWEEP)
        node.store.settle()
        node.introduce(_INTRODUCED)
        self._ticks += 1
        if not self._ticks % _LOOK:
            node.note_traffic()
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)


def bind(section: str, endpoint: Address) -> list[socket.socket]:
    """Listening sockets at the address of ``[section]``. Raises ConfigError when that is not possible."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            sock = socket.create_server(address, family=family, backlog=_BACKLOG)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sockets.append(sock)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise cannot_listen(section, endpoint, error) from None
    return sockets


def address_of(sockets: Sequence[socket.socket]) -> tuple[str, int]:
    """Host and port of the first."""
    name = sockets[0].getsockname()
    return str(name[0]), int(name[1])


def cannot_listen(section: str, endpoint: Address, error: OSError) -> ConfigError:
    """What to say when the address of ``[section]`` cannot be had."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        hint = "this machine has no such address: write 127.0.0.1 for programs on it, 0.0.0.0 for all"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "ports below 1024 are for root: choose another"
    else:
        hint = "another program uses this port: choose another"
    # asyncio puts words of its own there.
    said = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    where = f"{section}.address {endpoint.host}:{endpoint.port}"
    return ConfigError(f"cannot listen: {said}", where=where, hint=f"{hint} with --{section}")


def client_tls(cert: Path | None, key: Path | None) -> tuple[ssl.SSLContext | None, bytes]:
    """The TLS context for clients and our certificate in DER. Raises ConfigError."""
    if cert is None or key is None:
        return None, b""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
        text = cert.read_text()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot read the certificate or its key: {error}", where="listen.tls_cert", hint="name PEM files"
        ) from None
    begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
    return context, ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")
