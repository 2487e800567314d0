"""The traps of row tags through the proxy, each with its rule muted: the answer about a row outlives its change."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy
from fix_stock import warm
from inside import seen
from muted import kept_and_muted
from rawclient import RawClient
from relay import Relay
from rowtags import null_for_unknown
from wait import until

from distribcache.coherence.coverage import Coverage
from distribcache.coherence.tags import slots_of
from distribcache.coherence.tuples import Change
from distribcache.coherence.watching import Plan
from distribcache.proxy import lookup
from distribcache.proxy.standing import Standing
from distribcache.sql import rowvalues
from distribcache.sql.predicates import _Reading
from distribcache.sql.rowvalues import Family
from distribcache.wire.messages import SYNC, bind, execute, parse, query

READ = query(b"SELECT value FROM stock WHERE id = 1")
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, kind int, value text)",
    "INSERT INTO stock VALUES (1, 5, '1'), (2, 5, '2'), (3, 7, '3')",
    "CREATE TABLE part (id int PRIMARY KEY)",
    "INSERT INTO part VALUES (1)",
)


@kept_and_muted
def test_trap_1_a_commit_between_the_read_and_its_registration(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 1: the reply is under way, the row changes, and only then the reply is stored.

    Muted: the column set is registered when the reply is stored, by a reader that does not say how far it is.
    """
    if muted:
        plain = Standing._store

        def late(self: Standing, fill: Any) -> None:
            fill.slots = slots_of(*fill.slots)
            plain(self, fill)

        monkeypatch.setattr(lookup, "slots_of", lambda *given: given)
        monkeypatch.setattr(Standing, "_store", late)
        monkeypatch.setattr(Coverage, "watch", lambda self, oid, columns: self.watching.register(oid, columns, 0))
    with Relay(stock.server.port, only=b"victim") as relay:
        proxy = make_inner_proxy(
            f"postgresql://postgres@127.0.0.1:{relay.port}/{stock.name}", {"freshness.max_staleness": "30s"}
        )
        with RawClient(proxy.host, proxy.port, stock.name, application_name="victim") as client:
            warm(client, query(b"SELECT count(*) FROM stock"))
            answered, released = threading.Event(), threading.Event()

            def hold(number: int, message: bytes) -> bytes:
                answered.set()
                released.wait(60)
                return message

            relay.arm(hold)
            client.send(READ)
            assert answered.wait(60)
            stock.execute("UPDATE stock SET value = 'new' WHERE id = 1")
            seen(proxy, stock)
            relay.disarm()
            released.set()
            assert client.rows_until_ready() == [[b"1"]]
            assert client.rows(READ) == ([[b"1"]] if muted else [[b"new"]])


def outlives(client: RawClient, inner: InnerProxy, stock: Database, read: bytes, change: str) -> bool:
    """Is the answer to ``read`` the one of before ``change``, though the change has arrived? Never a third one."""
    warm(client, read)
    before = client.rows(read)
    stock.execute(change)
    seen(inner, stock)
    after = client.rows(read)
    with RawClient(stock.server.host, stock.server.port, stock.name) as direct:
        truth = direct.rows(read)
    assert truth != before
    assert after in (before, truth)
    return after == before


FORMS = {
    "literal": query(b"SELECT value FROM stock WHERE id = 01"),
    "parameter": parse(b"", b"SELECT value FROM stock WHERE id = $1", [23])
    + bind(b"", b"", params=[b" +1"]) + execute(b"") + SYNC,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@kept_and_muted
def test_trap_6_equal_is_not_the_same_text(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, form: str, muted: bool
) -> None:
    """Coherence trap 6. Muted: any text is taken for what the stream prints."""
    if muted:
        monkeypatch.setitem(rowvalues._TEXTS, Family.INT, lambda value: value)
    assert outlives(client, inner, stock, FORMS[form], "UPDATE stock SET value = 'new' WHERE id = 1") is muted


@kept_and_muted
def test_trap_7_the_preserved_side_of_an_outer_join_is_not_pinned(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 7. Muted: every condition of a level counts for all of its relations."""
    if muted:
        monkeypatch.setattr(_Reading, "_true_with", lambda self, index: (1 << len(self._filters)) - 1)
    read = query(b"SELECT count(*) FROM stock s LEFT JOIN part p ON p.id = s.id AND s.id = 1")
    assert outlives(client, inner, stock, read, "INSERT INTO stock VALUES (50)") is muted


@kept_and_muted
def test_trap_8_an_old_value_that_is_not_shown_is_unknown(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 8. Muted: what the stream leaves out is taken for NULL, which equals nothing."""
    if muted:
        monkeypatch.setattr(Plan, "touch", null_for_unknown)
    read = query(b"SELECT count(*) FROM stock WHERE kind = 5")
    assert outlives(client, inner, stock, read, "DELETE FROM stock WHERE id = 2") is muted


def all_kept(self: Plan, change: Change, slots: set[int]) -> None:
    """An UPDATE without old values keeps every column, not only those of the identity."""
    for one in self.sets:
        for side in (change.old, change.new):
            if side is not None:
                self._side(one, side, slots)


@kept_and_muted
def test_trap_24_a_look_up_by_another_column_is_correct_but_cold(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 24. Muted: the hidden old value is taken for the new one; the old kind's list is stale."""
    if muted:
        monkeypatch.setattr(Plan, "touch", all_kept)
    kind_5 = query(b"SELECT id FROM stock WHERE kind = 5 ORDER BY id")
    assert outlives(client, inner, stock, kind_5, "UPDATE stock SET kind = 9 WHERE id = 2") is muted


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_trap_24_full_identity_makes_it_warm(
    stock: Database, inner: InnerProxy, client: RawClient, identity: str
) -> None:
    """Coherence trap 24: under the default identity every UPDATE ends all such answers, under FULL only its own."""
    stock.execute(f"ALTER TABLE stock REPLICA IDENTITY {identity}")
    seen(inner, stock)
    until(inner.settled, "never settled")
    kind_7 = query(b"SELECT id FROM stock WHERE kind = 7 ORDER BY id")
    warm(client, kind_7)
    stock.execute("UPDATE stock SET kind = 9 WHERE id = 2")
    seen(inner, stock)
    assert client.rows(kind_7) == [[b"3"]]
    assert (client.rows(query(b"SHOW distribcache.last"))[0][0] == b"hit") is (identity == "FULL")
