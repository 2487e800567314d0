"""The ledger: tag → highest commit position that touched it, in one flat array of 64-bit words.

What it must do: make an invalidation one store and a check one load per tag (coherence rule R1), in memory of this
process or in memory that several processes share.

Rules:
1. One writer. Every store is one aligned 8-byte store through a ``memoryview`` cast to ``Q``; ``struct.pack_into``
   would write byte by byte and let a reader see half a position (coherence trap 18).
2. Stores go in this order: slots, W, V, ``fresh_at``. Whoever sees a new ``fresh_at`` therefore sees the slots it
   covers.
3. A slot index means one relation for the life of the ledger: indices are never reused, also not across epochs, so an
   analysis that holds one can be outdated but never points at another table.
4. A new slot starts at the value given by the caller, never at zero: what was applied before the slot existed was not
   recorded in it. ``touch`` makes the slot of a relation that has none, so a relation without one was not touched since
   coverage began. ``NEVER`` makes a slot that no entry can satisfy.
5. When the table of slots is full, all further relations share the last slot: a collision only costs misses.

6. A row tag (relation, column set, values) is hashed into the row slots: dense slots are never hit by chance (coherence
   trap 17). The hash is fixed: whoever changes it changes ``LEDGER_FORMAT``, which seeds it. Two row tags that share a
   slot only cost misses. Each column set has a dense *wildcard* beside it, for changes whose values are not known.
7. Indices mean something to this ledger alone. What an entry depends on is told to others as *tags*: a relation, a
   column set, or the number of a row slot, which is the same wherever the format is.

8. Shared, it has one writer still, but for one word in each of three ranges that belongs to one worker: its floor, its
   count of catalogue alarms, and the moment of the last one. Other processes act upon W, V and ``fresh_at`` only when
   they are told by a message that follows the stores (``mirror``); slots, schema and epoch they read here.
9. Row slots are cleared where coverage starts again, behind everything that ended the old epoch: whoever is looking at
   an entry of that time sees the new epoch afterwards (``validity``).

Layout: ``FORMAT EPOCH W V FRESH_AT UNKNOWN``, the three words of each worker, the schema slot, dense slots for
relations and wildcards, then, from a page's beginning on, the row slots. Memory comes from the system as zeroes that
take no room until they are written to.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from distribcache.clock import now_ns

__all__ = [
    "ALARMED",
    "ALARMS",
    "EPOCH",
    "FLOORS",
    "FORMAT",
    "FRESH_AT",
    "LEDGER_FORMAT",
    "MAX_WORKERS",
    "NEVER",
    "SCHEMA",
    "UNKNOWN",
    "Columns",
    "Ledger",
    "V",
    "W",
    "memory",
    "next_epoch",
    "tag_prefix",
]

LEDGER_FORMAT: Final = 2
MAX_WORKERS: Final = 64
FORMAT, EPOCH, W, V, FRESH_AT, UNKNOWN = range(6)
FLOORS: Final = 8  # words 8 … 8 + MAX_WORKERS - 1
ALARMS: Final = FLOORS + MAX_WORKERS
ALARMED: Final = ALARMS + MAX_WORKERS
SCHEMA: Final = ALARMED + MAX_WORKERS
_FIRST_TABLE: Final = SCHEMA + 1
NEVER: Final = (1 << 64) - 1
_TABLE, _WILDCARD, _ROW = b"t", b"w", b"r"
_PAGE: Final = 4096
_PIECE: Final = 1 << 20

Columns = tuple[str, ...]

_last_epoch = 0


def next_epoch() -> int:
    """A local epoch that no other ledger or time of this process has had, nor an earlier one that left entries where
    processes share them (coherence rule R8).
    """
    global _last_epoch
    _last_epoch = max(_last_epoch + 1, now_ns())
    return _last_epoch


@functools.lru_cache(maxsize=4096)
def tag_prefix(oid: int, columns: Columns) -> bytes:
    """What the row tags of one column set have in common; see ``Ledger.hashed``."""
    names = [name.encode() for name in columns]
    head = oid.to_bytes(8, "little") + len(names).to_bytes(4, "little")
    return head + b"".join(len(name).to_bytes(4, "little") + name for name in names)


def memory() -> int:
    """A descriptor of memory that processes can share: it has no name, and is gone with the last of them."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("distribcache", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Ledger:
    """Words of one database; see the module's rules. ``tables`` is the number of dense slots; ``fd``: of memory to be
    shared, made ready by its ``writer``, who is one; without it the memory is this process's own.
    """

    __slots__ = (
        "_mask", "_memory", "_next", "_overflow", "_sets", "_shared", "_slots", "_tags", "_wildcards", "rows_at",
        "words",
    )  # fmt: skip

    def __init__(
        self, tables: int = 1 << 16, row_slots: int = 1 << 22, *, fd: int = -1, writer: bool = True
    ) -> None:
        if tables < 2 or row_slots < 1 or row_slots & (row_slots - 1):
            raise ValueError("a ledger needs two dense slots at least, and a power of two of row slots")
        self._overflow = _FIRST_TABLE + tables - 1
        self.rows_at = -(-8 * (self._overflow + 1) // _PAGE) * _PAGE // 8
        self._mask = row_slots - 1
        self._shared = fd >= 0
        size = 8 * (self.rows_at + row_slots)
        if self._shared:
            if writer:
                os.ftruncate(fd, size)
            self._memory = mmap.mmap(fd, size)
        else:
            # Private, because only there MADV_DONTNEED means zeroes.
            private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
            self._memory = mmap.mmap(-1, size, **private)
        self.words: memoryview = memoryview(self._memory).cast("Q")
        if writer:
            self.words[FORMAT] = LEDGER_FORMAT
            self.words[UNKNOWN] = NEVER
        elif self.words[FORMAT] != LEDGER_FORMAT:
            raise ValueError("a ledger of another format")
        self._slots: dict[int, int] = {}
        self._wildcards: dict[tuple[int, Columns], int] = {}
        self._tags: dict[int, bytes] = {}
        self._sets: dict[bytes, int] = {}
        self._next = _FIRST_TABLE

    @property
    def row_slots(self) -> int:
        """How many slots row tags share: a part of the format."""
        return self._mask + 1

    @property
    def tables(self) -> int:
        """How many dense slots there are, the one that all further relations share among them."""
        return self._overflow - _FIRST_TABLE + 1

    @property
    def overflow(self) -> int:
        """The value of the slot that relations share for which there is no room."""
        return self.words[self._overflow]

    def __contains__(self, oid: int) -> bool:
        return oid in self._slots

    def slot_of(self, oid: int, initial: int) -> int:
        """The slot of a relation, made with the value ``initial`` when there was none."""
        slot = self._slots.get(oid)
        if slot is None:
            slot = self._slots[oid] = self._dense(initial, _TABLE + oid.to_bytes(8, "little"))
        return slot

    def wildcard_of(self, oid: int, columns: Columns, initial: int) -> int:
        """The slot of *any row* of a column set, made with the value ``initial`` when there was none."""
        slot = self._wildcards.get((oid, columns))
        if slot is None:
            slot = self._wildcards[oid, columns] = self._dense(initial, _WILDCARD + tag_prefix(oid, columns))
        return slot

    def slots(self, known: int = 0) -> list[tuple[int, int]]:
        """Relations and their slots, in the order in which they were made, without the first ``known``."""
        return list(itertools.islice(self._slots.items(), known, None))

    def wildcards(self, known: int = 0) -> list[tuple[int, Columns, int]]:
        """The same of wildcards."""
        return [(oid, columns, slot) for (oid, columns), slot in itertools.islice(self._wildcards.items(), known, None)]

    def sizes(self) -> tuple[int, int]:
        """How many relations and wildcards have a slot."""
        return len(self._slots), len(self._wildcards)

    def learn(self, relations: Iterable[tuple[int, int]]) -> None:
        """In another process: what the one that writes has made, as its ``slots`` says it."""
        for oid, slot in relations:
            self._slots[oid] = slot
            if slot != self._overflow:
                self._tags[slot] = _TABLE + oid.to_bytes(8, "little")

    def learn_wildcard(self, oid: int, columns: Columns, slot: int) -> None:
        """The same of one wildcard."""
        self._wildcards[oid, columns] = slot
        if slot != self._overflow:
            prefix = tag_prefix(oid, columns)
            self._tags[slot], self._sets[prefix] = _WILDCARD + prefix, slot

    def known(self, oid: int) -> int:
        """The slot of a relation, or the one that no entry satisfies while it has none."""
        return self._slots.get(oid, UNKNOWN)

    def known_wildcard(self, oid: int, columns: Columns) -> int:
        """The slot of a wildcard; 0 while it has none."""
        return self._wildcards.get((oid, columns), 0)

    def row_slot(self, oid: int, columns: Columns, values: tuple[bytes, ...]) -> int:
        """The slot of the rows of a relation that have these values, as the change stream prints them unquoted."""
        return self.hashed(tag_prefix(oid, columns), values)

    def hashed(self, prefix: bytes, values: Sequence[bytes]) -> int:
        """``row_slot`` by ``tag_prefix(oid, columns)``."""
        fields = b"".join([len(value).to_bytes(4, "little") + value for value in values])
        return self.rows_at + (xxh3_64_intdigest(prefix + fields, seed=LEDGER_FORMAT) & self._mask)

    def dense(self) -> list[tuple[bytes, int]]:
        """The tags of relations and wildcards that have a slot of their own, in the order in which they were made."""
        return [(tag, slot) for slot, tag in self._tags.items()]

    def tags_of(self, slots: Sequence[int]) -> tuple[bytes, ...] | None:
        """What these slots stand for, as ``slots_for`` reads it; None when one of them stands for several things."""
        tags = []
        for slot in slots:
            tag = self._tags.get(slot) if slot < self.rows_at else _ROW + (slot - self.rows_at).to_bytes(8, "little")
            if tag is None:
                return None
            tags.append(tag)
        return tuple(tags)

    def slots_for(self, tags: Sequence[bytes], slot_of: Callable[[int], int]) -> tuple[int, ...] | None:
        """The slots of what ``tags_of`` of some ledger wrote; None when a column set is not registered here.

        ``slot_of`` makes the slots of relations that have none. Tags come from outside: what is none gives None too.
        """
        slots = []
        for tag in tags:
            kind, rest = tag[:1], tag[1:]
            slot: int | None = None
            if kind == _TABLE and len(rest) == 8:
                slot = slot_of(int.from_bytes(rest, "little"))
            elif kind == _ROW and len(rest) == 8 and (at := int.from_bytes(rest, "little")) <= self._mask:
                slot = self.rows_at + at
            elif kind == _WILDCARD:
                slot = self._sets.get(rest)
            if slot is None:
                return None
            slots.append(slot)
        return tuple(slots)

    def _dense(self, initial: int, tag: bytes) -> int:
        slot = min(self._next, self._overflow)
        if self._next < self._overflow:
            self._next += 1
            self._tags[slot] = tag
            if tag[:1] == _WILDCARD:
                self._sets[tag[1:]] = slot
        self.words[slot] = max(self.words[slot], initial)
        return slot

    def bump(self, slot: int, lsn: int) -> None:
        """Record that a commit ending at ``lsn`` touched what ``slot`` stands for; never lowers a slot."""
        if lsn > self.words[slot]:
            self.words[slot] = lsn

    def touch(self, oid: int, lsn: int) -> None:
        """``bump`` by relation. One without a slot gets it: an entry of another process may care, now or later."""
        slot = self._slots.get(oid)
        if slot is None:
            self.slot_of(oid, lsn)
        elif lsn > self.words[slot]:
            self.words[slot] = lsn

    def admit(self, oids: frozenset[int], lsn: int) -> None:
        """Relations that the catalogue now shows: slots that waited for that (``NEVER``) become usable from ``lsn``."""
        words = self.words
        for oid, slot in self._slots.items():
            if words[slot] == NEVER and oid in oids and slot != self._overflow:
                words[slot] = lsn
        for (oid, _), slot in self._wildcards.items():
            if words[slot] == NEVER and oid in oids and slot != self._overflow:
                words[slot] = lsn
        if words[self._overflow] == NEVER:
            words[self._overflow] = lsn

    def bump_all(self, lsn: int) -> None:
        """The catalogue changed: schema slot, relations and wildcards take ``lsn``; nothing older is valid.

        Row slots may stay: every entry has one of the others too.
        """
        words = self.words
        for slot in range(SCHEMA, self._next):
            if lsn > words[slot]:
                words[slot] = lsn
        if lsn > words[self._overflow]:
            words[self._overflow] = lsn

    def renew(self, epoch: int) -> None:
        """Begin a new epoch: no hits, then no entry of the old one, then positions that may be lower than before.

        Relations and wildcards keep their indices and become ``NEVER``: what they stand for must be seen again first.
        """
        words = self.words
        words[FRESH_AT] = 0
        words[EPOCH] = epoch
        words[V] = 0
        words[W] = 0
        words[SCHEMA] = NEVER
        for slot in range(_FIRST_TABLE, self._next):
            words[slot] = NEVER
        words[self._overflow] = NEVER if self._next == self._overflow else 0
        if not self._shared:
            self._forget_rows()

    def _forget_rows(self) -> None:
        """Row slots become zero, and their memory is given back where the system has a word for that."""
        start, end = 8 * self.rows_at, len(self._memory)
        if sys.platform == "linux" and start % mmap.PAGESIZE == 0:
            with contextlib.suppress(OSError):  # a file system that cannot make holes
                self._memory.madvise(mmap.MADV_REMOVE if self._shared else mmap.MADV_DONTNEED, start, end - start)
                return
        for at in range(start, end, _PIECE):
            self._memory[at : min(at + _PIECE, end)] = bytes(min(_PIECE, end - at))

    def open(self, lsn: int) -> None:
        """Coverage starts at ``lsn`` under the present epoch."""
        if self._shared:
            self._forget_rows()
        self.words[W] = lsn
        self.words[SCHEMA] = lsn

    def resume(self, lsn: int, schema: int, overflow: int, rows: dict[int, bytes], size: int) -> None:
        """Coverage goes on at ``lsn`` under the present epoch, with what another ledger of this format had in its row
        slots: pieces of ``size`` bytes by number. Dense slots were set before.
        """
        if self._shared:
            self._forget_rows()
        words = self.words
        for number, piece in rows.items():
            at = self.rows_at + number * size // 8
            words[at : at + len(piece) // 8] = memoryview(piece).cast("Q")
        words[self._overflow] = max(words[self._overflow], overflow)
        words[SCHEMA] = schema
        words[W] = lsn
