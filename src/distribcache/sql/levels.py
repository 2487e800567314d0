"""The SELECT levels of a read, and the conditions by which each level narrows what it reads.

A level is one SELECT with a FROM: the query itself, a subquery, a WITH query, an arm of a set operation. Its facts say
what it reads from and which AND-ed equalities filter which part of that; ``predicates`` makes pins of them, when the
columns of the relations are known.

Rules:
1. A condition is ``column = value``, ``column = column``, ``column IN (values)``, ``column = ANY (array)`` or
   ``column = ANY (ARRAY[constants])`` with the plain ``=``. A comparison of rows, ``(a, b) = (1, 2)`` or
   ``(a, b) IN ((1, 2), (3, 4))``, is one for each place; so is an OR for each column that has values in all of its
   parts. Everything else filters as well, but says nothing here.
2. A filter acts where it stands: WHERE on all that its level reads, the ON of an inner join on both sides, that of an
   outer join on the nullable side only, that of a full join on nothing. All conditions reject NULL, so a row without a
   partner does not pass them either.
3. Names in an ON mean what stands below its join, never its neighbours in FROM: those belong to the outer query.
4. What hides or renames columns (an alias of a join, aliases of columns) makes them unreadable here.
5. A constant stands for one of the same place in all texts that share a folded form. Where that cannot be told, it is
   no value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distribcache.sql.cacheability import Name
from distribcache.sql.fold import places
from distribcache.sql.relations import Scope, Walk

__all__ = ["NO_LEVELS", "Condition", "Filter", "Item", "Level", "Levels", "Path", "Value", "levels_of"]

Node = dict[str, Any]
Path = tuple[str, ...]
"""A reference to a column as written: ``c``, ``t.c`` or ``s.t.c``; empty when there is none."""

# Longer lists are more rows than an entry may depend on one by one.
_MOST_VALUES = 32
# Measured: a text at all these limits takes 20 ms more.
_MOST_LEVELS = 32
_MOST_ITEMS = 16
_MOST_CONDITIONS = 64

_CASTS = frozenset("int2 int4 int8 text varchar uuid bool date".split())
_INTEGER = re.compile(rb"-?[ \t\n\r\f\v]*[0-9]+(?![\w.\x80-\xff])")


class Value(NamedTuple):
    """Where a value comes from: ``$param``, the ``literal``-th replaced literal of the text at hand, or ``const``.

    ``quoted``: a string literal, which takes the type of what it is compared with. ``cast``: the built-in type it is
    cast to (``int4``, ``uuid`` …), or nothing. ``array``: any element of it; the cast is that of the elements.
    """

    param: int = 0
    literal: int = -1
    const: str = ""
    quoted: bool = False
    cast: str = ""
    array: bool = False


class Condition(NamedTuple):
    """``column`` equals one of ``values``, or the column ``other``."""

    column: Path
    values: tuple[Value, ...] = ()
    other: Path = ()


class Filter(NamedTuple):
    """Conditions applied together to items ``first`` to ``end``; their names mean items ``start`` to ``stop``."""

    conditions: tuple[Condition, ...]
    first: int
    end: int
    start: int
    stop: int


class Item(NamedTuple):
    """One thing read from, in the order of the text. ``relation`` is None for a subquery, function or WITH name.

    ``qualifier``: what its columns are qualified with, empty when that is hidden; ``aliased``: not the relation's own
    name. ``readable``: its columns have their own names here. ``pinnable``: no full join above it.
    """

    relation: Name | None
    qualifier: str
    aliased: bool = False
    readable: bool = False
    pinnable: bool = False


class Level(NamedTuple):
    items: tuple[Item, ...]
    filters: tuple[Filter, ...] = ()


class Levels(NamedTuple):
    """``elsewhere``: the parameters that stand outside the conditions too, so that their types may come from there."""

    levels: tuple[Level, ...] = ()
    elsewhere: frozenset[int] = frozenset()


NO_LEVELS = Levels()
_NONE: frozenset[int] = frozenset()


def levels_of(walk: Walk, text: bytes) -> Levels:
    """The levels of the statement that ``walk`` went over; none when something in it makes every pin doubtful."""
    if walk.recursive or len(walk.selects) > _MOST_LEVELS:
        return NO_LEVELS
    constants = _Constants(text)
    readings = [_Reading(scope, constants) for _, scope in walk.selects]
    levels = tuple([reading.level(select) for reading, (select, _) in zip(readings, walk.selects, strict=True)])
    if sum([reading.mentions for reading in readings]) != walk.mentions:
        # A relation is read from a place that was not looked at.
        return NO_LEVELS
    return Levels(levels, _elsewhere(walk.parameters, levels))


def _elsewhere(parameters: list[int], levels: tuple[Level, ...]) -> frozenset[int]:
    if not parameters:
        return _NONE
    inside: list[int] = []
    for level in levels:
        for each in level.filters:
            for condition in each.conditions:
                inside += [value.param for value in condition.values if value.param]
    return frozenset(Counter(parameters) - Counter(inside)) if len(inside) < len(parameters) else _NONE


class _Constants:
    """What the constants of one text stand for."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._places: Mapping[int, int] | None = None
        self._asked = False

    def value(self, node: Node, cast: str) -> Value | None:
        location = node.get("location", -1)
        if "boolval" in node:
            return Value(const="true" if node["boolval"].get("boolval") else "false", cast=cast)
        quoted = "sval" in node
        if location < 0 or not (quoted or "ival" in node or "fval" in node):
            return None
        if not self._asked:
            self._asked = True
            self._places = places(self._text)
        if self._places is not None:
            place = self._places.get(location)
            if place is None or (self._text[location] == 0x27) is not quoted:
                return None
            if place >= 0:
                return Value(literal=place, quoted=quoted, cast=cast)
        if quoted:
            return Value(const=node["sval"].get("sval", ""), quoted=True, cast=cast)
        if _INTEGER.match(self._text, location) is None:
            return None
        number = str(node["ival"].get("ival", 0)) if "ival" in node else str(node["fval"]["fval"])
        # A longer number is numeric, and then so may be the parameters that it is listed with.
        return Value(const=number, cast=cast) if len(number) <= 20 and -(2**63) <= int(number) < 2**63 else None


