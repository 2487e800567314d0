"""Every message is answered once and in order, and what is acknowledged counts: attacks by unusual sequences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from barewire import bare, cancel
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy
from rawclient import RawClient
from wait import until

from distribcache.wire.messages import FLUSH, SYNC, bind, execute, parse, query

READ = b"SELECT value FROM stock WHERE id = 1"
OTHER = b"SELECT value FROM stock WHERE id = 2"
SLOW = b"SELECT count(*) FROM stock a, stock b, numbers n, numbers m, numbers o"


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        "INSERT INTO stock VALUES (1, 1), (2, 2)",
        "CREATE TABLE numbers AS SELECT i FROM generate_series(1, 400) i",
    )
    return database


@pytest.fixture
def proxy(stock: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(stock.url(), {"freshness.max_staleness": "30s", "cache.single_flight_wait": "30s"})


@pytest.fixture
def client(stock: Database, proxy: InnerProxy) -> Iterator[RawClient]:
    with RawClient(proxy.host, proxy.port, stock.name) as client:
        yield client


@pytest.fixture
def second(stock: Database, proxy: InnerProxy) -> Iterator[RawClient]:
    with RawClient(proxy.host, proxy.port, stock.name) as client:
        yield client


def run(sql: bytes) -> bytes:
    return parse(b"", sql) + bind(b"", b"") + execute(b"")


def rows(client: RawClient, data: bytes) -> list[list[bytes | None]]:
    client.send(data)
    return client.rows_until_ready()


def warm(client: RawClient, data: bytes) -> None:
    def hit() -> bool:
        client.exchange(data)
        return rows(client, query(b"SHOW distribcache.last"))[0][0] == b"hit"

    until(hit, "never a hit")


def send_cancel(proxy: InnerProxy, client: RawClient) -> None:
    key = next(each[5:] for each in client.greeting if each[:1] == b"K")
    with bare(proxy.host, proxy.port, 20) as courier:
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
    proxy: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Who is told COMMIT may tell another client of this node, who must see it."""
    warm(second, query(READ))
    proxy.hold_stream(monkeypatch)
    client.exchange(query(b"BEGIN"))
    client.exchange(query(b"UPDATE stock SET value = 10 WHERE id = 1"))
    data, last = COMMITS[how]
    client.send(data)
    client.until(last)
    assert rows(second, query(READ)) == [[b"10"]]


def test_a_query_behind_messages_without_a_sync_comes_after_them(client: RawClient) -> None:
    warm(client, query(READ))
    client.send(run(OTHER) + query(READ))
    kinds = b"".join(each[:1] for each in client.until(b"Z"))
    assert kinds == b"12DCTDCZ"
    assert rows(client, query(READ)) == [[b"1"]]


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
    assert rows(client, query(READ)) == [[b"1"]]


@pytest.mark.parametrize("ended", [SYNC, FLUSH], ids=["sync", "flush"])
def test_a_cancelled_wait_for_anothers_fill_fails_the_transaction(
    proxy: InnerProxy, stock: Database, client: RawClient, second: RawClient, ended: bytes
) -> None:
    """As on the server: after the error everything is refused until ROLLBACK, or skipped until Sync."""
    warm(client, run(READ) + SYNC)
    client.exchange(query(b"BEGIN"))
    client.exchange(query(b"SHOW server_version"))
    second.send(run(SLOW) + SYNC)
    until(lambda: len(proxy.proxy.node.flights._waiting) == 1, "never in flight")
    client.send(run(SLOW) + ended)
    until(lambda: any(proxy.proxy.node.flights._waiting.values()), "never waiting")
    client.socket.settimeout(2)
    for _ in range(5):  # a cancel may find the server still idle
        send_cancel(proxy, client)
        with contextlib.suppress(TimeoutError):
            client.until(b"E")
            break
    if ended == FLUSH:
        client.send(run(READ) + SYNC)  # skipped
    assert client.message() == b"Z\0\0\0\5E"
    assert client.exchange(query(READ))[0][:1] == b"E"
    assert client.exchange(query(b"COMMIT"))[0] == b"C\0\0\0\rROLLBACK\0"
    send_cancel(proxy, second)
    second.until(b"Z")
