"""What servers say of their cluster."""

from __future__ import annotations

import random
from typing import Any

import pytest
import redis.crc

from distribcache.config.units import Address
from distribcache.tiers.resp import MalformedReplyError, Refusal
from distribcache.tiers.topology import moved_to, read_role, read_slots, slot_of

ASKED = Address("seed", 6379)


def test_slots_are_those_of_other_clients() -> None:
    for number in range(200):
        key = f"dc:default:{random.Random(number).randbytes(16).hex()}".encode()
        assert slot_of(key) == redis.crc.key_slot(key)


def test_a_cluster() -> None:
    reply: Any = [
        [0, 8000, [b"10.0.0.1", 7000, b"id", []], [b"10.0.0.3", 7002, b"id3"], [b"10.0.0.4", 7002, b"id4"]],
        [8001, 16383, [b"db.example.com", 7001, b"id2"], [None, 7005, b"id5"]],
    ]
    found = read_slots(reply, ASKED)
    assert found.ranges == ((0, 8000, Address("10.0.0.1", 7000)), (8001, 16383, Address("db.example.com", 7001)))
    assert found.primaries == (Address("10.0.0.1", 7000), Address("db.example.com", 7001))
    assert found.replicas == (Address("10.0.0.3", 7002), Address("10.0.0.4", 7002), Address("seed", 7005))
    assert (found.copies, found.covered, found.clustered) == (2, 16384, True)


def test_holes_and_owners_that_are_not_to_be_found() -> None:
    found = read_slots([[5, 5, [b"", 7000]], [7, 8, [b"?", 7001], [b"?", 7002]], [9, 9, [b"::1", 1]]], ASKED)
    assert found.ranges == ((5, 5, Address("seed", 7000)), (9, 9, Address("::1", 1)))
    assert (found.copies, found.covered) == (1, 2)
    assert read_slots([], ASKED).primaries == ()


@pytest.mark.parametrize(
    "reply",
    [
        None, b"x", 5, [5], [[]], [[1, 2]], [[1, 2, b"host"]], [[1, 2, []]], [[1, 2, [b"h"]]], [[1, 2, [5, 5]]],
        [[1, 2, [b"h", b"5"]]], [[b"1", 2, [b"h", 5]]], [[2, 1, [b"h", 5]]], [[-1, 1, [b"h", 5]]],
        [[0, 16384, [b"h", 5]]], [[0, 5, [b"h", 5]], [5, 6, [b"h", 5]]], [[0, 5, [b"h", 0]]],
        [[0, 5, [b"h", 65536]]], [[0, 5, [b"h h", 5]]], [[0, 5, [b"h" * 256, 5]]], [[0, 5, [b"\xff", 5]]],
        [[0, 5, [b"h", 5], 7]], Refusal(b"ERR"),
    ],
)  # fmt: skip
def test_what_is_no_cluster(reply: Any) -> None:
    with pytest.raises(MalformedReplyError):
        read_slots(reply, ASKED)


def test_roles() -> None:
    alone = read_role([b"master", 0, []], ASKED)
    assert (alone.ranges, alone.copies, alone.writable) == (((0, 16383, ASKED),), 1, True)
    assert read_role([b"master", 5, [[b"10.0.0.1", b"6379", b"5"]]], ASKED).copies == 2
    assert not read_role([b"slave", b"10.0.0.1", 6379, b"connected", 5], ASKED).writable
    assert read_role(Refusal(b"NOPERM"), ASKED).copies == 0, "unknown"
    for reply in ([b"sentinel", []], [], b"master", [b"master"]):
        with pytest.raises(MalformedReplyError):
            read_role(reply, ASKED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"MOVED 3999 127.0.0.1:6381", Address("127.0.0.1", 6381)),
        (b"MOVED 3999 :6381", Address("seed", 6381)),
        (b"MOVED 3999 ::1:6381", Address("::1", 6381)),
        (b"MOVED 3999 db.example.com:1", Address("db.example.com", 1)),
        (b"MOVED 3999", None),
        (b"MOVED 3999 nowhere", None),
        (b"MOVED 3999 h:0", None),
        (b"MOVED 3999 h:99999", None),
        (b"MOVED 3999 h:1 2", None),
        (b"MOVED 3999 h/h:1", None),
        (b"ASK 3999 h:1", None),
    ],
)
def test_where_a_slot_has_gone(line: bytes, address: Address | None) -> None:
    assert moved_to(Refusal(line), ASKED) == address
