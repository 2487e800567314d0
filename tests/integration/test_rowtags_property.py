"""Random tables, random transactions: whatever row tag's rows differ afterwards, its entry is not valid any more.

Tables of random columns, keys, replica identities, partitions and children, filled from tiny domains. Before each
transaction an entry is held for every tag (each combination of values of each column set); afterwards, at a strict
read, the rows of every tag are compared with those of before. With pgoutput, relations whose updates are not published
have no entries, and no statement fails because another is.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from followed import Followed, connect, following
from published import publish
from rowtag_cases import unseen
from rowtags import Pin, hold, settled

from distribcache.coherence.tuples import Change
from distribcache.coherence.watching import Plan

DOMAINS: dict[str, tuple[str, ...]] = {
    "int": ("-1", "0", "7"),
    "bigint": ("-9000000000", "3", "4"),
    "text": ("", "it's", "a: b[int]:1 new-tuple:"),
    "varchar(20)": ("null", "unchanged-toast-datum", "ä"),
    "bool": ("true", "false"),
    "date": ("2024-02-01", "2024-01-02"),
    "uuid": ("0b6c1f0e-3e0d-4d1c-8a63-7d1f1d4c0a11", "ffffffff-3e0d-4d1c-8a63-7d1f1d4c0a11"),
}
NAMES = ("a", "select", 'q"]: ', "Größe", "old-key")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass
class Table:
    """``tree``: all relations through which its rows are seen, the one to write through first."""

    name: str
    columns: dict[str, str]
    tree: list[str]
    setup: list[str] = field(default_factory=list)

    def value(self, dice: random.Random, column: str) -> str:
        text = dice.choice(DOMAINS[self.columns[column]]).replace("'", "''")
        return "NULL" if dice.random() < 0.15 else f"'{text}'"


def make_table(dice: random.Random, number: int) -> Table:
    """A table named t<number>, sometimes with partitions (the last in another order) or children."""
    name = f"t{number}"
    columns = {column: dice.choice(list(DOMAINS)) for column in dice.sample(NAMES, dice.randint(2, 4))}
    order = list(columns)
    key = order[: dice.randint(1, 2)]
    kind = dice.choice(["plain", "plain", "plain", "partitioned", "inherited"])
    has_key = dice.random() < 0.75
    table = Table(name, columns, [name])
    definitions = [f"{quoted(column)} {columns[column]}" for column in order]
    constraint = ", ".join(map(quoted, key))
    if kind == "partitioned":
        table.tree += [f"{name}_low", f"{name}_rest"]
        by = quoted(key[0])
        table.setup += [
            f"CREATE TABLE {name} (pad int, {', '.join(definitions)}, n serial) PARTITION BY LIST ({by})",
            f"CREATE TABLE {name}_low PARTITION OF {name} FOR VALUES IN ('{first(columns[key[0]])}')",
            f"CREATE TABLE {name}_rest (n int NOT NULL, x int, {', '.join(reversed(definitions))}, pad int)",
            f"ALTER TABLE {name}_rest DROP COLUMN x",
            f"ALTER TABLE {name} ATTACH PARTITION {name}_rest DEFAULT",
        ]
    else:
        table.setup.append(f"CREATE TABLE {name} ({', '.join(definitions)}, n serial)")
        if kind == "inherited":
            table.tree.append(f"{name}_child")
            table.setup.append(f"CREATE TABLE {name}_child (more int) INHERITS ({name})")
    if has_key:
        # n makes it unique whatever the values are.
        for relation in table.tree if kind == "inherited" else [name]:
            table.setup.append(f"ALTER TABLE {relation} ADD PRIMARY KEY ({constraint}, n)")
    for relation in table.tree:
        identity = dice.choice(["DEFAULT", "DEFAULT", "FULL", "NOTHING", "INDEX"])
        if identity == "INDEX" and relation not in (name, f"{name}_child"):
            identity = "FULL"
        if identity == "INDEX":
            if not has_key or kind == "partitioned":
                continue
            table.setup.append(f"CREATE UNIQUE INDEX {relation}_i ON {relation} ({quoted(key[-1])}, n)")
            identity = f"USING INDEX {relation}_i"
        table.setup.append(f"ALTER TABLE {relation} REPLICA IDENTITY {identity}")
    return table


def first(kind: str) -> str:
    return DOMAINS[kind][0].replace("'", "''")


def change(dice: random.Random, table: Table) -> str:
    """One statement on a random relation of the table."""
    relation, kind = dice.choice(table.tree), dice.random()
    columns = list(table.columns)
    column, other = dice.choice(columns), dice.choice(columns)
    where = f"WHERE {quoted(other)} IS NOT DISTINCT FROM {table.value(dice, other)}"
    only = f"WHERE n IN (SELECT n FROM {relation} {where} LIMIT 1)"
    if kind < 0.4:
        values = ", ".join(table.value(dice, name) for name in columns)
        return f"INSERT INTO {relation} ({', '.join(map(quoted, columns))}) VALUES ({values})"
    if kind < 0.8:
        chosen = dice.choice([where, only, only])
        return f"UPDATE {relation} SET {quoted(column)} = {table.value(dice, column)} {chosen}"
    if kind < 0.99:
        return f"DELETE FROM {relation} {only}"
    return f"TRUNCATE {relation}"


Rows = dict[Pin, list[str]]


async def look(connection: Any, table: Table, sets: list[tuple[str, ...]]) -> Rows:
    """Tag → its rows, for every relation and every column set."""
    found: Rows = defaultdict(list)
    for relation in table.tree:
        shown = ", ".join(f"{quoted(column)}::text" for column in table.columns)
        cursor = await connection.execute(f"SELECT {shown}, {relation}::text FROM {relation} ORDER BY n, 1".encode())
        for *values, row in await cursor.fetchall():
            by_name = dict(zip(table.columns, values, strict=True))
            for columns in sets:
                if None not in [by_name[column] for column in columns]:
                    where = tuple((column, by_name[column]) for column in sorted(columns))
                    found[Pin(relation, where)].append(row)
    return found


def all_pins(table: Table, sets: list[tuple[str, ...]], hidden: set[str]) -> list[Pin]:
    return [
        Pin(relation, tuple(sorted(zip(columns, values, strict=True))))
        for relation in table.tree
        if relation not in hidden
        for columns in sets
        for values in itertools.product(*(DOMAINS[table.columns[column]] for column in columns))
    ]


@dataclass
class Tally:
    stale: list[tuple[Pin, str]] = field(default_factory=list)
    died: int = 0
    lived: int = 0
    changed: int = 0


async def load(
    database: Database, seed: int, tables: int, rounds: int, plugin: str = "test_decoding"
) -> Tally:
    dice = random.Random(seed)
    made = [make_table(dice, number) for number in range(tables)]
    await asyncio.to_thread(database.execute, *(text for table in made for text in table.setup))
    hidden: set[str] = set()
    if plugin == "pgoutput":
        await asyncio.to_thread(publish, database)
        hidden = await asyncio.to_thread(unseen, database)
    tally = Tally()
    writer = await connect(database.conninfo())
    # Not as the stream prints.
    await writer.execute("SET datestyle = 'ISO'")
    try:
        async with following(database.server.conninfo(), database.name, plugin=plugin) as followed:
            await settled(followed)
            for table in made:
                columns = sorted(table.columns)
                sets = [(column,) for column in columns] + [tuple(dice.sample(columns, 2))]
                for _ in range(rounds):
                    await one_round(followed, writer, dice, table, sets, hidden, tally)
    finally:
        await writer.close()
    return tally


async def one_round(
    followed: Followed, writer: Any, dice: random.Random, table: Table, sets: list[tuple[str, ...]], hidden: set[str],
    tally: Tally,
) -> None:  # fmt: skip
    pins = all_pins(table, sets, hidden)
    held = await hold(followed, pins) if pins else []
    before = await look(writer, table, sets)
    statements = [change(dice, table) for _ in range(dice.choice([1, 1, 1, 2, 4]))]
    await writer.execute("BEGIN")
    for statement in statements:
        await writer.execute("SAVEPOINT s")
        try:
            await writer.execute(statement.encode())
        except (psycopg.IntegrityError, psycopg.DataError):  # a NULL in a key, a text too long: nothing changed
            await writer.execute("ROLLBACK TO s")
    await writer.execute("COMMIT")
    after = await look(writer, table, sets)
    for pin, entry in zip(pins, held, strict=True):
        alive = await followed.strictly(entry) if pin is pins[0] else followed.valid(entry)
        changed = before.get(pin) != after.get(pin)
        tally.changed += changed
        tally.lived += alive
        tally.died += not alive
        if alive and changed:
            tally.stale.append((pin, "; ".join([*table.setup, *statements])))


SEED = int(os.environ.get("SEED", "11"))


@pytest.mark.parametrize("plugin", ["test_decoding", "pgoutput"])
async def test_no_entry_survives_a_change_of_its_rows(database: Database, plugin: str) -> None:
    tally = await load(database, SEED, tables=24, rounds=12, plugin=plugin)
    assert tally.stale == []
    assert tally.changed > 250
    assert tally.lived > tally.died / 2, "row tags that fall with every change are of no use"


@pytest.mark.sabotage
async def test_with_old_values_muted_stale_entries_appear(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Plan.touch

    def forgetful(self: Plan, change: Change, slots: set[int]) -> None:
        plain(self, change if change.new is None else change._replace(old=None), slots)

    monkeypatch.setattr(Plan, "touch", forgetful)
    assert (await load(database, SEED, tables=24, rounds=12)).stale != []
