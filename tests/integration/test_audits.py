"""Hits are asked again: what an audit sends, what it may not disturb, and that it finds what a muted rule serves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last, until_hit
from rawclient import RawClient, run
from wait import until

from distribcache.coherence.auditor import Cause, Verdict
from distribcache.coherence.ledger import Ledger
from distribcache.proxy import hit, lookup
from distribcache.proxy.campaign import Campaign
from distribcache.wire.messages import SYNC, bind, describe, execute, parse, query

READ = "SELECT value FROM stock WHERE id = 1"
# Hits may wait, and freshness may be late: these tests ask what an audit finds, not how fast a machine is.
SETTINGS = {
    "freshness.max_staleness": "30s", "freshness.hit_wait": "2s", "freshness.schema_poll": "500ms", "audit.sample": "0",
}  # fmt: skip


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int, note text)",
        "INSERT INTO stock SELECT i, 1, 'note ' || i FROM generate_series(1, 20) i",
    )
    return database


@pytest.fixture
def proxy(stock: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(stock.url(), SETTINGS)


@contextmanager
def campaign(proxy: InnerProxy, max_cost_s: float = 10.0) -> Iterator[Campaign]:
    """All hits are audited in here; all verdicts are there behind it."""

    async def begin() -> Campaign:
        return proxy.proxy.node.audits.begin(proxy.proxy.node, 3600, max_cost_s)

    async def end() -> None:
        proxy.proxy.node.audits.end(proxy.proxy.node)

    found: Campaign = proxy.call(begin())
    yield found
    proxy.call(end())
    until(lambda: not found.pending, "verdicts never came")


READS = {
    "simple": query(READ.encode()),
    "simple, two columns and an order": query(b"SELECT id, note FROM stock WHERE value = 1 ORDER BY id"),
    "unnamed": parse(b"", b"SELECT value FROM stock WHERE id = $1", (23,)) + bind(b"", b"", (), (b"1",))
    + describe(b"P", b"") + execute(b"") + SYNC,
    "unnamed, undescribed": run(READ.encode()) + SYNC,
    "unnamed, binary": parse(b"", b"SELECT value, note FROM stock") + bind(b"", b"", (), (), (1,)) + describe(b"P", b"")
    + execute(b"") + SYNC,
    "named": bind(b"", b"s", (), (b"1",)) + describe(b"P", b"") + execute(b"") + SYNC,
    "named, with a row limit": bind(b"", b"s", (), (b"1",)) + execute(b"", 1) + SYNC,
    "no rows": query(b"SELECT value FROM stock WHERE id = 1000"),
}  # fmt: skip


@pytest.mark.parametrize("request_", READS.values(), ids=READS.keys())
def test_every_kind_of_hit_is_asked_again_and_found_the_same(
    proxy: InnerProxy, stock: Database, request_: bytes
) -> None:
    with RawClient(proxy.host, proxy.port, stock.name) as client:
        client.exchange(parse(b"s", b"SELECT value, note FROM stock WHERE id = $1", (23,)) + SYNC)
        first = client.exchange(request_)
        with campaign(proxy) as found:
            hits = proxy.proxy.node.hits

            def audited() -> bool:
                before = hits()
                assert client.exchange(request_) == first
                return hits() > before and found.tally.verdicts[Verdict.SAME] >= 5

            until(audited, lambda: f"never audited: {found}")
        assert found.tally.decided == found.tally.verdicts[Verdict.SAME]
        # and the client's connection is what it was
        assert client.rows(query(b"SELECT count(*) FROM pg_prepared_statements WHERE name <> 's'")) == [[b"0"]]
        assert client.rows(query(b"SHOW lock_timeout") + query(b"SHOW statement_timeout")) == [[b"0"]]
        assert client.rows_until_ready() == [[b"0"]]


def test_hits_inside_a_transaction_that_only_the_client_knows_of_are_asked_again(proxy: InnerProxy) -> None:
    with proxy.connect(autocommit=False) as connection:
        until_hit(connection, READ)
        connection.rollback()
        with campaign(proxy) as found:
            until(lambda: connection.execute(READ) and found.tally.verdicts[Verdict.SAME] >= 3, lambda: str(found))
            connection.execute("UPDATE stock SET value = 2 WHERE id = 1")
            assert connection.execute(READ).fetchone() == (2,)
            connection.rollback()


def test_rows_in_another_order_are_the_same_where_none_was_promised(proxy: InnerProxy, stock: Database) -> None:
    unordered, ordered = "SELECT note FROM stock WHERE id < 3", "SELECT note FROM stock WHERE id < 3 ORDER BY value"
    with proxy.connect() as connection:
        until_hit(connection, unordered)
        until_hit(connection, ordered)
        turn_around(proxy)
        with campaign(proxy) as found:
            connection.execute(unordered)
            until(lambda: found.tally.verdicts[Verdict.SAME] == 1, lambda: f"{found}")
            connection.execute(ordered)
            until(lambda: found.tally.causes[Cause.NOT_DETERMINED] == 1, lambda: f"{found}")
        assert found.tally.stale == 0


def turn_around(proxy: InnerProxy) -> None:
    """Let every entry hold its rows in the other order, as another plan would have given them."""
    from distribcache.proxy.compare import read_answer

    entries = proxy.proxy.node.l1.entries
    for key, entry in list(entries.items()):
        rows = read_answer(entry[0]).rows
        turned = entry[0].replace(b"".join(rows), b"".join(reversed(rows)))
        entries[key] = (turned, *entry[1:])


def mute_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""


def mute_validity(monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: entries are served whatever the ledger says."""
    for module in (hit, lookup):
        monkeypatch.setattr(module, "valid", lambda entry, words, now, head=None: True)


