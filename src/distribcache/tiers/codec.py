"""Records as bytes, for tiers that keep them outside the process: on disk or on another machine.

What comes back from there may be cut off, overwritten, mixed up or written by someone else. So:

1. A value proves that it is whole and stands under its own key: the proof covers the digest, every byte and the length.
2. The proof is a checksum (xxh3, 128 bits), or a keyed MAC (BLAKE2b, 128 bits) where a ``secret`` is given: a checksum
   finds damage, only a MAC finds intent. With a secret, a value without a MAC is foreign, and the other way round.
3. Bytes that prove themselves are still read as if they did not: every length is checked before it is used, and a
   payload is unpacked only if it says to be no longer than the caller allows, and into so many bytes.
4. Whatever is wrong is one of two verdicts: ``ForeignError`` (not of this format, this version, this secret) or
   ``DamagedError``. Nothing else is raised, and no value is returned that differs from what was written.

Layout, little-endian: magic 4, version 1, compression 1, proof's kind 1, zero 1, total length 8, proof 16; lengths of
the payload unpacked and stored 8 + 8; F 8, A 8, epoch 16, filled at 8, expires at 8, cost 8, rows 8; count of tags 4,
bytes of tags 4, of tables 4, of workload 4; tags (each: length 2, bytes), tables, workload (UTF-8), payload.
"""

from __future__ import annotations

import math
import struct
import threading
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from typing import Final, Literal

import lz4.block
import zstandard
from xxhash import xxh3_128

from distribcache.errors import CompressionError, SerializationError
from distribcache.tiers.base import Digest, Record

__all__ = [
    "COMPRESS_FROM", "DIGEST_BYTES", "HEADER_BYTES", "Compression", "DamagedError", "ForeignError", "decode", "encode",
]  # fmt: skip

Compression = Literal["lz4", "zstd", "none"]

DIGEST_BYTES: Final = 16
COMPRESS_FROM: Final = 256
"""A smaller payload is stored as it is: there is nothing to win."""

_MAGIC: Final = b"\xd1dcR"
_VERSION: Final = 1
_PLAIN, _LZ4, _ZSTD = 0, 1, 2
_CHECKSUM, _MAC = 0, 1
_FRONT = Struct("<4sBBBBQ")
_BACK = Struct("<QQQQ16sddQQIIII")
_PROOF_AT: Final = _FRONT.size
_PROOF_BYTES: Final = 16
_BACK_AT: Final = _PROOF_AT + _PROOF_BYTES
HEADER_BYTES: Final = _BACK_AT + _BACK.size
_MAX_TAG: Final = 0xFFFF
_MOST_TAG_BYTES: Final = 1 << 16
"""Many times what an answer can depend on."""
_LATEST: Final = 1e14
_HINT: Final = "nothing to do: it is a miss, and will be filled again"

# Compressors of zstandard must not be used by two threads at once.
_own = threading.local()


class DamagedError(CompressionError):
    """A value that was ours and is no longer what was written, or not under this key."""


class ForeignError(SerializationError):
    """A value that was not written in this format, version and with this secret."""


def encode(digest: Digest, record: Record, compression: Compression = "none", secret: bytes = b"") -> bytes:
    """The bytes to keep under ``digest``. Raises ``SerializationError`` for a record that the format cannot hold."""
    payload = record.payload
    packed, kind = _pack(payload, compression)
    tables, workload = record.tables.encode("utf-8", "surrogatepass"), record.workload.encode("utf-8", "surrogatepass")
    try:
        tags = b"".join([len(tag).to_bytes(2, "little") + tag for tag in record.tags])
        if len(tags) > _MOST_TAG_BYTES:
            raise OverflowError
        total = HEADER_BYTES + len(tags) + len(tables) + len(workload) + len(packed)
        front = _FRONT.pack(_MAGIC, _VERSION, kind, _MAC if secret else _CHECKSUM, 0, total)
        back = _BACK.pack(
            len(payload), len(packed), record.fill, record.analysis, record.epoch, record.filled_at,
            record.expires_at, record.cost_ns, record.rows, len(record.tags), len(tags), len(tables), len(workload),
        )  # fmt: skip
    except (struct.error, OverflowError) as error:
        raise SerializationError("a record does not fit the format", where="codec", hint="it is not kept") from error
    if len(digest) != DIGEST_BYTES or len(record.epoch) != 16 or _not_times(record.filled_at, record.expires_at):
        raise SerializationError("a record does not fit the format", where="codec", hint="it is not kept")
    proof = _proof(digest, secret, front, back, tags, tables, workload, packed)
    return b"".join((front, proof, back, tags, tables, workload, packed))


