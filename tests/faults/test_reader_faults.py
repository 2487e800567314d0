"""What breaks while a database is followed: nothing stale is served, and the stream comes back by itself (rule R8)."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database, drop_database
from followed import Followed, Held, connect, eventually, following

from distribcache.clock import now_ns
from distribcache.coherence import link as link_module
from distribcache.coherence import looking
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.ledger import FRESH_AT


async def run(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(database.execute, *statements)


async def hold(database: Database, followed: Followed) -> Held:
    await run(database, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    return await followed.filled("SELECT v FROM t", "t")


async def stream_pids(database: Database) -> list[int]:
    rows = await run(
        database,
        f"SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender' AND datname = '{database.name}'",
    )
    return [pid for (pid,) in rows]


@pytest.mark.parametrize(
    "victim",
    [
        "backend_type = 'walsender'",
        "query LIKE '%pg_current_snapshot(), %'",
        "query NOT LIKE '%pg_current_snapshot(), %'",
    ],
)
async def test_a_terminated_connection_begins_a_new_epoch_and_comes_back(database: Database, victim: str) -> None:
    """Coherence trap 19."""
    async with following(database.server.conninfo(), database.name) as followed:
        held = await hold(database, followed)
        assert await followed.strictly(held)
        # What is written while nobody listens must not be missed.
        await run(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'distribcache' "
            f"AND datname = '{database.name}' AND {victim}",
            "UPDATE t SET v = 2",
        )
        await eventually(lambda: followed.coherence.epoch != held.epoch, followed.coherence.report)
        assert not followed.valid(held)
        await followed.serving()
        assert not followed.valid(held)
        again = await followed.filled("SELECT v FROM t", "t")
        assert again.rows == [(2,)]
        assert await followed.strictly(again)
        assert len(await stream_pids(database)) == 1


@pytest.mark.sabotage
async def test_without_a_new_epoch_what_was_written_meanwhile_is_missed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 19. Muted: the epoch outlives a hole in the stream."""
    async with following(database.server.conninfo(), database.name) as followed:
        held = await hold(database, followed)

        def keep(self: Coverage) -> None:
            self.serving = False
            self.visibility.seen_start = False

        plain = Coverage.begin

        def resume(self: Coverage, start: int, segment: int) -> None:
            self.received = max(self.received, start)

        monkeypatch.setattr(Coverage, "end", keep)
        monkeypatch.setattr(Coverage, "begin", resume)
        [pid] = await stream_pids(database)
        await run(database, f"SELECT pg_terminate_backend({pid})", "UPDATE t SET v = 2")
        # Until it is noticed, the link that is gone seems to serve.
        await eventually(lambda: "reader_lost" in followed.coherence.counters.last_error, followed.coherence.report)
        await followed.serving()
        assert await followed.strictly(held)
        monkeypatch.setattr(Coverage, "begin", plain)


async def test_hits_that_wait_are_released_when_the_link_ends(database: Database) -> None:
    async with following(database.server.conninfo(), database.name) as followed:
        waiting = followed.coherence.wait_fresh(now_ns() + 60_000_000_000, 60)
        [pid] = await stream_pids(database)
        await run(database, f"SELECT pg_terminate_backend({pid})")
        assert await asyncio.wait_for(waiting, 50) is False


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_of_the_server(make_postgres: MakePostgres, mode: str) -> None:
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "restart")
    async with following(server.conninfo(), database.name) as followed:
        held = await hold(database, followed)
        identity = followed.coherence.identity
        # A stop that had to wait for our stream would be an immediate one after this time.
        await asyncio.to_thread(server.stop, mode, timeout_s=60)
        if mode == "fast":
            assert "received immediate shutdown request" not in server.log()
        await eventually(lambda: not followed.coherence.serving)
        assert not followed.valid(held)
        await eventually(
            lambda: followed.coherence.reason in {"upstream_down", "unreachable"}, followed.coherence.report
        )
        assert "keeps trying" in followed.coherence.hint
        await asyncio.to_thread(server.start)
        await followed.serving()
        assert followed.coherence.identity != identity
        await followed.reconnect(database.conninfo())
        again = await followed.filled("SELECT v FROM t", "t")
        assert await followed.strictly(again)


