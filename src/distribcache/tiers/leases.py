"""Leases: one node of the cluster asks for an expensive miss, the others wait for what it brings.

Rules:

1. A lease is a key beside the entries, with a random token as its value, that the server drops when its time is over.
2. Without a server, or without its answer, everybody gets the lease: more queries, and no wait for nobody.
3. Giving it back reads the token and deletes it if it is our own. Between these two the lease may expire and be taken
   by another node, whose lease is then deleted: one more query and nothing else. A script would be exact, but whoever
   may run scripts may run far more than this user needs. A lease about to expire is left to do so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hmac import compare_digest
from typing import Final

from distribcache.clock import now_ns
from distribcache.tiers.base import Digest
from distribcache.tiers.connection import BULK, INTEGER, OK, Answer, Connection, Lost
from distribcache.tiers.mesh import Peer
from distribcache.tiers.resp import Refusal, command

__all__ = ["LONGEST_S", "MOST", "Leases"]

LONGEST_S: Final = 1e8
"""Three years: the longest time that a server is given."""
MOST: Final = 4096
"""Tokens that are remembered; a lease beyond them ends by its time alone."""


class Leases:
    """``owner`` tells who holds a key, ``failed`` counts an answer that is none."""

    def __init__(
        self,
        prefix: bytes,
        deadline: float,
        owner: Callable[[bytes], Peer | None],
        failed: Callable[[Peer | None, Answer], None],
    ) -> None:
        self._prefix = prefix + b"lease:"
        self._deadline = deadline
        self._owner = owner
        self._failed = failed
        self._held: dict[Digest, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    async def take(self, digest: Digest, seconds: float) -> bool:
        """False: somebody has it."""
        key, peer, connection = self._way(digest)
        if connection is None:
            return True
        token = os.urandom(16).hex().encode()
        milliseconds = max(1, int(min(seconds, LONGEST_S) * 1000))
        until = now_ns() + milliseconds * 1_000_000
        answer = await connection.ask(command(b"SET", key, token, b"NX", b"PX", b"%d" % milliseconds), OK)
        if answer is None:
            return False
        if answer != b"OK":
            self._failed(peer, answer)
        # It may be ours even if no answer came.
        if len(self._held) >= MOST:
            now = now_ns()
            self._held = {each: lease for each, lease in self._held.items() if lease[1] > now}
        if len(self._held) < MOST:
            self._held[digest] = token, until
        return True

    async def give_back(self, digest: Digest) -> None:
        """Only what is our own."""
        token, until = self._held.pop(digest, (b"", 0))
        if until - now_ns() < 2 * self._deadline * 1e9:
            return
        key, peer, connection = self._way(digest)
        if connection is None:
            return
        answer = await connection.ask(command(b"GETRANGE", key, b"0", b"%d" % len(token)), BULK)
        if isinstance(answer, bytes) and compare_digest(answer, token):
            answer = await connection.ask(command(b"DEL", key), INTEGER)
        if isinstance(answer, Refusal | Lost):
            self._failed(peer, answer)

    def _way(self, digest: Digest) -> tuple[bytes, Peer | None, Connection | None]:
        key = self._prefix + digest.hex().encode()
        peer = self._owner(key)
        return key, peer, peer.reads.connection if peer is not None else None
