"""A change of a row that no pin admits never changes an answer: random queries over small tables, on a real server.

For each query the server answers, one row is changed, and the server answers again. If the answers differ, then some
place where the query reads that table must have no pin, or the row must match the pins of such a place before or after
its change. The queries are made without care for what they mean: those that the server refuses are left out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fix_postgres import Database

from distribcache.sql import levels
from distribcache.sql.cacheability import Name
from distribcache.sql.fold import literals
from distribcache.sql.levels import Value
from distribcache.sql.parse import read
from distribcache.sql.predicates import Pinned, occurrences

TABLES = {"p": ("id", "a", "b", "s"), "q": ("id", "a", "c", "s"), "r": ("k", "a")}
QUERIES = 500
CHANGES = 10
ROWS = 4

Row = dict[str, str | None]
Seen = dict[str, tuple[str, ...]]
"""Aliases and their columns."""


class Grammar:
    """Random queries: every alias is used in conditions, so that most of what is written has a meaning."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.aliases = 0

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def query(self) -> str:
        text = self.select({}, 2)
        if self.chance(0.15):
            text = f"{text} {self.pick('UNION', 'UNION ALL', 'EXCEPT', 'INTERSECT')} {self.select({}, 1)}"
        if self.chance(0.2):
            text = f"WITH w AS ({self.select({}, 1)}) {text} UNION ALL SELECT n FROM w"
        # A text with a comment does not fold: its constants are taken as they are.
        return text + self.pick("", "", " -- whole")

    def select(self, outer: Seen, depth: int) -> str:
        """A SELECT of one number called n. ``outer``: the aliases of the queries around it, with their columns."""
        seen: Seen = {}
        sources = ", ".join(self.source(seen, outer, depth) for _ in range(self.pick(1, 1, 1, 2)))
        where = f" WHERE {self.condition({**outer, **seen}, depth)}" if self.chance(0.75) else ""
        number = self.number(seen)
        match self.random.randrange(8):
            case 6:
                frame = self.pick("", f"ORDER BY {number}", f"PARTITION BY {self.column(seen)}")
                return f"SELECT (sum({number}) OVER ({frame}))::int AS n FROM {sources}{where}"
            case 0:
                return f"SELECT count(*)::int AS n FROM {sources}{where}"
            case 1:
                return f"SELECT sum({number})::int AS n FROM {sources}{where} GROUP BY {self.column(seen)}"
            case 2:
                return f"SELECT DISTINCT {number} AS n FROM {sources}{where}"
            case 3:
                group = self.column(seen)
                having = f"HAVING {group} = {self.value('')}"
                return f"SELECT max({number}) AS n FROM {sources}{where} GROUP BY {group} {having}"
            case _:
                return f"SELECT {number} AS n FROM {sources}{where}"

    def source(self, seen: Seen, outer: Seen, depth: int) -> str:
        if depth and self.chance(0.5):
            one: Seen = {}
            other: Seen = {}
            left = self.source(one, outer, depth - 1)
            right = self.source(other, outer, depth - 1)
            inner = {**one, **other}
            kind = self.pick("JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
            # The server joins fully by equalities only.
            full = kind == "FULL JOIN" and self.chance(0.9)
            condition = f"{self.column(one)} = {self.column(other)}" if full else self.condition(inner, 0)
            joined = f"{left} {kind} {right} ON {condition}"
            if self.chance(0.05):
                joined = f"{left} {kind} {right} USING (a)"
            joined = f"({joined})"
            if self.chance(0.05):
                self.aliases += 1
                joined += f" AS j{self.aliases}"
            seen.update(inner)
            return joined
        # Aliases are used again in inner queries, where they mean something else.
        self.aliases = 0 if self.chance(0.1) else self.aliases + 1
        alias = f"x{self.aliases}"
        if depth and self.chance(0.15):
            lateral = "LATERAL " if self.chance(0.3) else ""
            text = self.select({**outer, **seen} if lateral else outer, depth - 1)
            seen[alias] = ("n",)
            return f"{lateral}({text}) AS {alias}"
        table = self.pick(*TABLES)
        if self.chance(0.1):
            seen.setdefault(table, TABLES[table])
            return str(table)
        seen[alias] = TABLES[table]
        return f"{table} AS {alias}"

    def number(self, seen: Seen) -> str:
        return self.pick(f"coalesce({self.column(seen)}, 0)", self.column(seen), f"{self.column(seen)} + 1", "1")

    def column(self, seen: Seen, *, text: bool = False) -> str:
        columns = [(alias, name) for alias, names in seen.items() for name in names if (name == "s") is text]
        if not columns:
            return self.column(seen) if text else "a"
        alias, name = self.pick(*columns)
        alone = sum(name in names for names in seen.values()) == 1
        return name if self.chance(0.2 if alone else 0.02) else f"{alias}.{name}"

    def value(self, column: str) -> str:
        if column.endswith("s"):
            return self.pick("'1'", "'2'", "'x'", "''")
        return self.pick("1", "1", "2", "2", "3", "'1'", "'2'", "1::int8", "-1" if self.chance(0.5) else "NULL")

    def condition(self, seen: Seen, depth: int) -> str:
        parts = [self.atom(seen, depth) for _ in range(self.pick(1, 2, 2, 3))]
        text = parts[0]
        for part in parts[1:]:
            text = f"{text} {'OR' if self.chance(0.12) else 'AND'} {part}"
        return f"NOT ({text})" if self.chance(0.05) else text

    def atom(self, seen: Seen, depth: int) -> str:
        column = self.column(seen, text=self.chance(0.15))
        match self.random.randrange(19):
            case 16:
                elements = self.pick("{1,x}", '{"",2}') if column.endswith("s") else self.pick("{1}", "{2,3}", "{1,-1}")
                return f"{column} = ANY ('{elements}')"
            case 17:
                other = self.column(seen)
                return f"({column}, {other}) = ({self.value(column)}, {self.value(other)})"
            case 18:
                other = self.column(seen)
                rows = [f"({self.value(column)}, {self.value(other)})" for _ in range(self.pick(1, 2))]
                return f"({column}, {other}) IN ({', '.join(rows)})"
            case 0 | 1 | 2 | 3 | 4:
                return f"{column} = {self.value(column)}"
            case 5:
                return f"{self.value(column)} = {column}"
            case 6 | 7 | 8 | 9:
                return f"{column} = {self.column(seen, text=column.endswith('s'))}"
            case 10:
                return f"{column} IN ({self.value(column)}, {self.value(column)})"
            case 11:
                elements = "'1', 'x'" if column.endswith("s") else self.pick("1", "2, 3", "1, -1")
                return f"{column} = ANY (ARRAY[{elements}])"
            case 12:
                return f"{column} IS {self.pick('NULL', 'NOT NULL')}"
            case 13:
                operator = self.pick("<>", "<", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM")
                return f"{column} {operator} {self.value(column)}"
            case 14 if depth:
                return f"{self.pick('EXISTS', 'NOT EXISTS')} ({self.select(seen, depth - 1)})"
            case 15 if depth:
                return f"{column} {self.pick('IN', 'NOT IN')} ({self.select(seen, depth - 1)})"
            case _:
                return f"({column} = {self.value(column)} OR {self.column(seen)} = 1)"


@dataclass(slots=True)
class Outcome:
    """``differed``: changes that altered a pinned answer; ``spared``: those that the pins say cannot; ``wrong``."""

    pinned: int = 0
    differed: int = 0
    spared: int = 0
    wrong: list[str] = field(default_factory=list)


def columns_of(name: Name) -> frozenset[str] | None:
    return frozenset({*TABLES[name.name], "key"}) if name.name in TABLES else None


def pinned(text: str) -> Pinned | None:
    parsed = read(text.encode())
    return occurrences(parsed.statements[0].levels, columns_of) if parsed.statements else None


def admits(found: Pinned, text: str, table: str, rows: Iterable[Row | None]) -> bool:
    """Whether a change of ``table`` from one of ``rows`` to the other may matter, as far as the pins say."""
    listed = literals(text.encode())

    def shown(value: Value) -> list[str]:
        if value.array:
            return value.const.strip("{}").replace('"', "").split(",")
        return [listed[value.literal].decode() if value.literal >= 0 else value.const]

    return any(
        all(any(row is not None and row[pin.column] in shown(value) for value in pin.values) for pin in each.pins)
        for each in found.occurrences
        if each.relation.name == table
        for row in rows
        if row is not None or not each.pins
    )


class World:
    """The tables, as the server has them and as the test knows them."""

    def __init__(self, connection: psycopg.Connection[Any], choose: random.Random) -> None:
        self.connection = connection
        self.random = choose
        self.rows: dict[str, list[Row]] = {}
        for table, columns in TABLES.items():
            kinds = ", ".join(f"{column} {'text' if column == 's' else 'int'}" for column in columns)
            connection.execute(f"CREATE TABLE {table} (key int, {kinds})".encode())

    def fill(self) -> None:
        for table in TABLES:
            self.rows[table] = [self.row(table, key) for key in range(ROWS)]
            statements = [f"TRUNCATE {table}", *(self.insert(table, row) for row in self.rows[table])]
            self.connection.execute("; ".join(statements).encode())

    def row(self, table: str, key: int) -> Row:
        numbers = self.random.choices(["1", "2", "3", "-1", None], [6, 5, 2, 1, 2], k=len(TABLES[table]))
        row = dict(zip(TABLES[table], numbers, strict=True))
        if "s" in row:
            row["s"] = self.random.choice(["1", "2", "x", "", None])
        return {"key": str(key), **row}

    def insert(self, table: str, row: Row) -> str:
        return f"INSERT INTO {table} VALUES ({', '.join(map(quoted, row.values()))})"

    def change(self, tables: list[str]) -> tuple[str, str, Row | None, Row | None]:
        """One of the tables, a statement, and the row before and after it."""
        table = self.random.choice(tables)
        old, new = self.random.choice(self.rows[table]), self.row(table, ROWS)
        match self.random.randrange(4):
            case 0:
                return table, self.insert(table, new), None, new
            case 1:
                return table, f"DELETE FROM {table} WHERE key = {old['key']}", old, None
            case _:
                column = self.random.choice(TABLES[table])
                changed = {**old, column: new[column]}
                where = f"WHERE key = {old['key']}"
                return table, f"UPDATE {table} SET {column} = {quoted(new[column])} {where}", old, changed

    def answer(self, text: str, change: str = "SELECT") -> list[Any] | None:
        """The rows of the query after a change that is taken back, in no order; None when the server refuses it."""
        try:
            cursor = self.connection.execute(f"BEGIN; {change}; {text.removesuffix(' -- whole')}; ROLLBACK".encode())
        except psycopg.Error:
            self.connection.execute("ROLLBACK")
            return None
        cursor.nextset()
        cursor.nextset()
        return sorted(cursor.fetchall(), key=repr)


def quoted(value: str | None) -> str:
    return "NULL" if value is None else f"'{value}'"


def play(database: Database, queries: int = QUERIES) -> Outcome:
    """Random queries and changes; ends at the first wrong pin."""
    seed = int(os.environ.get("SEED", "7"))
    grammar, outcome = Grammar(seed), Outcome()
    with database.connect() as connection:
        world = World(connection, random.Random(seed))
        for number in range(queries):
            if number % 20 == 0:
                world.fill()
            text = grammar.query()
            found = pinned(text)
            if found is None or not any(each.pins for each in found.occurrences):
                continue
            before = world.answer(text)
            if before is None:
                continue
            outcome.pinned += 1
            tables = [each.relation.name for each in found.occurrences]
            for _ in range(CHANGES):
                table, change, old, new = world.change(tables)
                admitted = admits(found, text, table, (old, new))
                outcome.spared += not admitted
                after = world.answer(text, change)
                if after is not None and after != before:
                    outcome.differed += 1
                    if not admitted:
                        outcome.wrong.append(f"{text}\n{found}\n{change}: {old} -> {new}\n{before} -> {after}")
                        return outcome
    return outcome


def test_what_no_pin_admits_changes_no_answer(database: Database) -> None:
    outcome = play(database)
    assert outcome.wrong == []
    assert outcome.pinned > QUERIES // 10
    assert outcome.differed > 50
    assert outcome.spared > 50


def _kept_side_too(kind: str, first: int, middle: int, end: int) -> tuple[int, int] | None:
    return None if kind == "JOIN_FULL" else (first, end)


def _full_like_inner(kind: str, first: int, middle: int, end: int) -> tuple[int, int] | None:
    return (first, end) if kind == "JOIN_FULL" else levels_filtered(kind, first, middle, end)


def _or_like_and(node: dict[str, Any]) -> Iterable[dict[str, Any]]:
    expression = node.get("BoolExpr")
    return (node,) if expression is None else [each for one in expression["args"] for each in _or_like_and(one)]


levels_filtered = levels._filtered


@pytest.mark.sabotage
@pytest.mark.parametrize(
    ("what", "wrong"),
    [("_filtered", _kept_side_too), ("_filtered", _full_like_inner), ("_conjuncts", _or_like_and)],
)
def test_a_wrong_rule_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, what: str, wrong: Callable[..., Any]
) -> None:
    """An ON that pins the side that an outer join keeps, a full join taken for an inner one, OR taken for AND."""
    monkeypatch.setattr(levels, what, wrong)
    assert play(database, 8 * QUERIES).wrong != []
