"""The first packets of a client: no type byte, only a length and a code.

A client opens with one of four packets: SSLRequest, GSSENCRequest, CancelRequest or StartupMessage; the first two may
be followed by another. Nobody is authenticated yet, so the caps are tight: 10,000 bytes for a packet (PostgreSQL's
own), 63 for the names of user and database (longer ones cannot exist).

Rules:
1. The length is checked before anything is waited for, the whole packet before anything is believed.
2. A reader says how many bytes its packet took (``size``). After SSLRequest or GSSENCRequest *nothing* may be left
   over: bytes that came before the handshake are not protected by it, and the caller has to end the connection.
3. Every parameter is relayed as it came (``raw``); ``parameters`` is for looking, its last duplicate wins as in the
   server.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from distribcache.errors import ProtocolError
from distribcache.wire.body import Body
from distribcache.wire.messages import MAX_SECRET

__all__ = [
    "GSSENC_REQUEST", "MAX_NAME", "MAX_STARTUP", "NEED_DATA", "SSL_REQUEST", "CancelRequest", "FirstPacket",
    "GssEncRequest", "NeedData", "SslRequest", "Startup", "cancel_request", "read_startup", "startup_message",
]  # fmt: skip

MAX_STARTUP: Final = 10_000
MAX_NAME: Final = 63

_SSL_CODE: Final = 80877103
_GSS_CODE: Final = 80877104
_CANCEL_CODE: Final = 80877102

SSL_REQUEST: Final = struct.pack(">II", 8, _SSL_CODE)
GSSENC_REQUEST: Final = struct.pack(">II", 8, _GSS_CODE)


class NeedData(enum.Enum):
    """The type of ``NEED_DATA``: the packet is not complete, ask again when more has come."""

    NEED_DATA = enum.auto()


NEED_DATA: Final[Literal[NeedData.NEED_DATA]] = NeedData.NEED_DATA


@dataclass(frozen=True, slots=True)
class SslRequest:
    """The client asks for TLS; the answer is one byte, ``S`` or ``N``."""

    size: int = 8


@dataclass(frozen=True, slots=True)
class GssEncRequest:
    """The client asks for GSSAPI encryption; the answer is one byte, ``G`` or ``N``."""

    size: int = 8


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel what backend ``pid`` runs; there is no answer."""

    pid: int
    secret: bytes = field(repr=False)
    raw: bytes = field(repr=False, default=b"")

    @property
    def size(self) -> int:
        return len(self.raw)


@dataclass(frozen=True, slots=True)
class Startup:
    """A session begins. ``parameters`` has at least ``user``; ``raw`` is the whole packet."""

    major: int
    minor: int
    parameters: Mapping[str, str]
    raw: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.raw)

    @property
    def user(self) -> str:
        return self.parameters["user"]

    @property
    def database(self) -> str:
        """The server takes the user's name when the client names no database."""
        return self.parameters.get("database") or self.user

    @property
    def replication(self) -> bool:
        """True for any replication connection, physical or logical: neither is ever looked into."""
        value = self.parameters.get("replication", "").lower()
        return value not in _FALSE

    @property
    def logical(self) -> bool:
        """True for a replication connection to a database: it may run SQL, which a physical one may not."""
        return self.parameters.get("replication", "").lower() == "database"


# Every spelling of false that the server's parse_bool takes: a unique prefix of false, no, off; or 0.
_FALSE: Final = frozenset({"", "0", "f", "fa", "fal", "fals", "false", "n", "no", "of", "off"})

FirstPacket = SslRequest | GssEncRequest | CancelRequest | Startup


def _broken(reason: str, sqlstate: str = "08P01") -> ProtocolError:
    return ProtocolError(reason, where="startup packet", hint="connect with a PostgreSQL client", sqlstate=sqlstate)


def read_startup(buf: bytes | bytearray) -> FirstPacket | Literal[NeedData.NEED_DATA]:
    """Read the packet at the start of ``buf``, which is not changed; bytes after it are not looked at (see ``size``).

    Raises ``ProtocolError`` with the SQLSTATE that PostgreSQL would send: 08P01, 0A000 for a protocol other than 3,
    28000 for a missing user.
    """
    if len(buf) < 4:
        return NEED_DATA
    (length,) = struct.unpack_from(">i", buf)
    if not 8 <= length <= MAX_STARTUP:
        raise _broken(f"invalid length of startup packet: {length}")
    if len(buf) < length:
        # A packet that cannot be right is refused before its body is waited for.
        if len(buf) >= 8 and length != 8 and struct.unpack_from(">I", buf, 4)[0] in (_SSL_CODE, _GSS_CODE):
            raise _broken("an encryption request has a body")
        return NEED_DATA
    raw = bytes(buf[:length])
    (code,) = struct.unpack_from(">I", raw, 4)
    if code in (_SSL_CODE, _GSS_CODE):
        if length != 8:
            raise _broken("an encryption request has a body")
        return SslRequest() if code == _SSL_CODE else GssEncRequest()
    if code == _CANCEL_CODE:
        return _read_cancel(raw)
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise _broken(f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2", "0A000")
    return Startup(major, minor, _read_parameters(raw), raw)


def _read_cancel(raw: bytes) -> CancelRequest:
    read = Body(raw[8:], "CancelRequest")
    pid, secret = read.i32(), read.rest()
    if not 1 <= len(secret) <= MAX_SECRET:
        raise read.broken(f"a secret of {len(secret)} bytes")
    return CancelRequest(pid, secret, raw)


def _read_parameters(raw: bytes) -> dict[str, str]:
    read = Body(raw[8:], "startup packet")
    parameters: dict[str, str] = {}
    while name := read.cstring():
        # surrogateescape: whatever encoding the bytes are in, they come back unchanged
        parameters[name.decode("utf-8", "surrogateescape")] = read.cstring().decode("utf-8", "surrogateescape")
    read.end()
    if not parameters.get("user"):
        raise _broken("no PostgreSQL user name specified in startup packet", "28000")
    for what in ("user", "database"):
        if len(parameters.get(what, "").encode("utf-8", "surrogateescape")) > MAX_NAME:
            raise _broken(f"the {what} name is longer than {MAX_NAME} bytes")
    return parameters


def startup_message(
    parameters: Mapping[str, str] | Sequence[tuple[str, str]], *, major: int = 3, minor: int = 0
) -> bytes:
    """A StartupMessage. Raises ``ProtocolError`` for a NUL in it, an empty name, or more than 10,000 bytes."""
    items = parameters.items() if isinstance(parameters, Mapping) else parameters
    body = b""
    for name, value in items:
        if not name or "\0" in name or "\0" in value:
            raise _broken("a parameter has an empty name or contains NUL")
        body += name.encode("utf-8", "surrogateescape") + b"\0" + value.encode("utf-8", "surrogateescape") + b"\0"
    length = 8 + len(body) + 1
    if length > MAX_STARTUP:
        raise _broken(f"a startup packet of {length} bytes is over the limit of {MAX_STARTUP}")
    return struct.pack(">IHH", length, major, minor) + body + b"\0"


def cancel_request(pid: int, secret: bytes) -> bytes:
    """A CancelRequest with the pid and secret of a BackendKeyData."""
    if not 1 <= len(secret) <= MAX_SECRET or not -(2**31) <= pid < 2**31:
        raise _broken("not a pid and secret of a BackendKeyData")
    return struct.pack(">IIi", 12 + len(secret), _CANCEL_CODE, pid) + secret
