"""A statement's tree to its facts: one table from node type to kind.

Rules:

1. A statement type that is not in the table is DDL: the kind with the widest effects.
2. What is read and run follows from the walk (``relations``), never from the text.
3. A tree of another shape than is foreseen raises whatever it raises: ``parse`` makes of it a text not understood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distribcache.sql.cacheability import Kind, Refusal, Statement
from distribcache.sql.levels import levels_of
from distribcache.sql.relations import Walk
from distribcache.sql.shape import shape_of

__all__ = ["EMPTY", "statement_of"]

Node = dict[str, Any]
_NOT_A_READ = Refusal("not_a_read")
EMPTY = Statement(Kind.EMPTY, refusal=_NOT_A_READ, is_pure_candidate=True)


def statement_of(node: Node, nocache: bool, text: bytes = b"") -> Statement:
    """``nocache``: a comment asks for that. ``text`` is given where levels are wanted: what is read, level by level."""
    if len(node) != 1:
        return EMPTY
    ((kind, fields),) = node.items()
    if kind == "SelectStmt":
        return _select(node, fields, nocache, text)
    facts = _KINDS.get(kind)
    if facts is None:
        return Statement(Kind.DDL, refusal=_NOT_A_READ)
    return facts(fields) if callable(facts) else Statement(facts, refusal=_NOT_A_READ)


def _select(node: Node, fields: Node, nocache: bool, text: bytes) -> Statement:
    walk = Walk()
    walk.query(node)
    kind = Kind.READ
    refusal = walk.refusal
    if walk.creates:
        kind, refusal = Kind.DDL, Refusal("not_a_read", "SELECT INTO")
    elif walk.writes:
        kind, refusal = Kind.WRITE, Refusal("data_modifying_cte")
    elif walk.locks:
        kind, refusal = Kind.LOCKING_READ, Refusal("locking_read")
    elif nocache:
        refusal = Refusal("nocache")
    elif refusal is None and not walk.relations and not walk.functions:
        refusal = Refusal("no_relation")
    return Statement(
        kind,
        names=walk.names(),
        refusal=refusal,
        has_params=walk.params,
        is_pure_candidate=kind is Kind.READ and not walk.unknown,
        is_write_candidate=kind is Kind.WRITE and not walk.unknown and not walk.creates,
        shape=shape_of(walk, fields),
        nocache=nocache,
        levels=levels_of(walk, text) if text and refusal is None else None,
    )


def _modify(kind: str) -> Callable[[Node], Statement]:
    def facts(fields: Node) -> Statement:
        walk = Walk()
        walk.query({kind: fields})
        return Statement(
            Kind.WRITE, names=walk.names(), refusal=_NOT_A_READ, has_params=walk.params,
            is_write_candidate=not walk.unknown and not walk.creates,
        )  # fmt: skip

    return facts


def _named(kind: Kind, field: str) -> Callable[[Node], Statement]:
    """A statement about one named thing; without a name it is about all of them."""

    def facts(fields: Node) -> Statement:
        name = fields.get(field, "")
        return Statement(kind, name=name, every=not name, refusal=_NOT_A_READ)

    return facts


_TRANSACTION = {
    "TRANS_STMT_BEGIN": Kind.BEGIN,
    "TRANS_STMT_START": Kind.BEGIN,
    "TRANS_STMT_COMMIT": Kind.COMMIT,
    "TRANS_STMT_ROLLBACK": Kind.ROLLBACK,
    "TRANS_STMT_SAVEPOINT": Kind.SAVEPOINT,
    "TRANS_STMT_RELEASE": Kind.RELEASE,
    "TRANS_STMT_ROLLBACK_TO": Kind.ROLLBACK_TO,
    "TRANS_STMT_PREPARE": Kind.PREPARE_TRANSACTION,
    "TRANS_STMT_COMMIT_PREPARED": Kind.TWO_PHASE_END,
    "TRANS_STMT_ROLLBACK_PREPARED": Kind.TWO_PHASE_END,
}


def _modes(options: list[Node]) -> dict[str, Any]:
    modes: dict[str, Any] = {}
    for option in options:
        element = option.get("DefElem", {})
        constant = element.get("arg", {}).get("A_Const", {})
        match element.get("defname"):
            case "transaction_isolation":
                modes["isolation"] = constant["sval"]["sval"].lower()
            case "transaction_read_only":
                modes["read_only"] = bool(constant["ival"].get("ival", 0))
            case "transaction_deferrable":
                modes["deferrable"] = bool(constant["ival"].get("ival", 0))
    return modes


def _transaction(fields: Node) -> Statement:
    return Statement(
        _TRANSACTION[fields["kind"]],
        name=str(fields.get("savepoint_name") or fields.get("gid") or ""),
        chain=fields.get("chain", False),
        refusal=_NOT_A_READ,
        **_modes(fields.get("options", [])),
    )


def _set(fields: Node) -> Statement:
    kind = fields.get("kind", "VAR_SET_VALUE")
    name = fields.get("name", "").lower()
    local = fields.get("is_local", False)
    if kind == "VAR_RESET_ALL":
        return Statement(Kind.RESET, every=True, refusal=_NOT_A_READ)
    if kind in ("VAR_RESET", "VAR_SET_DEFAULT"):
        return Statement(Kind.RESET, name=name, local=local, refusal=_NOT_A_READ)
    arguments = fields.get("args", [])
    if kind == "VAR_SET_MULTI":
        modes = {} if "snapshot" in name else _modes(arguments)
        return Statement(Kind.SET_TRANSACTION, name=name, local=local, refusal=_NOT_A_READ, **modes)
    value = _plain(arguments[0]) if len(arguments) == 1 and kind == "VAR_SET_VALUE" else None
    return Statement(Kind.SET, name=name, value=value, local=local, refusal=_NOT_A_READ)


def _plain(node: Node) -> str | None:
    """The value of a plain literal or word as text."""
    constant = node.get("A_Const", {})
    if "sval" in constant:
        return str(constant["sval"].get("sval", ""))
    if "ival" in constant:
        return str(constant["ival"].get("ival", 0))
    if "fval" in constant:
        return str(constant["fval"].get("fval", ""))
    return None


def _show(fields: Node) -> Statement:
    return Statement(Kind.SHOW, name=fields["name"].lower(), refusal=_NOT_A_READ, is_pure_candidate=True)


def _discard(fields: Node) -> Statement:
    what = fields.get("target", "DISCARD_ALL").removeprefix("DISCARD_").lower()
    return Statement(Kind.DISCARD, name="" if what == "all" else what, every=what == "all", refusal=_NOT_A_READ)


def _database(fields: Node) -> Statement:
    template = "template1"
    for option in fields.get("options", []):
        element = option["DefElem"]
        if element["defname"] == "template":
            argument = element.get("arg", {})
            template = str(argument.get("String", {}).get("sval") or _plain(argument) or template)
    return _databases(fields["dbname"], template)


def _databases(name: str, *others: str) -> Statement:
    names = (name, *others)
    return Statement(Kind.DATABASE, name=name, databases=tuple(dict.fromkeys(names)), refusal=_NOT_A_READ)


def _rename(fields: Node) -> Statement:
    if fields.get("renameType") == "OBJECT_DATABASE":
        return _databases(fields["subname"], fields["newname"])
    return Statement(Kind.DDL, refusal=_NOT_A_READ)


def _explain(fields: Node) -> Statement:
    """EXPLAIN ANALYZE runs its statement, so it has that statement's effects."""
    inner = statement_of(fields["query"], False)
    for option in fields.get("options", []):
        element = option["DefElem"]
        if element["defname"].lower() == "analyze" and inner.kind is not Kind.READ:
            return Statement(inner.kind, names=inner.names, refusal=_NOT_A_READ)
    return Statement(Kind.EXPLAIN, names=inner.names, refusal=_NOT_A_READ)


