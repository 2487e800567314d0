"""Replies that the proxy composes itself: small results, transaction control, errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distribcache.errors import DistribCacheError
from distribcache.wire.messages import command_complete, data_row, error_response, row_description

__all__ = ["READY", "Table", "describe_rows", "fatal", "rows", "rows_in"]

READY = {b"I": b"Z\0\0\0\5I", b"T": b"Z\0\0\0\5T", b"E": b"Z\0\0\0\5E"}

_TEXT = 25
_COUNTED = re.compile(rb"C\0\0\0.SELECT (\d+)\0\Z", re.DOTALL)
_LONGEST_TAG = 40

Table = tuple[tuple[str, ...], list[tuple[str | None, ...]]]
"""Column names and rows; every column has type text, whose binary form is its text form."""


def describe_rows(columns: Sequence[str], formats: Sequence[int] = ()) -> bytes:
    """RowDescription of text columns in the formats that a Bind asked for."""
    each = [formats[0]] * len(columns) if len(formats) == 1 else list(formats) or [0] * len(columns)
    each += [0] * (len(columns) - len(each))
    return row_description([(name.encode(), _TEXT, -1, form) for name, form in zip(columns, each, strict=False)])


def rows(table: Table) -> bytes:
    """DataRows and CommandComplete."""
    lines = [data_row([None if value is None else value.encode() for value in row]) for row in table[1]]
    return b"".join(lines) + command_complete(b"SHOW")


def rows_in(payload: bytes) -> int:
    """How many rows the last command of a reply has returned, by its own word; 0 when it does not say."""
    found = _COUNTED.search(payload[-_LONGEST_TAG:])
    return int(found[1]) if found else 0


def fatal(error: DistribCacheError) -> bytes:
    """The error that ends a connection."""
    return error_response("FATAL", error.sqlstate, error.message, hint=error.hint)
