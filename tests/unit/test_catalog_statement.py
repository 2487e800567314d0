"""The Analyst's memory: what is asked, when it is asked again, what is forgotten. The catalogue is a list of rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from distribcache.catalog.closure_sql import CLOSURE
from distribcache.catalog.statement import FOREVER, Analyst
from distribcache.query import WorkloadType

PUBLIC = ("pg_catalog", "public")
RELATION = {
    "schema": "public", "name": "t", "kind": "r", "persistence": "p", "method": "heap", "slot": True,
    "definition": None, "policies": None, "virtual": None, "columns": {"id": 23}, "exact": ["id"], "identity": ["id"],
}


class Catalog:
    """Knows the table t (oid 20000) and counts the questions; ``gate`` holds the answers back."""

    def __init__(self) -> None:
        self.questions = 0
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.visible = 100
        self.schema = 50
        self.on_question: Any = None

    async def ask(self, sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        if sql != CLOSURE:
            return []
        self.questions += 1
        if self.on_question:
            self.on_question()
        if self.gate:
            await self.gate.wait()
        if self.failure:
            raise self.failure
        names = json.loads(str(parameters[0]))
        rows: list[tuple[Any, ...]] = [("encoding", 6, '"UTF8"')]
        for number, (_, name) in enumerate(names["relations"], 1):
            if name == "t":
                rows += [
                    ("seed", 20000, json.dumps(["relation", number])), ("relation", 20000, json.dumps(RELATION)),
                ]
        return rows

    def analyst(self, **more: Any) -> Analyst:
        return Analyst(self.ask, lambda oid: oid - 19_000, lambda: self.visible, lambda: self.schema, **more)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


async def test_a_new_text_of_known_names_needs_no_question(catalog: Catalog) -> None:
    one = catalog.analyst()
    assert one.recall(b"SELECT a FROM t WHERE id = 1", PUBLIC) is None
    first = await one.analyse(b"SELECT a FROM t WHERE id = 1", PUBLIC)
    assert (first.refusal, first.pure, first.slots, first.tables) == (None, True, (), ("public.t",))
    assert [(tag.oid, tag.slot, tag.columns) for tag in first.rows] == [(20000, 1000, ("id",))]
    second = one.recall(b"SELECT b, c FROM t WHERE id = 2", PUBLIC)
    assert second is not None
    assert [tag.slot for tag in second.rows] == [1000]
    assert catalog.questions == 1
    assert one.recall(b"SELECT b, c FROM t WHERE id = 2", PUBLIC) is second


async def test_other_schemas_are_another_question(catalog: Catalog) -> None:
    one = catalog.analyst()
    await one.analyse(b"TABLE t", PUBLIC)
    assert one.recall(b"TABLE t", ("pg_catalog", "other")) is None
    await one.analyse(b"TABLE t", ("pg_catalog", "other"))
    assert catalog.questions == 2


async def test_a_schema_change_makes_the_analysis_anew(catalog: Catalog) -> None:
    one = catalog.analyst()
    assert (await one.analyse(b"TABLE t", PUBLIC)).analysis_lsn == 100
    catalog.schema = 101
    assert one.recall(b"TABLE t", PUBLIC) is None
    catalog.visible = 200
    assert (await one.analyse(b"TABLE t", PUBLIC)).analysis_lsn == 200
    assert catalog.questions == 2
    assert one.recall(b"TABLE t", PUBLIC) is not None


async def test_a_is_read_before_the_first_question(catalog: Catalog) -> None:
    """A change between the question and its answer must make the analysis stale, not fresh (coherence trap 4)."""
    one = catalog.analyst()

    def change() -> None:
        catalog.visible = 300
        catalog.schema = 250

    catalog.on_question = change
    assert (await one.analyse(b"TABLE t", PUBLIC)).analysis_lsn == 100
    assert one.recall(b"TABLE t", PUBLIC) is None


@pytest.mark.sabotage
async def test_a_read_after_the_question_would_look_fresh(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    one = catalog.analyst()
    catalog.on_question = lambda: (setattr(catalog, "visible", 300), setattr(catalog, "schema", 250))
    real = one._learn

    async def late(key: Any) -> Any:
        known = await real(key)
        known = type(known)(known.resolution, catalog.visible)
        one._names[key] = known
        return known

    monkeypatch.setattr(one, "_learn", late)
    await one.analyse(b"TABLE t", PUBLIC)
    assert one.recall(b"TABLE t", PUBLIC) is not None


async def test_equal_names_are_asked_once_at_a_time(catalog: Catalog) -> None:
    one = catalog.analyst()
    catalog.gate = asyncio.Event()
    tasks = [asyncio.create_task(one.analyse(b"SELECT %d FROM t" % number, PUBLIC)) for number in range(20)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    catalog.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert catalog.questions == 1
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(result.slots == (1000,) for result in results[1:] if not isinstance(result, BaseException))


async def test_a_failed_question_refuses_now_and_is_not_remembered(catalog: Catalog) -> None:
    one = catalog.analyst()
    catalog.failure = OSError("gone")
    failed = await one.analyse(b"TABLE t", PUBLIC)
    assert failed.refusal is not None
    assert failed.refusal.code == "analysis_failed"
    assert not failed.pure
    assert one.recall(b"TABLE t", PUBLIC) is None
    catalog.failure = None
    assert (await one.analyse(b"TABLE t", PUBLIC)).refusal is None


async def test_one_question_too_many_refuses_now(catalog: Catalog) -> None:
    one = catalog.analyst()
    catalog.gate = asyncio.Event()
    tasks = [asyncio.create_task(one.analyse(b"SELECT 1 FROM t%d" % number, PUBLIC)) for number in range(64)]
    await asyncio.sleep(0)
    refused = await one.analyse(b"TABLE t", PUBLIC)
    assert str(refused.refusal) == "analysis_failed: TooManyQuestionsError"
    catalog.gate.set()
    await asyncio.gather(*tasks)
    assert (await one.analyse(b"TABLE t", PUBLIC)).refusal is None


async def test_what_names_nothing_is_never_asked_about(catalog: Catalog) -> None:
    one = catalog.analyst()
    for text, pure in [(b"SELECT 1", True), (b"SHOW all", True), (b"", True), (b"BEGIN", False), (b"SELEC", False)]:
        analysis = one.recall(text, PUBLIC)
        assert analysis is not None
        assert analysis.pure is pure
        assert analysis.analysis_lsn == FOREVER
    assert catalog.questions == 0


async def test_the_memos_are_bounded(catalog: Catalog) -> None:
    one = catalog.analyst(cap=200_000)
    for number in range(500):
        await one.analyse(b"SELECT a%d FROM t%d" % (number, number), PUBLIC)
    assert one.bytes_used <= 200_000
    questions = catalog.questions
    await one.analyse(b"SELECT a499 FROM t499", PUBLIC)
    assert catalog.questions == questions
    await one.analyse(b"SELECT a0 FROM t0", PUBLIC)
    assert catalog.questions == questions + 1


async def test_workload_and_nocache_are_passed_on(catalog: Catalog) -> None:
    one = catalog.analyst(classify=lambda shape: WorkloadType.OLTP if shape.point_lookup else WorkloadType.OLAP)
    assert (await one.analyse(b"SELECT a FROM t WHERE id = 1", PUBLIC)).workload is WorkloadType.OLTP
    analysis = await one.analyse(b"SELECT a FROM t /* distribcache: nocache */", PUBLIC)
    assert analysis.workload is WorkloadType.OLAP
    assert analysis.nocache
    assert analysis.refusal is not None
    assert analysis.refusal.code == "nocache"


async def test_forget_starts_again(catalog: Catalog) -> None:
    one = catalog.analyst()
    await one.analyse(b"TABLE t", PUBLIC)
    one.forget()
    assert one.bytes_used == 0
    assert one.recall(b"TABLE t", PUBLIC) is None