_KINDS: dict[str, Kind | Callable[[Node], Statement]] = {
    "TransactionStmt": _transaction,
    "VariableSetStmt": _set,
    "VariableShowStmt": _show,
    "InsertStmt": _modify("InsertStmt"),
    "UpdateStmt": _modify("UpdateStmt"),
    "DeleteStmt": _modify("DeleteStmt"),
    "MergeStmt": _modify("MergeStmt"),
    "TruncateStmt": Kind.WRITE,
    "CreatedbStmt": _database,
    "DropdbStmt": lambda fields: _databases(fields["dbname"]),
    "AlterDatabaseStmt": lambda fields: _databases(fields["dbname"]),
    "RenameStmt": _rename,
    "LockStmt": Kind.LOCK,
    "CopyStmt": Kind.COPY,
    "ListenStmt": _named(Kind.LISTEN, "conditionname"),
    "UnlistenStmt": _named(Kind.UNLISTEN, "conditionname"),
    "NotifyStmt": _named(Kind.NOTIFY, "conditionname"),
    "DeallocateStmt": _named(Kind.DEALLOCATE, "name"),
    "DiscardStmt": _discard,
    "ClosePortalStmt": _named(Kind.CLOSE, "portalname"),
    "DeclareCursorStmt": _named(Kind.DECLARE, "portalname"),
    "FetchStmt": _named(Kind.FETCH, "portalname"),
    "PrepareStmt": _named(Kind.PREPARE, "name"),
    "ExecuteStmt": _named(Kind.EXECUTE, "name"),
    "DoStmt": Kind.DO,
    "CallStmt": Kind.CALL,
    "ExplainStmt": _explain,
    # They change neither rows nor definitions.
    "VacuumStmt": Kind.OTHER,
    "CheckPointStmt": Kind.OTHER,
    "ConstraintsSetStmt": Kind.OTHER,
    "LoadStmt": Kind.OTHER,
}
