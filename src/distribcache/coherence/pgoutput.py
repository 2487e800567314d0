"""Binary messages of ``pgoutput`` → the same facts as ``decoding`` has of ``test_decoding``'s text. No IO, no time.

Protocol version 1, values as text. Per transaction ``B``egin, ``C``ommit and in between ``R``elation, t``Y``pe,
``O``rigin, ``I``nsert, ``U``pdate, ``D``elete, ``T``runcate and ``M``essage.

What differs from ``test_decoding``:

1. A relation is named by its oid, written as a number: the map of the catalogue knows it under that name too. An oid
   means the same relation before and after a rename.
2. Names of columns are sent once, before the first row, and again after a change; ``R`` holds until the next ``R`` of
   the same relation, over transactions too. A row of a relation that was not described is refused.
3. Of an old row, ``K`` holds the columns of the replica identity and nulls in place of all others: those are unknown,
   not NULL (coherence trap 8). ``O`` holds the whole old row, and its nulls are NULL. ``u`` is a long value that was
   not written again: unknown. Generated columns are not sent: unknown.
4. Values are what the type's output function gives. ``test_decoding`` prints boolean as a word, so it is here; a domain
   over boolean is not, there or here.
5. Changes of the catalogue, and transactions that changed nothing published, are not sent at all. An empty one says
   nothing: only the event trigger's message is an alarm.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from distribcache.coherence.decoding import Collector, Commit
from distribcache.coherence.tuples import Change, Values, strange
from distribcache.coherence.watching import Plan

__all__ = ["PgoutputDecoder", "relation_name"]

_BOOL: Final = 16
_WORDS: Final = {b"t": b"true", b"f": b"false"}
_BEGIN: Final = struct.Struct(">cQqI")
_COMMIT: Final = struct.Struct(">cBQQq")
_TRUNCATE: Final = struct.Struct(">cIB")
_RELATION_END: Final = struct.Struct(">cH")
_COLUMN_END: Final = struct.Struct(">Ii")
_MESSAGE: Final = struct.Struct(">cBQ")
_ROWS: Final = frozenset(b"IUD")
_I, _U, _D, _K, _O, _N = b"IUDKON"
_NULL, _SAME, _TEXT = b"nut"


class _Column(NamedTuple):
    name: bytes
    key: bool
    boolean: bool


class _Relation(NamedTuple):
    name: bytes
    columns: tuple[_Column, ...]


def relation_name(oid: int) -> bytes:
    """What a relation is called in the facts that come from here."""
    return b"%d" % oid


class PgoutputDecoder(Collector):
    """For ``pgoutput``."""

    __slots__ = ("_known",)

    def __init__(self, plan_of: Callable[[bytes], Plan | None] = lambda _: None) -> None:
        super().__init__(plan_of)
        self._known: dict[int, _Relation] = {}

    def again(self, data: memoryview, at: int) -> bool:
        if len(data) <= at or data[at] not in _ROWS:
            return False
        relation = self._known.get(int.from_bytes(data[at + 1 : at + 5], "big"))
        return relation is not None and self._more(relation.name, data, at)

    def feed(self, data: bytes | memoryview, lsn: int) -> Commit | None:
        body = bytes(data)
        try:
            return self._message_of(body, lsn)
        except (struct.error, IndexError, UnicodeError) as error:
            raise strange("a message that ends too early") from error

    def _message_of(self, body: bytes, lsn: int) -> Commit | None:
        match body[:1]:
            case b"I" | b"U" | b"D":
                self._changed(self._described(body, 0).name, body, 0)
            case b"R":
                self._describe(body)
            case b"B":
                self._begin(_all(_BEGIN, body)[3])
            case b"C":
                _, flags, _, end, _ = _all(_COMMIT, body)
                if self._xid == -1 or flags or end != lsn:
                    raise strange("COMMIT in an unknown form")
                return self._end(end, empty=False)
            case b"T":
                self._truncate(body)
            case b"M":
                self._logical_message(body)
            case b"O":
                if _text_end(body, 9) != len(body):
                    raise strange("an origin in an unknown form")
            case b"Y":
                if _text_end(body, _text_end(body, 5)) != len(body):
                    raise strange("a type in an unknown form")
            case _:
                raise strange("an unknown kind of message")
        return None

    def _describe(self, body: bytes) -> None:
        oid = int.from_bytes(body[1:5], "big")
        at = _text_end(body, _text_end(body, 5))
        identity, count = _RELATION_END.unpack_from(body, at)
        if not oid or identity not in b"dnfi":
            raise strange("a relation in an unknown form")
        at += _RELATION_END.size
        columns = []
        for _ in range(count):
            flags, start = body[at], at + 1
            at = _text_end(body, start)
            kind, _ = _COLUMN_END.unpack_from(body, at)
            if flags > 1:
                raise strange("a column in an unknown form")
            columns.append(_Column(body[start : at - 1], flags == 1, kind == _BOOL))
            at += _COLUMN_END.size
        if at != len(body):
            raise strange("a relation in an unknown form")
        self._known[oid] = _Relation(relation_name(oid), tuple(columns))

    def _described(self, data: bytes | memoryview, at: int) -> _Relation:
        relation = self._known.get(int.from_bytes(data[at + 1 : at + 5], "big"))
        if relation is None:
            raise strange("a row of a relation that it has not described")
        return relation

    def _truncate(self, body: bytes) -> None:
        _, count, flags = _TRUNCATE.unpack_from(body)
        oids = struct.unpack(f">{count}I", body[_TRUNCATE.size :]) if count <= len(body) else ()
        if not oids or flags > 3:
            raise strange("TRUNCATE in an unknown form")
        self._truncated([relation_name(oid) for oid in oids])

    def _logical_message(self, body: bytes) -> None:
        _, flags, _ = _MESSAGE.unpack_from(body)
        end = _text_end(body, _MESSAGE.size)
        size = int.from_bytes(body[end : end + 4], "big")
        if flags > 1 or len(body) != end + 4 + size:
            raise strange("a message in an unknown form")
        if not flags:
            return  # outside any transaction: ours, to have the log flushed, or somebody else's
        if self._xid == -1:
            raise strange("a message outside the transaction that it belongs to")
        self._heard(body[_MESSAGE.size : end - 1])

    def _read(self, data: bytes | memoryview, at: int, wanted: AbstractSet[bytes]) -> Change | None:
        try:
            return self._row_of(data, at, wanted)
        except (struct.error, IndexError) as error:
            raise strange("a row that ends too early") from error

    def _row_of(self, data: bytes | memoryview, at: int, wanted: AbstractSet[bytes]) -> Change:
        columns = self._described(data, at).columns
        kind, side = data[at], data[at + 5]
        at += 6
        old: Values | None = None
        new: Values | None = None
        kept = kind == _U and side == _N
        if side in (_K, _O) and kind != _I:
            old, at = _tuple(data, at, columns, wanted, keys_only=side == _K)
            if kind == _U:
                side = data[at]
                at += 1
        if kind != _D:
            if side != _N:
                raise strange("a row in an unknown form")
            new, at = _tuple(data, at, columns, wanted)
        elif old is None:
            raise strange("a row in an unknown form")
        if at != len(data):
            raise strange("a row in an unknown form")
        return Change(old, new, kept)


def _tuple(
    data: bytes | memoryview, at: int, columns: tuple[_Column, ...], wanted: AbstractSet[bytes], *,
    keys_only: bool = False,
) -> tuple[Values, int]:
    """The wanted values of the row at ``at``, and where it ends; ``keys_only``: rule 3, for ``K``."""
    values: Values = {}
    if int.from_bytes(data[at : at + 2], "big") != len(columns):
        raise strange("a row with another number of columns than its relation")
    at += 2
    for name, key, boolean in columns:
        kind = data[at]
        at += 1
        asked = name in wanted and (key or not keys_only)
        if kind == _TEXT:
            start = at + 4
            at = start + int.from_bytes(data[at:start], "big")
            if at > len(data):
                raise strange("a value that ends too early")
            if asked:
                value = bytes(data[start:at])
                values[name] = _word(value) if boolean else value
        elif kind == _NULL:
            if asked and not keys_only:
                values[name] = None
        elif kind != _SAME:
            raise strange("a value in an unknown form")
    return values, at


def _word(value: bytes) -> bytes:
    word = _WORDS.get(value)
    if word is None:
        raise strange("a boolean in an unknown form")
    return word


def _text_end(body: bytes, at: int) -> int:
    """Index just behind the zero that ends the text at ``at``."""
    end = body.find(b"\0", at)
    if end < 0:
        raise strange("a text without an end")
    return end + 1


def _all(form: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != form.size:
        raise strange("a message of another length")
    return form.unpack(body)
