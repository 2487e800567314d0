"""One connection of an application, and a stopwatch on its questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from distribcache.cli.demonstration.questions import BUYER, ORDER, ORDER_LINES
from distribcache.clock import now_ns

__all__ = ["Client", "Rows"]

Rows = list[tuple[Any, ...]]


class Client:
    """An autocommit connection. ``began_ns`` and ``ended_ns`` are of the last question; errors are psycopg's."""

    def __init__(self, conninfo: str, *, setting: LiteralString | None = None) -> None:
        self._connection = psycopg.connect(conninfo, autocommit=True)
        if setting is not None:
            self._connection.execute(setting)
        self.began_ns = 0
        self.ended_ns = 0

    def ask(self, sql: LiteralString, parameters: Sequence[object] | None = None) -> Rows:
        """All rows, timed."""
        self.began_ns = now_ns()
        rows = self._connection.execute(sql, parameters).fetchall()
        self.ended_ns = now_ns()
        return rows

    def outcome(self) -> tuple[str, str]:
        """Status and reason of the last question, in the cache's own words."""
        row = self._connection.execute("SHOW distribcache.last").fetchone()
        return (row[0] or "", row[2] or "") if row is not None else ("", "")

    def order(self, second: int, products: list[int]) -> int:
        """Place an order of one each, in one transaction, so many seconds after the last evening began; its number."""
        with self._connection.transaction():
            row = self._connection.execute(ORDER, (BUYER, second)).fetchone()
            assert row is not None
            self._connection.execute(ORDER_LINES, (row[0], products))
        return int(row[0])

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
