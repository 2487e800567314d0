"""What one coverage has followed, as bytes that outlive the process: the state of a warm restart.

A state says: under this nonce, of this run of this server, every commit up to W is in these slots. Slots may be newer
than W, which costs misses; they are never older. Whatever is wrong with the bytes is one of two errors, and both mean
to begin anew: ``ForeignError`` (not of this format) or ``DamagedError``. As with entries (``tiers.codec``), bytes that
prove themselves are still read as if they did not: every length is checked before it is used, and a piece is unpacked
into exactly as many bytes as it must have.

Layout, little-endian: magic 8, total length 8, checksum (xxh3, 128 bits) of all the rest 16; then texts and lists, each
with its length or count before it (4 bytes): version of distribcache, system identifier, start of the postmaster, name
of the slot; timeline, database, ledger format, row slots, dense slots, W, schema slot, overflow slot, target, lost (8
each); nonce 16; the two fingerprints; dense slots in the order in which they were made (tag, value 8); pieces of the
row slots that hold anything but zeroes (number 4, bytes packed with zstandard).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final

import zstandard
from xxhash import xxh3_128, xxh3_128_digest

from distribcache.coherence.epoch import VERSION
from distribcache.coherence.ledger import LEDGER_FORMAT, NEVER, Columns
from distribcache.tiers.codec import DamagedError, ForeignError

__all__ = ["MOST_BYTES", "PIECE", "Kept", "decode", "encode", "pack", "read_tag"]

PIECE: Final = 1 << 16
"""Bytes of row slots that are copied, compared and packed at a time."""
MOST_BYTES: Final = 1 << 28
_MAGIC: Final = b"\xd1dckept\x01"
_HEAD = Struct("<8sQ16s")
_NUMBERS = Struct("<10Q16s")
_COUNT = Struct("<I")
_WORD = Struct("<Q")
_ZEROES: Final = bytes(PIECE)
_AT_ONCE: Final = 1000
_HINT: Final = "nothing to do: what is cached is begun anew"


@dataclass(frozen=True, slots=True)
class Kept:
    """See the module. ``rows``: pieces of the row slots by number, packed; ``applied`` is W."""

    system_identifier: str
    postmaster_start: str
    timeline: int
    database_oid: int
    slot: str
    nonce: bytes
    applied: int
    schema: int
    overflow: int
    target: int
    lost_at: int
    row_slots: int
    tables: int
    fingerprint: tuple[int, ...]
    quick: tuple[int, ...]
    dense: Sequence[tuple[bytes, int]]
    rows: Sequence[tuple[int, bytes]]
    version: str = VERSION
    ledger_format: int = LEDGER_FORMAT
    unpacked: dict[int, bytes] = field(default_factory=dict, compare=False)
    """``rows`` as they were, after ``decode``."""


def pack(piece: bytes) -> bytes:
    """A piece of the row slots to be kept; empty when there is nothing in it."""
    if piece == _ZEROES[: len(piece)]:
        return b""
    return zstandard.ZstdCompressor(level=1, write_content_size=True).compress(piece)


def encode(kept: Kept) -> list[bytes]:
    """The bytes of a state, in pieces to be written one after the other: joining them would hold the interpreter for
    long. Raises struct.error for a number that does not fit.
    """
    texts = (kept.version, kept.system_identifier, kept.postmaster_start, kept.slot)
    numbers = _NUMBERS.pack(
        kept.timeline, kept.database_oid, kept.ledger_format, kept.row_slots, kept.tables, kept.applied, kept.schema,
        kept.overflow, kept.target, kept.lost_at, kept.nonce,
    )  # fmt: skip
    body = [*(_sized(text.encode()) for text in texts), numbers, _signed(kept.fingerprint), _signed(kept.quick)]
    body.append(_COUNT.pack(len(kept.dense)))
    body += (
        b"".join(_sized(tag) + _WORD.pack(value) for tag, value in kept.dense[at : at + _AT_ONCE])
        for at in range(0, len(kept.dense), _AT_ONCE)
    )
    body.append(_COUNT.pack(len(kept.rows)))
    for number, packed in kept.rows:
        body += (_COUNT.pack(number) + _COUNT.pack(len(packed)), packed)
    checksum = xxh3_128()
    for piece in body:
        checksum.update(piece)
    return [_HEAD.pack(_MAGIC, _HEAD.size + sum(map(len, body)), checksum.digest()), *body]


def decode(data: bytes) -> Kept:
    """A state, with its pieces unpacked. Raises ``ForeignError`` or ``DamagedError``."""
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
        raise ForeignError("not a state of this format", where="warm restart", hint=_HINT)
    try:
        _, total, checksum = _HEAD.unpack_from(data)
        if total != len(data) or xxh3_128_digest(memoryview(data)[_HEAD.size :]) != checksum:
            raise _damaged("the state is not what was written")
        return _read(_Bytes(data, _HEAD.size))
    except (struct.error, UnicodeDecodeError, zstandard.ZstdError, MemoryError) as error:
        raise _damaged("the parts of the state do not add up") from error


def read_tag(tag: bytes) -> tuple[int, Columns | None]:
    """A dense slot's tag, as ``Ledger.dense`` writes it: a relation, or one with columns. Raises ``DamagedError``."""
    oid = int.from_bytes(tag[1:9], "little")
    if len(tag) == 9 and tag[:1] == b"t":
        return oid, None
    if tag[:1] != b"w":
        raise _damaged("a slot of an unknown kind")
    try:
        reader = _Bytes(tag, 9)
        columns = tuple(reader.sized().decode() for _ in range(reader.count(4)))
        if reader.left or not columns:
            raise _damaged("a slot with too much in its name")
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged("a slot whose name cannot be read") from error
    return oid, columns