class _Reading:
    """Collects one level from its tree."""

    def __init__(self, scope: Scope, constants: _Constants) -> None:
        self._scope = scope
        self._constants = constants
        self._items: list[Item] = []
        self._filters: list[Filter] = []
        self._conditions = 0
        self.mentions = 0

    def level(self, select: Node) -> Level:
        for source in select["fromClause"]:
            self._source(source)
        end = len(self._items)
        if "whereClause" in select:
            self._filter(select["whereClause"], 0, end, 0, end)
        if end > _MOST_ITEMS or self._conditions > _MOST_CONDITIONS:
            self._filters.clear()
        return Level(tuple(self._items), tuple(self._filters))

    def _source(self, node: Node) -> None:
        ((kind, fields),) = node.items()
        if kind == "RangeVar":
            self._items.append(self._relation(fields))
        elif kind == "JoinExpr":
            self._join(fields)
        else:
            self._items.append(Item(None, fields.get("alias", {}).get("aliasname", "")))

    def _relation(self, fields: Node) -> Item:
        schema, name = fields.get("schemaname"), fields["relname"]
        alias = fields.get("alias")
        qualifier = name if alias is None else alias["aliasname"]
        if schema is None and name in self._scope:
            return Item(None, qualifier)
        self.mentions += 1
        readable = alias is None or "colnames" not in alias
        return Item(Name(schema, name), qualifier, alias is not None, readable, True)

    def _join(self, fields: Node) -> None:
        items = self._items
        first = len(items)
        self._source(fields["larg"])
        middle = len(items)
        self._source(fields["rarg"])
        end = len(items)
        kind = fields["jointype"]
        side = _filtered(kind, first, middle, end)
        if side is None:
            items[first:] = [item._replace(pinnable=False) for item in items[first:]]
        elif "quals" in fields:
            self._filter(fields["quals"], *side, first, end)
        if "alias" in fields:
            items[first:] = [item._replace(qualifier="", readable=False) for item in items[first:]]

    def _filter(self, node: Node, first: int, end: int, start: int, stop: int) -> None:
        conditions = self._all_of(node)
        if conditions:
            self._conditions += len(conditions)
            self._filters.append(Filter(tuple(conditions), first, end, start, stop))

    def _all_of(self, node: Node) -> list[Condition]:
        """Conditions that are true where ``node`` is."""
        found: list[Condition] = []
        for each in _conjuncts(node):
            if "BoolExpr" in each:
                found += self._any_of(each["BoolExpr"]["args"])
            else:
                found += [one for place in _by_place(each) if (one := self._condition(place)) is not None]
        return found

    def _any_of(self, nodes: list[Node]) -> list[Condition]:
        """The same of alternatives: a column that has values in each of them has one of all these."""
        if len(nodes) > _MOST_VALUES:
            return []
        first, *others = [{one.column: one.values for one in self._all_of(node) if one.values} for node in nodes]
        found = []
        for column, values in first.items():
            given = [*values, *(value for other in others for value in other.get(column, ()))]
            if len(given) <= _MOST_VALUES and all(column in other for other in others):
                found.append(Condition(column, tuple(given)))
        return found

    def _condition(self, node: Node) -> Condition | None:
        expression = node.get("A_Expr")
        if expression is None or not _is_equals(expression["name"]):
            return None
        kind, left, right = expression["kind"], expression["lexpr"], expression["rexpr"]
        column = _path(left)
        if kind == "AEXPR_OP":
            other = _path(right)
            if column and other:
                return Condition(column, other=other)
            return self._equals(column, [right]) if column else self._equals(other, [left])
        if kind == "AEXPR_IN":
            return self._equals(column, right.get("List", {}).get("items", ()))
        if kind == "AEXPR_OP_ANY":
            if "A_ArrayExpr" not in right:
                array = self._array(right) if column else None
                return None if array is None else Condition(column, (array,))
            elements = right["A_ArrayExpr"].get("elements", ())
            return None if any("A_Const" not in each for each in elements) else self._equals(column, elements)
        return None

    def _equals(self, column: Path, nodes: list[Node]) -> Condition | None:
        if not column or not 0 < len(nodes) <= _MOST_VALUES:
            return None
        values = []
        for node in nodes:
            value = self._value(node)
            if value is None:
                return None
            values.append(value)
        return Condition(column, tuple(values))

    def _array(self, node: Node) -> Value | None:
        """A parameter, or a string that is an array."""
        name = node["TypeCast"]["typeName"] if "TypeCast" in node else {}
        if name:
            if len(name.get("arrayBounds", ())) != 1:
                return None
            name = {key: value for key, value in name.items() if key != "arrayBounds"}
            node = {"TypeCast": {**node["TypeCast"], "typeName": name}}
        value = self._value(node)
        return value._replace(array=True) if value is not None and (value.param or value.quoted) else None

    def _value(self, node: Node) -> Value | None:
        cast = ""
        if "TypeCast" in node:
            cast = _cast(node["TypeCast"]["typeName"])
            node = node["TypeCast"]["arg"]
            if not cast:
                return None
        if "ParamRef" in node:
            number = node["ParamRef"].get("number", 0)
            return Value(param=number, cast=cast) if number > 0 else None
        return self._constants.value(node["A_Const"], cast) if "A_Const" in node else None


