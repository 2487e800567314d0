"""What a read through memory is asked with, and what is decided about it: the nouns of ``fetching``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import EnumMeta
from typing import Any, Final

from distribcache.catalog.statement import Analysis
from distribcache.config import Settings
from distribcache.config.units import parse_duration
from distribcache.entry import Entry
from distribcache.errors import ClientError, SerializationError
from distribcache.library.drivers.base import Question, Result
from distribcache.library.rows import Row, row_class
from distribcache.library.scope import Known
from distribcache.library.values import key_of
from distribcache.query import Consistency, WorkloadType
from distribcache.sql.cacheability import dangerous_parameter
from distribcache.store import Place

__all__ = ["Plan", "Wish", "may_be_read", "request_of", "rows_of", "ttl_of", "workload_of"]

_READ: Final = re.compile(r"[\s(;]*(?:select|with|values|table|--|/\*)", re.IGNORECASE)
"""What cannot be a read needs no further question."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one read asks for; None leaves it to the session and the configuration."""

    consistency: Consistency | None = None
    max_staleness_ns: int | None = None
    ttl: float | None = None
    workload: WorkloadType | None = None

    @classmethod
    def of(
        cls, consistency: Consistency | str | None, max_staleness: float | str | None, ttl: float | str | None,
        workload: WorkloadType | str | None,
    ) -> Wish:  # fmt: skip
        """From what people write. Raises ClientError."""
        if consistency is None and max_staleness is None and ttl is None and workload is None:
            return _NOTHING
        return cls(
            _wished("consistency", Consistency, consistency),
            None if max_staleness is None else int(_wished("max_staleness", parse_duration, max_staleness) * 1e9),
            _wished("ttl", parse_duration, ttl),
            _wished("workload", WorkloadType, workload),
        )


def _wished(name: str, read: Callable[[Any], Any], value: object) -> Any:
    try:
        return None if value is None else read(value)
    except ValueError as error:
        message, _, remedy = str(error).partition("; ")
        if isinstance(read, EnumMeta):
            known: Iterable[Any] = read
            names = [repr(each.value) for each in known]
            message, remedy = "not accepted", f"it should be {', '.join(names[:-1])} or {names[-1]}"
        raise ClientError(f"{value!r}: {message}", where=f"fetch: {name}", hint=remedy) from None


_NOTHING = Wish()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about a miss: serve ``entry``; or fill, with everything in place; or the reason why not."""

    reason: str = ""
    refused: bool = False
    analysis: Analysis | None = None
    entry: Entry | None = None
    tier: str = "L1"
    slots: tuple[int, ...] = ()
    fill: int = 0
    epoch: int = 0
    place: Place | None = None
    missing: frozenset[str] = frozenset()


def may_be_read(text: str) -> bool:
    """Is it worth a further question?"""
    return _READ.match(text) is not None


def rows_of(result: Result) -> list[Row]:
    return list(map(row_class(tuple(result.columns)), result.rows))


def workload_of(analysis: Analysis, known: Known, wish: Wish) -> WorkloadType:
    return wish.workload or known.scope.workload or analysis.workload


def ttl_of(settings: Settings, workload: WorkloadType, wish: Wish) -> float:
    """Seconds."""
    return wish.ttl if wish.ttl is not None else settings.ttl.of(workload)


def request_of(question: Question) -> tuple[bytes, str]:
    """The statement as part of a key, or why it has none."""
    if any(map(_names_a_moment, question.args)):
        return b"", "time_parameter"
    try:
        return key_of([question.text, list(question.args)]), ""
    except SerializationError:
        return b"", "unknown_parameter"


def _names_a_moment(value: Any) -> bool:
    """May PostgreSQL read it as a moment such as ``today``? Deny what is nested in ways that we do not know."""
    if isinstance(value, str):
        return dangerous_parameter(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return dangerous_parameter(value)
    if isinstance(value, Mapping):
        return any(_names_a_moment(each) for pair in value.items() for each in pair)
    return isinstance(value, Iterable) and any(map(_names_a_moment, value))
