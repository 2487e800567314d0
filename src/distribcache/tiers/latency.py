"""How long look-ups take: quantiles over a bounded memory, cheap enough to be fed on every look-up.

Times fall into buckets whose width grows with the time: eight to an octave, so that a quantile is at most an eighth too
high and never too low. When ``limit`` samples are in, all counts are halved: what was long ago fades, and a figure
follows a change of the disk or the network within a few times that many look-ups.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Latency"]

_STEPS_BITS: Final = 3
_OCTAVES: Final = 40  # about 18 minutes; what is longer counts as that
_BUCKETS: Final = (_OCTAVES - _STEPS_BITS + 1) << _STEPS_BITS


class Latency:
    """Several threads may add at once; a sample may then be lost."""

    __slots__ = ("_counts", "_limit", "count")

    count: int
    """Samples that the figures stand on."""

    def __init__(self, limit: int = 1 << 17) -> None:
        self._counts = [0] * _BUCKETS
        self._limit = limit
        self.count = 0

    def add(self, nanoseconds: int) -> None:
        shift = nanoseconds.bit_length() - _STEPS_BITS - 1
        if shift <= 0:
            bucket = nanoseconds if nanoseconds > 0 else 0
        else:
            bucket = (shift << _STEPS_BITS) + (nanoseconds >> shift)
            if bucket >= _BUCKETS:
                bucket = _BUCKETS - 1
        self._counts[bucket] += 1
        self.count += 1
        if self.count >= self._limit:
            self._counts = [each >> 1 for each in self._counts]
            self.count = sum(self._counts)

    def quantile_us(self, share: float) -> float | None:
        """Microseconds that ``share`` (0 to 1) of the look-ups did not exceed; None when there was none."""
        counts = self._counts
        left = share * sum(counts)
        found = None
        for bucket, here in enumerate(counts):
            left -= here
            if here:
                found = _upper(bucket) / 1000
                if left <= 0:
                    break
        return found


def _upper(bucket: int) -> int:
    """The longest time that falls into a bucket."""
    shift = (bucket >> _STEPS_BITS) - 1
    if shift <= 0:
        return bucket
    return (((bucket & ((1 << _STEPS_BITS) - 1)) + (1 << _STEPS_BITS) + 1) << shift) - 1
