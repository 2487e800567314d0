"""A setting that changes what PostgreSQL answers is part of who asks: attacks by settings that nobody saw being set."""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from rawclient import RawClient

from distribcache.coherence import scope
from distribcache.sql import settings
from distribcache.wire.messages import query

READ = query(b"SELECT value FROM shown")
STOCK = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE VIEW shown AS SELECT value FROM stock",
)
CLOSED = "-c restrict_nonsystem_relation_kind=view"


def test_a_session_that_may_read_no_views_is_shown_none(stock: Database, inner: InnerProxy, client: RawClient) -> None:
    warm(client, READ)
    with RawClient(inner.host, inner.port, stock.name, options=CLOSED) as closed:
        assert closed.rows(READ) == []
    assert client.rows(READ) == [[b"1"]]


@pytest.mark.sabotage
def test_muted_the_view_is_shown(stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is not part of the key."""
    keyed = tuple(name for name in settings.KEYED if not name.startswith("restrict_"))
    for module in (settings, scope):
        monkeypatch.setattr(module, "KEYED", keyed)
    with RawClient(inner.host, inner.port, stock.name) as client:
        warm(client, READ)
        with RawClient(inner.host, inner.port, stock.name, options=CLOSED) as closed:
            assert closed.rows(READ) == [[b"1"]]
