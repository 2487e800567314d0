"""What a fetch needs of a driver, whichever it is.

A ``Session`` is one fetch's view of a connection or of a pool. Its methods that talk to the server return what the
driver returns: coroutines from an asynchronous one, results from a blocking one (``steps`` makes one story of both).

Rules:
1. What is analysed is what is sent: ``question`` translates a driver's placeholders into the server's once, and ``run``
   sends that text.
2. ``representation`` names how values come out as Python objects. Sessions with equal ones may share answers.
3. ``probe`` finds out how arguments are sent, where a driver does not tell; ``ask`` may do that on its way. Only behind
   it is ``bound`` called.
4. ``run(alone=True)`` is a transaction of its own, also where the driver would have begun one for the application.
   ``alone=False`` does exactly what the driver does. On a connection that others use too it may find a transaction of
   theirs: then it is part of that, and from then on ``why_not`` says so.
"""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from distribcache.catalog.resolve import Ask
from distribcache.coherence.tags import Bound
from distribcache.errors import ClientError

__all__ = ["PassedByError", "Question", "Result", "Session", "named_once", "only_positional"]


@dataclass(frozen=True, slots=True)
class Question:
    """A text with ``$1`` …, and the values for it."""

    text: str
    args: tuple[Any, ...]


@dataclass(slots=True)
class Result:
    """``marks``: how each type was read, for sessions that have to compare that. ``oids``: the types of the columns, as
    far as the driver tells.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marks: Any = None
    oids: Sequence[int] = ()


class PassedByError(Exception):
    """Nothing was sent; ``pure``: the statement is a proven pure read; ``analysed``: it is known to be none."""

    def __init__(self, *, pure: bool, analysed: bool) -> None:
        super().__init__("passed by")
        self.pure = pure
        self.analysed = analysed


class Session(Protocol):
    """See the module."""

    blocking: bool
    pool: Any
    """None for a single connection."""
    uniform: bool
    """May a pool's connections be believed to be alike? Not where something runs at each check-out: it may make the
    connection somebody's."""
    sent: bool
    """Has a driver been asked for something that may fail for reasons of its own?"""
    passes: bool
    """Is a statement that memory cannot answer sent here? Else ``PassedByError`` is raised, and its owner sends it."""

    @property
    def pid(self) -> int: ...
    @property
    def body(self) -> Any:
        """The connection itself, for as long as it lives."""
        ...
    def question(self, sql: str, args: tuple[Any, ...]) -> Question: ...
    def why_not(self) -> str: ...
    def open(self) -> Any: ...
    def close(self, *, failed: bool) -> Any: ...
    def ask(self, sql: str, *, probe: bool) -> Any: ...
    def probe(self) -> Any: ...
    def run(self, question: Question, *, alone: bool, anew: bool = False) -> Any: ...
    def catalogue(self, work: Callable[[Ask], Coroutine[Any, Any, Any]]) -> Any: ...
    def representation(self, args: tuple[Any, ...]) -> tuple[str, bool]: ...
    def fits(self, marks: Any) -> bool: ...
    def bound(self, question: Question) -> Bound: ...


CALM = "SET LOCAL search_path = pg_catalog; SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_generic_plan"
"""How questions to the catalogue are asked on an application's connection, in a transaction of their own."""


def as_sent(sql: str) -> str | None:
    """A question with psycopg's placeholders, as the server reads it; None for settings, which ``CALM`` has made."""
    if "set_config" in sql and "FROM" not in sql:
        return None
    places = count(1)
    text = re.sub("%[s%]", lambda found: "%" if found[0] == "%%" else f"${next(places)}", sql)
    return text.replace("$1::jsonb", "$1::text::jsonb")  # a codec of the application's may write jsonb in its own way


_numbers = count(1)
_MOST = 256
_named: OrderedDict[int, tuple[Any, str]] = OrderedDict()
_weakly: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def named_once(thing: Any) -> str:
    """A name for an object that no other one has had in this process."""
    try:
        name = _weakly.get(thing)
        if name is None:
            name = _weakly[thing] = f"#{next(_numbers)}"
        return name
    except TypeError:  # asyncpg's pool: held, so that its id cannot become another's
        found = _named.get(id(thing))
        if found is None:
            found = _named[id(thing)] = thing, f"#{next(_numbers)}"
            if len(_named) > _MOST:
                _named.popitem(last=False)
        return found[1]


def only_positional(sql: str, args: tuple[Any, ...]) -> Question:
    """For drivers that write ``$1`` themselves."""
    if len(args) == 1 and isinstance(args[0], Mapping) and "$1" not in sql:
        raise ClientError(
            "parameters by name", where="fetch", hint="write $1 in the text and give the values one by one"
        )
    return Question(sql, args)
