"""What a walk has found, before it is sorted into facts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from distribcache.sql.cacheability import Coercion, FunctionCall, Name, Names, Refusal
from distribcache.sql.origin import Definitions, origin_of, zoned_of

__all__ = ["Gathered"]

Node = dict[str, Any]

# AT TIME ZONE is the first. Both have a form for time with time zone, to which a plain time is converted unasked.
_ZONING = frozenset({"timezone", "timestamptz"})


# With so many arguments the first may be a configuration.
_CONFIGURED = {
    "to_tsvector": 2, "to_tsquery": 2, "plainto_tsquery": 2, "phraseto_tsquery": 2, "websearch_to_tsquery": 2,
    "ts_headline": 3, "json_to_tsvector": 3, "jsonb_to_tsvector": 3,
}  # fmt: skip
# What the server reads as it stands: folded, not quoted, not a number.
_PLAINLY = re.compile(r"(?:[a-z_][a-z0-9_]*\.)?[a-z_][a-z0-9_]*")
_LONGEST = 63


class Gathered:
    """What a walk over one statement has found; ``names()`` gives the sorted facts.

    ``locks``, ``writes``, ``creates``: a locking clause, a data-modifying part, SELECT INTO. ``unknown``: something was
    not understood, so the query is not even a proven pure read.
    """

    def __init__(self, arguments: frozenset[str] | None = None) -> None:
        # In the body of a function the names of its arguments: $1 is not a value that is looked at for time words.
        self.arguments = arguments
        self.relations: set[Name] = set()
        self.functions: set[FunctionCall] = set()
        self.operators: set[Name] = set()
        self.types: set[Name] = set()
        self.attributes: set[str] = set()
        self.refusal: Refusal | None = None
        self.locks = False
        self.writes = False
        self.creates = False
        self.unknown = False
        self.params = False
        # For the levels: each SELECT that reads from something, how often a relation is named, and each $n.
        self.selects: list[tuple[Node, frozenset[str]]] = []
        self.mentions = 0
        self.parameters: list[int] = []
        self.recursive = False
        self.collations: set[Name] = set()
        self.configurations: set[Name] = set()
        self.configured: set[FunctionCall] = set()
        self.unconfigured: set[FunctionCall] = set()
        self.vague = False
        self.aggregates = self.windows = self.joins = 0
        self.group_by = self.vector = False
        self.casts: list[tuple[Name, Node | None]] = []
        self.zoned: set[str] = set()
        self.top: Node = {}

    def names(self) -> Names:
        """Everything the server must be asked about, in a stable order."""
        coercions: set[Coercion] = set()
        zoned: set[str] = set()
        if self.casts or self.zoned:
            definitions = Definitions(self.top, self.arguments)
            zoned = {"" if definitions.get(name) else name for name in self.zoned}
            for target, value in self.casts:
                coercion = origin_of(target, value, definitions)
                if coercion is not None:
                    coercions.add(coercion)
        return Names(
            _ordered(self.relations), _ordered(self.functions), _ordered(self.operators), _ordered(self.types),
            tuple(sorted(self.attributes)), _ordered(coercions), tuple(sorted(zoned)),
            _ordered(self.collations), _ordered(self.configurations), _ordered(self.configured - self.unconfigured),
            self.vague,
        )

    def note_zone(self, call: FunctionCall, arguments: list[Node]) -> None:
        """A time without a date in a zone has the offset of today: what is put into a zone has to be known."""
        if call.name in _ZONING and arguments:
            name = zoned_of(arguments[-1])
            if name is not None:
                self.zoned.add(name)

    def note_collation(self, path: list[str]) -> None:
        """What COLLATE names."""
        if len(path) > 2 or not all(map(str.isascii, path)):
            self.vague = True
        else:
            self.collations.add(Name(path[0] if len(path) > 1 else None, path[-1]))

    def note_configuration(self, call: FunctionCall, arguments: list[Node]) -> None:
        """What a text search function is told to use, by name. A parameter or a column is looked up when it is read."""
        if len(arguments) < _CONFIGURED.get(call.name, 1 + len(arguments)):
            return
        first = arguments[0]
        if "ParamRef" in first or "ColumnRef" in first:
            self.configured.add(call)
            return
        text = first.get("A_Const", {}).get("sval", {}).get("sval")
        if text is None or len(text) > _LONGEST or _PLAINLY.fullmatch(text) is None:
            self.unconfigured.add(call)
            return
        schema, _, name = text.rpartition(".")
        self.configurations.add(Name(schema or None, name))
        self.configured.add(call)

    def refuse(self, code: str, detail: str = "") -> None:
        """Keep the first refusal: it is the one shown."""
        if self.refusal is None:
            self.refusal = Refusal(code, detail)


def _ordered(items: Iterable[Any]) -> tuple[Any, ...]:
    # repr, because None does not compare with str.
    found = tuple(items)
    return found if len(found) < 2 else tuple(sorted(found, key=repr))
