"""What came and went between two looks at the catalogue leaves no trace in it: attacks by what was there for a moment.

The stream is held meanwhile. The answer that is filled then was analysed before, so nothing in its tags tells of what
its names stood for.
"""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from inside import quiet
from muted import kept_and_muted
from rawclient import RawClient

from distribcache.coherence.coverage import Coverage
from distribcache.coherence.looking import Looking
from distribcache.wire.messages import query

SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s", "freshness.schema_poll": "30s"}
STOCK = (
    "CREATE SCHEMA early",
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
)
READ = query(b"SELECT max(value) FROM stock")
PATH = "-c search_path=early,public"
OTHER = f"{PATH} -c extra_float_digits=2"
WAYS = {
    "a table of an earlier schema": ("CREATE TABLE early.stock AS SELECT 99 AS value", "DROP TABLE early.stock"),
    "a child": (
        "CREATE TABLE child () INHERITS (stock); INSERT INTO child VALUES (99)", "DROP TABLE child",
    ),
}  # fmt: skip


@kept_and_muted
@pytest.mark.parametrize("how", WAYS)
def test_what_was_read_in_that_moment_is_not_served_behind_it(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, how: str, muted: bool
) -> None:
    make, drop = WAYS[how]
    if muted:
        monkeypatch.setattr(Coverage, "_came_and_went", lambda *_: False)
    monkeypatch.setattr(Looking, "poll_soon", lambda _: None)  # no look may fall into the moment
    stock.execute("CREATE TABLE known () INHERITS (stock)")  # the first child would change the parent's own row
    quiet(inner, stock)  # else the read would be analysed again, in the very moment, and mean what is there then
    with RawClient(inner.host, inner.port, stock.name, options=PATH) as client:
        warm(client, READ)
    quiet(inner, stock)
    with (
        RawClient(inner.host, inner.port, stock.name, options=OTHER) as client,
        RawClient(
            inner.host, inner.port, stock.name, options=f"{OTHER} -c distribcache.consistency=strict"
        ) as strict,
    ):  # fmt: skip
        with monkeypatch.context() as held:
            inner.hold_stream(held)
            stock.execute(make)
            assert client.rows(READ) == [[b"99"]]
            assert client.rows(query(b"SHOW distribcache.last"))[0][0] == b"miss"
            stock.execute(drop)
        warm(strict, READ)
        assert strict.rows(READ) == [[b"99" if muted else b"1"]]
