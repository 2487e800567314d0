"""The catalogue's answer as facts: what the names stand for, and what those objects are.

Objects below oid 16384 came with the server (built-in). A ``slot`` relation is read by name somewhere in the closure;
the others are children reached only through a parent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distribcache.catalog.meaning import Candidate, Meaning, meaning_of
from distribcache.sql.cacheability import FunctionCall, Name, Names

__all__ = ["BUILTIN", "Answer", "Function", "Relation", "Support", "Type", "question"]

BUILTIN = 16384
"""The first oid of objects made after initdb."""


# Types whose values are names when they are read, but for regclass, which is refused.
_FINDING = frozenset({24, 2202, 2203, 2204, 2206, 3734, 3769, 4089, 4096, 4191})


@dataclass(frozen=True, slots=True)
class Relation:
    """``exact``: stored columns whose equal values are the same bytes, as far as their collation decides it.

    ``identity``: the columns of the replica identity; None when the stream shows all old values.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    method: str | None
    slot: bool
    definition: str | None
    policies: tuple[tuple[str, str], ...] | None
    virtual: tuple[str, ...]
    columns: dict[str, int]
    exact: frozenset[str]
    identity: frozenset[str] | None

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Function:
    """``scalar``: in FROM it brings exactly one column, named like itself. ``internal``: takes unchecked raw input.

    ``body`` is visible (BEGIN ATOMIC, RETURN); ``source`` is the text of any other SQL function; ``defaults`` are the
    expressions for arguments left out; ``arguments`` are the names of those that go in; ``starts`` are an aggregate's
    first states, as text. ``finds``: a constant may be the name of an object (a text search configuration, say), which
    is looked up when the statement is parsed.
    """

    oid: int
    schema: str
    name: str
    signature: str
    volatility: str
    language: str
    kind: str
    settings: bool
    extension: bool
    body: str | None
    source: str | None
    defaults: str | None
    arguments: frozenset[str]
    starts: tuple[str | None, ...]
    returns: int
    scalar: bool
    internal: bool
    finds: bool = False

    @property
    def builtin(self) -> bool:
        return self.oid < BUILTIN


@dataclass(frozen=True, slots=True)
class Type:
    oid: int
    schema: str
    name: str
    kind: str
    parts: tuple[int, ...]
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Support:
    """An operator or a cast, and the function that it runs (0: none).

    ``operands`` of an operator are types; ``strict``: it rejects NULL. ``clocked``: a cast that reads text as a date or
    time and is applied unasked.
    """

    kind: str
    name: str
    function: int
    operands: tuple[int, ...] = ()
    strict: bool = False
    clocked: bool = False


@dataclass(slots=True)
class Answer:
    """All that was learned about one resolution, over one or more questions."""

    relations: dict[int, Relation] = field(default_factory=dict)
    functions: dict[int, Function] = field(default_factory=dict)
    types: dict[int, Type] = field(default_factory=dict)
    supports: dict[tuple[str, int], Support] = field(default_factory=dict)
    # Relations that are there only because of a parent.
    members: dict[int, str] = field(default_factory=dict)
    # What the asked names stand for.
    relation_of: dict[Name, int] = field(default_factory=dict)
    functions_of: dict[FunctionCall, set[int]] = field(default_factory=dict)
    types_of: dict[Name, set[int]] = field(default_factory=dict)
    seeds: set[Candidate] = field(default_factory=set)
    """Over all questions."""
    encoding: str = "UTF8"
    # An extension that keeps the rows of ordinary tables on other servers.
    elsewhere: str = ""

    def add(self, asked: Names, rows: Iterable[Sequence[Any]]) -> None:
        """Take the rows that answer ``asked``. Raises ValueError, KeyError or TypeError when they are not readable."""
        for call in asked.functions:
            self.functions_of.setdefault(call, set())
        for name in asked.types:
            self.types_of.setdefault(name, set())
        for kind, oid, text in rows:
            facts = json.loads(text)
            match kind:
                case "seed":
                    self._seed(asked, facts[0], facts[1], oid, *facts[2:])
                case "member":
                    self.members[oid] = facts
                case "relation":
                    self._relation(oid, facts)
                case "function":
                    facts["starts"] = tuple(facts["starts"] or ())
                    facts["arguments"] = frozenset(facts["arguments"] or ())
                    self.functions[oid] = Function(oid=oid, **facts)
                case "type":
                    facts["parts"], facts["checks"] = tuple(facts["parts"]), tuple(facts["checks"] or ())
                    self.types[oid] = Type(oid=oid, **facts)
                case "encoding":
                    self.encoding = facts
                case "elsewhere":
                    self.elsewhere = facts
                case _:
                    operands = tuple(facts.get("operands", ()))
                    flags = bool(facts.get("strict")), bool(facts.get("clocked"))
                    self.supports[kind, oid] = Support(kind, facts["name"], facts["function"], operands, *flags)

    def _seed(self, asked: Names, what: str, number: int, oid: int, *versions: int) -> None:
        if what not in ("relation", "operator"):
            self.seeds.add((what, number, sum(one << 32 * place for place, one in enumerate((oid, *versions)))))
        match what:
            case "relation":
                self.relation_of[asked.relations[number - 1]] = oid
            case "function":
                self.functions_of[asked.functions[number - 1]].add(oid)
            case "type":
                self.types_of[asked.types[number - 1]].add(oid)

    def meaning(self, asked: Names) -> Meaning:
        """What ``asked`` means, if it was the only question so far."""
        casts = {("cast", 0, oid) for kind, oid in self.supports if kind == "cast"}
        finds = self._finds(asked) or not _FINDING.isdisjoint(self.types)
        fixed = [("collation", number) for number in range(1, len(asked.collations) + 1)]
        fixed += [("configuration", number) for number in range(1, len(asked.configurations) + 1)]
        alike = [
            (place, 1 + asked.types.index(Name(*call[:2])))
            for place, call in enumerate(asked.functions, 1)
            if call.arguments == 1 and Name(*call[:2]) in asked.types
        ]
        return meaning_of(self.seeds | casts, alike, fixed, builtin=BUILTIN, vague=finds or asked.vague)

    def _finds(self, asked: Names) -> bool:
        """May a constant name something that is looked up where nobody follows it?"""
        functions = self.functions
        if any(functions[one.function].finds for one in self.supports.values() if one.function in functions):
            return True
        return any(
            functions[oid].finds and not (call in asked.configured and functions[oid].builtin)
            for call, oids in self.functions_of.items() for oid in oids
        )  # fmt: skip

    def _relation(self, oid: int, facts: dict[str, Any]) -> None:
        policies = facts["policies"]
        facts["policies"] = None if policies is None else tuple((name, text) for name, text in policies)
        facts["virtual"] = tuple(facts["virtual"] or ())
        facts["columns"] = facts["columns"] or {}
        facts["exact"] = frozenset(facts["exact"] or ())
        facts["identity"] = None if facts["identity"] is None else frozenset(facts["identity"])
        known = self.relations.get(oid)
        if known is None or not known.slot:
            self.relations[oid] = Relation(oid=oid, **facts)


def question(schemas: Sequence[str], names: Names) -> str:
    """The parameter of the closure question: the names as JSON."""
    return json.dumps(
        {
            "schemas": list(schemas),
            "relations": names.relations,
            "functions": [call[:3] for call in names.functions],
            "operators": names.operators,
            "types": names.types,
            "attributes": names.attributes,
            "collations": names.collations,
            "configurations": names.configurations,
        }
    )
