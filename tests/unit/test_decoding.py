"""test_decoding's text → facts: the forms that the server prints, names in every quoting, what must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribcache.coherence.decoding import Commit, Decoder, names_of
from distribcache.errors import ProtocolError


def decode(*texts: bytes, end: int = 1000) -> Commit:
    decoder = Decoder()
    for text in texts[:-1]:
        # As the reader does: the text lies behind the header of its message, and the cheap path comes first.
        if not decoder.again(memoryview(b"header" + text), 6):
            assert decoder.feed(text, end - 1) is None
    commit = decoder.feed(memoryview(texts[-1]), end)
    assert commit is not None
    return commit


ROWS = [
    (b"table public.t: INSERT: id[integer]:1 v[text]:'a: b'", [b"public.t"]),
    (b"table public.z: INSERT:", [b"public.z"]),
    (b"table public.t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2", [b"public.t"]),
    (b"table public.n: DELETE: (no-tuple-data)", [b"public.n"]),
    (b"table public.t: TRUNCATE: (no-flags)", [b"public.t"]),
    (b"table public.a, public.b, s.c: TRUNCATE: restart_seqs cascade", [b"public.a", b"public.b", b"s.c"]),
    (b'table "We ird"."T:a,b": INSERT: id[integer]:1', [b'"We ird"."T:a,b"']),
    (b'table public."x: INSERT: y": UPDATE: id[integer]:1', [b'public."x: INSERT: y"']),
    (b'table public."quote""d: ", public.b: TRUNCATE: (no-flags)', [b'public."quote""d: "', b"public.b"]),
    ('table public."größe": INSERT: id[integer]:1'.encode(), ['public."größe"'.encode()]),
]


@pytest.mark.parametrize(("text", "names"), ROWS)
def test_the_relations_of_a_change(text: bytes, names: list[bytes]) -> None:
    assert names_of(text[6:]) == names
    commit = decode(b"BEGIN 77", text, text, b"COMMIT 77")
    assert commit == Commit(77, 1000, frozenset(names), empty=False, ddl=False, rows=2)


def test_a_change_counts_at_its_commit_and_at_the_end_of_its_record() -> None:
    decoder = Decoder()
    assert decoder.feed(b"BEGIN 5", 100) is None
    assert decoder.feed(ROWS[0][0], 120) is None
    commit = decoder.feed(b"COMMIT 5", 180)
    assert commit is not None
    assert commit.lsn == 180
    second = decode(b"BEGIN 6", b"COMMIT 6")
    assert second.names == frozenset()


def test_a_transaction_without_rows_is_an_alarm() -> None:
    assert decode(b"BEGIN 9", b"COMMIT 9").empty


def message(prefix: bytes, content: bytes = b"", *, transactional: int = 1) -> bytes:
    return b"message: transactional: %d prefix: %s, sz: %d content:%s" % (
        transactional,
        prefix,
        len(content),
        content,
    )


def test_our_own_flush_is_not_empty_but_hides_nothing_else() -> None:
    ours = message(b"distribcache.flush")
    assert not decode(b"BEGIN 9", ours, b"COMMIT 9").empty
    assert decode(b"BEGIN 9", message(b"other", b"distribcache.flush, sz: 0 content:"), b"COMMIT 9").empty
    assert decode(b"BEGIN 9", ours, message(b"other"), b"COMMIT 9").empty


def test_the_event_trigger_marks_a_transaction_that_also_writes() -> None:
    commit = decode(b"BEGIN 9", ROWS[0][0], message(b"distribcache.ddl", b"ALTER TABLE"), b"COMMIT 9")
    assert commit.ddl
    assert not commit.empty
    assert not decode(b"BEGIN 9", ROWS[0][0], message(b"x", b"prefix: distribcache.ddl, sz: 1"), b"COMMIT 9").ddl


def test_a_message_outside_a_transaction_belongs_to_none() -> None:
    decoder = Decoder()
    assert decoder.feed(message(b"distribcache.flush", transactional=0), 50) is None
    assert decoder.feed(b"BEGIN 9", 60) is None
    assert decoder.feed(message(b"distribcache.ddl", transactional=0), 70) is None
    commit = decoder.feed(b"COMMIT 9", 80)
    assert commit is not None
    assert commit.empty
    assert not commit.ddl


@pytest.mark.parametrize(
    "texts",
    [
        [b""],
        [b"t"],
        [b"rubbish"],
        [b"BEGIN x"],
        [b"BEGIN "],
        [b"BEGIN 1", b"BEGIN 2"],
        [b"COMMIT 1"],
        [b"BEGIN 1", b"COMMIT 2"],
        [ROWS[0][0]],
        [b"BEGIN 1", b"table public.t"],
        [b"BEGIN 1", b"table public: INSERT: x"],
        [b"BEGIN 1", b'table public."t: INSERT: x'],
        [b"BEGIN 1", b"table public.t: MERGE: x"],
        [b"BEGIN 1", b"table public.t, : TRUNCATE: "],
        [b"BEGIN 1", b"table public.t, public.u: INSERT: x"],
        [b"BEGIN 1", b"tablespace"],
        [b"BEGIN 1", b"message: something"],
    ],
)
def test_what_is_not_understood_is_never_skipped(texts: list[bytes]) -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        for text in texts:
            decoder.feed(text, 1)


def quoted(name: str) -> str:
    plain = name.isascii() and name.islower() and name.isalnum() and name[0].isalpha()
    return name if plain else '"' + name.replace('"', '""') + '"'


NAME = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(NAME, NAME), min_size=1, max_size=4), st.text(max_size=20))
def test_any_names_come_back(names: list[tuple[str, str]], tail: str) -> None:
    printed = [f"{quoted(schema)}.{quoted(relation)}".encode() for schema, relation in names]
    assert names_of(b", ".join(printed) + b": TRUNCATE: " + tail.encode("utf-8", "replace")) == printed
    # The cheap path of later rows finds the same relation.
    row = b"table " + printed[0] + b": INSERT: " + tail.encode("utf-8", "replace")
    assert decode(b"BEGIN 1", row, row, row, b"COMMIT 1").names == frozenset(printed[:1])


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_read_but_never_anything_else(text: bytes) -> None:
    decoder = Decoder()
    decoder.feed(b"BEGIN 1", 1)
    try:
        decoder.feed(b"table " + text, 2)
    except ProtocolError:
        return
    commit = decoder.feed(b"COMMIT 1", 3)
    assert commit is not None
    assert commit.names


def test_the_cheap_path_takes_rows_of_known_relations_only() -> None:
    decoder = Decoder()
    decoder.feed(b"BEGIN 1", 1)
    row, other = b"table public.t: INSERT: id[integer]:1", b"table public.tt: INSERT: id[integer]:1"
    assert not decoder.again(memoryview(row), 0)
    decoder.feed(row, 2)
    assert decoder.again(memoryview(row), 0)
    assert not decoder.again(memoryview(other), 0)
    for text in (b"", b"t", b"COMMIT 1", b"message: transactional: 1 prefix: public.t: , sz: 0 content:"):
        assert not decoder.again(memoryview(b"12" + text), 2)
    commit = decoder.feed(b"COMMIT 1", 9)
    assert commit is not None
    assert commit.rows == 2
    assert not decoder.again(memoryview(row), 0)
