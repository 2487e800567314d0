"""The auditor's judgement, step by step, and how many audits say what."""

from __future__ import annotations

import pytest

from distribcache.coherence.auditor import Cause, Sampler, Served, Verdict, judge, upper_bound
from distribcache.coherence.ledger import EPOCH, FRESH_AT, NEVER, SCHEMA, Ledger, W
from distribcache.entry import Entry, make_entry
from distribcache.sql.order import order_of

MS = 1_000_000
BOUND = 1000 * MS


class Scene:
    """An entry with F = 100 and A = 90, served when W was 120."""

    def __init__(self) -> None:
        self.ledger = Ledger(16, 16)
        self.words = self.ledger.words
        self.ledger.renew(7)
        self.ledger.open(120)
        self.words[SCHEMA] = 80
        self.words[FRESH_AT] = 5000 * MS
        self.slot = self.ledger.slot_of(1, 95)
        self.entry: Entry = make_entry(
            b"", fill=100, analysis=90, slots=(self.slot,), epoch=7, expires=1e9, cost_ns=1, at_ns=4000 * MS,
            tables="t", workload="oltp",
        )  # fmt: skip

    def served(self, *, age_ms: int = 3, floor_ms: int = 0, ttl: bool = False) -> Served:
        return Served.now(
            self.entry, self.words, self.words, at_ns=5003 * MS, age_ns=age_ms * MS, bound_ns=BOUND,
            floor_ns=floor_ms * MS, ttl=ttl,
        )  # fmt: skip

    def commit(self, lsn: int) -> None:
        self.ledger.bump(self.slot, lsn)
        self.words[W] = max(self.words[W], lsn)


def judged(scene: Scene, served: Served) -> tuple[Verdict, Cause] | None:
    finding = judge(served, scene.words)
    return None if finding is None else (finding.verdict, finding.cause)


def test_a_commit_behind_the_answer_supersedes_it_and_its_age_is_known() -> None:
    scene = Scene()
    served = scene.served(age_ms=3)
    scene.commit(130)
    finding = judge(served, scene.words)
    assert finding is not None
    assert (finding.verdict, finding.age_ns) == (Verdict.SUPERSEDED, 3 * MS)


def test_what_nothing_has_ended_is_not_explained() -> None:
    scene = Scene()
    assert judged(scene, scene.served()) is None


def test_what_was_dead_when_it_was_served_is_stale_whatever_came_later() -> None:
    scene = Scene()
    scene.commit(110)
    served = scene.served()
    scene.commit(130)
    assert judged(scene, served) == (Verdict.STALE, Cause.DEAD)


@pytest.mark.parametrize("what", ["schema", "epoch", "future"])
def test_dead_by_another_part_of_the_rule(what: str) -> None:
    scene = Scene()
    if what == "schema":
        scene.words[SCHEMA] = 91
    elif what == "epoch":
        scene.words[EPOCH] = 8
    else:
        scene.words[W] = 99
    assert judged(scene, scene.served()) == (Verdict.STALE, Cause.DEAD)


def test_a_commit_of_before_the_watermark_that_is_recorded_later_is_stale() -> None:
    scene = Scene()
    served = scene.served()
    scene.commit(115)
    assert judged(scene, served) == (Verdict.STALE, Cause.LATE)


def test_a_relation_that_shares_its_slot_with_a_new_one_is_not_accused() -> None:
    scene = Scene()
    served = scene.served()
    scene.commit(served.watermark)
    assert judged(scene, served) == (Verdict.SUPERSEDED, Cause.NONE)


def test_older_knowledge_than_promised_is_stale() -> None:
    for served, late in ((Scene().served(age_ms=900), False), (Scene().served(age_ms=1100), True)):
        scene = Scene()
        scene.commit(130)
        assert (judged(scene, served) == (Verdict.STALE, Cause.OLD)) is late
    scene = Scene()
    served = scene.served(floor_ms=5001)  # a write through the proxy had ended after what the ledger was proved up to
    scene.commit(130)
    assert judged(scene, served) == (Verdict.STALE, Cause.OLD)


def test_a_changed_catalogue_supersedes_by_a_position_that_was_passed() -> None:
    """It takes the position at which it was found, and is found within the polls of R6 only."""
    scene = Scene()
    served = scene.served()
    scene.ledger.bump_all(115)
    assert judged(scene, served) == (Verdict.SUPERSEDED, Cause.NONE)


def test_another_epoch_says_nothing() -> None:
    scene = Scene()
    served = scene.served()
    scene.ledger.renew(8)
    assert judged(scene, served) == (Verdict.UNDECIDED, Cause.NEW_EPOCH)


def test_where_only_time_ends_an_entry_nothing_is_stale_and_its_age_is_told() -> None:
    scene = Scene()
    scene.words[FRESH_AT] = NEVER
    finding = judge(scene.served(ttl=True), scene.words)
    assert finding is not None
    assert (finding.verdict, finding.age_ns) == (Verdict.SUPERSEDED, 1003 * MS)


@pytest.mark.parametrize(("share", "hits"), [(1.0, 500), (0.1, 10_000), (0.0001, 1_000_000)])
def test_the_sample_is_the_share(share: float, hits: int) -> None:
    sampler = Sampler(share)
    due = sum(sampler.due(7) for _ in range(hits // 7))
    assert due == pytest.approx(hits * share, rel=0.2)


def test_no_share_no_sample_and_a_small_share_none_at_first() -> None:
    assert Sampler(0).due(1 << 40) == 0
    assert Sampler(0.0001).due(4_900) == 0


@pytest.mark.parametrize(
    ("found", "of", "bound"),
    [(0, 0, 1), (0, 1, 0.95), (0, 299, 0.00997), (0, 100_000, 3.0e-5), (1, 10, 0.3942), (3, 100, 0.0757), (5, 5, 1)],
)
def test_the_bound_is_that_of_clopper_and_pearson(found: int, of: int, bound: float) -> None:
    assert upper_bound(found, of) == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(
    ("sql", "ordered", "determined"),
    [
        ("SELECT a FROM t", False, True),
        ("SELECT a FROM t ORDER BY a", True, True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a) s", False, True),
        ("SELECT 1 UNION SELECT 2 ORDER BY 1", True, True),
        ("SELECT a FROM t ORDER BY a LIMIT 1", True, False),
        ("SELECT (SELECT a FROM t OFFSET 1 FETCH FIRST 1 ROW ONLY)", False, False),
        ("SELECT DISTINCT a FROM t", False, True),
        ("SELECT DISTINCT ON (a) a, b FROM t", False, False),
        ("SELECT array_agg(a) FROM t", False, False),
        ("SELECT array_agg(a ORDER BY a) FROM t", False, True),
        ("SELECT mode() WITHIN GROUP (ORDER BY a) FROM t", False, False),
        ("SELECT ARRAY(SELECT a FROM t)", False, False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False, False),
        ("SELECT count(*), sum(a) FROM t GROUP BY b", False, True),
        ("SELECT a FROM t TABLESAMPLE system (10)", False, False),
        ("not sql at all", True, False),
        ("SELECT 1; SELECT 2", True, False),
        ("UPDATE t SET a = 1", True, False),
    ],
)
def test_what_a_text_promises(sql: str, ordered: bool, determined: bool) -> None:
    found = order_of(sql.encode())
    assert (found.ordered, found.determined) == (ordered, determined)


def test_sums_are_not_determined_when_they_may_be_of_floats() -> None:
    assert order_of(b"SELECT sum(a) FROM t").sums
    assert not order_of(b"SELECT count(a), max(b) FROM t").sums
