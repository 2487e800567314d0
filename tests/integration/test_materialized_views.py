"""Materialized views: cached where every REFRESH is announced, gone with the REFRESH, refused elsewhere (rule R6).

Polls are an hour apart, so nothing but the event trigger's message can tell of a REFRESH beside writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last, until_hit
from wait import until

from distribcache.catalog import resolve
from distribcache.cli.objects import install, remove
from distribcache.coherence.coverage import Coverage

READ = "SELECT id, total FROM shop.sums ORDER BY id"
FAR = {"freshness.max_staleness": "1h", "freshness.hit_wait": "5s"}
MAKE = (
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.item (id int, n int)",
    "CREATE TABLE other (a int)",
    "INSERT INTO shop.item VALUES (1, 1), (2, 2)",
    "CREATE MATERIALIZED VIEW shop.sums AS SELECT id, sum(n) AS total FROM shop.item GROUP BY id",
    "CREATE UNIQUE INDEX ON shop.sums (id)",
    "CREATE VIEW over_it AS SELECT * FROM shop.sums",
)
TRIGGER = "distribcache_ddl"


def set_up(database: Database) -> None:
    with psycopg.connect(database.conninfo(), autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        install(connection)


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(*MAKE)
    return database


@pytest.fixture
def proxy(shop: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    set_up(shop)
    return make_inner_proxy(shop.url(), FAR)


@pytest.fixture
def reader(proxy: InnerProxy) -> Iterator[psycopg.Connection[Any]]:
    with proxy.connect(options="-c distribcache.consistency=strict") as connection:
        yield connection


def why(connection: psycopg.Connection[Any], sql: str = READ) -> str:
    """The reason why it is refused; whatever keeps the session from being served passes first."""

    def judged() -> bool:
        connection.execute(sql)
        return bool(last(connection)["status"] != "bypass")

    until(judged, lambda: f"never judged: {last(connection)}")
    return str(last(connection)["reason"])


CHANGE = "UPDATE shop.item SET n = n + 10"
REFRESHES = {
    "alone": ("REFRESH MATERIALIZED VIEW shop.sums",),
    "concurrently": ("REFRESH MATERIALIZED VIEW CONCURRENTLY shop.sums",),
    "beside writes": ("BEGIN", "INSERT INTO other VALUES (1)", "REFRESH MATERIALIZED VIEW shop.sums", "COMMIT"),
    "concurrently beside writes": (
        "BEGIN", "INSERT INTO other VALUES (1)", "REFRESH MATERIALIZED VIEW CONCURRENTLY shop.sums", "COMMIT"
    ),
    "in a function": ("DO $$ BEGIN INSERT INTO other VALUES (1); REFRESH MATERIALIZED VIEW shop.sums; END $$",),
    "in a savepoint": (
        "BEGIN", "INSERT INTO other VALUES (1)", "SAVEPOINT a", "REFRESH MATERIALIZED VIEW shop.sums", "RELEASE a",
        "COMMIT",
    ),
    "as a replica": (
        "SET session_replication_role = replica", "BEGIN", "INSERT INTO other VALUES (1)",
        "REFRESH MATERIALIZED VIEW shop.sums", "COMMIT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", REFRESHES.values(), ids=REFRESHES.keys())
@pytest.mark.parametrize("through", [False, True], ids=["around", "through"])
def test_a_refresh_ends_what_was_kept(
    shop: Database, proxy: InnerProxy, reader: psycopg.Connection[Any], how: tuple[str, ...], through: bool
) -> None:
    view = "SELECT id, total FROM over_it ORDER BY id"
    assert until_hit(reader, READ) == until_hit(reader, view) == [(1, 1), (2, 2)]
    with proxy.connect() if through else shop.connect() as writer:
        writer.execute(CHANGE)
        assert reader.execute(READ).fetchall() == [(1, 1), (2, 2)]
        for statement in how:
            writer.execute(statement)
        assert reader.execute(READ).fetchall() == reader.execute(view).fetchall() == [(1, 11), (2, 12)]
    assert until_hit(reader, READ) == until_hit(reader, view) == [(1, 11), (2, 12)]


def test_a_refresh_that_is_rolled_back_changes_nothing(
    shop: Database, proxy: InnerProxy, reader: psycopg.Connection[Any]
) -> None:
    until_hit(reader, READ)
    shop.execute(CHANGE, "BEGIN; REFRESH MATERIALIZED VIEW shop.sums; ROLLBACK")
    assert reader.execute(READ).fetchall() == [(1, 1), (2, 2)]


def test_an_announced_refresh_by_a_role_without_rights_on_ours(
    shop: Database, proxy: InnerProxy, reader: psycopg.Connection[Any]
) -> None:
    role = f"refresher_{shop.name}"
    shop.execute(
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON SCHEMA shop TO {role}",
        f"GRANT ALL ON shop.item, other TO {role}",
        f"ALTER MATERIALIZED VIEW shop.sums OWNER TO {role}",
    )
    until_hit(reader, READ)
    with shop.connect(role) as writer:
        writer.execute(CHANGE)
        for statement in REFRESHES["beside writes"]:
            writer.execute(statement)
        assert reader.execute(READ).fetchall() == [(1, 11), (2, 12)]
    shop.execute(f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_without_the_trigger_it_is_refused(shop: Database, make_inner_proxy: MakeInnerProxy) -> None:
    proxy = make_inner_proxy(shop.url(), FAR)
    with proxy.connect() as reader:
        assert why(reader) == "materialized_view"
        set_up(shop)
        until_hit(reader, READ)


UNRELIABLE = {
    "dropped": (f"DROP EVENT TRIGGER {TRIGGER}",),
    "disabled": (f"ALTER EVENT TRIGGER {TRIGGER} DISABLE",),
    "not for replicas": (f"ALTER EVENT TRIGGER {TRIGGER} ENABLE",),
    "for replicas only": (f"ALTER EVENT TRIGGER {TRIGGER} ENABLE REPLICA",),
    "filtered": (
        f"DROP EVENT TRIGGER {TRIGGER}",
        (
            f"CREATE EVENT TRIGGER {TRIGGER} ON ddl_command_end WHEN TAG IN ('CREATE TABLE') "
            "EXECUTE FUNCTION distribcache.on_ddl()"
        ),
        f"ALTER EVENT TRIGGER {TRIGGER} ENABLE ALWAYS",
    ),
    "another body": (
        (
            "CREATE OR REPLACE FUNCTION distribcache.on_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER "
            "SET search_path = pg_catalog, pg_temp AS 'BEGIN END'"
        ),
    ),
    "not as its owner": ("ALTER FUNCTION distribcache.on_ddl() SECURITY INVOKER",),
    "another search path": ("ALTER FUNCTION distribcache.on_ddl() SET search_path = shop",),
    "an owner who may not": (
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_logical_emit_message(bool, text, text{flush}) FROM PUBLIC",
        "ALTER FUNCTION distribcache.on_ddl() OWNER TO pg_monitor",
    ),
    "turned off": ("ALTER ROLE postgres IN DATABASE {database} SET event_triggers = off",),
}


@pytest.mark.parametrize("what", UNRELIABLE.values(), ids=UNRELIABLE.keys())
def test_where_the_trigger_may_not_run_it_is_refused_and_nothing_stale_is_served_between(
    shop: Database, proxy: InnerProxy, reader: psycopg.Connection[Any], what: tuple[str, ...]
) -> None:
    version = reader.info.server_version
    if "event_triggers" in what[0] and version < 170000:
        pytest.skip("no such setting")
    until_hit(reader, READ)
    flush = ", bool" if version >= 170000 else ""
    shop.execute(*(statement.format(database=shop.name, flush=flush) for statement in what))
    shop.execute(CHANGE, *REFRESHES["beside writes"])
    assert reader.execute(READ).fetchall() == [(1, 11), (2, 12)]
    assert why(reader) == "materialized_view"


def test_setup_makes_it_reliable_again_and_teardown_ends_it(
    shop: Database, proxy: InnerProxy, reader: psycopg.Connection[Any]
) -> None:
    until_hit(reader, READ)
    shop.execute(f"ALTER EVENT TRIGGER {TRIGGER} DISABLE")
    assert why(reader) == "materialized_view"
    set_up(shop)
    until_hit(reader, READ)
    with psycopg.connect(shop.conninfo(), autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        remove(connection)
    assert why(reader) == "materialized_view"


@pytest.mark.sabotage
def test_cached_without_the_trigger_it_would_be_stale(
    shop: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always(_: object) -> bool:
        return True

    monkeypatch.setattr(resolve, "announces", always)
    proxy = make_inner_proxy(shop.url(), FAR)
    with proxy.connect(options="-c distribcache.consistency=strict") as reader:
        until_hit(reader, READ)
        shop.execute(CHANGE, *REFRESHES["beside writes"])
        assert reader.execute(READ).fetchall() == [(1, 1), (2, 2)]


@pytest.mark.sabotage
def test_without_alarms_it_would_be_stale(
    proxy: InnerProxy, shop: Database, reader: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    until_hit(reader, READ)
    monkeypatch.setattr(Coverage, "_alarm", lambda *_: None)
    shop.execute(CHANGE, *REFRESHES["beside writes"])
    assert reader.execute(READ).fetchall() == [(1, 1), (2, 2)]
