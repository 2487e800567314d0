"""pgoutput's messages → facts: every message by hand, what must be refused, and the same facts as test_decoding's."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribcache.catalog.generation import relations_from
from distribcache.coherence import pgoutput
from distribcache.coherence.decoding import BULK, Collector, Commit, Decoder
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.pgoutput import PgoutputDecoder
from distribcache.coherence.watching import Watching
from distribcache.errors import ProtocolError

T, U = 16384, 16385
INT, BOOL, TEXT = 23, 16, 25
Value = bytes | None | str
"""Text, NULL, or ``"u"``: a long value that was not written again."""


def begin(xid: int = 7, end: int = 900) -> bytes:
    return b"B" + struct.pack(">QqI", end, 5, xid)


def commit(end: int = 1000) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, end - 8, end, 5)


def relation(oid: int, *columns: tuple[str, int, int], name: str = "t", identity: bytes = b"d") -> bytes:
    """Columns as (name, 1 if it belongs to the identity, type)."""
    body = b"R" + struct.pack(">I", oid) + b"public\0" + name.encode() + b"\0" + identity
    body += struct.pack(">H", len(columns))
    for column, key, kind in columns:
        body += bytes([key]) + column.encode() + b"\0" + struct.pack(">Ii", kind, -1)
    return body


def tuple_of(values: Sequence[Value]) -> bytes:
    body = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            body += b"n"
        elif isinstance(value, str):
            body += b"u"
        else:
            body += b"t" + struct.pack(">I", len(value)) + value
    return body


def insert(*values: Value, oid: int = T) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + tuple_of(values)


def update(new: Sequence[Value], *, key: Sequence[Value] = (), old: Sequence[Value] = (), oid: int = T) -> bytes:
    body = b"U" + struct.pack(">I", oid)
    if key or old:
        body += (b"K" if key else b"O") + tuple_of(key or old)
    return body + b"N" + tuple_of(new)


def delete(*, key: Sequence[Value] = (), old: Sequence[Value] = (), oid: int = T) -> bytes:
    return b"D" + struct.pack(">I", oid) + (b"K" if key else b"O") + tuple_of(key or old)


def truncate(*oids: int, flags: int = 0) -> bytes:
    return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), flags, *oids)


def message(prefix: bytes, content: bytes = b"", *, transactional: int = 1) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, 800) + prefix + b"\0" + struct.pack(">I", len(content)) + content


ABC = relation(T, ("id", 1, INT), ("b", 0, BOOL), ("c", 0, TEXT))
ABC_FULL = relation(T, ("id", 1, INT), ("b", 1, BOOL), ("c", 1, TEXT), identity=b"f")


def feed(decoder: Collector, *bodies: bytes, end: int = 1000) -> Commit | None:
    found = None
    for body in bodies:
        # As the reader does: the message lies behind a header, and the cheap path comes first.
        if not decoder.again(memoryview(b"header" + body), 6):
            found = decoder.feed(memoryview(body), end)
    return found


def decode(*bodies: bytes) -> Commit:
    found = feed(PgoutputDecoder(), *bodies)
    assert found is not None
    return found


def test_a_change_counts_at_its_commit_and_at_the_end_of_its_record() -> None:
    decoder = PgoutputDecoder()
    for body in (begin(5), ABC, insert(b"1", None, b"x"), insert(b"2", b"t", b"x")):
        assert feed(decoder, body) is None
    assert feed(decoder, commit(1000)) == Commit(5, 1000, frozenset({b"16384"}), empty=False, ddl=False, rows=2)
    # What was described stays so over transactions.
    again = feed(decoder, begin(6), delete(key=[b"1", None, None]), commit())
    assert again is not None and again.names == {b"16384"}


def test_the_map_of_the_catalogue_knows_a_relation_by_its_oid() -> None:
    rows = [
        (b"16384", b"public.t", b"p", b"d", b"f", None, None),
        (b"16385", b'public."T.1"', b"r", b"d", b"f", b"{16384}", None),
    ]
    known = relations_from(rows)
    assert known.by_name[b"16385"] == known.by_name[b'public."T.1"'] == (16385, 16384)
    assert known.oids == {16384, 16385}


def test_nothing_is_sent_of_ddl_so_an_empty_transaction_says_nothing() -> None:
    assert not decode(begin(), commit()).empty
    assert not decode(begin(), message(b"distribcache.flush"), commit()).empty


def test_messages_of_ours() -> None:
    assert decode(begin(), ABC, insert(b"1", None, None), message(b"distribcache.ddl", b"ALTER TABLE"), commit()).ddl
    assert decode(begin(), message(b"distribcache.leave"), commit()).leave
    assert not decode(begin(), message(b"other", b"distribcache.ddl\0"), commit()).ddl
    decoder = PgoutputDecoder()
    assert feed(decoder, message(b"distribcache.ddl", transactional=0)) is None
    found = feed(decoder, begin(), message(b"distribcache.ddl", transactional=0), commit())
    assert found is not None and not found.ddl


def test_truncate_names_all_its_relations() -> None:
    found = decode(begin(), ABC, truncate(T, U, flags=3), commit())
    assert (found.names, found.rows) == ({b"16384", b"16385"}, 1)


def test_origins_and_types_are_read_over() -> None:
    origin, kind = b"O" + struct.pack(">Q", 1) + b"there\0", b"Y" + struct.pack(">I", 99) + b"public\0mood\0"
    assert decode(begin(), origin, kind, ABC, insert(b"1", None, None), commit()).rows == 1


# -- rows that somebody watches


class Watched:
    """A table t with the identity id, and column sets that somebody depends on."""

    def __init__(self, key: bytes = b"id", described: bytes = ABC) -> None:
        self.ledger = Ledger(64, 1 << 16)
        self.watching = Watching(self.ledger)
        identity = b"f" if described == ABC_FULL else b"d"
        self.watching.renew(relations_from([(b"16384", b"public.t", b"r", identity, b"f", None, key.hex().encode())]))
        self.decoder = PgoutputDecoder(self.watching.plan_of)
        feed(self.decoder, described)

    def tag(self, column: str, value: bytes) -> int:
        assert self.wild(column)
        return self.ledger.row_slot(T, (column,), (value,))

    def wild(self, column: str) -> int:
        return self.watching.register(T, (column,), 1)

    def change(self, *bodies: bytes) -> frozenset[int]:
        found = feed(self.decoder, begin(), *bodies, commit())
        assert found is not None
        return found.slots


def test_a_change_touches_the_tags_of_its_values() -> None:
    watched = Watched()
    one, two = watched.tag("id", b"1"), watched.tag("id", b"2")
    true, x = watched.tag("b", b"true"), watched.tag("c", b"x")
    assert watched.change(insert(b"1", b"t", b"x")) == {one, true, x}
    assert watched.change(insert(b"2", b"f", None)) == {two, watched.tag("b", b"false")}


def test_an_update_without_old_values_keeps_the_identity_and_nothing_else() -> None:
    watched = Watched()
    one, wild = watched.tag("id", b"1"), watched.wild("c")
    assert watched.change(update([b"1", None, b"y"])) == {one, wild}


def test_beside_the_key_an_old_row_is_nulls_that_are_not_null() -> None:
    watched = Watched()
    one, two, wild = watched.tag("id", b"1"), watched.tag("id", b"2"), watched.wild("c")
    moved = watched.change(update([b"2", None, b"y"], key=[b"1", None, None]))
    assert moved == {one, two, wild, watched.tag("c", b"y")}
    assert watched.change(delete(key=[b"1", None, None])) == {one, wild}


def test_a_full_old_row_shows_every_value_and_its_nulls_are_null() -> None:
    watched = Watched(b"", ABC_FULL)
    one, x, y = watched.tag("id", b"1"), watched.tag("c", b"x"), watched.tag("c", b"y")
    assert watched.change(update([b"1", None, b"y"], old=[b"1", None, b"x"])) == {one, x, y}
    assert watched.change(update([b"1", None, b"y"], old=[b"1", None, None])) == {one, y}
    assert watched.change(delete(old=[b"1", b"f", b"x"])) == {one, x}


def test_a_long_value_that_was_not_written_again_is_unknown() -> None:
    watched = Watched(b"", ABC_FULL)
    one, wild = watched.tag("id", b"1"), watched.wild("c")
    assert watched.change(update([b"1", None, "u"], old=[b"1", None, b"x" * 9000])) >= {one, wild}


@pytest.mark.sabotage
def test_taken_for_null_an_unchanged_long_value_leaves_its_entry_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage of the test above: its column is in no identity, so nothing else tells of the row."""
    watched = Watched(b"", ABC_FULL)
    wild = watched.wild("c")
    plain = pgoutput._tuple

    def null_for_unknown(data: Any, at: int, columns: Any, *rest: Any, **how: Any) -> Any:
        values, end = plain(data, at, columns, *rest, **how)
        return {column.name: values.get(column.name) for column in columns}, end

    monkeypatch.setattr(pgoutput, "_tuple", null_for_unknown)
    assert wild not in watched.change(update([b"1", None, "u"], old=[b"1", None, "u"]))


