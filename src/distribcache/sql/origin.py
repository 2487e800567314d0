"""Where a converted value comes from: can it be text?

``'today'`` stored in a text column and converted to a date means another day tomorrow, without a write. So a
conversion to a date or time is cacheable only if its value cannot be text: a literal or parameter (both are looked at
for time words elsewhere), a column whose type is known to be plain, a function that returns such a type, or an
expression of those.

Rules:
1. A name defined in the query (an output column of a subquery, a WITH, a function in FROM) stands for every expression
   that defines it anywhere below the outermost SELECT, and for a column of that name, if there is one. So does the
   name of an argument in the body of a function, and nothing is known of that.
2. Arithmetic on plain values is plain. Every other operator is opaque (``jsonb ->> text`` is text).
3. A literal may change its letters on the way through a type: ``'todayx'::varchar(5)``, an escaped bytea, a code
   point in JSON. Only types that keep them, or have none, are seen through.
4. What is not recognised is opaque.
"""

from __future__ import annotations

from typing import Any

from distribcache.sql.cacheability import Coercion, FunctionCall, Name

__all__ = ["POLYMORPHIC", "Definitions", "call_of", "origin_of", "zoned_of"]

Node = dict[str, Any]

# They return the type of their arguments.
POLYMORPHIC = frozenset("min max any_value first_value last_value nth_value lag lead".split())
_ARITHMETIC = frozenset("+-*/%")
# Types with a date, and functions of several arguments that return one or an interval.
_DATED = frozenset("timestamp timestamptz timezone date_trunc to_timestamp".split())
_DEEPEST = 20
# Steps for all conversions of one text; names defined a thousand times over are not worth a second of everybody's time.
_STEPS = 2_000
# A value seen through one of these has the same letters as before, or none that spell a time.
_TRANSPARENT = frozenset(
    "text varchar bool int2 int4 int8 float4 float8 numeric date time timestamp timestamptz interval".split()
)


class Definitions:
    """Output names defined below the outermost SELECT, each with the expressions that define it (None: unknown).

    ``arguments``: in the body of a function, the names of its arguments.
    """

    def __init__(self, top: Node, arguments: frozenset[str] | None = None) -> None:
        self.checked_parameters = arguments is None
        self.steps = _STEPS
        self.by_name: dict[str, list[Node | None]] = {name: [None] for name in arguments or ()}
        self.scans: set[FunctionCall] = set()
        body = top.get("SelectStmt", top)
        self._below(body, outermost=True)

    def get(self, name: str) -> list[Node | None]:
        return self.by_name.get(name, [])

    def _add(self, name: str, node: Node | None) -> None:
        self.by_name.setdefault(name, []).append(node)

    def _below(self, node: Any, *, outermost: bool = False) -> None:
        if type(node) is list:
            for item in node:
                self._below(item)
            return
        if not outermost:
            for item in node.get("targetList", ()):
                self._target(item.get("ResTarget", {}))
            for row in node.get("valuesLists", ())[:1]:
                for index in range(len(row["List"].get("items", ()))):
                    self._add(f"column{index + 1}", None)
        for key, value in node.items():
            if key == "RangeFunction":
                self._function(value)
            elif key == "CommonTableExpr":
                for item in value.get("aliascolnames", ()):
                    self._add(item["String"]["sval"], None)
            elif key in ("RangeTableFuncCol", "ColumnDef"):
                self._add(value.get("colname", ""), None)
            elif key == "JsonTableColumn":
                self._add(value.get("name", ""), None)
            elif key == "alias" and "functions" not in node:
                for item in value.get("colnames", ()):
                    self._add(item["String"]["sval"], None)
            if type(value) is dict or type(value) is list:
                # Both sides of a set operation at the top are still the top.
                self._below(value, outermost=outermost and key in ("larg", "rarg") and "op" in node)

    def _target(self, target: Node) -> None:
        value = target.get("val")
        if value is None:
            return
        name = target.get("name")
        if name is not None:
            self._add(name, value)
        elif "ColumnRef" not in value:
            self._add(_figured(value), value)

    def _function(self, node: Node) -> None:
        functions = node.get("functions", ())
        only: Node | None = None
        if len(functions) == 1 and "coldeflist" not in node:
            items = functions[0].get("List", {}).get("items", ())
            only = items[0] if items and "FuncCall" in items[0] else None
        for function in functions:
            for item in function.get("List", {}).get("items", ()):
                if "FuncCall" in item:
                    self.scans.add(call_of(item["FuncCall"]))
        alias = node.get("alias")
        if alias is None:
            for function in functions:
                for item in function.get("List", {}).get("items", ()):
                    if "FuncCall" in item:
                        self._add(_figured(item), only)
            return
        self._add(alias["aliasname"], only)
        for item in alias.get("colnames", ()):
            self._add(item["String"]["sval"], only)


def origin_of(target: Name, value: Node | None, definitions: Definitions) -> Coercion | None:
    """What must hold for the conversion of ``value`` to ``target`` to be harmless; None when it always is."""
    if value is None:
        return Coercion(target, opaque=True)
    columns: set[tuple[str, bool]] = set()
    functions: set[FunctionCall] = set()
    known = _trace(value, definitions, columns, functions, 0, frozenset())
    if not known:
        return Coercion(target, opaque=True)
    if not columns and not functions:
        return None
    scans = definitions.scans if columns else set()
    return Coercion(
        target, tuple(sorted(columns)), tuple(sorted(functions, key=repr)), tuple(sorted(scans, key=repr)),
    )


