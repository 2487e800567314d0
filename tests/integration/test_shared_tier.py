"""Two nodes, one L3: what one has asked the other knows, and nobody is told what is no longer so, or not for him."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from muted import kept_and_muted
from wait import until

from distribcache.cli.valkey import Valkey
from distribcache.clock import now_ns
from distribcache.coherence import looking
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.live import DatabaseCoherence
from distribcache.proxy.node import Node
from distribcache.store import Store

SUM = "SELECT sum(value) FROM stock"
ROW = "SELECT value, repeat('x', 10) FROM stock WHERE id = 7"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int, owner text)",
    "INSERT INTO stock SELECT i, 1, 'alice' FROM generate_series(1, 20) i",
)
SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "2s", "audit.sample": "0"}

Connection = psycopg.Connection[Any]


@pytest.fixture
def make_node(stock: Database, valkey: Valkey, make_inner_proxy: MakeInnerProxy) -> Callable[..., InnerProxy]:
    """A node in front of the test's database, with the L3 that all nodes share."""

    def make(**more: str) -> InnerProxy:
        far = {"l3.peers": valkey.address, "l3.password": valkey.password, "l3.deadline": "10s"}
        return make_inner_proxy(stock.url(), {**SETTINGS, **far, **{key.replace("__", "."): more[key] for key in more}})

    return make


def node_of(proxy: InnerProxy) -> Node:
    return proxy.proxy.node


def placed(proxy: InnerProxy) -> int:
    """Records that this node has given to L3."""
    far = node_of(proxy).store.stack.far
    assert far is not None
    return far.stats().puts


def one(connection: Connection, sql: str = SUM) -> Any:
    """The answer, asked for again while the statement cannot be analysed in time, as on a busy machine."""
    while True:
        row = connection.execute(sql).fetchone()
        assert row is not None
        if last(connection)["reason"] != "analysis_unsettled":
            return row[0]


def as_olap(proxy: InnerProxy, user: str = "postgres") -> Connection:
    """A session whose answers go to L3 whatever they are."""
    connection = proxy.connect(user, prepare_threshold=None)
    connection.execute("SET distribcache.workload = 'olap'")
    return connection


def share(proxy: InnerProxy, connection: Connection, sql: str = SUM) -> Any:
    """Read until the answer of a miss has been given to L3."""
    before = placed(proxy)
    value = one(connection, sql)
    assert last(connection)["status"] == "miss", last(connection)
    until(lambda: placed(proxy) > before, lambda: f"never given down: {node_of(proxy).store.stack.stats()}")
    return value


def test_what_one_node_asked_another_knows(make_node: Callable[..., InnerProxy]) -> None:
    first, second = make_node(), make_node()
    with as_olap(first) as a, as_olap(second) as b:
        assert share(first, a) == 20
        assert one(b) == 20
        assert (last(b)["status"], last(b)["tier"]) == ("hit", "L3")
        assert last(b)["tables"] == "public.stock"
        assert one(b) == 20
        assert (last(b)["status"], last(b)["tier"]) == ("hit", "L1"), "it has come up"


