"""One row of test_decoding → old and new values: every form that the server prints, and what must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribcache.coherence import tuples
from distribcache.coherence.tuples import Change, Values, read_change
from distribcache.errors import ProtocolError

ALL = frozenset({b"id", b"v", b"w"})

FORMS: list[tuple[bytes, Change | None]] = [
    (b": INSERT: id[integer]:1 v[text]:'a: b'", Change(None, {b"id": b"1", b"v": b"a: b"})),
    (b": INSERT: v[character varying]:'it''s' id[bigint]:-7", Change(None, {b"v": b"it's", b"id": b"-7"})),
    (b": INSERT: id[boolean]:true v[boolean]:false w[text]:''",
     Change(None, {b"id": b"true", b"v": b"false", b"w": b""})),
    (b": INSERT: id[integer]:null v[text]:'null' w[text]:null", Change(None, {b"id": None, b"v": b"null", b"w": None})),
    (b": INSERT: id[bit]:B'01' v[integer[]]:'{1,2}' w[\"char\"]:']: '",
     Change(None, {b"id": b"01", b"v": b"{1,2}", b"w": b"]: "})),
    (b': INSERT: "We[ird""]:"[public."Ty]:p""e"[]]:\'x\' id[numeric]:NaN', Change(None, {b"id": b"NaN"})),
    (b": INSERT: id[double precision]:1e-05 v[real]:-Infinity", Change(None, {b"id": b"1e-05", b"v": b"-Infinity"})),
    (b": INSERT:", Change(None, {})),
    (b": INSERT: (no-tuple-data)", Change(None, {})),
    (b": UPDATE: id[integer]:1 v[text]:unchanged-toast-datum w[text]:'unchanged-toast-datum'",
     Change(None, {b"id": b"1", b"w": b"unchanged-toast-datum"}, kept=True)),
    (b": UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 v[text]:null",
     Change({b"id": b"1"}, {b"id": b"2", b"v": None})),
    (b": UPDATE: old-key: new-tuple: id[integer]:2", Change({}, {b"id": b"2"})),
    (b": UPDATE: old-key: v[text]:' new-tuple: id[integer]:9' new-tuple: id[integer]:2",
     Change({b"v": b" new-tuple: id[integer]:9"}, {b"id": b"2"})),
    (b': UPDATE: "old-key"[integer]:1 id[integer]:2', Change(None, {b"id": b"2"}, kept=True)),
    (b": DELETE: id[integer]:1", Change({b"id": b"1"}, None)),
    (b": DELETE:", Change({}, None)),
    (b": DELETE: (no-tuple-data)", Change({}, None)),
    (b": TRUNCATE: (no-flags)", None),
]


@pytest.mark.parametrize(("text", "expected"), FORMS)
@pytest.mark.parametrize("view", [bytes, memoryview])
def test_what_a_row_shows(text: bytes, expected: Change | None, view: type) -> None:
    head = b"table public.t"
    assert read_change(view(head + text), len(head), ALL) == expected


def test_a_row_is_read_up_to_the_last_wanted_column() -> None:
    text = b": INSERT: id[integer]:1 v[text]:'a' and then rubbish"
    assert read_change(text, 0, frozenset({b"id", b"v"})) == Change(None, {b"id": b"1", b"v": b"a"})
    with pytest.raises(ProtocolError):
        read_change(text, 0, ALL)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b": MERGE: id[integer]:1",
        b": INSERT: id",
        b": INSERT: id[integer]",
        b": INSERT: id[integer]:",
        b": INSERT: id[integer]: v[text]:'a'",
        b": INSERT: id[integer]:1v[text]:'a'",
        b": INSERT: id[integer]:1  v[text]:'a'",
        b": INSERT: id[text]:'a",
        b": INSERT: id[text]:'a'b'",
        b": INSERT: Id[integer]:1",
        b': INSERT: "id[integer]:1',
        b": INSERT: id[integer:1",
        b": INSERT: id[integer]:B'02'",
        b": INSERT: (no-tuple-data) id[integer]:1",
        b": UPDATE: old-key: id[integer]:1",
        b": UPDATE: old-key: id[integer]:1 v[text]:'a'",
        b": UPDATE: id[integer]:1 new-tuple: id[integer]:2",
        b": DELETE: id[integer]:1 new-tuple: id[integer]:2",
    ],
)
def test_what_is_not_understood_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_change(text, 0, ALL)


def test_what_lies_behind_a_megabyte_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b": INSERT: id[integer]:12345 v[text]:'" + b"x" * 100 + b"' w[integer]:7"
    complete = Change(None, {b"id": b"12345", b"v": b"x" * 100, b"w": b"7"})
    for longest in range(len(text) + 1):
        monkeypatch.setattr(tuples, "_LONGEST", longest)
        change = read_change(text, 0, ALL)
        assert change is not None
        assert change.new is not None
        # Never a piece of a value, at whatever place it is cut.
        assert change.new.items() <= (complete.new or {}).items()
        old = read_change(text.replace(b": INSERT:", b": UPDATE: old-key:") + b" new-tuple: id[integer]:9", 0, ALL)
        assert old is not None
        assert (old.old or {}).items() <= (complete.new or {}).items()
        assert old.new in ({}, {b"id": b"9"})
    assert change == complete


def test_many_quotes_are_read_in_one_pass() -> None:
    """No step of it may take time or memory in the square of the length."""
    body = b"''" * 400_000
    change = read_change(b": INSERT: v[text]:'" + body + b"' id[integer]:1", 0, ALL)
    assert change == Change(None, {b"v": b"'" * 400_000, b"id": b"1"})


NAME = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)
VALUE = st.none() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | TEXT


def printed(row: dict[str, object], kind: str, *, skip_nulls: bool = False) -> str:
    """As ``tuple_to_stringinfo`` does it."""
    text = ""
    for name, value in row.items():
        if value is None and skip_nulls:
            continue
        plain = name.isascii() and name.islower() and name.isalnum() and name[0].isalpha()
        text += " " + (name if plain else '"' + name.replace('"', '""') + '"') + f"[{kind}]:"
        if value is None:
            text += "null"
        elif isinstance(value, bool):
            text += "true" if value else "false"
        elif isinstance(value, int):
            text += str(value)
        else:
            text += "'" + str(value).replace("'", "''") + "'"
    return text


def shown(row: dict[str, object], *, skip_nulls: bool = False) -> Values:
    as_text = {True: "true", False: "false"}
    return {
        name.encode(): None if value is None else (as_text[value] if isinstance(value, bool) else str(value)).encode()
        for name, value in row.items()
        if not (value is None and skip_nulls)
    }


@given(
    st.dictionaries(NAME, VALUE, max_size=6),
    st.dictionaries(NAME, VALUE, max_size=6),
    st.sampled_from(["integer", "integer[]", 'public."Ty:p]e"[]', "timestamp without time zone", '"]: "']),
)
def test_any_row_comes_back(old: dict[str, object], new: dict[str, object], kind: str) -> None:
    wanted = frozenset(name.encode() for name in {**old, **new})
    text = ": UPDATE: old-key:" + printed(old, kind, skip_nulls=True) + " new-tuple:" + printed(new, kind)
    assert read_change(text.encode(), 0, wanted) == Change(shown(old, skip_nulls=True), shown(new))
    assert read_change((": INSERT:" + printed(new, kind)).encode(), 0, wanted) == Change(None, shown(new))


@given(st.binary(max_size=80))
def test_garbage_is_refused_or_read_but_never_anything_else(text: bytes) -> None:
    for kind in (b": INSERT:", b": UPDATE: old-key:", b": DELETE: id[integer]:1"):
        try:
            read_change(kind + text, 0, ALL)
        except ProtocolError:
            pass
