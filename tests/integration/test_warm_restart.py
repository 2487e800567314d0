"""Warm restart: what lies in L2 is valid again in another process, or provably not (coherence rule R8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import QUIET, Database, create_database, drop_database
from fix_proxy import InnerProxy, MakeInnerProxy, ProxyProcess, last
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence.keeping import Keeping
from distribcache.coherence.live import DatabaseCoherence
from distribcache.tiers.warm import WarmCache

ENTRIES = 300
READ = "SELECT id, value, repeat('x', 1200) AS pad FROM stock WHERE id = %s"
SETTINGS = {
    "freshness.hit_wait": "2s",
    "freshness.max_staleness": "5s",
    "freshness.slot": "persistent",
    "audit.sample": "0",
    "ttl.oltp": "30min",
}

Connection = psycopg.Connection[Any]
MakeNode = Callable[..., InnerProxy]


@pytest.fixture(scope="module")
def server() -> Any:
    with Postgres(options={**QUIET, "max_slot_wal_keep_size": "1GB"}) as found:
        yield found


@pytest.fixture
def stock(server: Postgres) -> Any:
    made = create_database(server)
    made.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        f"INSERT INTO stock SELECT i, 1 FROM generate_series(1, {ENTRIES}) i",
    )
    yield made
    if server.pid:
        drop_database(made)


@pytest.fixture
def make_node(stock: Database, tmp_path: Path, make_inner_proxy: MakeInnerProxy) -> MakeNode:
    """A node in front of the test's database, with a directory of its own."""
    return lambda **more: make_inner_proxy(stock.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2"), **more})


def read(connection: Connection, number: int) -> int:
    row = connection.execute(READ, (number,)).fetchone()
    assert row is not None
    return int(row[1])


def warm_of(proxy: InnerProxy) -> WarmCache:
    near = proxy.proxy.node.store.stack.near
    assert isinstance(near, WarmCache)
    return near


def coherence_of(proxy: InnerProxy) -> DatabaseCoherence:
    found = next(iter(proxy.proxy.databases))
    assert isinstance(found, DatabaseCoherence)
    return found


def keeping_of(proxy: InnerProxy) -> Keeping:
    found = coherence_of(proxy)._keeping
    assert found is not None
    return found


def fill(proxy: InnerProxy, entries: int = ENTRIES) -> None:
    """Read until all of it lies on the disk."""
    with proxy.connect() as connection:

        def stored() -> bool:
            for number in range(1, entries + 1):
                read(connection, number)
            return warm_of(proxy).stats().entries >= entries

        until(stored, lambda: f"never written: {warm_of(proxy).stats()}", 30)


def outcomes(proxy: InnerProxy | ProxyProcess, expected: dict[int, int], entries: int = ENTRIES) -> tuple[int, int]:
    """Read everything once: how many came from L2, and how many were not what the table holds."""
    hits = stale = 0
    with proxy.connect() as connection:
        for number in range(1, entries + 1):
            stale += read(connection, number) != expected.get(number, 1)
            hits += last(connection)["tier"] == "L2"
    return hits, stale


def why(proxy: InnerProxy) -> str:
    return keeping_of(proxy).why


def slots(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT slot_name, temporary, active FROM pg_replication_slots WHERE database = current_database()"
    )


def test_a_restart_goes_on_from_what_was_kept(make_node: MakeNode, stock: Database) -> None:
    first = make_node()
    fill(first)
    first.stop()
    assert [row[1:] for row in slots(stock)] == [(False, False)]
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 20", "DELETE FROM stock WHERE id = 30",
                  "INSERT INTO stock VALUES (30, 7)")  # fmt: skip
    expected = {**dict.fromkeys(range(1, 21), 2), 30: 7}
    for _ in range(2):  # and once more
        second = make_node()
        hits, stale = outcomes(second, expected)
        assert stale == 0
        assert why(second) == "", second.log
        assert hits >= 0.9 * (ENTRIES - len(expected)), (hits, second.log)
        second.stop()
