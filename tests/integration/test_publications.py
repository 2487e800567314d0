"""The publications of pgoutput and what guards them: no user's statement may fail because a table belongs to one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import QUIET, Database, create_database, drop_database
from published import members, publish, unpublish
from wait import until

from distribcache.cli.postgres import Postgres

OBJECTS = """
SELECT 'schema' FROM pg_namespace WHERE nspname = 'distribcache'
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('distribcache')
UNION ALL SELECT evtname FROM pg_event_trigger UNION ALL SELECT pubname FROM pg_publication ORDER BY 1
"""
ALL = [
    "distribcache_all", "distribcache_ddl", "distribcache_drop", "distribcache_guard_alter", "distribcache_guard_drop",
    "distribcache_guard_start", "distribcache_ud", "enrol", "guard", "on_ddl", "prune", "schema",
]  # fmt: skip


@pytest.fixture(scope="module")
def older(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with Postgres(bin_dir=request.getfixturevalue("debian_bin"), options=QUIET) as server:
        yield server


@pytest.fixture(params=["newest", "debian"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    server = request.getfixturevalue("postgres" if request.param == "newest" else "older")
    made = create_database(server)
    owner = owner_of(made)
    made.execute(f"CREATE ROLE {owner} LOGIN", f"GRANT CREATE ON SCHEMA public TO {owner}")
    yield made
    made.execute(f"DROP OWNED BY {owner} CASCADE", f"DROP ROLE {owner}")
    drop_database(made)


def owner_of(database: Database) -> str:
    return f"owner_{database.name}"


def by_owner(database: Database, *statements: str) -> None:
    """One transaction of a role with no right but on its own tables."""
    with psycopg.connect(database.conninfo(owner_of(database))) as connection:
        for statement in statements:
            connection.execute(statement)


def test_what_setup_makes_and_teardown_removes(db: Database) -> None:
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)")
    assert set(publish(db).values()) == {"created"}
    assert [row[0] for row in db.execute(OBJECTS)] == ALL
    assert set(publish(db).values()) == {"present"}
    assert members(db) == ["t"]
    assert set(unpublish(db).values()) == {"removed"}
    assert db.execute(OBJECTS) == []


@pytest.mark.parametrize(
    "damage",
    [
        "DROP PUBLICATION distribcache_ud",
        "ALTER PUBLICATION distribcache_ud SET (publish = 'update')",
        "ALTER PUBLICATION distribcache_all SET (publish_via_partition_root = true)",
        "DROP EVENT TRIGGER distribcache_guard_drop",
        "ALTER EVENT TRIGGER distribcache_guard_start DISABLE",
        "CREATE OR REPLACE FUNCTION distribcache.prune() RETURNS void LANGUAGE sql AS ''",
        "ALTER PUBLICATION distribcache_ud DROP TABLE t",
    ],
)
def test_setup_repairs(database: Database, damage: str) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    publish(database)
    database.execute(damage)
    assert set(publish(database).values()) > {"present"}
    assert set(publish(database).values()) == {"present"}
    assert members(database) == ["t"]


def test_setup_looks_for_the_plugin_and_keeps_what_it_has_made(cli: Cli, database: Database) -> None:
    """This server has test_decoding, so setup by itself makes no publication."""
    cli("setup", "--upstream", database.url())
    assert database.execute("SELECT pubname FROM pg_publication") == []
    publish(database)
    again = cli("setup", "--upstream", database.url(), "--json")
    assert "publication distribcache_ud" in {deed["thing"] for deed in again.json["deeds"]}


def test_publications_of_users_stay(cli: Cli, database: Database) -> None:
    database.execute("CREATE PUBLICATION distribcache_ud", "CREATE PUBLICATION theirs FOR ALL TABLES")
    found = cli("setup", "--upstream", database.url())
    assert found.status == 2
    assert "publication distribcache_ud" in found.err
    cli("teardown", "--upstream", database.url())
    assert database.execute("SELECT pubname FROM pg_publication ORDER BY 1") == [("distribcache_ud",), ("theirs",)]


TABLES = {
    "keyed": ("CREATE TABLE t (id int PRIMARY KEY)", True),
    "without a key": ("CREATE TABLE t (id int)", False),
    "unique only": ("CREATE TABLE t (id int NOT NULL UNIQUE)", False),
    "deferrable key": ("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)", False),
    "nothing": ("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", False),
    "full": ("CREATE TABLE t (id int); ALTER TABLE t REPLICA IDENTITY FULL", True),
    "full and generated": (
        "CREATE TABLE t (id int, g int GENERATED ALWAYS AS (id) STORED); ALTER TABLE t REPLICA IDENTITY FULL", False,
    ),
    "a key and generated": ("CREATE TABLE t (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id) STORED)", True),
    "a generated key": ("CREATE TABLE t (id int, g int GENERATED ALWAYS AS (id) STORED PRIMARY KEY)", False),
    "constraint": (
        "CREATE TABLE t (id int NOT NULL CONSTRAINT u UNIQUE); ALTER TABLE t REPLICA IDENTITY USING INDEX u", True,
    ),
    "an index that can be dropped concurrently": (
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX u ON t (id); "
        + "ALTER TABLE t REPLICA IDENTITY USING INDEX u",
        False,
    ),
    "unlogged": ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", False),
    "odd name": ('CREATE TABLE t (); CREATE TABLE "T, ""x.y" (id int PRIMARY KEY); DROP TABLE t', True),
    "leaf": (
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE t PARTITION OF p FOR VALUES IN (1)",
        True,
    ),
    "view": ("CREATE VIEW t AS SELECT 1", False),
}  # fmt: skip


@pytest.mark.parametrize(("statements", "published"), TABLES.values(), ids=TABLES.keys())
def test_which_tables_are_published_and_that_all_may_be_changed(
    db: Database, statements: str, published: bool
) -> None:
    by_owner(db, *statements.split("; "))
    publish(db)
    name = '"T, ""x.y"' if "x.y" in statements else "t"
    assert members(db) == ([name] if published else [])
    if "VIEW" not in statements:
        by_owner(db, f"INSERT INTO {name} (id) VALUES (1)", f"UPDATE {name} SET id = 1", f"DELETE FROM {name}")


KEYED = "CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL CONSTRAINT u UNIQUE)"
LOST = {
    "the key is dropped": (KEYED, "ALTER TABLE t DROP CONSTRAINT t_pkey"),
    "its column is dropped": (KEYED, "ALTER TABLE t DROP COLUMN id"),
    "nothing": (KEYED, "ALTER TABLE t REPLICA IDENTITY NOTHING"),
    "the identity's constraint is dropped": (
        f"{KEYED}; ALTER TABLE t REPLICA IDENTITY USING INDEX u", "ALTER TABLE t DROP CONSTRAINT u",
    ),
    "made deferrable": (
        KEYED, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD CONSTRAINT t_pkey PRIMARY KEY (id) DEFERRABLE",
    ),
    "through the parent": (
        "CREATE TABLE p (id int PRIMARY KEY, k int) PARTITION BY LIST (id); "
        + "CREATE TABLE t PARTITION OF p FOR VALUES IN (1, 2)",
        "ALTER TABLE p DROP CONSTRAINT p_pkey",
    ),
    "with a type": (
        "CREATE DOMAIN number AS int; CREATE TABLE t (id number PRIMARY KEY, k int)", "DROP DOMAIN number CASCADE",
    ),
    "a generated column is added": (
        "CREATE TABLE t (id int, k int); ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (k) STORED",
    ),
    "inside a function": (KEYED, "DO $$ BEGIN EXECUTE 'ALTER TABLE t DROP CONSTRAINT t_pkey'; END $$"),
    "as a replica would": (KEYED, "ALTER TABLE t DROP CONSTRAINT t_pkey"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "lost"), LOST.values(), ids=LOST.keys())
def test_whoever_takes_the_identity_away_may_go_on_to_change_rows(
    request: pytest.FixtureRequest, db: Database, made: str, lost: str
) -> None:
    by_owner(db, *made.split("; "), "INSERT INTO t (id, k) VALUES (1, 1)")
    publish(db)
    assert members(db) == ["t"]
    if "replica" in request.node.callspec.id:
        db.execute(f"BEGIN; SET LOCAL session_replication_role = replica; {lost}; UPDATE t SET k = 2; COMMIT")
    by_owner(
        db, *(() if "replica" in request.node.callspec.id else (lost,)),
        "UPDATE t SET k = 2", "DELETE FROM t WHERE k = 2",
    )  # fmt: skip
    assert members(db) == []


@pytest.mark.sabotage
@pytest.mark.parametrize(("made", "lost"), LOST.values(), ids=LOST.keys())
def test_without_the_guard_their_update_would_fail(database: Database, made: str, lost: str) -> None:
    database.execute(*made.split("; "), "INSERT INTO t (id, k) VALUES (1, 1)")
    publish(database)
    database.execute("DROP EVENT TRIGGER distribcache_guard_alter", "DROP EVENT TRIGGER distribcache_guard_drop", lost)
    # 42P10: a generated column in the identity, from version 18 on
    with pytest.raises((psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidColumnReference)):
        database.execute("UPDATE t SET k = 2")
    database.execute("SELECT distribcache.prune()", "UPDATE t SET k = 2")


def test_on_18_a_virtual_column_ends_it_too(database: Database) -> None:
    database.execute("CREATE TABLE t (id int)", "ALTER TABLE t REPLICA IDENTITY FULL")
    publish(database)
    database.execute("ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (id) VIRTUAL", "UPDATE t SET id = 1")
    assert members(database) == []


UNLOGGED = {
    "plain": "ALTER TABLE t SET UNLOGGED",
    "odd name": 'ALTER TABLE "Odd ""t" SET unlogged',
    "inside a function": "DO $$ BEGIN EXECUTE 'ALTER TABLE t SET UN' || 'LOGGED'; END $$",
}


@pytest.mark.parametrize("statement", UNLOGGED.values(), ids=UNLOGGED.keys())
def test_a_member_may_be_made_unlogged(db: Database, statement: str) -> None:
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)", 'CREATE TABLE "Odd ""t" (id int PRIMARY KEY)')
    publish(db)
    by_owner(db, statement)
    assert db.execute("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relpersistence = 'u'") == [(1,)]
    publish(db)
    assert len(members(db)) == 1


@pytest.mark.sabotage
def test_without_the_guard_it_may_not(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    publish(database)
    database.execute("DROP EVENT TRIGGER distribcache_guard_start")
    with pytest.raises(psycopg.Error, match="part of a publication"):
        database.execute("ALTER TABLE t SET UNLOGGED")


def test_a_guard_that_fails_fails_nobody(db: Database) -> None:
    """Its owner may not alter the publication any more."""
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)")
    publish(db)
    powerless = f"powerless_{db.name}"
    db.execute(
        f"CREATE ROLE {powerless}",
        *(f"ALTER FUNCTION distribcache.{name} OWNER TO {powerless}" for name in ("guard", "prune", "on_ddl")),
    )
    by_owner(db, "ALTER TABLE t DROP CONSTRAINT t_pkey", "DROP TABLE t", "CREATE TABLE v (id int)")
    db.execute(f"DROP OWNED BY {powerless} CASCADE", f"DROP ROLE {powerless}")
    unpublish(db)


def test_making_a_table_holds_up_nobody_who_must_take_one_out(db: Database) -> None:
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)")
    publish(db)
    with psycopg.connect(db.conninfo()) as slow:
        slow.execute("CREATE TABLE fresh (id int PRIMARY KEY)")
        drop = "ALTER TABLE t DROP CONSTRAINT t_pkey"
        by_owner(db, "SET LOCAL statement_timeout = '30s'", drop, "UPDATE t SET id = 1")
    assert members(db) == []


def test_a_table_that_loses_its_key_just_now_is_not_added(db: Database) -> None:
    publish(db)
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)")
    enrol = "SELECT distribcache.enrol(9)"
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(db.conninfo()) as slow:
            slow.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
            assert db.execute(enrol) == [(0,)], "it does not wait long for a lock"
            db.execute("ALTER FUNCTION distribcache.enrol SET lock_timeout = '60s'")
            patient = pool.submit(db.execute, enrol)
            until(lambda: db.execute(waits) == [(1,)], "it never came to wait")
        assert patient.result(60) == [(0,)], "added, and what it was added for has gone"
    by_owner(db, "UPDATE t SET id = 1")
    assert members(db) == []


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_an_identity_lost_in_a_snapshot_that_does_not_show_the_table_as_a_member(db: Database, isolation: str) -> None:
    """The table was added after the transaction had begun."""
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    publish(db)
    db.execute("ALTER PUBLICATION distribcache_ud DROP TABLE t")
    with psycopg.connect(db.conninfo(owner_of(db))) as owner:
        owner.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        owner.execute("SELECT 1")
        assert db.execute("SELECT distribcache.enrol(9)") == [(1,)]
        owner.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
        owner.execute("UPDATE t SET id = 2")
    assert members(db) == []


def test_a_temporary_table_is_nobodys_business(db: Database) -> None:
    publish(db)
    by_owner(db, "CREATE TEMP TABLE t (id int PRIMARY KEY)", "ALTER TABLE t DROP CONSTRAINT t_pkey", "DROP TABLE t")


def test_only_who_may_read_the_stream_adds_tables(db: Database) -> None:
    publish(db)
    by_owner(db, "CREATE TABLE t (id int PRIMARY KEY)")
    by_owner(db, "SELECT distribcache.enrol(9)")
    assert members(db) == []
    db.execute(f"ALTER ROLE {owner_of(db)} REPLICATION")
    by_owner(db, "SELECT distribcache.enrol(9)")
    assert members(db) == ["t"]


def test_doctor_names_what_is_missing_and_who_stays_out(
    cli: Cli, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIBCACHE_FRESHNESS_PLUGIN", "pgoutput")
    database.execute("CREATE TABLE t (id int PRIMARY KEY)", 'CREATE TABLE "No key" (id int)')

    def look() -> dict[str, str | list[str]]:
        found = cli("doctor", "--upstream", database.url(), "--json").json["checks"]
        assert [check["status"] for check in found if check["name"] == "slot_creation"] == ["ok"]
        return next(check for check in found if check["name"] == "publications")  # type: ignore[no-any-return]

    assert look()["status"] == "problem"
    cli("setup", "--upstream", database.url())
    advice = look()
    assert advice["status"] == "advice"
    assert 'public."No key"' in advice["detail"]
    database.execute(*(line for line in advice["fix"] if not line.startswith("--")))
    cli("setup", "--upstream", database.url())
    assert look()["status"] == "ok"
    guards = ("distribcache_guard_alter", "distribcache_guard_drop")
    database.execute(*(f"ALTER EVENT TRIGGER {one} DISABLE" for one in guards), "ALTER TABLE t DROP CONSTRAINT t_pkey")
    assert look()["status"] == "problem"
    database.execute(*(f"ALTER EVENT TRIGGER {one} ENABLE ALWAYS" for one in guards))
    broken = look()
    assert (broken["status"], "public.t" in broken["detail"]) == ("problem", True)
    database.execute(*broken["fix"], "UPDATE t SET id = 1")