def decode(digest: Digest, data: bytes | memoryview, *, max_payload: int = 1 << 30, secret: bytes = b"") -> Record:
    """The record under ``digest``. Raises ``DamagedError`` or ``ForeignError``; ``max_payload`` is in bytes, unpacked.

    Nothing of ``data`` is referred to afterwards: it may be a view of memory that changes.
    """
    size = len(data)
    if size < HEADER_BYTES:
        if not size or bytes(data[:4]) != _MAGIC[:size]:
            raise ForeignError("not an entry", where="codec", hint=_HINT)
        raise DamagedError("an entry is cut off", where="codec", hint=_HINT)
    magic, version, kind, proof, zero, total = _FRONT.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise ForeignError("not an entry of this version", where="codec", hint=_HINT)
    if proof != (_MAC if secret else _CHECKSUM):
        raise ForeignError("an entry with another kind of proof", where="codec", hint=_HINT)
    if total != size or zero:
        raise DamagedError("an entry has another length than it says", where="codec", hint=_HINT)
    view = memoryview(data)
    if not compare_digest(view[_PROOF_AT:_BACK_AT], _proof(digest, secret, view[:_PROOF_AT], view[_BACK_AT:])):
        if secret:
            raise ForeignError("an entry does not prove that it was written with our secret", where="codec", hint=_HINT)
        raise DamagedError("an entry is not what was written under this key", where="codec", hint=_HINT)
    (
        length, stored, fill, analysis, epoch, filled_at, expires_at, cost_ns, rows, count, tags_bytes, tables_bytes,
        workload_bytes,
    ) = _BACK.unpack_from(data, _BACK_AT)  # fmt: skip
    tags_end = HEADER_BYTES + tags_bytes
    tables_end = tags_end + tables_bytes
    workload_end = tables_end + workload_bytes
    if workload_end + stored != size or tags_bytes > _MOST_TAG_BYTES or _not_times(filled_at, expires_at):
        raise DamagedError("the parts of an entry do not add up", where="codec", hint=_HINT)
    tags = _tags(view[HEADER_BYTES:tags_end], count)
    try:
        tables = str(view[tags_end:tables_end], "utf-8", "surrogatepass")
        workload = str(view[tables_end:workload_end], "utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DamagedError("a text in an entry is not UTF-8", where="codec", hint=_HINT) from error
    if length > max_payload:
        raise DamagedError("an entry says to be larger than allowed", where="codec", hint=_HINT)
    payload = _unpack(view[workload_end:], kind, length)
    return Record(payload, fill, analysis, tags, epoch, filled_at, expires_at, cost_ns, rows, tables, workload)


def _not_times(filled_at: float, expires_at: float) -> bool:
    """An entry whose time is no number would never expire; one made beyond all times has an age that nothing can hold.
    One may live for ever.
    """
    return math.isnan(expires_at) or not abs(filled_at) < _LATEST


def _proof(digest: Digest, secret: bytes, *parts: bytes | memoryview) -> bytes:
    if secret:
        key = secret if len(secret) <= blake2b.MAX_KEY_SIZE else blake2b(secret).digest()
        mac = blake2b(digest, digest_size=_PROOF_BYTES, key=key)
        for part in parts:
            mac.update(part)
        return mac.digest()
    checksum = xxh3_128(digest)
    for part in parts:
        checksum.update(part)
    return checksum.digest()


def _tags(view: memoryview, count: int) -> tuple[bytes, ...]:
    tags, at, end = [], 0, len(view)
    while at + 2 <= end:
        start = at + 2
        at = start + int.from_bytes(view[at:start], "little")
        if at > end:
            break
        tags.append(bytes(view[start:at]))
    if at != end or len(tags) != count:
        raise DamagedError("the tags of an entry do not add up", where="codec", hint=_HINT)
    return tuple(tags)


def _pack(payload: bytes, compression: Compression) -> tuple[bytes, int]:
    if compression == "none" or len(payload) < COMPRESS_FROM:
        return payload, _PLAIN
    if compression == "lz4":
        packed, kind = lz4.block.compress(payload, store_size=False), _LZ4
    else:
        packed, kind = _compressor().compress(payload), _ZSTD
    return (packed, kind) if len(packed) < len(payload) else (payload, _PLAIN)


def _unpack(stored: memoryview, kind: int, length: int) -> bytes:
    """Into exactly ``length`` bytes, never more, whatever the stored bytes say."""
    try:
        if kind == _PLAIN:
            payload = bytes(stored)
        elif kind == _LZ4:
            payload = lz4.block.decompress(stored, uncompressed_size=length)
        elif kind == _ZSTD:
            # The frame's own word for its size would be believed over any limit of ours.
            if zstandard.frame_content_size(stored) != length:
                raise DamagedError("an entry unpacks to another size than it says", where="codec", hint=_HINT)
            payload = _decompressor().decompress(stored, max_output_size=length, allow_extra_data=False)
        else:
            raise DamagedError("an entry is compressed in an unknown way", where="codec", hint=_HINT)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError, OverflowError, MemoryError) as error:
        raise DamagedError("an entry cannot be unpacked", where="codec", hint=_HINT) from error
    if len(payload) != length:
        raise DamagedError("an entry unpacks to another size than it says", where="codec", hint=_HINT)
    return payload


def _compressor() -> zstandard.ZstdCompressor:
    found = getattr(_own, "compressor", None)
    if found is None:
        found = _own.compressor = zstandard.ZstdCompressor(level=1, write_content_size=True)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    found = getattr(_own, "decompressor", None)
    if found is None:
        found = _own.decompressor = zstandard.ZstdDecompressor()
    return found
