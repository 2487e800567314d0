"""What a text pins: for each place where it reads a relation, the columns that must equal known values.

A *pin* is the promise that rows of the relation without one of its values, at this place, do not matter to the answer:
the answer is the same over all rows and over those with such a value. So an answer can change only by a row that has
one of the values before or after its change.

Why it holds. Take a row r of relation x, and the conditions that act on x: those of WHERE, and those of every join
above x which filters the side that x is on. A combined row that contains r passes the joins only if it satisfies their
conditions, and WHERE likewise. If no combined row with r satisfies them all, leaving r out takes nothing from the
answer. It adds nothing either: a partner that is then without a match gets NULL for the whole side of x; conditions
that name a column of that side fail on NULL, and the rest does not depend on r. So whatever follows from these
conditions by equality (``x.a = y.b AND y.b = 1``) pins x. Nothing above a level (HAVING, LIMIT, the outer query) is
used, nor anything below it.

Rules:
1. A full join's items are pinned by nothing.
2. A name pins only if it can mean nothing but a column of one base relation of its level: unqualified names only among
   relations whose columns are all known, in one of them only (USING merges columns). A name that is not found belongs
   to an outer query and pins nothing.
3. A pin that follows through other columns holds only if equality means the same for all of them: ``alike`` names
   them, and they must be of the pinned column's family and compare by bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from distribcache.sql.cacheability import Name
from distribcache.sql.levels import Condition, Filter, Item, Level, Levels, Path, Value

__all__ = ["ColumnsOf", "Occurrence", "Pin", "Pinned", "Value", "occurrences"]

ColumnsOf = Callable[[Name], frozenset[str] | None]
"""The columns of a relation as named in the text; None when they are not known, and then it pins nothing."""

Column = tuple[int, str]


class Pin(NamedTuple):
    """``column`` equals one of ``values``, as far as the columns ``alike`` (relation, column) compare like it."""

    column: str
    values: tuple[Value, ...]
    alike: tuple[tuple[Name, str], ...] = ()


class Occurrence(NamedTuple):
    """One place where a relation is read. Each pin holds by itself; a column may have several."""

    relation: Name
    pins: tuple[Pin, ...] = ()


class Pinned(NamedTuple):
    """``elsewhere``: the parameters that stand anywhere but in conditions that became pins.

    A parameter whose type the client left open has the type of a pinned column only if it is not among them, and if
    all columns that it pins are of one family.
    """

    occurrences: tuple[Occurrence, ...]
    elsewhere: frozenset[int]


def occurrences(levels: Levels, columns_of: ColumnsOf) -> Pinned | None:
    """Every mention of a relation with its pins; None when something makes every pin of the statement doubtful."""
    if not levels.levels:
        return None
    found: list[Occurrence] = []
    elsewhere = set(levels.elsewhere)
    for level in levels.levels:
        used: set[tuple[Filter, int]] = set()
        reading = _Reading(level, columns_of)
        for index, item in enumerate(level.items):
            if item.relation is not None:
                found.append(Occurrence(item.relation, reading.pins(index, used)))
        for each in level.filters:
            for number, condition in enumerate(each.conditions):
                if (each, number) not in used:
                    elsewhere.update(value.param for value in condition.values if value.param)
    return Pinned(tuple(found), frozenset(elsewhere))


class _Reading:
    """One level, with the names in its conditions resolved."""

    def __init__(self, level: Level, columns_of: ColumnsOf) -> None:
        self._items = level.items
        self._columns = [_columns(item, columns_of) for item in level.items] if level.filters else []
        self._filters = [(each, [self._resolved(condition, each) for condition in each.conditions])
                         for each in level.filters]  # fmt: skip

    def pins(self, index: int, used: set[tuple[Filter, int]]) -> tuple[Pin, ...]:
        """The pins of one item; conditions that give one directly are added to ``used``."""
        if not self._filters or not self._items[index].pinnable:
            return ()
        given: dict[Column, list[tuple[Value, ...]]] = {}
        joined: dict[Column, list[Column]] = {}
        for each, resolved in self._filters:
            if not each.first <= index < each.end:
                continue
            for number, (condition, (column, other)) in enumerate(zip(each.conditions, resolved, strict=True)):
                if column is None:
                    continue
                if condition.values:
                    given.setdefault(column, []).append(condition.values)
                    if column[0] == index:
                        used.add((each, number))
                elif other is not None:
                    joined.setdefault(column, []).append(other)
                    joined.setdefault(other, []).append(column)
        pins = [Pin(column[1], values) for column, all_ in given.items() if column[0] == index for values in all_]
        for column in joined:
            if column[0] == index and column not in given:
                pins.extend(self._through(column, given, joined))
        return tuple(pins)

    def _through(
        self, column: Column, given: dict[Column, list[tuple[Value, ...]]], joined: dict[Column, list[Column]]
    ) -> list[Pin]:
        """The pins of a column that equals columns which equal values."""
        equal = [column]
        for each in equal:
            equal.extend(other for other in joined[each] if other not in equal)
        alike = tuple((relation, name) for index, name in equal[1:] if (relation := self._items[index].relation))
        return [Pin(column[1], values, alike) for each in equal[1:] for values in given.get(each, ())]

    def _resolved(self, condition: Condition, each: Filter) -> tuple[Column | None, Column | None]:
        return self._column(condition.column, each), self._column(condition.other, each)

    def _column(self, path: Path, each: Filter) -> Column | None:
        """The column that a name in a filter means, if it can mean nothing else."""
        span = range(each.start, each.stop)
        match path:
            case (name,):
                if any(self._columns[index] is None for index in span):
                    return None
                found = [index for index in span if name in (self._columns[index] or ())]
            case (qualifier, name):
                found = [index for index in span if self._items[index].qualifier == qualifier]
            case (schema, relation, name):
                whole = Name(schema, relation)
                found = [
                    index for index in span
                    if self._items[index].relation == whole and self._items[index].qualifier
                    and not self._items[index].aliased
                ]  # fmt: skip
            case _:
                return None
        if len(found) != 1:
            return None
        return (found[0], name) if name in (self._columns[found[0]] or ()) else None


def _columns(item: Item, columns_of: ColumnsOf) -> frozenset[str] | None:
    return columns_of(item.relation) if item.relation is not None and item.readable else None
