"""Every message is answered once and in order, and what is acknowledged counts: attacks by unusual sequences."""

from __future__ import annotations

import contextlib

import pytest
from barewire import bare, cancel
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from rawclient import RawClient, run
from wait import until

from distribcache.wire.messages import FLUSH, SYNC, query

READ = b"SELECT value FROM stock WHERE id = 1"
OTHER = b"SELECT value FROM stock WHERE id = 2"
SLOW = b"SELECT count(*) FROM stock a, stock b, numbers n, numbers m, numbers o"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int)",
    "INSERT INTO stock VALUES (1, 1), (2, 2)",
    "CREATE TABLE numbers AS SELECT i FROM generate_series(1, 1000) i",
)
SETTINGS = {"freshness.max_staleness": "30s", "cache.single_flight_wait": "10min"}


def send_cancel(inner: InnerProxy, client: RawClient) -> None:
    key = next(each[5:] for each in client.greeting if each[:1] == b"K")
    with bare(inner.host, inner.port) as courier:
        courier.send(cancel(int.from_bytes(key[:4], "big"), key[4:]))
        courier.rest()


COMMITS = {
    "commit and begin": (run(b"COMMIT") + run(b"BEGIN") + SYNC, b"Z"),
    "commit and flush": (run(b"COMMIT") + FLUSH, b"C"),
    "commit in a long text": (
        query(b"COMMIT; SELECT i, repeat('x', 1000) FROM generate_series(1, 99) i; SELECT pg_sleep(5)"),
        b"C",
    ),
}


@pytest.mark.parametrize("how", COMMITS)
def test_an_acknowledged_commit_counts_before_the_exchange_ends(
    inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Who is told COMMIT may tell another client of this node, who must see it."""
    warm(second, query(READ))
    inner.hold_stream(monkeypatch)
    client.exchange(query(b"BEGIN"))
    client.exchange(query(b"UPDATE stock SET value = 10 WHERE id = 1"))
    data, last = COMMITS[how]
    client.send(data)
    client.until(last)
    assert second.rows(query(READ)) == [[b"10"]]


def test_a_query_behind_messages_without_a_sync_comes_after_them(client: RawClient) -> None:
    warm(client, query(READ))
    client.send(run(OTHER) + query(READ))
    kinds = b"".join(each[:1] for each in client.until(b"Z"))
    assert kinds == b"12DCTDCZ"
    assert client.rows(query(READ)) == [[b"1"]]


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after the error"])
def test_a_query_behind_an_error_is_skipped_up_to_the_sync(client: RawClient, wait: bool) -> None:
    client.send(run(b"SELECT 1/0") + FLUSH)
    if wait:
        client.until(b"E")
    client.send(query(b"SELECT 'skipped'"))
    if not wait:
        client.until(b"E")
    client.send(SYNC)
    assert [each[:1] for each in client.until(b"Z")] == [b"Z"]
    assert client.rows(query(READ)) == [[b"1"]]


def test_a_cancelled_wait_for_anothers_fill_fails_the_transaction(
    inner: InnerProxy, stock: Database, client: RawClient, second: RawClient
) -> None:
    """As on the server: after the error everything is refused until ROLLBACK. (A group that is not finished waits for
    nobody.)
    """
    warm(client, run(READ) + SYNC)
    client.exchange(query(b"BEGIN"))
    client.exchange(query(b"SHOW server_version"))
    second.send(run(SLOW) + SYNC)
    until(lambda: len(inner.proxy.node.flights._waiting) == 1, "never in flight")
    client.send(run(SLOW) + SYNC)
    until(lambda: any(inner.proxy.node.flights._waiting.values()), "never waiting")
    client.socket.settimeout(2)
    for _ in range(30):  # a cancel may find the server still idle
        send_cancel(inner, client)
        with contextlib.suppress(TimeoutError):
            client.until(b"E")
            break
    client.socket.settimeout(60)
    assert client.message() == b"Z\0\0\0\5E"
    assert client.exchange(query(READ))[0][:1] == b"E"
    assert client.exchange(query(b"COMMIT"))[0] == b"C\0\0\0\rROLLBACK\0"
    send_cancel(inner, second)
    second.until(b"Z")
