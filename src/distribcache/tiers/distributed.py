"""L3: records that several nodes share, in a Valkey or Redis cluster or a single server.

Rules:

1. Nothing that happens to the cluster is an error for a caller. A look-up gives a record or None, within
   ``l3.deadline`` and a little; without a link that is up it is None at once. Each failure is counted by its kind.
2. Writing is done in the background, from a queue bounded in bytes. What does not fit is refused: a cache may forget.
3. A key is ``dc:NAMESPACE:`` and the hexadecimal digest, without braces: nobody chooses the slot of an entry, and one
   ACL pattern holds all keys. No command ever lists or empties what the cluster holds.
4. What comes back is untrusted: at most ``l3.max_entry`` and some, proved by the codec to be what was written under
   this digest (and with the secret, if there is one), and not expired.

Validity is none of this module's business: whoever reads a record asks the ledger (coherence rule R1).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from distribcache.clock import now_ns
from distribcache.config.tiers import EMBEDDED, DistributedTier
from distribcache.errors import CacheError, ConfigError
from distribcache.tiers.access import read_secret, tls_context
from distribcache.tiers.base import Digest, Record, TierStats
from distribcache.tiers.codec import ForeignError, decode, encode
from distribcache.tiers.connection import BULK, INTEGER, OK, Access, Answer, Connection, Lost
from distribcache.tiers.latency import Latency
from distribcache.tiers.leases import LONGEST_S, Leases
from distribcache.tiers.mesh import Limits, Mesh, Peer
from distribcache.tiers.resp import Refusal, command
from distribcache.tiers.topology import moved_to, slot_of

__all__ = ["MAX_OVERHEAD", "QUEUE_BYTES", "DistributedCache"]

MAX_OVERHEAD: Final = 1 << 16
"""What tags, names and the header may add to a payload."""
QUEUE_BYTES: Final = 32 << 20
"""What may wait to be written."""
_ENTRY_BYTES: Final = 1024
"""What a waiting record is charged with beside its payload."""
_WINDOW_BYTES: Final = 4 << 20
"""What may have been sent without an answer."""
_OFF_LOOP_BYTES: Final = 1 << 17
"""Larger values are packed and unpacked in a thread."""

_KINDS: Final = {
    "moved": "moved", "ask": "moved", "clusterdown": "cluster_down", "tryagain": "cluster_down", "loading": "loading",
    "masterdown": "loading", "busy": "loading", "noauth": "denied", "noperm": "denied", "wrongpass": "denied",
    "readonly": "read_only", "oom": "full", "misconf": "full",
}  # fmt: skip
_DOUBTS: Final = frozenset({"moved", "cluster_down", "read_only"})


class DistributedCache:
    """``now`` is the wall clock, seconds since the Unix epoch; ``log`` takes a line for people."""

    def __init__(self, settings: DistributedTier, now: Callable[[], float], log: Callable[[str], None]) -> None:
        self._settings = settings
        self._now = now
        self._log = log
        self._prefix = f"dc:{settings.namespace}:".encode()
        self._max_value = settings.max_entry + MAX_OVERHEAD
        self._secret = b""
        self._mesh: Mesh | None = None
        key_bytes = len(self._prefix) + 32
        # One more byte than an entry may have: so a longer one is seen to be longer, and never sent as a whole.
        self._read_head = b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n" % key_bytes + self._prefix
        self._read_tail = b"\r\n$1\r\n0\r\n$%d\r\n%d\r\n" % (len(str(self._max_value)), self._max_value)
        self._hits = self._misses = self._puts = self._raw = self._stored = 0
        self._refusals: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._latency = Latency()
        self._queue: dict[Digest, Record] = {}
        self._queued_bytes = 0
        self._unanswered = 0
        self._packing: Digest | None = None
        self._wake = asyncio.Event()
        self._answered = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._leases = Leases(self._prefix, settings.deadline, self._owner, self._failed)

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect; returns when that is done or ``l3.connect_timeout`` is over, and goes on trying behind.

        Raises ConfigError for settings that can never work. With no peers the tier stays off.
        """
        settings = self._settings
        if settings.peers == EMBEDDED:
            raise ConfigError(
                "only distribcache serve starts a server of its own", where="l3.peers",
                hint="start a Valkey or Redis server, and give its address",
            )
        self._secret = read_secret("secret", settings.secret, settings.secret_file).encode()
        access = Access(
            settings.user, read_secret("password", settings.password, settings.password_file), tls_context(settings),
            settings.connect_timeout, self._max_value + 1, self._prefix + b"hello",
        )  # fmt: skip
        if not settings.endpoints or self._mesh is not None:
            return
        limits = Limits(
            settings.deadline, max(settings.connect_timeout, settings.deadline), settings.breaker_failures,
            settings.breaker_pause, settings.replication_factor,
        )  # fmt: skip
        self._mesh = Mesh(settings.endpoints, access, limits, self._log)
        self._mesh.start()
        self._writer = asyncio.get_running_loop().create_task(self._write())
        await self._mesh.well(settings.connect_timeout)

    async def stop(self) -> None:
        """Let go of everything; what still waits to be written is forgotten."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.wait((writer,))
        self._queue.clear()
        self._queued_bytes = 0
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            await mesh.stop()

    # -- reading -------------------------------------------------------------------------------------------------

    async def get(self, digest: Digest) -> Record | None:
        """The record under ``digest``; None when there is none, or in time."""
        name = digest.hex().encode()
        peer = self._owner(self._prefix + name)
        connection = peer.reads.connection if peer is not None else None
        if connection is None:
            self._misses += 1
            self._failures["off"] += 1
            return None
        began = now_ns()
        answer = await connection.ask(self._read_head + name + self._read_tail, BULK)
        record = None
        if type(answer) is bytes:
            if answer:
                record = await self._unpack(digest, answer)
        elif answer is not None:
            self._failed(peer, answer)
        self._latency.add(now_ns() - began)
        if record is None:
            self._misses += 1
        else:
            self._hits += 1
        return record

    async def _unpack(self, digest: Digest, data: bytes) -> Record | None:
        if len(data) > self._max_value:
            self._failures["too_long"] += 1
            return None
        unpack = partial(decode, digest, data, max_payload=self._settings.max_entry, secret=self._secret)
        try:
            if len(data) > _OFF_LOOP_BYTES:
                record = await asyncio.get_running_loop().run_in_executor(None, unpack)
            else:
                record = unpack()
        except CacheError as error:
            self._failures["foreign" if isinstance(error, ForeignError) else "damaged"] += 1
            return None
        return record if record.expires_at > self._now() else None

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, digest: Digest, record: Record) -> bool:
        """Write it behind the caller's back. False: it was refused, because it is too large, expired or too much."""
        size = len(record.payload) + _ENTRY_BYTES
        old = self._queue.get(digest)
        room = QUEUE_BYTES - self._queued_bytes + (len(old.payload) + _ENTRY_BYTES if old is not None else 0)
        if len(record.payload) > self._settings.max_entry:
            self._unqueue(digest)
            self._delete(digest)  # what is there is older
            return self._refuse("large")
        if record.expires_at <= self._now():
            return self._refuse("expired")
        if size > room:
            return self._refuse("queue_full")
        if self._writes_to(self._prefix + digest.hex().encode()) is None:
            return self._refuse("off")
        self._unqueue(digest)
        self._queue[digest] = record
        self._queued_bytes += size
        self._puts += 1
        self._wake.set()
        return True

    def _refuse(self, why: str) -> bool:
        self._refusals[why] += 1
        return False

    async def discard(self, digest: Digest) -> None:
        """Delete it, written or waiting; whoever asked waits no longer than the deadline for that."""
        self._unqueue(digest)
        answer = self._delete(digest)
        if answer is not None:
            await asyncio.wait((answer,), timeout=self._settings.deadline)

    def _delete(self, digest: Digest) -> asyncio.Future[Answer] | None:
        """On the way of the writes: it comes behind those that were sent."""
        if self._packing == digest:
            self._packing = None
        key = self._prefix + digest.hex().encode()
        connection = self._writes_to(key)
        if connection is None:
            return None
        self._unanswered += len(key)
        answer = connection.ask(command(b"DEL", key), INTEGER)
        answer.add_done_callback(partial(self._written, self._owner(key), len(key)))
        return answer

    async def flush(self, timeout: float) -> bool:  # noqa: ASYNC109 - the contract of all tiers below L1
        """Wait until everything put so far is written, or lost; False when that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._writer is not None and (self._queue or self._packing or self._unanswered):
                    self._answered.clear()
                    await self._answered.wait()
        return not (self._queue or self._packing or self._unanswered)

    def _unqueue(self, digest: Digest) -> None:
        old = self._queue.pop(digest, None)
        if old is not None:
            self._queued_bytes -= len(old.payload) + _ENTRY_BYTES

    async def _write(self) -> None:
        """The writer: one record after the other, with a bound on what is on its way."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                digest = next(iter(self._queue))
                record = self._queue[digest]
                self._unqueue(digest)
                self._packing = digest
                try:
                    data = await self._pack(digest, record)
                except Exception:  # noqa: BLE001 - one record that cannot be packed must not end the others
                    self._failures["put_refused"] += 1
                else:
                    if data is not None and self._is_packing(digest):
                        self._send(digest, record, data)
                self._packing = None
                self._answered.set()
                while self._unanswered > _WINDOW_BYTES:
                    self._answered.clear()
                    await self._answered.wait()
                await asyncio.sleep(0)  # a long queue is no reason to hold up the loop

    def _is_packing(self, digest: Digest) -> bool:
        """Has nobody discarded it meanwhile?"""
        return self._packing == digest

    async def _pack(self, digest: Digest, record: Record) -> bytes | None:
        if len(record.payload) > _OFF_LOOP_BYTES:
            loop = asyncio.get_running_loop()
            data = await loop.run_in_executor(None, encode, digest, record, "zstd", self._secret)
        else:
            data = encode(digest, record, "zstd", self._secret)
        if len(data) > self._max_value:
            self._failures["put_too_long"] += 1
            return None
        return data

    def _send(self, digest: Digest, record: Record, data: bytes) -> None:
        key = self._prefix + digest.hex().encode()
        peer = self._owner(key)
        connection = peer.writes.connection if peer is not None else None
        milliseconds = int(min(record.expires_at - self._now(), LONGEST_S) * 1000)
        if connection is None:
            self._failures["put_off"] += 1
            return
        if milliseconds <= 0:
            return
        self._raw += len(record.payload)
        self._stored += len(data)
        self._unanswered += len(data)
        request = command(b"SET", key, data, b"PX", b"%d" % milliseconds)
        connection.ask(request, OK).add_done_callback(partial(self._written, peer, len(data)))

    def _written(self, peer: Peer | None, size: int, answer: asyncio.Future[Answer]) -> None:
        self._unanswered -= size
        self._answered.set()
        if not answer.cancelled() and isinstance(answer.result(), Refusal | Lost):
            self._failed(peer, answer.result(), "put_")

    # -- leases --------------------------------------------------------------------------------------------------

    async def lease(self, digest: Digest, seconds: float) -> bool:
        """True: ask the database yourself. False: another node does so at the moment."""
        return await self._leases.take(digest, seconds)

    async def unlease(self, digest: Digest) -> None:
        """End this node's own lease, so that others need not wait for its time to be over."""
        await self._leases.give_back(digest)

    # -- facts ---------------------------------------------------------------------------------------------------

    def stats(self) -> TierStats:
        mesh = self._mesh
        reason, detail = mesh.reason if mesh is not None else ("no_peers", "l3.peers names no server")
        return TierStats(
            entries=0,
            bytes_used=0,
            capacity_bytes=0,
            puts=self._puts,
            refused=self._refusals.total(),
            hits=self._hits,
            misses=self._misses,
            failures=dict(self._failures),
            raw_bytes=self._raw,
            stored_bytes=self._stored,
            p50_us=self._latency.quantile_us(0.5),
            p99_us=self._latency.quantile_us(0.99),
            peers=mesh.known if mesh is not None else 0,
            healthy_peers=mesh.healthy if mesh is not None else 0,
            reason=reason,
            detail=detail,
            refusals=dict(self._refusals),
            queued_bytes=self._queued_bytes,
            note=mesh.note if mesh is not None else "",
        )

    # -- inside --------------------------------------------------------------------------------------------------

    def _owner(self, key: bytes) -> Peer | None:
        return self._mesh.owners[slot_of(key)] if self._mesh is not None else None

    def _writes_to(self, key: bytes) -> Connection | None:
        peer = self._owner(key)
        return peer.writes.connection if peer is not None else None

    def _failed(self, peer: Peer | None, answer: Answer, prefix: str = "") -> None:
        """Count a question without a useful answer; look at the cluster again where the answer gives a reason to."""
        if isinstance(answer, Refusal):
            kind = _KINDS.get(answer.code, "refused")
            if kind in _DOUBTS and answer.code != "ask" and self._mesh is not None and peer is not None:
                self._mesh.doubt(moved_to(answer, peer.address))
        else:
            kind = answer.value if isinstance(answer, Lost) else "refused"
        self._failures[prefix + kind] += 1
