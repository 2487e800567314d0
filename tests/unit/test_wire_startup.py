"""First packets: both ways, every prefix, every length, caps, and what may not follow."""

from __future__ import annotations

import struct

import pytest

from distribcache.errors import ProtocolError
from distribcache.wire.startup import (
    GSSENC_REQUEST,
    MAX_STARTUP,
    NEED_DATA,
    SSL_REQUEST,
    CancelRequest,
    GssEncRequest,
    SslRequest,
    Startup,
    cancel_request,
    read_startup,
    startup_message,
)

PLAIN = b"\0\0\0\x22\0\3\0\0user\0alice\0database\0shop\0\0"
PACKETS = [
    (SSL_REQUEST, b"\0\0\0\x08\x04\xd2\x16\x2f", SslRequest()),
    (GSSENC_REQUEST, b"\0\0\0\x08\x04\xd2\x16\x30", GssEncRequest()),
    (
        cancel_request(7, b"abcd"),
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\7abcd",
        CancelRequest(7, b"abcd", b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\7abcd"),
    ),
    (
        startup_message({"user": "alice", "database": "shop"}),
        PLAIN,
        Startup(3, 0, {"user": "alice", "database": "shop"}, PLAIN),
    ),
]


@pytest.mark.parametrize(("made", "wire", "fact"), PACKETS)
def test_both_ways(made: bytes, wire: bytes, fact: object) -> None:
    assert made == wire
    for buf in (wire, bytearray(wire), wire + b"trailing", wire + wire):
        read = read_startup(buf)
        assert read == fact
        assert read is not NEED_DATA
        assert read.size == len(wire)


@pytest.mark.parametrize(("made", "wire", "fact"), PACKETS)
def test_every_prefix_waits(made: bytes, wire: bytes, fact: object) -> None:
    for cut in range(len(wire)):
        assert read_startup(wire[:cut]) is NEED_DATA


@pytest.mark.parametrize("length", [0, 3, 4, 7, MAX_STARTUP + 1, 2**31 - 1, -1, -(2**31)])
def test_bad_lengths_are_refused_at_once(length: int) -> None:
    with pytest.raises(ProtocolError):
        read_startup(struct.pack(">i", length))


def test_the_largest_packet_passes() -> None:
    room = MAX_STARTUP - len(startup_message({"user": "a", "options": ""}))
    wire = startup_message({"user": "a", "options": "x" * room})
    assert len(wire) == MAX_STARTUP
    read = read_startup(wire)
    assert isinstance(read, Startup)
    assert len(read.parameters["options"]) == room
    with pytest.raises(ProtocolError):
        startup_message({"user": "a", "options": "x" * (room + 1)})


@pytest.mark.parametrize(
    ("body", "sqlstate"),
    [
        (b"\0\2\0\0user\0a\0\0", "0A000"),
        (b"\0\4\0\0user\0a\0\0", "0A000"),
        (b"\0\3\0\0\0", "28000"),
        (b"\0\3\0\0database\0a\0\0", "28000"),
        (b"\0\3\0\0user\0\0\0", "28000"),
        (b"\0\3\0\0", "08P01"),
        (b"\0\3\0\0user\0a\0", "08P01"),
        (b"\0\3\0\0user\0a", "08P01"),
        (b"\0\3\0\0user\0\0", "08P01"),
        (b"\0\3\0\0user\0a\0\0x", "08P01"),
        (b"\0\3\0\0user\0" + b"u" * 64 + b"\0\0", "08P01"),
        (b"\0\3\0\0user\0a\0database\0" + b"d" * 64 + b"\0\0", "08P01"),
        (b"\x04\xd2\x16\x2fx", "08P01"),
        (b"\x04\xd2\x16\x30x", "08P01"),
        (b"\x04\xd2\x16\x2e", "08P01"),
        (b"\x04\xd2\x16\x2e\0\0\0\1", "08P01"),
        (b"\x04\xd2\x16\x2e\0\0\0\1" + b"k" * 257, "08P01"),
    ],
)
def test_what_is_refused(body: bytes, sqlstate: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_startup(struct.pack(">i", len(body) + 4) + body)
    assert caught.value.sqlstate == sqlstate


def test_an_encryption_request_with_a_body_does_not_wait_for_it() -> None:
    with pytest.raises(ProtocolError):
        read_startup(struct.pack(">iI", 100, 80877103))


def test_parameters_are_kept_as_they_came() -> None:
    wire = startup_message([("user", "a"), ("options", "-c x=1"), ("options", "-c x=2"), ("_pq_.y", "")], minor=2)
    read = read_startup(wire)
    assert isinstance(read, Startup)
    assert (read.major, read.minor) == (3, 2)
    assert read.raw == wire
    assert read.parameters == {"user": "a", "options": "-c x=2", "_pq_.y": ""}


def test_names_of_any_encoding_come_back_unchanged() -> None:
    read = read_startup(b"\0\0\0\x11\0\3\0\0user\0\xe9\xff\0\0")
    assert isinstance(read, Startup)
    assert read.user.encode("utf-8", "surrogateescape") == b"\xe9\xff"
    assert startup_message(read.parameters) == read.raw


def test_the_database_is_the_user_by_default() -> None:
    for parameters in ({"user": "alice"}, {"user": "alice", "database": ""}):
        read = read_startup(startup_message(parameters))
        assert isinstance(read, Startup)
        assert read.database == "alice"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", False),
        ("off", False),
        ("No", False),
        ("0", False),
        ("database", True),
        ("true", True),
        ("1", True),
        ("yes", True),
    ],
)
def test_replication_connections(value: str, expected: bool) -> None:
    read = read_startup(startup_message({"user": "a", "replication": value}))
    assert isinstance(read, Startup)
    assert read.replication is expected


def test_secrets_do_not_show() -> None:
    assert "abcd" not in repr(read_startup(cancel_request(1, b"abcd")))


@pytest.mark.parametrize("items", [[("", "x")], [("user", "a\0b")], [("us\0er", "a")]])
def test_encoder_refuses(items: list[tuple[str, str]]) -> None:
    with pytest.raises(ProtocolError):
        startup_message(items)


@pytest.mark.parametrize(("pid", "secret"), [(1, b""), (1, b"k" * 257), (2**31, b"abcd")])
def test_cancel_encoder_refuses(pid: int, secret: bytes) -> None:
    with pytest.raises(ProtocolError):
        cancel_request(pid, secret)
