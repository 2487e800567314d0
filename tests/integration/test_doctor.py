"""`distribcache doctor` names each missing prerequisite with a statement that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import Database, MakePostgres
from pooler import pgbouncer
from wait import until

from distribcache.cli.postgres import Postgres


def checks(outcome: Any) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in outcome.json["checks"]}


def problems(outcome: Any) -> set[str]:
    return {name for name, check in checks(outcome).items() if check["status"] == "problem"}


def run(server: Postgres, *statements: str, dbname: str = "postgres") -> None:
    """Each statement as a person would paste it; lines for people are left out."""
    with psycopg.connect(server.conninfo(dbname), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = local")
        for statement in statements:
            if not statement.startswith("--"):
                connection.execute(statement)


def test_ready_server(cli: Cli, database: Database) -> None:
    outcome = cli("doctor", "--upstream", database.url(), "--json")
    assert outcome.status == 0
    assert set(outcome.json) == {"ok", "upstream", "server_version", "checks"}
    assert outcome.json["ok"] is True
    assert all(set(check) == {"name", "status", "detail", "fix"} for check in outcome.json["checks"])
    assert list(checks(outcome)) == [
        "reachable", "version", "in_recovery", "wal_level", "replication_privilege", "free_slots", "free_walsenders",
        "synchronous_standby", "max_slot_wal_keep_size", "synchronous_commit", "direct_connection", "event_trigger",
        "schema_changing_code", "replication_connection", "slot_creation",
    ]  # fmt: skip
    assert "ready" in cli("doctor", "--upstream", database.url()).out


def test_doctor_leaves_no_slot(cli: Cli, database: Database) -> None:
    cli("doctor", "--upstream", database.url())
    assert database.execute("SELECT * FROM pg_replication_slots WHERE slot_name LIKE 'distribcache_doctor%'") == []


def test_another_database_by_name(cli: Cli, postgres: Postgres, database: Database) -> None:
    outcome = cli("doctor", "--upstream", postgres.url(), "--db", database.name, "--json")
    assert outcome.status == 0
    assert database.name in checks(outcome)["reachable"]["detail"]


def test_stock_wal_level(cli: Cli, make_postgres: MakePostgres) -> None:
    server = make_postgres(options={"wal_level": "replica"})
    outcome = cli("doctor", "--upstream", server.url(), "--json")
    assert outcome.status == 1
    assert problems(outcome) == {"wal_level"}
    assert checks(outcome)["slot_creation"]["status"] == "skipped"
    run(server, *checks(outcome)["wal_level"]["fix"])
    assert "wal_level = 'logical'" in (server.data_dir / "postgresql.auto.conf").read_text()
    assert "ALTER SYSTEM SET wal_level = 'logical';" in cli("doctor", "--upstream", server.url()).out


def test_role_without_replication(cli: Cli, database: Database) -> None:
    role = f'we"ird {database.name}'
    quoted = '"' + role.replace('"', '""') + '"'
    database.execute(f"CREATE ROLE {quoted} LOGIN")
    try:
        outcome = cli("doctor", "--upstream", database.url(user=role), "--json")
        assert outcome.status == 1
        assert problems(outcome) == {"replication_privilege"}
        run(database.server, *checks(outcome)["replication_privilege"]["fix"])
        again = cli("doctor", "--upstream", database.url(user=role), "--json")
        assert problems(again) == set()
        assert checks(again)["event_trigger"]["fix"] == ["-- run as superuser: distribcache setup"]
    finally:
        database.execute(f"DROP ROLE {quoted}")


def test_scarce_slots_and_walsenders(cli: Cli, make_postgres: MakePostgres) -> None:
    server = make_postgres(options={"max_replication_slots": "3", "max_wal_senders": "2"})
    outcome = cli("doctor", "--upstream", server.url(), "--json")
    assert problems(outcome) == {"free_walsenders"}
    run(server, "SELECT pg_create_physical_replication_slot('somebodys')")
    try:
        outcome = cli("doctor", "--upstream", server.url(), "--json")
        assert problems(outcome) == {"free_walsenders", "free_slots"}
        assert "somebodys" in checks(outcome)["free_slots"]["detail"]
        assert checks(outcome)["free_slots"]["fix"][0] == "ALTER SYSTEM SET max_replication_slots = 10;"
    finally:
        run(server, "SELECT pg_drop_replication_slot('somebodys')")


@pytest.mark.parametrize("names", ["*", "FIRST 1 (a, *)", "ANY 1 (distribcache)"])
def test_synchronous_standby_names(cli: Cli, make_postgres: MakePostgres, names: str) -> None:
    server = make_postgres(fresh=True)
    run(server, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()")
    wait_for(server, "synchronous_standby_names", names)
    outcome = cli("doctor", "--upstream", server.url(), "--json")
    assert problems(outcome) == {"synchronous_standby"}
    run(server, *checks(outcome)["synchronous_standby"]["fix"])
    wait_for(server, "synchronous_standby_names", "")
    assert problems(cli("doctor", "--upstream", server.url(), "--json")) == set()


def wait_for(server: Postgres, setting: str, value: str) -> None:
    """A reload reaches a new session once the postmaster has read the file."""

    def holds() -> bool:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            return connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == (value,)

    until(holds, f"{setting} did not become {value!r}")


def test_named_standbys_are_fine(cli: Cli, make_postgres: MakePostgres) -> None:
    server = make_postgres(options={"synchronous_standby_names": 'FIRST 1 (a, "st*r")'})
    assert problems(cli("doctor", "--upstream", server.url(), "--json")) == set()


def test_advice_is_no_problem(cli: Cli, make_postgres: MakePostgres) -> None:
    server = make_postgres(options={"synchronous_commit": "off", "max_slot_wal_keep_size": "1GB"})
    outcome = cli("doctor", "--upstream", server.url(), "--json")
    assert outcome.status == 0
    found = checks(outcome)
    assert found["synchronous_commit"]["status"] == "advice"
    assert "wal_writer_delay" in found["synchronous_commit"]["fix"][0]
    assert found["max_slot_wal_keep_size"] == {
        "name": "max_slot_wal_keep_size", "status": "ok", "detail": "1GB", "fix": [],
    }  # fmt: skip


def test_standby_server(cli: Cli, make_postgres: MakePostgres) -> None:
    standby = make_postgres(standby_of=make_postgres(), fresh=True)
    outcome = cli("doctor", "--upstream", standby.url(), "--json")
    assert outcome.status == 1
    assert problems(outcome) == {"in_recovery"}
    assert "target_session_attrs" in checks(outcome)["in_recovery"]["fix"][0]


def test_template_database(cli: Cli, postgres: Postgres) -> None:
    assert problems(cli("doctor", "--upstream", postgres.url("template1"), "--json")) == {"template_database"}


def test_slot_creation_that_waits(cli: Cli, make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_postgres(fresh=True)
    monkeypatch.setattr("distribcache.cli.prerequisites._SLOT_TIMEOUT", "300ms")
    run(server, "CREATE TABLE t (i int)", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'it''s orphaned'")
    with pytest.raises(psycopg.errors.AdminShutdown), psycopg.connect(server.conninfo()) as writer:
        writer.execute("INSERT INTO t VALUES (2)")
        outcome = cli("doctor", "--upstream", server.url(), "--json")
        assert outcome.status == 1
        assert problems(outcome) == {"slot_creation"}
        check = checks(outcome)["slot_creation"]
        assert f"pid {writer.info.backend_pid}" in check["detail"]
        run(server, *check["fix"])
    assert problems(cli("doctor", "--upstream", server.url(), "--json")) == set()


def test_replication_refused_by_pg_hba(cli: Cli, make_postgres: MakePostgres) -> None:
    """Logical replication connections match lines of their database, so a role refused there is refused here."""
    server = make_postgres(hba=["host all locked_out 127.0.0.1/32 scram-sha-256"])
    run(server, "DROP ROLE IF EXISTS locked_out", "CREATE ROLE locked_out LOGIN REPLICATION PASSWORD 'right'")
    assert cli("doctor", "--upstream", server.url(user="locked_out", password="right")).status == 0
    for url, words in [
        (server.url(user="locked_out", password="s3cr3t"), "password authentication failed"),
        (server.url(user="locked_out"), "no password supplied"),
        (server.url("nowhere"), "does not exist"),
    ]:
        outcome = cli("doctor", "--upstream", url)
        assert outcome.status == 3
        assert words in outcome.err
        assert "hint:" in outcome.err
        assert "s3cr3t" not in outcome.err
        machine = cli("doctor", "--upstream", url, "--json")
        assert machine.status == 3
        assert machine.json["ok"] is False
        assert problems(machine) == {"reachable"}
        assert "s3cr3t" not in machine.out


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("localhost:5432", 2),
        ("postgresql://h:notaport/d", 2),
        ("postgresql://h/d?nosuchoption=1", 2),
        ("postgresql://127.0.0.1:1/d", 3),
        ("postgresql://no-such-host.invalid/d", 3),
    ],
)
def test_bad_url(cli: Cli, url: str, status: int) -> None:
    outcome = cli("doctor", "--upstream", url)
    assert outcome.status == status
    assert "hint:" in outcome.err


def test_no_url(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTRIBCACHE_UPSTREAM_URL", raising=False)
    outcome = cli("doctor")
    assert outcome.status == 2
    assert "--upstream" in outcome.err


def test_pooler_in_between(cli: Cli, database: Database) -> None:
    with pgbouncer(database) as port:
        outcome = cli("doctor", "--upstream", f"postgresql://postgres@127.0.0.1:{port}/{database.name}", "--json")
    assert outcome.status == 1
    assert problems(outcome) == {"direct_connection"}
    assert "pooler" in checks(outcome)["direct_connection"]["detail"]
