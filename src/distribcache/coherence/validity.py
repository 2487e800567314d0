"""Coherence rule R1: is an entry still what the database would answer? One question for all tiers.

``head`` is where W stands: in the ledger itself, or, in a worker, in words of its own that move only when it is told
so. The epoch comes last: in a ledger that is shared, slots of the old epoch may be cleared while they are being looked
at, but only behind the store of the new one.

Plainly typed so that mypyc compiles it with the hit path, which asks it for every hit.
"""

from __future__ import annotations

from distribcache.coherence.ledger import EPOCH, SCHEMA, W
from distribcache.entry import Entry

__all__ = ["valid"]


def valid(entry: Entry, words: memoryview, now: float, head: memoryview) -> bool:
    """R1 and the entry's own end: is this entry still what the database would answer?"""
    fill = entry[1]
    if entry[5] < now or words[SCHEMA] > entry[2] or fill > head[W]:
        return False
    for slot in entry[3]:
        if words[slot] > fill:
            return False
    return entry[4] == words[EPOCH]
