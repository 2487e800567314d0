"""Changes of rows, and what they must do to entries that depend on rows.

Each scenario says which pins survive its change; all others must die. A survivor that dies is a lost hit; a pin that
must die and lives is a stale answer. All of them are played on one followed database, one after the other, because
every CREATE TABLE outdates everything.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fix_postgres import Database
from followed import Followed, connect, following
from published import publish
from rowtags import Pin, hold, settled

from distribcache.coherence.decoding import BULK
from distribcache.coherence.ledger import SCHEMA

__all__ = ["FULL", "KEYED", "SCENARIOS", "Scenario", "play"]


@dataclass(frozen=True)
class Scenario:
    """``change`` is one transaction. ``dies`` and ``lives``: what must and what should happen to entries."""

    name: str
    setup: tuple[str, ...]
    change: str
    dies: tuple[Pin, ...]
    lives: tuple[Pin, ...] = ()


def scenario(
    name: str, setup: list[str], change: str, dies: list[dict[str, Any]], lives: list[dict[str, Any]] | None = None
) -> Scenario:
    """``#`` stands for the scenario's table; a pin may name another relation as ``_``."""

    def pins(given: list[dict[str, Any]]) -> tuple[Pin, ...]:
        return tuple(
            Pin.of(pin.get("_", "#").replace("#", name), **{k: v for k, v in pin.items() if k != "_"}) for pin in given
        )

    texts = tuple(text.replace("#", name) for text in setup)
    return Scenario(name, texts, change.replace("#", name), pins(dies), pins(lives or []))


KEYED = ["CREATE TABLE # (id int PRIMARY KEY, c int, v text)", "INSERT INTO # VALUES (1, 5, 'a'), (2, 7, 'b')"]
FULL = [*KEYED, "ALTER TABLE # REPLICA IDENTITY FULL"]
NOTHING = [*KEYED, "ALTER TABLE # REPLICA IDENTITY NOTHING"]
UNKEYED = ["CREATE TABLE # (id int, c int, v text)", "INSERT INTO # VALUES (1, 5, 'a'), (2, 7, 'b')"]
INDEXED = [
    "CREATE TABLE # (id int PRIMARY KEY, k int NOT NULL UNIQUE, v text)",
    "INSERT INTO # VALUES (1, 10, 'a'), (2, 20, 'b')",
    "ALTER TABLE # REPLICA IDENTITY USING INDEX #_k_key",
]
PARTITIONED = [
    "CREATE TABLE # (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k)",
    "CREATE TABLE #_1 PARTITION OF # FOR VALUES IN (1)",
    "CREATE TABLE #_2 (gone int, v text, k int NOT NULL, id int NOT NULL)",
    "ALTER TABLE #_2 DROP COLUMN gone",
    "ALTER TABLE # ATTACH PARTITION #_2 FOR VALUES IN (2)",
    "INSERT INTO # VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 1, 'c'), (4, 2, 'd')",
]
TREE = [
    "CREATE TABLE # (id int PRIMARY KEY, c int)",
    "CREATE TABLE #_other (c int, x int)",
    "CREATE TABLE #_child (id int PRIMARY KEY) INHERITS (#, #_other)",
    "CREATE TABLE #_leaf () INHERITS (#_child)",
    "INSERT INTO # VALUES (1, 5)",
    "INSERT INTO #_child VALUES (2, 6, 60)",
    "INSERT INTO #_leaf VALUES (3, 7, 70)",
]
TOAST = [
    "CREATE TABLE # (id int PRIMARY KEY, doc text, v int)",
    "ALTER TABLE # ALTER doc SET STORAGE EXTERNAL",
    "INSERT INTO # VALUES (1, repeat('x', 5000), 1), (2, 'short', 1)",
]
ODD = [
    'CREATE TABLE "# W""e.i: r,d" ("select" int PRIMARY KEY, "Co l]: [x""" text, "größe" int)',
    """INSERT INTO "# W""e.i: r,d" VALUES (1, 'it''s [a]: b', 3), (2, 'two', 4)""",
    'ALTER TABLE "# W""e.i: r,d" REPLICA IDENTITY FULL',
]
TYPES = [
    "CREATE DOMAIN #_small AS int CHECK (VALUE < 100)",
    "CREATE TABLE # (id bigint PRIMARY KEY, u uuid, b bool, d date, t text, c varchar(9), s #_small)",
    "ALTER TABLE # ADD COLUMN g int GENERATED ALWAYS AS (id * 2) STORED",
]
UUID = "0b6c1f0e-3e0d-4d1c-8a63-7d1f1d4c0a11"

