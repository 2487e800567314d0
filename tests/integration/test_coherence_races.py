"""The races of coherence against real servers. Each has a sabotage: with its rule muted, the stale answer shows."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from fix_postgres import Database, MakePostgres, create_database, drop_database
from followed import connect, eventually, following
from rowtags import settled

from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.coherence import coverage as coverage_module
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.decoding import Decoder
from distribcache.coherence.ledger import FRESH_AT, W
from distribcache.coherence.reader import Reader
from distribcache.coherence.visibility import Visibility


async def one(connection: Any, sql: str) -> Any:
    return (await (await connection.execute(sql)).fetchone())[0]


async def stuck_commit(server_database: Database, muted: bool) -> tuple[bool, int, int]:
    """A commit that is received but not visible; a fill begun then. → (valid afterwards, its value, the truth)."""
    database = server_database
    async with following(database.server.conninfo(), database.name) as followed:
        writer = await connect(database.conninfo())
        other = await connect(database.conninfo())
        try:
            pid = writer.info.backend_pid
            commits = followed.coherence.counters.commits
            writing = asyncio.create_task(writer.execute("UPDATE t SET v = 2"))
            await eventually(lambda: followed.coherence.counters.commits > commits)
            await followed.slot("t")
            held = await followed.fill("SELECT v FROM t", "t")
            assert held is not None
            assert held.rows == [(1,)], "the commit should not be visible yet"
            if not muted:
                assert followed.coherence.coverage.visibility.visible(1 << 60) < 1 << 60
            await other.execute("SELECT pg_cancel_backend(%s)", [pid])
            await writing
            floor = now_ns()
            truth = await one(other, "SELECT v FROM t")
            assert await followed.coherence.wait_fresh(floor, 60)
            return followed.valid(held, floor), held.rows[0][0], truth
        finally:
            await writer.close()
            await other.close()


@pytest.fixture
def waiting_server(make_postgres: MakePostgres) -> Any:
    """Every commit waits for a standby that does not exist. Databases are left to the end of the server."""
    return make_postgres(options={"synchronous_standby_names": "nobody"})


async def prepare(server: Any) -> Database:
    def make() -> Database:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGOPTIONS", "-c synchronous_commit=local")
            database = create_database(server, "race")
            database.execute("CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
        return database

    return await asyncio.to_thread(make)


async def test_a_received_commit_that_is_not_visible_can_not_leave_a_stale_entry(waiting_server: Any) -> None:
    database = await prepare(waiting_server)
    valid, value, truth = await stuck_commit(database, muted=False)
    assert (value, truth) == (1, 2)
    assert not valid


@pytest.mark.sabotage
async def test_without_r3_that_entry_is_stale_for_ever(waiting_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visibility, "visible", lambda self, applied: applied)
    database = await prepare(waiting_server)
    valid, value, truth = await stuck_commit(database, muted=True)
    assert (value, truth) == (1, 2)
    assert valid


# -- trap 2: a large transaction, a small commit, and pings


async def large_then_small(database: Database, pings: bool) -> list[bool]:
    """500k rows in one transaction, then one row. → for each moment at which strict hits would be served: valid?"""
    await asyncio.to_thread(
        database.execute, "CREATE TABLE big (id int)", "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)"
    )
    moments: list[bool] = []
    async with following(database.server.conninfo(), database.name, max_wal_lag=4 << 30) as followed:
        await settled(followed)
        held = await followed.filled("SELECT v FROM t", "t")
        writer = await connect(database.conninfo())
        await writer.execute("INSERT INTO big SELECT generate_series(1, 500000)")
        await writer.execute("UPDATE t SET v = 2")
        floor = now_ns()
        small = await one(writer, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        while followed.coherence.words[W] < small:
            if pings and followed.coherence._following is not None:
                followed.coherence._following.reader.ping()
            if followed.coherence.words[FRESH_AT] >= floor:
                moments.append(followed.valid(held, floor))
            await asyncio.sleep(0.005)
        assert await followed.coherence.wait_fresh(floor, 60)
        moments.append(followed.valid(held, floor))
        await writer.close()
    return moments


async def test_pings_answered_from_inside_a_large_decode_prove_nothing(database: Database) -> None:
    """Coherence trap 2."""
    assert await large_then_small(database, pings=True) == [False]


@pytest.mark.sabotage
async def test_pings_as_the_fence_serve_what_has_died(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coherence trap 2. Muted: an answered ping makes the ledger complete."""
    def believe(self: Coverage, lsn: int) -> None:
        self.received = max(self.received, lsn)
        self.ledger.words[FRESH_AT] = now_ns()

    monkeypatch.setattr(Coverage, "position", believe)
    assert True in await large_then_small(database, pings=True)


