"""From names to a verdict: what a read depends on, and whether it may be cached.

The question goes to the server (``closure_sql``), through a side connection of the same database that is not the
client's. Its answer may hold definitions (views, function bodies …) whose text mentions built-in functions that the
server records nowhere; these are looked up in further questions, until nothing new is mentioned.

Rules:
1. Names mean what they mean to the session: its effective schemas are an argument. Sessions with a temporary schema are
   not asked about.
2. Deny by default: an unresolved name, an unreadable definition, an unknown kind of object refuses.
3. A refused read may still be *pure*; what does not resolve is not.
4. A materialized view is a leaf like a table where every REFRESH is announced (``announcing``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distribcache.catalog import bodies
from distribcache.catalog.announcing import announces
from distribcache.catalog.bodies import Body, qualified
from distribcache.catalog.closure_sql import CLOSURE
from distribcache.catalog.facts import BUILTIN, Answer, Function, Relation, Type, question
from distribcache.catalog.judgement import (
    NAMED,
    TIMETZ,
    is_temporary,
    judge_function,
    judge_relation,
    turns_with_the_clock,
)
from distribcache.catalog.meaning import NO_NAMES, Meaning
from distribcache.catalog.publications import UNPUBLISHED_SQL
from distribcache.catalog.rows import Pinnable, pinnable
from distribcache.sql.cacheability import FunctionCall, Name, Names, Refusal
from distribcache.sql.functions import SESSION_TYPES
from distribcache.sql.grammar import HARMLESS_TYPES

__all__ = ["Ask", "Resolution", "closure", "names_found", "resolve"]

Ask = Callable[[str, Sequence[object]], Awaitable[list[tuple[Any, ...]]]]
"""Asks a question with psycopg's ``%s`` placeholders on the cache's own connection (``search_path = pg_catalog``)."""

_SETTING = "current_setting"
# Definitions that mention functions that have definitions …
_ROUNDS = 8
# The closure's estimated cost is far above its real one: compiling it takes seconds, planning longer than running.
_CHEAPLY = (
    "SELECT pg_catalog.set_config('jit', 'off', false), "
    "pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false)"
)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What names depend on. ``roots``: relations to watch, by oid; ``members``: all relations of the closure.

    ``rows``: the relations, by the names asked for, whose rows a text may pin. ``settings``: what policies read and the
    key has to hold. ``meaning``: what the names stand for.
    """

    refusal: Refusal | None
    pure: bool
    roots: tuple[tuple[int, str], ...] = ()
    members: tuple[tuple[int, str], ...] = ()
    rows: Mapping[Name, Pinnable] = field(default_factory=dict)
    settings: frozenset[str] = frozenset()
    meaning: Meaning = NO_NAMES


async def resolve(ask: Ask, schemas: Sequence[str], names: Names, *, published: bool = False) -> Resolution:
    """Resolve ``names`` as a session with these effective ``schemas`` would. Raises what ``ask`` raises.

    ``published``: the change stream shows only what the publications name.
    """
    path = [*schemas, "pg_catalog"] if "pg_catalog" not in schemas else list(schemas)
    if "pg_temp" in {name.schema for name in names.relations}:
        return Resolution(Refusal("temporary_relation", "pg_temp"), False)
    answer = Answer()
    texts: list[Body] = []
    asked = _with_calls_as_types(names)
    done: set[tuple[str, int]] = set()
    meaning: Meaning | None = None
    for _ in range(_ROUNDS):
        await _ask_closure(ask, path, asked, answer)
        meaning = meaning or answer.meaning(asked)  # what definitions name is bound to objects already
        fresh = list(_definitions(answer, done))
        texts += fresh
        functions = tuple({call for body in fresh for call in body.asked.functions} - answer.functions_of.keys())
        types = {name for body in fresh for name in _coerced(body)} - answer.types_of.keys()
        if not functions and not types:
            matviews = any(one.kind == "m" for one in answer.relations.values()) and await announces(ask)
            silent = await _unpublished(ask, answer) if published else None
            judged = _judge(names, answer, texts, path, matviews=matviews, silent=silent)
            return replace(judged, meaning=meaning)
        asked = Names(functions=functions, types=tuple(types))
    return Resolution(Refusal("user_function", "nested definitions"), False)


async def _unpublished(ask: Ask, answer: Answer) -> Refusal | None:
    """Whether updates of all that is read, children too, are published (``publications``, rule 1)."""
    for kind, name in await ask(UNPUBLISHED_SQL, ([*answer.relations, *answer.members],)):
        return Refusal("materialized_view" if kind == "m" else "no_replica_identity", name)
    return None


async def closure(ask: Ask, path: Sequence[str], names: Names, answer: Answer) -> Names:
    """Add what ``names`` stand for, and everything that depends on, to ``answer``; nothing printed is read.

    Returns what was asked.
    """
    asked = _with_calls_as_types(names)
    await _ask_closure(ask, path, asked, answer)
    return asked


