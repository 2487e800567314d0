"""What passes between client and server from the start-up packet to the first ReadyForQuery.

The proxy holds no passwords and decides no logins: SCRAM, MD5 and cleartext are relayed message by message. It looks
only for four things: the offer of SCRAM-SHA-256-PLUS, which cannot pass through two TLS legs; a server that lets a
client in without any challenge; the backend's pid and secret; and the first ReadyForQuery. Messages are small and
bounded here. What a client sends behind its answers, without waiting to be let in, is kept for its session, as the
server would leave it in its buffer.
"""

from __future__ import annotations

from collections.abc import Iterator

from distribcache.errors import ClientError, ProtocolError, UpstreamError
from distribcache.wire.buffer import Inbox
from distribcache.wire.messages import (
    MAX_SASL,
    Auth,
    Back,
    Front,
    authentication_sasl,
    error_response,
    read_authentication,
    read_backend_key_data,
    read_error,
    read_sasl_mechanisms,
)  # fmt: skip
from distribcache.wire.state import AUTHENTICATION_OK, CLIENT, SERVER, Phase, step

__all__ = ["Login"]

_PLUS = b"SCRAM-SHA-256-PLUS"
_MOST_HELD = 64 * 1024


class Login:
    """The relay of one login. Sans IO: bytes of one side in, bytes for the other side out."""

    def __init__(self, *, strip_plus: bool, challenge_needed: bool) -> None:
        self.phase = Phase.AUTHENTICATING
        self.challenged = False
        self.finished = False
        self.pid = 0
        self.secret = b""
        self.plus_stripped = False
        self._held = b""
        self._strip_plus = strip_plus
        self._challenge_needed = challenge_needed
        self._client = Inbox(MAX_SASL)
        self._server = Inbox(1 << 20)

    def from_client(self, data: bytes) -> bytes:
        """Password messages for the server. Raises ClientError."""
        if self._held:
            self._hold(data)
            return b""
        try:
            self._client.feed(data)
            out = []
            for message in self._client:
                if message[0] not in (Front.PASSWORD, Front.TERMINATE):
                    self._hold(bytes(message) + self._client.take_rest())
                    break
                self.phase = step(CLIENT, self.phase, message[0])
                if message[0] == Front.TERMINATE:
                    raise ClientError("the client left before it had logged in", where="client")
                out.append(bytes(message))
        except ProtocolError as error:
            raise ClientError(error.message, where="client", hint=error.hint) from None
        return b"".join(out)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _MOST_HELD:
            raise ClientError("too much data before the login", where="client", hint="wait until you are let in")

    def early(self) -> bytes:
        """Client bytes behind the login."""
        self._held += self._client.take_rest()
        return self._held

    def from_server(self, data: bytes) -> Iterator[bytes]:
        """Messages for the client, one at a time; ``finished`` is set when ReadyForQuery is among them. Raises
        UpstreamError.
        """
        try:
            self._server.feed(data)
            for each in self._server:
                message = bytes(each)
                kind = message[0]
                if kind == Back.AUTHENTICATION:
                    message = self._authentication(message)
                else:
                    self.phase = step(SERVER, self.phase, kind)
                if kind == Back.BACKEND_KEY_DATA:
                    key = read_backend_key_data(memoryview(message)[5:])
                    self.pid, self.secret = key.pid, bytes(key.secret)
                elif kind == Back.READY_FOR_QUERY:
                    self.finished = True
                elif kind == Back.ERROR:
                    message = self._explain(message)
                yield message
        except ProtocolError as error:
            raise UpstreamError(
                f"the server does not speak PostgreSQL's protocol: {error.message}",
                where="upstream.url",
                hint="check that upstream.url names a PostgreSQL server",
                sqlstate="08P01",
            ) from None

    def rest(self) -> bytes:
        """Server bytes behind ReadyForQuery."""
        return self._server.take_rest()

    def _authentication(self, message: bytes) -> bytes:
        said = read_authentication(memoryview(message)[5:])
        if said.code == Auth.OK:
            self.phase = step(SERVER, self.phase, AUTHENTICATION_OK)
            if not self.challenged and self._challenge_needed:
                raise UpstreamError(
                    "the server lets this proxy in without a password, which would let every client in",
                    where="pg_hba.conf",
                    hint="use scram-sha-256 for the proxy's address in pg_hba.conf, "
                    "or set auth.allow_trust if that is meant",
                    sqlstate="28000",
                )
            return message
        self.phase = step(SERVER, self.phase, Back.AUTHENTICATION)
        self.challenged = True
        if self._held and said.code != Auth.SASL_FINAL:
            raise ClientError(
                f"expected password response, got message type {self._held[0]}", where="client",
                hint="wait until you are let in",
            )  # fmt: skip
        if said.code == Auth.SASL and self._strip_plus:
            offered = read_sasl_mechanisms(said.data)
            if _PLUS in offered:
                self.plus_stripped = True
                return authentication_sasl([each for each in offered if each != _PLUS])
        return message

    def _explain(self, message: bytes) -> bytes:
        """Say what to do about the one failure that only two TLS legs cause (proxy trap 2)."""
        error = read_error(memoryview(message)[5:])
        if not self.plus_stripped or "channel binding" not in error.text:
            return message
        return error_response(
            error.severity or "FATAL", error.sqlstate or "28000", error.text,
            hint="TLS ends at distribcache, so SCRAM channel binding cannot pass: "
            "connect with channel_binding=disable",
        )  # fmt: skip
