"""``invalidation = "ttl"`` with L2 and L3: what was PostgreSQL's answer no longer ago than its TTL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, last
from muted import kept_and_muted
from rawclient import RawClient
from wait import until

from distribcache.cli.valkey import Valkey
from distribcache.coherence import ttl as ttl_module
from distribcache.coherence.ttl import TtlOnly
from distribcache.wire.messages import SYNC, bind, describe, execute, parse

READ = "SELECT value, repeat('x', 1200) AS pad FROM stock WHERE id = 7"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int)",
    "INSERT INTO stock SELECT i, 1 FROM generate_series(1, 20) i",
)
SETTINGS = {
    "freshness.invalidation": "ttl",
    "audit.sample": "0",
    "ttl.oltp": "30min",
    "ttl.olap": "30min",
    "l3.deadline": "10s",
}

Connection = psycopg.Connection[Any]
MakeNode = Callable[..., InnerProxy]


class Node(InnerProxy):
    """Served from the beginning, and settled when its catalogue was looked at."""

    def settled(self) -> bool:
        return True


def of(node: InnerProxy) -> TtlOnly:
    (found,) = node.proxy.databases
    assert isinstance(found, TtlOnly)
    return found


@pytest.fixture
def make_node(stock: Database, tmp_path: Path) -> Iterator[MakeNode]:
    """A node in front of the test's database, with a directory that survives it."""
    running: list[InnerProxy] = []

    def make(**more: str) -> InnerProxy:
        where = {"l2.path": str(tmp_path / "l2")} if "l3.peers" not in more else {}
        running.append(Node(stock.url(), {**SETTINGS, **where, **more}))
        return running[-1]

    yield make
    for node in running:
        node.stop()


def value(connection: Connection) -> int:
    """The answer, asked for again while the statement cannot be analysed in time, as on a busy machine."""
    while True:
        row = connection.execute(READ).fetchone()
        assert row is not None
        if last(connection)["reason"] != "analysis_unsettled":
            return int(row[0])


def may_read(connection: Connection) -> bool:
    try:
        assert value(connection) == 1
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def placed(node: InnerProxy) -> int:
    return sum(tier.puts for tier in node.proxy.node.store.stack.stats().values())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttl_module, "_BEHIND_DDL_NS", (50_000_000, 100_000_000))


def looked(node: InnerProxy, connection: Connection) -> None:
    """The catalogue has been looked at, and again behind whatever was seen of it."""
    until(
        lambda: connection.execute("SELECT 1") and of(node).shared_epoch() and not of(node)._soon,
        lambda: f"never looked: {node.log}",
    )


def enter(node: InnerProxy, user: str = "postgres", **more: Any) -> Connection:
    """A session whose answers go everywhere; when it is there, the tiers are open."""
    connection = node.connect(user, prepare_threshold=None, **more)
    connection.execute("SET distribcache.workload = 'olap'")
    looked(node, connection)
    return connection


def share(node: InnerProxy, connection: Connection) -> int:
    """Read until the answer lies below memory."""
    before = placed(node)
    found = value(connection)
    until(lambda: placed(node) > before, lambda: f"never placed: {node.proxy.node.store.stack.stats()}")
    return found


def tier(connection: Connection) -> str | None:
    found = last(connection)
    return found["tier"] if found["status"] == "hit" else None


def test_a_restart_finds_what_time_has_not_ended(make_node: MakeNode, stock: Database) -> None:
    """That is what the mode means: the answer is an old one. Its TTL goes on where it was."""
    first = make_node(**{"ttl.olap": "6s", "l2.min_ttl": "1s"})
    with enter(first) as connection:
        assert share(first, connection) == 1
    first.stop()
    stock.execute("UPDATE stock SET value = 2")
    second = make_node(**{"ttl.olap": "1h", "l2.min_ttl": "1s"})
    with enter(second) as connection:
        if value(connection) == 1:  # else this machine took six seconds for it
            assert tier(connection) == "L2"
        until(lambda: value(connection) == 2, "it outlived its TTL")


@pytest.fixture
def reader(stock: Database) -> Iterator[str]:
    name = f"reader_of_{stock.name}"
    stock.execute(f"CREATE ROLE {name} LOGIN", f"GRANT SELECT ON stock TO {name}")
    yield name
    stock.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@kept_and_muted
