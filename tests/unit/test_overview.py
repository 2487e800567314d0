"""The overview page: sentences that follow from the figures, and nothing that a browser would run."""

from __future__ import annotations

from typing import Any

from distribcache.web.overview import page, sentences

FIGURES: dict[str, float] = {
    "hits_total": 90, "misses_total": 10, "bypasses_total": 3, "refusals_total": 2, "seconds_saved_total": 1.5,
    "oldest_answer_ms": 12.25,
}  # fmt: skip


def database(**more: Any) -> dict[str, Any]:
    return {"name": "shop", "serving": True, "mode": "wal", "reason": "", "detail": "", "hint": "", **more}


def test_sentences_follow_from_the_figures() -> None:
    said = sentences(FIGURES, [database()])
    assert said[0] == (True, "90 % of 100 cacheable reads came from memory.")
    assert "5 statements went straight through" in said[3][1]
    assert all(well for well, _ in said)


def test_a_stale_answer_comes_first() -> None:
    said = sentences({**FIGURES, "audits_total": 700, "stale_audits_total": 2}, [database()])
    assert said[0] == (False, "2 of 700 audited answers were stale: the log tells which.")


def test_a_database_that_is_passed_through_says_why_and_what_mends_it() -> None:
    hint = "ALTER SYSTEM SET wal_level = 'logical'"
    said = sentences(FIGURES, [database(serving=False, reason="wal_level", hint=hint)])
    assert said[-1][0] is False
    assert "wal_level" in said[-1][1] and "ALTER SYSTEM" in said[-1][1]


def test_names_are_escaped() -> None:
    text = page(FIGURES, [database(name="<script>alert(1)</script>")])
    assert "<script>" not in text and "&lt;script&gt;" in text
