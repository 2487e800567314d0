"""What the demo counts as old, stale and fast, and what it calls a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distribcache.cli.demonstration.figures import Answers, Commits, Durations, Latency, Report, Story, Writes
from distribcache.cli.demonstration.questions import POINTS
from distribcache.cli.demonstration.summary import complaints
from distribcache.cli.demonstration.view import faster, milliseconds, percent

GOOD = Story(Latency(10, 2.0, 3.0), Latency(10, 0.5, 1.0), hits=9)
REPORT = Report(point=GOOD, dashboard=GOOD, outside=GOOD, writes=Writes(committed=4, shown=4))


def test_percentiles_are_exact_to_one_percent() -> None:
    durations = Durations()
    for number in range(1, 1001):
        durations.add(number * 1_000_000)
    assert durations.percentile_ms(50) == pytest.approx(500, rel=0.011)
    assert durations.percentile_ms(99) == pytest.approx(990, rel=0.011)
    assert durations.percentile_ms(100) == pytest.approx(1000, rel=0.011)
    assert durations.most_ms() == 1000
    assert durations.count == 1000


def test_one_long_read_among_a_hundred_is_not_the_p99_but_two_are() -> None:
    durations = Durations()
    for took in [1_000_000] * 99 + [900_000_000]:
        durations.add(took)
    assert durations.percentile_ms(99) == pytest.approx(1, rel=0.011)
    durations.add(900_000_000)
    assert durations.percentile_ms(99) == pytest.approx(900, rel=0.011)


def test_nothing_measured_is_none() -> None:
    assert Durations().percentile_ms(50) is None
    assert Durations().most_ms() is None
    assert Report().hit_ratio is None
    assert milliseconds(None) == percent(None) == "–"


def test_an_answer_is_as_old_as_the_first_commit_that_it_does_not_show() -> None:
    commits = Commits()
    commits.acknowledge(100)
    commits.acknowledge(200)
    assert commits.age_ns(2, began_ns=500) == 0
    assert commits.age_ns(1, began_ns=500) == 300
    assert commits.age_ns(0, began_ns=500) == 400
    # Begun before the acknowledgement: either answer was right.
    assert commits.age_ns(1, began_ns=199) == 0
    # Visible before the writer was told.
    assert commits.age_ns(3, began_ns=500) == 0


def test_old_is_not_stale_until_the_bound() -> None:
    answers = Answers()
    answers.aged(0, 1000)
    answers.aged(1000, 1000)
    assert (answers.compared, answers.old, answers.stale, answers.oldest_ns) == (2, 1, 0, 1000)
    answers.aged(1001, 1000)
    assert (answers.old, answers.stale, answers.oldest_ns) == (2, 1, 1001)
    # Strict sessions are promised no age at all.
    answers.aged(1, 0)
    assert answers.stale == 2


def test_a_good_report_has_nothing_to_complain_of() -> None:
    assert complaints(REPORT) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"point": replace(GOOD, hits=0)}, "memory"),
        ({"dashboard": replace(GOOD, hits=0)}, "memory"),
        ({"outside": replace(GOOD, hits=0)}, "memory"),
        ({"writes": Writes()}, "no outside writes"),
        ({"writes": Writes(committed=4, shown=3)}, "never shown"),
        ({"writes": replace(REPORT.writes, strict_committed=2, strict_at_once=1)}, "strict"),
        ({"stale_answers": 1}, "older than allowed"),
        ({"different": 1}, "differed"),
        ({"error": "the server is gone"}, "the server is gone"),
    ],
)
def test_whatever_went_wrong_is_complained_of(change: dict[str, object], word: str) -> None:
    report = replace(REPORT, **change)  # type: ignore[arg-type]
    assert [text for text in complaints(report) if word in text]


def test_all_is_only_said_of_all() -> None:
    assert percent(1.0) == "100 %"
    assert percent(0.9999) == "99 %"
    assert faster(GOOD) == "4.0× faster"
    assert faster(Story(GOOD.cached, GOOD.direct)) == "4.0× slower"


def test_the_same_keys_are_read_every_time_and_the_first_most_often() -> None:
    for point in POINTS:
        keys = [point.key(number) for number in range(2000)]
        assert all(1 <= key <= point.most for key in keys)
        assert len(set(keys)) <= point.keys
        assert max(map(keys.count, set(keys))) > 2000 / point.keys * 5
