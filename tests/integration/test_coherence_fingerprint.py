"""The fingerprint sees every change of the catalogue that can change an answer, and nothing else (coherence trap 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database, drop_database
from wait import until

from distribcache.catalog.generation import FINGERPRINT_SQL, QUICK_SQL, RELATIONS_SQL, RELOADED, relations_from

SETUP = """
CREATE TABLE t (id int PRIMARY KEY, v int, d text);
CREATE TABLE child (extra int) INHERITS (t);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE VIEW w AS SELECT id, v FROM t;
CREATE MATERIALIZED VIEW m AS SELECT 1 AS a;
CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION plus(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
CREATE TEXT SEARCH CONFIGURATION words (COPY = simple);
CREATE TEXT SEARCH DICTIONARY dict (TEMPLATE = simple);
CREATE POLICY mine ON t USING (true);
CREATE COLLATION coll FROM "C";
CREATE TABLE r (k int) PARTITION BY LIST (k);
CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1);
CREATE TABLE r2 (k int);
CREATE SCHEMA other;
CREATE PUBLICATION distribcache_ud;
CREATE PUBLICATION theirs;
"""

CHANGES = [
    "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    "ALTER TYPE mood ADD VALUE 'happy'",
    "ALTER TYPE pair ADD ATTRIBUTE c int",
    "ALTER DOMAIN positive DROP CONSTRAINT positive_check",
    "ALTER DOMAIN positive ADD CONSTRAINT small CHECK (VALUE < 10)",
    "ALTER VIEW w SET (security_invoker = true)",
    "ALTER VIEW w SET (security_barrier = true)",
    "CREATE OR REPLACE VIEW w AS SELECT id, v + 1 AS v FROM t",
    "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'",
    "ALTER FUNCTION f(int) VOLATILE",
    "DROP FUNCTION f(int)",
    "REVOKE EXECUTE ON FUNCTION pg_catalog.lower(text) FROM PUBLIC",
    "CREATE AGGREGATE total (int) (SFUNC = plus, STYPE = int, INITCOND = '0')",
    "CREATE OPERATOR @#@ (LEFTARG = int, RIGHTARG = int, FUNCTION = plus)",
    "CREATE OPERATOR CLASS ours FOR TYPE int USING btree AS OPERATOR 1 <",
    "CREATE CAST (pair AS text) WITH INOUT",
    "ALTER TABLE t DROP CONSTRAINT t_pkey",
    "ALTER TABLE t ADD UNIQUE (v)",
    "ALTER TABLE t REPLICA IDENTITY FULL",
    "ALTER TABLE t ADD COLUMN n int DEFAULT 7",
    "ALTER TABLE t ALTER COLUMN v TYPE bigint",
    "ALTER TABLE t ALTER COLUMN v SET DEFAULT 3",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE t RENAME TO t2",
    "ALTER TABLE t SET SCHEMA other",
    "ALTER POLICY mine ON t USING (false)",
    "DROP POLICY mine ON t",
    "CREATE INDEX ON t (abs(v))",
    "CREATE INDEX ON t (v) WHERE v > 0",
    "CREATE RULE quiet AS ON INSERT TO t DO NOTHING",
    "CREATE TRIGGER noisy BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "ALTER TEXT SEARCH CONFIGURATION words DROP MAPPING FOR word",
    "ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR word WITH dict",
    "ALTER TEXT SEARCH DICTIONARY dict (STOPWORDS = english)",
    "ALTER COLLATION coll RENAME TO coll2",
    'CREATE COLLATION other_one FROM "C"',
    "ALTER TABLE child NO INHERIT t",
    "ALTER TABLE r ATTACH PARTITION r2 FOR VALUES IN (2)",
    "ALTER TABLE r DETACH PARTITION r1",
    "REFRESH MATERIALIZED VIEW m",
    "TRUNCATE t CASCADE",
    "GRANT SELECT ON t TO PUBLIC",
    "GRANT SELECT (v) ON t TO PUBLIC",
    "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "ALTER SCHEMA other RENAME TO another",
    "CREATE TYPE span AS RANGE (SUBTYPE = int)",
    "ALTER PUBLICATION distribcache_ud ADD TABLE r2",
    "ALTER PUBLICATION distribcache_ud DROP TABLE r2",
    "ALTER PUBLICATION distribcache_ud SET (publish = 'update')",
    "DROP PUBLICATION distribcache_ud",
    "CREATE PUBLICATION distribcache_all FOR ALL TABLES WITH (publish = 'insert')",
    "CREATE EXTENSION pg_trgm",
    "CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal))",
    "DROP TABLE r1",
    "ALTER DATABASE {db} SET timezone = 'Asia/Tokyo'",
    "ALTER ROLE {role} IN DATABASE {db} SET search_path = other",
    "ALTER ROLE {role} SET timezone = 'Asia/Tokyo'",
    "ALTER ROLE {role} BYPASSRLS",
    "ALTER ROLE {role} VALID UNTIL '2001-01-01'",
    "GRANT {role} TO {role}_2",
    "GRANT CONNECT ON DATABASE {db} TO {role}",
    "CREATE ROLE {role}_3",
    "DROP ROLE {role}_2",
    "ALTER ROLE {role} RENAME TO {role}_4",
]

QUIET = [
    "INSERT INTO t VALUES (1, 1, 'x'); UPDATE t SET v = 2; DELETE FROM t",
    "ANALYZE",
    "VACUUM t",
    "CREATE TEMP TABLE tt (a int PRIMARY KEY, b text DEFAULT 'x')",
    "CREATE TEMP VIEW tv AS SELECT * FROM t",
    "CREATE TYPE pg_temp.te AS ENUM ('a')",
    "CREATE FUNCTION pg_temp.tf() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE INDEX ON t (v)",
    "REINDEX TABLE t",
    "COMMENT ON TABLE t IS 'x'",
    "ALTER PUBLICATION theirs ADD TABLE t",
    "CREATE PUBLICATION another FOR TABLE r2",
    "SELECT lo_create(0)",
    "ALTER ROLE {role} PASSWORD 'secret'",
]


class Eyes:
    """A side connection as the cache has it, and another session that changes things."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.role = f"role_{database.name}"
        self.looks = psycopg.connect(database.conninfo(), autocommit=True)
        self.looks.execute("SET search_path = pg_catalog; SET timezone = 'UTC'")
        self.acts = psycopg.connect(database.conninfo(), autocommit=True, options="-c track_counts=on")
        self.acts.execute(f"CREATE ROLE {self.role}; CREATE ROLE {self.role}_2; {SETUP}")

    def look(self) -> tuple[Any, ...]:
        row = self.looks.execute(FINGERPRINT_SQL).fetchone()
        assert row is not None
        # Without the counters at the end: they follow rows by seconds, and would hide blindness or look like noise.
        return tuple(row[1])[:-5], tuple(row[2])[:4]

    def quick(self) -> tuple[int, ...]:
        row = self.looks.execute(QUICK_SQL).fetchone()
        assert row is not None
        return tuple(row[0])

    def act(self, sql: str) -> None:
        for statement in sql.format(db=self.database.name, role=self.role).split("; "):
            self.acts.execute(statement.encode())

    def close(self) -> None:
        self.acts.close()
        self.looks.close()


