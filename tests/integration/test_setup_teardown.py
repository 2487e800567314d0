"""`distribcache setup` and `teardown`: idempotent, exactly ours, and never in the way of a user's DDL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import Database

from distribcache.cli import objects
from distribcache.cli.guard import Function

OBJECTS = """
SELECT 'schema' FROM pg_namespace WHERE nspname = 'distribcache'
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('distribcache')
UNION ALL SELECT evtname FROM pg_event_trigger ORDER BY 1
"""
ALL = [("distribcache_ddl",), ("distribcache_drop",), ("on_ddl",), ("schema",)]


def outcomes(result: Any) -> dict[str, str]:
    return {deed["thing"]: deed["outcome"] for deed in result.json["deeds"]}


@pytest.fixture
def slot(database: Database) -> Iterator[Any]:
    """The DDL messages that the reader would get, since the last call."""
    name = f"watch_{database.name}"
    database.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")

    def messages() -> list[str]:
        rows = database.execute(f"SELECT data FROM pg_logical_slot_get_changes('{name}', NULL, NULL)")
        return [row[0].rpartition("content:")[2] for row in rows if "prefix: distribcache.ddl" in row[0]]

    return messages


def test_setup_twice_teardown_twice(cli: Cli, database: Database) -> None:
    first = cli("setup", "--upstream", database.url(), "--json")
    assert first.status == 0
    assert set(first.json) == {"ok", "database", "event_trigger", "deeds"}
    assert first.json["event_trigger"] is True
    assert set(outcomes(first).values()) == {"created"}
    assert database.execute(OBJECTS) == ALL
    before = database.execute("SELECT oid, xmin FROM pg_event_trigger UNION ALL SELECT oid, xmin FROM pg_proc")
    second = cli("setup", "--upstream", database.url(), "--json")
    assert set(outcomes(second).values()) == {"present"}
    assert before == database.execute("SELECT oid, xmin FROM pg_event_trigger UNION ALL SELECT oid, xmin FROM pg_proc")

    removed = cli("teardown", "--upstream", database.url(), "--json")
    assert removed.status == 0
    assert set(removed.json) == {"ok", "database", "deeds"}
    assert database.execute(OBJECTS) == []
    again = cli("teardown", "--upstream", database.url(), "--json")
    assert again.status == 0
    assert set(outcomes(again).values()) == {"absent"}


def test_doctor_knows_of_the_trigger(cli: Cli, database: Database) -> None:
    cli("setup", "--upstream", database.url())
    checks = {c["name"]: c for c in cli("doctor", "--upstream", database.url(), "--json").json["checks"]}
    assert checks["event_trigger"]["status"] == "ok"


def test_setup_repairs(cli: Cli, database: Database) -> None:
    cli("setup", "--upstream", database.url())
    database.execute(
        "DROP EVENT TRIGGER distribcache_drop",
        "ALTER EVENT TRIGGER distribcache_ddl DISABLE",
        "CREATE OR REPLACE FUNCTION distribcache.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
    )
    result = cli("setup", "--upstream", database.url(), "--json")
    assert outcomes(result) == {
        "schema distribcache": "present",
        "function distribcache.on_ddl()": "replaced",
        "event trigger distribcache_ddl": "replaced",
        "event trigger distribcache_drop": "created",
    }
    assert set(outcomes(cli("setup", "--upstream", database.url(), "--json")).values()) == {"present"}


def test_each_ddl_is_told(cli: Cli, database: Database, slot: Any) -> None:
    cli("setup", "--upstream", database.url())
    slot()
    for statement, tag in [
        ("CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE TABLE"),
        ("ALTER TABLE t ADD COLUMN w int", "ALTER TABLE"),
        ("ALTER TABLE t RENAME TO u", "ALTER TABLE"),
        ("CREATE VIEW v AS SELECT id FROM u", "CREATE VIEW"),
        ("GRANT SELECT ON u TO PUBLIC", "GRANT"),
        ("REVOKE SELECT ON u FROM PUBLIC", "REVOKE"),
        ("ALTER TABLE u ENABLE ROW LEVEL SECURITY", "ALTER TABLE"),
        ("CREATE POLICY p ON u USING (id > 1)", "CREATE POLICY"),
        ("DROP POLICY p ON u", "DROP POLICY"),
        ("CREATE MATERIALIZED VIEW m AS SELECT id FROM u", "CREATE MATERIALIZED VIEW"),
        ("REFRESH MATERIALIZED VIEW m", "REFRESH MATERIALIZED VIEW"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE FUNCTION"),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC", "ALTER DEFAULT PRIVILEGES"),
        ("CREATE INDEX CONCURRENTLY i ON u (v)", "CREATE INDEX"),
        ("DROP INDEX CONCURRENTLY i", "DROP INDEX"),
        ("COMMENT ON TABLE u IS 'x'", "COMMENT"),
        ("SET session_replication_role = replica; ALTER TABLE u DROP COLUMN w", "ALTER TABLE"),
        ("DROP TABLE u CASCADE", "DROP TABLE"),
    ]:
        database.execute(statement)
        assert tag in slot(), statement


def test_temporary_objects_are_nobodys_business(cli: Cli, database: Database, slot: Any) -> None:
    cli("setup", "--upstream", database.url())
    slot()
    database.execute(
        "CREATE TEMP TABLE t (id serial PRIMARY KEY)",
        "ALTER TABLE t ADD COLUMN v text",
        "CREATE INDEX ON t (v)",
        "DROP TABLE t",
    )
    assert slot() == []
    database.execute("CREATE TABLE t (id int)", "CREATE TEMP TABLE s (id int)", "DROP TABLE s, t")
    assert slot() == ["CREATE TABLE", "DROP TABLE"]


def test_rolled_back_ddl_is_not_told(cli: Cli, database: Database, slot: Any) -> None:
    cli("setup", "--upstream", database.url())
    slot()
    database.execute("BEGIN; CREATE TABLE t (id int); ROLLBACK")
    assert slot() == []


def test_ddl_of_a_role_without_rights_on_ours(cli: Cli, database: Database, slot: Any) -> None:
    cli("setup", "--upstream", database.url())
    slot()
    role = f"plain_{database.name}"
    database.execute(
        "REVOKE ALL ON SCHEMA distribcache FROM PUBLIC",
        "REVOKE ALL ON FUNCTION distribcache.on_ddl() FROM PUBLIC",
        f"CREATE ROLE {role} LOGIN",
        f"CREATE SCHEMA AUTHORIZATION {role}",
    )
    slot()
    with psycopg.connect(database.conninfo(role), autocommit=True) as connection:
        connection.execute("CREATE TABLE mine (id int)")
    assert slot() == ["CREATE TABLE"]
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def break_the_function(database: Database) -> None:
    """Its owner may no longer write messages, so its body fails."""
    database.execute(
        "DO $$ BEGIN EXECUTE (SELECT string_agg(format("
        "'REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure), ';') "
        "FROM pg_proc WHERE proname = 'pg_logical_emit_message'); END $$",
        f"CREATE ROLE broken_{database.name}",
        f"ALTER FUNCTION distribcache.on_ddl() OWNER TO broken_{database.name}",
    )


def test_users_ddl_survives_a_failing_trigger(cli: Cli, database: Database, slot: Any) -> None:
    cli("setup", "--upstream", database.url())
    break_the_function(database)
    slot()
    database.execute("CREATE TABLE t (id int)", "DROP TABLE t")
    assert slot() == []
    cli("teardown", "--upstream", database.url())
    database.execute(f"DROP ROLE broken_{database.name}")


@pytest.mark.sabotage
def test_without_its_handler_the_trigger_would_break_ddl(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = objects.BODY.replace("EXCEPTION WHEN OTHERS THEN\n  NULL;\n", "")
    assert bare != objects.BODY
    monkeypatch.setitem(objects.FUNCTIONS, "on_ddl", Function("", "event_trigger", bare))
    cli("setup", "--upstream", database.url())
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="pg_logical_emit_message"):
        break_the_function(database)
    database.execute("DROP EVENT TRIGGER distribcache_ddl")
    cli("teardown", "--upstream", database.url())
    database.execute(f"DROP ROLE broken_{database.name}")


def test_role_without_event_trigger_rights(cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    role = f"owner_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN", f"GRANT CREATE ON DATABASE {database.name} TO {role}")
    result = cli("setup", "--upstream", database.url(user=role), "--json")
    assert result.status == 0
    assert result.json["event_trigger"] is False
    assert outcomes(result) == {"event trigger": "refused"}
    assert "polls" in result.json["deeds"][0]["why"]
    assert "superuser" in result.json["deeds"][0]["fix"]
    assert database.execute(OBJECTS) == [], "all or nothing"
    with monkeypatch.context() as patch:
        patch.setenv("DISTRIBCACHE_FRESHNESS_PLUGIN", "pgoutput")
        needed = cli("setup", "--upstream", database.url(user=role), "--json")
    assert (needed.status, needed.json["ok"]) == (1, False), "without it nothing is cached"
    assert "nothing is cached" in needed.json["deeds"][0]["why"]

    cli("setup", "--upstream", database.url())
    refused = cli("teardown", "--upstream", database.url(user=role), "--json")
    assert refused.status == 1
    assert outcomes(refused)["event trigger distribcache_ddl"] == "refused"
    assert database.execute(OBJECTS) == ALL
    cli("teardown", "--upstream", database.url())
    database.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_objects_of_users_are_never_touched(cli: Cli, database: Database) -> None:
    database.execute("CREATE SCHEMA distribcache", "CREATE TABLE distribcache.mine (id int)")
    assert cli("setup", "--upstream", database.url()).status == 0
    assert cli("teardown", "--upstream", database.url()).status == 0
    assert database.execute("SELECT count(*) FROM distribcache.mine") == [(0,)]
    database.execute("DROP SCHEMA distribcache CASCADE")

    cli("setup", "--upstream", database.url())
    database.execute("CREATE TABLE distribcache.mine (id int)")
    result = cli("teardown", "--upstream", database.url(), "--json")
    assert result.status == 1
    assert outcomes(result)["schema distribcache"] == "refused"
    assert database.execute("SELECT count(*) FROM distribcache.mine") == [(0,)]


def test_names_taken_by_others_stop_setup(cli: Cli, database: Database) -> None:
    database.execute(
        "CREATE FUNCTION public.theirs() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE EVENT TRIGGER distribcache_ddl ON ddl_command_end EXECUTE FUNCTION public.theirs()",
    )
    result = cli("setup", "--upstream", database.url())
    assert result.status == 2
    assert "event trigger distribcache_ddl" in result.err
    assert cli("teardown", "--upstream", database.url()).status == 0
    assert database.execute(OBJECTS) == [("distribcache_ddl",)]


def test_teardown_drops_our_slots_only(cli: Cli, database: Database) -> None:
    for name in ("distribcache_left", "distribcachexother", "theirs"):
        database.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")
    result = cli("teardown", "--upstream", database.url(), "--json")
    assert outcomes(result)["replication slot distribcache_left"] == "removed"
    rows = database.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1"
    )
    assert rows == [("distribcachexother",), ("theirs",)]


def test_teardown_lets_go_of_a_database(cli: Cli, database: Database) -> None:
    """What --db is for: a running cache holds the database, DROP DATABASE fails, teardown, DROP DATABASE works."""
    drop = f"DROP DATABASE {database.name}"
    with (
        psycopg.connect(database.conninfo(application_name="distribcache"), autocommit=True) as side,
        psycopg.connect(database.server.conninfo(), autocommit=True) as admin,
    ):
        side.execute("SELECT pg_create_logical_replication_slot('distribcache_live', 'test_decoding', true)")
        with pytest.raises(psycopg.errors.ObjectInUse):
            admin.execute(drop)
        assert cli("teardown", "--upstream", database.server.url(), "--db", database.name).status == 0
        admin.execute(drop)
