"""Coherence rule R1: is an entry still what the database would answer? One question for all tiers.

Plainly typed so that mypyc compiles it with the hit path, which asks it for every hit.
"""

from __future__ import annotations

from distribcache.coherence.ledger import EPOCH, SCHEMA, W
from distribcache.entry import Entry

__all__ = ["valid"]


def valid(entry: Entry, words: memoryview, now: float) -> bool:
    """R1 and the entry's own end: is this entry still what the database would answer?"""
    fill = entry[1]
    if entry[4] != words[EPOCH] or entry[5] < now or words[SCHEMA] > entry[2] or fill > words[W]:
        return False
    for slot in entry[3]:  # noqa: SIM110 - a generator would cost as much again
        if words[slot] > fill:
            return False
    return True
