"""An answer that is stored was read by a snapshot taken after its date: attacks by transactions that keep an old one.

In a repeatable read transaction every statement sees what its first one saw. A fill that begins later would be dated
by a newer position than its snapshot, and no further commit would ever end it.
"""

from __future__ import annotations

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, last
from rawclient import RawClient, run
from wait import until

from distribcache.wire.messages import FLUSH, SYNC, query

READ = b"SELECT value FROM stock WHERE id = 1"
OTHER = b"SELECT value FROM stock WHERE id = 2"
STOCK = ("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1), (2, 1)")


def arrived(connection: psycopg.Connection[object], value: int) -> None:
    """The change has come through the stream, and V has passed it: a fill that begins now would be dated by it.

    Only a strict hit proves that: another may be of what the server was asked for meanwhile.
    """
    connection.execute("SET distribcache.consistency = strict")

    def hit() -> bool:
        seen = connection.execute("SELECT value FROM stock WHERE id = 2").fetchone()
        return seen == (value,) and last(connection)["status"] == "hit"

    until(hit, lambda: f"the write never arrived: {last(connection)}")


BEGINNINGS = {
    "one text": query(b"COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ"),
    "one group": run(b"COMMIT") + run(b"BEGIN ISOLATION LEVEL REPEATABLE READ") + SYNC,
    "a second begin": query(b"BEGIN ISOLATION LEVEL REPEATABLE READ"),
    "a second begin in the group": run(b"BEGIN ISOLATION LEVEL REPEATABLE READ") + run(b"BEGIN") + SYNC,
}


@pytest.mark.parametrize("how", BEGINNINGS)
def test_a_transaction_that_becomes_repeatable_read_neither_fills_nor_hits(
    stock: Database, inner: InnerProxy, how: str
) -> None:
    with RawClient(inner.host, inner.port, stock.name) as client, inner.connect() as witness:
        client.exchange(query(b"BEGIN"))
        client.exchange(query(b"SHOW server_version"))  # now it is begun upstream
        client.exchange(BEGINNINGS[how])
        client.send(query(READ))
        assert client.rows_until_ready() == [[b"1"]]
        stock.execute("UPDATE stock SET value = 2")
        arrived(witness, 2)
        client.send(query(OTHER))
        assert client.rows_until_ready() == [[b"1"]], "a hit shows what the transaction's snapshot does not"
        client.send(query(READ))
        assert client.rows_until_ready() == [[b"1"]]
        client.exchange(query(b"COMMIT"))
        client.send(query(READ))
        assert client.rows_until_ready() == [[b"2"]], "the old snapshot's answer was stored as a new one"


def test_an_implicit_transaction_under_another_default_keeps_its_snapshot(stock: Database, inner: InnerProxy) -> None:
    with RawClient(inner.host, inner.port, stock.name) as client, inner.connect() as witness:
        client.exchange(query(b"SET default_transaction_isolation = 'repeatable read'"))
        client.exchange(query(OTHER))
        client.exchange(query(OTHER))
        client.send(run(b"SELECT count(*) FROM stock") + FLUSH)
        client.until(b"C")
        stock.execute("UPDATE stock SET value = 2")
        arrived(witness, 2)
        client.send(run(READ) + SYNC)
        assert client.rows_until_ready() == [[b"1"]]
        client.send(run(READ) + SYNC)
        assert client.rows_until_ready() == [[b"2"]], "the old snapshot's answer was stored as a new one"


def test_a_repeatable_read_begun_in_the_same_exchange_keeps_its_snapshot(stock: Database, inner: InnerProxy) -> None:
    with RawClient(inner.host, inner.port, stock.name) as client, inner.connect() as witness:
        client.exchange(query(OTHER))
        client.exchange(query(OTHER))
        client.send(run(b"BEGIN ISOLATION LEVEL REPEATABLE READ") + run(b"SELECT count(*) FROM stock") + FLUSH)
        client.until(b"D")
        stock.execute("UPDATE stock SET value = 2")
        arrived(witness, 2)
        client.send(run(READ) + SYNC)
        assert client.rows_until_ready() == [[b"1"]]
        client.exchange(query(b"COMMIT"))
        client.send(run(READ) + SYNC)
        assert client.rows_until_ready() == [[b"2"]], "the old snapshot's answer was stored as a new one"


def test_one_group_under_another_default_is_one_snapshot(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit in front of a miss would be older than the miss: only a transaction at read committed may see that."""
    with RawClient(inner.host, inner.port, stock.name) as client:
        client.exchange(query(b"SET default_transaction_isolation = 'repeatable read'"))
        for _ in range(3):
            client.exchange(run(READ) + SYNC)
        inner.hold_stream(monkeypatch)
        stock.execute("UPDATE stock SET value = 2")
        client.send(run(READ) + run(OTHER) + SYNC)
        assert client.rows_until_ready() in ([[b"1"], [b"1"]], [[b"2"], [b"2"]])