def test_a_right_that_ended_meanwhile(
    make_node: MakeNode, stock: Database, reader: str, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 1: the fingerprint is part of the epoch. Muted: it is not."""
    if muted:
        monkeypatch.setattr(ttl_module, "_LOOK", ttl_module._LOOK.replace("f.hashes, f.roles", "'{}', '{}'"))
    first = make_node()
    with enter(first, reader) as connection:
        assert share(first, connection) == 1
    first.stop()
    stock.execute(f"REVOKE SELECT ON stock FROM {reader}")
    second = make_node()
    with enter(second, reader) as connection:
        assert may_read(connection) is muted
        assert not muted or tier(connection) == "L2"


@kept_and_muted
def test_ddl_through_the_node_ends_what_lies_below(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 3, where no fingerprint tells of it. Muted: the schema slot stays where it was."""
    if muted:
        renew = TtlOnly._renew
        monkeypatch.setattr(TtlOnly, "_renew", lambda self, schema: renew(self, 0))
    node = make_node()
    with enter(node) as connection:
        assert share(node, connection) == 1
        stock.execute("UPDATE stock SET value = 2")
        assert (value(connection), tier(connection)) == (1, "L1")
        connection.execute("COMMENT ON TABLE stock IS 'no fingerprint has it'")
        looked(node, connection)
        assert value(connection) == (1 if muted else 2)
        assert (tier(connection) == "L2") is muted


@kept_and_muted
def test_nothing_is_found_below_before_the_look_behind_ddl(
    make_node: MakeNode, stock: Database, reader: str, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 2: another node's record, in the moment between DDL here and a look. Muted: the epoch stays what it was."""
    node = make_node()
    with enter(node, reader) as connection, enter(node) as owner:
        assert share(node, connection) == 1
        monkeypatch.setattr(TtlOnly, "note_traffic", lambda _: None)  # no look from here on
        kept = of(node).shared_epoch()
        if muted:
            renew = TtlOnly._renew
            monkeypatch.setattr(TtlOnly, "_renew", lambda self, schema: renew(self, 0))
            monkeypatch.setattr(TtlOnly, "shared_epoch", lambda _: kept)
            monkeypatch.setattr(TtlOnly, "own_epoch", lambda _: kept)
        owner.execute(f"REVOKE SELECT ON stock FROM {reader}")
        assert may_read(connection) is muted
        assert not muted or tier(connection) == "L2"


@kept_and_muted
def test_a_change_made_elsewhere_is_noticed_by_a_look(
    make_node: MakeNode, stock: Database, reader: str, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """In memory too. Muted: looks are compared with nothing."""
    monkeypatch.setattr(ttl_module, "_LOOK_NS", 50_000_000)
    if muted:
        saw = TtlOnly._saw

        def forgetful(self: TtlOnly, row: tuple[Any, ...], began: int) -> None:
            self._view = ()
            saw(self, row, began)

        monkeypatch.setattr(TtlOnly, "_saw", forgetful)
    node = make_node(**{"l3.peers": ""})
    with enter(node, reader) as connection:
        until(lambda: value(connection) == 1 and tier(connection) == "L1")
        stock.execute(f"REVOKE SELECT ON stock FROM {reader}")
        polls = of(node).counters.polls
        until(lambda: connection.execute("SELECT 1") and of(node).counters.polls > polls + 1, "never looked")
        assert may_read(connection) is muted


@kept_and_muted
def test_who_knows_old_result_types_is_told_by_the_server(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 3: rows of another shape than the one that a client was told. Muted: the schema slot stays where it was."""
    if muted:
        renew = TtlOnly._renew
        monkeypatch.setattr(TtlOnly, "_renew", lambda self, schema: renew(self, 0))
    node = make_node()
    prepare = parse(b"all", b"SELECT * FROM stock WHERE id = 7") + describe(b"S", b"all") + SYNC
    run = bind(b"", b"all") + execute(b"") + SYNC
    with RawClient(node.host, node.port, stock.name) as ours, RawClient(node.host, node.port, stock.name) as others:
        ours.exchange(prepare)
        assert ours.rows(run) == [[b"7", b"1"]]
        with node.connect() as connection:
            connection.execute("ALTER TABLE stock ADD note text DEFAULT 'new'")
            looked(node, connection)
        others.exchange(prepare)
        for _ in range(3):
            assert others.rows(run) == [[b"7", b"1", b"new"]]
        answered = b"".join(ours.exchange(run))
        assert (b"must not change result type" in answered) is not muted
        assert (b"new" in answered) is muted


def test_two_nodes_share_what_is_dear(make_node: MakeNode, stock: Database, valkey: Valkey) -> None:
    far = {"l3.peers": valkey.address, "l3.password": valkey.password}
    first, second = make_node(**far), make_node(**far)
    with enter(first) as a, enter(second) as b:
        assert share(first, a) == 1
        stock.execute("UPDATE stock SET value = 2")
        assert (value(b), tier(b)) == (1, "L3")
        a.execute("ALTER TABLE stock ADD note text")
        looked(first, a)
        assert value(a) == 2
        stock.execute("UPDATE stock SET value = 3")
        assert (value(b), tier(b)) == (1, "L1")
        of(second)._due = 0
        until(lambda: value(b) in (2, 3), "the second node never looked")


@kept_and_muted
def test_a_session_on_another_server_takes_no_part(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 4. Muted: it does."""
    first = make_node()
    with enter(first) as connection:
        assert share(first, connection) == 1
    first.stop()
    stock.execute("UPDATE stock SET value = 2")
    second = make_node()
    with enter(second) as connection:
        of(second).server = ("another", *of(second).server[1:])
        if muted:
            monkeypatch.setattr("distribcache.proxy.lookup.reaches", lambda *_: True)
        assert value(connection) == (1 if muted else 2)
        assert (tier(connection) == "L2") is muted


def test_where_the_catalogue_cannot_be_looked_at_only_memory_serves(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttl_module, "_LOOK", "SELECT * FROM there_is_no_such_thing")
    node = make_node()
    with node.connect() as connection:
        until(lambda: value(connection) == 1 and tier(connection) == "L1")
        until(lambda: any("L2 and L3 are not used" in line for line in node.log), lambda: str(node.log))
        assert placed(node) == 0


def test_workers_share_one_directory(stock: Database, tmp_path: Path, make_proxy: Any) -> None:
    proxy = make_proxy(stock.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2"), "listen.workers": "2"})
    tiers = set()

    def read_once() -> bool:
        with proxy.connect() as connection:
            assert value(connection) == 1
            tiers.add(tier(connection))
        return {"L1", "L2"} <= tiers

    until(read_once, lambda: f"{tiers} {proxy.log}")
