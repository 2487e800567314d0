"""Bytes → facts: the body of one whole message becomes a frozen dataclass.

Rules:
1. A decoder takes the body (``message[5:]``) and consumes all of it; too little or too much is a ``ProtocolError``.
   Nothing else is ever raised, whatever the bytes.
2. Client and server are read by the same strict code: a hostile server is as possible as a hostile client.
3. Only texts meant for people are decoded, leniently; names, SQL and values stay bytes.
"""

from __future__ import annotations

from distribcache.wire.body import Body, Bytes
from distribcache.wire.codes import Auth
from distribcache.wire.facts import (
    MAX_SASL,
    MAX_SECRET,
    Authentication,
    BackendKeyData,
    Bind,
    Close,
    Column,
    DataRow,
    Describe,
    ErrorFields,
    Execute,
    NegotiateVersion,
    NotificationResponse,
    ParameterStatus,
    Parse,
    Password,
    RowDescription,
    SaslInitial,
)

__all__ = [
    "read_authentication", "read_backend_key_data", "read_bind", "read_close", "read_command_complete",
    "read_data_row", "read_describe", "read_error", "read_execute", "read_negotiate_version", "read_notification",
    "read_parameter_description", "read_parameter_status", "read_parse", "read_password", "read_query",
    "read_ready_for_query", "read_row_description", "read_sasl_initial", "read_sasl_mechanisms", "split_bind",
]  # fmt: skip


# --- what clients send -----------------------------------------------------------------------------------------------


def read_query(body: Bytes) -> bytes:
    """The text of a simple Query, without its terminator."""
    read = Body(body, "Query")
    sql = read.cstring()
    read.end()
    return sql


def read_parse(body: Bytes) -> Parse:
    read = Body(body, "Parse")
    name, sql = read.cstring(), read.cstring()
    oids = tuple(read.u32() for _ in range(read.count(4)))
    read.end()
    return Parse(name, sql, oids)


def _formats(read: Body) -> tuple[int, ...]:
    formats = tuple(read.i16() for _ in range(read.count(2)))
    if any(each not in (0, 1) for each in formats):
        raise read.broken("a format code is neither 0 nor 1")
    return formats


def read_bind(body: Bytes) -> Bind:
    read = Body(body, "Bind")
    portal, statement = read.cstring(), read.cstring()
    param_formats = _formats(read)
    params = tuple(read.value() for _ in range(read.count(4)))
    if len(param_formats) > 1 and len(param_formats) != len(params):
        raise read.broken(f"{len(param_formats)} formats for {len(params)} parameters")
    result_formats = _formats(read)
    read.end()
    return Bind(portal, statement, param_formats, params, result_formats)


def split_bind(message: bytes) -> tuple[bytes, bytes, bytes]:
    """(portal, statement, all that follows) of a whole Bind *with header*: cheap, the rest is not checked."""
    first = message.find(b"\0", 5)
    second = message.find(b"\0", first + 1)
    if first < 0 or second < 0:
        raise Body(b"", "Bind").broken("a name has no terminator")
    return message[5:first], message[first + 1 : second], message[second + 1 :]


def _target(body: Bytes, what: str) -> tuple[bytes, bytes]:
    read = Body(body, what)
    kind = read.take(1)
    if kind not in (b"S", b"P"):
        raise read.broken("neither a statement nor a portal")
    name = read.cstring()
    read.end()
    return kind, name


def read_describe(body: Bytes) -> Describe:
    return Describe(*_target(body, "Describe"))


def read_close(body: Bytes) -> Close:
    return Close(*_target(body, "Close"))


def read_execute(body: Bytes) -> Execute:
    read = Body(body, "Execute")
    portal, rows = read.cstring(), read.i32()
    read.end()
    return Execute(portal, rows)


def read_password(body: Bytes) -> Password:
    read = Body(body, "PasswordMessage")
    if read.left > MAX_SASL:
        raise read.broken(f"{read.left} bytes are over the limit of {MAX_SASL}")
    return Password(read.rest())