def mute_invalidation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a commit touches reaches the ledger, though W goes on."""
    monkeypatch.setattr(Ledger, "touch", lambda self, oid, lsn: None)
    monkeypatch.setattr(Ledger, "bump", lambda self, slot, lsn: None)


@pytest.mark.parametrize(
    ("mute", "cause"),
    [(mute_nothing, Cause.NONE), (mute_validity, Cause.DEAD), (mute_invalidation, Cause.MISSED)],
    ids=["kept", "validity muted", "invalidation muted"],
)
def test_stale_answers_are_found_where_there_are_any(
    proxy: InnerProxy,
    stock: Database,
    monkeypatch: pytest.MonkeyPatch,
    mute: Callable[[pytest.MonkeyPatch], None],
    cause: Cause,
) -> None:
    """Writers around the proxy, readers through it, all hits audited."""
    stop, readers = threading.Event(), 3

    def write() -> None:
        with psycopg.connect(stock.conninfo(), autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("UPDATE stock SET value = value + 1 WHERE id <= 5")
                stop.wait(0.01)

    def read() -> None:
        with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute(f"SELECT value FROM stock WHERE id = {1 + number % 8}")

    mute(monkeypatch)
    threads = [threading.Thread(target=write), *(threading.Thread(target=read) for _ in range(readers))]
    with campaign(proxy) as found:
        for thread in threads:
            thread.start()
        try:
            if cause is Cause.NONE:
                stop.wait(3)
            else:
                until(lambda: found.tally.causes[cause], lambda: f"nothing found: {found}")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    if cause is Cause.NONE:
        assert found.tally.stale == 0, (found, proxy.log)
        until(lambda: found.tally.verdicts[Verdict.SAME], lambda: f"nothing audited: {found}")
    else:
        line = next(line for line in proxy.log if "stale answer" in line)
        assert f"({cause.value})" in line and "public.stock" in line and "WHERE" not in line
        statistics = proxy.proxy.node.statistics()
        assert statistics["stale_audits_total"] == found.tally.stale > 0


def test_an_answer_that_a_commit_overtakes_is_superseded_and_not_stale(
    proxy: InnerProxy, stock: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy.connect() as connection:
        connection.execute("SET distribcache.consistency = eventual")
        until_hit(connection, READ)
        with campaign(proxy) as found:
            with monkeypatch.context() as held:
                proxy.hold_stream(held)
                stock.execute("UPDATE stock SET value = 2 WHERE id = 1")
                assert connection.execute(READ).fetchone() == (1,)
                until(lambda: found.pending, lambda: f"no difference: {found}")
            stock.execute("UPDATE stock SET value = 3 WHERE id = 2")  # something arrives
            until(lambda: found.tally.verdicts[Verdict.SUPERSEDED], lambda: f"{found}")
        assert found.tally.stale == 0
        assert found.tally.oldest_ns > 0


def test_an_answer_that_is_older_than_its_session_allows_is_stale(
    proxy: InnerProxy, stock: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4 muted: the hit path takes any age for fresh enough."""
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET distribcache.consistency = eventual")
        connection.execute("SET distribcache.max_staleness = '300ms'")
        until_hit(connection, READ)
        with ExitStack() as stack:
            with monkeypatch.context() as held:
                proxy.hold_stream(held)
                stock.execute("UPDATE stock SET value = 2 WHERE id = 1")
                (session,) = proxy.proxy.node.live
                session.hot.max_staleness = 10**12
                until(lambda: connection.execute(READ) and float(last(connection)["age_ms"] or 0) > 500, "never old")
                found = stack.enter_context(campaign(proxy))
                assert connection.execute(READ).fetchone() == (1,)
                until(lambda: found.pending, lambda: f"no difference: {found}")
            stock.execute("UPDATE stock SET value = 3 WHERE id = 2")  # something arrives
        assert found.tally.causes[Cause.OLD] == 1, found


