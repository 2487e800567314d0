"""What the structure of a read says about its workload: a few counts for the classifier, never a reason to cache."""

from __future__ import annotations

from typing import Any

from distribcache.sql.cacheability import Shape
from distribcache.sql.relations import Walk

__all__ = ["shape_of"]

Node = dict[str, Any]


def shape_of(walk: Walk, select: Node) -> Shape:
    """The shape of the outermost ``select``, whose walk has counted everything below it too."""
    tables = select.get("fromClause", ())
    point = (
        not (walk.aggregates or walk.windows or walk.joins or walk.group_by or walk.vector)
        and len(tables) == 1
        and "RangeVar" in tables[0]
        and _is_pinned(select.get("whereClause"))
    )
    limit = _limit(select.get("limitCount"))
    return Shape(walk.aggregates, walk.windows, walk.joins, walk.group_by, walk.vector, point, limit)


def _limit(count: Node | None) -> int | None:
    if count is None:
        return None
    constant = count.get("A_Const", {})
    if "ival" in constant:
        return int(constant["ival"].get("ival", 0))
    # LIMIT ALL is the constant NULL.
    return None if "isnull" in constant else -1


def _is_pinned(node: Node | None) -> bool:
    """Whether a WHERE is nothing but column = constant or parameter, AND-ed."""
    if node is None:
        return False
    if "BoolExpr" in node:
        return node["BoolExpr"]["boolop"] == "AND_EXPR" and all(_is_pinned(item) for item in node["BoolExpr"]["args"])
    expression = node.get("A_Expr")
    if expression is None or expression["kind"] != "AEXPR_OP" or expression["name"] != [{"String": {"sval": "="}}]:
        return False
    left, right = expression.get("lexpr", {}), expression["rexpr"]
    if "ColumnRef" not in left:
        left, right = right, left
    while "TypeCast" in right:
        right = right["TypeCast"]["arg"]
    return "ColumnRef" in left and ("A_Const" in right or "ParamRef" in right)
