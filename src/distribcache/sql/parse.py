"""Text to facts: PostgreSQL's own grammar (libpg_query through postgast), and one table from node type to kind.

``read`` never raises: what it does not understand has ``Parsed.error`` and goes upstream untouched. Rules:

1. No lexing of our own. A text with a NUL, not in UTF-8 or nested too deeply is not understood. Of one over 64 KiB only
   an *outline* is made: its statements and their kinds (see ``_outline``).
2. A statement type that is not in the table is DDL: the kind with the widest effects.
3. The grammar is that of one major version; constructs which older servers read otherwise are marked by the walk.
4. ``standard_conforming_strings = off`` and client encodings other than UTF-8 make the server read another text than we
   do: the session must not be analysed at all then. That is for the caller, who knows the session.

The tree is taken as JSON, not as protobuf messages: decoding and walking it is three times as fast (measured).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import postgast
from postgast.native import lib

from distribcache.sql.cacheability import Kind, Parsed, Refusal, Statement
from distribcache.sql.levels import levels_of
from distribcache.sql.relations import Walk
from distribcache.sql.shape import shape_of

__all__ = ["MAX_OUTLINE", "MAX_TEXT", "ParseError", "expression_tree", "read", "tree_of"]

MAX_TEXT = 64 * 1024
MAX_OUTLINE = 1024 * 1024
_MOST_STATEMENTS = 1000
# A longer tree would hold up the event loop for more than 50 ms; an IN list of 64 KiB is shorter.
_MAX_TREE = 768 * 1024

Node = dict[str, Any]
_NOT_A_READ = Refusal("not_a_read")
_EMPTY = Statement(Kind.EMPTY, refusal=_NOT_A_READ, is_pure_candidate=True)
_TOO_LARGE = "too large"
_TOO_SLOW = "too many operator characters in a row"
_RUNS = re.compile(rb"[~!@#^&|`?+\-*/%<>=]{32,}")
_MOST_STEPS = 4_000_000
_WRITE = Statement(Kind.WRITE, refusal=Refusal("too_large"), outline=True)
_READ = Statement(Kind.LOCKING_READ, refusal=Refusal("too_large"), outline=True)
# Blanks and comments, but no nested ones; then a word.
_FIRST = re.compile(rb"(?:\s|--[^\r\n]*[\r\n]|/\*(?:(?!/\*).)*?\*/)*([a-z]+)\b", re.IGNORECASE | re.DOTALL)
_WRITES = frozenset({b"insert", b"update", b"delete", b"merge"})
_READS = frozenset({b"select", b"values", b"table", b"with"})
_INTO = re.compile(rb"into", re.IGNORECASE)
_NOCACHE = re.compile(r"distribcache\s*:\s*nocache", re.IGNORECASE)


class ParseError(ValueError):
    """The text is not understood; the message says why and never quotes the text."""


def tree_of(text: str) -> list[Node]:
    """The raw parse tree, one ``{"SelectStmt": …}`` per statement. Raises ParseError."""
    raw_text = text.encode()
    if _is_slow(raw_text):
        raise ParseError(_TOO_SLOW)
    result = lib.pg_query_parse(raw_text)
    try:
        if result.error:
            raise ParseError("syntax error")
        raw: bytes = result.parse_tree
        if len(raw) > _MAX_TREE:
            raise ParseError(_TOO_LARGE)
        tree = json.loads(raw, strict=False)
    except RecursionError:
        raise ParseError("nested too deeply") from None
    except ParseError:
        raise
    except ValueError:
        raise ParseError("the parser's answer is not readable") from None
    finally:
        lib.pg_query_free_parse_result(result)
    return [item.get("stmt", {}) for item in tree.get("stmts", ())]


def read(text: bytes) -> Parsed:
    """The facts about every statement in ``text``; ``error`` is set when it is not understood. Never raises."""
    if b"\0" in text:
        # The parser would see a shorter text than the server's protocol error shows.
        return Parsed((), "NUL byte")
    try:
        sql = text.decode()
    except UnicodeDecodeError:
        return Parsed((), "not UTF-8")
    if len(text) > MAX_TEXT:
        return _outline(text)
    try:
        nodes = tree_of(sql)
        nocache = _NOCACHE.search(sql) is not None and _says_nocache(sql)
        # Of several statements none is cached: what they read, level by level, is of no use.
        statements = tuple([_statement(node, nocache, text if len(nodes) == 1 else b"") for node in nodes])
    except ParseError as problem:
        return _outline(text) if str(problem) == _TOO_LARGE else Parsed((), str(problem))
    except RecursionError:
        return Parsed((), "nested too deeply")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as problem:
        # A shape of tree that we did not foresee is a text that we do not understand.
        return Parsed((), f"unforeseen tree: {type(problem).__name__}")
    return Parsed(statements or (_EMPTY,))


def _is_slow(text: bytes) -> bool:
    """Would the lexer take long? It reads a run of operator characters again for every token in it: 64 KiB of ``/*``
    take eleven seconds (measured).
    """
    return len(text) > 1000 and sum((run.end() - run.start()) ** 2 for run in _RUNS.finditer(text)) > _MOST_STEPS


def _outline(text: bytes) -> Parsed:
    """Kinds only, of a text whose tree would be too large; measured: 35 ms per MiB, mostly without the GIL.

    The grammar says where each statement ends, and what it is follows from its first word, for four kinds of writes.
    Other statements are not understood, except queries without INTO anywhere: these may write and lock, in a WITH or in
    a function, but create no table.
    """
    if len(text) > MAX_OUTLINE:
        return Parsed((), _TOO_LARGE)
    if _is_slow(text):
        return Parsed((), _TOO_SLOW)
    result = lib.pg_query_split_with_parser(text)
    try:
        if result.error:
            return Parsed((), "syntax error")
        if result.n_stmts > _MOST_STATEMENTS:
            return Parsed((), _TOO_LARGE)
        places = [result.stmts[i].contents for i in range(result.n_stmts)]
        bounds = [(one.stmt_location, one.stmt_location + one.stmt_len) for one in places]
    finally:
        lib.pg_query_free_split_result(result)
    statements = []
    for start, end in bounds:
        found = _FIRST.match(text, start, end)
        word = found[1].lower() if found is not None else b""
        if word in _WRITES:
            statements.append(_WRITE)
        elif word in _READS and _INTO.search(text, start, end) is None:
            statements.append(_READ)
        else:
            return Parsed((), _TOO_LARGE)
    return Parsed(tuple(statements) or (_EMPTY,))


def expression_tree(expression: str) -> Node:
    """The tree of ``SELECT expression``, for policies and constraints. Raises ParseError."""
    nodes = tree_of(f"SELECT {expression}")
    if len(nodes) != 1 or "SelectStmt" not in nodes[0]:
        raise ParseError("not an expression")
    return nodes[0]


def _says_nocache(sql: str) -> bool:
    """Whether a comment, not a literal, says so. Comments may only make caching narrower."""
    try:
        for token in postgast.scan(sql).tokens:
            # Positions count bytes.
            if token.token in _COMMENTS and _NOCACHE.search(sql.encode()[token.start : token.end].decode()):
                return True
    except Exception:  # noqa: BLE001 - whatever the scanner cannot read is not cached
        return True
    return False


_COMMENTS = frozenset({postgast.pg_query_pb2.SQL_COMMENT, postgast.pg_query_pb2.C_COMMENT})


def _statement(node: Node, nocache: bool, text: bytes = b"") -> Statement:
    if len(node) != 1:
        return _EMPTY
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
    elif refusal is None and not walk.relations:
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
    inner = _statement(fields["query"], False)
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