async def lost_commit(
    make_postgres: MakePostgres, *, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[bool, int, int]:
    """A visible asynchronous commit is lost in a crash. → (is its entry still valid, its value, the truth)."""
    server = make_postgres(options={"wal_writer_delay": "10s", "synchronous_commit": "off"}, fresh=True)
    database = await asyncio.to_thread(create_database, server, "crash")
    async with following(server.conninfo(), database.name) as followed:
        await run(database, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)", "CHECKPOINT")
        await followed.serving()
        probe = followed.coherence._following
        assert probe is not None
        assert await followed.coherence.wait_fresh(now_ns(), 60)
        await followed.slot("t")
        held = await followed.filled("SELECT v FROM t", "t")
        probe.probe.may_flush = False
        writer = await connect(database.conninfo())
        await writer.execute("UPDATE t SET v = 2")
        held = Held(
            [(2,)], held.fill, held.analysis, held.slots, held.epoch
        )  # a read dated before it showed it already
        assert await (await writer.execute("SELECT v FROM t")).fetchall() == [(2,)]
        if muted:
            monkeypatch.setattr(Coverage, "end", lambda self: None)
            monkeypatch.setattr(Coverage, "begin", lambda self, *_: setattr(self, "highest_insert", 0))
            monkeypatch.setattr(Coverage, "_alarm", lambda *_: None)  # a poll notices a restart, sooner or later
        await asyncio.to_thread(server.restart, "immediate")
        await followed.serving()
        await writer.close()
        await followed.reconnect(database.conninfo())
        truth = (await (await followed.reads.execute("SELECT v FROM t")).fetchall())[0][0]
        valid = followed.valid(held)
        monkeypatch.undo()
        return valid, held.rows[0][0], truth


async def test_a_crash_that_takes_visible_commits_back(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 14."""
    assert await lost_commit(make_postgres, muted=False, monkeypatch=monkeypatch) == (False, 2, 1)


@pytest.mark.sabotage
async def test_without_a_new_epoch_a_lost_commit_lives_on(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 14. Muted: the epoch outlives the crash."""
    assert await lost_commit(make_postgres, muted=True, monkeypatch=monkeypatch) == (True, 2, 1)


# -- manners


async def test_it_leaves_when_it_would_count_as_a_synchronous_standby(make_postgres: MakePostgres) -> None:
    """Coherence trap 3."""
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "sync")
    async with following(server.conninfo(), database.name) as followed:
        held = await hold(database, followed)
        await run(database, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        followed.coherence.note_traffic()
        await eventually(lambda: followed.coherence.reason == "synchronous_standby", followed.coherence.report)
        assert not followed.valid(held)
        assert "ALTER SYSTEM" in followed.coherence.hint
        await eventually(lambda: followed.coherence._following is None)
        while await stream_pids(database):  # the server's process ends a moment behind the connection
            pass
        await run(database, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        await followed.serving()


@pytest.mark.sabotage
async def test_without_that_manner_commits_would_wait_for_the_cache(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 3. Muted: the server counts us, and each commit waits."""
    monkeypatch.setattr(link_module, "counts_as_synchronous", lambda *_: False)
    monkeypatch.setattr(link_module, "_MANNERS", "SELECT 0, '', 0, '0/0'")
    monkeypatch.setattr(looking, "_MANNERS_NS", 1 << 60)
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "sync")
    await run(database, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    async with following(server.conninfo(), database.name) as followed:
        await followed.serving()
        [(state,)] = await run(database, "SELECT sync_state FROM pg_stat_replication")
        assert state == "sync"


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        ("", False),
        ("*", True),
        ("nobody", False),
        ("FIRST 1 (a, b)", False),
        ("ANY 2 (a, DistribCache, b)", True),
        ('"distribcache"', True),
        ("FIRST 1 (a, *)", True),
        ('"distribcache_2", other', False),
    ],
)
def test_the_list_of_standbys_is_read_as_the_server_reads_it(names: str, counted: bool) -> None:
    assert link_module.counts_as_synchronous(names) is counted


async def test_too_far_behind_it_drops_its_slot(database: Database) -> None:
    async with following(database.server.conninfo(), database.name, max_wal_lag=1 << 20) as followed:
        held = await hold(database, followed)
        await run(database, "CREATE TABLE big AS SELECT generate_series(1, 200000) AS id, repeat('x', 100) AS x")
        await eventually(
            lambda: (followed.coherence.note_traffic(), followed.coherence.epoch != held.epoch)[1],
            followed.coherence.report,
        )
        assert "wal_lag" in followed.coherence.counters.last_error
        await followed.serving()


async def test_feedback_never_says_zero_and_moves(database: Database) -> None:
    """Coherence trap 3."""
    async with following(database.server.conninfo(), database.name) as followed:
        await hold(database, followed)
        assert followed.coherence._following is not None
        [pid] = await stream_pids(database)
        sql = f"SELECT flush_lsn - '0/0', sent_lsn - flush_lsn FROM pg_stat_replication WHERE pid = {pid}"
        for _ in range(3000):  # the server logs a little by itself
            followed.coherence._following.reader.feedback()
            [(flushed, behind)] = await run(database, sql)
            if behind == 0:
                break
            await asyncio.sleep(0.01)
        assert flushed > 0
        assert behind == 0


# -- leaving


async def test_after_stop_the_database_can_be_dropped(database: Database) -> None:
    async with following(database.server.conninfo(), database.name) as followed:
        await followed.reads.close()
        await followed.coherence.stop()
        with psycopg.connect(database.server.conninfo(), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {database.name}".encode())
        assert not followed.coherence.serving
        assert followed.coherence.reason == "stopped"


async def test_stop_in_the_middle_of_a_large_decode_leaves_nothing(database: Database) -> None:
    async with following(database.server.conninfo(), database.name, max_wal_lag=4 << 30) as followed:
        await run(database, "CREATE TABLE big AS SELECT generate_series(1, 300000) AS id")
        await followed.coherence.stop()
        rows = await run(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'distribcache' "
            f"AND datname = '{database.name}'",
            f"SELECT count(*) FROM pg_replication_slots WHERE database = '{database.name}'",
        )
        assert rows == [(0,)]


async def test_start_never_raises_and_stop_ends_a_start_that_waits(database: Database) -> None:
    writer = await connect(database.conninfo())
    await writer.execute("BEGIN; CREATE TABLE x (a int)")
    async with following(database.server.conninfo(), database.name, wait=False) as followed:
        await eventually(lambda: followed.coherence.reason == "slot_waits", followed.coherence.report)
        assert str(writer.info.backend_pid) in followed.coherence.detail
        assert f"pg_terminate_backend({writer.info.backend_pid})" in followed.coherence.hint
        await followed.coherence.stop()
        rows = await run(
            database,
            "SELECT pid, query FROM pg_stat_activity WHERE application_name = 'distribcache' "
            f"AND datname = '{database.name}'",
        )
        assert rows == []
        # Begin again; the transaction ends; it serves.
        await followed.coherence.start()
        await eventually(lambda: followed.coherence.reason == "slot_waits", followed.coherence.report)
        await writer.execute("COMMIT")
        await followed.serving()
    await writer.close()


async def test_a_server_that_stands_still_is_not_served_from_memory(make_postgres: MakePostgres) -> None:
    """SIGSTOP the probe's backend: no proof comes, so no hit does, though nothing has failed."""
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "still")
    async with following(server.conninfo(), database.name) as followed:
        held = await hold(database, followed)
        assert followed.coherence._following is not None
        pid = followed.coherence._following.link.probe.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await run(database, "UPDATE t SET v = 2")
            assert not await followed.coherence.wait_fresh(now_ns(), 0.3)
            floor = now_ns()
            assert followed.coherence.words[FRESH_AT] < floor
            assert not followed.valid(held, floor)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not await followed.strictly(held)
    await asyncio.to_thread(drop_database, database)
