"""A name that is stored as a number is shown as it is called now: attacks by what nobody looks for in the catalogue."""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from inside import quiet
from rawclient import RawClient

from distribcache.catalog import resolve
from distribcache.wire.messages import query

SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}
READ = query(b"SELECT counter FROM stock")
NEW = "ALTER SEQUENCE counts RENAME TO numbers"
STOCK = (
    "CREATE SEQUENCE counts",
    "CREATE TABLE stock (counter regclass)",
    "INSERT INTO stock VALUES ('counts')",
)


@pytest.mark.parametrize("way", ["around", "through"])
def test_a_sequence_is_shown_under_its_new_name(
    stock: Database, client: RawClient, second: RawClient, way: str
) -> None:
    for _ in range(3):
        assert client.rows(READ) == [[b"counts"]]
    if way == "around":
        stock.execute(NEW)
    else:
        second.exchange(query(NEW.encode()))
    assert client.rows(READ) == [[b"numbers"]]


@pytest.mark.sabotage
def test_muted_the_old_name_is_shown(
    stock: Database, inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "NAMED", frozenset())
    warm(client, READ)
    second.exchange(query(NEW.encode()))
    quiet(inner, stock)  # the change is an alarm once more when it comes through the stream
    warm(client, READ)
    assert client.rows(READ) == [[b"counts"]]
