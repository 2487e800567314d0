"""One table of messages: bytes as PostgreSQL writes them, the call that makes them, the fact that they mean.

Every test of the wire runs over this table, in both directions. The bytes are written by hand from the protocol's
documentation, so that an error shared by encoder and decoder shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distribcache.wire import messages as m


@dataclass(frozen=True)
class Case:
    name: str
    wire: bytes
    made: bytes
    read: Callable[[bytes], object] | None
    fact: object

    def __repr__(self) -> str:
        return self.name


def _wire(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


def _case(name: str, kind: bytes, body: bytes, made: bytes, read: Any, fact: object) -> Case:
    return Case(name, _wire(kind, body), made, read, fact)


CASES = [
    _case("query", b"Q", b"select 1\0", m.query(b"select 1"), m.read_query, b"select 1"),
    _case("empty query", b"Q", b"\0", m.query(b""), m.read_query, b""),
    _case(
        "parse", b"P", b"s1\0select $1\0\0\2\0\0\0\x17\xff\xff\xff\xff",
        m.parse(b"s1", b"select $1", [23, 2**32 - 1]), m.read_parse, m.Parse(b"s1", b"select $1", (23, 2**32 - 1)),
    ),
    _case("parse unnamed", b"P", b"\0\0\0\0", m.parse(b"", b""), m.read_parse, m.Parse(b"", b"", ())),
    _case(
        "bind", b"B", b"p\0s\0\0\1\0\1\0\3\0\0\0\2ab\xff\xff\xff\xff\0\0\0\0\0\2\0\0\0\1",
        m.bind(b"p", b"s", [1], [b"ab", None, b""], [0, 1]), m.read_bind,
        m.Bind(b"p", b"s", (1,), (b"ab", None, b""), (0, 1)),
    ),
    _case("bind bare", b"B", b"\0\0\0\0\0\0\0\0", m.bind(b"", b""), m.read_bind, m.Bind(b"", b"", (), (), ())),
    _case("describe", b"D", b"Ss1\0", m.describe(b"S", b"s1"), m.read_describe, m.Describe(b"S", b"s1")),
    _case("describe portal", b"D", b"P\0", m.describe(b"P", b""), m.read_describe, m.Describe(b"P", b"")),
    _case("close", b"C", b"Pp\0", m.close(b"P", b"p"), m.read_close, m.Close(b"P", b"p")),
    _case("execute", b"E", b"p\0\0\0\0\7", m.execute(b"p", 7), m.read_execute, m.Execute(b"p", 7)),
    _case("execute all", b"E", b"\0\0\0\0\0", m.execute(b""), m.read_execute, m.Execute(b"", 0)),
    _case("password", b"p", b"geheim\0", m.password(b"geheim\0"), m.read_password, m.Password(b"geheim\0")),
    _case(
        "sasl initial", b"p", b"SCRAM-SHA-256\0\0\0\0\x06n,,n=a", m.password(b"SCRAM-SHA-256\0\0\0\0\x06n,,n=a"),
        m.read_sasl_initial, m.SaslInitial(b"SCRAM-SHA-256", b"n,,n=a"),
    ),
    _case(
        "sasl initial, no data", b"p", b"X\0\xff\xff\xff\xff", m.password(b"X\0\xff\xff\xff\xff"), m.read_sasl_initial,
        m.SaslInitial(b"X", None),
    ),
    _case("sync", b"S", b"", m.SYNC, None, None),
    _case("flush", b"H", b"", m.FLUSH, None, None),
    _case("terminate", b"X", b"", m.terminate(), None, None),
    _case("copy data", b"d", b"1\t2\n", m.copy_data(b"1\t2\n"), None, None),
    _case("copy done", b"c", b"", m.copy_done(), None, None),
    _case("copy fail", b"f", b"why\0", m.copy_fail(b"why"), None, None),
    _case(
        "authentication ok", b"R", b"\0\0\0\0", m.authentication(m.Auth.OK), m.read_authentication,
        m.Authentication(0, b""),
    ),
    _case(
        "authentication md5", b"R", b"\0\0\0\5salt", m.authentication(m.Auth.MD5, b"salt"), m.read_authentication,
        m.Authentication(5, b"salt"),
    ),
    _case(
        "authentication sasl", b"R", b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        m.authentication_sasl([b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"]), m.read_authentication,
        m.Authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
    ),
    _case(
        "key data", b"K", b"\0\0\1\0key!", m.backend_key_data(256, b"key!"), m.read_backend_key_data,
        m.BackendKeyData(256, b"key!"),
    ),
    _case(
        "key data 3.2", b"K", b"\0\0\0\1" + b"k" * 256, m.backend_key_data(1, b"k" * 256), m.read_backend_key_data,
        m.BackendKeyData(1, b"k" * 256),
    ),
    _case(
        "parameter status", b"S", b"TimeZone\0UTC\0", m.parameter_status(b"TimeZone", b"UTC"), m.read_parameter_status,
        m.ParameterStatus(b"TimeZone", b"UTC"),
    ),
    _case(
        "error", b"E", b"SFATAL\0VFATAL\0C08006\0Mno server\0Dd\0Hh\0\0",
        m.error_response("FATAL", "08006", "no server", detail="d", hint="h"), m.read_error,
        m.ErrorFields({"S": "FATAL", "V": "FATAL", "C": "08006", "M": "no server", "D": "d", "H": "h"}),
    ),
    _case(
        "notice", b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhi\0\0", m.notice_response("NOTICE", "00000", "hi"), m.read_error,
        m.ErrorFields({"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": "hi"}),
    ),
    _case("ready", b"Z", b"T", m.ready_for_query(b"T"), m.read_ready_for_query, b"T"),
    _case("complete", b"C", b"SELECT 1\0", m.command_complete(b"SELECT 1"), m.read_command_complete, b"SELECT 1"),
    _case(
        "row description", b"T", b"\0\1id\0\0\0\0\0\0\0\0\0\0\x17\0\4\xff\xff\xff\xff\0\1",
        m.row_description([(b"id", 23, 4, 1)]), m.read_row_description,
        m.RowDescription((m.Column(b"id", 0, 0, 23, 4, -1, 1),)),
    ),
    _case("no columns", b"T", b"\0\0", m.row_description([]), m.read_row_description, m.RowDescription(())),
    _case(
        "data row", b"D", b"\0\3\0\0\0\1x\xff\xff\xff\xff\0\0\0\0", m.data_row([b"x", None, b""]), m.read_data_row,
        m.DataRow((b"x", None, b"")),
    ),
    _case(
        "parameter description", b"t", b"\0\1\0\0\0\x19", m.parameter_description([25]), m.read_parameter_description,
        (25,),
    ),
    _case(
        "notification", b"A", b"\0\0\0\7ch\0hello\0",
        m.message(m.Back.NOTIFICATION, b"\0\0\0\7ch\0hello\0"), m.read_notification,
        m.NotificationResponse(7, b"ch", b"hello"),
    ),
    _case(
        "negotiate version", b"v", b"\0\0\0\0\0\0\0\1_pq_.x\0", m.negotiate_version(0, [b"_pq_.x"]),
        m.read_negotiate_version, m.NegotiateVersion(0, (b"_pq_.x",)),
    ),
    _case("parse complete", b"1", b"", m.PARSE_COMPLETE, None, None),
    _case("bind complete", b"2", b"", m.BIND_COMPLETE, None, None),
    _case("close complete", b"3", b"", m.CLOSE_COMPLETE, None, None),
    _case("no data", b"n", b"", m.NO_DATA, None, None),
    _case("empty query answered", b"I", b"", m.EMPTY_QUERY, None, None),
    _case("portal suspended", b"s", b"", m.PORTAL_SUSPENDED, None, None),
]  # fmt: skip

READABLE = [case for case in CASES if case.read is not None]

# Decoders for which any shorter or longer body is also a valid body.
OPEN_ENDED = {m.read_password, m.read_authentication, m.read_backend_key_data}
