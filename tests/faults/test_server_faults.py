"""The server goes back in time, changes its place or loses our slot: what it no longer knows is never served.

Where commits are lost that clients have seen, the epoch is what ends the entries that show them (coherence rule R8);
muted, they live on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy, last
from followed import connect, eventually, following
from inside import coherence_of
from muted import kept_and_muted
from relay import Relay
from wait import until

from distribcache.coherence.coverage import Coverage
from distribcache.coherence.probe import Probe

READ = "SELECT value FROM stock"
READY = "database system is ready to accept connections"
PATIENT = {"freshness.max_staleness": "30s", "freshness.hit_wait": "2s"}
STOCK = ("CREATE TABLE stock (value int)", "INSERT INTO stock VALUES (1)")


def mute_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was held before a link has ended is held behind it.

    A poll of the catalogue may notice by chance, by counters that a crash has set back: it is muted too.
    """

    def resume(self: Coverage, *_: Any) -> None:
        self.highest_insert = self.received = 0

    def polled(self: Coverage, quick: object, began_at: int) -> None:
        self.quick_at = max(self.quick_at, began_at)

    monkeypatch.setattr(Coverage, "end", lambda self: None)
    monkeypatch.setattr(Coverage, "begin", resume)
    monkeypatch.setattr(Coverage, "polled", polled)
    monkeypatch.setattr(Coverage, "_alarm", lambda *_: None)


def hot(proxy: InnerProxy) -> int:
    """The value, from memory."""
    with proxy.connect(prepare_threshold=None) as connection:
        values: list[int] = []

        def hit() -> bool:
            values[:] = connection.execute(READ).fetchone() or ()
            return bool(last(connection)["status"] == "hit")

        until(hit, lambda: str(last(connection)))
        return values[0]


def after(proxy: InnerProxy, before: object) -> int:
    """What a new client reads first once another link is up."""
    coherence = coherence_of(proxy)

    def up() -> bool:
        return coherence._following not in (None, before) and coherence._state is None and coherence.serving

    until(up, lambda: str(coherence.report()))
    with proxy.connect(prepare_threshold=None) as connection:
        row = connection.execute(READ).fetchone()
    assert row is not None
    return int(row[0])


def recovered(make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, *, muted: bool) -> tuple[int, int, int]:
    """A backend is killed and the server recovers by itself. → the first read after it, a hit, and the truth."""
    server = make_postgres(options={"wal_writer_delay": "10s", "synchronous_commit": "off"}, fresh=True)
    database = Database(server, "postgres")
    database.execute(*STOCK)
    with pytest.MonkeyPatch.context() as patch:
        flush = Probe.flush
        patch.setattr(Probe, "flush", lambda self: False)  # as where our role may not write to the log
        proxy = make_inner_proxy(server.url(), PATIENT)
        if muted:
            mute_epochs(patch)
        database.execute("CHECKPOINT")
        started = database.execute("SELECT pg_postmaster_start_time()")
        before = coherence_of(proxy)._following
        with psycopg.connect(server.conninfo(), autocommit=True) as writer:
            writer.execute("UPDATE stock SET value = 2")
            assert hot(proxy) == 2
            ready = server.log().count(READY)
            os.kill(writer.info.backend_pid, signal.SIGKILL)
            until(lambda: server.log().count(READY) > ready, server.log)
        patch.setattr(Probe, "flush", flush)  # what could be lost is lost
        found = after(proxy, before), hot(proxy)
        (truth,) = database.execute(READ)[0]
        assert database.execute("SELECT pg_postmaster_start_time()") == started
    return *found, truth


@kept_and_muted
def test_crash_recovery_under_one_postmaster(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, muted: bool
) -> None:
    """Coherence trap 14: a commit that was read is gone; timeline and postmaster are the same."""
    found = recovered(make_postgres, make_inner_proxy, muted=muted)
    for _ in range(4):
        if found[2] == 1:
            break
        assert found == (2, 2, 2), "the log was written in time, so nothing was lost: once more"
        found = recovered(make_postgres, make_inner_proxy, muted=muted)
    assert found == ((2, 2, 1) if muted else (1, 1, 1))


