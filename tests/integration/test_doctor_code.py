"""Code that may change the schema is named by `distribcache doctor`, with what spares its alarms, and those are told by
cause.
"""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from fix_cli import Cli
from fix_postgres import Database
from fix_proxy import MakeInnerProxy, until_hit
from wait import until

READ = "SELECT sum(value) FROM stock"
SHOP = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE TABLE orders (id int)",
    "CREATE TABLE plain (id int)",
)
WRITES = (
    """CREATE FUNCTION counts() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN UPDATE stock SET value = value + 1; RETURN NULL; END'""",
    """CREATE FUNCTION writes(name text) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE format('INSERT INTO %I VALUES (1)', name); EXECUTE 'SELECT ' || 1; END $$""",
    "CREATE TRIGGER counts AFTER INSERT ON plain EXECUTE FUNCTION counts()",
)
AUDIT = (
    """CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
    $$ DECLARE made text := 'UPDATE stock SET value = value + 1'; BEGIN EXECUTE made; RETURN NULL; END $$""",
    'CREATE TRIGGER "On Order" AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION audit()',
)


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(*SHOP, *WRITES)
    return database


def code(cli: Cli, database: Database) -> dict[str, Any]:
    outcome = cli("doctor", "--upstream", database.url(), "--json")
    assert outcome.status == 0, "advice is no problem"
    (found,) = (check for check in outcome.json["checks"] if check["name"] == "schema_changing_code")
    return dict(found)


def test_code_that_plainly_reads_and_writes_is_none_of_it(cli: Cli, shop: Database) -> None:
    assert code(cli, shop) == {
        "name": "schema_changing_code", "status": "ok", "detail": "no function or trigger may change the schema",
        "fix": [],
    }  # fmt: skip


def test_a_trigger_that_executes_what_it_makes_is_named_until_setup_has_been_run(cli: Cli, shop: Database) -> None:
    shop.execute(
        *AUDIT,
        "CREATE FUNCTION calls() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM scratch(); RETURN NULL; END'",
        "CREATE FUNCTION scratch() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE TEMP TABLE IF NOT EXISTS x (); END'",
        "CREATE TRIGGER calls AFTER UPDATE ON plain EXECUTE FUNCTION calls()",
    )
    found = code(cli, shop)
    assert found["status"] == "advice"
    assert "each call, and each write that may fire a trigger" in found["detail"]
    assert found["detail"].endswith(
        'public.audit (EXECUTE of text that is not plainly a read or a write; trigger "On Order" on public.orders); '
        "public.calls (calls another; trigger calls on public.plain); public.scratch (CREATE)"
    )
    assert found["fix"][0] == "-- run as superuser: distribcache setup"
    assert "EXECUTE format('INSERT INTO" in found["fix"][1]
    assert cli("setup", "--upstream", shop.url()).status == 0
    announced = code(cli, shop)
    assert (announced["status"], announced["fix"]) == ("ok", [])
    assert "the event trigger tells" in announced["detail"] and "public.audit" in announced["detail"]
    shop.execute("ALTER EVENT TRIGGER distribcache_ddl ENABLE")  # a replica's sessions would skip it
    assert code(cli, shop)["status"] == "advice"


def test_many_are_counted_and_what_they_cost_is_told(cli: Cli, shop: Database) -> None:
    shop.execute(*(
        f"CREATE FUNCTION f{number}() RETURNS int LANGUAGE plpgsql AS 'BEGIN DROP TABLE IF EXISTS x; RETURN 1; END'"
        for number in range(8)
    ))  # fmt: skip
    found = code(cli, shop)
    assert "so each call stops hits" in found["detail"]
    assert found["detail"].endswith("public.f0 (DROP); public.f1 (DROP); public.f2 (DROP); public.f3 (DROP); "
                                    "public.f4 (DROP) and 3 more")  # fmt: skip
    assert found["fix"] == ["-- run as superuser: distribcache setup"]
    shop.execute("CREATE VIEW calls AS SELECT f1()")
    assert "each statement that may run code of yours (a view" in code(cli, shop)["detail"]
    shop.execute('ALTER FUNCTION f7() RENAME TO "Not a word"')
    assert "each statement that may run code of yours (their names" in code(cli, shop)["detail"]


@pytest.mark.parametrize("announced", [False, True])
def test_its_alarms_are_told_by_their_cause(
    cli: Cli, shop: Database, make_inner_proxy: MakeInnerProxy, announced: bool
) -> None:
    shop.execute(*AUDIT)
    if announced:
        assert cli("setup", "--upstream", shop.url()).status == 0
    proxy = make_inner_proxy(shop.url())
    with proxy.connect() as connection:
        until_hit(connection, READ)

        def of(cause: str) -> int:
            shown = dict(connection.execute("SHOW distribcache.freshness").fetchall())
            return int(shown.get(f"alarms_by.{cause}", 0))

        (known,) = proxy.proxy.node._known.values()

        def raised() -> int:
            """How many alarms three writes raise, when it is known what code there is."""
            until(lambda: known.analyst.definers.known, "never asked what code there is")
            before = of("code")
            for _ in range(3):
                connection.execute("INSERT INTO orders VALUES (1)")
            return of("code") - before

        until(lambda: raised() == (0 if announced else 3), "writes raise other alarms")
        before = of("ddl")
        connection.execute("CREATE TABLE another (id int)")
        assert of("ddl") > before
    host, port = proxy.proxy.admin_address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as reply:
        told = reply.read().decode()
    assert announced or f'distribcache_alarms_total{{cause="code",database="{shop.name}"}}' in told
