"""`distribcache explain` says what the proxy would decide, and why."""

from __future__ import annotations

import pytest
from fix_cli import Cli
from fix_postgres import Database

from distribcache.proxy.remedies import REMEDIES
from distribcache.sql.cacheability import REFUSALS


@pytest.fixture(autouse=True)
def tables(database: Database) -> None:
    database.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, total numeric)",
        "CREATE VIEW big AS SELECT id FROM orders WHERE total > 100",
    )


def test_cacheable(cli: Cli, database: Database) -> None:
    outcome = cli("explain", "--upstream", database.url(), "--json", "SELECT count(*) FROM big")
    assert outcome.status == 0
    assert set(outcome.json) == {
        "cacheable", "reason", "detail", "explanation", "remedy", "kinds", "pure_read", "tables", "workload",
        "role", "search_path",
    }  # fmt: skip
    assert outcome.json["cacheable"] is True
    assert outcome.json["reason"] is None
    assert outcome.json["pure_read"] is True
    assert "public.orders" in outcome.json["tables"]
    assert outcome.json["workload"] == "olap"
    assert outcome.json["role"] == "postgres"
    assert outcome.json["search_path"] == ["pg_catalog", "public"]
    assert "cacheable" in cli("explain", "--upstream", database.url(), "SELECT count(*) FROM big").out


@pytest.mark.parametrize(
    ("statement", "reason", "pure"),
    [
        ("SELECT now(), id FROM orders", "time_dependent", True),
        ("SELECT random(), id FROM orders", "volatile_function", False),
        ("SELECT * FROM nowhere", "unknown_relation", False),
        ("SELECT * FROM pg_class", "catalog_relation", True),
        ("SELECT * FROM orders FOR UPDATE", "locking_read", False),
        ("UPDATE orders SET total = 1", "not_a_read", False),
        ("SELEC 1", "not_understood", False),
        ("SELECT 1", "no_relation", True),
        ("SELECT 1 FROM orders; SELECT 2 FROM orders", "several_statements", True),
        ("SELECT /* distribcache: nocache */ id FROM orders", "nocache", True),
    ],
)
def test_refused(cli: Cli, database: Database, statement: str, reason: str, pure: bool) -> None:
    outcome = cli("explain", "--upstream", database.url(), "--json", statement)
    assert outcome.status == 1
    assert outcome.json["cacheable"] is False
    assert outcome.json["reason"] == reason
    assert outcome.json["explanation"] == REFUSALS[reason]
    assert outcome.json["remedy"] == REMEDIES[reason]
    assert outcome.json["pure_read"] is pure
    said = cli("explain", "--upstream", database.url(), statement).out
    assert f"not cached: {reason}" in said and REMEDIES[reason] in said


def test_names_mean_what_they_mean_to_the_role(cli: Cli, database: Database) -> None:
    role = f"reader_{database.name}"
    database.execute(
        f"CREATE ROLE {role} LOGIN",
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.orders (id int)",
        "GRANT USAGE ON SCHEMA shop TO PUBLIC",
        f"ALTER ROLE {role} SET search_path = shop",
    )
    try:
        outcome = cli("explain", "--upstream", database.url(user=role), "--json", "SELECT id FROM orders")
        assert outcome.json["tables"] == ["shop.orders"]
    finally:
        database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_statement_is_not_run(cli: Cli, database: Database) -> None:
    cli("explain", "--upstream", database.url(), "DELETE FROM orders; DROP TABLE orders CASCADE")
    assert database.execute("SELECT count(*) FROM orders") == [(0,)]


def test_unreachable(cli: Cli) -> None:
    assert cli("explain", "--upstream", "postgresql://127.0.0.1:1/x", "SELECT 1").status == 3


def test_what_pgoutput_does_not_show(cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.execute("CREATE TABLE keyless (id int)")
    read = "SELECT id FROM keyless"
    assert cli("explain", "--upstream", database.url(), read).status == 0
    monkeypatch.setenv("DISTRIBCACHE_FRESHNESS_PLUGIN", "pgoutput")
    cli("setup", "--upstream", database.url())
    outcome = cli("explain", "--upstream", database.url(), "--json", read)
    assert (outcome.status, outcome.json["reason"], outcome.json["detail"]) == (
        1, "no_replica_identity", "public.keyless",
    )  # fmt: skip
    assert cli("explain", "--upstream", database.url(), "SELECT count(*) FROM big").status == 0
