"""When a statement that was prepared before still means what its text means now."""

from __future__ import annotations

import pytest

from distribcache.catalog.meaning import NO_NAMES, Candidate, Meaning, meaning_of

USER = 16384
OLD, NEW, ALSO = 20_000, 20_001, 20_002


def meaning(*candidates: Candidate, alike: tuple[tuple[int, int], ...] = ()) -> Meaning:
    return meaning_of(candidates, alike, builtin=USER, vague=False)


def test_a_name_with_one_candidate_is_no_question() -> None:
    assert meaning(("named", 1, NEW), ("function", 1, 99), ("function", 2, NEW)).stands_since(None)
    assert NO_NAMES.stands_since(None)


@pytest.mark.parametrize("what", ["named", "function", "type", "attribute"])
def test_a_newcomer_beside_others_is(what: str) -> None:
    before, now = meaning((what, 1, OLD)), meaning((what, 1, OLD), (what, 1, NEW))
    assert not now.stands_since(before)
    assert not now.stands_since(None)
    assert now.stands_since(now)
    assert before.stands_since(now)  # what has gone was looked up again


def test_what_came_with_the_server_was_always_there_but_has_no_say_alone() -> None:
    assert meaning(("function", 1, 99), ("function", 1, 98)).stands_since(None)
    assert not meaning(("function", 1, 99), ("function", 1, NEW)).stands_since(meaning(("function", 1, 99)))


def test_all_candidates_have_to_have_been_there() -> None:
    now = meaning(("named", 1, OLD), ("named", 1, NEW))
    assert not now.stands_since(meaning(("named", 1, OLD), ("named", 1, ALSO)))
    assert not now.stands_since(meaning(("named", 2, OLD), ("named", 2, NEW)))  # another name


def test_a_cast_is_never_alone() -> None:
    now = meaning(("cast", 0, NEW))
    assert not now.stands_since(None)
    assert not now.stands_since(meaning(("cast", 0, OLD)))
    assert now.stands_since(now)


def test_a_call_may_have_been_a_cast() -> None:
    both = (("function", 1, NEW), ("type", 3, OLD))
    assert meaning(*both).stands_since(None)
    assert not meaning(*both, alike=((1, 3),)).stands_since(meaning(("type", 3, OLD)))


ROW, TOUCHED = 950 + (1 << 32) + (1 << 64), 950 + (7 << 32) + (1 << 64)


def fixed(*rows: int) -> Meaning:
    found = [("collation", 1, row) for row in rows]
    return meaning_of(found, (), [("collation", 1)], builtin=USER, vague=False)


def test_what_is_not_looked_up_again_has_to_be_the_very_row() -> None:
    assert fixed(ROW).is_fixed_since(fixed(ROW))
    assert fixed(ROW).stands_since(None) and not fixed(ROW).is_fixed_since(None)  # by its other names alone
    assert not fixed(ROW).is_fixed_since(fixed(TOUCHED))
    assert not fixed(ROW).is_fixed_since(NO_NAMES)
    assert NO_NAMES.sure and not fixed(ROW).sure and not fixed().sure


def test_nor_is_it_certain_where_it_is_not_in_the_first_schema_or_is_there_twice() -> None:
    assert fixed().vague and not fixed().is_fixed_since(fixed())
    assert fixed(ROW, TOUCHED).vague