def _trace(
    node: Node, definitions: Definitions, columns: set[tuple[str, bool]], functions: set[FunctionCall], depth: int,
    seen: frozenset[str],
) -> bool:
    """Add what the value is made of; False when that cannot be told."""
    definitions.steps -= 1
    if definitions.steps < 0 or depth > _DEEPEST or len(node) != 1:
        return False
    ((kind, fields),) = node.items()

    def all_of(*parts: Node | None) -> bool:
        return all(
            part is None or _trace(part, definitions, columns, functions, depth + 1, seen) for part in parts
        )

    match kind:
        case "A_Const":
            return True
        case "ParamRef":
            return definitions.checked_parameters
        case "ColumnRef":
            last = fields["fields"][-1].get("String")
            if last is None:
                return False
            name = last["sval"]
            if name in seen:
                return True
            meanings = definitions.get(name)
            columns.add((name, not meanings))
            inner = seen | {name}
            return all(
                meaning is not None and _trace(meaning, definitions, columns, functions, depth + 1, inner)
                for meaning in meanings
            )
        case "TypeCast":
            return _is_transparent(fields["typeName"]) and all_of(fields["arg"])
        case "FuncCall":
            call = call_of(fields)
            if call.name in POLYMORPHIC:
                return all_of(*fields.get("args", []))
            functions.add(call)
            return True
        case "CoalesceExpr" | "MinMaxExpr":
            return all_of(*fields["args"])
        case "SubLink":
            targets = fields["subselect"].get("SelectStmt", {}).get("targetList", ())
            scalar = fields.get("subLinkType") == "EXPR_SUBLINK" and len(targets) == 1
            return scalar and all_of(targets[0]["ResTarget"]["val"])
        case "CaseExpr":
            return all_of(fields.get("defresult"), *(item["CaseWhen"]["result"] for item in fields["args"]))
        case "A_ArrayExpr":
            return all_of(*fields.get("elements", []))
        case "A_Expr":
            if fields["kind"] == "AEXPR_NULLIF":
                return all_of(fields["lexpr"])
            name = fields["name"][-1]["String"]["sval"]
            if fields["kind"] == "AEXPR_OP" and name in _ARITHMETIC and len(fields["name"]) == 1:
                return all_of(fields.get("lexpr"), fields.get("rexpr"))
            return False
        case _:
            return False


def call_of(fields: Node) -> FunctionCall:
    """The call that a FuncCall node makes."""
    path = [part["String"]["sval"] for part in fields["funcname"]]
    count = len(fields.get("args", ()))
    if "agg_within_group" in fields:
        # mode() WITHIN GROUP (ORDER BY x): the server counts x among the arguments.
        count += len(fields.get("agg_order", ()))
    return FunctionCall(path[-2] if len(path) > 1 else None, path[-1], count)


def zoned_of(value: Node) -> str | None:
    """The column that AT TIME ZONE is applied to, nothing for an expression; None if it is certainly no time of day."""
    if len(value) != 1:
        return ""
    ((kind, fields),) = value.items()
    match kind:
        case "A_Const":
            return None
        case "ColumnRef":
            return str(fields["fields"][-1].get("String", {}).get("sval", ""))
        case "TypeCast":
            path = [part["String"]["sval"] for part in fields["typeName"].get("names", ())]
            return None if path[:-1] == ["pg_catalog"] and path[-1] in _DATED else ""
        case "FuncCall":
            return None if call_of(fields).name in _DATED and len(fields.get("args", ())) > 1 else ""
        case _:
            return ""


def _is_transparent(type_name: Node) -> bool:
    name = type_name.get("names", [{}])[-1].get("String", {}).get("sval")
    return (
        name in _TRANSPARENT
        and "arrayBounds" not in type_name
        and not (name == "varchar" and type_name.get("typmods"))
    )


def _figured(node: Node) -> str:
    """The name that the server gives an output column without one."""
    if len(node) != 1:
        return "?column?"
    ((kind, fields),) = node.items()
    match kind:
        case "ColumnRef":
            return str(fields["fields"][-1].get("String", {}).get("sval", "?column?"))
        case "FuncCall":
            return str(fields["funcname"][-1]["String"]["sval"])
        case "TypeCast":
            inner = _figured(fields["arg"])
            return inner if inner != "?column?" else str(fields["typeName"]["names"][-1]["String"]["sval"])
        case "CollateClause":
            return _figured(fields["arg"])
        case "CaseExpr":
            inner = _figured(fields["defresult"]) if "defresult" in fields else "?column?"
            return inner if inner != "?column?" else "case"
        case "CoalesceExpr":
            return "coalesce"
        case "MinMaxExpr":
            return "greatest" if fields.get("op") == "IS_GREATEST" else "least"
        case "A_Indirection":
            for step in reversed(fields.get("indirection", ())):
                if "String" in step:
                    return str(step["String"]["sval"])
            return _figured(fields["arg"])
        case "SubLink":
            targets = fields["subselect"].get("SelectStmt", {}).get("targetList", ())
            if fields.get("subLinkType") == "EXPR_SUBLINK" and targets:
                target = targets[0]["ResTarget"]
                return str(target.get("name") or _figured(target["val"]))
            return {"EXISTS_SUBLINK": "exists", "ARRAY_SUBLINK": "array"}.get(fields.get("subLinkType", ""), "?column?")
        case "A_ArrayExpr":
            return "array"
        case "RowExpr":
            return "row"
        case _:
            return "?column?"
