"""Which rows a read depends on: what its text pins, matched with what the catalogue says of the columns.

A read depends on the *rows* of a relation, instead of all of it, when every place where the relation is read pins
columns whose values can be compared with those in the change stream as bytes. Else it takes the table tag.

Rules (coherence traps 6, 7 and 24):
1. Only ordinary and partitioned tables that the text names itself. With a view, or a function whose body is followed,
   in the closure, nothing is pinned: a relation may be read there too.
2. Only stored columns of types whose equal values print alike, under a deterministic collation; text only when the
   server's encoding is UTF-8, because the stream comes in the server's.
3. Only while no operator ``=`` of a user's may apply to such types, nor one that NULL passes to any: what follows from
   conditions rests on their rejecting it. And only while names of types mean the built-in ones first.
4. Of the pinned columns those of the replica identity are taken: the stream always shows their old values. Where none
   is pinned, all pinned columns are: then inserts alone are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distribcache.catalog.facts import BUILTIN, Answer, Relation, Support
from distribcache.sql.cacheability import Name
from distribcache.sql.predicates import Occurrence, Pin, Pinned, Value
from distribcache.sql.rowvalues import FAMILY, Family

__all__ = ["MOST_TAGS", "Pinnable", "RowTag", "pinnable", "row_tags"]

MOST_TAGS = 32
"""Row tags of one occurrence; what needs more takes the table tag."""


@dataclass(frozen=True, slots=True)
class Pinnable:
    """A relation whose rows may be pinned. ``types``: type oids of the columns that can be compared."""

    oid: int
    columns: frozenset[str]
    types: Mapping[str, int]
    identity: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class RowTag:
    """One occurrence of a relation that is read only where ``columns`` have one of the values of ``choices``.

    ``types`` are the columns' type oids, ``choices`` where the values of each column come from. ``slot`` is the
    relation's own, for when a value turns out to be none that can be compared.
    """

    oid: int
    slot: int
    columns: tuple[str, ...]
    types: tuple[int, ...]
    choices: tuple[tuple[Value, ...], ...]
    typed: frozenset[int] = frozenset()
    """Parameters that have their column's type if the client declares none."""


def pinnable(answer: Answer, path: Sequence[str]) -> dict[Name, Pinnable]:
    """The relations, by their names in the text, that can be pinned at all (rules 1 to 3).

    ``path``: the schemas that names were looked up in.
    """
    if not path or path[0] != "pg_catalog":
        return {}
    seeds = set(answer.relation_of.values())
    read = [relation for relation in answer.relations.values() if relation.slot]
    if any(relation.oid not in seeds or relation.kind not in "rp" for relation in read):
        return {}
    if any(not function.builtin and function.body is not None for function in answer.functions.values()):
        return {}
    if any(each.kind == "operator" and each.name == "=" and _spoils(each) for each in answer.supports.values()):
        return {}
    found = {}
    for name, oid in answer.relation_of.items():
        relation = answer.relations.get(oid)
        if relation is not None and relation.oid >= BUILTIN:
            found[name] = _pinnable(relation, utf8=answer.encoding == "UTF8")
    return found


def _spoils(equals: Support) -> bool:
    return not equals.strict or any(oid in FAMILY for oid in equals.operands)


def _pinnable(relation: Relation, *, utf8: bool) -> Pinnable:
    types = {
        column: kind
        for column, kind in relation.columns.items()
        if column in relation.exact and kind in FAMILY and (utf8 or FAMILY[kind] is not Family.TEXT)
    }
    return Pinnable(relation.oid, frozenset(relation.columns), types, relation.identity)


def row_tags(
    pinned: Pinned | None, relations: Mapping[Name, Pinnable], slots: Mapping[int, int]
) -> tuple[RowTag, ...]:
    """The row tags that stand for whole relations: those of which every occurrence is pinned.

    ``slots``: the ledger slots of the relations read, by oid.
    """
    if pinned is None:
        return ()
    typed = _typed_by_pins(pinned, relations)
    tags: list[RowTag] = []
    unpinned: set[int] = set()
    for occurrence in pinned.occurrences:
        relation = relations.get(occurrence.relation)
        if relation is None:
            return ()
        tag = _tag(occurrence, relation, relations, slots, typed)
        if tag is None:
            unpinned.add(relation.oid)
        else:
            tags.append(tag)
    return tuple(tag for tag in tags if tag.oid not in unpinned)


def _typed_by_pins(pinned: Pinned, relations: Mapping[Name, Pinnable]) -> frozenset[int]:
    """The parameters that have the type of a pinned column's family if their client leaves it open."""
    families: dict[int, set[Family | None]] = {}
    for occurrence in pinned.occurrences:
        relation = relations.get(occurrence.relation)
        for pin in occurrence.pins:
            kind = None if relation is None else relation.types.get(pin.column)
            for value in pin.values:
                if value.param:
                    families.setdefault(value.param, set()).add(None if kind is None else FAMILY[kind])
    return frozenset(
        param for param, found in families.items() if len(found) == 1 and None not in found
    ) - pinned.elsewhere  # fmt: skip


def _tag(
    occurrence: Occurrence, relation: Pinnable, relations: Mapping[Name, Pinnable], slots: Mapping[int, int],
    typed: frozenset[int],
) -> RowTag | None:  # fmt: skip
    pins: dict[str, tuple[Value, ...]] = {}
    for pin in occurrence.pins:
        known = pins.get(pin.column)
        if _compares(pin, relation, relations) and (known is None or _length(pin.values) < _length(known)):
            pins[pin.column] = pin.values
    if relation.identity is not None and any(column in relation.identity for column in pins):
        pins = {column: values for column, values in pins.items() if column in relation.identity}
    combinations = 1
    for values in pins.values():
        combinations *= len(values)
    slot = slots.get(relation.oid)
    if not pins or slot is None or not 0 < combinations <= MOST_TAGS:
        return None
    columns = tuple(sorted(pins))
    types = tuple(relation.types[column] for column in columns)
    return RowTag(relation.oid, slot, columns, types, tuple(pins[column] for column in columns), typed)


def _length(values: tuple[Value, ...]) -> int:
    """For a choice: that of an array is not known yet."""
    return MOST_TAGS if any(value.array for value in values) else len(values)


def _compares(pin: Pin, relation: Pinnable, relations: Mapping[Name, Pinnable]) -> bool:
    """Is equality of bytes what this pin's equality means, along all columns that it follows through?"""
    kind = relation.types.get(pin.column)
    if kind is None:
        return False
    for name, column in pin.alike:
        other = relations[name].types.get(column) if name in relations else None
        if other is None or FAMILY[other] is not FAMILY[kind]:
            return False
    return True
