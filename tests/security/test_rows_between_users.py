"""Nobody sees a row that PostgreSQL would not show to that user, role and settings (CVE-2024-45624 and others).

The pattern of most tests: somebody who may read fills the cache and gets a hit; then something changes who may read;
the very next read through the same node has to be what a direct connection gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import ProxyProcess, until_hit

Connection = psycopg.Connection[Any]
READ = "SELECT name FROM item WHERE id = 1"

pytestmark = pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])


@pytest.fixture(autouse=True)
def people(shared_shop: Database) -> Iterator[None]:
    shared_shop.execute(
        "DO $$ BEGIN CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "DROP SCHEMA IF EXISTS other CASCADE",
        "DROP TABLE IF EXISTS item, secret CASCADE",
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 100) i",
        "CREATE TABLE secret (id int PRIMARY KEY, owner text, name text)",
        "INSERT INTO secret VALUES (1, 'ann', 'of ann'), (2, 'bob', 'of bob')",
        "GRANT SELECT ON item, secret TO ann",
        "CREATE SCHEMA other",
        "ALTER ROLE ann NOBYPASSRLS",
    )
    yield
    shared_shop.execute("ALTER ROLE ann RESET ALL", "ALTER ROLE ann NOBYPASSRLS", "REVOKE ann FROM bob")


@pytest.fixture
def connect(shared_proxy: ProxyProcess, protocol: str) -> Callable[..., Connection]:
    def make(user: str = "postgres", **more: object) -> Connection:
        factory = psycopg.ClientCursor if protocol == "simple" else psycopg.Cursor
        connection = psycopg.connect(shared_proxy.conninfo(user, **more), autocommit=True, cursor_factory=factory)
        connection.prepare_threshold = 0 if protocol == "prepared" else None
        return connection

    return make


def denied(connection: Connection, sql: str = READ) -> bool:
    try:
        connection.execute(sql).fetchall()
    except psycopg.errors.InsufficientPrivilege:
        return True
    return False


def test_cve_2024_45624_set_role(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute("SET ROLE bob")
        assert denied(admin)
        admin.execute("RESET ROLE")
        assert admin.execute(READ).fetchall() == [("item 1",)]


def test_cve_2024_45624_set_session_authorization(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute("SET SESSION AUTHORIZATION bob")
        assert denied(admin)
        admin.execute("RESET SESSION AUTHORIZATION")
        assert admin.execute(READ).fetchall() == [("item 1",)]


def test_cve_2024_45624_row_security(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    sql = "SELECT name FROM secret ORDER BY id"
    with connect() as admin, connect("ann") as ann:
        assert until_hit(ann, sql) == [("of ann",), ("of bob",)]
        admin.execute("CREATE POLICY own ON secret USING (owner = current_user)")
        admin.execute("ALTER TABLE secret ENABLE ROW LEVEL SECURITY")
        for _ in range(5):
            assert ann.execute(sql).fetchall() == [("of ann",)]
            assert admin.execute(sql).fetchall() == [("of ann",), ("of bob",)]
        # The owner's and superusers' rows must not leak into the role's reads, nor the other way round.
        admin.execute("SET ROLE ann")
        for _ in range(3):
            assert admin.execute(sql).fetchall() == [("of ann",)]


def test_cve_2024_45624_revoke(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    with connect() as admin, connect("ann") as ann:
        until_hit(ann, READ)
        admin.execute("REVOKE SELECT ON item FROM ann")
        assert denied(ann)
        with connect("ann") as again:
            assert denied(again)


def test_cve_2024_45624_bypassrls(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    sql = "SELECT name FROM secret ORDER BY id"
    with connect() as admin:
        admin.execute("CREATE POLICY own ON secret USING (owner = current_user)")
        admin.execute("ALTER TABLE secret ENABLE ROW LEVEL SECURITY")
        admin.execute("ALTER ROLE ann BYPASSRLS")
        with connect("ann") as ann:
            for _ in range(5):
                assert ann.execute(sql).fetchall() == [("of ann",), ("of bob",)]
            admin.execute("ALTER ROLE ann NOBYPASSRLS")
            assert ann.execute(sql).fetchall() == [("of ann",)]


def test_cve_2024_45624_set_schema(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    with connect() as admin, connect("ann") as ann:
        until_hit(ann, READ)
        admin.execute("ALTER TABLE item SET SCHEMA other")
        for each in (ann, admin):
            with pytest.raises(psycopg.errors.UndefinedTable):
                each.execute(READ)


def test_revoke_in_a_transaction_counts_when_it_ends(connect: Callable[..., Connection]) -> None:
    """Security row 1."""
    with connect() as admin, connect("ann") as ann:
        until_hit(ann, READ)
        admin.execute("BEGIN")
        admin.execute("REVOKE SELECT ON item FROM ann")
        assert not denied(ann)
        admin.execute("COMMIT")
        assert denied(ann)


def test_cve_2024_10978_role_after_the_transaction(connect: Callable[..., Connection]) -> None:
    """Security rows 2 and 4. SET LOCAL ROLE ends with its transaction, a SET in a rolled back one never was."""
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute("BEGIN")
        admin.execute("SET LOCAL ROLE bob")
        assert denied(admin)
        admin.execute("ROLLBACK")
        assert admin.execute(READ).fetchall() == [("item 1",)]
        admin.execute("BEGIN")
        admin.execute("SET ROLE bob")
        admin.execute("COMMIT")
        assert denied(admin)
        admin.execute("BEGIN")
        admin.execute("RESET ROLE")
        admin.execute("ROLLBACK")
        assert denied(admin)


def test_rejected_set_role_changes_nothing(connect: Callable[..., Connection]) -> None:
    """Security row 2."""
    with connect() as admin, connect("bob") as bob:
        until_hit(admin, READ)
        for statement in ("SET ROLE postgres", "SET SESSION AUTHORIZATION postgres", "SET ROLE nobody_at_all"):
            with pytest.raises(psycopg.Error):
                bob.execute(statement)
            assert denied(bob)


def test_set_in_an_aborted_transaction(connect: Callable[..., Connection]) -> None:
    """Security row 2."""
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute("BEGIN")
        with pytest.raises(psycopg.errors.DivisionByZero):
            admin.execute("SELECT 1 / 0 FROM item")
        for statement in ("SET ROLE bob", READ):
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                admin.execute(statement)
        admin.execute("ROLLBACK")
        assert admin.execute(READ).fetchall() == [("item 1",)]


def test_savepoint_takes_a_role_back(connect: Callable[..., Connection]) -> None:
    """Security row 2."""
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute("BEGIN")
        admin.execute("SAVEPOINT before")
        admin.execute("SET ROLE bob")
        assert denied(admin)
        admin.execute("ROLLBACK TO before")
        assert admin.execute(READ).fetchall() == [("item 1",)]
        admin.execute("COMMIT")
        assert admin.execute(READ).fetchall() == [("item 1",)]


@pytest.mark.parametrize(
    "hidden",
    [
        "SELECT set_config('role', 'bob', false)",
        "DO $$ BEGIN PERFORM set_config('role', 'bob', false); END $$",
        "SELECT pg_temp_free_role_change()",
        "CALL change_role()",
        "INSERT INTO secret VALUES (3, 'bob', 'with a trigger') ON CONFLICT DO NOTHING",
    ],
)
def test_role_changed_out_of_sight(connect: Callable[..., Connection], shared_shop: Database, hidden: str) -> None:
    """Security row 2."""
    body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('role', 'bob', false); END $$"
    shared_shop.execute(
        f"CREATE OR REPLACE FUNCTION pg_temp_free_role_change() RETURNS void {body}",
        f"CREATE OR REPLACE PROCEDURE change_role() {body}",
        "CREATE OR REPLACE FUNCTION tricky() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM set_config('role', 'bob', false); RETURN NEW; END $$",
        "CREATE TRIGGER tricky BEFORE INSERT ON secret FOR EACH ROW EXECUTE FUNCTION tricky()",
    )
    with connect() as admin:
        until_hit(admin, READ)
        admin.execute(hidden)
        assert denied(admin)
        admin.execute("DISCARD ALL")
        assert admin.execute(READ).fetchall() == [("item 1",)]


def test_search_path_decides_which_table(connect: Callable[..., Connection], shared_shop: Database) -> None:
    """Proxy trap 3. Security row 20."""
    shared_shop.execute("CREATE TABLE other.item (id int, name text)", "INSERT INTO other.item VALUES (1, 'other')")
    with connect() as one, connect(options="-c search_path=other") as two:
        for _ in range(3):
            assert until_hit(one, READ) == [("item 1",)]
            assert until_hit(two, READ) == [("other",)]
        one.execute("SET search_path = other, public")
        assert one.execute(READ).fetchall() == [("other",)]
        one.execute("RESET ALL")
        assert one.execute(READ).fetchall() == [("item 1",)]
        shared_shop.execute("ALTER ROLE ann SET search_path = other", "GRANT ALL ON SCHEMA other TO ann")
        shared_shop.execute("GRANT ALL ON other.item TO ann")
        with connect("ann") as ann:
            assert until_hit(ann, READ) == [("other",)]


@pytest.mark.parametrize("where", ["here", "do", "before"])
def test_temporary_table_shadows(connect: Callable[..., Connection], where: str) -> None:
    """Coherence trap 12."""
    make = "CREATE TEMP TABLE item (id int, name text)"
    with connect() as other:
        until_hit(other, READ)
        with connect() as one:
            if where != "before":
                until_hit(one, READ)
            one.execute(f"DO $$ BEGIN EXECUTE '{make}'; END $$" if where == "do" else make)
            assert one.execute(READ).fetchall() == []
            one.execute("INSERT INTO item VALUES (1, 'mine')")
            for _ in range(3):
                assert one.execute(READ).fetchall() == [("mine",)]
                assert other.execute(READ).fetchall() == [("item 1",)]


def test_settings_that_shape_bytes(connect: Callable[..., Connection], shared_shop: Database) -> None:
    """Proxy trap 3. Security row 20."""
    shared_shop.execute(
        "DROP TABLE IF EXISTS shaped",
        "CREATE TABLE shaped AS SELECT '2024-05-17 12:00+00'::timestamptz AS t, 0.1::float8 + 0.2 AS f, "
        "'\\x00ff'::bytea AS b, '1 day 02:03'::interval AS i, 'a'::text AS s",
    )
    sql = "SELECT t::text, f::text, b::text, i::text FROM shaped"
    variants = [
        "SELECT 1",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET DateStyle = 'German'",
        "SET IntervalStyle = 'iso_8601'",
        "SET extra_float_digits = -3",
        "SET bytea_output = 'escape'",
        "RESET ALL",
    ]
    with connect() as through, shared_shop.connect() as truth:
        for _ in range(3):
            for statement in variants:
                through.execute(statement)
                truth.execute(statement)
                for _ in range(2):
                    assert through.execute(sql).fetchall() == truth.execute(sql).fetchall(), statement


def test_plain_begin_under_a_role_that_defaults_to_repeatable_read(
    connect: Callable[..., Connection], shared_shop: Database
) -> None:
    """Coherence trap 16."""
    shared_shop.execute("ALTER ROLE ann SET default_transaction_isolation = 'repeatable read'")
    with connect("ann") as ann:
        until_hit(ann, READ)
        ann.execute("BEGIN")
        assert ann.execute(READ).fetchall() == [("item 1",)]
        assert ann.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        shared_shop.execute("UPDATE item SET name = 'later' WHERE id = 1")
        # Another session fills the new row. Its hit proves that the change has arrived: else ann, too, may be told what
        # was so a moment ago.
        with connect(options="-c distribcache.consistency=strict") as admin:
            assert until_hit(admin, READ) == [("later",)]
        assert ann.execute(READ).fetchall() == [("item 1",)]
        ann.execute("COMMIT")
        assert ann.execute(READ).fetchall() == [("later",)]


def test_membership_revoked(connect: Callable[..., Connection], shared_shop: Database) -> None:
    """Security row 1."""
    shared_shop.execute("GRANT ann TO bob")
    with connect("bob") as bob, connect() as admin:
        until_hit(bob, READ)
        admin.execute("REVOKE ann FROM bob")
        assert denied(bob)


def test_readyset_acl_a_role_fills_what_another_may_not_read(connect: Callable[..., Connection]) -> None:
    """Security row 3. Ann may become reader and fills as such; bob has the same text and no right."""
    with connect("ann") as ann, connect("bob") as bob:
        until_hit(ann, READ)
        assert denied(bob)
        until_hit(ann, READ)
        assert denied(bob)


def test_privilege_revoked_between_parse_and_execute(connect: Callable[..., Connection], protocol: str) -> None:
    """Security row 3."""
    if protocol != "prepared":
        pytest.skip("only a named statement lives long enough")
    with connect("ann") as ann, connect() as admin:
        until_hit(ann, READ)
        admin.execute("REVOKE SELECT ON item FROM ann")
        assert denied(ann)


def test_security_definer_and_views_are_judged_by_their_owner(
    connect: Callable[..., Connection], shared_shop: Database
) -> None:
    """Security row 4."""
    shared_shop.execute(
        "CREATE VIEW other.shown AS SELECT name FROM secret WHERE owner = current_user",
        "GRANT USAGE ON SCHEMA other TO ann, bob",
        "GRANT SELECT ON other.shown TO ann, bob",
    )
    with connect("ann") as ann, connect("bob") as bob:
        for _ in range(5):
            assert ann.execute("SELECT name FROM other.shown").fetchall() == [("of ann",)]
            assert bob.execute("SELECT name FROM other.shown").fetchall() == [("of bob",)]
