"""Entries that depend on rows, without a proxy: what it does when a read pins ``columns = values``.

``hold`` registers the column set before F is read and fills an entry with the set's wildcard and the row slot;
``settled`` waits until the changes that a test made to the catalogue will outdate nothing any more.
"""

from __future__ import annotations

from typing import NamedTuple

from followed import Followed, Held, eventually

from distribcache.clock import now_ns
from distribcache.coherence.tuples import Change
from distribcache.coherence.watching import Plan

__all__ = ["Pin", "hold", "null_for_unknown", "settled", "slots"]


class Pin(NamedTuple):
    """A read of ``relation`` by ``column = value`` for each of ``where``, values as the change stream prints them."""

    relation: str
    where: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, relation: str, **where: str | int) -> Pin:
        return cls(relation, tuple((column, str(value)) for column, value in sorted(where.items())))


def slots(followed: Followed, oid: int, pin: Pin) -> tuple[int, int]:
    """Wildcard and row slot."""
    columns = tuple(column for column, _ in pin.where)
    wildcard = followed.coherence.watch(oid, columns)
    assert wildcard
    return wildcard, followed.coherence.row_slot(oid, columns, tuple(value.encode() for _, value in pin.where))


async def hold(followed: Followed, pins: list[Pin]) -> list[Held]:
    """An entry for each pin, all of the same moment and all valid."""
    for relation in {pin.relation for pin in pins}:
        await followed.slot(relation)
    tags = [slots(followed, followed.oids[pin.relation], pin) for pin in pins]
    deadline = now_ns() + 60_000_000_000
    while True:
        held = await followed.fill("SELECT 1")
        if held is not None:
            entries = [Held(held.rows, held.fill, held.analysis, tag, held.epoch) for tag in tags]
            if followed.coherence.serving and all(map(followed.valid, entries)):
                return entries
        assert now_ns() < deadline, followed.coherence.report()
        await followed.coherence.wait_fresh(now_ns(), 0.1)


async def settled(followed: Followed) -> None:
    """The catalogue was read after the last change of it, and once more a second later."""
    coverage = followed.coherence.coverage
    followed.coherence.schedule_poll()
    assert await followed.coherence.wait_fresh(now_ns(), 60)

    def quiet() -> bool:
        followed.coherence.note_traffic()
        return coverage.serving and not coverage.settle_at

    await eventually(quiet, followed.coherence.report)


def null_for_unknown(self: Plan, change: Change, slots: set[int]) -> None:
    """In the place of ``Plan.touch``, coherence trap 8: a value that is not shown counts as NULL."""
    for side in (change.old, change.new):
        for one in self.sets:
            found = [(side or {}).get(name) for name in one.names]
            if None not in found:
                slots.add(self.hashed(one.prefix, [value for value in found if value is not None]))
