"""Statements that clients prepare after a restart, before hits are served: they find what lies below memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import QUIET, Database, create_database, drop_database
from fix_proxy import InnerProxy, last
from inside import prove
from muted import kept_and_muted
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence.link import Link
from distribcache.proxy.questions import Questions
from distribcache.proxy.session import Session
from distribcache.proxy.standing import Standing

ENTRIES = 40
READ = "SELECT id, value, repeat('x', 1200) AS pad FROM stock WHERE id = %s"
DAY = "SELECT id, repeat('x', 1200) AS pad FROM day WHERE at = '01-02-2020'"
SETTINGS = {
    "freshness.hit_wait": "2s",
    "freshness.max_staleness": "60s",
    "freshness.slot": "persistent",
    "audit.sample": "0",
    "ttl.oltp": "30min",
}

Connection = psycopg.Connection[Any]


class Gate:
    """Until it is opened no node follows anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        opening = Link.open

        async def wait(link: Link, **more: Any) -> None:
            while not self.open.is_set():
                await asyncio.sleep(0.01)
            await opening(link, **more)

        monkeypatch.setattr(Link, "open", wait)


class Early(InnerProxy):
    """One that is not waited for."""

    def settled(self) -> bool:
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(options={**QUIET, "max_slot_wal_keep_size": "1GB"}) as found:
        yield found


@pytest.fixture
def stock(server: Postgres) -> Iterator[Database]:
    made = create_database(server)
    made.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        f"INSERT INTO stock SELECT i, 1 FROM generate_series(1, {ENTRIES}) i",
        "CREATE TABLE day (id int, at date)",
        "INSERT INTO day VALUES (1, '2020-01-02'), (2, '2020-02-01')",
    )
    yield made
    drop_database(made)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


MakeNode = Callable[..., InnerProxy]


@pytest.fixture
def make_node(stock: Database, gate: Gate, tmp_path: Path) -> Iterator[MakeNode]:
    """A node in front of the test's database; ``early``: the gate is closed."""
    running: list[InnerProxy] = []

    def make(*, early: bool = False) -> InnerProxy:
        if early:
            gate.open.clear()
        kind = Early if early else InnerProxy
        running.append(kind(stock.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2")}))
        return running[-1]

    yield make
    gate.open.set()
    for node in running:
        node.stop()


def serve(node: InnerProxy, gate: Gate) -> None:
    gate.open.set()
    until(lambda: InnerProxy.settled(node), lambda: f"never serving: {node.log}")


def read(connection: Connection, number: int) -> int:
    row = connection.execute(READ, (number,), prepare=True).fetchone()
    assert row is not None
    if not connection.autocommit:
        connection.commit()
    return int(row[1])


def fill(node: InnerProxy) -> None:
    """Read until all of it lies on the disk."""
    near = node.proxy.node.store.stack.near
    assert near is not None
    with node.connect() as connection:

        def stored() -> bool:
            for number in range(1, ENTRIES + 1):
                read(connection, number)
            prove(node)
            return near.stats().puts >= ENTRIES

        until(stored, lambda: f"never written: {near.stats()}")


def day(connection: Connection) -> int:
    row = connection.execute(DAY, prepare=True).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "transactions"])
@kept_and_muted
def test_what_is_prepared_before_hits_are_served_finds_l2(
    make_node: MakeNode, stock: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch, autocommit: bool, muted: bool
) -> None:
    """Muted: nobody asks what the session is while nothing is served, as if it could not be known any more."""
    first = make_node()
    fill(first)
    first.stop()
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    if muted:
        monkeypatch.setattr(Questions, "learn_early", lambda _: False)
    second = make_node(early=True)
    with second.connect(autocommit=autocommit) as connection:
        assert read(connection, 1) == 2
        assert read(connection, 2) == 2  # its first reads make the session unknown again
        assert last(connection)["reason"] == "starting"
        connection.commit()
        serve(second, gate)
        assert read(connection, 1) == 2  # upstream: its client may know older types
        found = 0
        for number in range(2, ENTRIES + 1):
            assert read(connection, number) == (2 if number <= 5 else 1)
            found += last(connection)["tier"] == "L2"
            connection.commit()
        assert (found >= 0.9 * (ENTRIES - 5)) is not muted, (found, second.log)
        assert found == 0 or not muted


