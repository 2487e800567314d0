"""The verdicts of the four passes: each must be able to be broken. And what is read out of other people's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from suites.outcomes import Outcome, Run, differences, judge, read_report
from suites.texts import texts_of

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
        ("B", [run_with(1)], False),
        ("B", [Run(GREEN, 1.0, 0, 1)], False),
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


SCRIPT = r"""
-- a comment
SELECT 2; SELECT f1 FROM t WHERE a = 1;
COPY t FROM stdin;
1	SELECT f2 FROM t;
\.
\d t
SELECT f3 FROM t \gset
INSERT INTO t SELECT f4 FROM t;
SELECT f5 FROM t FOR UPDATE;
SELECT f6, pg_sleep(1) FROM t;
SELECT $$;$$ FROM t;
SELECT f1 FROM t WHERE a = 1;
"""


def test_the_reads_of_a_script_are_taken_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "one.sql").write_text(SCRIPT)
    texts = texts_of(tmp_path)
    wanted = [b"SELECT f1 FROM t WHERE a = 1", b"SELECT f3 FROM t", b"SELECT $$;$$ FROM t"]
    assert [text.split(b"\n")[-1] for text in texts.values()] == wanted
    assert texts_of(tmp_path, ["two"]) == {}


def test_of_a_test_reported_twice_the_worse_counts(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<s><testcase classname='a' name='b'/><testcase classname='a' name='b'><error/></testcase>"
        "<testcase classname='a' name='c'><skipped/></testcase></s>"
    )
    assert read_report(report) == {"a::b": Outcome("error"), "a::c": Outcome("skipped")}
