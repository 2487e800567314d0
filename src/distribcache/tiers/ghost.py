"""Who may enter a tier that is nearly full: an answer that was wanted before.

A tier that lets everything in is washed out by one scan: each of its answers is stored, never asked for again, and has
pushed out one that was. So a nearly full tier asks here first. A key is wanted when it was missed twice, or was turned
away before; the first time, a scan's keys are neither.

Keys are counted in two generations of fixed size. When the present one has counted ``window`` keys it becomes the past
one, and the past one is forgotten: what was wanted long ago is not known any more. A counter is shared by the keys that
fall on it; a key is looked up under two, and the smaller count is believed. A key can so be taken for wanted that is
not (in about one case of a hundred when both generations are full), never the other way round.
"""

from __future__ import annotations

from typing import Final

from distribcache.tiers.base import Digest

__all__ = ["Ghost"]

_WANTED: Final = 2
_MOST: Final = 255


class Ghost:
    """``window``: keys counted per generation. Memory: 16 bytes per key of it, twice."""

    __slots__ = ("_counted", "_mask", "_past", "_present", "_window")

    def __init__(self, window: int = 1 << 14) -> None:
        slots = 1 << (16 * window - 1).bit_length()
        self._mask = slots - 1
        self._window = window
        self._present = bytearray(slots)
        self._past = bytearray(slots)
        self._counted = 0

    def missed(self, digest: Digest) -> None:
        """Somebody asked for it, and it was not there."""
        self._count(digest, 1)

    def refused(self, digest: Digest) -> None:
        """It was turned away, or has left though it was wanted: the next time it may enter."""
        self._count(digest, _WANTED)

    def is_wanted(self, digest: Digest) -> bool:
        one, two = self._slots(digest)
        present, past = self._present, self._past
        return min(present[one], present[two]) + min(past[one], past[two]) >= _WANTED

    def _slots(self, digest: Digest) -> tuple[int, int]:
        # A digest is uniform already: any of its bytes are a hash.
        return (
            int.from_bytes(digest[:8], "little") & self._mask,
            int.from_bytes(digest[8:], "little") & self._mask,
        )

    def _count(self, digest: Digest, times: int) -> None:
        if self._counted >= self._window:
            self._past, self._present = self._present, self._past
            self._present[:] = bytes(len(self._present))
            self._counted = 0
        one, two = self._slots(digest)
        present = self._present
        present[one] = min(_MOST, present[one] + times)
        present[two] = min(_MOST, present[two] + times)
        self._counted += 1
