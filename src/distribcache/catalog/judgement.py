"""Verdicts on single objects of the catalogue: a relation, a function, a conversion.

Each verdict is a pair: why an answer that depends on the object is not cached (None: it may be), and whether reading
through it is still a *proven pure read*: nothing locks, writes or has an effect. What may be cached is pure.
"""

from __future__ import annotations

from distribcache.catalog.facts import BUILTIN, Answer, Function, Relation
from distribcache.sql.cacheability import Coercion, FunctionCall, Names, Refusal
from distribcache.sql.functions import (
    EXTENSION_DENIED,
    EXTENSION_STABLE,
    IMMUTABLE_DENIED,
    IMPURE,
    PLAIN_TYPES,
    STABLE,
    TIME,
)
from distribcache.sql.origin import POLYMORPHIC
from distribcache.sql.timewords import names_a_moment

__all__ = ["NAMED", "TIMETZ", "is_temporary", "judge_function", "judge_relation", "turns_with_the_clock"]

Verdict = tuple[Refusal | None, bool]

_FINE: Verdict = (None, True)
_CATALOGS = frozenset({"pg_catalog", "information_schema", "pg_toast"})
TIMETZ = 1266
# regproc, regprocedure, regclass, regtype.
NAMED = frozenset({24, 2202, 2205, 2206})
# date, time, timestamp, timestamptz, timetz: reading their text may ask the clock.
TIME_OF_DAY = 1083
_DATED = frozenset({1082, 1114, 1184})
_CLOCKED = frozenset({1082, 1083, 1114, 1184, TIMETZ})


def judge_relation(relation: Relation, *, matviews: bool) -> Verdict:
    """Whether changes of the relation reach us, and reading it is pure. Policies are judged apart."""
    name = str(relation)
    if relation.schema in _CATALOGS:
        return Refusal("catalog_relation", name), True
    if relation.persistence == "t":
        return Refusal("temporary_relation", name), True
    if relation.kind == "f":
        # Another server answers: what it does is not known.
        return Refusal("foreign_table", name), False
    if relation.kind == "S":
        return Refusal("sequence", name), True
    if relation.persistence == "u":
        return Refusal("unlogged_relation", name), True
    if relation.kind not in "rpvm":
        return Refusal("unknown_relation", name), False
    if relation.method not in (None, "heap"):
        return Refusal("table_access_method", f"{name} ({relation.method})"), False
    if relation.kind == "m" and not matviews:
        return Refusal("materialized_view", name), True
    return _FINE


def is_temporary(schema: str) -> bool:
    """Is it a session's own? Lasting objects may depend on its functions and types, whose changes nobody looks for."""
    return schema.startswith("pg_temp_")


def judge_function(function: Function) -> Verdict:
    """Whether the function's answer depends on nothing but its arguments, the key and what else was followed."""
    name = function.signature
    if function.builtin:
        return _judge_builtin(function)
    if function.volatility == "v":
        return Refusal("volatile_function", name), False
    if function.kind == "a":
        # Its parts are functions of their own in the closure. Its first state is text, read when it starts.
        if any(names_a_moment(start) for start in function.starts if start):
            return Refusal("time_literal", name), True
        return _FINE
    if function.body is not None and not function.settings:
        return _FINE
    if function.extension and not function.settings and function.name not in EXTENSION_DENIED:
        if function.language in ("c", "internal"):
            if function.volatility == "i" or function.name in EXTENSION_STABLE:
                return _FINE
            return Refusal("stable_function", name), False
        if function.source is not None and function.volatility == "i":
            return _FINE
    return Refusal("user_function", name), False


def _judge_builtin(function: Function) -> Verdict:
    # Not the signature: of several overloads it would show any one.
    name = f"{function.name}()"
    if function.volatility == "v":
        code = "time_dependent" if function.name in TIME else "volatile_function"
        return Refusal(code, name), False
    pure = function.name not in IMPURE and not (function.volatility == "s" and function.internal)
    if function.volatility == "i":
        refused = function.name in IMMUTABLE_DENIED
    else:
        refused = function.name not in STABLE
    if not refused:
        return None, pure
    code = "time_dependent" if function.name in TIME and function.volatility == "s" else "stable_function"
    return Refusal(code, name), pure


def turns_with_the_clock(names: Names, answer: Answer, columns: list[dict[str, int]]) -> Refusal | None:
    """Judge the conversions of one text; ``columns`` are those of the relations that it names."""
    if _zones_a_time(names, answer, columns):
        return Refusal("time_dependent", "time with time zone")
    for coercion in names.coercions:
        targets = answer.types_of.get(coercion.type, set())
        if any(_is_clocked(oid, answer, set()) for oid in targets) and not _is_plain(coercion, answer, columns):
            return Refusal("text_to_time", str(coercion.type))
    return None


def _zones_a_time(names: Names, answer: Answer, columns: list[dict[str, int]]) -> bool:
    """May a time without a date be put into a zone? It is given the offset that the zone has today."""
    for name in names.zoned:
        types = {table[name] for table in columns if name in table}
        unknown = not types or types - _DATED or _is_function(name, answer)
        if TIME_OF_DAY in types or (unknown and _knows_times(answer)):
            return True
    return False


def _is_function(name: str, answer: Answer) -> bool:
    """May ``t.name`` be ``name(t)``?"""
    return any(one.name == name and not one.builtin for one in answer.functions.values())


def _knows_times(answer: Answer) -> bool:
    made = any(one.name == "make_time" or one.returns == TIME_OF_DAY for one in answer.functions.values()
               if not one.builtin or one.name == "make_time")  # fmt: skip
    return made or TIME_OF_DAY in answer.types


def _is_clocked(oid: int, answer: Answer, seen: set[int]) -> bool:
    """Whether a date or time is in the type: itself, its base, its elements or its fields."""
    if oid in _CLOCKED:
        return True
    if oid in seen or oid not in answer.types:
        return False
    seen.add(oid)
    return any(_is_clocked(part, answer, seen) for part in answer.types[oid].parts)


def _is_plain(coercion: Coercion, answer: Answer, columns: list[dict[str, int]]) -> bool:
    if coercion.opaque:
        return False
    for name, must_exist in coercion.columns:
        types = [table[name] for table in columns if name in table]
        if (must_exist and not types) or not PLAIN_TYPES.issuperset(types) or _is_function(name, answer):
            return False
    for call in coercion.functions:
        if not _returns_plain(call, answer):
            return False
    for call in coercion.scans:
        if not all(answer.functions[oid].scalar for oid in answer.functions_of.get(call, ())):
            return False
    # A user's own max() may return anything; an extension's takes and returns its own type.
    return not any(
        call.name in POLYMORPHIC and any(oid >= BUILTIN and not answer.functions[oid].extension for oid in found)
        for call, found in answer.functions_of.items()
    )


def _returns_plain(call: FunctionCall, answer: Answer) -> bool:
    found = answer.functions_of.get(call)
    return bool(found) and all(answer.functions[oid].returns in PLAIN_TYPES for oid in found or ())