async def test_a_slice_of_a_large_decode_is_short(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """R7, in CPU time, so that a busy machine does not count."""
    slices: list[float] = []
    plain = Reader._slice

    def timed(self: Reader, until: int) -> bool:
        began = time.thread_time()
        more = plain(self, until)
        slices.append(time.thread_time() - began)
        return more

    monkeypatch.setattr(Reader, "_slice", timed)
    gc.disable()  # what the tests before have left is no part of a slice
    try:
        await large_then_small(database, pings=False)
    finally:
        gc.enable()
    assert len(slices) > 20
    assert max(slices) < 0.05


# -- R6: the catalogue


async def swap(database: Database, outside: str) -> tuple[bool, bool]:
    """t and u swap names in one transaction that also writes, around the proxy; then u's rows change under the name t.

    → (was the entry of u still valid when the change was fresh, does it hold the truth)
    """
    await asyncio.to_thread(
        database.execute,
        "CREATE TABLE t (v int)",
        "CREATE TABLE u (v int)",
        "INSERT INTO u VALUES (1)",
        "INSERT INTO t VALUES (0)",
    )
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled("SELECT v FROM u", "u")
        writer = await connect(database.conninfo())
        await writer.execute(
            "BEGIN; INSERT INTO t VALUES (0); ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; "
            f"ALTER TABLE x RENAME TO u; {outside}; COMMIT"
        )
        await writer.execute("UPDATE t SET v = 2")  # the relation that the entry depends on
        held_is_true = held.rows == await (await writer.execute("SELECT v FROM t")).fetchall()
        valid = await followed.strictly(held)
        await writer.close()
        return valid, held_is_true


async def test_a_swap_of_names_announced_by_the_event_trigger(database: Database) -> None:
    """Coherence trap 4."""
    message = "SELECT pg_logical_emit_message(true, 'distribcache.ddl', 'ALTER TABLE')"
    assert await swap(database, message) == (False, False)


async def test_a_swap_of_names_found_by_the_poll(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the event trigger, DDL hidden in a transaction that writes is seen by the next poll, and only then."""
    await asyncio.to_thread(
        database.execute, "CREATE TABLE t (v int)", "CREATE TABLE u (v int)", "INSERT INTO u VALUES (1)"
    )
    async with following(database.server.conninfo(), database.name, schema_poll_s=0.2) as followed:
        held = await followed.filled("SELECT v FROM u", "u")
        writer = await connect(database.conninfo())
        await writer.execute("BEGIN; INSERT INTO t VALUES (0); ALTER TABLE u RENAME TO w; COMMIT")
        await eventually(lambda: (followed.coherence.note_traffic(), not followed.valid(held))[1])
        assert followed.coherence.counters.last_alarm == "changed_poll"
        await followed.serving()
        await writer.close()


@pytest.mark.sabotage
async def test_without_alarms_a_swap_leaves_a_stale_entry(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coherence trap 4. Muted: nobody is alarmed by a change of names."""
    monkeypatch.setattr(Coverage, "_alarm", lambda *_: None)
    message = "SELECT pg_logical_emit_message(true, 'distribcache.ddl', 'ALTER TABLE')"
    assert await swap(database, message) == (True, False)


@pytest.mark.parametrize(
    "ddl",
    [
        "ALTER TABLE u ADD COLUMN w int",
        "DROP TABLE u CASCADE",
        "CREATE OR REPLACE VIEW v AS SELECT 2 AS a",
        "GRANT SELECT ON u TO PUBLIC",
        "REFRESH MATERIALIZED VIEW m",
        "CREATE POLICY p ON u USING (false)",
        "TRUNCATE u",
    ],
)
async def test_no_strict_hit_after_ddl_elsewhere(database: Database, ddl: str) -> None:
    await asyncio.to_thread(
        database.execute,
        "CREATE TABLE u (v int)",
        "INSERT INTO u VALUES (1)",
        "CREATE VIEW v AS SELECT 1 AS a",
        "CREATE MATERIALIZED VIEW m AS SELECT * FROM u",
    )
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled("SELECT v FROM u", "u")
        assert await followed.strictly(held)
        await asyncio.to_thread(database.execute, ddl)
        assert not await followed.strictly(held)
        await followed.serving()


async def test_a_membership_revoked_from_another_database_ends_hits(database: Database, postgres: Postgres) -> None:
    """It leaves no trace in this database's stream: the quick poll sees it, also with the full poll far away."""
    role = f"member_{database.name}"
    elsewhere = await connect(postgres.conninfo())
    await elsewhere.execute(f"CREATE ROLE {role}; GRANT pg_read_all_data TO {role}".encode())
    await asyncio.to_thread(database.execute, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    async with following(database.server.conninfo(), database.name, schema_poll_s=3600) as followed:
        await eventually(lambda: followed.coherence.coverage.settle_at == 0)
        held = await followed.filled("SELECT v FROM t", "t")
        assert await followed.strictly(held)
        await elsewhere.execute(f"REVOKE pg_read_all_data FROM {role}".encode())
        await eventually(lambda: (followed.coherence.note_traffic(), not followed.valid(held))[1])
        assert followed.coherence.counters.last_alarm == "changed_poll"
        await followed.serving()
    await elsewhere.execute(f"DROP ROLE {role}".encode())
    await elsewhere.close()


async def test_noise_does_not_drop_the_cache(database: Database) -> None:
    await asyncio.to_thread(database.execute, "CREATE TABLE u (v int)", "INSERT INTO u VALUES (1)")
    # Where a stream is late by half of this, a look that finds nothing new is not believed.
    async with following(database.server.conninfo(), database.name, schema_poll_s=120) as followed:
        await eventually(lambda: followed.coherence.coverage.settle_at == 0)
        held = await followed.filled("SELECT v FROM u", "u")
        noise = (
            "ANALYZE u",
            "CREATE TEMP TABLE tt (a int)",
            "CREATE TABLE pg_temp.x AS SELECT 1",
            "VACUUM u",
            "CREATE INDEX ON u (v)",
        )
        alarms = followed.coherence.counters.alarms
        await asyncio.to_thread(database.execute, *noise)
        assert await followed.strictly(held)
        assert followed.coherence.counters.alarms > alarms


async def test_a_ddl_through_the_proxy_costs_one_alarm_and_stops_hits_at_once(database: Database) -> None:
    await asyncio.to_thread(database.execute, "CREATE TABLE u (v int)", "INSERT INTO u VALUES (1)")
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled("SELECT v FROM u", "u")
        await asyncio.to_thread(database.execute, "BEGIN; INSERT INTO u VALUES (2); ALTER TABLE u ADD w int; COMMIT")
        followed.coherence.catalogue_alarm("ddl")
        assert not followed.coherence.serving
        assert followed.coherence.reason == "catalogue_alarm"
        assert followed.coherence.words[FRESH_AT] == 0
        assert followed.coherence.fill_point() is None
        assert not await followed.strictly(held)
        await followed.serving()
        refilled = await followed.filled("SELECT v FROM u", "u")
        assert len(refilled.rows) == 2


async def test_partitions_and_truncate_reach_the_root(database: Database) -> None:
    """Coherence rule R1."""
    await asyncio.to_thread(
        database.execute,
        "CREATE TABLE r (k int, v int) PARTITION BY LIST (k)",
        "CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1) PARTITION BY LIST (v)",
        "CREATE TABLE r11 PARTITION OF r1 FOR VALUES IN (1, 2)",
        "CREATE TABLE r2 PARTITION OF r FOR VALUES IN (2)",
        "INSERT INTO r VALUES (1, 1), (2, 2)",
    )
    async with following(database.server.conninfo(), database.name) as followed:
        for change in (
            "UPDATE r SET v = 2 WHERE k = 1",
            "INSERT INTO r11 VALUES (1, 1)",
            "TRUNCATE r11",
            "DELETE FROM r2",
        ):
            held = await followed.filled("SELECT * FROM r", "r")
            await asyncio.to_thread(database.execute, change)
            assert not await followed.strictly(held), change


# -- R5: positions that the stream does not reach by itself


async def test_a_switched_segment_is_reached_without_writing_anything(database: Database) -> None:
    async with following(database.server.conninfo(), database.name) as followed:
        following_now = followed.coherence._following
        assert following_now is not None
        following_now.probe.may_flush = False
        await asyncio.to_thread(database.execute, "SELECT pg_switch_wal()")
        assert await followed.coherence.wait_fresh(now_ns(), 60)


@pytest.mark.sabotage
async def test_without_normalising_that_wait_does_not_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(database.server.conninfo(), database.name) as followed:
        following_now = followed.coherence._following
        assert following_now is not None
        following_now.probe.may_flush = False
        monkeypatch.setattr(coverage_module, "normalise", lambda lsn, _: lsn)
        ended = []
        for _ in range(40):  # anything that the server logs by itself ends a wait too
            await asyncio.to_thread(database.execute, "SELECT pg_switch_wal()")
            ended.append(await followed.coherence.wait_fresh(now_ns(), 0.5))
            if not ended[-1]:
                break
        assert not ended[-1]


async def test_an_unflushed_commit_is_flushed_on_demand(make_postgres: MakePostgres) -> None:
    """Coherence trap 23."""
    server = make_postgres(options={"wal_writer_delay": "10s"})
    database = await asyncio.to_thread(create_database, server, "flush")
    await asyncio.to_thread(database.execute, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    async with following(server.conninfo(), database.name) as followed:
        held = await followed.filled("SELECT v FROM t", "t")
        writer = await connect(database.conninfo())
        await writer.execute("SET synchronous_commit = off")
        await writer.execute("UPDATE t SET v = 2")
        assert not await followed.strictly(held, timeout=8)
        assert followed.coherence._following is not None
        assert followed.coherence._following.probe.flushes > 0
        await writer.close()
    await asyncio.to_thread(drop_database, database)


async def test_a_text_that_is_not_understood_begins_a_new_epoch(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(database.execute, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled("SELECT v FROM t", "t")
        plain = Decoder.feed
        monkeypatch.setattr(Decoder, "feed", lambda self, data, lsn: plain(self, b"garbage", lsn))
        await asyncio.to_thread(database.execute, "UPDATE t SET v = 2")
        await eventually(lambda: followed.coherence.epoch != held.epoch)
        monkeypatch.undo()
        await followed.serving()
        assert not followed.valid(held)