@pytest.fixture
def eyes(database: Database) -> Iterator[Eyes]:
    made = Eyes(database)
    yield made
    with psycopg.connect(database.server.conninfo(), autocommit=True) as connection:
        roles = connection.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [made.role]
        ).fetchall()
        made.close()
        drop_database(database)
        for (role,) in roles:
            connection.execute(f'DROP ROLE "{role}"'.encode())


def test_it_sees_every_item(eyes: Eyes) -> None:
    """Coherence trap 5."""
    blind = []
    for change in CHANGES:
        if "security_invoker" in change and eyes.looks.info.server_version < 150000:
            continue
        eyes.acts.execute("BEGIN")
        before = eyes.look()
        try:
            eyes.act(change)
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            raise AssertionError(change) from error
        eyes.acts.execute("COMMIT")
        if eyes.look() == before:
            blind.append(change)
        undo(eyes, change)
    assert blind == []


def undo(eyes: Eyes, change: str) -> None:
    """Give the next change what it needs, where that is simple."""
    back = {
        "DROP FUNCTION f(int)": "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE t RENAME TO t2": "ALTER TABLE t2 RENAME TO t",
        "ALTER TABLE t SET SCHEMA other": "ALTER TABLE other.t SET SCHEMA public",
        "ALTER VIEW w SET (security_barrier = true)": "ALTER VIEW w RESET (security_barrier)",
        "CREATE OR REPLACE VIEW w AS SELECT id, v + 1 AS v FROM t": "DROP VIEW w",
        "CREATE RULE quiet AS ON INSERT TO t DO NOTHING": "DROP RULE quiet ON t",
        "ALTER TEXT SEARCH CONFIGURATION words DROP MAPPING FOR word": (
            "ALTER TEXT SEARCH CONFIGURATION words ADD MAPPING FOR word WITH simple"
        ),
        "REVOKE EXECUTE ON FUNCTION pg_catalog.lower(text) FROM PUBLIC": (
            "GRANT EXECUTE ON FUNCTION pg_catalog.lower(text) TO PUBLIC"
        ),
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC": "GRANT USAGE ON SCHEMA public TO PUBLIC",
    }
    if change in back:
        eyes.act(back[change])