def test_a_column_that_is_not_sent_is_unknown() -> None:
    """A generated one."""
    watched = Watched()
    assert watched.change(insert(b"1", None, None)) == frozenset()
    wild = watched.wild("generated")
    assert watched.change(insert(b"1", None, None)) == {wild}


def test_a_relation_described_anew_is_read_so() -> None:
    watched = Watched()
    one, other = watched.tag("id", b"1"), watched.tag("id", b"9")
    turned = relation(T, ("c", 0, TEXT), ("id", 1, INT))
    assert watched.change(insert(b"1", None, b"9"), turned, insert(b"1", b"9")) == {one, other}


@pytest.mark.parametrize(("rows", "bulk"), [(BULK, False), (BULK + 1, True)])
def test_many_rows_touch_the_wildcards_once(rows: int, bulk: bool) -> None:
    watched = Watched()
    five, wild = watched.tag("id", b"5"), watched.wild("id")
    assert watched.change(*[insert(b"5", None, None)] * rows) == ({five, wild} if bulk else {five})


def test_truncate_touches_every_wildcard() -> None:
    watched = Watched()
    wild = {watched.wild("id"), watched.wild("c")}
    assert watched.change(truncate(T)) == wild


# -- what is not understood

TUPLE = tuple_of([b"1", None, b"x"])
ODD = [
    [b""],
    [b"S" + struct.pack(">IB", 1, 1)],  # streams of unfinished transactions were not asked for
    [b"rubbish"],
    [begin()[:-1]],
    [begin() + b"\0"],
    [begin(), begin()],
    [commit()],
    [begin(), commit(999)],
    [begin(), commit()[:-1]],
    [begin(), b"C\1" + commit()[2:]],
    [ABC, insert(b"1", None, None)],
    [begin(), insert(b"1", None, None)],
    [begin(), ABC, insert(b"1", oid=U)],
    [begin(), truncate()],
    [begin(), truncate(T)[:-1]],
    [begin(), truncate(T) + b"\0\0\0\1"],
    [begin(), truncate(T, flags=4)],
    [truncate(T)],
    [message(b"distribcache.ddl")],
    [begin(), message(b"x", b"abc")[:-1]],
    [begin(), message(b"x", transactional=2)],
    [begin(), b"M\1" + struct.pack(">Q", 1) + b"no end"],
    [begin(), ABC[:-1]],
    [begin(), ABC + b"\0"],
    [begin(), relation(T, ("id", 2, INT))],
    [begin(), relation(T, identity=b"x")],
    [begin(), relation(0)],
    [begin(), b"O" + struct.pack(">Q", 1) + b"no end"],
    [begin(), b"Y" + struct.pack(">I", 1) + b"public\0"],
]
ODD_ROWS = [
    insert(b"1", None),
    insert(b"1", None, None, None),
    insert(b"1", None, b"x") + b"\0",
    insert(b"1", None, b"x")[:-1],
    insert(b"1", b"true", b"x"),
    b"I" + struct.pack(">I", T),
    b"I" + struct.pack(">I", T) + b"K" + TUPLE,
    b"I" + struct.pack(">I", T) + b"N" + TUPLE.replace(b"n", b"b"),
    b"U" + struct.pack(">I", T) + b"K" + TUPLE,
    b"U" + struct.pack(">I", T) + b"K" + TUPLE + b"O" + TUPLE,
    b"D" + struct.pack(">I", T) + b"N" + TUPLE,
    delete(old=[b"1", None, b"x"]) + b"N" + TUPLE,
]


