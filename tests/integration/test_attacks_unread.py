"""What a replication connection writes is read by everybody behind this node, though nobody here reads what it says."""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from rawclient import RawClient

from distribcache.proxy.unread import Unread
from distribcache.wire.messages import message, query

READ = query(b"SELECT sum(value) FROM stock")
UPDATE = b"UPDATE stock SET value = 10"
STOCK = ("CREATE TABLE stock (value int)", "INSERT INTO stock VALUES (1)")
PIECE = message(ord("d"), b"9\n")
WRITES: dict[str, list[bytes]] = {
    "simple": [query(UPDATE)],
    "transaction": [query(b"BEGIN"), query(UPDATE), query(b"COMMIT")],
    "copy": [query(b"COPY stock FROM STDIN"), PIECE + message(ord("c"))],
    "copy in pieces": [query(b"COPY stock FROM STDIN"), PIECE, message(ord("c"))],
    "behind a command": [query(b"IDENTIFY_SYSTEM"), query(UPDATE)],
    "definition": [query(b"CREATE OR REPLACE VIEW shown AS SELECT 10 AS value FROM stock")],
}


def follow(stock: Database, inner: InnerProxy) -> RawClient:
    return RawClient(inner.host, inner.port, stock.name, replication="database")


@pytest.mark.parametrize("how", WRITES)
def test_what_it_writes_is_read_once_it_is_acknowledged(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    read = READ
    if how == "definition":
        stock.execute("CREATE VIEW shown AS SELECT value FROM stock")
        read = query(b"SELECT sum(value) FROM shown")
    with follow(stock, inner) as writer:
        warm(client, read)
        inner.hold_stream(monkeypatch)
        for data in WRITES[how]:
            writer.send(data)
            while data != PIECE and writer.message()[:1] not in (b"Z", b"G"):
                pass
        assert client.rows(read) == [[b"10"]]


def test_what_it_streams_changes_nothing(stock: Database, inner: InnerProxy, client: RawClient) -> None:
    """A follower that takes and confirms changes does not end anybody's hits."""
    with follow(stock, inner) as follower:
        follower.exchange(query(b"CREATE_REPLICATION_SLOT own TEMPORARY LOGICAL test_decoding"))
        follower.send(query(b"START_REPLICATION SLOT own LOGICAL 0/0"))
        follower.until(b"W")
        follower.send(message(ord("d"), b"r" + bytes(33)))
        warm(client, READ)
        floor = next(iter(inner.proxy.databases)).floor_ns
        stock.execute(UPDATE)
        while b"stock" not in follower.message():
            pass
        assert next(iter(inner.proxy.databases)).floor_ns == floor


@pytest.mark.sabotage
def test_muted_the_old_answer_is_served(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unread, "from_upstream", lambda *_: None)
    with follow(stock, inner) as writer:
        warm(client, READ)
        inner.hold_stream(monkeypatch)
        writer.exchange(query(UPDATE))
        assert client.rows(READ) == [[b"1"]]