class _Bytes:
    """Reads from the front; struct.error when there is too little."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        found = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return found

    def count(self, least: int) -> int:
        """A count of things that take so many bytes each at the least."""
        count: int = self.unpack(_COUNT)[0]
        if count * least > self.left:
            raise struct.error
        return count

    def sized(self) -> bytes:
        size = self.count(1)
        self._at += size
        return self._data[self._at - size : self._at]

    def signed(self) -> tuple[int, ...]:
        return self.unpack(Struct(f"<{self.count(8)}q"))


def _read(reader: _Bytes) -> Kept:
    version, system, start, slot = [reader.sized().decode() for _ in range(4)]
    *numbers, nonce = reader.unpack(_NUMBERS)
    timeline, oid, ledger_format, row_slots, tables, applied, schema, overflow, target, lost_at = numbers
    if ledger_format != LEDGER_FORMAT or version != VERSION:
        raise ForeignError("a state of another version", where="warm restart", hint=_HINT)
    fingerprint, quick = reader.signed(), reader.signed()
    dense = []
    for _ in range(reader.count(12)):
        tag = reader.sized()
        read_tag(tag)
        (value,) = reader.unpack(_WORD)
        dense.append((tag, value))
    rows, unpacked = [], {}
    for _ in range(reader.count(8)):
        (number,), packed = reader.unpack(_COUNT), reader.sized()
        size = min(PIECE, 8 * row_slots - number * PIECE)
        if size <= 0 or number in unpacked or zstandard.frame_content_size(packed) != size:
            raise _damaged("a piece of the row slots has another size")
        rows.append((number, packed))
        unpacked[number] = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
        if len(unpacked[number]) != size:
            raise _damaged("a piece of the row slots has another size")
    if reader.left or applied >= NEVER:
        raise _damaged("the parts of the state do not add up")
    return Kept(
        system, start, timeline, oid, slot, bytes(nonce), applied, schema, overflow, target, lost_at, row_slots,
        tables, fingerprint, quick, dense, rows, version, ledger_format, unpacked,
    )  # fmt: skip


def _sized(data: bytes) -> bytes:
    return _COUNT.pack(len(data)) + data


def _signed(numbers: Iterable[int]) -> bytes:
    listed = list(numbers)
    return _COUNT.pack(len(listed)) + struct.pack(f"<{len(listed)}q", *listed)


def _damaged(message: str) -> DamagedError:
    return DamagedError(message, where="warm restart", hint=_HINT)