async def _ask_closure(ask: Ask, path: Sequence[str], names: Names, answer: Answer) -> None:
    await ask(_CHEAPLY, ())
    answer.add(names, await ask(CLOSURE, (question(path, names),)))


def _with_calls_as_types(names: Names) -> Names:
    """A call with one argument may be a cast; types that the grammar itself names need no asking."""
    types = {name for name in names.types if name.schema != "pg_catalog" or name.name not in HARMLESS_TYPES}
    types.update(coercion.type for coercion in names.coercions)
    types.update(Name(call.schema, call.name) for call in names.functions if call.arguments == 1)
    return names._replace(types=tuple(sorted(types, key=repr)))


def _coerced(body: Body) -> Iterator[Name]:
    for coercion in body.names.coercions:
        yield coercion.type if body.session else qualified(coercion.type)


def _definitions(answer: Answer, done: set[tuple[str, int]]) -> Iterator[Body]:
    """The definitions of objects not seen before."""
    for relation in answer.relations.values():
        if relation.oid < BUILTIN or ("r", relation.oid) in done:
            continue
        done.add(("r", relation.oid))
        if relation.kind == "v":
            # A view dropped meanwhile has no text any more: unreadable.
            yield bodies.view(relation.definition or "-", f"view {relation}")
        for text in relation.virtual:
            yield bodies.expression(text, f"a virtual column of {relation}")
        for name, text in relation.policies or ():
            yield bodies.expression(text or "-", _policy(name, relation))
    for function in answer.functions.values():
        if function.builtin or ("f", function.oid) in done:
            continue
        done.add(("f", function.oid))
        if function.defaults is not None:
            yield bodies.expression(function.defaults, f"a default of {function.signature}")
        if function.body is not None:
            yield bodies.function(function.body, function.signature, function.arguments)
        elif function.source is not None and function.extension and function.volatility == "i":
            yield bodies.source(function.source, function.signature, function.arguments)
    for kind in answer.types.values():
        if kind.oid < BUILTIN or ("t", kind.oid) in done:
            continue
        done.add(("t", kind.oid))
        for text in kind.checks:
            yield bodies.expression(text, f"type {kind.schema}.{kind.name}")


def _policy(name: str, relation: Relation) -> str:
    return f"policy {name} of {relation}"


def _judge(
    names: Names, answer: Answer, texts: list[Body], path: Sequence[str], *, matviews: bool, silent: Refusal | None
) -> Resolution:
    settings: set[str] = set()
    verdicts = [
        *names_found(names, answer),
        *((judge_relation(relation, matviews=matviews)) for relation in answer.relations.values()),
        (silent, True),
        (Refusal("foreign_table", f"anything beside {answer.elsewhere}") if answer.elsewhere else None, True),
        *_policies(answer, texts, settings),
        *_functions(names, answer, texts),
        *_texts(answer, texts),
        *_types(names, answer),
        *_temporary(answer),
        (turns_with_the_clock(names, answer, _columns(names, answer)), True),
    ]
    refusal = next((reason for reason, _ in verdicts if reason is not None), None)
    roots = sorted((oid, str(one)) for oid, one in answer.relations.items() if one.slot and one.kind in "rpm")
    members = sorted((answer.members | {oid: str(one) for oid, one in answer.relations.items()}).items())
    # What is read behind the text (by a view, a policy, a function) is read whole.
    hidden = any(body.names.relations for body in texts)
    rows = pinnable(answer, path) if refusal is None and not hidden else {}
    pure = all(pure for _, pure in verdicts)
    return Resolution(refusal, pure, tuple(roots), tuple(members), rows, frozenset(settings))


def names_found(names: Names, answer: Answer) -> Iterator[tuple[Refusal | None, bool]]:
    """Rule 2: what the statement names must exist."""
    for name in names.relations:
        if name not in answer.relation_of:
            yield Refusal("unknown_relation", str(name)), False
    for call in names.functions:
        if not answer.functions_of.get(call) and not call.keyword and not _is_cast(call, answer):
            yield Refusal("unknown_function", str(call)), False
    for name in names.types:
        if name in answer.types_of and not answer.types_of[name] and not _is_called(name, names):
            yield Refusal("unknown_type", str(name)), False
    asked = [part or "" for name in (*names.relations, *names.types) for part in name]
    asked += [f"{call.schema or ''}{call.name}" for call in names.functions]
    if answer.encoding != "UTF8" and not all(part.isascii() for part in asked):
        yield Refusal("encoding", answer.encoding), False


def _is_cast(call: FunctionCall, answer: Answer) -> bool:
    return call.arguments == 1 and bool(answer.types_of.get(Name(call.schema, call.name)))


def _is_called(name: Name, names: Names) -> bool:
    return any(call[:3] == (name.schema, name.name, 1) for call in names.functions)


