"""Facts → bytes: whole messages with their header, ready for the socket.

An encoder refuses what the wire cannot carry: a message over 1 GiB - 1 (a wrapped length turns one message into many),
a NUL inside a string, more than 65,535 items. It raises ``ProtocolError``. The exception are the texts of errors and
notices, where a NUL is replaced: an error must not fail to be reported.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from distribcache.errors import ProtocolError
from distribcache.wire.buffer import MAX_MESSAGE
from distribcache.wire.codes import Auth, Back, Front

__all__ = [
    "BIND_COMPLETE", "CLOSE_COMPLETE", "EMPTY_QUERY", "FLUSH", "NO_DATA", "PARSE_COMPLETE", "PORTAL_SUSPENDED", "SYNC",
    "authentication", "authentication_sasl", "backend_key_data", "bind", "close", "command_complete", "copy_data",
    "copy_done", "copy_fail", "data_row", "describe", "error_response", "execute", "message", "negotiate_version",
    "notice_response", "parameter_description", "parameter_status", "parse", "password", "query", "ready_for_query",
    "row_description", "terminate",
]  # fmt: skip

_head = struct.Struct(">BI").pack
_i16 = struct.Struct(">h").pack
_u16 = struct.Struct(">H").pack
_i32 = struct.Struct(">i").pack
_u32 = struct.Struct(">I").pack
_NULL = _i32(-1)

PARSE_COMPLETE = b"1\0\0\0\4"
BIND_COMPLETE = b"2\0\0\0\4"
CLOSE_COMPLETE = b"3\0\0\0\4"
NO_DATA = b"n\0\0\0\4"
EMPTY_QUERY = b"I\0\0\0\4"
PORTAL_SUSPENDED = b"s\0\0\0\4"
SYNC = b"S\0\0\0\4"
FLUSH = b"H\0\0\0\4"
_TERMINATE = b"X\0\0\0\4"


def _refuse(reason: str) -> ProtocolError:
    return ProtocolError(reason, where="encoding a message", hint="send less in one message")


def message(kind: int, *parts: bytes) -> bytes:
    """One message of type byte ``kind`` with ``parts`` as its body."""
    length = 4 + sum(map(len, parts))
    if length > MAX_MESSAGE:
        raise _refuse(f"a message of {length} bytes is over the protocol's limit of {MAX_MESSAGE}")
    return _head(kind, length) + b"".join(parts)


def _string(text: bytes) -> bytes:
    if b"\0" in text:
        raise _refuse("a string of the protocol cannot contain NUL")
    return text + b"\0"


def _count(items: Sequence[object]) -> bytes:
    if len(items) > 0xFFFF:
        raise _refuse(f"{len(items)} items do not fit a 16-bit count")
    return _u16(len(items))


def _values(values: Sequence[bytes | None]) -> list[bytes]:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        elif len(value) > MAX_MESSAGE:
            raise _refuse(f"a value of {len(value)} bytes is over the protocol's limit of {MAX_MESSAGE}")
        else:
            parts.append(_i32(len(value)))
            parts.append(value)
    return parts


def _checked(pack: struct.Struct, value: int) -> bytes:
    try:
        return pack.pack(value)
    except struct.error as error:
        raise _refuse(f"{value} does not fit its field") from error


_I16, _I32, _U32 = struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">I")


def _formats(formats: Sequence[int]) -> bytes:
    return _count(formats) + b"".join(_checked(_I16, each) for each in formats)


# --- what servers send -----------------------------------------------------------------------------------------------


def _report(kind: int, severity: str, sqlstate: str, text: str, detail: str, hint: str) -> bytes:
    fields = [("S", severity), ("V", severity), ("C", sqlstate), ("M", text), ("D", detail), ("H", hint)]
    parts = [code + value.replace("\0", "\ufffd") + "\0" for code, value in fields if value]
    return message(kind, "".join(parts).encode("utf-8", "replace"), b"\0")


def error_response(severity: str, sqlstate: str, text: str, *, detail: str = "", hint: str = "") -> bytes:
    """An ErrorResponse of our own: ``severity`` is ERROR, FATAL or PANIC. Keep the texts ASCII: they go out as UTF-8
    whatever the client's encoding."""
    return _report(Back.ERROR, severity, sqlstate, text, detail, hint)


def notice_response(severity: str, sqlstate: str, text: str, *, detail: str = "", hint: str = "") -> bytes:
    """A NoticeResponse of our own: ``severity`` is WARNING, NOTICE, DEBUG, INFO or LOG."""
    return _report(Back.NOTICE, severity, sqlstate, text, detail, hint)


