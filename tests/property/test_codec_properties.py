"""The codec on whatever hypothesis finds: records come back equal, and nothing else comes back at all."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distribcache.tiers import codec
from distribcache.tiers.base import Record
from distribcache.tiers.codec import Compression, DamagedError, ForeignError, decode, encode

longs = st.integers(0, (1 << 64) - 1)
times = st.floats(-1e13, 1e13)
ends = st.floats(allow_nan=False)
payloads = st.one_of(
    st.binary(max_size=600),
    st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=20), st.integers(0, 300)),
)
records = st.builds(
    Record, payload=payloads, fill=longs, analysis=longs, tags=st.lists(st.binary(max_size=40), max_size=6).map(tuple),
    epoch=st.binary(min_size=16, max_size=16), filled_at=times, expires_at=ends, cost_ns=longs, rows=longs,
    tables=st.text(max_size=40), workload=st.text(max_size=10),
)  # fmt: skip
digests = st.binary(min_size=16, max_size=16)
kinds = st.sampled_from(["lz4", "zstd", "none"])
secrets = st.one_of(st.just(b""), st.binary(min_size=1, max_size=80))
relaxed = settings(max_examples=150)


@relaxed
@given(digests, records, kinds, secrets)
def test_a_record_comes_back_equal(digest: bytes, record: Record, kind: Compression, secret: bytes) -> None:
    assert decode(digest, encode(digest, record, kind, secret), secret=secret) == record


@relaxed
@given(digests, records, kinds, secrets, st.data())
def test_a_changed_value_does_not_come_back(
    digest: bytes, record: Record, kind: Compression, secret: bytes, data: st.DataObject
) -> None:
    whole = bytearray(encode(digest, record, kind, secret))
    how = data.draw(st.sampled_from(["flip", "cut", "more", "swap", "key"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if how == "flip":
        whole[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del whole[at:]
    elif how == "more":
        whole += data.draw(st.binary(min_size=1, max_size=20))
    elif how == "swap":
        part = whole[at : at + 8]
        if part == part[::-1]:
            return
        whole[at : at + 8] = part[::-1]
    else:
        other = bytearray(digest)
        other[at % 16] ^= 1 + at % 255
        digest = bytes(other)
    with pytest.raises((DamagedError, ForeignError)):
        decode(digest, bytes(whole), secret=secret)


@relaxed
@given(digests, st.binary(max_size=400), secrets)
@example(b"d" * 16, b"\xd1dcR\1" + bytes(200), b"")
def test_random_bytes_do_not_come_back(digest: bytes, data: bytes, secret: bytes) -> None:
    with pytest.raises((DamagedError, ForeignError)):
        decode(digest, data, secret=secret)


@relaxed
@given(digests, records, kinds, st.lists(st.tuples(st.integers(0, 127), st.binary(min_size=1, max_size=8)), max_size=4))
def test_forged_headers_are_read_or_refused_and_nothing_else(
    digest: bytes, record: Record, kind: Compression, changes: list[tuple[int, bytes]]
) -> None:
    """The proof is made to fit: what somebody can write who knows the format and there is no secret."""
    data = bytearray(encode(digest, record, kind))
    size = len(data)
    for at, value in changes:
        data[at : at + len(value)] = value
    del data[size:]
    data[16:32] = codec._proof(digest, b"", bytes(data[:16]), bytes(data[32:]))
    try:
        found = decode(digest, bytes(data), max_payload=1 << 20)
    except (DamagedError, ForeignError):
        return
    assert len(found.payload) <= 1 << 20
