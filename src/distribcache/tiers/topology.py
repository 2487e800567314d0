"""Which server owns which keys: what a server says of its cluster, read and checked. No IO.

A cluster shares 16384 slots among its primaries; the slot of a key is the CRC16 of its bytes. (A key with braces would
have the slot of what stands between them; ours have none.) A server that is no cluster owns all slots.

What a server says is untrusted input: a reply of another shape raises MalformedReplyError.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass

from distribcache.config.units import Address
from distribcache.tiers.resp import MalformedReplyError, Refusal, Reply

__all__ = ["SLOTS", "Topology", "moved_to", "read_role", "read_slots", "slot_of"]

SLOTS = 16384
_MAX_HOST = 255


def slot_of(key: bytes) -> int:
    """The slot of a key without braces."""
    return binascii.crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Topology:
    """``ranges``: first slot, last slot, owner. ``copies``: of the range that has fewest; 0 when that is unknown."""

    ranges: tuple[tuple[int, int, Address], ...]
    copies: int
    replicas: tuple[Address, ...]
    clustered: bool
    writable: bool = True

    @property
    def primaries(self) -> tuple[Address, ...]:
        return tuple(dict.fromkeys(owner for _, _, owner in self.ranges))

    @property
    def covered(self) -> int:
        """How many slots have an owner."""
        return sum(last - first + 1 for first, last, _ in self.ranges)


def read_slots(reply: Reply, asked: Address) -> Topology:
    """What CLUSTER SLOTS answered. A node without a host is ``asked`` itself; one that is ``?`` is not to be found."""
    ranges: list[tuple[int, int, Address]] = []
    replicas: dict[Address, None] = {}
    copies: list[int] = []
    taken = bytearray(SLOTS)
    for each in _list(reply):
        match each:
            case [int() as first, int() as last, owner, *others] if 0 <= first <= last < SLOTS:
                pass
            case _:
                raise MalformedReplyError("a slot range that is none")
        if any(taken[first : last + 1]):
            raise MalformedReplyError("a slot with two owners")
        taken[first : last + 1] = b"\1" * (last + 1 - first)
        found = _node(owner, asked)
        if found is not None:
            ranges.append((first, last, found))
        replicas.update(dict.fromkeys(node for node in (_node(other, asked) for other in others) if node is not None))
        copies.append(1 + len(others))
    return Topology(tuple(ranges), min(copies, default=0), tuple(replicas), clustered=True)


def read_role(reply: Reply, asked: Address) -> Topology:
    """What ROLE answered, or that it may not be asked: the topology of a server alone with its replicas."""
    copies, writable = 0, True
    if not isinstance(reply, Refusal):
        match _list(reply):
            case [b"master", int(), [*replicas]]:
                copies = 1 + len(replicas)
            case [b"slave", *_]:
                writable = False
            case _:
                raise MalformedReplyError("a role that is none")
    return Topology(((0, SLOTS - 1, asked),), copies, (), clustered=False, writable=writable)


def moved_to(refusal: Refusal, asked: Address) -> Address | None:
    """The address in a MOVED; None when there is none to be read."""
    words = refusal.text.split(" ")
    if len(words) != 3 or words[0] != "MOVED":
        return None
    host, colon, port = words[2].rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        return None
    try:
        return _address(host.encode() or None, int(port), asked)
    except MalformedReplyError:
        return None


def _list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise MalformedReplyError("no list where one was asked for")
    return reply


def _node(node: Reply, asked: Address) -> Address | None:
    match node:
        case [b"?", int(), *_]:
            return None
        case [bytes() | None as host, int() as port, *_]:
            return _address(host, port, asked)
    raise MalformedReplyError("a node that is none")


def _address(host: bytes | None, port: int, asked: Address) -> Address:
    name = host.decode("ascii", "replace") if host else asked.host
    if not 0 < port < 65536 or len(name) > _MAX_HOST or not all(c.isalnum() or c in ".-:_%" for c in name):
        raise MalformedReplyError("a node without an address")
    return Address(name, port)
