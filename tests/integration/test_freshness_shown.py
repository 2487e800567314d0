"""How fresh answers are: bounds by class of statement, and what is shown of the stream, the ledger and the rows."""

from __future__ import annotations

import urllib.request
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last, until_hit
from wait import until

POINT = "SELECT value FROM stock WHERE id = 1"
SUM = "SELECT count(*), sum(value) FROM stock"
SETTINGS = {"freshness.max_staleness": "60s", "freshness.hit_wait": "50ms", "freshness.consistency": "eventual"}


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int, owner int)",
        "INSERT INTO stock SELECT i, 1, i % 3 FROM generate_series(1, 9) i",
    )
    return database


def age_ms(connection: psycopg.Connection[Any], sql: str) -> float:
    connection.execute(sql)
    shown = last(connection)
    return float(shown["age_ms"]) if shown["status"] == "hit" else -1.0


@pytest.mark.parametrize("hint", ["by its text", "by the session"])
@pytest.mark.parametrize("bound", ["100ms", None], ids=["bound", "unbound"])
def test_a_class_with_a_bound_of_its_own_is_read_anew_while_others_are_served(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, bound: str | None, hint: str
) -> None:
    """The stream is held, so knowledge grows old for all classes alike."""
    proxy = make_inner_proxy(stock.url(), {**SETTINGS, **({} if bound is None else {"staleness.olap": bound})})
    plain = {"cursor_factory": psycopg.ClientCursor}  # a statement that is prepared goes upstream once
    with proxy.connect(**plain) as others, proxy.connect(**plain) as analyst:
        bounded = SUM
        if hint == "by the session":
            bounded = POINT
            analyst.execute("SET distribcache.workload = 'olap'")
        until_hit(others, POINT)
        until_hit(analyst, bounded)
        old = analyst.execute(bounded).fetchone()
        proxy.hold_stream(monkeypatch)
        stock.execute("UPDATE stock SET value = 7 WHERE id = 1")
        until(lambda: age_ms(others, POINT) > 200, lambda: f"never old: {last(others)}")
        assert others.execute(POINT).fetchone() == (1,)
        assert last(others)["status"] == "hit"
        seen = analyst.execute(bounded).fetchone()
        if bound is None:
            assert seen == old
        else:
            assert seen == ((9, 15) if bounded == SUM else (7,))
            assert last(analyst)["status"] == "miss"


def test_a_bound_is_kept_where_only_time_ends_an_entry(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    settings = {**SETTINGS, "freshness.invalidation": "ttl", "staleness.olap": "100ms"}
    with ttl_proxy(stock, make_inner_proxy, settings).connect(cursor_factory=psycopg.ClientCursor) as connection:
        until_hit(connection, POINT)
        until_hit(connection, SUM)
        stock.execute("UPDATE stock SET value = 7 WHERE id = 1")
        until(lambda: connection.execute(SUM).fetchone() == (9, 15), "the sum was never read anew")
        assert connection.execute(POINT).fetchone() == (1,)


def ttl_proxy(stock: Database, make_inner_proxy: MakeInnerProxy, settings: dict[str, str]) -> InnerProxy:
    settled = InnerProxy.settled
    try:
        InnerProxy.settled = lambda self: True  # type: ignore[method-assign]
        return make_inner_proxy(stock.url(), settings)
    finally:
        InnerProxy.settled = settled  # type: ignore[method-assign]


def shown(connection: psycopg.Connection[Any], what: str = "freshness") -> dict[str, str]:
    return {row[0]: row[1] for row in connection.execute(f"SHOW distribcache.{what}").fetchall()}


def metrics(proxy: InnerProxy) -> dict[str, float]:
    host, port = proxy.proxy.admin_address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_what_ended_entries_is_told_by_cause(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    proxy = make_inner_proxy(stock.url(), {**SETTINGS, "freshness.hit_wait": "2s"})
    with proxy.connect() as connection:
        for sql in (POINT, SUM, "SELECT value FROM stock WHERE owner = 1"):
            until_hit(connection, sql)
        before = shown(connection)
        assert before["column_sets"] == "2" and float(before["lag_seconds"]) >= 0 and int(before["lag_bytes"]) >= 0
        for number in range(12):
            stock.execute(f"UPDATE stock SET value = {number + 10} WHERE id = 1")

        def of(cause: str) -> int:
            return int(shown(connection)[cause]) - int(before.get(cause, 0))

        until(lambda: of("invalidations_by.table") >= 12, lambda: str(shown(connection)))
        assert of("invalidations_by.row") >= 12 and of("invalidations_by.wildcard") >= 12
        assert of("invalidations_by.schema") == 0
        assert of("rows") >= 12 and of("commits") >= 12
        stock.execute("CREATE TABLE more (id int)")
        until(lambda: of("invalidations_by.schema") >= 1, lambda: str(shown(connection)))
        until(lambda: sum(of(name) for name in shown(connection) if name.startswith("alarms_by.")) >= 1)

        row = next(row for row in connection.execute("SHOW distribcache.tables").fetchall() if row[0] == "public.stock")
        assert set(row[3].split("; ")) == {"id", "owner"} and int(row[4]) >= 12
        assert row[5].startswith("ALTER TABLE public.stock REPLICA IDENTITY FULL;")
        stock.execute("ALTER TABLE stock REPLICA IDENTITY FULL")

        def advice() -> object:
            rows = connection.execute("SHOW distribcache.tables").fetchall()
            return next(row[5] for row in rows if row[0] == "public.stock")

        until(lambda: advice() is None, lambda: f"still advised: {advice()}")


def test_a_lost_stream_is_an_epoch_change_with_its_cause(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    proxy = make_inner_proxy(stock.url(), SETTINGS)
    with proxy.connect() as connection:
        stock.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()"
        )
        until(lambda: shown(connection).get("epoch_changes_by.reader_lost") == "1", lambda: str(shown(connection)))


def test_metrics_say_the_same_with_few_labels(stock: Database, make_inner_proxy: MakeInnerProxy) -> None:
    proxy = make_inner_proxy(stock.url(), {**SETTINGS, "freshness.hit_wait": "2s", "freshness.consistency": "strict"})
    with proxy.connect() as connection:
        until_hit(connection, POINT)
        until(lambda: connection.execute(POINT) and int(shown(connection)["waits"]), lambda: str(shown(connection)))
        stock.execute("UPDATE stock SET value = 2 WHERE id = 1")
        until(lambda: int(shown(connection)["invalidations_by.row"]) >= 1)
    found = metrics(proxy)
    database = f'{{database="{stock.name}"'
    for name in ("lag_bytes", "lag_seconds", "staleness_seconds", "column_sets", "unproved_commits", "fences_total",
                 "commits_total", "probes_total", "freshness_wait_seconds_total"):  # fmt: skip
        assert f"distribcache_{name}{database}}}" in found, name
    for kind in ("row", "wildcard", "table", "schema"):
        assert f'distribcache_invalidations_total{database},kind="{kind}"}}' in found, kind
    assert found[f'distribcache_freshness_waits_total{database},outcome="fresh"}}'] >= 1
    assert found[f'distribcache_invalidations_total{database},kind="row"}}'] >= 1
    assert found[f"distribcache_column_sets{database}}}"] == 1
    for name in ("audits_total", "stale_audits_total", "superseded_audits_total"):
        assert f"distribcache_{name}" in found
    assert not any("stock" in name.replace(stock.name, "") for name in found)
