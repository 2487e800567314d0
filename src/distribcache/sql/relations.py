"""A walk over one query's tree: relations (knowing the scope of WITH), functions, operators, types, and what refuses.

The tree is PostgreSQL's raw parse tree as JSON: a node is ``{"NodeType": {field: …}}``, a struct that needs no tag is
``{field: …}``. Node types begin with a capital letter, fields do not, so one generic descent serves both.

Rules:
1. A node type that is neither handled nor listed as a plain container refuses the query (``unsupported_syntax``).
2. A WITH name hides a relation of the same name, unqualified, in the query it belongs to and below, and in later WITH
   queries of the list; with RECURSIVE in all of them, before and after.
3. What the grammar hides is made visible: IN, BETWEEN, USING, simple CASE and their kin use operators by name.
4. A dotted reference may be a function call in disguise (``t.f`` is ``f(t)``), ``date(x)`` may be a cast.

The same walk serves queries, view bodies and policy expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distribcache.sql.cacheability import FunctionCall, Name
from distribcache.sql.gathered import Gathered
from distribcache.sql.grammar import (
    AGGREGATE_MARKS,
    AGGREGATES,
    CONTAINERS,
    HARMLESS_TYPES,
    IMPLIED,
    JSON_CALLS,
    KEYWORD_CALLS,
    REG_TYPES,
    SYSTEM_COLUMNS,
    TIME_TYPES,
    VECTOR_OPERATORS,
)
from distribcache.sql.origin import call_of
from distribcache.sql.timewords import names_a_moment

__all__ = ["Scope", "Walk"]

Node = dict[str, Any]
Scope = frozenset[str]

_EQUALS = Name(None, "=")


class Walk(Gathered):
    """One walk over one statement: call ``query`` once, then read what was gathered."""

    # -- descent ------------------------------------------------------------------------------------------------------

    def query(self, node: Node) -> None:
        """Walk a whole statement: ``{"SelectStmt": {...}}`` or a DML statement."""
        self.top = node
        self.visit(node, frozenset())

    def visit(self, node: Any, scope: Scope) -> None:
        if type(node) is list:
            for item in node:
                self.visit(item, scope)
            return
        for key, value in node.items():
            handler = _HANDLERS.get(key)
            if handler is not None:
                handler(self, value, scope)
            elif key[0].isupper() and key not in CONTAINERS:
                self.unknown = True
                self.refuse("unsupported_syntax", key)
            elif type(value) is dict or type(value) is list:
                self.visit(value, scope)

    def fields(self, node: Node, scope: Scope, *skip: str) -> None:
        for key, value in node.items():
            if (type(value) is dict or type(value) is list) and key not in skip:
                handler = _HANDLERS.get(key)
                if handler is not None:
                    handler(self, value, scope)
                else:
                    self.visit(value, scope)

    # -- queries and scope --------------------------------------------------------------------------------------------

    def select(self, node: Node, scope: Scope) -> None:
        if "withClause" in node:
            scope = self.with_clause(node["withClause"], scope)
        if "lockingClause" in node:
            self.locks = True
        if "intoClause" in node:
            self.creates = True
        if node.get("op", "SETOP_NONE") != "SETOP_NONE":
            self.select(node["larg"], scope)
            self.select(node["rarg"], scope)
            # UNION, INTERSECT and EXCEPT compare rows.
            self.operators.add(_EQUALS)
        if "groupClause" in node:
            self.group_by = True
        tables = node.get("fromClause")
        if tables is not None:
            self.selects.append((node, scope))
            self.joins += len(tables) - 1
        self.fields(node, scope, "withClause", "lockingClause", "intoClause", "larg", "rarg")

    def with_clause(self, node: Node, scope: Scope) -> Scope:
        expressions = [item["CommonTableExpr"] for item in node.get("ctes", ())]
        if node.get("recursive"):
            self.recursive = True
            scope = scope | {cte["ctename"] for cte in expressions}
        for cte in expressions:
            query = cte.get("ctequery", {})
            if "SelectStmt" not in query:
                self.writes = True
            self.visit(query, scope)
            for clause in ("search_clause", "cycle_clause"):
                if clause in cte:
                    self.operators.add(_EQUALS)
                    self.fields(cte[clause], scope)
            scope = scope | {cte["ctename"]}
        return scope

    def modify(self, node: Node, scope: Scope) -> None:
        self.writes = True
        if "withClause" in node:
            scope = self.with_clause(node["withClause"], scope)
        if "relation" in node:
            # The target of a write is never a WITH name.
            self.range_var(node["relation"], frozenset())
        self.fields(node, scope, "withClause", "relation")

    def range_var(self, node: Node, scope: Scope) -> None:
        name = node["relname"]
        schema = node.get("schemaname")
        if schema is None and name in scope:
            return
        if "catalogname" in node:
            self.refuse("other_database", f"{node['catalogname']}.{schema}.{name}")
            self.unknown = True
        self.relations.add(Name(schema, name))
        self.mentions += 1

    def join(self, node: Node, scope: Scope) -> None:
        self.joins += 1
        if node.get("isNatural") or "usingClause" in node:
            self.operators.add(_EQUALS)
        self.fields(node, scope, "usingClause", "alias", "join_using_alias")

    def sample(self, node: Node, scope: Scope) -> None:
        self.refuse("tablesample")
        self.unknown = True
        self.fields(node, scope)

    # -- expressions --------------------------------------------------------------------------------------------------

    def column(self, node: Node, scope: Scope) -> None:
        fields = node["fields"]
        last = fields[-1].get("String")
        if last is None:
            return
        name = last["sval"]
        if name in SYSTEM_COLUMNS:
            self.refuse("system_column", name)
        if len(fields) > 1:
            self.attributes.add(name)

    def indirection(self, node: Node, scope: Scope) -> None:
        for step in node.get("indirection", ()):
            if "String" in step:
                self.attributes.add(step["String"]["sval"])
        self.fields(node, scope)

    def constant(self, node: Node, scope: Scope) -> None:
        text = node.get("sval")
        if text is not None and names_a_moment(text.get("sval", "")):
            self.refuse("time_literal", text["sval"][:40])

    def parameter(self, node: Node, scope: Scope) -> None:
        self.params = True
        self.parameters.append(node.get("number", 0))

    def call(self, node: Node, scope: Scope) -> None:
        if len(node["funcname"]) > 2:
            self.refuse("other_database", ".".join(part["String"]["sval"] for part in node["funcname"]))
            self.unknown = True
        call = call_of(node)
        schema, name = call.schema, call.name
        self.functions.add(call)
        self.note_zone(call, node.get("args", []))
        self.note_configuration(call, node.get("args", []))
        if "over" in node:
            self.windows += 1
        elif name in AGGREGATES or not AGGREGATE_MARKS.isdisjoint(node):
            self.aggregates += 1
        if call.arguments == 1 and name not in AGGREGATES:
            self._call_as_cast(Name(schema, name), node.get("args", ()))
        if "agg_distinct" in node:
            self.operators.add(_EQUALS)
        self.fields(node, scope, "funcname")

    def _call_as_cast(self, target: Name, arguments: list[Node]) -> None:
        """``date(x)`` is a cast when there is such a type; most names are none, which is found out where types are."""
        if target.name in HARMLESS_TYPES:
            self.types.add(target)
        elif target.name in TIME_TYPES and arguments:
            self.types.add(target)
            self.casts.append((target, arguments[0]))
        else:
            known = ("A_Const", "ParamRef") if self.arguments is None else ("A_Const",)
            if not arguments or not any(kind in arguments[0] for kind in known):
                self.casts.append((target, None))

    def value_function(self, node: Node, scope: Scope) -> None:
        what = node.get("op", "")[6:].lower()
        if what.startswith(("current_date", "current_time", "localtime")):
            self.refuse("time_dependent", what.removesuffix("_n"))
        elif what not in ("current_role", "current_user", "user", "session_user", "current_catalog", "current_schema"):
            self.refuse("unsupported_syntax", what)

    def operator(self, node: Node, scope: Scope) -> None:
        kind = node["kind"]
        path = [part["String"]["sval"] for part in node["name"]]
        implied = IMPLIED.get(kind)
        if implied is not None:
            for name in implied:
                self.operators.add(Name(None, name))
        else:
            self.operators.add(_qualified(path))
            if path[-1] in VECTOR_OPERATORS:
                self.vector = True
        if "lexpr" in node:
            self.visit(node["lexpr"], scope)
        if "rexpr" in node:
            self.visit(node["rexpr"], scope)

    def sublink(self, node: Node, scope: Scope) -> None:
        kind = node.get("subLinkType")
        if kind in ("ANY_SUBLINK", "ALL_SUBLINK"):
            path = [part["String"]["sval"] for part in node.get("operName", ())] or ["="]
            self.operators.add(_qualified(path))
        self.fields(node, scope, "operName")

    def case(self, node: Node, scope: Scope) -> None:
        if "arg" in node:
            self.operators.add(_EQUALS)
        self.fields(node, scope)

    def sort(self, node: Node, scope: Scope) -> None:
        if "useOp" in node:
            path = [part["String"]["sval"] for part in node["useOp"]]
            self.operators.add(_qualified(path))
        self.fields(node, scope, "useOp")

    # -- types --------------------------------------------------------------------------------------------------------

    def cast(self, node: Node, scope: Scope) -> None:
        target = self.type_name(node["typeName"])
        if target is not None and target.name not in HARMLESS_TYPES:
            self.casts.append((target, node["arg"]))
        self.visit(node["arg"], scope)

    def collation(self, node: Node, scope: Scope) -> None:
        self.note_collation([part["String"]["sval"] for part in node["collname"]])
        self.fields(node, scope)

    def typed_column(self, node: Node, scope: Scope) -> None:
        """A column declared with a type (JSON_TABLE, XMLTABLE, ``AS f(a date)``): its value comes from text."""
        if "typeName" in node:
            target = self.type_name(node["typeName"])
            if target is not None and target.name not in HARMLESS_TYPES:
                self.casts.append((target, None))
        self.fields(node, scope, "typeName")

    def type_mention(self, node: Node, scope: Scope) -> None:
        self.type_name(node)

    def type_name(self, node: Node) -> Name | None:
        path = [part["String"]["sval"] for part in node.get("names", ())]
        if not path or len(path) > 2 or node.get("pct_type"):
            self.unknown = True
            self.refuse("unsupported_syntax", ".".join(path) + "%TYPE")
            return None
        name = path[-1].removeprefix("_")
        if name in REG_TYPES:
            self.refuse("reg_type", name)
        elif name == "timetz":
            self.refuse("time_dependent", "time with time zone")
        target = Name(path[-2] if len(path) > 1 else None, path[-1])
        self.types.add(target)
        return target

    # -- JSON and XML -------------------------------------------------------------------------------------------------

    def json_call(self, node: Node, scope: Scope) -> None:
        self.functions.add(FunctionCall(None, JSON_CALLS.get(node.get("op", ""), "json_value"), -1, True))
        self.fields(node, scope)

    def json_table(self, node: Node, scope: Scope) -> None:
        self.functions.add(FunctionCall(None, "json_table", -1, True))
        self.fields(node, scope)


def _keyword_call(name: str) -> Callable[[Walk, Any, Scope], None]:
    call = FunctionCall(None, name, -1, True)

    def handle(walk: Walk, node: Node, scope: Scope) -> None:
        walk.functions.add(call)
        walk.fields(node, scope)

    return handle


def _skip(walk: Walk, node: Node, scope: Scope) -> None:
    """Nothing in there names anything that matters."""


_HANDLERS: dict[str, Callable[[Walk, Any, Scope], None]] = {
    "SelectStmt": Walk.select,
    "InsertStmt": Walk.modify,
    "UpdateStmt": Walk.modify,
    "DeleteStmt": Walk.modify,
    "MergeStmt": Walk.modify,
    "RangeVar": Walk.range_var,
    "JoinExpr": Walk.join,
    "RangeTableSample": Walk.sample,
    "ColumnRef": Walk.column,
    "A_Indirection": Walk.indirection,
    "A_Const": Walk.constant,
    "ParamRef": Walk.parameter,
    "FuncCall": Walk.call,
    "SQLValueFunction": Walk.value_function,
    "A_Expr": Walk.operator,
    "SubLink": Walk.sublink,
    "CaseExpr": Walk.case,
    "SortBy": Walk.sort,
    "TypeCast": Walk.cast,
    "typeName": Walk.type_mention,
    "CollateClause": Walk.collation,
    "collClause": Walk.collation,
    "ColumnDef": Walk.typed_column,
    "RangeFunction": Walk.fields,
    "RangeTableFunc": Walk.fields,
    "RangeTableFuncCol": Walk.typed_column,
    "JsonTableColumn": Walk.typed_column,
    "JsonFuncExpr": Walk.json_call,
    "JsonTable": Walk.json_table,
    "output": Walk.typed_column,
    "alias": _skip,
    "collname": _skip,
    **{node: _keyword_call(name) for node, name in KEYWORD_CALLS.items()},
}


def _qualified(path: list[str]) -> Name:
    return Name(path[-2] if len(path) > 1 else None, path[-1])