@kept_and_muted
def test_a_rewind_to_an_older_copy(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    muted: bool,
) -> None:  # fmt: skip
    """Coherence trap 19: a copy of the data directory is put back. System identifier and timeline are the same."""
    server = make_postgres(fresh=True)
    database = Database(server, "postgres")
    database.execute(*STOCK)
    server.stop()
    copy = server.data_dir.with_name("copy")
    subprocess.run(["cp", "-a", server.data_dir, copy], check=True)
    server.start()
    proxy = make_inner_proxy(server.url(), PATIENT)
    before = coherence_of(proxy)._following
    identity = coherence_of(proxy).identity
    database.execute("UPDATE stock SET value = 2")
    assert hot(proxy) == 2
    if muted:
        mute_epochs(monkeypatch)
    server.stop("immediate")
    shutil.rmtree(server.data_dir)
    copy.rename(server.data_dir)
    server.start()
    assert after(proxy, before) == (2 if muted else 1)
    assert hot(proxy) == (2 if muted else 1)
    now = coherence_of(proxy).identity
    assert identity is not None and now is not None
    assert (identity.system_identifier, identity.timeline) == (now.system_identifier, now.timeline)


@kept_and_muted
def test_failover_to_a_promoted_standby(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 19: the same address leads to a standby that never got the last commit; its timeline is new."""
    primary = make_postgres(fresh=True)
    old = Database(primary, "postgres")
    old.execute(*STOCK)
    standby = make_postgres(fresh=True, standby_of=primary)
    new = Database(standby, "postgres")
    until(lambda: new.execute("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == [(1,)])
    assert new.execute(READ) == [(1,)]
    with Relay(primary.port, only=b"") as relay:
        proxy = make_inner_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/postgres", PATIENT)
        before, identity = coherence_of(proxy)._following, coherence_of(proxy).identity
        new.execute("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        until(lambda: new.execute("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)], "it goes on receiving")
        # Some more log than the standby will have: what dates the entry lies beyond everything that it ever reaches.
        for _ in range(2):
            old.execute("CREATE TABLE lost (a int)", "DROP TABLE lost", "SELECT pg_switch_wal()")
        old.execute("UPDATE stock SET value = 2")
        assert hot(proxy) == 2
        if muted:
            mute_epochs(monkeypatch)
        primary.stop("immediate")
        new.execute("SELECT pg_promote()")
        until(lambda: new.execute("SELECT pg_is_in_recovery()") == [(False,)], "never promoted")
        relay.target = standby.port
        relay.cut(everything=True)
        assert after(proxy, before) == (2 if muted else 1)
        assert hot(proxy) == (2 if muted else 1)
        now = coherence_of(proxy).identity
        assert identity is not None and now is not None
        assert identity.system_identifier == now.system_identifier
        assert identity.timeline < now.timeline
        if not muted:
            new.execute("UPDATE stock SET value = 3")
            with proxy.connect(prepare_threshold=None) as connection:
                until(lambda: connection.execute(READ).fetchone() == (3,), "the new stream is not followed")


def test_a_standby_that_is_not_promoted_yet_is_passed_through(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy
) -> None:
    """Coherence trap 13: the address moves to a lagging replica; nothing of it is stored, and writes say what it is."""
    primary = make_postgres(fresh=True)
    old = Database(primary, "postgres")
    old.execute(*STOCK)
    standby = make_postgres(fresh=True, standby_of=primary)
    with Relay(primary.port, only=b"") as relay:
        proxy = make_inner_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/postgres", PATIENT)
        assert hot(proxy) == 1
        relay.target = standby.port
        relay.cut(everything=True)
        until(lambda: coherence_of(proxy).reason == "in_recovery", lambda: str(coherence_of(proxy).report()))
        with proxy.connect(prepare_threshold=None) as connection:
            for _ in range(5):
                assert connection.execute(READ).fetchone() == (1,)
                assert last(connection)["status"] == "bypass"
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("UPDATE stock SET value = 2")
        relay.target = primary.port
        relay.cut(everything=True)
        until(proxy.settled, lambda: str(coherence_of(proxy).report()))
        assert hot(proxy) == 1


# ---- slots ----------------------------------------------------------------------------------------------------------


async def run(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(database.execute, *statements)


async def test_a_slot_lost_to_max_slot_wal_keep_size(make_postgres: MakePostgres) -> None:
    """A transaction that stays open holds our slot back until the server takes it away."""
    server = make_postgres(options={"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0"}, fresh=True)
    database = await asyncio.to_thread(create_database, server, "lost")
    await run(database, *STOCK, "CREATE TABLE other (a int)")
    async with following(server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        long = await connect(database.conninfo())
        await long.execute("BEGIN; INSERT INTO other VALUES (1)")
        for _ in range(5):
            await run(database, "INSERT INTO other VALUES (2)", "SELECT pg_switch_wal()")
        await run(database, "UPDATE stock SET value = 2", "CHECKPOINT")
        await eventually(lambda: followed.coherence.epoch != held.epoch, followed.coherence.report)
        assert "release replication slot" in server.log()
        assert not followed.valid(held)
        await eventually(lambda: followed.coherence.reason == "slot_waits", followed.coherence.report)
        await long.execute("COMMIT")
        await long.close()
        await followed.serving()
        again = await followed.filled(READ, "stock")
        assert again.rows == [(2,)]
        assert not followed.valid(held)


async def test_a_slot_that_is_dropped_is_made_anew(database: Database) -> None:
    await run(database, *STOCK)
    mine = f"FROM pg_replication_slots WHERE database = '{database.name}'"
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        before = await run(database, f"SELECT slot_name {mine}")
        await run(
            database, f"SELECT pg_terminate_backend(active_pid, 10000) {mine}",
            f"SELECT pg_drop_replication_slot(slot_name) {mine} AND NOT active", "UPDATE stock SET value = 2",
        )  # fmt: skip
        await eventually(lambda: followed.coherence.epoch != held.epoch, followed.coherence.report)
        await followed.serving()
        assert not followed.valid(held)
        now = await run(database, f"SELECT slot_name {mine}")
        assert len(now) == 1
        assert now != before
        assert (await followed.filled(READ, "stock")).rows == [(2,)]


def test_a_paused_change_stream_ends_hits_when_its_proof_is_old(
    database: Database, make_inner_proxy: MakeInnerProxy
) -> None:
    """The walsender is stopped: nothing fails, nothing arrives, and no proof of freshness either."""
    database.execute(*STOCK)
    proxy = make_inner_proxy(database.url())
    assert hot(proxy) == 1
    following_now = coherence_of(proxy)._following
    assert following_now is not None
    os.kill(following_now.reader.pid, signal.SIGSTOP)
    try:
        database.execute("UPDATE stock SET value = 2")
        with proxy.connect(prepare_threshold=None) as connection:

            def outdated() -> bool:
                connection.execute(READ)
                return bool(last(connection)["status"] != "hit" and last(connection)["reason"] == "not_fresh")

            until(outdated, lambda: f"an old proof is believed: {last(connection)}")
            for _ in range(20):  # and it stays so
                assert connection.execute(READ).fetchone() == (2,)
                assert last(connection)["status"] != "hit"
    finally:
        os.kill(following_now.reader.pid, signal.SIGCONT)
    assert hot(proxy) == 2


async def test_a_long_transaction_does_not_stop_hits(database: Database) -> None:
    """It is open for as long as it likes; what it does counts when it commits."""
    await run(database, *STOCK, "CREATE TABLE other (a int)")
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        long = await connect(database.conninfo())
        await long.execute("BEGIN; UPDATE stock SET value = 2; INSERT INTO other VALUES (0)")
        for number in range(20):
            await run(database, f"INSERT INTO other VALUES ({number})")
            assert await followed.strictly(held), "somebody else's open transaction ended a hit"
        await long.execute("SAVEPOINT a; DELETE FROM stock; ROLLBACK TO a")
        assert await followed.strictly(held)
        await long.execute("COMMIT")
        assert not await followed.strictly(held)
        await long.close()


def test_a_cache_that_holds_next_to_nothing_is_right(database: Database, make_proxy: MakeProxy) -> None:
    """Memory for a few entries, reads of many rows, writes between them."""
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, body text)",
        "INSERT INTO item SELECT i, repeat('x', 1000) || i FROM generate_series(1, 200) i",
    )
    proxy = make_proxy(database.url(), {"l1.size": "64KB", "l1.max_entry": "16KB"})
    with proxy.connect(prepare_threshold=None) as connection, database.connect() as direct:
        for turn in range(3):
            for number in range(1, 200):
                sql = f"SELECT body FROM item WHERE id = {number if number % 3 else 1}"
                assert connection.execute(sql).fetchone() == direct.execute(sql).fetchone()
            connection.execute("UPDATE item SET body = body || %s", [turn])
        found = proxy.statistics()
    assert found["evictions_total"] > 0
    assert found["hits_total"] > 0
    assert found["l1_bytes"] <= 64 * 1024
