"""Databases followed through pgoutput: all writes are seen, all changes of the catalogue; what cannot be is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import QUIET, Database, MakePostgres, create_database, drop_database
from fix_proxy import MakeProxy, ProxyProcess, last
from followed import Followed, eventually, following
from published import members, pgoutput_alone, publish, unpublish
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.coherence import looking
from distribcache.coherence.link import Link

SETTINGS = {"freshness.plugin": "pgoutput", "freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}


@pytest.fixture(scope="module")
def older(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    options = {**QUIET, "max_prepared_transactions": "5"}
    with Postgres(bin_dir=request.getfixturevalue("debian_bin"), options=options) as server:
        yield server


@pytest.fixture(scope="module")
def newest() -> Iterator[Postgres]:
    with Postgres(options={**QUIET, "max_prepared_transactions": "5"}) as server:
        yield server


@pytest.fixture(params=["newest", "older"])
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    made = create_database(request.getfixturevalue(request.param))
    yield made
    drop_database(made)


# -- every write

TABLES = (
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE, v text)",
    "CREATE TABLE source (id int PRIMARY KEY)",
    "CREATE FUNCTION on_source() RETURNS trigger LANGUAGE plpgsql AS "
    + "$$ BEGIN UPDATE t SET v = v || '!' WHERE id = 2; RETURN NULL; END $$",
    "CREATE TRIGGER fires AFTER INSERT ON source FOR EACH STATEMENT EXECUTE FUNCTION on_source()",
    "CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k)",
    "CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)",
    "CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2)",
    "CREATE TABLE base (id int PRIMARY KEY)",
    "CREATE TABLE derived (PRIMARY KEY (id)) INHERITS (base)",
    "CREATE TABLE nokey (id int)",
    "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 9) i",
    "INSERT INTO child VALUES (1, 1, 'x')",
    "INSERT INTO part VALUES (1, 1), (2, 2)",
    "INSERT INTO derived VALUES (1)",
    "INSERT INTO nokey VALUES (1)",
)
WRITES = [
    ("t", "INSERT INTO t VALUES (10, 'x')"),
    ("t", "UPDATE t SET v = 'y' WHERE id = 2"),
    ("t", "UPDATE t SET id = 11 WHERE id = 3"),
    ("t", "DELETE FROM t WHERE id = 4"),
    ("child", "DELETE FROM t WHERE id = 1"),
    ("t", "INSERT INTO t VALUES (5, 'x') ON CONFLICT (id) DO UPDATE SET v = 'upsert'"),
    ("t", "MERGE INTO t USING (VALUES (5)) AS n(id) ON t.id = n.id WHEN MATCHED THEN UPDATE SET v = 'merged'"),
    ("t", "COPY t (id) FROM PROGRAM 'seq 20 25'"),
    ("t", "INSERT INTO source VALUES (1)"),
    ("part", "INSERT INTO part_2 VALUES (3, 2)"),
    ("part", "UPDATE part SET k = 2 WHERE id = 1"),
    ("part_1", "INSERT INTO part VALUES (9, 1)"),
    ("part", "TRUNCATE part_1"),
    ("base", "DELETE FROM ONLY derived"),
    ("base", "INSERT INTO derived VALUES (2)"),
    ("t", "BEGIN; UPDATE t SET v = 'p' WHERE id = 5; PREPARE TRANSACTION 'two'; COMMIT PREPARED 'two'"),
    ("t", "BEGIN; SET LOCAL session_replication_role = replica; UPDATE t SET v = 'r' WHERE id = 5; COMMIT"),
    ("t", "BEGIN; SET LOCAL synchronous_commit = off; UPDATE t SET v = 's' WHERE id = 5; COMMIT"),
    ("t", "UPDATE t SET v = repeat('long ', 100000) WHERE id = 6"),
    ("t", "UPDATE t SET v = v || i FROM generate_series(1, 3) i"),
    ("nokey", "INSERT INTO nokey VALUES (2)"),
    ("nokey", "TRUNCATE nokey"),
    ("child", "TRUNCATE t CASCADE"),
]


async def test_every_write_from_anywhere_is_seen(db: Database) -> None:
    await asyncio.to_thread(db.execute, *TABLES)
    await asyncio.to_thread(publish, db)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput", schema_poll_s=600, quick_poll_s=600) as one:
        for table, write in WRITES:
            held = await one.filled(f"SELECT count(*) FROM {table}", table)
            other = await one.filled("SELECT 1", "source")
            assert await one.strictly(held), write
            await asyncio.to_thread(db.execute, *write.split("; ") if "PREPARE" in write else [write])
            assert not await one.strictly(held), write
            if "source" not in write and "TRUNCATE" not in write:
                assert one.valid(other), f"{write} is no change of another table, nor of the catalogue"


async def test_a_change_of_the_catalogue_is_told_by_the_trigger_alone(db: Database) -> None:
    """No poll, no alarm of a proxy, and nothing in what pgoutput itself sends."""
    await asyncio.to_thread(db.execute, *TABLES)
    await asyncio.to_thread(publish, db)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput", schema_poll_s=600, quick_poll_s=600) as one:
        for statement in (
            "ALTER TABLE t ADD COLUMN w int",
            "BEGIN; INSERT INTO source VALUES (7); ALTER TABLE t RENAME v TO z; COMMIT",
            "GRANT SELECT ON t TO PUBLIC",
            "DROP TABLE nokey",
            "CREATE VIEW fresh AS SELECT 1",
        ):
            held = await one.filled("SELECT count(*) FROM part", "part")
            await asyncio.to_thread(db.execute, statement)
            assert not await one.strictly(held), statement


@pytest.mark.sabotage
async def test_without_the_triggers_message_no_change_of_the_catalogue_is_seen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(database.execute, *TABLES)
    await asyncio.to_thread(publish, database)
    how = {"plugin": "pgoutput", "schema_poll_s": 600, "quick_poll_s": 600}
    monkeypatch.setattr(looking, "_MANNERS_NS", 1 << 60)  # what is missing would end the stream
    async with following(database.server.conninfo(), database.name, **how) as one:
        await asyncio.to_thread(database.execute, "DROP EVENT TRIGGER distribcache_ddl")
        held = await one.filled("SELECT count(*) FROM t", "t")
        await asyncio.to_thread(database.execute, "ALTER TABLE t ADD COLUMN w int DEFAULT 5")
        assert await one.strictly(held), "stale, as it must be when nobody tells of it"


# -- what must be there


async def not_serving(one: Followed, reason: str) -> None:
    def said() -> bool:
        one.coherence.note_traffic()
        return not one.coherence.serving and one.coherence.reason == reason

    await eventually(said, one.coherence.report)
    assert "distribcache setup" in one.coherence.hint


DAMAGE = {
    "DROP PUBLICATION distribcache_all": "no_publication",
    "DROP PUBLICATION distribcache_ud": "no_publication",
    "ALTER PUBLICATION distribcache_all SET (publish = 'insert')": "no_publication",
    "ALTER PUBLICATION distribcache_ud SET (publish_via_partition_root = true)": "no_publication",
    "DROP EVENT TRIGGER distribcache_ddl": "no_event_trigger",
    "ALTER EVENT TRIGGER distribcache_guard_drop DISABLE": "no_event_trigger",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_what_is_missing_ends_serving_with_a_reason_and_setup_mends_it(db: Database, damage: str) -> None:
    await asyncio.to_thread(db.execute, *TABLES)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput", wait=False) as one:
        await not_serving(one, "no_publication")
        await asyncio.to_thread(publish, db)
        await one.serving()
        held = await one.filled("SELECT count(*) FROM t", "t")
        await asyncio.to_thread(db.execute, damage)
        await not_serving(one, DAMAGE[damage])
        await asyncio.to_thread(db.execute, "UPDATE t SET v = 'unseen'")
        await asyncio.to_thread(publish, db)
        await one.serving()
        assert not one.valid(held)
        held = await one.filled("SELECT count(*) FROM t", "t")
        await asyncio.to_thread(db.execute, "DELETE FROM t WHERE id = 2")
        assert not await one.strictly(held)


@pytest.mark.parametrize("version", ["newest", "debian"])
async def test_a_server_without_test_decoding(
    make_postgres: MakePostgres, cli: Cli, request: pytest.FixtureRequest, version: str
) -> None:
    bin_dir: Path | None = request.getfixturevalue("debian_bin") if version == "debian" else None
    where = bin_dir or request.getfixturevalue("postgres").bin_dir
    with pgoutput_alone(where) as options:
        server = make_postgres(bin_dir=bin_dir, options=options, fresh=True)
        database = create_database(server)
        await asyncio.to_thread(database.execute, *TABLES)
        async with following(server.conninfo(), database.name, wait=False) as one:
            await not_serving(one, "no_output_plugin")
            checks = {c["name"]: c for c in cli("doctor", "--upstream", database.url(), "--json").json["checks"]}
            assert (checks["slot_creation"]["status"], checks["publications"]["status"]) == ("ok", "problem")
            await asyncio.to_thread(cli, "setup", "--upstream", database.url())
            await one.serving()
            assert one.coherence.report()["plugin"] == "pgoutput"
            held = await one.filled("SELECT count(*) FROM t", "t")
            await asyncio.to_thread(database.execute, "DELETE FROM t WHERE id = 2")
            assert not await one.strictly(held)
        async with following(server.conninfo(), database.name, wait=False, plugin="test_decoding") as one:
            await eventually(lambda: one.coherence.reason == "no_output_plugin", one.coherence.report)


# -- tables that come and go


async def test_a_table_made_meanwhile_is_added_before_a_new_stream(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_MANNERS_NS", 100_000_000)
    await asyncio.to_thread(publish, db)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput", enrol_s=0.2) as one:
        epoch = one.coherence.epoch
        await asyncio.to_thread(db.execute, "CREATE TABLE fresh (id int PRIMARY KEY)", "CREATE TABLE other (id int)")

        def renewed() -> bool:
            one.coherence.note_traffic()
            return one.coherence.epoch != epoch and one.coherence.serving

        await eventually(renewed, one.coherence.report)
        assert members(db) == ["fresh"]
        epoch = one.coherence.epoch
        looks = one.coherence.counters.rereads
        await asyncio.to_thread(db.execute, "ALTER TABLE fresh ADD COLUMN v text")
        await eventually(lambda: one.coherence.counters.rereads > looks + 1, one.coherence.report)
        assert one.coherence.epoch == epoch, "what is as it should be ends no stream"


async def test_what_the_guard_has_missed_is_mended_by_the_cache(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is still in the publication without an identity, as after an upgrade or a lock that was never had."""
    monkeypatch.setattr(looking, "_MANNERS_NS", 100_000_000)
    await asyncio.to_thread(db.execute, *TABLES)
    await asyncio.to_thread(publish, db)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput") as one:
        await asyncio.to_thread(
            db.execute,
            "BEGIN; ALTER EVENT TRIGGER distribcache_guard_alter DISABLE; "
            "ALTER EVENT TRIGGER distribcache_guard_drop DISABLE; ALTER TABLE child DROP CONSTRAINT child_pkey; "
            "ALTER EVENT TRIGGER distribcache_guard_alter ENABLE ALWAYS; "
            "ALTER EVENT TRIGGER distribcache_guard_drop ENABLE ALWAYS; COMMIT",
        )
        await eventually(lambda: "child" not in members(db), one.coherence.report)
        await asyncio.to_thread(db.execute, "UPDATE child SET v = 'free'")


