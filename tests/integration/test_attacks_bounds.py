"""What a client may make the proxy hold, wait for or say is bounded by what PostgreSQL would: attacks on the rest."""

from __future__ import annotations

import os
import signal
import time

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, until_hit
from fix_stock import warm
from rawclient import RawClient, run
from wait import until

from distribcache.proxy import lookup, questions
from distribcache.wire.messages import FLUSH, query

READ = b"SELECT value FROM stock WHERE id = 1"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value text)",
    "INSERT INTO stock SELECT i, repeat('x', 500000) FROM generate_series(1, 60) i",
)


def test_replies_held_for_the_end_of_an_exchange_are_bounded(inner: InnerProxy, client: RawClient) -> None:
    """A pipeline that only flushes may go on for hours: what it may store at its end must not all be held."""
    client.exchange(query(b"SELECT count(*) FROM stock"))
    session = next(iter(inner.proxy.node.live))
    for number in range(1, 61):
        client.send(run(b"SELECT value FROM stock WHERE id = %d" % number) + FLUSH)
        client.until(b"C")
    held = sum(fill._size for fill in session.fills if not fill.spoiled)
    assert 0 < held <= 16 * inner.proxy.node.settings.l1.max_entry


def test_a_notice_is_only_left_out_where_the_session_does_not_want_it(
    stock: Database, inner: InnerProxy, client: RawClient
) -> None:
    """``to_tsquery`` of a stop word gives a NOTICE; who does not hear it must not answer for who does."""
    sql = query(b"SELECT id FROM stock WHERE to_tsvector('english', 'a') @@ to_tsquery('english', 'the')")
    with RawClient(inner.host, inner.port, stock.name, options="-c client_min_messages=error") as deaf:
        for _ in range(3):
            assert b"N" not in [each[:1] for each in deaf.exchange(sql)]
    for _ in range(2):
        assert b"N" in [each[:1] for each in client.exchange(sql)]


def test_a_frozen_catalogue_connection_delays_a_new_statement_by_seconds_at_most(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_PATIENCE", 1.0)  # as it is
    until(lambda: client.exchange(query(b"SELECT count(*) FROM stock")) and next(iter(inner.proxy.databases)).serving)
    coherence = next(iter(inner.proxy.databases))
    pid = coherence._following.link.catalogue.connection.pgconn.backend_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert client.rows(query(b"SELECT max(id) FROM stock")) == [[b"60"]]
        assert time.monotonic() - began < 15
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("setting", ["consistency = strict", "max_staleness = '100ms'"])
def test_ttl_mode_keeps_what_a_session_asks_for(
    stock: Database, make_inner_proxy: MakeInnerProxy, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InnerProxy, "settled", lambda self: True)
    proxy = make_inner_proxy(stock.url(), {"freshness.invalidation": "ttl"})
    sql = "SELECT count(*) FROM stock"
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as lax, proxy.connect() as careful:
        careful.execute(f"SET distribcache.{setting}")
        assert careful.execute(sql).fetchone() == (60,)
        assert until_hit(lax, sql) == [(60,)]
        stock.execute("DELETE FROM stock WHERE id = 1")
        time.sleep(0.2)
        assert lax.execute(sql).fetchone() == (60,)
        assert careful.execute(sql).fetchone() == (59,)


def test_a_cancelled_question_leaves_nothing_behind(
    stock: Database, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the cancelled Execute the server skips our Close: the statement of our name is still there."""
    client.exchange(query(READ))
    with monkeypatch.context() as slow:
        slow.setattr(questions, "scope_query", lambda extra: "SELECT pg_sleep(20)")
        client.exchange(query(b"SET statement_timeout = 0"))
        client.send(query(READ))
        asking = "FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)' AND state = 'active'"
        until(lambda: stock.execute(f"SELECT pg_cancel_backend(pid) {asking}"))
        client.until(b"Z")
    client.exchange(query(READ))
    warm(client, query(READ))
