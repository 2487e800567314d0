"""A transaction that the client believes to be open is open, or has failed: attacks on the deferred BEGIN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from rawclient import RawClient, run

from distribcache.proxy import local, simple
from distribcache.proxy.transaction import control
from distribcache.wire.messages import FLUSH, SYNC, query

CANCELLED = b"DO $$ BEGIN RAISE EXCEPTION 'cancelled' USING ERRCODE = '57014'; END $$"
STOCK = ("CREATE TABLE stock (id int PRIMARY KEY, value text)",)
SETTINGS: dict[str, str] = {}


@pytest.fixture
def client(stock: Database, inner: InnerProxy) -> Iterator[RawClient]:
    with RawClient(inner.host, inner.port, stock.name) as client:
        client.exchange(query(b"SELECT count(*) FROM stock"))
        yield client


def cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The BEGIN that was deferred is cancelled when it is sent at last."""

    def deferred(*given: Any, **more: Any) -> Any:
        answer = control(*given, **more)
        return answer and (answer[0], [(name, each if name else query(CANCELLED)) for name, each in answer[1]])

    for module in (simple, local):
        monkeypatch.setattr(module, "control", deferred)


INSERT = b"INSERT INTO stock VALUES (1, 'x')"
FIRST: dict[str, Callable[[], bytes]] = {
    "simple": lambda: query(INSERT),
    "read": lambda: query(b"SELECT value FROM stock WHERE id = 5"),
    "extended": lambda: run(INSERT) + SYNC,
    "long": lambda: query(b"INSERT INTO stock VALUES (1, '" + b"x" * 500_000 + b"')"),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("savepoint", [False, True], ids=["begin", "savepoint"])
def test_a_cancelled_begin_is_a_failed_transaction(
    stock: Database, client: RawClient, monkeypatch: pytest.MonkeyPatch, first: str, savepoint: bool
) -> None:
    """The client has pipelined all of it and looks at no status: nothing may be committed by itself."""
    cancelled(monkeypatch)
    client.exchange(query(b"BEGIN"))
    if savepoint:
        client.exchange(query(b"SAVEPOINT a"))
    client.send(FIRST[first]())
    client.send(query(b"INSERT INTO stock VALUES (2, 'y')") + query(b"COMMIT"))
    replies = [client.until(b"Z") for _ in range(3)]
    assert [reply[-1] for reply in replies] == [b"Z\0\0\0\5E", b"Z\0\0\0\5E", b"Z\0\0\0\5I"]
    assert [reply[0][:1] for reply in replies] == [b"E", b"E", b"C"]
    assert replies[2][0] == b"C\0\0\0\rROLLBACK\0"
    assert stock.execute("SELECT count(*) FROM stock") == [(0,)]


def test_behind_a_group_that_failed_here_all_is_ignored_up_to_its_sync(
    client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled(monkeypatch)
    client.exchange(query(b"BEGIN"))
    client.send(run(INSERT) + FLUSH)
    assert client.message()[:1] == b"E"
    assert client.exchange(query(b"SELECT 1") + run(INSERT) + SYNC) == [b"Z\0\0\0\5E"]
    assert client.exchange(query(b"ROLLBACK")) == [b"C\0\0\0\rROLLBACK\0", b"Z\0\0\0\5I"]