async def added_under_a_writer(database: Database) -> bool:
    """A table is added while a transaction that has changed it is open; it commits later. → is an entry still valid?"""
    await asyncio.to_thread(publish, database)
    async with following(database.server.conninfo(), database.name, plugin="pgoutput", slot_deadline_s=60) as one:
        made = "CREATE TABLE t (id int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1)"
        await asyncio.to_thread(database.execute, *made)
        writer = await psycopg.AsyncConnection.connect(database.conninfo())
        try:
            await writer.execute("UPDATE t SET v = 1")
            epoch = one.coherence.epoch
            await asyncio.to_thread(database.execute, "ALTER PUBLICATION distribcache_ud ADD TABLE ONLY t")
            added_at = now_ns()

            def looked() -> bool:
                one.coherence.note_traffic()
                coverage = one.coherence.coverage
                seen = coverage.full_at > added_at and not coverage.settle_at
                return one.coherence.epoch != epoch or (one.coherence.serving and seen)

            await eventually(looked, one.coherence.report)
            held = None
            if one.coherence.serving:
                held = await one.filled("SELECT v FROM t", "t")
        finally:
            await writer.commit()
            await writer.close()
        if held is None:
            await one.serving()
            return False
        return await one.strictly(held)


async def test_a_table_added_under_a_writer_is_not_served_before_the_writer_has_ended(db: Database) -> None:
    assert not await added_under_a_writer(db)


