"""What a text pins: for each place where it reads a relation, the columns that must equal known values.

A *pin* is the promise that rows of the relation without one of its values, at this place, do not matter to the answer:
the answer is the same over all rows and over those with such a value. So an answer can change only by a row that has
one of the values before or after its change.

Why it holds. All conditions reject NULL. Take a row r of relation x and a combined row that contains r and reaches the
answer. It has passed WHERE, and every join above x which filters the side that x is on: their conditions are true in
it, so every relation that these name is there with a real row too, and not with NULL for want of a match. Hence the
conditions of the joins that filter *its* side are true as well, and so on. Whatever follows by equality from all these
conditions (``x.a = y.b AND y.b = 1``) is true of r, or else leaving r out takes nothing from the answer.

It adds nothing either. A row p may lose its only match n, which contains r, and get NULL for the whole side of x. If
that reached the answer, then no condition above names a column of that side, because those are NULL: the conditions are
true of p with n in place of NULL too, and again all that follows is true of r. Full joins are different: both their
sides may be missing.

Nothing above a level (HAVING, LIMIT, the outer query) is used, nor anything below it.

Rules:
1. A full join's items are pinned by nothing.
2. A name pins only if it can mean nothing but a column of one base relation of its level: unqualified names only among
   relations whose columns are all known, in one of them only (USING merges columns). A name that is not found belongs
   to an outer query and pins nothing.
3. A pin that follows through other columns holds only if equality means the same for all of them: ``alike`` names
   them, and they must be of the pinned column's family and compare by bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from distribcache.sql.cacheability import Name
from distribcache.sql.levels import Condition, Filter, Item, Level, Levels, Path, Value

__all__ = ["ColumnsOf", "Occurrence", "Pin", "Pinned", "Value", "occurrences"]

ColumnsOf = Callable[[Name], frozenset[str] | None]
"""The columns of a relation as named in the text; None when they are not known, and then it pins nothing."""

Column = tuple[int, str]
_NOTHING = Name(None, "")


class _Equalities(NamedTuple):
    """Columns with the values they are given (each with the place of its condition), and sets of equal columns."""

    given: dict[Column, list[tuple[tuple[Value, ...], tuple[int, int]]]]
    equal: dict[Column, list[Column]]


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


def occurrences(levels: Levels | None, columns_of: ColumnsOf) -> Pinned | None:
    """Every mention of a relation with its pins; None when something makes every pin of the statement doubtful."""
    if levels is None or not levels.levels:
        return None
    found: list[Occurrence] = []
    elsewhere = {*levels.elsewhere, *_listed(levels)}
    for level in levels.levels:
        used: set[tuple[int, int]] = set()
        reading = _Reading(level, columns_of)
        for index, item in enumerate(level.items):
            if item.relation is not None:
                found.append(Occurrence(item.relation, reading.pins(index, used)))
        for number, each in enumerate(level.filters):
            for place, condition in enumerate(each.conditions):
                if (number, place) not in used:
                    elsewhere.update(value.param for value in condition.values if value.param)
    return Pinned(tuple(found), frozenset(elsewhere))


def _listed(levels: Levels) -> Iterable[int]:
    """Parameters of a list that stand in another condition too: the others of the list may give them their type."""
    times: Counter[int] = Counter()
    listed: set[int] = set()
    for level in levels.levels:
        for each in level.filters:
            for condition in each.conditions:
                params = [value.param for value in condition.values if value.param]
                times.update(params)
                if len(condition.values) > 1:
                    listed.update(params)
    return [param for param in listed if times[param] > 1]


class _Reading:
    """One level, with the names in its conditions resolved."""

    def __init__(self, level: Level, columns_of: ColumnsOf) -> None:
        self._items = level.items
        self._filters = level.filters
        self._columns = [_columns(item, columns_of) for item in level.items] if level.filters else []
        self._resolved = [[self._both(condition, each) for condition in each.conditions] for each in level.filters]
        # For each item the filters over it, as bits; for each filter the items that it names.
        self._over = [sum(each.first <= at < each.end and 1 << number for number, each in enumerate(level.filters))
                      for at in range(len(level.items))]  # fmt: skip
        self._named = [{column[0] for both in one for column in both if column is not None} for one in self._resolved]
        self._known: dict[int, _Equalities] = {}

    def pins(self, index: int, used: set[tuple[int, int]]) -> tuple[Pin, ...]:
        """The pins of one item; conditions that give one directly are added to ``used``, by filter and number."""
        if not self._filters or not self._items[index].pinnable:
            return ()
        true = self._true_with(index)
        equalities = self._known.get(true)
        if equalities is None:
            equalities = self._known[true] = self._equalities(true)
        pins: list[Pin] = []
        for column, choices in equalities.given.items():
            if column[0] == index:
                for values, source in choices:
                    pins.append(Pin(column[1], values))
                    used.add(source)
        for column, equal in equalities.equal.items():
            if column[0] == index and column not in equalities.given:
                pins.extend(self._through(column, equal, equalities))
        return tuple(pins)

    def _true_with(self, index: int) -> int:
        """The filters that are true wherever a row of this item reaches the answer, as bits."""
        true = 0
        real = [index]
        for item in real:
            new = self._over[item] & ~true
            true |= new
            for number in _bits(new):
                real.extend(other for other in self._named[number] if other not in real)
        return true

    def _equalities(self, true: int) -> _Equalities:
        found = _Equalities({}, {})
        for number in _bits(true):
            for place, condition in enumerate(self._filters[number].conditions):
                column, other = self._resolved[number][place]
                if column is None:
                    continue
                if condition.values:
                    found.given.setdefault(column, []).append((condition.values, (number, place)))
                elif other is not None:
                    one, two = found.equal.get(column, [column]), found.equal.get(other, [other])
                    if one is not two:
                        one = [*one, *two]
                    found.equal.update(dict.fromkeys(one, one))
        return found

    def _through(self, column: Column, equal: list[Column], equalities: _Equalities) -> list[Pin]:
        """The pins of a column that equals columns which equal values."""
        given = [values for each in equal for values, _ in equalities.given.get(each, ())]
        if not given:
            return []
        items = self._items
        alike = tuple([(items[at].relation or _NOTHING, name) for at, name in equal if (at, name) != column])
        return [Pin(column[1], values, alike) for values in given]

    def _both(self, condition: Condition, each: Filter) -> tuple[Column | None, Column | None]:
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


def _bits(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _columns(item: Item, columns_of: ColumnsOf) -> frozenset[str] | None:
    return columns_of(item.relation) if item.relation is not None and item.readable else None
