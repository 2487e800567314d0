"""What an answer depends on: the ledger slots of its relations, or of the rows that its statement pins.

The values of a pin stand in the text at hand or in the Bind behind it. One that cannot be compared with the change
stream as bytes makes the answer depend on the whole relation.

A column set is watched before F is read (coherence trap 1): the caller asks for the slots first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from distribcache.catalog.rows import MOST_TAGS, RowTag
from distribcache.catalog.statement import Analysis
from distribcache.sql.fold import literals
from distribcache.sql.predicates import Value
from distribcache.sql.rowvalues import CASTS, FAMILY, recognise, recognise_array, recognise_constant

if TYPE_CHECKING:
    from distribcache.coherence.database import Coherence

__all__ = ["UNBOUND", "Bound", "slots_of"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The parameters of a Bind: type oids of the Parse, format codes and values."""

    oids: tuple[int, ...] = ()
    formats: tuple[int, ...] = ()
    values: Sequence[bytes | None] = ()

    def format_of(self, at: int) -> int:
        """One code stands for all, none for text."""
        if len(self.formats) > 1:
            return self.formats[at]
        return self.formats[0] if self.formats else 0


UNBOUND = Bound()
_UNKNOWN = 705
"""The oid of the pseudo-type that a client may declare instead of none."""


def slots_of(coherence: Coherence, analysis: Analysis, sql: bytes, bound: Bound = UNBOUND) -> tuple[int, ...]:
    """The slots that an answer to ``sql`` has to outlive."""
    if not analysis.rows:
        return analysis.slots
    slots = set(analysis.slots)
    texts: list[bytes] | None = None
    for tag in analysis.rows:
        if texts is None and any(value.literal >= 0 for values in tag.choices for value in values):
            texts = literals(sql)
        found = _rows(tag, texts or [], bound)
        wildcard = coherence.watch(tag.oid, tag.columns) if found else 0
        if not wildcard:
            slots.add(tag.slot)
            continue
        slots.add(wildcard)
        slots.update(coherence.row_slot(tag.oid, tag.columns, values) for values in found)
    return tuple(slots)


def _rows(tag: RowTag, texts: list[bytes], bound: Bound) -> list[tuple[bytes, ...]]:
    """The combinations of values that the tag names; empty when one of them cannot be compared."""
    columns: list[list[bytes]] = []
    for kind, values in zip(tag.types, tag.choices, strict=True):
        column: list[bytes] = []
        for value in values:
            known = _value(value, kind, tag, texts, bound)
            if known is None:
                return []
            column += known if isinstance(known, list) else (known,)
        columns.append(column)
    return list(product(*columns)) if prod(map(len, columns)) <= MOST_TAGS else []


def _value(value: Value, kind: int, tag: RowTag, texts: list[bytes], bound: Bound) -> bytes | list[bytes] | None:
    """The value, or those of an array."""
    family = FAMILY[kind]
    if value.cast and CASTS.get(value.cast) is not family:
        return None
    if not value.param:
        if value.literal >= len(texts):
            return None
        text = value.const.encode() if value.literal < 0 else texts[value.literal]
        if value.array:
            return recognise_array(family, 0, text, False, kind)
        return recognise_constant(family, text, quoted=value.quoted)
    at = value.param - 1
    if at >= len(bound.values):
        return None
    declared = bound.oids[at] if at < len(bound.oids) else 0
    if declared in (0, _UNKNOWN) and value.param not in tag.typed:
        return None
    read = recognise_array if value.array else recognise
    return read(family, declared, bound.values[at], bound.format_of(at) == 1, kind)