@pytest.mark.parametrize("bodies", ODD)
def test_what_is_not_understood_is_never_skipped(bodies: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        feed(PgoutputDecoder(), *bodies)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("row", ODD_ROWS)
def test_a_row_that_is_not_understood_is_never_skipped(row: bytes, first: bool) -> None:
    watched = Watched()
    for column in ("id", "b", "c"):
        watched.wild(column)
    with pytest.raises(ProtocolError):
        watched.change(*([] if first else [insert(b"1", None, None)]), row)


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read_but_never_anything_else(body: bytes) -> None:
    watched = Watched()
    watched.wild("id")
    feed(watched.decoder, begin())
    try:
        assert feed(watched.decoder, body) is None or body[:1] == b"C"
    except ProtocolError:
        pass


# -- the same rows as both plugins send them have the same effect

COLUMN = st.sampled_from(["id", "b", "c"])
ROW = st.tuples(
    st.integers(-3, 3).map(lambda number: b"%d" % number),
    st.sampled_from([None, b"t", b"f"]),
    st.none() | st.sampled_from([b"", b"x", b"it's", b"null", "größe".encode()]) | st.just("u"),
)
FULL = st.booleans()


def printed(row: Sequence[Value], *, old: bool = False) -> bytes:
    """As test_decoding prints a row; under FULL it leaves old NULLs out."""
    found = []
    for (name, kind), value in zip((("id", "integer"), ("b", "boolean"), ("c", "text")), row, strict=True):
        if value is None and old:
            continue
        if isinstance(value, str):
            text = b"unchanged-toast-datum"
        elif value is None:
            text = b"null"
        elif name == "b":
            text = {b"t": b"true", b"f": b"false"}[value]
        else:
            text = value if name == "id" else b"'" + value.replace(b"'", b"''") + b"'"
        found.append(f" {name}[{kind}]:".encode() + text)
    return b"".join(found)


CHANGE = st.tuples(st.sampled_from(["insert", "update", "moved", "delete"]), ROW, ROW.filter(lambda row: row[2] != "u"))


@given(st.booleans(), st.sets(COLUMN, min_size=1), st.lists(CHANGE, min_size=1, max_size=6))
def test_both_plugins_tell_the_same(
    full: bool, columns: set[str], changes: list[tuple[str, tuple[Value, ...], tuple[Value, ...]]]
) -> None:
    """But for an old NULL under FULL, which test_decoding leaves out and pgoutput shows."""
    watched = Watched(b"" if full else b"id", ABC_FULL if full else ABC)
    for column in columns:
        watched.wild(column)
    text = Decoder(watched.watching.plan_of)
    bodies, texts = [], []
    for kind, new, old in changes:
        shown = [old[0], old[1] or b"f", old[2] or b"x"] if full else [old[0], None, None]
        sides = {"old": shown} if full else {"key": shown}
        head = b"table public.t: "
        before = printed(shown, old=True)
        if kind == "insert":
            new = (*new[:2], None if new[2] == "u" else new[2])
            bodies.append(insert(*new))
            texts.append(head + b"INSERT:" + printed(new))
        elif kind == "delete":
            bodies.append(delete(**sides))
            texts.append(head + b"DELETE:" + before)
        elif kind == "update" and not full:
            bodies.append(update(new))
            texts.append(head + b"UPDATE:" + printed(new))
        else:
            bodies.append(update(new, **sides))
            texts.append(head + b"UPDATE: old-key:" + before + b" new-tuple:" + printed(new))
    ours = watched.change(*bodies)
    theirs = feed(text, b"BEGIN 7", *texts, b"COMMIT 7")
    assert theirs is not None
    assert ours == theirs.slots
