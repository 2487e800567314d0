"""Does a read promise the order of its rows, and do the data alone determine them?

For the auditor, which compares two answers of one statement: rows in another order are no difference unless there is
an ORDER BY at the top; and where SQL leaves the choice to the server (which rows a LIMIT takes among equals, in which
order ``array_agg`` finds its input) a difference proves nothing. Doubts count as *not determined*: nobody is accused of
a stale answer because of a plan that changed. (What a view hides, a LIMIT of its own for instance, is not looked at.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distribcache.sql.parse import ParseError, tree_of

__all__ = ["Order", "order_of"]

_BY_ORDER = frozenset(
    "array_agg string_agg json_agg json_agg_strict jsonb_agg jsonb_agg_strict json_object_agg json_object_agg_strict "
    "json_object_agg_unique json_object_agg_unique_strict jsonb_object_agg jsonb_object_agg_strict "
    "jsonb_object_agg_unique jsonb_object_agg_unique_strict xmlagg any_value mode".split()
)
"""Built-in aggregates whose result depends on the order of their input."""
_EXACT = frozenset("count min max bool_and bool_or every bit_and bit_or bit_xor grouping".split())
"""Built-in aggregates that floating-point numbers do not make depend on it; all other functions may be aggregates."""
_CHOOSING = frozenset(
    {"limitCount", "limitOffset", "windowClause", "over", "JsonArrayAgg", "JsonObjectAgg", "RangeTableSample"}
)


@dataclass(frozen=True, slots=True)
class Order:
    """``ordered``: an ORDER BY at the top. ``determined``: by the data alone; with ``sums``, only without floats."""

    ordered: bool
    determined: bool
    sums: bool


_UNKNOWN = Order(ordered=True, determined=False, sums=True)


def order_of(sql: bytes) -> Order:
    """What the text of one read promises. Never raises: what is not understood is not determined."""
    try:
        statements = tree_of(sql.decode())
        top = statements[0]["SelectStmt"] if len(statements) == 1 else None
        if top is None:
            return _UNKNOWN
        chosen, calls = _walk(top)
    except (ParseError, UnicodeDecodeError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return _UNKNOWN
    return Order("sortClause" in top, not chosen and not calls & _BY_ORDER, bool(calls - _EXACT))


def _walk(top: dict[str, Any]) -> tuple[bool, frozenset[str]]:
    """Is there a place where the server may choose, and which functions are called?"""
    calls = set()
    waiting: list[Any] = [top]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if not _CHOOSING.isdisjoint(node) or _picks(node):
                return True, frozenset()
            call = node.get("FuncCall")
            if call is not None:
                name = call["funcname"][-1]["String"]["sval"]
                if name in _BY_ORDER and "agg_order" in call and "agg_within_group" not in call:
                    name = "count"
                calls.add(name)
            waiting += node.values()
    return False, frozenset(calls)


def _picks(node: dict[str, Any]) -> bool:
    """DISTINCT ON takes any row of its group; ARRAY(SELECT …) takes them as they come."""
    distinct = node.get("distinctClause")
    if distinct and distinct != [{}]:
        return True
    link = node.get("SubLink")
    return link is not None and link.get("subLinkType") == "ARRAY_SUBLINK"
