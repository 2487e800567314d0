"""All that a hit touches: find the message, one look-up, check the ledger, one write.

Theory. A unit of client bytes that ends an exchange (a simple Query, or an extended group up to Sync) is looked up
under (identity, bytes). The identity is an integer that stands for the session's scope, or for (prepared statement,
scope); names of statements and portals are never part of a key. The slower path decides what may be stored and under
which bytes; this file only recognises them again, so it parses nothing but lengths.

Rules:
1. ``identity`` is 0 unless the slower path has proved that this session may be served now: scope known, nothing
   outstanding upstream, transaction clean.
2. Freshness first (coherence rule R4: ``fresh_at >= floor``), then validity (R1: epoch, schema slot, every other slot).
3. Anything unusual returns early; the slower path sees the same bytes again.

Plainly typed so that mypyc compiles it unchanged; pure Python is always enough.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from distribcache.clock import CoarseClock, now_ns
from distribcache.coherence.ledger import EPOCH, FLOORS, FRESH_AT, SCHEMA
from distribcache.coherence.validity import valid
from distribcache.entry import Entry

__all__ = ["AS_UPSTREAM", "FINISHED", "GONE", "Hot", "serve"]

_length = Struct("!I").unpack_from
_QUERY, _PARSE, _BIND, _DESCRIBE, _EXECUTE, _SYNC = b"QPBDES"
_NO_LIMIT = b"\0\0\0\0"
_BATCH = 65536
"""Replies of one batch are joined into one write up to this many bytes; beyond it back-pressure must be asked first."""

AS_UPSTREAM, FINISHED, GONE = 0, 1, 2
"""The unnamed portal: what upstream has; run to its end here; destroyed by a Query that was answered here."""

Key = tuple[int, bytes]


class Hot:
    """What the hit path needs of one session; everything else of the session lives elsewhere."""

    __slots__ = (
        "age_ns",
        "clock",
        "entries",
        "epoch",
        "eventual",
        "floors",
        "head",
        "hits",
        "ident",
        "in_txn",
        "kept",
        "last",
        "max_staleness",
        "names",
        "notified",
        "oldest_ns",
        "paused",
        "portal",
        "ready",
        "saved_ns",
        "schema",
        "touch",
        "words",
        "write",
    )

    def __init__(
        self,
        entries: dict[Key, Entry],
        touch: Callable[[Key], None] | None,
        clock: CoarseClock,
        write: Callable[[bytes], None],
    ) -> None:
        self.ident: int = 0
        self.entries = entries
        self.touch = touch
        self.clock = clock
        self.write = write
        self.words: memoryview = memoryview(bytearray(8 * 256)).cast("Q")
        """Slots, schema, epoch and the first floor: the ledger."""
        self.head: memoryview = self.words
        """W, V and ``fresh_at``: the ledger's own, or, in a worker, as far as it was told."""
        self.floors: memoryview | None = None
        """The floors of all workers that count for this session; None where there is one process."""
        self.names: dict[bytes, tuple[int, int]] = {}
        """Statement name → (identity, value of the schema slot when upstream last accepted it)."""
        self.epoch: int = 0
        self.schema: int = 0
        """Local epoch and schema slot when the scope was learned: with any other value it must be learned again."""
        self.max_staleness: int = 0
        self.eventual: bool = False
        """The floor is ``max_staleness`` alone: own and others' writes through this node do not raise it."""
        self.notified: int = 0
        self.ready: bytes = b"Z\0\0\0\5I"
        self.in_txn: bool = False
        self.paused: bool = False
        self.kept: bytes | None = None
        """The unnamed statement, where the client and upstream differ about it: bytes that start with a Parse which was
        answered here, or empty when a Query answered here has destroyed it. None: upstream has what the client
        thinks."""
        self.portal: int = AS_UPSTREAM
        """The unnamed portal, where the client and upstream differ about it in a transaction that is still open."""
        self.hits: int = 0
        self.saved_ns: int = 0
        self.last: Entry | None = None
        self.age_ns: int = 0
        self.oldest_ns: int = 0


def serve(data: bytes, pos: int, hot: Hot) -> int:
    """Answer leading whole units of ``data`` from ``pos`` on out of memory; returns where the rest begins."""
    ident = hot.ident
    if not ident:
        return pos
    words = hot.words
    head = hot.head
    now = now_ns()
    fresh_at: int = head[FRESH_AT]
    if fresh_at < now - hot.max_staleness or (
        not hot.eventual and (fresh_at < words[FLOORS] or fresh_at < hot.notified)
    ):
        return pos
    if (floors := hot.floors) is not None and fresh_at < max(floors):
        return pos
    if words[EPOCH] != hot.epoch or words[SCHEMA] != hot.schema:
        return pos
    entries = hot.entries
    size = len(data)
    out: list[bytes] = []
    pending = 0
    while size - pos >= 5:
        kind = data[pos]
        end = pos + 1 + _length(data, pos + 1)[0]
        if end > size:
            break
        if kind == _QUERY:
            key = (ident, data if end == size and pos == 0 else data[pos:end])
        elif kind == _BIND or kind == _PARSE:
            here = ident
            start = pos
            if end == pos + 5 or data[pos + 5] != 0:  # no body at all, or a named portal or statement
                break
            if kind == _BIND:
                start = data.find(0, pos + 6) + 1
                named = hot.names.get(data[pos + 6 : start - 1])
                if named is None or named[1] != words[SCHEMA]:
                    break
                here = named[0]
            cut = end
            while size - cut >= 5:
                kind = data[cut]
                if kind == _SYNC or (kind != _DESCRIBE and kind != _EXECUTE and kind != _BIND):
                    break
                cut += 1 + _length(data, cut + 1)[0]
            if size - cut < 5 or kind != _SYNC or _length(data, cut + 1)[0] != 4:
                break
            if hot.in_txn and data[cut - 4 : cut] != _NO_LIMIT:
                break
            key = (here, data[start:cut])
            end = cut + 5
        else:
            break
        entry = entries.get(key)
        if entry is None or not valid(entry, words, hot.clock.now, head):
            break
        touch = hot.touch
        if touch is None:
            entry[6][0] = 1
        else:
            touch(key)
        hot.hits += 1
        hot.saved_ns += entry[7]
        hot.last = entry
        if data[pos] == _QUERY:
            hot.kept = b""
            hot.portal = GONE
        else:
            hot.portal = FINISHED if hot.in_txn else AS_UPSTREAM
            if data[pos] == _PARSE:
                hot.kept = key[1]
        pos = end
        payload = entry[0]
        pending += len(payload) + 6
        out.append(payload)
        out.append(hot.ready)
        if pending > _BATCH:
            hot.write(b"".join(out))
            out.clear()
            pending = 0
            if hot.paused:
                break
    if out:
        hot.write(b"".join(out))
    age = hot.age_ns = now - fresh_at
    if age > hot.oldest_ns:
        hot.oldest_ns = age
    return pos
