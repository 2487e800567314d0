"""Connecting to PostgreSQL on behalf of a client: addresses from the URL, TLS before the first byte, TCP keepalive.

Rules:
1. The certificate policy is libpq's: ``sslmode`` disable, allow, prefer (default), require, verify-ca, verify-full.
2. What a server says before TLS is anybody's word: the only answers to SSLRequest are ``S`` and ``N``; an error text is
   never shown, and nothing may follow the ``S`` in clear (CVE-2021-23222, CVE-2024-10977).
3. With several hosts the first that accepts is taken; whether it is the server whose WAL is read is proved later (R9).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from distribcache.coherence.address import read_url
from distribcache.errors import ConfigError, UpstreamError
from distribcache.wire.startup import SSL_REQUEST

__all__ = ["Peer", "Target", "connect", "read_target"]

_SYSTEM = ("", "system")
"""Values of ``sslrootcert`` that mean the system's own certificates."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where PostgreSQL is. ``hosts``: (host or socket directory, port)."""

    hosts: tuple[tuple[str, int], ...]
    database: str
    sslmode: str
    sslrootcert: str
    timeout: float

    def __str__(self) -> str:
        return ",".join(f"{host}:{port}" for host, port in self.hosts)

    def tls(self) -> ssl.SSLContext | None:
        """The context for the upstream leg, or None for plaintext. Raises ConfigError for an unreadable root file."""
        if self.sslmode in ("disable", "allow"):
            return None
        return _context(self.sslmode, self.sslrootcert, self._stamp())

    def _stamp(self) -> tuple[int, int, int] | None:
        """What changes when the file of root certificates is another one."""
        with contextlib.suppress(OSError):
            found = Path(self.sslrootcert).expanduser().stat() if self.sslrootcert not in _SYSTEM else None
            return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)
        return None


@functools.lru_cache(maxsize=4)
def _context(mode: str, root: str, stamp: tuple[int, int, int] | None) -> ssl.SSLContext:
    """One for all connections: to read the system's certificates takes longer than a login (70 ms, measured)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("verify") else ssl.CERT_NONE
    if mode.startswith("verify"):
        try:
            if root in _SYSTEM:
                context.load_default_certs()
            else:
                context.load_verify_locations(Path(root).expanduser())
        except OSError as error:
            raise ConfigError(
                f"cannot read sslrootcert: {error.strerror}", where=root, hint="name a PEM file"
            ) from None
    return context


def read_target(url: str, timeout: float) -> Target:
    """Read the parts of a libpq URL that say where the server is. Raises ConfigError, also for a missing root file."""
    parts = read_url(url)
    hosts = (parts.get("hostaddr") or parts.get("host") or "localhost").split(",")
    numbers = [int(port or 5432) for port in parts.get("port", "5432").split(",")]
    if len(numbers) == 1:
        numbers *= len(hosts)
    mode = parts.get("sslmode") or "prefer"
    database = parts.get("dbname") or parts.get("user") or "postgres"
    target = Target(tuple(zip(hosts, numbers, strict=True)), database, mode, parts.get("sslrootcert", ""), timeout)
    target.tls()
    return target


class Peer(asyncio.Protocol):
    """The upstream socket: first the one-byte answer to SSLRequest, then bytes for whoever owns it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[bytes] | None = None
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_full: Callable[[bool], None] = lambda full: None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses

    def data_received(self, data: bytes) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(data)
        else:
            self.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError())
        self.on_lost()

    def pause_writing(self) -> None:
        self.on_full(True)

    def resume_writing(self) -> None:
        self.on_full(False)


async def connect(target: Target) -> tuple[asyncio.Transport, Peer, bytes]:
    """Open a connection, with TLS as the target asks; returns also the server's certificate (DER, empty in plaintext).

    Raises UpstreamError (08006) when no host accepts in time or TLS cannot be had as asked.
    """
    reasons = []
    for host, port in target.hosts:
        try:
            async with asyncio.timeout(target.timeout):
                return await _connect(target, host, port)
        except TimeoutError:
            reasons.append(f"{host}:{port} did not answer in {target.timeout:g} s")
        except ssl.SSLError as error:
            reasons.append(f"{host}:{port}: TLS failed ({error.reason or 'handshake'})")
        except OSError as error:
            reasons.append(f"{host}:{port}: {error.strerror or type(error).__name__}")
    raise UpstreamError(
        "cannot reach PostgreSQL: " + "; ".join(reasons),
        where="upstream.url",
        hint="check that the server runs and that upstream.url names its host and port",
    )


async def _connect(target: Target, host: str, port: int) -> tuple[asyncio.Transport, Peer, bytes]:
    loop = asyncio.get_running_loop()
    if host.startswith("/"):
        transport, peer = await loop.create_unix_connection(Peer, f"{host}/.s.PGSQL.{port}")
        return transport, peer, b""
    transport, peer = await loop.create_connection(Peer, host, port)
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = target.tls()
    if context is None:
        return transport, peer, b""
    try:
        peer.answer = loop.create_future()
        transport.write(SSL_REQUEST)
        answer = await peer.answer
        peer.answer = None
        if answer == b"N" and target.sslmode == "prefer":
            return transport, peer, b""
        if answer != b"S":
            raise UpstreamError(
                f"{host}:{port} does not offer TLS as sslmode={target.sslmode} asks",
                where="upstream.url",
                hint="enable TLS on the server, or choose another sslmode",
            )
        secure = await loop.start_tls(transport, peer, context, server_hostname=host)
        if secure is None:
            raise ConnectionResetError
        peer.transport = secure
        tls = secure.get_extra_info("ssl_object")
        return secure, peer, tls.getpeercert(binary_form=True) or b"" if tls is not None else b""
    except BaseException:
        transport.abort()
        raise