SCENARIOS = [
    scenario(
        "an_insert", KEYED, "INSERT INTO # VALUES (3, 9, 'c')",
        [{"id": 3}, {"c": 9}, {"c": 9, "id": 3}, {"v": "c"}],
        [{"id": 1}, {"id": 4}, {"c": 5}, {"c": 9, "id": 1}, {"v": "a"}],
    ),
    scenario(
        "an_update_that_keeps_the_key", KEYED, "UPDATE # SET v = 'z' WHERE id = 1",
        [{"id": 1}, {"v": "a"}, {"v": "z"}, {"c": 5}, {"c": 7}, {"c": 5, "id": 1}],
        [{"id": 2}, {"id": 3}],
    ),
    scenario(
        "an_update_that_changes_the_key", KEYED, "UPDATE # SET id = 9 WHERE id = 1",
        [{"id": 1}, {"id": 9}, {"c": 5}], [{"id": 2}, {"id": 3}],
    ),
    scenario("a_delete", KEYED, "DELETE FROM # WHERE id = 1", [{"id": 1}, {"c": 5}], [{"id": 2}]),
    scenario(
        "an_upsert", KEYED, "INSERT INTO # VALUES (2, 7, 'x') ON CONFLICT (id) DO UPDATE SET v = 'y'",
        [{"id": 2}], [{"id": 1}],
    ),
    scenario(
        "a_copy", KEYED, "COPY # (id) FROM PROGRAM 'seq 10 14'",
        [{"id": 10}, {"id": 14}], [{"id": 1}, {"id": 15}, {"v": "a"}],
    ),
    scenario(
        "a_savepoint_rolled_back", KEYED,
        "SAVEPOINT s; DELETE FROM #; ROLLBACK TO s; UPDATE # SET v = 'k' WHERE id = 2", [{"id": 2}], [{"id": 1}],
    ),
    scenario(
        "two_changes_of_one_row", KEYED, "UPDATE # SET id = 8 WHERE id = 1; UPDATE # SET id = 9 WHERE id = 8",
        [{"id": 1}, {"id": 8}, {"id": 9}], [{"id": 2}],
    ),
    scenario("nulls", KEYED, "INSERT INTO # VALUES (3, NULL, NULL)", [{"id": 3}], [{"c": 5}, {"v": "a"}, {"id": 1}]),
    scenario(
        "full_an_update", FULL, "UPDATE # SET c = 6 WHERE id = 1",
        [{"id": 1}, {"c": 5}, {"c": 6}, {"c": 5, "id": 1}, {"v": "a"}],
        [{"id": 2}, {"c": 7}, {"c": 7, "id": 1}, {"v": "b"}],
    ),
    scenario("full_a_delete", FULL, "DELETE FROM # WHERE id = 2", [{"id": 2}, {"c": 7}], [{"id": 1}, {"c": 5}]),
    scenario(
        "full_an_old_null", [*FULL, "UPDATE # SET c = NULL WHERE id = 1"], "UPDATE # SET c = 9 WHERE id = 1",
        [{"id": 1}, {"c": 9}], [{"id": 2}],
    ),
    scenario(
        "full_a_new_null", FULL, "UPDATE # SET c = NULL WHERE id = 1", [{"id": 1}, {"c": 5}], [{"id": 2}, {"c": 7}]
    ),
    scenario(
        "nothing_an_update", NOTHING, "UPDATE # SET v = 'x' WHERE id = 1", [{"id": 1}, {"id": 2}, {"c": 5}],
    ),
    scenario("nothing_a_delete", NOTHING, "DELETE FROM # WHERE id = 1", [{"id": 1}, {"c": 5}]),
    scenario("nothing_an_insert", NOTHING, "INSERT INTO # VALUES (3, 5, 'c')", [{"id": 3}, {"c": 5}], [{"id": 1}]),
    scenario("without_a_key_an_update", UNKEYED, "UPDATE # SET id = 9 WHERE id = 1", [{"id": 1}, {"id": 9}, {"c": 5}]),
    scenario("without_a_key_a_delete", UNKEYED, "DELETE FROM # WHERE id = 1", [{"id": 1}, {"c": 5}]),
    scenario(
        "with_a_deferrable_key", ["CREATE TABLE # (id int PRIMARY KEY DEFERRABLE)", "INSERT INTO # VALUES (1)"],
        "UPDATE # SET id = 9", [{"id": 1}, {"id": 9}],
    ),
    scenario(
        "with_an_index_as_identity", INDEXED, "UPDATE # SET v = 'x' WHERE k = 10",
        [{"k": 10}, {"id": 1}], [{"k": 20}],
    ),
    scenario(
        "with_an_index_as_identity_another_key", INDEXED, "UPDATE # SET k = 30, id = 3 WHERE k = 10",
        [{"k": 10}, {"k": 30}, {"id": 1}, {"id": 3}], [{"k": 20}],
    ),
    scenario(
        "with_an_identity_that_was_dropped", [*INDEXED, "ALTER TABLE # DROP CONSTRAINT #_k_key"],
        "UPDATE # SET k = 30 WHERE k = 10", [{"k": 10}, {"k": 30}, {"id": 1}],
    ),
    scenario(
        "with_a_covering_key",
        ["CREATE TABLE # (id int, i int, PRIMARY KEY (id) INCLUDE (i))", "INSERT INTO # VALUES (1, 3), (2, 4)"],
        "UPDATE # SET i = 9 WHERE id = 1", [{"id": 1}, {"i": 3}, {"i": 9}, {"i": 3, "id": 1}], [{"id": 2}],
    ),
    scenario(
        "a_long_value_not_written_again", TOAST, "UPDATE # SET v = 2 WHERE id = 1",
        [{"id": 1}, {"doc": "x" * 5000}, {"v": 1}], [{"id": 2}],
    ),
    scenario(
        "full_a_long_value_not_written_again", [*TOAST, "ALTER TABLE # REPLICA IDENTITY FULL"],
        "UPDATE # SET v = 2 WHERE id = 1", [{"id": 1}, {"doc": "x" * 5000}, {"v": 1}, {"v": 2}], [{"id": 2}, {"v": 3}],
    ),
    scenario(
        "a_partition_with_another_order", PARTITIONED, "UPDATE # SET v = 'z' WHERE id = 2",
        [{"id": 2}, {"id": 2, "k": 2}, {"k": 2}, {"_": "#_2", "id": 2}],
        [{"id": 1}, {"id": 4}, {"k": 1}, {"_": "#_2", "id": 4}, {"_": "#_1", "id": 2}],
    ),
    scenario(
        "a_change_of_the_leaf_itself", PARTITIONED, "INSERT INTO #_2 (id, k, v) VALUES (9, 2, 'n')",
        [{"id": 9}, {"v": "n"}, {"_": "#_2", "id": 9}], [{"id": 2}, {"v": "b"}, {"_": "#_1", "id": 9}],
    ),
    scenario(
        "a_row_that_moves_between_partitions", PARTITIONED, "UPDATE # SET k = 2 WHERE id = 1",
        [{"id": 1}, {"k": 1}, {"k": 2}, {"id": 1, "k": 1}, {"id": 1, "k": 2}, {"_": "#_1", "id": 1}],
        [{"id": 2}, {"id": 3}, {"id": 2, "k": 2}],
    ),
    scenario(
        "a_partition_without_identity", [*PARTITIONED, "ALTER TABLE #_2 REPLICA IDENTITY NOTHING"],
        "UPDATE # SET v = 'z' WHERE id = 2", [{"id": 2}, {"id": 4}], [{"_": "#_1", "id": 2}],
    ),
    scenario("a_partition_truncated", PARTITIONED, "TRUNCATE #_1", [{"id": 1}, {"k": 1}], [{"_": "#_2", "id": 1}]),
    scenario(
        "a_change_of_a_child", TREE, "UPDATE # SET c = 9 WHERE id = 2",
        [{"id": 2}, {"c": 6}, {"c": 9}, {"_": "#_child", "id": 2}, {"_": "#_other", "c": 6}, {"_": "#_other", "x": 60}],
        [{"id": 1}, {"_": "#_leaf", "c": 7}, {"_": "#_child", "id": 3}],
    ),
    scenario(
        "an_insert_two_levels_below", TREE, "INSERT INTO #_leaf VALUES (4, 8, 80)",
        [{"id": 4}, {"c": 8}, {"_": "#_child", "id": 4}, {"_": "#_other", "x": 80}, {"_": "#_leaf", "x": 80}],
        [{"id": 1}, {"id": 3}, {"c": 5}, {"_": "#_child", "id": 3}, {"_": "#_other", "x": 70}],
    ),
    scenario(
        "an_update_of_a_leaf_without_key", TREE, "UPDATE #_leaf SET x = 1",
        [{"id": 3}, {"c": 7}, {"_": "#_leaf", "x": 70}],
    ),
    scenario("a_truncate", KEYED, "TRUNCATE #", [{"id": 1}, {"id": 2}, {"c": 5}, {"id": 99}]),
    scenario(
        "a_truncate_that_cascades",
        [*KEYED, "CREATE TABLE #_b (id int PRIMARY KEY, a int REFERENCES #)", "INSERT INTO #_b VALUES (1, 1)"],
        "TRUNCATE # CASCADE", [{"id": 1}, {"_": "#_b", "id": 1}, {"_": "#_b", "a": 1}],
    ),
    scenario(
        "a_truncate_after_rows", KEYED, "UPDATE # SET v = 'x' WHERE id = 1; TRUNCATE #", [{"id": 1}, {"id": 2}]
    ),
    scenario(
        "a_cascade",
        [*KEYED, "CREATE TABLE #_b (id int PRIMARY KEY, a int REFERENCES # ON DELETE CASCADE)",
         "INSERT INTO #_b VALUES (1, 1), (2, 2)"],
        "DELETE FROM # WHERE id = 1", [{"id": 1}, {"_": "#_b", "id": 1}, {"_": "#_b", "a": 1}],
        [{"id": 2}, {"_": "#_b", "id": 2}],
    ),
    scenario(
        "odd_names", ODD, """UPDATE "# W""e.i: r,d" SET "größe" = 9 WHERE "select" = 1""",
        [{"_": '"# W""e.i: r,d"', "select": 1}, {"_": '"# W""e.i: r,d"', 'Co l]: [x"': "it's [a]: b"},
         {"_": '"# W""e.i: r,d"', "größe": 3}, {"_": '"# W""e.i: r,d"', "größe": 9}],
        [{"_": '"# W""e.i: r,d"', "select": 2}, {"_": '"# W""e.i: r,d"', 'Co l]: [x"': "two"},
         {"_": '"# W""e.i: r,d"', "größe": 4}],
    ),
    scenario(
        "every_type", TYPES,
        f"INSERT INTO # VALUES (-3, '{UUID.upper()}', 'yes', '1.2.2024'::text::date, 'ä''b', 'cd', 7)",
        [{"id": -3}, {"u": UUID}, {"b": "true"}, {"d": "2024-02-01"}, {"t": "ä'b"}, {"c": "cd"}, {"s": 7}, {"g": -6}],
        [{"id": 3}, {"b": "false"}, {"d": "2024-01-02"}, {"t": "ä''b"}, {"s": 8}, {"g": 6}],
    ),
    scenario(
        "just_not_bulk", KEYED, f"INSERT INTO # SELECT i + 100, 0, '' FROM generate_series(1, {BULK}) i",
        [{"id": 101}, {"id": 100 + BULK}, {"c": 0}], [{"id": 1}, {"c": 5}],
    ),
    scenario(
        "bulk", KEYED, f"INSERT INTO # SELECT i + 100, 0, '' FROM generate_series(1, {BULK + 1}) i",
        [{"id": 101}, {"id": 100 + BULK}, {"c": 0}, {"id": 1}],
    ),
]


