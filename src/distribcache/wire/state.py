"""Which message is legal when: two tables, one phase per connection, no roles and no IO.

A connection between a client and a server has one ``Phase``. Each message moves it on through the table of its sender:
``CLIENT`` for what the client sends, ``SERVER`` for what the server sends. What is absent from a table is a
``ProtocolError``, and the connection ends; nothing is ever skipped in the hope that it did not matter.

The tables say what may *come*, not what was asked for. Two things are the caller's:

1. *Codes inside Authentication.* The type byte alone does not tell success, so the caller passes ``AUTHENTICATION_OK``
   instead of the type byte when the code is 0.
2. *Counting.* Clients pipeline: when ReadyForQuery comes while another request is outstanding, the phase is BUSY, not
   READY. The caller counts and then says so.

Where PostgreSQL is lenient the tables are: copy messages outside a copy are ignored by the server (the leftovers of a
COPY that failed), Flush and Sync inside COPY IN as well.

The bytes before the phase AUTHENTICATING (start-up packets and the one-byte answers to encryption requests) have no
type and are the affair of ``wire.startup``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from distribcache.errors import ProtocolError
from distribcache.wire.codes import Back, Front

__all__ = ["AUTHENTICATION_OK", "CLIENT", "SERVER", "Legal", "Phase", "step"]

AUTHENTICATION_OK: Final = 0x100 | Back.AUTHENTICATION
"""Stands for an Authentication message with code 0; beyond the range of a type byte."""


class Phase(enum.Enum):
    """Where a connection is. ``STARTUP`` and ``CLOSED`` take no message at all."""

    STARTUP = "startup"  # nothing sent yet, or encryption is being negotiated
    AUTHENTICATING = "authenticating"  # StartupMessage sent, the server has not accepted the client
    STARTING = "starting"  # accepted, the server reports its settings up to the first ReadyForQuery
    READY = "ready"  # no request outstanding
    BUSY = "busy"
    COPY_IN = "copy_in"  # the client sends rows
    COPY_OUT = "copy_out"  # the server sends rows
    COPY_BOTH = "copy_both"  # streaming replication
    CLOSED = "closed"

    # Members are single objects, so identity is a sound hash, and it does not run Python code for each look-up.
    __hash__ = object.__hash__


Legal = Mapping[tuple[Phase, int], Phase]

_REQUESTS = (
    Front.QUERY, Front.PARSE, Front.BIND, Front.DESCRIBE, Front.EXECUTE, Front.CLOSE, Front.FUNCTION_CALL, Front.SYNC,
)  # fmt: skip
_COPYING = (Front.COPY_DATA, Front.COPY_DONE, Front.COPY_FAIL)
_ANY_TIME = (Back.NOTICE, Back.NOTIFICATION, Back.PARAMETER_STATUS)


def _client() -> Legal:
    legal = {(Phase.AUTHENTICATING, Front.PASSWORD): Phase.AUTHENTICATING}
    for phase in (Phase.READY, Phase.BUSY, Phase.COPY_OUT):
        after = Phase.BUSY if phase is Phase.READY else phase
        legal |= {(phase, kind): after for kind in _REQUESTS}
        legal |= {(phase, kind): phase for kind in (*_COPYING, Front.FLUSH)}
    for kind in (Front.COPY_DATA, Front.FLUSH, Front.SYNC):
        legal[Phase.COPY_IN, kind] = Phase.COPY_IN
    for kind in (Front.COPY_DONE, Front.COPY_FAIL):
        legal[Phase.COPY_IN, kind] = Phase.BUSY
    legal[Phase.COPY_BOTH, Front.COPY_DATA] = Phase.COPY_BOTH
    legal[Phase.COPY_BOTH, Front.COPY_DONE] = Phase.COPY_OUT  # the server may go on until its own CopyDone
    for phase in Phase:
        if phase not in (Phase.STARTUP, Phase.CLOSED):
            legal[phase, Front.TERMINATE] = Phase.CLOSED
    return MappingProxyType(legal)


def _server() -> Legal:
    legal = {
        (Phase.AUTHENTICATING, Back.AUTHENTICATION): Phase.AUTHENTICATING,
        (Phase.AUTHENTICATING, AUTHENTICATION_OK): Phase.STARTING,
        (Phase.AUTHENTICATING, Back.NEGOTIATE_VERSION): Phase.AUTHENTICATING,
        (Phase.AUTHENTICATING, Back.NOTICE): Phase.AUTHENTICATING,
        (Phase.AUTHENTICATING, Back.ERROR): Phase.CLOSED,
        (Phase.STARTING, Back.PARAMETER_STATUS): Phase.STARTING,
        (Phase.STARTING, Back.BACKEND_KEY_DATA): Phase.STARTING,
        (Phase.STARTING, Back.NOTICE): Phase.STARTING,
        (Phase.STARTING, Back.ERROR): Phase.CLOSED,
        (Phase.STARTING, Back.READY_FOR_QUERY): Phase.READY,
        # Out of the blue an error is FATAL: an administrator's command, a timeout, a shutdown.
        (Phase.READY, Back.ERROR): Phase.CLOSED,
        (Phase.BUSY, Back.READY_FOR_QUERY): Phase.READY,
        (Phase.BUSY, Back.COPY_IN): Phase.COPY_IN,
        (Phase.BUSY, Back.COPY_OUT): Phase.COPY_OUT,
        (Phase.BUSY, Back.COPY_BOTH): Phase.COPY_BOTH,
        (Phase.COPY_OUT, Back.COPY_DATA): Phase.COPY_OUT,
        (Phase.COPY_OUT, Back.COPY_DONE): Phase.BUSY,
        # The client may have sent its rows and CopyDone before it saw CopyInResponse.
        (Phase.COPY_IN, Back.COMMAND_COMPLETE): Phase.BUSY,
        (Phase.COPY_BOTH, Back.COPY_DATA): Phase.COPY_BOTH,
        (Phase.COPY_BOTH, Back.COPY_DONE): Phase.COPY_IN,  # the client may go on until its own CopyDone
    }
    for phase in (Phase.READY, Phase.BUSY, Phase.COPY_IN, Phase.COPY_OUT, Phase.COPY_BOTH):
        legal |= {(phase, kind): phase for kind in _ANY_TIME}
    for phase in (Phase.BUSY, Phase.COPY_IN, Phase.COPY_OUT, Phase.COPY_BOTH):
        legal[phase, Back.ERROR] = Phase.BUSY
    for kind in (
        Back.PARSE_COMPLETE, Back.BIND_COMPLETE, Back.CLOSE_COMPLETE, Back.NO_DATA, Back.ROW_DESCRIPTION, Back.DATA_ROW,
        Back.PARAMETER_DESCRIPTION, Back.COMMAND_COMPLETE, Back.EMPTY_QUERY, Back.PORTAL_SUSPENDED, Back.FUNCTION_CALL,
    ):  # fmt: skip
        legal[Phase.BUSY, kind] = Phase.BUSY
    return MappingProxyType(legal)


CLIENT: Final = _client()
"""What clients may send, and the phase that follows."""

SERVER: Final = _server()
"""What servers may send, and the phase that follows."""


def step(legal: Legal, phase: Phase, kind: int) -> Phase:
    """The phase after a message of type ``kind``; raises ``ProtocolError`` when it is not legal in ``phase``."""
    try:
        return legal[phase, kind]
    except KeyError:
        raise ProtocolError(
            f"message type 0x{kind & 0xFF:02X} is not legal while {phase.value}",
            where="client" if legal is CLIENT else "server",
            hint="close the connection",
        ) from None
