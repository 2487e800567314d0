"""Text to facts: PostgreSQL's own grammar (libpg_query through postgast), and what ``kinds`` makes of its trees.

``read`` never raises: what it does not understand has ``Parsed.error`` and goes upstream untouched. Rules:

1. No lexing of our own. A text with a NUL, not in UTF-8 or nested too deeply is not understood. Of one over 64 KiB only
   an *outline* is made: its statements and their kinds (see ``_outline``).
2. The grammar is that of one major version; constructs which older servers read otherwise are marked by the walk.
3. ``standard_conforming_strings = off`` and client encodings other than UTF-8 make the server read another text than we
   do: the session must not be analysed at all then. That is for the caller, who knows the session.

The tree is taken as JSON, not as protobuf messages: decoding and walking it is three times as fast (measured).
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from distribcache.sql.cacheability import Kind, Parsed, Refusal, Statement
from distribcache.sql.kinds import EMPTY, statement_of

__all__ = ["MAX_OUTLINE", "MAX_TEXT", "ParseError", "expression_tree", "read", "tree_of"]

# No plain imports: one of its stubs is not valid Python, and whoever checks the types of a program that uses the
# library would see nothing but that.
postgast: Any = importlib.import_module("postgast")
lib: Any = importlib.import_module("postgast.native").lib

MAX_TEXT = 64 * 1024
MAX_OUTLINE = 1024 * 1024
_MOST_STATEMENTS = 1000
# A longer tree would hold up the event loop for more than 50 ms; an IN list of 64 KiB is shorter.
_MAX_TREE = 768 * 1024

Node = dict[str, Any]
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
        statements = tuple([statement_of(node, nocache, text if len(nodes) == 1 else b"") for node in nodes])
    except ParseError as problem:
        return _outline(text) if str(problem) == _TOO_LARGE else Parsed((), str(problem))
    except RecursionError:
        return Parsed((), "nested too deeply")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as problem:
        # A shape of tree that we did not foresee is a text that we do not understand.
        return Parsed((), f"unforeseen tree: {type(problem).__name__}")
    return Parsed(statements or (EMPTY,))


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
    return Parsed(tuple(statements) or (EMPTY,))


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
