"""Definitions that the server prints: views, policies, checks, virtual columns, function bodies.

The server records no dependency on built-in objects, so ``now()`` in a view is only in its text. Each text is read by
the same walk as a query. Rules:

1. In printed text every name but a built-in one is qualified (``search_path = pg_catalog``): an unqualified function is
   built-in, a qualified one is in the recorded dependencies, with its exact oid.
2. An argument of a function is not a parameter of the client: nobody looks at it for time words. It may have the name
   of a column.
3. A text that cannot be read refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from distribcache.sql.cacheability import FunctionCall, Name, Names, Refusal
from distribcache.sql.parse import ParseError, expression_tree, tree_of
from distribcache.sql.relations import Walk

__all__ = ["Body", "expression", "function", "settings", "source", "view"]

_ATOMIC = re.compile(r"\s*BEGIN\s+ATOMIC\b(.*)\bEND\s*\Z", re.IGNORECASE | re.DOTALL)
# A setting of a user's own; names of the server's have no dot.
_CUSTOM = re.compile(r"(?!distribcache\.)[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)+")
_RETURN = re.compile(r"\s*RETURN\b(.*)\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Body:
    """What one definition mentions. ``effects``: it locks, writes or was not understood, so it is no pure read."""

    where: str
    names: Names
    refusal: Refusal | None
    effects: bool = False
    # Its names are the session's to resolve (an extension's SQL function).
    session: bool = False
    # It calls functions that are not built-in.
    foreign: bool = False

    @property
    def asked(self) -> Names:
        """What has to be looked up beyond the recorded dependencies."""
        return Names(functions=self.names.functions)


def view(definition: str, where: str) -> Body:
    try:
        return _body(tree_of(definition), where)
    except (ParseError, RecursionError):
        return _unreadable(where)


def expression(text: str, where: str) -> Body:
    try:
        return _body([expression_tree(text)], where)
    except (ParseError, RecursionError):
        return _unreadable(where)


def function(text: str, where: str, arguments: frozenset[str]) -> Body:
    """A body as ``pg_get_function_sqlbody`` prints it; ``arguments``: their names."""
    try:
        if found := _ATOMIC.match(text):
            return _body(tree_of(found[1]), where, arguments)
        if found := _RETURN.match(text):
            return _body([expression_tree(found[1])], where, arguments)
    except (ParseError, RecursionError):
        pass
    return _unreadable(where)


def source(text: str, where: str, arguments: frozenset[str]) -> Body:
    """The source of an SQL function: its names mean what they mean in the session."""
    try:
        body = _body(tree_of(text), where, arguments, session=True)
    except (ParseError, RecursionError):
        return _unreadable(where)
    if body.refusal is None and (body.names.relations or body.names.attributes):
        return Body(where, body.names, Refusal("user_function", where), body.effects, session=True)
    return body


def settings(text: str) -> frozenset[str] | None:
    """The settings that a printed expression reads by ``current_setting``; None if one can not be told or keyed."""
    try:
        found = [_setting(call["args"]) for call in _calls(expression_tree(text), "current_setting")]
    except (ParseError, RecursionError, KeyError, IndexError, TypeError):
        return None
    names = frozenset(name.lower() for name in found)
    return names if all(_CUSTOM.fullmatch(name) for name in names) else None


def _calls(node: object, name: str) -> Iterator[dict[str, Any]]:
    """All calls of a function of this name, of whatever schema, in a tree."""
    if isinstance(node, list):
        for each in node:
            yield from _calls(each, name)
    elif isinstance(node, dict):
        for kind, each in node.items():
            if kind == "FuncCall" and each["funcname"][-1]["String"]["sval"] == name:
                yield each
            yield from _calls(each, name)


def _setting(arguments: list[Any]) -> str:
    """The literal in ``current_setting('app.tenant'::text, …)``. Raises KeyError or TypeError where it is none."""
    first = arguments[0]
    constant = first["TypeCast"]["arg"] if "TypeCast" in first else first
    value = constant["A_Const"]["sval"]["sval"]
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _unreadable(where: str) -> Body:
    return Body(where, Names(), Refusal("unsupported_syntax", f"in {where}"), effects=True)


def _body(
    nodes: list[dict[str, Any]], where: str, arguments: frozenset[str] | None = None, *, session: bool = False
) -> Body:
    walks: list[Walk] = []
    for node in nodes:
        walk = Walk(arguments)
        try:
            walk.query(node)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            return _unreadable(where)
        walks.append(walk)
    refusal: Refusal | None = None
    effects = not walks
    for walk in walks:
        if walk.locks or walk.writes or walk.creates or walk.unknown:
            effects = True
            refusal = refusal or walk.refusal or Refusal("locking_read" if walk.locks else "data_modifying_cte")
        refusal = refusal or walk.refusal
    found = [walk.names() for walk in walks]
    names = Names(
        relations=_all(names.relations for names in found),
        functions=_all(names.functions for names in found) if session else _builtin(found),
        operators=_all(names.operators for names in found),
        types=_all(names.types for names in found),
        attributes=_all(names.attributes for names in found) if session else (),
        coercions=_all(names.coercions for names in found),
        zoned=_all(names.zoned for names in found),
    )
    if refusal is not None:
        refusal = Refusal(refusal.code, f"{refusal.detail} in {where}".strip())
    foreign = any(call.schema not in (None, "pg_catalog") for part in found for call in part.functions)
    return Body(where, names, refusal, effects, session, foreign)


def _all(parts: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for part in parts for item in part))


def _builtin(found: list[Names]) -> tuple[FunctionCall, ...]:
    return tuple(
        dict.fromkeys(
            call._replace(schema="pg_catalog")
            for names in found
            for call in names.functions
            if call.schema in (None, "pg_catalog")
        )
    )


def qualified(name: Name) -> Name:
    """A name in printed text: unqualified means built-in."""
    return name if name.schema else Name("pg_catalog", name.name)
