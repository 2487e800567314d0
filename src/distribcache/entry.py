"""The cached value as L1 holds it: a plain tuple of atoms.

A plain tuple, not a class: the garbage collector stops tracking exact tuples of atoms, so a full collection does not
pause hits for a time proportional to the cache (measured: 176 ms at 800k slotted objects). The price is that fields are
named by index; the constants below are the only names used for them.

``slots`` are ledger indices (see ``coherence.ledger``), never including the schema slot, which every entry depends on.
``touched`` is a one-byte bytearray that a hit sets to 1 (an eviction policy reads and clears it): the one mutable part,
and not a container, so the tuple stays untracked.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANALYSIS", "AT_NS", "COST_NS", "EPOCH", "EXPIRES", "FILL", "PAYLOAD", "SLOTS", "TABLES", "TOUCHED", "WORKLOAD",
    "Entry", "make_entry",
]  # fmt: skip

# (payload, fill LSN F, analysis LSN A, ledger slots, local epoch, expiry in coarse-clock seconds, touched,
#  cost of the fill in ns, filled at in now_ns, tables as one comma-joined string, workload name)
Entry = tuple[bytes, int, int, tuple[int, ...], int, float, bytearray, int, int, str, str]

# Final, so that the type checker knows what each index holds.
PAYLOAD: Final = 0
FILL: Final = 1
ANALYSIS: Final = 2
SLOTS: Final = 3
EPOCH: Final = 4
EXPIRES: Final = 5
TOUCHED: Final = 6
COST_NS: Final = 7
AT_NS: Final = 8
TABLES: Final = 9
WORKLOAD: Final = 10


def make_entry(
    payload: bytes,
    *,
    fill: int,
    analysis: int,
    slots: tuple[int, ...],
    epoch: int,
    expires: float,
    cost_ns: int,
    at_ns: int,
    tables: str,
    workload: str,
) -> Entry:
    """Build an entry; LSNs are end LSNs of commit records as integers, ``expires`` coarse-clock seconds."""
    return (payload, fill, analysis, slots, epoch, expires, bytearray(1), cost_ns, at_ns, tables, workload)
