"""Which rows somebody depends on, and what a change of a row touches.

A *column set* (relation, columns) is registered before the first entry that pins rows by it is filled (R2). From then
on every change of the relation touches, in the ledger, the row slots of its new and its old values.

Rules (coherence traps 1 and 8):
1. What the stream does not show is unknown, never NULL: it touches the set's *wildcard*, which every entry of the set
   has too. A NULL is equal to no pin: that side of the change touches nothing.
2. An UPDATE that shows no old values left the columns of the replica identity as they are. So for sets within the
   identity the old values are the new ones; for all others they are unknown. The identity is that of the relation that
   holds the row, as the last look at the catalogue saw it.
3. A change of a relation is a change of its ancestors, columns being matched by name: a partition may order them
   otherwise.
4. Once a transaction has touched a set's wildcard, its rows say nothing more to that set.
5. A *plan* is made once per relation and never changed: a transaction remembers the one that its first row met, and at
   its commit compares it with the one of that moment. Whatever is new by then, a set registered meanwhile or another
   identity, has missed rows: its wildcard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from distribcache.catalog.generation import Relations
from distribcache.coherence.freshness import Watched
from distribcache.coherence.ledger import Columns, Ledger, tag_prefix
from distribcache.coherence.tuples import Change, Values

__all__ = ["MOST_OF_ONE", "MOST_SETS", "ColumnSet", "Plan", "Watching", "plan"]

MOST_SETS: Final = 10_000
MOST_OF_ONE: Final = 64
"""Column sets of a database, and of one relation: every row of it costs time for each."""

_ADVICE = "ALTER TABLE {} REPLICA IDENTITY FULL; -- updates hide the old values of these columns"
_OFTEN: Final = 10
"""Transactions: one that changes very many rows, or truncates, touches wildcards too, whatever is shown."""

Hashed = Callable[[bytes, Sequence[bytes]], int]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSet:
    """Columns of a relation. ``names`` as in the stream, ``prefix`` for ``Ledger.hashed``."""

    names: tuple[bytes, ...]
    wildcard: int
    prefix: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a row of one relation touches: the sets of it and its ancestors; ``kept``: those within its identity."""

    sets: tuple[ColumnSet, ...]
    key: frozenset[bytes]
    wanted: frozenset[bytes]
    kept: frozenset[ColumnSet]
    wildcards: frozenset[int]
    hashed: Hashed

    def touch(self, change: Change, slots: set[int]) -> None:
        """Add the slots that ``change`` touches."""
        old, new, kept = change
        for one in self.sets:
            if one.wildcard in slots:
                continue
            if kept and one not in self.kept:
                slots.add(one.wildcard)
                continue
            before = None if old is None else self._side(one, old, slots)
            if new is not None:
                self._side(one, new, slots, before)

    def _side(
        self, one: ColumnSet, values: Values, slots: set[int], before: list[bytes] | None = None
    ) -> list[bytes] | None:
        """One side of a change; returns the values when all are known. ``before``: those of the other side."""
        found = []
        unknown = False
        for name in one.names:
            if name not in values:
                unknown = True
                continue
            value = values[name]
            if value is None:
                return None
            found.append(value)
        if unknown:
            slots.add(one.wildcard)
            return None
        if found != before:
            slots.add(self.hashed(one.prefix, found))
        return found

    def missed_by(self, earlier: Plan) -> frozenset[int]:
        """The wildcards of what a transaction that began with ``earlier`` has not looked for (rule 5)."""
        if earlier.key != self.key:
            return self.wildcards
        return frozenset(one.wildcard for one in self.sets if one not in earlier.sets)


def plan(sets: Sequence[ColumnSet], key: frozenset[bytes], hashed: Hashed) -> Plan:
    """A plan for a relation with this identity."""
    return Plan(
        sets=tuple(sets),
        key=key,
        wanted=frozenset(name for one in sets for name in one.names),
        kept=frozenset(one for one in sets if key.issuperset(one.names)),
        wildcards=frozenset(one.wildcard for one in sets),
        hashed=hashed,
    )


class Watching:
    """The registered column sets of one database; they outlive epochs, as the slots of the ledger do."""

    __slots__ = ("_count", "_ledger", "_plans", "_relations", "_sets", "touched")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sets: dict[int, dict[Columns, ColumnSet]] = {}
        self._count = 0
        self._relations = Relations.empty()
        self._plans: dict[bytes, Plan | None] = {}
        self.touched: Counter[int] = Counter()
        """How many transactions touched which wildcard."""

    def __len__(self) -> int:
        return self._count

    def register(self, oid: int, columns: Columns, initial: int) -> int:
        """The wildcard of a column set, made with the value ``initial`` when it is new; 0 when there is no room."""
        sets = self._sets.get(oid, {})
        known = sets.get(columns)
        if known is not None:
            return known.wildcard
        if self._count >= MOST_SETS or len(sets) >= MOST_OF_ONE:
            return 0
        wildcard = self._ledger.wildcard_of(oid, columns, initial)
        names = tuple(column.encode() for column in columns)
        self._sets[oid] = {**sets, columns: ColumnSet(names, wildcard, tag_prefix(oid, columns))}
        self._count += 1
        self._plans.clear()
        return wildcard

    def renew(self, relations: Relations) -> None:
        """The catalogue was read again: names, ancestors and identities may be others."""
        self._relations = relations
        self._plans.clear()

    def report(self) -> list[Watched]:
        """Every column set, the most touched first, with advice where updates hide the old values (trap 24)."""
        names = {oids[0]: name.decode() for name, oids in self._relations.by_name.items() if b"." in name}
        found = []
        for oid, sets in self._sets.items():
            name, relation = names.get(oid), self._relations.by_oid.get(oid)
            if name is None or relation is None:
                continue
            for columns, one in sets.items():
                touches = self.touched[one.wildcard]
                hides = relation.identity != "f" and not relation.key.issuperset(one.names) and touches >= _OFTEN
                whose = f"each partition of {name}" if relation.kind == "p" else name
                found.append(Watched(name, columns, touches, _ADVICE.format(whose) if hides else ""))
        return sorted(found, key=lambda each: -each.touches)

    def plan_of(self, name: bytes) -> Plan | None:
        """What the rows of a relation touch, by its printed name; None when nobody watches."""
        try:
            return self._plans[name]
        except KeyError:
            pass
        oids = self._relations.by_name.get(name)
        if oids is None:
            return None
        sets = [one for oid in oids for one in self._sets.get(oid, {}).values()]
        made = None
        if sets:
            made = plan(sets, self._relations.by_oid[oids[0]].key, self._ledger.hashed)
        self._plans[name] = made
        return made
