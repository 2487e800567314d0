"""Two small instruments of the lower tiers: who is wanted, and how long look-ups take."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import digest

from distribcache.tiers.ghost import Ghost
from distribcache.tiers.latency import Latency


def test_who_was_missed_twice_is_wanted() -> None:
    ghost = Ghost(100)
    assert not ghost.is_wanted(digest(1))
    ghost.missed(digest(1))
    assert not ghost.is_wanted(digest(1))
    ghost.missed(digest(1))
    assert ghost.is_wanted(digest(1))


def test_who_was_turned_away_is_wanted() -> None:
    ghost = Ghost(100)
    ghost.refused(digest(1))
    assert ghost.is_wanted(digest(1))


def test_counts_of_two_generations_are_one() -> None:
    ghost = Ghost(100)
    ghost.missed(digest("x"))
    for number in range(100):
        ghost.missed(digest(number))
    ghost.missed(digest("x"))
    assert ghost.is_wanted(digest("x"))


def test_what_was_long_ago_is_forgotten() -> None:
    ghost = Ghost(100)
    ghost.refused(digest("x"))
    for number in range(99):
        ghost.missed(digest(number))
    assert ghost.is_wanted(digest("x"))
    for number in range(99, 250):
        ghost.missed(digest(number))
    assert not ghost.is_wanted(digest("x"))


def test_strangers_are_seldom_wanted_and_friends_always() -> None:
    ghost = Ghost(1000)
    for number in range(900):
        ghost.refused(digest(number))
    assert all(ghost.is_wanted(digest(number)) for number in range(900))
    assert sum(ghost.is_wanted(digest(number)) for number in range(10_000, 30_000)) < 400


def test_a_count_does_not_run_over() -> None:
    ghost = Ghost(2000)
    for _ in range(1000):
        ghost.missed(digest(1))
    assert ghost.is_wanted(digest(1))


def test_without_samples_there_is_no_figure() -> None:
    assert Latency().quantile_us(0.5) is None


@given(st.integers(-5, 1 << 39))
def test_a_figure_is_at_most_an_eighth_too_high(sample: int) -> None:
    latency = Latency()
    latency.add(sample)
    for share in (0, 0.5, 1):
        assert (figure := latency.quantile_us(share)) is not None
        assert max(0, sample) <= round(figure * 1000) <= max(0, sample) * 9 / 8


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_of_many(share: float) -> None:
    rng = random.Random(1)
    samples = [int(rng.lognormvariate(9, 1)) for _ in range(20_000)]
    latency = Latency()
    for sample in samples:
        latency.add(sample)
    true = sorted(samples)[int(share * len(samples))] / 1000
    assert (figure := latency.quantile_us(share)) is not None
    assert true * 0.98 <= figure <= true * 1.13


def test_what_is_too_long_counts_as_the_longest() -> None:
    latency = Latency()
    latency.add(1 << 60)
    assert (figure := latency.quantile_us(0.5)) is not None
    assert figure > 1e9 / 2


def test_the_past_fades_and_memory_is_bounded() -> None:
    latency = Latency(limit=1000)
    for _ in range(5000):
        latency.add(100_000)
    for _ in range(5000):
        latency.add(1000)
    assert (figure := latency.quantile_us(0.9)) is not None
    assert figure < 2
    assert latency.count < 1000
    assert len(latency._counts) < 400
