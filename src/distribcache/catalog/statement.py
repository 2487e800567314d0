"""What is known about a text: parsed once, resolved once per set of names, forgotten when the schema changes.

Two memos stand behind ``recall``, which never waits:

* by exact text (and effective schemas): the finished ``Analysis``;
* by *names*: texts that differ in literals only ask the catalogue nothing new, so a new text of a known shape costs one
  parse and one look-up.

Rules:
1. ``analysis_lsn`` is the visible watermark, read before the first question to the catalogue (coherence rule R2). An
   analysis older than the schema slot is not used; it is made again (coherence trap 4).
2. Equal names are asked about once at a time, however many texts wait for them.
3. A question that fails refuses this statement now and is remembered nowhere. So does one too many: questions share
   their connection with the probes that keep hits fresh.
4. Both memos are bounded in bytes by an estimate of what they hold; the longest unused goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from distribcache.catalog.definers import Definers
from distribcache.catalog.meaning import NO_NAMES, Meaning
from distribcache.catalog.resolve import Ask, Resolution, resolve
from distribcache.catalog.rows import RowTag, row_tags
from distribcache.catalog.writes import Writes
from distribcache.query import WorkloadType
from distribcache.sql.cacheability import Kind, Name, Names, Parsed, Refusal, Shape, Statement
from distribcache.sql.fold import fold
from distribcache.sql.parse import MAX_TEXT, read
from distribcache.sql.predicates import occurrences

__all__ = ["FOREVER", "Analysis", "Analyst"]

Schemas = tuple[str, ...]

FOREVER = 2**64 - 1
"""``analysis_lsn`` of a verdict that no catalogue change can alter."""

_NOTHING = Names()
# Measured: what one remembered text holds besides itself, and one set of names.
_TEXT_COST = 1_500
_NAMES_COST = 3_000
_MOST_QUESTIONS = 64


@dataclass(frozen=True, slots=True)
class Analysis:
    """The verdict on one text for sessions with the same effective schemas.

    ``pure``: a proven pure read, cacheable or not. ``slots``: ledger slots of the relations to watch, sorted, without
    repetitions; empty when refused. ``tables``: their qualified names. ``analysis_lsn`` is A of coherence rule R1.
    ``rows``: what to watch of those relations that have no slot in ``slots``. ``settings``: what the session's scope
    has to hold, because a policy reads it. ``meaning``: what the names of the only statement stand for.
    """

    parsed: Parsed
    refusal: Refusal | None
    pure: bool
    analysis_lsn: int
    slots: tuple[int, ...] = ()
    tables: tuple[str, ...] = ()
    workload: WorkloadType = WorkloadType.MIXED
    nocache: bool = False
    rows: tuple[RowTag, ...] = ()
    settings: frozenset[str] = frozenset()
    meaning: Meaning = NO_NAMES


@dataclass(slots=True)
class _Text:
    parsed: Parsed
    cost: int
    analyses: dict[Schemas, Analysis] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Known:
    resolution: Resolution
    lsn: int


class TooManyQuestionsError(Exception):
    """The catalogue is asked about enough already."""


class Analyst:
    """Analyses the texts of one database.

    ``ask`` goes to a side connection of that database; ``slot_of`` maps a relation's oid to its ledger slot;
    ``visible`` gives V and ``schema_lsn`` the schema slot, both as LSNs; ``cap`` bounds the memos in bytes.
    ``published`` tells whether the change stream shows only what the publications name.
    """

    def __init__(
        self,
        ask: Ask,
        slot_of: Callable[[int], int],
        visible: Callable[[], int],
        schema_lsn: Callable[[], int],
        cap: int = 32 * 1024 * 1024,
        *,
        classify: Callable[[Shape], WorkloadType] = lambda shape: WorkloadType.MIXED,
        published: Callable[[], bool] = lambda: False,
    ) -> None:
        self.writes = Writes(ask, visible, schema_lsn)
        self.definers = Definers(ask, schema_lsn)
        self._ask = ask
        self._slot_of = slot_of
        self._visible = visible
        self._schema_lsn = schema_lsn
        self._classify = classify
        self._published = published
        self._texts: OrderedDict[bytes, _Text] = OrderedDict()
        self._names: OrderedDict[tuple[Schemas, Names], _Known] = OrderedDict()
        self._asking: dict[tuple[Schemas, Names], asyncio.Future[_Known]] = {}
        self._last: tuple[bytes, _Text] | None = None
        """The text of the last look-up: one statement asks several times."""
        self._long: tuple[bytes, _Text] | None = None
        """The last text that is too long to be remembered."""
        self._text_bytes = 0
        self._text_cap = cap * 3 // 4
        self._names_most = max(16, cap // 4 // _NAMES_COST)

    @property
    def bytes_used(self) -> int:
        """An estimate of what the memos hold."""
        return self._text_bytes + len(self._names) * _NAMES_COST

    def parsed(self, text: bytes) -> Parsed:
        """The facts about a text, remembered by exact text."""
        return self._text(text).parsed

    async def read_long(self, text: bytes) -> None:
        """Read a long text away from the event loop; ``parsed`` knows it afterwards."""
        if len(text) > MAX_TEXT and (self._long is None or self._long[0] != text):
            self._long = text, _Text(await asyncio.to_thread(read, text), 0)

    def recall(self, text: bytes, schemas: Schemas) -> Analysis | None:
        """The analysis if it can be given at once, None if the catalogue has to be asked. Never waits."""
        known = self._text(text)
        analysis = known.analyses.get(schemas)
        if analysis is not None and analysis.analysis_lsn >= self._schema_lsn():
            return analysis
        resolutions: list[_Known] = []
        for statement in known.parsed.statements:
            found = self._recall_names(statement, schemas)
            if found is None:
                return None
            resolutions.append(found)
        return self._conclude(known, schemas, resolutions)

    async def analyse(self, text: bytes, schemas: Schemas) -> Analysis:
        """The analysis, asking the catalogue where needed. Never raises for what the catalogue or the text say."""
        analysis = self.recall(text, schemas)
        if analysis is not None:
            return analysis
        known = self._text(text)
        resolutions: list[_Known] = []
        for statement in known.parsed.statements:
            found = self._recall_names(statement, schemas)
            if found is None:
                try:
                    found = await self._single_flight(statement.names, schemas)
                except Exception as problem:  # noqa: BLE001 - a cache that cannot ask is no error of the client
                    return Analysis(known.parsed, Refusal("analysis_failed", type(problem).__name__), False, 0)
            resolutions.append(found)
        return self._conclude(known, schemas, resolutions)

    def meaning(self, text: bytes, schemas: Schemas) -> Meaning | None:
        """What the names of a text of one statement were last found to mean; None if that was never asked. Never waits.

        It may be older than the schema: what was there then was there later, or has been dropped since.
        """
        parsed = self._text(text).parsed
        if parsed.error or len(parsed.statements) != 1:
            return None
        statement = parsed.statements[0]
        if not statement.is_pure_candidate:
            return self.writes.meaning(statement, schemas)
        known = _TRIVIAL if statement.names == _NOTHING else self._names.get((schemas, statement.names))
        return None if known is None else known.resolution.meaning

    def forget(self) -> None:
        """Drop everything, such as when the database is another one now."""
        self._texts.clear()
        self._names.clear()
        self._last = self._long = None
        self._text_bytes = 0
        self.writes.forget()
        self.definers.forget()

    # -- names --------------------------------------------------------------------------------------------------------

    def _recall_names(self, statement: Statement, schemas: Schemas) -> _Known | None:
        if not statement.is_pure_candidate:
            return _OPAQUE
        if statement.names == _NOTHING:
            return _TRIVIAL
        key = (schemas, statement.names)
        known = self._names.get(key)
        if known is None:
            return None
        if known.lsn < self._schema_lsn():
            del self._names[key]
            return None
        self._names.move_to_end(key)
        return known

    async def _single_flight(self, names: Names, schemas: Schemas) -> _Known:
        key = (schemas, names)
        running = self._asking.get(key)
        if running is None:
            if len(self._asking) >= _MOST_QUESTIONS:
                raise TooManyQuestionsError
            running = asyncio.ensure_future(self._learn(key))
            self._asking[key] = running
            running.add_done_callback(lambda done: self._finished(key, done))
        # One waiter's cancellation is not the others'.
        return await asyncio.shield(running)

    async def _learn(self, key: tuple[Schemas, Names]) -> _Known:
        # Rule 1: before the first question.
        lsn = self._visible()
        self.definers.learn()  # whoever reads will write
        resolution = await resolve(self._ask, key[0], key[1], published=self._published())
        known = _Known(resolution, lsn)
        self._names[key] = known
        while len(self._names) > self._names_most:
            self._names.popitem(last=False)
        return known

    def _finished(self, key: tuple[Schemas, Names], done: asyncio.Future[_Known]) -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            # Retrieved here in case every waiter has left.
            done.exception()

    # -- texts --------------------------------------------------------------------------------------------------------

    def _text(self, text: bytes) -> _Text:
        if self._last is not None and self._last[0] is text:
            return self._last[1]
        known = self._texts.get(text)
        if known is None:
            known = self._remember(text)
        else:
            self._texts.move_to_end(text)
        self._last = text, known
        return known

    def _remember(self, text: bytes) -> _Text:
        if len(text) > MAX_TEXT:
            if self._long is None or self._long[0] != text:
                self._long = text, _Text(read(text), 0)
            return self._long[1]
        # Texts that differ in plain literals only are kept once, under the form that they share.
        shared = fold(text) or text
        kept = self._texts.get(shared)
        if kept is not None:
            self._texts.move_to_end(shared)
            return kept
        known = _Text(read(text), _TEXT_COST + 4 * len(text))
        self._texts[shared] = known
        self._text_bytes += known.cost
        while self._text_bytes > self._text_cap and len(self._texts) > 1:
            _, oldest = self._texts.popitem(last=False)
            self._text_bytes -= oldest.cost
        return known

    def _conclude(self, known: _Text, schemas: Schemas, resolutions: list[_Known]) -> Analysis:
        analysis = self._combine(known.parsed, resolutions)
        if analysis.refusal is None or analysis.refusal.code != "analysis_failed":
            if len(known.analyses) >= 8:
                # Many search paths over one text: start again rather than grow.
                known.analyses.clear()
            known.analyses[schemas] = analysis
        return analysis

    def _combine(self, parsed: Parsed, resolutions: list[_Known]) -> Analysis:
        if parsed.error:
            return Analysis(parsed, Refusal("not_understood", parsed.error), False, FOREVER)
        pure = all(known.resolution.pure for known in resolutions)
        lsn = min(known.lsn for known in resolutions)
        nocache = any(statement.nocache for statement in parsed.statements)
        if len(parsed.statements) > 1:
            return Analysis(parsed, Refusal("several_statements"), pure, lsn, nocache=nocache)
        statement, resolution = parsed.statements[0], resolutions[0].resolution
        meaning = resolution.meaning
        refusal = statement.refusal or resolution.refusal
        if not resolution.roots and (refusal is None or (statement.refusal is None and not statement.relations)):
            # A view over nothing, or functions that read nothing.
            refusal = Refusal("no_relation")
        tables = tuple(name for _, name in resolution.roots)
        workload = self._classify(statement.shape) if statement.kind is Kind.READ else WorkloadType.MIXED
        if refusal is not None:
            return Analysis(parsed, refusal, pure, lsn, (), tables, workload, nocache, meaning=meaning)
        by_oid = {oid: self._slot_of(oid) for oid, _ in resolution.roots}
        rows = self._rows(statement, resolution, by_oid)
        slots = tuple(sorted({slot for oid, slot in by_oid.items() if not any(row.oid == oid for row in rows)}))
        return Analysis(parsed, None, pure, lsn, slots, tables, workload, nocache, rows, resolution.settings, meaning)

    def _rows(self, statement: Statement, resolution: Resolution, slots: Mapping[int, int]) -> tuple[RowTag, ...]:
        relations = resolution.rows
        if statement.levels is None or not relations:
            return ()

        def columns_of(name: Name) -> frozenset[str] | None:
            return relations[name].columns if name in relations else None

        pinned = occurrences(statement.levels, columns_of)
        if pinned is None or {each.relation for each in pinned.occurrences} != set(statement.relations):
            return ()
        return row_tags(pinned, relations, slots)


_OPAQUE = _Known(Resolution(None, False), FOREVER)
_TRIVIAL = _Known(Resolution(None, True), FOREVER)
"""Reads that name nothing, and SHOW."""