def _functions(names: Names, answer: Answer, texts: list[Body]) -> Iterator[tuple[Refusal | None, bool]]:
    by_function = {support.function: support for support in answer.supports.values()}
    policies = {_policy(name, one) for one in answer.relations.values() for name, _ in one.policies or ()}
    parts = [names, *(body.names for body in texts if body.where not in policies)]
    mentioned = {call.name for part in parts for call in part.functions}
    for function in answer.functions.values():
        if function.builtin and function.name == _SETTING and _SETTING not in mentioned:
            continue  # only policies call it: judged there
        reason, pure = judge_function(function)
        support = by_function.get(function.oid)
        if reason is not None and support is not None:
            code = "user_operator" if support.kind == "operator" else "user_cast"
            reason = Refusal(code, f"{support.name} runs {function.signature}")
        yield reason, pure


def _texts(answer: Answer, texts: list[Body]) -> Iterator[tuple[Refusal | None, bool]]:
    for body in texts:
        yield body.refusal, not body.effects
        for name in body.names.relations:
            # No dependency on these is recorded.
            if name.schema in (None, "pg_catalog"):
                yield Refusal("catalog_relation", f"{name} in {body.where}"), True
        for call in body.names.functions:
            if not answer.functions_of.get(call) and not call.keyword and not _is_cast(call, answer):
                yield Refusal("unknown_function", f"{call} in {body.where}"), False
        if body.names.coercions or body.names.zoned:
            names = _meant(body)
            reason = turns_with_the_clock(names, answer, _columns(names, answer))
            if reason is not None:
                yield Refusal(reason.code, f"{reason.detail} in {body.where}"), True


def _meant(body: Body) -> Names:
    """The names of a printed text, with those of conversions made explicit."""
    if body.session:
        return body.names
    coercions = tuple(
        one._replace(
            type=qualified(one.type),
            functions=tuple(_in_catalog(call) for call in one.functions),
            scans=tuple(_in_catalog(call) for call in one.scans),
        )
        for one in body.names.coercions
    )
    return body.names._replace(coercions=coercions)


def _in_catalog(call: FunctionCall) -> FunctionCall:
    return call if call.schema else call._replace(schema="pg_catalog")


def _columns(names: Names, answer: Answer) -> list[dict[str, int]]:
    """The columns of the relations that one text names."""
    by_name = {(one.schema, one.name): one for one in answer.relations.values()}
    found = []
    for name in names.relations:
        oid = answer.relation_of.get(name)
        relation = answer.relations[oid] if oid is not None else by_name.get((name.schema or "pg_catalog", name.name))
        if relation is not None:
            found.append(relation.columns)
    return found


def _policies(answer: Answer, texts: list[Body], settings: set[str]) -> Iterator[tuple[Refusal | None, bool]]:
    """A policy may look at the row, at who asks, at settings that can be keyed (added to ``settings``) and at other
    relations, which are in the closure. At anything else, it refuses.
    """
    by_where = {body.where: body for body in texts}
    for relation in answer.relations.values():
        for name, text in relation.policies or ():
            body = by_where.get(_policy(name, relation))
            if body is None:
                # A policy of the server's own tables.
                continue
            names = body.names
            called = [answer.functions[oid] for call in names.functions for oid in answer.functions_of.get(call, ())]
            reads = bodies.settings(text) if any(one.name == _SETTING for one in called) else frozenset()
            settings |= reads or set()
            stable = any(one.volatility != "i" and one.name != _SETTING for one in called)
            foreign = body.foreign or any(map(_is_foreign, (*names.types, *names.operators)))
            converts = turns_with_the_clock(_meant(body), answer, [relation.columns, *_columns(names, answer)])
            if body.refusal or foreign or converts or stable or reads is None:
                pure = not body.effects and not foreign and all(judge_function(one)[1] for one in called)
                yield Refusal("row_security", body.where), pure


def _is_foreign(name: Name) -> bool:
    return name.schema not in (None, "pg_catalog")


def _temporary(answer: Answer) -> Iterator[tuple[Refusal | None, bool]]:
    found: list[Function | Type] = [*answer.functions.values(), *answer.types.values()]
    for one in found:
        if is_temporary(one.schema):
            yield Refusal("temporary_relation", f"{one.schema}.{one.name}"), True


def _types(names: Names, answer: Answer) -> Iterator[tuple[Refusal | None, bool]]:
    if TIMETZ in answer.types:
        # Its text is read and its zone applied with the date of today.
        yield Refusal("time_dependent", "time with time zone"), True
    for one in answer.types.values():
        if one.oid in NAMED:
            # Shown by name, also that of an index, a sequence or a temporary object, whose changes nobody looks for.
            yield Refusal("reg_type", one.name), True
    for support in answer.supports.values():
        if support.clocked:
            yield Refusal("text_to_time", f"cast {support.name}"), True
    for one in answer.types.values():
        if one.oid >= BUILTIN and one.kind == "b" and one.name in SESSION_TYPES:
            yield Refusal("user_type", f"{one.schema}.{one.name}"), True
    for name in names.types:
        if name.name in HARMLESS_TYPES:
            for oid in answer.types_of.get(name, ()):
                if oid >= BUILTIN and answer.types[oid].kind != "b":
                    yield Refusal("user_type", str(name)), True