def _filtered(kind: str, first: int, middle: int, end: int) -> tuple[int, int] | None:
    """The items whose rows a join's ON filters; None when no filter below or at this join is to be trusted."""
    match kind:
        case "JOIN_INNER":
            return first, end
        case "JOIN_LEFT":
            return middle, end
        case "JOIN_RIGHT":
            return first, middle
        case _:
            return None


def _conjuncts(node: Node) -> Iterable[Node]:
    expression = node.get("BoolExpr")
    if expression is None:
        return (node,)
    if expression["boolop"] != "AND_EXPR":
        return (node,) if expression["boolop"] == "OR_EXPR" else ()
    return [each for argument in expression["args"] for each in _conjuncts(argument)]


def _by_place(node: Node) -> Iterable[Node]:
    """What a comparison of rows says of each of their places."""
    expression = node.get("A_Expr", {})
    kind, left = expression.get("kind"), _row(expression.get("lexpr", {}))
    if not left or kind not in ("AEXPR_OP", "AEXPR_IN") or not _is_equals(expression["name"]):
        return (node,)
    listed = kind == "AEXPR_IN"
    right = expression["rexpr"]
    rows = [_row(each) for each in right.get("List", {}).get("items", ())] if listed else [_row(right)]
    if not rows or any(len(row) != len(left) for row in rows):
        return (node,)
    return [
        {"A_Expr": {**expression, "lexpr": one, "rexpr": {"List": {"items": others}} if listed else others[0]}}
        for one, *others in zip(left, *rows, strict=True)
    ]


def _row(node: Node) -> list[Node]:
    """The places of a row; none where one may stand for several (``t.*``)."""
    places: list[Node] = node.get("RowExpr", {}).get("args", [])
    several = any("A_Indirection" in each or ("ColumnRef" in each and not _path(each)) for each in places)
    return [] if several else places


def _is_equals(path: list[Node]) -> bool:
    if path[-1]["String"]["sval"] != "=":
        return False
    return len(path) == 1 or (len(path) == 2 and path[0]["String"]["sval"] == "pg_catalog")


def _path(node: Node) -> Path:
    reference = node.get("ColumnRef")
    if reference is None:
        return ()
    fields = reference["fields"]
    if len(fields) > 3 or "String" not in fields[-1]:
        # ``t.*``
        return ()
    return tuple([field["String"]["sval"] for field in fields])


def _cast(type_name: Node) -> str:
    """The plain built-in type that is named, or nothing."""
    names = [part["String"]["sval"] for part in type_name.get("names", ())]
    if len(names) > 2 or (len(names) == 2 and names[0] != "pg_catalog"):
        return ""
    if any(key in type_name for key in ("typmods", "arrayBounds", "setof", "pct_type")):
        return ""
    return names[-1] if names and names[-1] in _CASTS else ""
