"""Two replies to one statement: are they the same answer, as far as SQL promises one?

Byte for byte, but rows in another order are the same where there is no ORDER BY at the top. When they differ, the data
may still be the same: ``determined`` says that they cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from distribcache.sql.order import order_of
from distribcache.wire.messages import read_row_description

__all__ = ["Answer", "Comparison", "compare", "read_answer"]

_ROW, _DESCRIPTION, _COMPLETE, _SUSPENDED = b"DTCs"
_FLOATS: Final = frozenset({700, 701, 1021, 1022})
"""Type oids of float4, float8 and their arrays: a sum of them depends on the order in which rows are found."""
_NOT_OF_THE_DATA: Final = (b"08", b"25", b"40", b"53", b"54", b"55", b"57", b"58", b"XX")
"""Classes of errors that say nothing about the answer: timeouts, locks, resources."""


@dataclass(slots=True)
class Answer:
    """A reply in the parts that are compared; ``description`` is empty when it was not asked for.

    ``error``: the SQLSTATE, where there was one instead.
    """

    description: bytes = b""
    rows: list[bytes] = field(default_factory=list)
    end: bytes = b""
    error: bytes = b""

    @property
    def says_nothing(self) -> bool:
        """Did it fail for a reason that has nothing to do with the data?"""
        return self.error[:2] in _NOT_OF_THE_DATA


@dataclass(frozen=True, slots=True)
class Comparison:
    """``determined``: only other data can explain the difference."""

    same: bool
    determined: bool = True


def read_answer(payload: bytes) -> Answer:
    """The parts of a whole reply without its ReadyForQuery."""
    answer = Answer()
    at = 0
    while at < len(payload):
        end = at + 1 + int.from_bytes(payload[at + 1 : at + 5], "big")
        kind = payload[at]
        if kind == _ROW:
            answer.rows.append(payload[at:end])
        elif kind == _DESCRIPTION:
            answer.description = payload[at:end]
        elif kind == _COMPLETE or kind == _SUSPENDED:
            answer.end = payload[at:end]
        at = end
    return answer


def compare(sql: bytes, first: Answer, second: Answer) -> Comparison:
    """The answer from memory and a later one of the server's, which was described in any case."""
    alike = not second.error and first.end == second.end and first.description in (b"", second.description)
    if alike and first.rows == second.rows:
        return Comparison(True)
    order = order_of(sql)
    reordered = alike and sorted(first.rows) == sorted(second.rows)
    if reordered and not order.ordered:
        return Comparison(True)
    floats = order.sums and not _FLOATS.isdisjoint(_types(first.description or second.description))
    return Comparison(False, order.determined and not floats and not reordered)


def _types(description: bytes) -> set[int]:
    columns = read_row_description(description[5:]).columns if description[:1] == b"T" else ()
    return {column.type_oid for column in columns}
