"""Rows as the library returns them: plain tuples whose fields also have names.

A row is the same class whether it came from memory or from PostgreSQL, and cannot be changed. There is one class per
list of columns, so that a row costs what a tuple costs.

>>> row = row_class(("id", "name"))((1, "tea"))
>>> row["name"], row.name, row[1], dict(row.items())
('tea', 'tea', 'tea', {'id': 1, 'name': 'tea'})
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

__all__ = ["Columns", "Row", "row_class"]

Columns = tuple[str, ...]
_MOST: Final = 4096


class Row(tuple[Any, ...]):
    """One row: ``row[0]``, ``row["name"]``, or ``row.name`` where tuples have no method of that name."""

    __slots__ = ()
    _columns: Columns = ()
    _places: dict[str, int] = {}

    def __getitem__(self, key: Any) -> Any:
        if key.__class__ is str:
            try:
                key = self._places[key]
            except KeyError:
                raise KeyError(f"no column {key!r}; there are {', '.join(self._columns)}") from None
        return tuple.__getitem__(self, key)

    def __getattr__(self, name: str) -> Any:
        place = self._places.get(name)
        if place is None:
            raise AttributeError(f"no column {name!r}; there are {', '.join(self._columns)}")
        return tuple.__getitem__(self, place)

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name; ``default`` if there is none."""
        place = self._places.get(name)
        return default if place is None else tuple.__getitem__(self, place)

    def keys(self) -> Columns:
        """The names of the columns; one that occurs twice is there twice, and means the first."""
        return self._columns

    def values(self) -> tuple[Any, ...]:
        return tuple(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        return zip(self._columns, self, strict=True)

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{name}={value!r}' for name, value in self.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self._columns, tuple(self))


def _make(columns: Columns, values: Sequence[Any]) -> Row:
    return row_class(columns)(values)


_classes: dict[Columns, type[Row]] = {}


def row_class(columns: Columns) -> type[Row]:
    """The class of rows with these columns; call it with the values of one."""
    found = _classes.get(columns)
    if found is None:
        places = {name: place for place, name in reversed(list(enumerate(columns)))}
        found = type("Row", (Row,), {"__slots__": (), "_columns": columns, "_places": places, "__module__": __name__})
        if len(_classes) >= _MOST:
            _classes.clear()
        _classes[columns] = found
    return found
