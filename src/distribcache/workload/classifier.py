"""Which class of workload a read belongs to, by the structure of its text alone.

A class decides how long an answer may live (``[ttl]``), where it is kept and how it shows in the statistics; never
whether it may be cached. A wrong class costs efficiency, not truth.

The rules are a table, asked from the top; the first that applies decides, and its name can be shown:

1. ``vector``: an operator of nearest-neighbour search (pgvector) is in it → VECTOR, whatever else is.
2. ``point``: one table, pinned by equality, no aggregates, windows or joins → OLTP.
3. ``analytic``: aggregates, window functions, GROUP BY, or at least ``MANY_JOINS`` joins → OLAP.
4. ``simple``: no join, or a LIMIT of at most ``FEW_ROWS`` rows (or one given as a parameter) → OLTP.
5. ``other``: what is left, such as a join of a few tables without a limit → MIXED.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from distribcache.query import WorkloadType
from distribcache.sql.cacheability import Shape

__all__ = ["FEW_ROWS", "MANY_JOINS", "RULES", "Rule", "classify", "rule_for"]

MANY_JOINS: Final = 3
FEW_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Rule:
    """A class for every shape to which ``applies`` says yes."""

    name: str
    workload: WorkloadType
    applies: Callable[[Shape], bool]


def _is_analytic(shape: Shape) -> bool:
    return bool(shape.aggregates or shape.windows or shape.group_by) or shape.joins >= MANY_JOINS


def _is_simple(shape: Shape) -> bool:
    return shape.joins == 0 or (shape.limit is not None and shape.limit <= FEW_ROWS)


RULES: Final = (
    Rule("vector", WorkloadType.VECTOR, lambda shape: shape.vector_operator),
    Rule("point", WorkloadType.OLTP, lambda shape: shape.point_lookup and not _is_analytic(shape)),
    Rule("analytic", WorkloadType.OLAP, _is_analytic),
    Rule("simple", WorkloadType.OLTP, _is_simple),
    Rule("other", WorkloadType.MIXED, lambda shape: True),
)


def rule_for(shape: Shape) -> Rule:
    """The rule that decides; the last one applies to everything."""
    return next(rule for rule in RULES if rule.applies(shape))


def classify(shape: Shape) -> WorkloadType:
    return rule_for(shape).workload