def test_it_stays_for_everything_else(eyes: Eyes) -> None:
    moved = []
    for statement in QUIET:
        before = eyes.look()
        eyes.act(statement)
        if eyes.look() != before:
            moved.append(statement)
    assert moved == []
    before = eyes.look()
    eyes.acts.close()  # the temporary objects go
    assert eyes.look() == before


def test_a_change_that_is_undone_still_shows(eyes: Eyes) -> None:
    before = eyes.look()
    eyes.act("GRANT SELECT ON t TO PUBLIC")
    eyes.act("REVOKE SELECT ON t FROM PUBLIC")
    eyes.act("ALTER TABLE t RENAME TO t2")
    eyes.act("ALTER TABLE t2 RENAME TO t")
    assert eyes.look() != before


REWRITES = {
    "ALTER TABLE u ALTER COLUMN v TYPE int USING v * 10": 0,
    "ALTER TABLE t ADD COLUMN at timestamptz DEFAULT clock_timestamp()": 0,
    "ALTER TABLE u SET UNLOGGED": 0,
    "ALTER TABLE u SET LOGGED": 0,
    "ALTER TABLE u SET ACCESS METHOD other_heap": 150000,
    "ALTER TABLE g ALTER COLUMN twice SET EXPRESSION AS (v * 3)": 170000,
    "ALTER TABLE g ALTER COLUMN twice DROP EXPRESSION": 0,
    "CLUSTER t USING t_pkey": 0,
    "VACUUM FULL u": 0,
    "TRUNCATE u": 0,
    "REFRESH MATERIALIZED VIEW m": 0,
}
_VALUES = (
    "SELECT relname, relnamespace, relowner, relkind, relpersistence, relam, relacl, reloptions, relrowsecurity, "
    "relforcerowsecurity, relreplident, relhasrules, relispartition, relnatts, relpartbound "
    "FROM pg_class WHERE relname IN ('t', 'w') ORDER BY 1"
)


def test_every_form_of_rewriting_a_table_shows(eyes: Eyes) -> None:
    eyes.act("CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler")
    eyes.act("CREATE TABLE u (v int)")
    eyes.act("CREATE TABLE g (v int, twice int GENERATED ALWAYS AS (v * 2) STORED)")
    blind = []
    for change, since in REWRITES.items():
        if eyes.looks.info.server_version >= since:
            before = eyes.look()
            eyes.act(change)
            if eyes.look() == before:
                blind.append(change)
    assert blind == []


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("GRANT SELECT ON t TO {role}", "REVOKE SELECT ON t FROM {role}"),
        ("CREATE TRIGGER a BEFORE UPDATE ON child FOR EACH ROW EXECUTE FUNCTION {noop}()", "DROP TRIGGER a ON child"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "ALTER TABLE t DISABLE ROW LEVEL SECURITY"),
        ("ALTER VIEW w SET (security_barrier = true)", "ALTER VIEW w RESET (security_barrier)"),
    ],
)
def test_versions_of_rows_tell_what_their_values_do_not(eyes: Eyes, there: str, back: str) -> None:
    """Why ``pg_class`` is hashed by xmin, though a TRUNCATE changes that too: see ADR 5."""
    noop = "suppress_redundant_updates_trigger"
    eyes.act("GRANT SELECT ON t TO {role}; REVOKE SELECT ON t FROM {role}")  # an empty list of rights is not NULL
    before, values = eyes.look(), eyes.looks.execute(_VALUES).fetchall()
    eyes.act(there.replace("{noop}", noop))
    eyes.act(back)
    assert eyes.looks.execute(_VALUES).fetchall() == values
    assert eyes.look() != before


@pytest.mark.parametrize(
    "come_and_gone",
    [
        "CREATE TRIGGER a BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION {noop}(); DROP TRIGGER a ON t",
        "CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE sql RETURN 'x'; DROP FUNCTION public.lower(text)",
        "CREATE CAST (pair AS text) WITH INOUT; DROP CAST (pair AS text)",
    ],
)
def test_code_that_came_and_went_between_two_looks_shows_in_the_counters(eyes: Eyes, come_and_gone: str) -> None:
    def all_of_it() -> tuple[int, ...]:
        row = eyes.looks.execute(FINGERPRINT_SQL).fetchone()
        assert row is not None
        return tuple(row[1])

    noop = "suppress_redundant_updates_trigger"
    eyes.act(f"CREATE TRIGGER first BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION {noop}()")
    eyes.acts.execute("SELECT pg_stat_force_next_flush()")
    eyes.acts.execute("SELECT 1")
    before, rows = all_of_it(), eyes.look()
    eyes.act(come_and_gone.replace("{noop}", noop))
    eyes.acts.execute("SELECT pg_stat_force_next_flush()")
    until(lambda: all_of_it() != before, "nothing shows")
    assert eyes.look() == rows, "rows alone are blind"