@kept_and_muted
def test_no_node_serves_what_a_commit_has_ended(
    make_node: Callable[..., InnerProxy], stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule R1 for L3. Muted: a change of a relation that has no slot in a ledger is forgotten there."""
    if muted:
        touched = lambda self, oid, lsn: oid in self and self.bump(self.slot_of(oid, 0), lsn)
        monkeypatch.setattr(Ledger, "touch", touched)
    first, second = make_node(), make_node()
    with as_olap(first) as a, as_olap(second) as b:
        share(first, a)
        coherence = node_of(second).enter(stock.name).coherence
        commits = coherence.counters.commits
        stock.execute("UPDATE stock SET value = 2")
        until(lambda: coherence.counters.commits > commits, "the second node never heard of it")
        outdated = one(b) == 20
    assert outdated == muted


@kept_and_muted
def test_a_column_set_that_is_not_watched_here_makes_a_miss(
    make_node: Callable[..., InnerProxy], stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 1 across nodes: rows that nobody watched here may have changed unseen."""
    first, second = make_node(), make_node()
    with as_olap(first) as a, as_olap(second) as b:
        assert share(first, a, ROW) == 1
        stock.execute("UPDATE stock SET value = 5 WHERE id = 7")
        coherence = node_of(second).enter(stock.name).coherence
        assert isinstance(coherence, DatabaseCoherence)
        seen = coherence.counters.commits
        stock.execute("UPDATE stock SET value = 6 WHERE id = 8")
        until(lambda: coherence.counters.commits > seen, "the second node never heard of it")
        if muted:
            def early(tags: Any) -> Any:
                ledger = coherence.ledger
                found = []
                for tag in tags:
                    if tag[:1] == b"w":
                        oid = int.from_bytes(tag[1:9], "little")
                        found.append(ledger.wildcard_of(oid, ("id",), 1))
                    else:
                        found.extend(ledger.slots_for((tag,), coherence.slot_of) or ())
                return tuple(found)

            monkeypatch.setattr(coherence, "slots_for", early)
        value = one(b, ROW)
    assert (value == 1) == muted


def test_users_do_not_share(make_node: Callable[..., InnerProxy], stock: Database) -> None:
    stock.execute(
        "CREATE ROLE shared_alice LOGIN", "CREATE ROLE shared_bob LOGIN",
        "GRANT SELECT ON stock TO shared_alice, shared_bob", "ALTER TABLE stock ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON stock USING ('shared_' || owner = current_user)",
    )  # fmt: skip
    try:
        first, second = make_node(), make_node()
        a, b, c = as_olap(first, "shared_alice"), as_olap(second, "shared_bob"), as_olap(second, "shared_alice")
        with a, b, c:
            assert share(first, a) == 20
            assert one(b) is None
            assert one(c) == 20
            assert last(c)["tier"] == "L3"
    finally:
        stock.execute("DROP OWNED BY shared_alice, shared_bob", "DROP ROLE shared_alice, shared_bob")


def test_settings_do_not_share(make_node: Callable[..., InnerProxy]) -> None:
    first, second = make_node(), make_node()
    sql = "SELECT date '2026-03-04' + value FROM stock WHERE id = 1"
    with as_olap(first) as a, as_olap(second) as b:
        b.execute("SET DateStyle = 'German'")
        assert b.pgconn.parameter_status(b"DateStyle") == b"German, DMY"
        cursor_a, cursor_b = psycopg.ClientCursor(a), psycopg.ClientCursor(b)
        share(first, a, sql)
        assert cursor_a.execute(sql).pgresult is not None
        cursor_b.execute(sql)
        assert cursor_b.pgresult is not None
        assert cursor_b.pgresult.get_value(0, 0) == b"05.03.2026"


@kept_and_muted
def test_only_what_is_settled_is_given_down(
    make_node: Callable[..., InnerProxy], monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """What a crash could take back is not told to others: it waits for a probe that the stream has reached."""
    first = make_node()
    settle = (lambda store: [store._give(each) for each in store._waiting]) if muted else Store.settle
    monkeypatch.setattr(Store, "settle", lambda self: None)
    with as_olap(first) as a:
        one(a)
        assert last(a)["status"] == "miss"
        store = node_of(first).store
        until(lambda: len(store._waiting) == 1 or placed(first) > 0, "nothing was stored")

        async def play() -> int:
            head = node_of(first).enter(first.database).coherence.head
            since = store._waiting[0].since_ns
            fresh_at, head[4] = head[4], since - 1  # the last probe was asked before the reply came
            settle(store)
            head[4] = fresh_at
            return placed(first)

        given = first.call(play())
    assert (given > 0) == muted


@kept_and_muted
def test_a_change_of_the_catalogue_that_one_node_has_yet_to_see(
    make_node: Callable[..., InnerProxy], stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """A node that has not looked since gives its records the date of its last look, so a node that has takes none.

    Muted: it dates them with the present instead.
    """
    stock.execute("CREATE VIEW seen AS SELECT sum(value) FROM stock", "CREATE TABLE other (n int)")
    sql = "SELECT * FROM seen"
    first, second = make_node(), make_node()
    with as_olap(first) as a, as_olap(second) as b:
        one(a, sql)
        followed = node_of(first).enter(stock.name).coherence
        assert isinstance(followed, DatabaseCoherence)
        blind = followed.coverage
        # From here on the first node is blind for the catalogue: neither alarms nor looks.
        monkeypatch.setattr(Coverage, "_alarm", lambda self, *args: 0 if self is blind else _alarm(self, *args))
        monkeypatch.setattr(
            looking.Looking, "_reread",
            lambda self: _only_say_so(blind) if self.coverage is blind else _reread(self),
        )  # fmt: skip
        monkeypatch.setattr(Coverage, "limit_at", lambda self: 1 << 62)
        if muted:
            monkeypatch.setattr(followed, "confirmed", followed.visible)
        stock.execute("CREATE OR REPLACE VIEW seen AS SELECT sum(n) FROM other")
        changes = node_of(second).enter(stock.name).coherence
        assert isinstance(changes, DatabaseCoherence)
        until(lambda: changes.coverage.counters.catalogue_changes > 1, "the second node never saw the change")
        until(second.settled, "the second node never served again")
        before, commits = placed(first), followed.counters.commits
        stock.execute("UPDATE stock SET value = 3 WHERE id = 1")  # so that the first node has to ask again
        until(lambda: followed.counters.commits > commits, "the first node never heard of it")
        until(lambda: one(a, sql) is None and placed(first) > before, "the first node never gave its answer down")
        one(b, sql)
        outdated = last(b)["tier"] == "L3"
    assert outdated == muted


_alarm = Coverage._alarm
_reread = looking.Looking._reread


async def _only_say_so(coverage: Coverage) -> None:
    coverage.full_at = now_ns()


def test_one_node_asks_for_all(make_node: Callable[..., InnerProxy], stock: Database) -> None:
    """64 clients of two nodes miss one slow key at once: PostgreSQL is asked once."""
    stock.execute(
        "CREATE TABLE slow (n int)", "INSERT INTO slow SELECT generate_series(1, 1500)", "ANALYZE slow",
        "CREATE EXTENSION IF NOT EXISTS pg_stat_statements",
    )  # fmt: skip
    sql = "SELECT count(*) FROM slow a, slow b WHERE (a.n * b.n) % 7 = 1"
    nodes = [make_node(cache__single_flight_wait="60s") for _ in range(2)]
    connections = [as_olap(nodes[number % 2]) for number in range(64)]
    start = threading.Barrier(len(connections))
    values: list[int] = []

    def ask(connection: Connection) -> None:
        start.wait(60)
        values.append(one(connection, sql))

    threads = [threading.Thread(target=ask, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(values)) == 1
    assert len(values) == 64
    misses = sum(node_of(each).totals.fills["stored"] for each in nodes)
    statuses = [last(connection)["status"] for connection in connections]
    assert statuses.count("miss") == 1, statuses
    assert misses == 1
    for connection in connections:
        connection.close()


def test_a_dead_l3_costs_nobody_an_answer(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    with Valkey() as server:
        proxy = make_inner_proxy(
            stock.url(), {**SETTINGS, "l3.peers": server.address, "l3.password": server.password, "l3.deadline": "2s"}
        )
        with as_olap(proxy) as a:
            share(proxy, a)
            server.stop()
            for value in range(2, 30):
                stock.execute(f"UPDATE stock SET value = {value}")
                until(lambda: one(a) == 20 * value, "outdated for ever")  # noqa: B023
            server.start()
            before, numbers = placed(proxy), count()
            stock.execute("UPDATE stock SET value = 50")
            until(lambda: one(a) == 1000, "outdated for ever")

            def again() -> bool:
                a.execute(f"SET distribcache.branch = 'again-{next(numbers)}'")  # nothing of it is in L1
                one(a)
                return placed(proxy) > before

            until(again, lambda: f"L3 never came back: {node_of(proxy).store.stack.stats()}")


@kept_and_muted
def test_an_answer_that_came_between_the_look_and_the_lease_is_taken(
    make_node: Callable[..., InnerProxy], monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """A node looks and finds nothing; the other one puts its answer there and gives its lease back; then the first one
    gets the lease. Muted: it does not look again.
    """
    first, second = make_node(), make_node()
    looked = threading.Event()
    rise_far = Store.rise_far
    blind = [node_of(second).store]

    async def late(self: Store, *args: Any, **more: Any) -> Any:
        if self in blind:
            looked.set()
            if not muted:
                blind.remove(self)  # only the first look comes too early
            return None
        return await rise_far(self, *args, **more)

    monkeypatch.setattr(Store, "rise_far", late)
    with as_olap(first) as a, as_olap(second) as b:
        share(first, a)
        until(lambda: not node_of(first).store._leased, "the lease was never given back")
        one(b)
        assert looked.is_set()
        asked_itself = last(b)["status"] == "miss"
    assert asked_itself == muted


def test_a_wait_for_a_lease_ends_with_the_statement_timeout(
    make_node: Callable[..., InnerProxy], stock: Database, valkey: Valkey
) -> None:
    """Whoever waits for another node asks himself in time, and is cancelled like any other statement."""
    node = make_node(cache__single_flight_wait="100s")
    with as_olap(node) as a, as_olap(node) as b:
        far = node_of(node).store.stack.far
        assert far is not None

        async def always_taken(*_: object) -> bool:
            return False

        far.lease = always_taken  # type: ignore[method-assign]
        a.execute("SET statement_timeout = '3s'")
        began = now_ns()
        assert one(a) == 20
        assert now_ns() - began < 30_000_000_000
        codes: list[str | None] = []

        def ask() -> None:
            try:
                b.execute(ROW)
            except psycopg.Error as error:
                codes.append(error.sqlstate)

        waiting = threading.Thread(target=ask)
        waiting.start()
        until(lambda: node_of(node).store._leases, "it never waited")
        b.cancel_safe(timeout=60)  # the other kind would hold this process, and so the proxy in it
        waiting.join(60)
        assert codes == ["57014"]