@pytest.mark.sabotage
async def test_kept_in_the_old_stream_such_a_table_would_be_stale(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Link) -> None:
        """As if a table could be added under the stream."""

    monkeypatch.setattr(Link, "look_at_publications", nothing)
    assert await added_under_a_writer(database)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER PUBLICATION distribcache_ud DROP TABLE t; ALTER PUBLICATION distribcache_ud ADD TABLE ONLY t",
        "ALTER PUBLICATION distribcache_all SET (publish = 'insert'); "
        + "ALTER PUBLICATION distribcache_all SET (publish = 'insert, truncate')",
    ],
    ids=["a table", "what is published"],
)
async def test_what_left_and_came_back_between_two_looks_ends_the_epoch(db: Database, change: str) -> None:
    """A transaction open all the while has changes in between that the stream will never show."""
    await asyncio.to_thread(db.execute, *TABLES)
    await asyncio.to_thread(publish, db)
    async with following(db.server.conninfo(), db.name, plugin="pgoutput") as one:
        epoch = one.coherence.epoch
        await asyncio.to_thread(db.execute, f"BEGIN; {change}; COMMIT")
        await eventually(lambda: one.coherence.epoch != epoch, one.coherence.report)
        assert "publication_changed" in str(one.coherence.report()["last_error"])
        await one.serving()