def test_an_older_transaction_that_commits_later_shows(eyes: Eyes) -> None:
    """Coherence trap 5. Sabotage beside it: the greatest xmin does not move."""
    greatest = "SELECT max(xmin::text::bigint) FROM pg_class"
    eyes.acts.execute("BEGIN; CREATE TABLE older (a int)")
    eyes.looks.execute("CREATE TABLE public.newer (a int)")
    before, high = eyes.look(), eyes.looks.execute(greatest).fetchone()
    eyes.acts.execute("COMMIT")
    assert eyes.look() != before
    assert eyes.looks.execute(greatest).fetchone() == high


def test_roles_changed_from_another_database_show_in_the_quick_poll(eyes: Eyes) -> None:
    with psycopg.connect(eyes.database.server.conninfo(), autocommit=True) as elsewhere:
        seen = [eyes.quick()]
        for statement in (
            f"GRANT {eyes.role} TO {eyes.role}_2",
            f"ALTER ROLE {eyes.role} SET timezone = 'UTC'",
            f"ALTER ROLE {eyes.role} SUPERUSER",
            f"REVOKE {eyes.role} FROM {eyes.role}_2",
            "SELECT pg_reload_conf()",
        ):
            elsewhere.execute(statement.encode())
            if "reload" in statement:
                until(lambda: eyes.quick() != seen[-1], "never reloaded")
                now, then = eyes.quick(), seen[-1]
                assert [place for place in range(4) if now[place] != then[place]] == [RELOADED]
            seen.append(eyes.quick())
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("GRANT {role} TO {role}_2", "REVOKE {role} FROM {role}_2"),
        ("ALTER ROLE {role} BYPASSRLS", "ALTER ROLE {role} NOBYPASSRLS"),
    ],
    ids=["membership", "attribute"],
)
def test_a_right_that_came_and_went_between_two_looks_shows_in_the_counters(eyes: Eyes, there: str, back: str) -> None:
    with eyes.database.connect(options="-c track_counts=on", dbname="postgres") as elsewhere:
        for maker in (eyes.acts, elsewhere):  # what they have done up to now is counted
            maker.execute("SELECT pg_stat_force_next_flush()")
            maker.execute("SELECT 1")
        before = eyes.quick()
        elsewhere.execute(there.format(role=eyes.role).encode())
        elsewhere.execute(back.format(role=eyes.role).encode())
        elsewhere.execute("SELECT pg_stat_force_next_flush()")
    deadline = 1200
    while eyes.quick() == before and deadline:
        eyes.looks.execute("SELECT pg_sleep(0.05)")
        deadline -= 1
    assert eyes.quick() != before
    assert eyes.quick()[:4] == before[:4], "memberships, settings, roles and reload look the same: rows alone are blind"


def test_it_works_on_an_older_server(make_postgres: MakePostgres, debian_bin: Any) -> None:
    database = create_database(make_postgres(bin_dir=debian_bin), "older")
    eyes = Eyes(database)
    before = eyes.look()
    eyes.act("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'")
    assert eyes.look() != before
    eyes.close()
    drop_database(database)


def test_the_map_knows_names_as_printed_and_all_ancestors(eyes: Eyes) -> None:
    eyes.act('CREATE TABLE "We ird, T" (a int)')
    eyes.act("CREATE TABLE r3 PARTITION OF r FOR VALUES IN (3) PARTITION BY LIST (k)")
    eyes.act("CREATE TABLE r31 PARTITION OF r3 FOR VALUES IN (3)")
    result = eyes.looks.execute(RELATIONS_SQL).pgresult
    assert result is not None
    rows = [tuple(result.get_value(row, column) for column in range(result.nfields)) for row in range(result.ntuples)]
    found = relations_from(rows)
    oid = {name: oids[0] for name, oids in found.by_name.items()}
    assert found.by_name[b"public.r31"] == (oid[b"public.r31"], oid[b"public.r3"], oid[b"public.r"])
    assert found.by_name[b"public.child"][1:] == (oid[b"public.t"],)
    assert b'public."We ird, T"' in found.by_name
    assert found.by_oid[oid[b"public.m"]].kind == "m"
    assert oid[b"public.t"] in found.oids
