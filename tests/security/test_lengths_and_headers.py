"""Lengths and headers that no honest server sends: the connection ends, and nothing of it is stored or served."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from barewire import ask, bare, fields, first_column, query
from fix_proxy import ProxyProcess
from relay import Relay

from distribcache.errors import ProtocolError
from distribcache.wire import encode


class Vast(bytes):
    """Claims to be as long as no message may be."""

    def __len__(self) -> int:
        return (1 << 30) - 4


def test_row_14_the_encoder_refuses_what_would_wrap() -> None:
    """Security row 14."""
    with pytest.raises(ProtocolError, match="limit"):
        encode.message(ord("Q"), Vast())
    with pytest.raises(ProtocolError, match="limit"):
        encode.bind(b"", b"", params=[Vast(), Vast(), Vast(), Vast()])
    with pytest.raises(ProtocolError, match="count"):
        encode.bind(b"", b"", params=[None] * 65536)


def harmed(relay: Relay, evil: ProxyProcess, sql: str, request: bytes, fault: Callable[[int, bytes], bytes]) -> None:
    """One client sees the fault; afterwards an honest one that asks the same gets the truth, twice."""
    with bare(evil.host, evil.port) as victim:
        victim.login(evil.database, application_name="victim")
        victim.socket.settimeout(0.15)
        relay.arm(fault)
        with contextlib.suppress(OSError, struct.error, IndexError):
            victim.send(request)
            victim.until_ready()
            victim.send(request)
            victim.until_ready()
        relay.disarm()
    with bare(evil.host, evil.port) as honest:
        honest.login(evil.database)
        for _ in range(3):
            honest.send(request)
            seen = honest.until_ready()
            assert first_column(seen) == ["item 7"], seen
            assert "".join(kind for kind, _ in seen) in ("TDCZ", "12TDCZ")


@pytest.mark.parametrize("length", [0, 3, 2**30, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("kind", ["T", "D", "C", "Z", "N"])
def test_row_14_impossible_lengths_from_the_server(relay: Relay, evil: ProxyProcess, kind: str, length: int) -> None:
    """Security row 14: the connection ends with an error of ours, and what follows is never read as messages."""
    sql = f"SELECT name /* {kind} {length} */ FROM item WHERE id = 7"
    wanted = b"T" if kind == "N" else kind.encode()

    def fault(count: int, one: bytes) -> bytes:
        return kind.encode() + struct.pack("!I", length) + one[5:] if one[:1] == wanted else one

    with bare(evil.host, evil.port) as victim:
        victim.login(evil.database, application_name="victim")
        assert first_column(victim.simple("SELECT name FROM item WHERE id = 8")) == ["item 8"]
        relay.arm(fault)
        victim.send(query(sql))
        try:
            errors = [fields(body) for one, body in victim.rest() if one == "E"]
        finally:
            relay.disarm()
        assert [(error["S"], error["C"]) for error in errors] == [("FATAL", "08P01")]
    harmed(relay, evil, sql, query(sql), lambda count, one: one)


@pytest.mark.parametrize("protocol", ["simple", "extended"])
@pytest.mark.parametrize("bit", [0, 5])
def test_row_15_one_bit_flipped_in_every_header(relay: Relay, evil: ProxyProcess, protocol: str, bit: int) -> None:
    """Security row 15: type and length of every message of a reply, and the status of ReadyForQuery, byte by byte.

    What stands inside a row cannot be checked by anybody in the middle.
    """
    count = 4 if protocol == "simple" else 6
    for position in range(count):
        for at in range(6 if position == count - 1 else 5):
            sql = f"SELECT name /* {protocol} {bit} {position} {at} */ FROM item WHERE id = 7"

            def flip(number: int, one: bytes, position: int = position, at: int = at) -> bytes:
                if number != position:
                    return one
                return one[:at] + bytes([one[at] ^ 1 << bit]) + one[at + 1 :]

            harmed(relay, evil, sql, query(sql) if protocol == "simple" else ask(sql), flip)
