"""The codec: what it proves, what it bounds, and its two verdicts."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from typing import get_args

import lz4.block
import pytest
import zstandard
from muted import kept_and_muted
from records import START, digest, noise, record

from distribcache.errors import CacheError
from distribcache.tiers import codec
from distribcache.tiers.codec import HEADER_BYTES, Compression, DamagedError, ForeignError, decode, encode

KINDS: tuple[Compression, ...] = get_args(Compression)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_secret = pytest.mark.parametrize("secret", [b"", b"s", b"secret" * 30], ids=["checksum", "mac", "mac-long"])
ROWS = b"".join(b"D\0\0\0\x15\0\x02\0\0\0\x04%04d\0\0\0\x05value" % number for number in range(300))


def forged(data: bytes, at: int, value: bytes, key: bytes = digest(1)) -> bytes:
    """``data`` with bytes replaced and a checksum that fits: what somebody who knows the format can write."""
    changed = bytearray(data)
    changed[at : at + len(value)] = value
    changed[16:32] = codec._proof(key, b"", bytes(changed[:16]), bytes(changed[32:]))
    return bytes(changed)


def verdict(data: bytes, **more: object) -> type[CacheError]:
    with pytest.raises(CacheError) as caught:
        decode(digest(1), data, **more)  # type: ignore[arg-type]
    assert caught.value.where == "codec"
    assert caught.value.hint
    return type(caught.value)


@every_kind
@every_secret
def test_round_trip(kind: Compression, secret: bytes) -> None:
    for payload in (b"", b"x", ROWS, noise(1, 5000)):
        data = encode(digest(1), record(payload), kind, secret)
        assert decode(digest(1), data, secret=secret) == record(payload)
        assert decode(digest(1), memoryview(data), secret=secret) == record(payload)


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_what_shrinks_is_stored_smaller(kind: Compression) -> None:
    assert len(encode(digest(1), record(ROWS), kind)) < len(ROWS) // 2


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
@pytest.mark.parametrize("payload", [b"x" * 255, noise(1, 4096)], ids=["small", "noise"])
def test_what_does_not_is_stored_as_it_is(kind: Compression, payload: bytes) -> None:
    data = encode(digest(1), record(payload), kind)
    assert data == encode(digest(1), record(payload), "none")
    assert data.endswith(payload)


@every_kind
@every_secret
def test_under_another_key_it_is_not_returned(kind: Compression, secret: bytes) -> None:
    data = encode(digest(1), record(ROWS), kind, secret)
    with pytest.raises(ForeignError if secret else DamagedError):
        decode(digest(2), data, secret=secret)


def test_secrets_are_told_apart() -> None:
    plain, ours, theirs = (encode(digest(1), record(), secret=secret) for secret in (b"", b"ours", b"theirs"))
    assert verdict(plain, secret=b"ours") is ForeignError
    assert verdict(theirs, secret=b"ours") is ForeignError
    assert verdict(ours) is ForeignError
    assert decode(digest(1), ours, secret=b"ours") == record()


def test_a_checksum_that_fits_does_not_stand_for_a_mac() -> None:
    plain = encode(digest(1), record())
    assert decode(digest(1), forged(plain, 6, b"\0")) == record()
    assert verdict(forged(plain, 6, b"\1"), secret=b"ours") is ForeignError


def test_other_formats_are_foreign() -> None:
    data = encode(digest(1), record())
    assert verdict(b"") is ForeignError
    assert verdict(b"\x80\x04\x95") is ForeignError
    assert verdict(b"\x80\x04\x95" + bytes(300)) is ForeignError
    assert verdict(forged(data, 0, b"XXXX")) is ForeignError
    assert verdict(forged(data, 4, b"\2")) is ForeignError


@every_kind
@every_secret
def test_cut_off_at_any_length_it_is_not_returned(kind: Compression, secret: bytes) -> None:
    data = encode(digest(1), record(ROWS[:600]), kind, secret)
    for length in range(len(data)):
        assert verdict(data[:length], secret=secret) in (DamagedError, ForeignError)
    for more in (b"\0", b"x", data):
        assert verdict(data + more, secret=secret) is DamagedError


@every_kind
@every_secret
def test_with_any_byte_changed_it_is_not_returned(kind: Compression, secret: bytes) -> None:
    data = bytearray(encode(digest(1), record(ROWS[:600]), kind, secret))
    for at in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            data[at] ^= change
            assert verdict(bytes(data), secret=secret) in (DamagedError, ForeignError)
            data[at] ^= change
    assert decode(digest(1), bytes(data), secret=secret) == record(ROWS[:600])


@kept_and_muted
def test_the_proof_is_what_finds_a_changed_byte(muted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if muted:
        monkeypatch.setattr(codec, "compare_digest", lambda one, two: True)
    data = bytearray(encode(digest(1), record(b"x" * 100)))
    data[-1] ^= 1
    try:
        wrong = decode(digest(1), bytes(data)) != record(b"x" * 100)
    except DamagedError:
        wrong = False
    assert wrong is muted


# Name: place in the header, bytes.
LENGTHS = {
    "payload": (32, 8), "stored": (40, 8), "count": (112, 4), "tags": (116, 4), "tables": (120, 4), "class": (124, 4),
}  # fmt: skip


@every_kind
@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_that_lies_is_found_though_the_proof_fits(name: str, kind: Compression) -> None:
    at, size = LENGTHS[name]
    assert at + size <= HEADER_BYTES == 128
    data = encode(digest(1), record(ROWS), kind)
    there = int.from_bytes(data[at : at + size], "little")
    top = 1 << (8 * size)
    for value in (0, 3, there - 1, there + 1, len(data), top // 2 - 1, top // 2, top - 1, (1 << 31) - 1, 1 << 31):
        if value != there:
            lie = forged(data, at, (value % top).to_bytes(size, "little"))
            assert verdict(lie, max_payload=1 << 20) is DamagedError


def test_a_tag_that_lies_about_its_length_is_found() -> None:
    data = encode(digest(1), record())
    for value in (0, 3, 5, 0xFFFF):
        assert verdict(forged(data, HEADER_BYTES, value.to_bytes(2, "little"))) is DamagedError


@every_secret
def test_more_tags_than_any_answer_has_are_refused_both_ways(monkeypatch: pytest.MonkeyPatch, secret: bytes) -> None:
    """Whoever reads a record looks at each of them, in the event loop."""
    many = dataclasses.replace(record(), tags=(b"r" + bytes(8),) * 6000)
    with pytest.raises(CacheError):
        encode(digest(1), many, secret=secret)
    monkeypatch.setattr(codec, "_MOST_TAG_BYTES", 1 << 20)
    data = encode(digest(1), many, secret=secret)
    assert decode(digest(1), data, secret=secret) == many
    monkeypatch.undo()
    assert verdict(data, secret=secret) is DamagedError


def test_the_first_length_is_checked_before_the_proof() -> None:
    data = encode(digest(1), record())
    for value in (0, 3, len(data) - 1, len(data) + 1, (1 << 64) - 1):
        assert verdict(forged(data, 8, value.to_bytes(8, "little"))) is DamagedError


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"), [(0, NAN), (1, NAN), (0, INF), (0, -INF), (0, 1e300), (0, -1e300)]
)  # fmt: skip
def test_a_time_that_is_no_time_is_refused_both_ways(field: int, value: float) -> None:
    with pytest.raises(CacheError):
        encode(digest(1), dataclasses.replace(record(), **{("filled_at", "expires_at")[field]: value}))
    data = encode(digest(1), record())
    at = data.index(struct.pack("<d", START)) + 8 * field
    assert verdict(forged(data, at, struct.pack("<d", value))) is DamagedError


def test_text_that_is_not_utf8_is_damage() -> None:
    data = encode(digest(1), record())
    assert verdict(forged(data, data.index(b"public.t"), b"\xff\xfe")) is DamagedError


def test_an_unknown_compression_is_damage() -> None:
    assert verdict(forged(encode(digest(1), record(ROWS)), 5, b"\3")) is DamagedError
    assert verdict(forged(encode(digest(1), record(ROWS)), 5, b"\1")) is DamagedError
    assert verdict(forged(encode(digest(1), record(ROWS)), 5, b"\2")) is DamagedError


BOMB = 64 << 20
BOMBS = {
    1: lz4.block.compress(bytes(BOMB), store_size=False),
    2: zstandard.ZstdCompressor(level=1).compress(bytes(BOMB)),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("says", [0, 1000, 1 << 20, BOMB, BOMB + 1, 1 << 62])
def test_a_small_value_never_unpacks_into_a_large_one(kind: int, says: int) -> None:
    packed = BOMBS[kind]
    data = encode(digest(1), record(packed), "none")
    data = forged(data, 5, bytes([kind]))
    data = forged(data, 32, says.to_bytes(8, "little"))
    tracemalloc.start()
    try:
        assert verdict(data, max_payload=1 << 20) is DamagedError
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@kept_and_muted
def test_the_bound_is_what_keeps_a_bomb_from_unpacking(muted: bool) -> None:
    data = forged(encode(digest(1), record(BOMBS[1])), 5, b"\1")
    data = forged(data, 32, BOMB.to_bytes(8, "little"))
    try:
        size = len(decode(digest(1), data, max_payload=BOMB if muted else 1 << 20).payload)
    except DamagedError:
        size = 0
    assert size == (BOMB if muted else 0)


def test_what_does_not_fit_the_format_is_an_error() -> None:
    good = record()
    for bad in (
        {"fill": -1}, {"fill": 1 << 64}, {"rows": -1}, {"cost_ns": 1 << 64}, {"epoch": b"short"}, {"epoch": b"e" * 17},
        {"tags": (b"x" * 65536,)},
    ):  # fmt: skip
        with pytest.raises(CacheError):
            encode(digest(1), dataclasses.replace(good, **bad))  # type: ignore[arg-type]
    with pytest.raises(CacheError):
        encode(b"short", good)


def test_nothing_of_the_memory_it_was_read_from_is_kept() -> None:
    memory = bytearray(encode(digest(1), record(b"x" * 300)))
    found = decode(digest(1), memoryview(memory))
    memory[:] = bytes(len(memory))
    assert found == record(b"x" * 300)
    assert all(type(each) is bytes for each in (found.payload, found.epoch, *found.tags))