@kept_and_muted
def test_what_is_prepared_while_the_stream_is_gone_is_shared_again(
    make_node: MakeNode, stock: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """In memory: what one client asks the others need not. Muted: each has a statement of its own for ever."""
    if muted:
        monkeypatch.setattr(Questions, "learn_early", lambda _: False)
    node = make_node()
    gate.open.clear()
    stock.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    with node.connect() as ours, node.connect() as others:
        until(lambda: read(ours, 1) == 1 and last(ours)["reason"] == "reader_lost", "nobody noticed")
        text = READ + " AND value < 9"
        for connection in (ours, others):
            connection.execute(text, (1,), prepare=True)
        serve(node, gate)
        for _ in range(2):
            ours.execute(text, (1,), prepare=True)
            others.execute(text, (1,), prepare=True)
        until(lambda: ours.execute(text, (2,), prepare=True) and last(ours)["status"] == "hit")
        others.execute(text, (2,), prepare=True)
        assert (last(others)["status"] == "hit") is not muted


@kept_and_muted
def test_what_was_learned_early_ends_with_whatever_may_change_the_session(
    make_node: MakeNode, gate: Gate, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """A literal means what it meant when it was parsed. Muted: the identity outlives a SET, and the answer that the
    text had under another DateStyle is given to others.
    """
    if muted:
        monkeypatch.setattr(Standing, "early", property(_first, _keep_first), raising=False)
    node = make_node(early=True)
    with node.connect() as ours, node.connect() as others:
        read(ours, 1)
        ours.execute("SET DateStyle = 'ISO, DMY'")
        assert day(ours) == 2
        ours.execute("SET DateStyle = 'ISO, MDY'")
        assert day(ours) == 2  # parsed, it stays
        serve(node, gate)
        for _ in range(3):
            assert day(ours) == 2
        for _ in range(3):
            assert day(others) == (2 if muted else 1)
        assert last(others)["status"] == "hit"
        for _ in range(3):
            assert day(ours) == 2


def _first(session: Session) -> tuple[int, int]:
    found: tuple[int, int] = session.__dict__.get("first", (0, 0))
    return found


def _keep_first(session: Session, value: tuple[int, int]) -> None:
    if value[0] and not _first(session)[0]:
        session.__dict__["first"] = value


def test_a_change_of_the_table_in_between_is_the_servers_to_tell(
    make_node: MakeNode, stock: Database, gate: Gate
) -> None:
    text = "SELECT * FROM stock WHERE id = %s"
    node = make_node(early=True)
    with node.connect() as ours, node.connect() as others:
        ours.execute(text, (1,), prepare=True)
        stock.execute("ALTER TABLE stock ADD note text DEFAULT repeat('x', 1200)")
        serve(node, gate)
        for _ in range(3):
            row = others.execute(text, (1,), prepare=True).fetchone()
            assert row is not None
            assert len(row) == 3
        for _ in range(2):
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="must not change result type"):
                ours.execute(text, (1,), prepare=True)


def test_a_role_that_was_left_in_between_reads_by_itself(make_node: MakeNode, stock: Database, gate: Gate) -> None:
    stock.execute("DROP ROLE IF EXISTS early_bird", "CREATE ROLE early_bird")
    node = make_node(early=True)
    with node.connect() as ours, node.connect() as others:
        assert read(ours, 1) == 1
        ours.execute("SET ROLE early_bird")
        serve(node, gate)
        for _ in range(3):
            assert read(others, 1) == 1
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                read(ours, 1)
        ours.execute("RESET ROLE")
        for _ in range(2):
            assert read(ours, 1) == 1
    stock.execute("DROP ROLE early_bird")


def test_a_session_asks_so_often_and_no_more(
    make_node: MakeNode, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps the cache away may last: transactions pay for it a few times only."""
    monkeypatch.setattr("distribcache.proxy.standing._EARLY", 3)
    asked = []
    scope = Questions.scope

    def counted(self: Questions, behind: bytes = b"", *, early: bool = False) -> Any:
        asked.append(early)
        return scope(self, behind, early=early)

    monkeypatch.setattr(Questions, "scope", counted)
    node = make_node(early=True)
    with node.connect(autocommit=False) as connection:
        for _ in range(10):
            assert read(connection, 1) == 1
    assert asked == [True] * 3
