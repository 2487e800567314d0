"""Row tags: a write ends the answers about the rows it touched, and no others (coherence rules R1, R2, R7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fix_postgres import Database, create_database, drop_database
from fix_proxy import InnerProxy, last
from inside import seen
from wait import until

from distribcache.catalog import statement
from distribcache.catalog.rows import RowTag
from distribcache.cli.postgres import Postgres
from distribcache.coherence.ledger import Ledger

PATIENT = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}
Connection = psycopg.Connection[Any]
Read = Callable[[Connection], list[tuple[Any, ...]]]


def simple(sql: str) -> Read:
    return lambda connection: connection.execute(sql.encode()).fetchall()


def bound(sql: str, *values: object, binary: bool = False) -> Read:
    return lambda connection: connection.execute(sql.encode(), values, prepare=False, binary=binary).fetchall()


def prepared(sql: str, *values: object) -> Read:
    return lambda connection: connection.execute(sql.encode(), values, prepare=True).fetchall()


TABLES = [
    "CREATE TABLE item (id int PRIMARY KEY, name text, price int, kind int)",
    "CREATE TABLE part (item int, number int, note varchar(20), PRIMARY KEY (item, number))",
    "CREATE TABLE fact (id bigint NOT NULL, value int) PARTITION BY RANGE (id)",
    "CREATE TABLE fact_low PARTITION OF fact FOR VALUES FROM (0) TO (50)",
    "CREATE TABLE fact_high (value int, id bigint NOT NULL)",
    "ALTER TABLE fact ATTACH PARTITION fact_high FOR VALUES FROM (50) TO (1000)",
    "ALTER TABLE fact ADD PRIMARY KEY (id)",
    "CREATE TABLE tag (code uuid PRIMARY KEY, label text, live bool, day date)",
    "CREATE TABLE log (id int, text text)",
    "ALTER TABLE log REPLICA IDENTITY FULL",
    "CREATE VIEW cheap AS SELECT * FROM item WHERE price < 50",
]
ROWS = [
    "INSERT INTO item SELECT i, 'item ' || i, i, i % 5 FROM generate_series(1, 100) i",
    "INSERT INTO part SELECT i, j, 'part ' || j FROM generate_series(1, 100) i, generate_series(1, 3) j",
    "INSERT INTO fact SELECT i, i FROM generate_series(1, 99) i",
    "INSERT INTO tag VALUES ('00000000-0000-0000-0000-00000000000a', 'it''s', true, '2024-02-29')",
    "INSERT INTO tag VALUES ('00000000-0000-0000-0000-00000000000b', 'ä', false, '2024-03-01')",
    "INSERT INTO log SELECT i, 'line ' || i FROM generate_series(1, 50) i",
]


@pytest.fixture(scope="module")
def following(postgres: Postgres) -> Iterator[tuple[Database, InnerProxy]]:
    database = create_database(postgres)
    database.execute(*TABLES)
    proxy = InnerProxy(database.url(), PATIENT)
    yield database, proxy
    proxy.stop()
    drop_database(database)


@pytest.fixture
def shop(following: tuple[Database, InnerProxy]) -> Database:
    """Every test begins with the same rows; no TRUNCATE, which would be a change of the catalogue."""
    database = following[0]
    database.execute(*(f"DELETE FROM {table}" for table in ("item", "part", "fact", "tag", "log")), *ROWS)
    seen(following[1], database)
    return database


@pytest.fixture
def inner(following: tuple[Database, InnerProxy]) -> InnerProxy:
    return following[1]


def warm(connection: Connection, read: Read) -> list[tuple[Any, ...]]:
    def hit() -> bool:
        read(connection)
        return bool(last(connection)["status"] == "hit")

    until(lambda: hit() and hit(), lambda: f"never a hit: {last(connection)}")
    return read(connection)


CASES: dict[str, tuple[Read, list[str], list[str]]] = {
    # read, writes that leave it in memory, writes that end it
    "a literal": (
        simple("SELECT name FROM item WHERE id = 7"),
        ["UPDATE item SET price = price + 1 WHERE id = 8", "INSERT INTO item VALUES (1000, 'x', 1, 1)",
         "DELETE FROM item WHERE id = 1000", "UPDATE item SET id = 2000 WHERE id = 99"],
        ["UPDATE item SET name = 'new' WHERE id = 7"],
    ),
    "a parameter": (
        bound("SELECT name FROM item WHERE id = %s", 7),
        ["UPDATE item SET price = price + 1 WHERE id = 8"],
        ["DELETE FROM item WHERE id = 7"],
    ),
    "a binary parameter": (
        bound("SELECT name FROM item WHERE id = %b", 7, binary=True),
        ["UPDATE item SET price = price + 1 WHERE id = 8"],
        ["UPDATE item SET name = 'new' WHERE id = 7"],
    ),
    "a prepared statement": (
        prepared("SELECT name FROM item WHERE id = %s", 7),
        ["UPDATE item SET price = price + 1 WHERE id = 8"],
        ["UPDATE item SET name = 'new' WHERE id = 7"],
    ),
    "a key that comes": (
        simple("SELECT name FROM item WHERE id = 500"),
        ["UPDATE item SET name = 'other' WHERE id = 8"],
        ["UPDATE item SET id = 500 WHERE id = 98"],
    ),
    "a list": (
        simple("SELECT name FROM item WHERE id IN (3, 5) ORDER BY id"),
        ["UPDATE item SET price = price + 1 WHERE id = 4"],
        ["UPDATE item SET price = price + 1 WHERE id = 5"],
    ),
    "an array": (
        bound("SELECT name FROM item WHERE id = ANY (%s) ORDER BY id", [3, 5, 500]),
        ["UPDATE item SET price = price + 1 WHERE id = 4"],
        ["UPDATE item SET price = price + 1 WHERE id = 5", "INSERT INTO item VALUES (500, 'new', 1, 1)"],
    ),
    "a binary array of another width": (
        bound("SELECT name FROM item WHERE id = ANY (%b::bigint[]) ORDER BY id", [3, 5], binary=True),
        ["UPDATE item SET price = price + 1 WHERE id = 4"],
        ["DELETE FROM item WHERE id = 3"],
    ),
    "a prepared statement with an array": (
        prepared("SELECT id FROM log WHERE id = ANY (%s) ORDER BY id", [7, 60]),
        ["UPDATE log SET text = 'x' WHERE id = 8", "UPDATE log SET id = 61 WHERE id = 9"],
        ["UPDATE log SET id = 60 WHERE id = 10", "UPDATE log SET id = 62 WHERE id = 7"],
    ),
    "an array of uuids": (
        bound("SELECT label FROM tag WHERE code = ANY (%b)", [UUID(int=10), UUID(int=12)], binary=True),
        ["UPDATE tag SET label = 'x' WHERE code = '00000000-0000-0000-0000-00000000000b'"],
        ["UPDATE tag SET code = '00000000-0000-0000-0000-00000000000c' WHERE NOT live"],
    ),
    "an array of texts": (
        bound("SELECT text FROM log WHERE text = ANY (%s) ORDER BY id", ["line 7", "a, {b}"]),
        ["UPDATE log SET text = 'line 77' WHERE id = 8"],
        ["UPDATE log SET text = 'a, {b}' WHERE id = 9", "UPDATE log SET id = 70 WHERE id = 7"],
    ),
    "an array in the text": (
        simple("SELECT name FROM item WHERE id = ANY ('{3,5}'::int[]) ORDER BY id"),
        ["UPDATE item SET price = price + 1 WHERE id = 4"],
        ["UPDATE item SET id = 3000 WHERE id = 3"],
    ),
    "a row": (
        bound("SELECT note FROM part WHERE (item, number) = (%s, %s)", 7, 2),
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 1"],
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 2"],
    ),
    "a list of rows": (
        simple("SELECT note FROM part WHERE (item, number) IN ((7, 2), (8, 3)) ORDER BY item"),
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 1", "DELETE FROM part WHERE item = 9"],
        ["UPDATE part SET note = 'x' WHERE item = 8 AND number = 3", "DELETE FROM part WHERE item = 7"],
    ),
    "alternatives": (
        simple("SELECT note FROM part WHERE item = 7 AND number = 2 OR item = 8 AND number = 3 ORDER BY item"),
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 1", "DELETE FROM part WHERE item = 9"],
        ["UPDATE part SET note = 'x' WHERE item = 8 AND number = 3", "DELETE FROM part WHERE item = 7"],
    ),
    "a window": (
        simple("SELECT rank() OVER (ORDER BY number), count(*) OVER () FROM part WHERE item = 7 ORDER BY 1"),
        ["UPDATE part SET note = 'x' WHERE item = 8"],
        ["DELETE FROM part WHERE item = 7 AND number = 1"],
    ),
    "a join on the pinned key": (
        simple("SELECT i.name, p.note FROM item i JOIN part p ON p.item = i.id WHERE i.id = 7 ORDER BY p.number"),
        ["UPDATE part SET note = 'x' WHERE item = 8", "UPDATE item SET price = 0 WHERE id = 8"],
        ["INSERT INTO part VALUES (7, 9, 'new')"],
    ),
    "a composite key": (
        bound("SELECT note FROM part WHERE number = %s AND item = %s", 2, 7),
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 1"],
        ["UPDATE part SET note = 'x' WHERE item = 7 AND number = 2"],
    ),
    "an aggregate over part of a key": (
        simple("SELECT count(*), max(note) FROM part WHERE item = 7"),
        ["UPDATE part SET note = 'x' WHERE item = 8"],
        ["DELETE FROM part WHERE item = 7 AND number = 3"],
    ),
    "one table pinned, another not": (
        simple("SELECT i.name, (SELECT count(*) FROM log) FROM item i WHERE i.id = 7"),
        ["UPDATE item SET price = 1 WHERE id = 8"],
        ["INSERT INTO log VALUES (99, 'new')"],
    ),
    "a partition's root": (
        simple("SELECT value FROM fact WHERE id = 70"),
        ["UPDATE fact SET value = 0 WHERE id = 71", "UPDATE fact SET value = 0 WHERE id = 7"],
        ["UPDATE fact_high SET value = -1 WHERE id = 70"],
    ),
    "a row that moves to another partition": (
        simple("SELECT value FROM fact WHERE id = 500"),
        ["UPDATE fact SET value = 0 WHERE id = 71"],
        ["UPDATE fact SET id = 500 WHERE id = 10"],
    ),
    "a uuid": (
        bound("SELECT label FROM tag WHERE code = %s::uuid", "00000000-0000-0000-0000-00000000000a"),
        ["UPDATE tag SET label = 'x' WHERE code = '00000000-0000-0000-0000-00000000000b'"],
        ["UPDATE tag SET label = 'x' WHERE code = '00000000-0000-0000-0000-00000000000a'"],
    ),
    "all old values shown": (
        bound("SELECT text FROM log WHERE id = %s", 7),
        ["UPDATE log SET text = 'x' WHERE id = 8", "UPDATE log SET id = 800 WHERE id = 9"],
        ["UPDATE log SET id = 70 WHERE id = 7"],
    ),
    "text with a quote": (
        simple("SELECT text FROM log WHERE text = 'line 7'"),
        ["INSERT INTO log VALUES (60, 'it''s: [text]:''line 7''')", "UPDATE log SET text = 'line 77' WHERE id = 8"],
        ["UPDATE log SET text = 'line 7' WHERE id = 10"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_write_ends_what_it_concerns(shop: Database, inner: InnerProxy, name: str) -> None:
    read, apart, concerned = CASES[name]
    with (
        inner.connect(prepare_threshold=None) as connection,
        psycopg.connect(shop.conninfo(), autocommit=True) as direct,
    ):
        before = warm(connection, read)
        assert before == read(direct)
        for text in apart:
            shop.execute(*text.split("; "))
            seen(inner, shop)
            assert read(connection) == before
            assert last(connection)["status"] == "hit", (text, last(connection))
        for text in concerned:
            shop.execute(*text.split("; "))
            seen(inner, shop)
            assert read(connection) == read(direct)
            assert last(connection)["status"] == "miss", text


UNPINNED = {
    "another form of the number": simple("SELECT name FROM item WHERE id = 07"),
    "a fraction": simple("SELECT name FROM item WHERE id = 7.0"),
    "or": simple("SELECT name FROM item WHERE id = 7 OR price = 8"),
    "through a view": simple("SELECT name FROM cheap WHERE id = 7"),
    "an array with NULL": bound("SELECT name FROM item WHERE id = ANY (%s)", [7, None]),
    "more elements than are followed": bound("SELECT count(*) FROM item WHERE id = ANY (%s)", list(range(33))),
    "the preserved side": simple("SELECT i.id FROM item i LEFT JOIN part p ON p.item = i.id AND i.id = 7"),
    "a column that updates hide, after an update": simple("SELECT name FROM item WHERE kind = 2"),
}


@pytest.mark.parametrize("name", UNPINNED)
def test_what_is_not_pinned_depends_on_the_table(shop: Database, inner: InnerProxy, name: str) -> None:
    """Coherence traps 6 and 7."""
    with inner.connect(prepare_threshold=None) as connection:
        warm(connection, UNPINNED[name])
        shop.execute("UPDATE item SET price = 0 WHERE id = 90")
        seen(inner, shop)
        UNPINNED[name](connection)
        assert last(connection)["status"] == "miss"


def test_many_rows_of_one_transaction_end_all_answers_about_the_relation(shop: Database, inner: InnerProxy) -> None:
    """Coherence rule R7."""
    read = simple("SELECT name FROM item WHERE id = 7")
    with inner.connect(prepare_threshold=None) as connection:
        warm(connection, read)
        shop.execute("INSERT INTO item SELECT i FROM generate_series(1001, 4000) i")
        seen(inner, shop)
        read(connection)
        assert last(connection)["status"] == "miss"


@pytest.mark.sabotage
def test_with_rows_muted_a_stale_row_is_served(
    shop: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger hears of tables only: then the answer about a row outlives its change."""
    bump = Ledger.bump
    monkeypatch.setattr(Ledger, "bump", lambda self, slot, lsn: None if slot >= self.rows_at else bump(self, slot, lsn))
    read = simple("SELECT name FROM item WHERE id = 7")
    with inner.connect(prepare_threshold=None) as connection:
        warm(connection, read)
        shop.execute("UPDATE item SET name = 'new' WHERE id = 7")
        seen(inner, shop)
        assert read(connection) == [("item 7",)]


@pytest.mark.sabotage
def test_without_row_tags_every_write_ends_everything(
    shop: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> tuple[RowTag, ...]:
        return ()

    monkeypatch.setattr(statement, "row_tags", none)
    read = simple("SELECT name AS of_a_new_text FROM item WHERE id = 7")
    with inner.connect(prepare_threshold=None) as connection:
        warm(connection, read)
        shop.execute("UPDATE item SET price = 0 WHERE id = 8")
        seen(inner, shop)
        read(connection)
        assert last(connection)["status"] == "miss"