def read_sasl_initial(body: Bytes) -> SaslInitial:
    read = Body(body, "SASLInitialResponse")
    if read.left > MAX_SASL:
        raise read.broken(f"{read.left} bytes are over the limit of {MAX_SASL}")
    mechanism, data = read.cstring(), read.value()
    read.end()
    return SaslInitial(mechanism, data)


# --- what servers send -----------------------------------------------------------------------------------------------


def read_authentication(body: Bytes) -> Authentication:
    read = Body(body, "Authentication")
    if read.left > MAX_SASL:
        raise read.broken(f"{read.left} bytes are over the limit of {MAX_SASL}")
    answer = Authentication(read.i32(), read.rest())
    if (answer.code == Auth.OK and answer.data) or (answer.code == Auth.MD5 and len(answer.data) != 4):
        raise read.broken("data of the wrong length")
    return answer


def read_sasl_mechanisms(data: Bytes) -> tuple[bytes, ...]:
    """The mechanisms that an ``Authentication`` with code ``Auth.SASL`` offers, from its ``data``."""
    read = Body(data, "AuthenticationSASL")
    names = []
    while name := read.cstring():
        names.append(name)
    read.end()
    return tuple(names)


def read_backend_key_data(body: Bytes) -> BackendKeyData:
    read = Body(body, "BackendKeyData")
    pid, secret = read.i32(), read.rest()
    if not 1 <= len(secret) <= MAX_SECRET:
        raise read.broken(f"a secret of {len(secret)} bytes")
    return BackendKeyData(pid, secret)


def read_parameter_status(body: Bytes) -> ParameterStatus:
    read = Body(body, "ParameterStatus")
    status = ParameterStatus(read.cstring(), read.cstring())
    read.end()
    return status


def read_error(body: Bytes) -> ErrorFields:
    """Of an ErrorResponse or a NoticeResponse. Texts are decoded as UTF-8, what is not becomes U+FFFD."""
    read = Body(body, "ErrorResponse")
    fields: dict[str, str] = {}
    while (code := read.take(1)) != b"\0":
        fields[code.decode("latin-1")] = read.cstring().decode("utf-8", "replace")
    read.end()
    return ErrorFields(fields)


def read_ready_for_query(body: Bytes) -> bytes:
    """The transaction status: ``b"I"``, ``b"T"`` or ``b"E"``."""
    read = Body(body, "ReadyForQuery")
    status = read.take(1)
    read.end()
    if status not in (b"I", b"T", b"E"):
        raise read.broken("unknown transaction status")
    return status


def read_command_complete(body: Bytes) -> bytes:
    """The command tag, such as ``b"SELECT 1"``."""
    read = Body(body, "CommandComplete")
    tag = read.cstring()
    read.end()
    return tag


def read_row_description(body: Bytes) -> RowDescription:
    read = Body(body, "RowDescription")
    columns = tuple(
        Column(read.cstring(), read.u32(), read.i16(), read.u32(), read.i16(), read.i32(), read.i16())
        for _ in range(read.count(19))
    )
    read.end()
    return RowDescription(columns)


def read_parameter_description(body: Bytes) -> tuple[int, ...]:
    """Type oids of a statement's parameters."""
    read = Body(body, "ParameterDescription")
    oids = tuple(read.u32() for _ in range(read.count(4)))
    read.end()
    return oids


def read_data_row(body: Bytes) -> DataRow:
    read = Body(body, "DataRow")
    values = tuple(read.value() for _ in range(read.count(4)))
    read.end()
    return DataRow(values)


def read_notification(body: Bytes) -> NotificationResponse:
    read = Body(body, "NotificationResponse")
    notification = NotificationResponse(read.i32(), read.cstring(), read.cstring())
    read.end()
    return notification


def read_negotiate_version(body: Bytes) -> NegotiateVersion:
    read = Body(body, "NegotiateProtocolVersion")
    newest, count = read.i32(), read.i32()
    if not 0 <= count <= read.left:
        raise read.broken(f"{count} options announced, {read.left} bytes left")
    version = NegotiateVersion(newest, tuple(read.cstring() for _ in range(count)))
    read.end()
    return version