# -- through the proxy


@pytest.fixture
def shop(db: Database, make_proxy: MakeProxy) -> tuple[Database, ProxyProcess]:
    owner = f"owner_{db.name}"
    db.execute(
        *TABLES,
        "CREATE TABLE mixed (id int, k int) PARTITION BY LIST (k)",
        "CREATE TABLE mixed_1 PARTITION OF mixed (PRIMARY KEY (id)) FOR VALUES IN (1)",
        "CREATE TABLE mixed_2 PARTITION OF mixed FOR VALUES IN (2)",
        "INSERT INTO mixed VALUES (1, 1), (2, 2)",
        "CREATE MATERIALIZED VIEW m AS SELECT id FROM t",
        "CREATE VIEW v AS SELECT id FROM nokey",
        f"CREATE ROLE {owner} LOGIN",
        f"GRANT ALL ON SCHEMA public TO {owner}",
        f"ALTER TABLE t OWNER TO {owner}",
    )
    publish(db)
    return db, make_proxy(db.url(), SETTINGS)


def reason(connection: psycopg.Connection[object], sql: str) -> str:
    """Why it is not cached, or ``hit`` when it is at last."""

    def answered() -> bool:
        connection.execute(sql)
        return last(connection)["status"] in ("hit", "refused")

    until(answered, lambda: f"{sql}: {last(connection)}")
    said = last(connection)
    return str(said["reason"]) if said["status"] == "refused" else "hit"


def test_what_the_stream_does_not_show_is_refused_and_may_be_written(shop: tuple[Database, ProxyProcess]) -> None:
    db, proxy = shop
    with proxy.connect() as client:
        assert {sql: reason(client, f"SELECT count(*) FROM {sql}") for sql in ("t", "part", "base", "mixed_1")} == {
            "t": "hit", "part": "hit", "base": "hit", "mixed_1": "hit",
        }  # fmt: skip
        for silent in ("nokey", "v", "mixed", "mixed_2", "t JOIN nokey USING (id)"):
            assert reason(client, f"SELECT count(*) FROM {silent}") == "no_replica_identity", silent
        assert reason(client, "SELECT count(*) FROM m") == "materialized_view"
        for connect in (db.connect, proxy.connect):
            with connect() as writer:
                writer.execute("UPDATE nokey SET id = id + 1")
                writer.execute("UPDATE mixed SET id = id + 1")
                writer.execute("DELETE FROM mixed_2 WHERE id < 0")
        assert client.execute("SELECT id FROM nokey").fetchall() == [(3,)]
        until(lambda: client.execute("SELECT max(id) FROM mixed_1").fetchall() == [(3,)])


def test_a_key_that_is_dropped_and_rows_changed_in_one_transaction_by_their_owner(
    shop: tuple[Database, ProxyProcess],
) -> None:
    db, proxy = shop
    read = "SELECT v FROM t WHERE id = 2"
    with proxy.connect() as client:
        assert reason(client, read) == "hit"
        with psycopg.connect(db.conninfo(f"owner_{db.name}")) as owner:
            owner.execute("ALTER TABLE t DROP CONSTRAINT t_pkey CASCADE")
            owner.execute("UPDATE t SET v = 'keyless' WHERE id = 2")
        until(lambda: client.execute(read).fetchall() == [("keyless",)])
        until(lambda: reason(client, read) == "no_replica_identity")  # a busy machine may read before the poll has seen
        db.execute("UPDATE t SET v = 'again' WHERE id = 2")
        assert client.execute(read).fetchall() == [("again",)]
    assert "t" not in members(db)


def test_teardown_ends_it_and_setup_begins_it_anew(shop: tuple[Database, ProxyProcess]) -> None:
    db, proxy = shop
    read = "SELECT count(*) FROM t"

    def why() -> str:
        return str(proxy.status()["databases"])

    with proxy.connect() as client:
        assert reason(client, read) == "hit"
        unpublish(db)
        until(lambda: not proxy.serving() and "no_publication" in why(), why)
        db.execute("DELETE FROM t WHERE id = 2")
        assert client.execute(read).fetchall() == [(8,)]
        publish(db)
        until(proxy.serving, why)
        assert reason(client, read) == "hit"
