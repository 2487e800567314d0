"""The circuit breaker: states, rows of failures, pauses that grow."""

from __future__ import annotations

from distribcache.tiers.breaker import Breaker, State


def closed(failures: int = 3, pause: float = 1.0, longest: float = 5.0) -> Breaker:
    breaker = Breaker(failures, pause, longest)
    breaker.try_again()
    breaker.close()
    return breaker


def test_it_begins_open_and_its_trial_decides() -> None:
    breaker = Breaker(3, 1.0, 5.0)
    assert breaker.state is State.OPEN
    breaker.try_again()
    assert breaker.state is State.HALF_OPEN
    assert breaker.failed()
    assert breaker.state is State.OPEN  # type: ignore[comparison-overlap]
    breaker.try_again()
    breaker.close()
    assert breaker.state is State.CLOSED


def test_failures_in_a_row_open_it() -> None:
    breaker = closed()
    assert [breaker.failed() for _ in range(4)] == [False, False, True, False]
    assert breaker.state is State.OPEN


def test_an_answer_ends_the_row() -> None:
    breaker = closed()
    for _ in range(10):
        assert not breaker.failed()
        assert not breaker.failed()
        breaker.worked()
    assert breaker.state is State.CLOSED


def test_an_answer_to_an_old_question_does_not_close_it() -> None:
    breaker = closed()
    while not breaker.failed():
        pass
    breaker.worked()
    assert breaker.state is State.OPEN


def test_pauses_grow_until_an_answer() -> None:
    breaker = Breaker(3, 1.0, 5.0)
    assert [breaker.rest() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    breaker.try_again()
    breaker.close()
    assert breaker.rest() == 5.0, "a greeting is not an answer"
    breaker.worked()
    assert [breaker.rest() for _ in range(2)] == [1.0, 2.0]
    breaker.calm()
    assert breaker.rest() == 1.0


def test_a_lost_connection_opens_it() -> None:
    breaker = closed()
    breaker.lost()
    assert breaker.state is State.OPEN
