"""One client connection from accept to close: first packets, TLS, the upstream socket, login, then its session.

Rules:
1. Nothing in clear after the answer ``S``: bytes that came with an SSLRequest end the connection (CVE-2021-23214).
2. Whoever has not logged in within the deadline, or sends too much before, is disconnected.
3. A replication connection is relayed and never looked into (see ``unread``).
4. Either side that goes away takes the other with it, after what was already received has been relayed. What a client
   sent before it ended its own direction is still answered.
5. A peer that does not read stops us from reading what would be sent to it: memory does not grow.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from typing import TYPE_CHECKING, cast

from distribcache.errors import ClientError, DistribCacheError, ProtocolError, UpstreamError
from distribcache.proxy.answer import fatal
from distribcache.proxy.cancel import relay_cancel
from distribcache.proxy.login import Login
from distribcache.proxy.session import Session
from distribcache.proxy.unread import Unread
from distribcache.proxy.upstream import Peer, connect
from distribcache.wire.messages import terminate
from distribcache.wire.startup import NEED_DATA, CancelRequest, GssEncRequest, SslRequest, Startup, read_startup
from distribcache.wire.state import Phase

if TYPE_CHECKING:
    from distribcache.proxy.listener import Listener

__all__ = ["Connection"]

_HIGH_WATER = 256 * 1024
_LAST_WORDS = 30.0
"""Seconds that a peer has to read what was written before the end."""
_MAX_EARLY = 64 * 1024
"""Bytes that a client may send while its upstream connection is being opened."""
_REFUSED_PATIENCE = 1.0
"""Seconds for a client that is refused to say what it wants: sooner it would not understand an error, and a cancel is
never refused."""


class Connection(asyncio.Protocol):
    """See the module; also the ``Wires`` of its session."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.node = listener.node
        self.client: asyncio.Transport | None = None
        self.upstream: asyncio.Transport | None = None
        self.login: Login | None = None
        self.session: Session | None = None
        self.startup: Startup | None = None
        self._peer: Peer | None = None
        self._early = b""
        self._raw = False
        self._unread: Unread | None = None
        self._secure = False
        self._upgrading = False
        self._closed = False
        self._counted = False
        self._refusal: DistribCacheError | None = None
        self._entered: str | None = None
        self._client_held = False
        self._upstream_full = False
        self._upstream_ended = False
        self._sent_all = False
        self._deadline: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- the client's socket ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.client = client = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses
        if self._counted:  # the same client, now behind TLS
            return
        if self.listener.stopped:  # it was accepted just before
            client.abort()
            return
        client.set_write_buffer_limits(high=_HIGH_WATER)
        self._counted = True
        self._refusal = self.listener.admit(self)
        timeout = self.node.settings.listen.login_timeout
        if self._refusal is not None:
            if self.listener.overrun:
                self.fail(self._refusal)
                return
            timeout = min(timeout, _REFUSED_PATIENCE)
        self._deadline = asyncio.get_running_loop().call_later(timeout, self._too_late)

    def data_received(self, data: bytes) -> None:
        session = self.session
        if session is not None:
            session.from_client(data)
            return
        if self._closed:
            return
        try:
            if self._raw:
                self._relay(data)
            elif self.login is not None:
                if self.login.finished:
                    self._early += data
                else:
                    self.to_upstream(self.login.from_client(data))
            else:
                self._early += data
                if len(self._early) > _MAX_EARLY:
                    raise ClientError(
                        "too much data before the login", where="client", hint="connect with a PostgreSQL client"
                    )
                if self.startup is None and not self._upgrading:
                    self._first_packets()
        except DistribCacheError as error:
            self.fail(error)

    def eof_received(self) -> bool:
        """The client will send no more; True when replies to what it has sent are still to come."""
        if self.session is not None:
            return not self._closed and self.session.sent_all()
        self._sent_all = bool(self._early or (self.login is not None and self.login.early()))
        return self._sent_all and self.startup is not None and not self._closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def pause_writing(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()
        if self.session is not None:
            self.session.pause(True)

    def resume_writing(self) -> None:
        if self.upstream is not None and not self._closed:
            self.upstream.resume_reading()
        if self.session is not None:
            self.session.pause(False)

    # ---- first packets ----------------------------------------------------------------------------------------------

    def _first_packets(self) -> None:
        assert self.client is not None
        try:
            packet = read_startup(self._early)
        except ProtocolError as error:
            raise ClientError(error.message, where="client", hint=error.hint, sqlstate=error.sqlstate) from None
        if packet is NEED_DATA:
            return
        rest = self._early[packet.size :]
        if isinstance(packet, SslRequest | GssEncRequest):
            if rest:
                raise ClientError(
                    "received unencrypted data after an encryption request",
                    where="client",
                    hint="this may be an attack",
                )
            self._early = b""
            context = self.listener.tls
            if isinstance(packet, SslRequest) and context is not None and not self._secure:
                self._upgrading = True
                self.client.pause_reading()
                self.client.write(b"S")
                self._task = asyncio.get_running_loop().create_task(self._upgrade(context))
            else:
                self.client.write(b"N")
        elif isinstance(packet, CancelRequest):
            self._task = asyncio.get_running_loop().create_task(self._cancel(packet))
            self.startup = Startup(3, 0, {"user": ""}, b"")
        elif self._refusal is not None:
            self.fail(self._refusal)
        else:
            self._early = rest
            self.startup = packet
            self._task = asyncio.get_running_loop().create_task(self._open(packet))

    async def _upgrade(self, context: ssl.SSLContext) -> None:
        assert self.client is not None
        try:
            secure = await asyncio.get_running_loop().start_tls(self.client, self, context, server_side=True)
        except (OSError, ssl.SSLError):
            self._end()
            return
        if secure is None or self._closed:
            self._end()
            return
        self.client = secure
        secure.set_write_buffer_limits(high=_HIGH_WATER)
        self._secure = True
        self._upgrading = False
        if self._early:
            self.data_received(b"")

    async def _cancel(self, request: CancelRequest) -> None:
        await relay_cancel(self.node, self.listener.target, request)
        self._end()

    async def _open(self, startup: Startup) -> None:
        """Open the upstream connection and begin the login."""
        try:
            transport, peer, certificate = await connect(self.listener.target)
        except DistribCacheError as error:
            self.fail(error)
            return
        if self._closed:
            transport.abort()
            return
        self.upstream, self._peer = transport, peer
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        peer.on_data, peer.on_lost, peer.on_full = self._from_upstream, self._upstream_lost, self._upstream_is_full
        both_tls = self._secure and bool(certificate)
        same = bool(certificate) and certificate == self.listener.certificate
        self.login = Login(
            strip_plus=not self._secure or not both_tls or not same,
            challenge_needed=not self.node.settings.auth.allow_trust and not self._from_loopback(),
        )
        transport.write(startup.raw)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)
        if peer.lost:
            self._upstream_lost()

    def _from_loopback(self) -> bool:
        assert self.client is not None
        name = self.client.get_extra_info("peername")
        if not isinstance(name, tuple):
            return isinstance(name, str)  # a Unix socket; nothing at all when the client is already gone
        try:
            address = ipaddress.ip_address(str(name[0]).partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    # ---- the server's socket ----------------------------------------------------------------------------------------

    def _from_upstream(self, data: bytes) -> None:
        if self.session is not None:
            self.session.from_upstream(data)
            return
        if self._closed or self.login is None:
            return
        if self._raw:
            if self._unread is not None:
                self._unread.from_upstream(data)
            self.to_client(data)
            return
        try:
            for message in self.login.from_server(data):
                self.to_client(message)
                if self.login.finished:
                    self._logged_in(self.login)
                    break
        except DistribCacheError as error:
            self.fail(error)

    def _logged_in(self, login: Login) -> None:
        assert self.startup is not None
        if self._deadline is not None:
            self._deadline.cancel()
        self.listener.logged_in(self)
        rest = login.rest()
        self._early = login.early() + self._early
        if self.startup.replication:
            self._raw = True
            if self.startup.logical:
                self._unread = Unread(self.node, self.startup.database)
            if rest:
                self.to_client(rest)
            if self._early:
                early, self._early = self._early, b""
                self._relay(early)
            return
        self._entered = self.startup.database
        session = Session(self.node, self.node.enter(self._entered), self)
        session.backend_pid = login.pid
        self.session = session
        self.node.sessions[(login.pid, login.secret)] = session
        self.node.live.add(session)
        self.node.newcomers[session] = None
        self.node.totals.sessions += 1
        if rest:
            session.from_upstream(rest)
        if self._early:
            early, self._early = self._early, b""
            session.from_client(early)
        if self._sent_all:
            session.sent_all()

    def _relay(self, data: bytes) -> None:
        """What a replication connection says."""
        if self._unread is not None:
            self._unread.from_client(data)
        self.to_upstream(data)

    def _upstream_lost(self) -> None:
        if self._closed:
            return
        if self.login is None or (self.session is None and not self._raw and self.login.phase is not Phase.CLOSED):
            self.fail(
                UpstreamError(
                    "the server closed the connection during the login",
                    where="upstream.url",
                    hint="see the server's log",
                )
            )
            return
        self._end()

    def _upstream_is_full(self, full: bool) -> None:
        self._upstream_full = full
        self._read_client()

    # ---- Wires ------------------------------------------------------------------------------------------------------

    def to_client(self, data: bytes) -> None:
        """Write to the client, unless it is gone."""
        if not self._closed and self.client is not None:
            self.client.write(data)

    def to_upstream(self, data: bytes) -> None:
        """Write to the server, unless it is gone."""
        if data and not self._closed and self.upstream is not None:
            self.upstream.write(data)

    def hold_client(self, hold: bool) -> None:
        """Stop or go on reading what the client sends."""
        self._client_held = hold
        self._read_client()

    def _read_client(self) -> None:
        if self.client is None or self._closed or self._upgrading:
            return
        if self._client_held or self._upstream_full:
            self.client.pause_reading()
        else:
            self.client.resume_reading()

    def fail(self, error: DistribCacheError) -> None:
        """Tell the client what happened and close both sides."""
        if self._closed:
            return
        self.listener.log(f"{type(error).__name__}: {error.message}")
        self.to_client(fatal(error))
        self._end()

    def finish(self) -> None:
        """The client said goodbye."""
        self._end()

    def last_replies(self) -> None:
        """The server gets no more messages: it answers what it has, and ends."""
        if self.upstream is not None and not self._upstream_ended:
            self._upstream_ended = True
            self.upstream.write(2 * terminate())  # a COPY that still waits for data takes the first as an error
            if self.upstream.can_write_eof():
                self.upstream.write_eof()

    def _too_late(self) -> None:
        if self.session is None and not self._raw:
            self.fail(
                ClientError(
                    "login timeout",
                    where="client",
                    hint="log in faster, or raise listen.login_timeout",
                    sqlstate="08006",
                )
            )

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self.session is not None:
            self.session.close()
            self.node.live.discard(self.session)
            self.node.newcomers.pop(self.session, None)
            login = self.login
            if login is not None:
                self.node.sessions.pop((login.pid, login.secret), None)
        if self._entered is not None:
            self.node.leave(self._entered)
        if self._unread is not None:
            self._unread.close()
        if self.upstream is not None:
            if not self.upstream.is_closing() and not self._upstream_ended:
                self.upstream.write(terminate())
            _close(self.upstream)
        if self.client is not None:
            _close(self.client)
        self.listener.gone(self)


def _close(transport: asyncio.Transport) -> None:
    """Close when all is written; one who does not read is not waited for without end."""
    transport.close()
    if transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(_LAST_WORDS, transport.abort)