def test_an_audit_never_makes_the_client_wait_for_a_lock(proxy: InnerProxy, stock: Database) -> None:
    with proxy.connect() as connection, stock.connect() as other:
        connection.execute("SET statement_timeout = '10s'")  # is not what saves it
        until_hit(connection, READ)
        with other.transaction():
            other.execute("LOCK TABLE stock IN ACCESS EXCLUSIVE MODE")
            with campaign(proxy) as found:
                until(lambda: connection.execute(READ) and found.tally.causes[Cause.FAILED], lambda: f"{found}")
                assert connection.execute("SELECT 1 + 1").fetchone() == (2,)


def test_a_cancel_behind_an_audit_ends_the_waiting_statement_and_nothing_else(
    proxy: InnerProxy, stock: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distribcache.proxy import again

    monkeypatch.setattr(again, "_LOCK_MS", 60_000)
    monkeypatch.setattr(again, "_LEAST_MS", 60_000)
    with proxy.connect() as connection, stock.connect() as other:
        until_hit(connection, READ)
        with other.transaction():
            other.execute("LOCK TABLE stock IN ACCESS EXCLUSIVE MODE")
            with campaign(proxy):
                connection.execute(READ)  # asked again, and waits for the lock
                until(lambda: any(each.asked for each in proxy.proxy.node.live), "never asked again")
                (session,) = [each for each in proxy.proxy.node.live if each.asked]
                errors: list[str | None] = []

                def wait() -> None:
                    try:
                        connection.execute("SELECT 40 + 2")
                    except psycopg.Error as error:
                        errors.append(error.sqlstate)

                waiting = threading.Thread(target=wait)
                waiting.start()
                until(lambda: session._inbox, "the statement never waited")
                connection.cancel_safe()
                until(lambda: session.failure, "the cancel never came")
                other.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE relation = 'stock'::regclass AND NOT granted"
                )
                waiting.join(60)
        assert errors == ["57014"]
        assert connection.execute("SELECT 40 + 2").fetchone() == (42,)


def test_what_took_long_is_left_alone_unless_that_is_asked_for(proxy: InnerProxy) -> None:
    slow = "SELECT count(*) FROM stock a, stock b, stock c, stock d"
    with proxy.connect() as connection:
        until_hit(connection, slow)
        with campaign(proxy, max_cost_s=0.0) as found:
            connection.execute(slow)
            until(lambda: found.skipped, lambda: f"{found}")
        assert not found.tally.decided
        with campaign(proxy) as found:
            connection.execute(slow)
            until(lambda: found.tally.decided, lambda: f"{found}")


def test_a_larger_answer_takes_no_more_memory_than_the_first(
    proxy: InnerProxy, stock: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 80 MB would end the connection if it were gathered whole."""
    sql = "SELECT note FROM stock WHERE id = 1"
    with proxy.connect() as connection:
        connection.execute("SET distribcache.consistency = eventual")
        until_hit(connection, sql)
        mute_validity(monkeypatch)
        stock.execute("UPDATE stock SET note = repeat('x', 80000000) WHERE id = 1")
        with campaign(proxy) as found:
            connection.execute(sql)
            until(lambda: found.tally.verdicts.total() + found.pending, lambda: f"{found}")
        assert connection.execute("SELECT 40 + 2").fetchone() == (42,)
        assert found.tally.verdicts[Verdict.SAME] == 0


def test_a_share_of_the_hits_is_audited_by_itself(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    proxy = make_inner_proxy(stock.url(), {**SETTINGS, "audit.sample": "0.1"})
    with proxy.connect() as connection:
        until_hit(connection, READ)
        audits = proxy.proxy.node.audits

        def audited() -> bool:
            for _ in range(20):
                connection.execute(READ)
            return audits.tally.decided >= 5

        until(audited, lambda: f"{proxy.proxy.node.statistics()}")
        assert audits.tally.decided <= 0.5 * proxy.proxy.node.hits()
