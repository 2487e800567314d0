"""Hits through the real proxy: both protocols, transactions, writes from both sides."""

from __future__ import annotations

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import ProxyProcess, last, until_hit
from wait import until


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price numeric)",
        "INSERT INTO item SELECT i, 'item ' || i, i * 1.5 FROM generate_series(1, 100) i",
    )
    return database


def test_simple_protocol_hits(shop: Database, proxy: ProxyProcess) -> None:
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        assert until_hit(connection, "SELECT name FROM item WHERE id = 7") == [("item 7",)]
        shown = last(connection)
        assert (shown["status"], shown["tier"], shown["tables"], shown["workload"]) == (
            "hit",
            "L1",
            "public.item",
            "oltp",
        )
        assert float(shown["age_ms"]) < 1000


@pytest.mark.parametrize("prepare", [False, True])
def test_extended_protocol_hits(shop: Database, proxy: ProxyProcess, prepare: bool) -> None:
    with proxy.connect() as connection:
        connection.prepare_threshold = 0 if prepare else None
        assert until_hit(connection, "SELECT name FROM item WHERE id = %s", (7,)) == [("item 7",)]


def test_an_outside_write_is_in_the_next_read_after_the_bound(shop: Database, proxy: ProxyProcess) -> None:
    with proxy.connect() as connection:
        connection.execute("SET distribcache.consistency = 'strict'")
        until_hit(connection, "SELECT name FROM item WHERE id = 7")
        for number in range(20):
            shop.execute(f"UPDATE item SET name = 'new {number}' WHERE id = 7")
            assert connection.execute("SELECT name FROM item WHERE id = 7").fetchone() == (f"new {number}",)


def test_own_writes_are_read_at_once(shop: Database, proxy: ProxyProcess) -> None:
    with proxy.connect() as reader, proxy.connect() as writer:
        until_hit(reader, "SELECT name FROM item WHERE id = 8")
        for number in range(20):
            writer.execute(f"UPDATE item SET name = 'own {number}' WHERE id = 8")
            assert reader.execute("SELECT name FROM item WHERE id = 8").fetchone() == (f"own {number}",)
            assert writer.execute("SELECT name FROM item WHERE id = 8").fetchone() == (f"own {number}",)


def test_reads_inside_transactions_hit(shop: Database, proxy: ProxyProcess) -> None:
    with proxy.connect(autocommit=False) as connection:

        def hit() -> bool:
            assert connection.execute("SELECT name FROM item WHERE id = 9").fetchone() == ("item 9",)
            status = last(connection)["status"]
            connection.commit()
            return bool(status == "hit")

        until(hit, "never a hit")


def test_a_rolled_back_write_after_a_deferred_begin_leaves_nothing(shop: Database, proxy: ProxyProcess) -> None:
    with proxy.connect(autocommit=False) as connection:
        connection.execute("SELECT name FROM item WHERE id = 10")
        connection.rollback()
        connection.execute("SELECT name FROM item WHERE id = 10")
        connection.execute("UPDATE item SET name = 'gone' WHERE id = 10")
        assert connection.execute("SELECT name FROM item WHERE id = 10").fetchone() == ("gone",)
        connection.rollback()
        assert connection.execute("SELECT name FROM item WHERE id = 10").fetchone() == ("item 10",)


def test_cache_off_by_startup_option(shop: Database, proxy: ProxyProcess) -> None:
    with psycopg.connect(proxy.conninfo(options="-c distribcache.cache=off"), autocommit=True) as connection:
        for _ in range(5):
            connection.execute("SELECT name FROM item WHERE id = 7")
        assert last(connection)["reason"] == "cache_off"


def test_shows_in_both_protocols(proxy: ProxyProcess) -> None:
    with proxy.connect() as connection:
        for name in ("last", "stats", "tiers", "refusals", "freshness", "tables", "queries", "config", "help"):
            simple = psycopg.ClientCursor(connection).execute(f"SHOW distribcache.{name}").fetchall()
            for _ in range(7):  # unnamed, then prepared
                extended = connection.execute(f"SHOW distribcache.{name}", binary=True).fetchall()
            assert [row[0] for row in extended] == [row[0] for row in simple]
