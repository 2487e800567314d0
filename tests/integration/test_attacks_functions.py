"""A read that names no table depends on what its functions read: attacks on what is behind them."""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from rawclient import RawClient, run

from distribcache.catalog.statement import Analyst
from distribcache.wire.messages import SYNC, query

SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int)",
    "INSERT INTO stock VALUES (1, 1)",
    "CREATE FUNCTION of_row(int) RETURNS int STABLE LANGUAGE sql RETURN (SELECT value FROM stock WHERE id = $1)",
    """CREATE FUNCTION of_all() RETURNS TABLE (value int) STABLE LANGUAGE sql
    BEGIN ATOMIC SELECT of_row(id) FROM stock; END""",
)
READS = [b"SELECT of_row(1)", b"SELECT value FROM of_all()", b"SELECT max(value) FROM of_all() WHERE value > 0"]


@pytest.mark.parametrize("read", READS)
def test_what_a_function_reads_ends_the_answer(
    stock: Database, client: RawClient, second: RawClient, read: bytes
) -> None:
    for form in (query(read), run(read) + SYNC):
        warm(client, form)
        for value in (b"7", b"1"):
            second.exchange(query(b"UPDATE stock SET value = " + value))
            assert client.rows(form) == [[value]]
            warm(client, form)


@pytest.mark.sabotage
def test_muted_it_does_not(
    inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relations that are read behind a function are left out."""
    rows = Analyst._combine

    def blind(self: Analyst, *given: object) -> object:
        analysis = rows(self, *given)  # type: ignore[arg-type]
        object.__setattr__(analysis, "slots", ())
        return analysis

    monkeypatch.setattr(Analyst, "_combine", blind)
    warm(client, query(READS[0]))
    second.exchange(query(b"UPDATE stock SET value = 7"))
    assert client.rows(query(READS[0])) == [[b"1"]]
