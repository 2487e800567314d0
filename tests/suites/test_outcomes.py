"""The verdicts of the four passes: each must be able to be broken."""

from __future__ import annotations

import pytest
from suites.outcomes import Outcome, Run, differences, judge

GREEN = {"one": Outcome("passed", "aa"), "two": Outcome("failed", "bb"), "three": Outcome("skipped")}
BASE = Run(GREEN, 1.0)


def run_with(hits: int = 0, **changed: Outcome) -> Run:
    return Run({**GREEN, **changed}, 1.0, hits)


@pytest.mark.parametrize(
    ("which", "runs", "ok"),
    [
        ("A", [BASE], True),
        ("A", [BASE, run_with()], True),
        ("A", [BASE, run_with(one=Outcome("failed"))], False),
        ("B", [run_with()], True),
        ("B", [run_with(one=Outcome("failed", "aa"))], False),
        ("B", [run_with(two=Outcome("passed", "bb"))], False),
        ("B", [run_with(one=Outcome("passed", "other bytes"))], False),
        ("B", [run_with(four=Outcome("passed"))], False),
        ("B", [Run({"one": GREEN["one"]}, 1.0)], False),
        ("B", [Run({}, 1.0)], False),
        ("C", [run_with(5), run_with(7)], True),
        ("C", [run_with(5), run_with(0)], False),
        ("C", [run_with(5), run_with(7, one=Outcome("failed"))], False),
        ("D", [run_with(5, one=Outcome("failed"))], True),
        ("D", [run_with(5)], False),
        ("D", [Run({}, 1.0)], False),
    ],
)
def test_a_pass_is_judged_by_what_it_must_give(which: str, runs: list[Run], ok: bool) -> None:
    assert judge(which, BASE, runs, ()).ok is ok


def test_without_a_baseline_nothing_is_proved() -> None:
    assert not judge("B", None, [run_with()], ()).ok


def test_only_tests_named_unstable_are_left_out() -> None:
    other = run_with(one=Outcome("failed"), two=Outcome("passed"))
    assert differences(BASE, other, ["one"]) == ["two"]