def ready_for_query(status: bytes) -> bytes:
    """``status`` is ``b"I"`` (idle), ``b"T"`` (in a transaction) or ``b"E"`` (in a failed one)."""
    if status not in (b"I", b"T", b"E"):
        raise _refuse(f"transaction status {status!r} does not exist")
    return b"Z\0\0\0\5" + status


def command_complete(tag: bytes) -> bytes:
    return message(Back.COMMAND_COMPLETE, _string(tag))


def row_description(columns: Sequence[tuple[bytes, int, int, int]]) -> bytes:
    """Columns of no table: ``(name, type oid, type length, format)``; length -1 varies, format 0 text, 1 binary."""
    parts = [_count(columns)]
    for name, oid, size, form in columns:
        parts += [_string(name), b"\0\0\0\0\0\0", _checked(_U32, oid), _checked(_I16, size)]
        parts += [_NULL, _checked(_I16, form)]
    return message(Back.ROW_DESCRIPTION, *parts)


def data_row(values: Sequence[bytes | None]) -> bytes:
    return message(Back.DATA_ROW, _count(values), *_values(values))


def parameter_description(oids: Sequence[int]) -> bytes:
    return message(Back.PARAMETER_DESCRIPTION, _count(oids), *(_checked(_U32, oid) for oid in oids))


def parameter_status(name: bytes, value: bytes) -> bytes:
    return message(Back.PARAMETER_STATUS, _string(name), _string(value))


def backend_key_data(pid: int, secret: bytes) -> bytes:
    return message(Back.BACKEND_KEY_DATA, _checked(_I32, pid), secret)


def authentication(code: int, data: bytes = b"") -> bytes:
    return message(Back.AUTHENTICATION, _checked(_I32, code), data)


def authentication_sasl(mechanisms: Iterable[bytes]) -> bytes:
    """The offer of SASL mechanisms, for instance the server's offer without one that cannot be relayed."""
    return authentication(Auth.SASL, b"".join(map(_string, mechanisms)) + b"\0")


def negotiate_version(newest_minor: int, unknown: Sequence[bytes] = ()) -> bytes:
    """``newest_minor``: the minor version of protocol 3 that is spoken; ``unknown``: ``_pq_.`` names not understood."""
    return message(Back.NEGOTIATE_VERSION, _checked(_I32, newest_minor), _i32(len(unknown)), *map(_string, unknown))


# --- what clients send -----------------------------------------------------------------------------------------------


def query(sql: bytes) -> bytes:
    return message(Front.QUERY, _string(sql))


def parse(name: bytes, sql: bytes, oids: Sequence[int] = ()) -> bytes:
    return message(Front.PARSE, _string(name), _string(sql), _count(oids), *(_checked(_U32, oid) for oid in oids))


def bind(
    portal: bytes,
    statement: bytes,
    param_formats: Sequence[int] = (),
    params: Sequence[bytes | None] = (),
    result_formats: Sequence[int] = (),
) -> bytes:
    """Formats: none = all text, one = for all, else one each; 0 text, 1 binary."""
    return message(
        Front.BIND, _string(portal), _string(statement), _formats(param_formats), _count(params), *_values(params),
        _formats(result_formats),
    )  # fmt: skip


def _kind(kind: bytes) -> bytes:
    if kind not in (b"S", b"P"):
        raise _refuse(f"{kind!r} is neither a statement (S) nor a portal (P)")
    return kind


def describe(kind: bytes, name: bytes) -> bytes:
    """``kind`` is ``b"S"`` for a statement, ``b"P"`` for a portal."""
    return message(Front.DESCRIBE, _kind(kind), _string(name))


def close(kind: bytes, name: bytes) -> bytes:
    """``kind`` is ``b"S"`` for a statement, ``b"P"`` for a portal."""
    return message(Front.CLOSE, _kind(kind), _string(name))


def execute(portal: bytes, max_rows: int = 0) -> bytes:
    """``max_rows`` 0 is no limit."""
    return message(Front.EXECUTE, _string(portal), _checked(_I32, max_rows))


def password(data: bytes) -> bytes:
    """PasswordMessage (with its own NUL), SASLInitialResponse or SASLResponse: the body as it is."""
    return message(Front.PASSWORD, data)


def copy_data(data: bytes) -> bytes:
    return message(Front.COPY_DATA, data)


def copy_done() -> bytes:
    return message(Front.COPY_DONE)


def copy_fail(reason: bytes) -> bytes:
    return message(Front.COPY_FAIL, _string(reason))


def terminate() -> bytes:
    return _TERMINATE
