"""Whatever the bytes, ``read`` answers with facts or an error, and its facts keep their promises."""

from __future__ import annotations

from catalog_cases import CASES
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distribcache.sql.cacheability import REFUSALS, Kind, Parsed
from distribcache.sql.fingerprint import template
from distribcache.sql.parse import read
from distribcache.sql.predicates import occurrences
from distribcache.sql.timewords import dangerous_parameter, names_a_moment

CORPUS = [sql for sql, _, _ in CASES]
WORDS = st.sampled_from(
    "SELECT FROM WHERE t u a b * ( ) , ; = + - :: date 'now' 'x' 1 $1 WITH AS RECURSIVE JOIN ON USING UNION VALUES "
    "INSERT INTO UPDATE SET DELETE GROUP BY ORDER LIMIT CASE WHEN THEN END NULL IN EXISTS [ ] { } \" ' -- /* */ $$ E' "
    "U&' ARRAY ROW BEGIN COMMIT now() xmin \n \t ü \U0001f600 . %".split(" ")
)


def _check(parsed: Parsed) -> None:
    assert bool(parsed.error) == (not parsed.statements)
    for statement in parsed.statements:
        hash((statement.names, statement.levels))
        assert statement.refusal is None or statement.refusal.code in REFUSALS
        if statement.refusal is None:
            assert statement.kind is Kind.READ
            assert statement.relations or statement.functions  # a function may read for it
            assert statement.is_pure_candidate
            occurrences(statement.levels, lambda name: frozenset({"id", "a", "b"}))


@given(st.binary(max_size=300))
@example(b"\0")
@example(b"\xff")
@example(b"SELECT '\xed\xa0\x80'")
def test_any_bytes(text: bytes) -> None:
    _check(read(text))


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    _check(read(text.encode("utf-8", "surrogatepass")))
    assert isinstance(template(text), str)


@settings(max_examples=400)
@given(st.lists(WORDS, max_size=40).map(" ".join))
def test_text_made_of_words_of_the_grammar(text: str) -> None:
    _check(read(text.encode()))


@settings(max_examples=300)
@given(st.sampled_from(CORPUS), st.data())
def test_a_statement_with_a_hole_or_a_foreign_part(sql: str, data: st.DataObject) -> None:
    text = sql.encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    _check(read(text[:start] + data.draw(st.binary(max_size=5)) + text[end:]))


@given(st.sampled_from(CORPUS), st.integers(1, 3))
def test_reading_is_a_function_of_the_text(sql: str, times: int) -> None:
    first = read(sql.encode())
    assert all(read(sql.encode()) == first for _ in range(times))


PUNCTUATION = " \t\n,;.()[]{}'\"0123456789:"


@given(
    st.sampled_from(["now", "today", "Tomorrow", "YESTERDAY"]),
    st.text(PUNCTUATION + "/-", max_size=20),
    st.text(PUNCTUATION, max_size=20),
)
def test_a_moment_is_seen_whatever_stands_around_it(word: str, before: str, after: str) -> None:
    assert names_a_moment(before + word + after)
    assert dangerous_parameter((before + word + after).encode())


@given(st.binary(max_size=200))
def test_any_parameter_gets_an_answer(value: bytes) -> None:
    assert dangerous_parameter(value) in (True, False)