async def outcome(followed: Followed, database: Database, one: Scenario, hidden: set[str]) -> dict[Pin, bool]:
    """Pin → is its entry still valid after the change, for a strict read? None for those of ``hidden`` relations.

    Nor for those that should live when the catalogue was seen to change meanwhile, which ends everything: the server's
    counters of changed catalogue rows may come late, seconds after the tables were made.
    """
    words = followed.coherence.words
    pins = [pin for pin in (*one.dies, *one.lives) if pin.relation not in hidden]
    held = await hold(followed, pins)
    schema = words[SCHEMA]
    writer = await connect(database.conninfo())
    try:
        # datestyle, so that no scenario's values are printed by chance as they were written
        await writer.execute("SET datestyle = 'German, DMY'")
        await writer.execute("BEGIN")
        for statement in one.change.split("; "):
            await writer.execute(statement.encode())
        await writer.execute("COMMIT")
    finally:
        await writer.close()
    found = {pin: await followed.strictly(entry) for pin, entry in zip(pins, held, strict=True)}
    return found if words[SCHEMA] == schema else {pin: found[pin] for pin in one.dies if pin in found}


def unseen(database: Database) -> set[str]:
    """The relations of which pgoutput does not show all updates: their reads are refused."""
    rows = database.execute(
        "WITH RECURSIVE below(top, oid) AS (SELECT oid, oid FROM pg_class WHERE relkind IN ('r', 'p') "
        "UNION SELECT top, inhrelid FROM below JOIN pg_inherits ON inhparent = below.oid) "
        "SELECT DISTINCT top::regclass::text FROM below JOIN pg_class c USING (oid) "
        "WHERE c.relkind = 'r' AND c.oid NOT IN (SELECT prrelid FROM pg_publication_rel)"
    )
    return {row[0] for row in rows}


async def play(
    database: Database, scenarios: list[Scenario], plugin: str = "test_decoding"
) -> dict[str, dict[Pin, bool]]:
    """With pgoutput there is no outcome of relations whose updates are not published."""
    await asyncio.to_thread(database.execute, *(text for one in scenarios for text in one.setup))
    hidden: set[str] = set()
    if plugin == "pgoutput":
        await asyncio.to_thread(publish, database)
        hidden = await asyncio.to_thread(unseen, database)
    async with following(database.server.conninfo(), database.name, plugin=plugin) as followed:
        await settled(followed)
        return {one.name: await outcome(followed, database, one, hidden) for one in scenarios}
