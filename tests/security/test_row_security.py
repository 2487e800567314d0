"""Row security by settings and by other tables: each session gets its own rows, from memory too.

Every answer is compared with that of a direct connection in the same state. Everybody here is the same role, so
nothing but the setting, or the other table, tells tenants apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from wait import until

from distribcache.catalog import bodies
from distribcache.coherence.scope import Scope, read_scope
from distribcache.proxy import questions

Connection = psycopg.Connection[Any]
DOCS = "SELECT name FROM doc ORDER BY name"
FILES = "SELECT name FROM file ORDER BY name"
COUNT = "SELECT count(*) FROM doc"

pytestmark = pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "DO $$ BEGIN CREATE ROLE tenant LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "CREATE TABLE doc (name text, tenant text)",
        "INSERT INTO doc VALUES ('of a', 'a'), ('also of a', 'a'), ('of b', 'b'), ('of nobody', '')",
        "ALTER TABLE doc ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON doc USING (tenant = current_setting('app.tenant', true))",
        "CREATE TABLE member (who text, team text)",
        "INSERT INTO member VALUES ('a', 'red'), ('b', 'blue')",
        "CREATE TABLE file (name text, team text)",
        "INSERT INTO file VALUES ('red file', 'red'), ('blue file', 'blue')",
        "ALTER TABLE file ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY team ON file USING (team IN (SELECT m.team FROM member m "
        "WHERE m.who = current_setting('app.tenant', true)))",
        "CREATE FUNCTION become(text) RETURNS text LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN set_config('app.tenant', $1, false); END $$",
        "CREATE VIEW doc_count AS SELECT count(*) AS n FROM doc",
        "ALTER VIEW doc_count OWNER TO tenant",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO tenant",
    )
    return database


@pytest.fixture
def proxy(shop: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(shop.url(), {"freshness.hit_wait": "2s", "freshness.consistency": "strict"})


Connect = Callable[..., Connection]


@pytest.fixture
def connect(proxy: InnerProxy, protocol: str) -> Iterator[Connect]:
    made: list[Connection] = []

    def make(**more: Any) -> Connection:
        connection = proxy.connect("tenant", cursor_factory=factory(protocol), **more)
        connection.prepare_threshold = 0 if protocol == "prepared" else None
        made.append(connection)
        return connection

    yield make
    for connection in made:
        connection.close()


def factory(protocol: str) -> type[psycopg.Cursor[Any]]:
    return psycopg.ClientCursor if protocol == "simple" else psycopg.Cursor


def names(connection: Connection, sql: str = DOCS) -> list[Any]:
    return [row[0] for row in connection.execute(sql.encode()).fetchall()]


def hot(connection: Connection, sql: str = DOCS) -> list[Any]:
    """Read until memory answers; every answer on the way is the same."""
    answers: list[list[Any]] = []

    def hit() -> bool:
        answers.append(names(connection, sql))
        return bool(last(connection)["status"] == "hit")

    until(hit, lambda: f"never a hit: {last(connection)}")
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


OF_A, OF_B = ["also of a", "of a"], ["of b"]


def test_each_tenant_gets_its_own_rows_from_memory(connect: Connect) -> None:
    one, two, nobody = connect(), connect(), connect()
    one.execute("SET app.tenant = 'a'")
    two.execute("SET app.tenant = 'b'")
    for _ in range(3):
        assert hot(one) == OF_A
        assert hot(two) == OF_B
        assert hot(nobody) == []
        assert hot(one, COUNT) == [2]
        assert hot(two, COUNT) == [1]


WAYS = {
    "set": ("SET app.tenant = '{}'",),
    "another case": ("SET App.Tenant = '{}'",),
    "set_config": ("SELECT set_config('app.tenant', '{}', false)",),
    "function": ("SELECT become('{}')",),
    "do": ("DO $$ BEGIN PERFORM set_config('app.tenant', '{}', false); END $$",),
    "in a transaction": ("BEGIN", "SET app.tenant = '{}'", "COMMIT"),
    "behind a savepoint": ("BEGIN", "SAVEPOINT a", "SET app.tenant = '{}'", "RELEASE a", "COMMIT"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_however_the_setting_is_set(connect: Connect, way: tuple[str, ...]) -> None:
    connection = connect()
    for _ in range(2):
        for tenant, rows in (("a", OF_A), ("b", OF_B)):
            for statement in way:
                connection.execute(statement.format(tenant).encode())
            assert hot(connection) == rows


@pytest.mark.parametrize(
    "end", ["RESET app.tenant", "RESET ALL", "DISCARD ALL", "SET app.tenant = DEFAULT", "SET app.tenant TO ''"]
)
def test_a_setting_that_was_reset_is_nobodys(connect: Connect, shop: Database, end: str) -> None:
    connection = connect()
    with shop.connect("tenant") as truth:
        for each in (connection, truth):
            each.execute("SET app.tenant = 'a'")
        assert hot(connection) == names(truth) == OF_A
        for each in (connection, truth):
            each.execute(end.encode())
        assert names(connection) == names(truth) != OF_A
        assert hot(connection) == names(truth)


def test_a_setting_that_lasts_as_long_as_the_transaction(connect: Connect) -> None:
    connection, other = connect(), connect()
    connection.execute("SET app.tenant = 'a'")
    other.execute("SET app.tenant = 'b'")
    for local in ("SET LOCAL app.tenant = 'b'", "SELECT set_config('app.tenant', 'b', true)"):
        for end in ("COMMIT", "ROLLBACK"):
            assert hot(connection) == OF_A
            assert hot(other) == OF_B
            connection.execute("BEGIN")
            assert names(connection) == OF_A
            connection.execute(local.encode())
            for _ in range(2):
                assert names(connection) == OF_B
            connection.execute(end.encode())
            assert names(connection) == OF_A


def test_a_setting_that_is_rolled_back_never_was(connect: Connect) -> None:
    connection = connect()
    connection.execute("SET app.tenant = 'a'")
    assert hot(connection) == OF_A
    connection.execute("BEGIN")
    connection.execute("SAVEPOINT s")
    connection.execute("SET app.tenant = 'b'")
    assert names(connection) == OF_B
    connection.execute("ROLLBACK TO s")
    assert names(connection) == OF_A
    connection.execute("SET app.tenant = 'b'")
    connection.execute("ROLLBACK")
    assert names(connection) == OF_A
    assert hot(connection) == OF_A


def test_a_setting_of_the_start_or_of_the_role(connect: Connect, shop: Database) -> None:
    shop.execute(f"ALTER ROLE tenant IN DATABASE {shop.name} SET app.tenant = 'b'")
    for _ in range(2):
        assert hot(connect(options="-c app.tenant=a")) == OF_A
        assert hot(connect()) == OF_B


def test_through_a_view_the_setting_counts_too(connect: Connect) -> None:
    sql = "SELECT n FROM doc_count"
    connection = connect()
    for tenant, count in (("a", 2), ("b", 1), ("a", 2)):
        connection.execute(f"SET app.tenant = '{tenant}'".encode())
        assert hot(connection, sql) == [count]


def test_a_policy_that_looks_at_another_table(connect: Connect, shop: Database) -> None:
    one, two = connect(), connect()
    one.execute("SET app.tenant = 'a'")
    two.execute("SET app.tenant = 'b'")
    for _ in range(2):
        assert hot(one, FILES) == ["red file"]
        assert hot(two, FILES) == ["blue file"]
    shop.execute("INSERT INTO member VALUES ('a', 'blue')")
    assert names(one, FILES) == ["blue file", "red file"]
    assert hot(one, FILES) == ["blue file", "red file"]
    shop.execute("DELETE FROM member WHERE who = 'a'")
    assert names(one, FILES) == []
    assert hot(two, FILES) == ["blue file"]
    shop.execute("UPDATE file SET name = 'sky'")
    assert names(two, FILES) == ["sky"]


def test_the_other_table_may_have_policies_and_rights_of_its_own(connect: Connect, shop: Database) -> None:
    connection = connect()
    connection.execute("SET app.tenant = 'a'")
    assert hot(connection, FILES) == ["red file"]
    shop.execute("ALTER TABLE member ENABLE ROW LEVEL SECURITY")
    assert names(connection, FILES) == []
    shop.execute("CREATE POLICY p ON member USING (who = current_setting('app.other', true))")
    assert hot(connection, FILES) == []
    connection.execute("SET app.other = 'a'")
    assert hot(connection, FILES) == ["red file"]
    connection.execute("SET app.other = 'b'")
    assert hot(connection, FILES) == []
    shop.execute("REVOKE SELECT ON member FROM tenant")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(FILES)


@pytest.mark.sabotage
@pytest.mark.parametrize("what", ["the analysis", "the scope"])
def test_without_the_setting_in_the_key_tenants_see_each_other(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def believed(*arguments: Any) -> Scope:
        scope = read_scope(*arguments)
        return replace(scope, settings=scope.settings | {"app.tenant"})

    if what == "the analysis":
        monkeypatch.setattr(bodies, "settings", lambda _: frozenset())
    else:
        monkeypatch.setattr(questions, "read_scope", believed)
    one, two = connect(options="-c app.tenant=a"), connect(options="-c app.tenant=b")
    assert hot(one) == OF_A
    assert names(two) == OF_A
