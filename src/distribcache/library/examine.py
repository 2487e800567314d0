"""What a statement is, asked on the application's own connection, where no database is followed.

Without ``upstream.url`` there is no connection of the cache's own. But what may not be cached at all (volatile
functions, the time of day, a policy that reads a setting which is not in the key) must be known there as well. So the
same question to the catalogue goes through the connection at hand, in a short read-only transaction with a
``search_path`` of its own. The verdict is remembered for a minute by server, database and effective schemas; only time
ends what is stored by it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from distribcache.catalog.resolve import Resolution, resolve
from distribcache.catalog.statement import Analysis
from distribcache.clock import now_ns
from distribcache.library.drivers.base import Session
from distribcache.library.scope import Known
from distribcache.library.steps import Steps
from distribcache.query import WorkloadType
from distribcache.sql.cacheability import Kind, Parsed, Refusal
from distribcache.sql.parse import read
from distribcache.workload.classifier import classify

__all__ = ["Examiner"]

_MOST: Final = 2048
_MINUTE_NS: Final = 60_000_000_000
_LONGEST: Final = 64 * 1024
_ALWAYS: Final = 1
"""Stands where positions of the log stand elsewhere; see ``coherence.ttl``."""


class Examiner:
    """Verdicts by text. Of several threads that ask for the same one, each may ask the catalogue."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], tuple[int, Analysis]] = OrderedDict()

    def examine(self, session: Session, text: str, known: Known) -> Steps[Analysis]:
        """The verdict; what the catalogue cannot be asked about is refused. The session must be open and idle."""
        key = (known.server, known.database, known.scope.schemas, text)
        found = self._known.get(key)
        if found is not None and now_ns() - found[0] < _MINUTE_NS:
            return found[1]
        parsed = Parsed((), "too long") if len(text) > _LONGEST else read(text.encode())
        resolution = Resolution(None, False)
        if not parsed.error and len(parsed.statements) == 1 and parsed.statements[0].is_pure_candidate:
            schemas, names = known.scope.schemas, parsed.statements[0].names
            try:
                resolution = yield session.catalogue(lambda ask: resolve(ask, schemas, names))
            except Exception as error:  # noqa: BLE001 - if the connection is broken, the statement will say so
                return Analysis(parsed, Refusal("analysis_failed", type(error).__name__), False, 0)
        analysis = _combine(parsed, resolution)
        self._known[key] = now_ns(), analysis
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return analysis


def _combine(parsed: Parsed, resolution: Resolution) -> Analysis:
    if parsed.error:
        return Analysis(parsed, Refusal("not_understood", parsed.error), False, 0)
    if len(parsed.statements) != 1:
        return Analysis(parsed, Refusal("several_statements"), False, 0)
    statement = parsed.statements[0]
    refusal = statement.refusal or resolution.refusal
    if refusal is None and not resolution.roots:
        refusal = Refusal("no_relation")
    workload = classify(statement.shape) if statement.kind is Kind.READ else WorkloadType.MIXED
    return Analysis(
        parsed, refusal, resolution.pure, _ALWAYS, (), tuple(name for _, name in resolution.roots), workload,
        statement.nocache, (), resolution.settings,
    )  # fmt: skip
