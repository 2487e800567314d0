"""Our slot is taken away, or may not be: what was held before a hole in the stream is never served behind it.

The slot is temporary and in use for as long as the stream lives. So the server itself refuses most of what would end
it, and says so; here each refusal is tried, since the stream's coverage rests on it. What remains:

* ``max_slot_wal_keep_size`` (``test_server_faults``) ends the walsender and then the slot, and so does
  ``pg_terminate_backend`` of the walsender: the connection ends, which is a new epoch.
* A restart ends it, and after one there may be no slot to be had: ``wal_level``, ``max_replication_slots`` and
  ``max_wal_senders`` can be changed by a restart only. Then everything goes to the server, and the reason is named.
* ``idle_replication_slot_timeout`` (from 18 on) invalidates slots that nobody uses: never one that is in use.

Impossible: what happens on standbys only, ``rows_removed`` (a conflict with recovery) and ``wal_level_insufficient``
(the primary has lowered its ``wal_level``), since nothing of a server in recovery is cached. It is never synchronised
to a standby, and never outlives a crash: it is temporary. One that is kept for a warm restart is a matter of
``test_warm_restart``, but for that timeout.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database
from fix_proxy import InnerProxy, MakeInnerProxy
from followed import Followed, Held, eventually, following
from inside import coherence_of

from distribcache.clock import now_ns

READ = "SELECT value FROM stock"
STOCK = ("CREATE TABLE stock (value int)", "INSERT INTO stock VALUES (1)")


async def run(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(database.execute, *statements)


async def slot_of(database: Database) -> str:
    [(name, temporary, active)] = await run(
        database,
        f"SELECT slot_name, temporary, active FROM pg_replication_slots WHERE database = '{database.name}'"
        " AND slot_name <> 'forgotten'",
    )
    assert temporary and active
    return str(name)


async def goes_on(followed: Followed, database: Database, held: Held) -> None:
    """The same epoch, and a change is still told."""
    assert followed.coherence.epoch == held.epoch
    assert await followed.strictly(held)
    await run(database, "UPDATE stock SET value = value + 1")
    assert not await followed.strictly(held)
    assert followed.coherence.epoch == held.epoch


TAKEN = {
    "dropped": "SELECT pg_drop_replication_slot('{slot}')",
    "advanced": "SELECT pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())",
    "read by another": "SELECT pg_logical_slot_get_changes('{slot}', NULL, NULL)",
    "peeked by another": "SELECT pg_logical_slot_peek_changes('{slot}', NULL, NULL)",
}


@pytest.mark.parametrize("how", TAKEN)
async def test_a_slot_in_use_cannot_be_taken_away(database: Database, how: str) -> None:
    await run(database, *STOCK)
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        slot = await slot_of(database)
        with pytest.raises(psycopg.errors.ObjectInUse, match="is active for PID"):
            await run(database, TAKEN[how].format(slot=slot))
        assert await slot_of(database) == slot
        await goes_on(followed, database, held)


async def test_nor_with_its_database(database: Database) -> None:
    await run(database, *STOCK)
    async with following(database.server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        with (
            psycopg.connect(database.server.conninfo(), autocommit=True) as other,
            pytest.raises(psycopg.errors.ObjectInUse, match="is used by an active logical replication slot"),
        ):
            other.execute(f"DROP DATABASE {database.name} WITH (FORCE)".encode())
        assert followed.coherence.epoch == held.epoch
        await goes_on(followed, database, held)


async def test_nor_by_a_timeout_of_idle_slots(make_postgres: MakePostgres) -> None:
    """An older slot that nobody uses is invalidated at a checkpoint, ours at the same checkpoint is not."""
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "idle")
    if (await run(database, "SELECT 1 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'")) == []:
        pytest.skip("this server knows no such timeout")
    await run(database, *STOCK)
    async with following(server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        slot = await slot_of(database)
        await run(
            database, "SELECT pg_create_logical_replication_slot('forgotten', 'test_decoding')",
            "ALTER SYSTEM SET idle_replication_slot_timeout = '1s'", "SELECT pg_reload_conf()",
        )  # fmt: skip

        async def invalidated() -> bool:
            # A checkpoint that has nothing to do may be left out.
            await run(database, "SELECT pg_logical_emit_message(true, 'other', '')", "CHECKPOINT")
            rows = await run(
                database, "SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = 'forgotten'"
            )
            return rows == [("idle_timeout",)]

        for _ in range(200):
            if await invalidated():
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the idle slot is still there")
        rows = await run(
            database, f"SELECT active, invalidation_reason FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )
        assert rows == [(True, None)]
        await run(database, "SELECT pg_drop_replication_slot('forgotten')")
        coverage, behind = followed.coherence.coverage, now_ns()

        def settled() -> bool:
            """A reload of the settings is looked at twice."""
            followed.coherence.note_traffic()
            return coverage.quick_at > behind and coverage.serving and not coverage.settle_at

        await eventually(settled, followed.coherence.report)
        assert followed.coherence.epoch == held.epoch
        await goes_on(followed, database, await followed.filled(READ, "stock"))


LOWERED = {
    "wal_level": ({"wal_level": "replica"}, "wal_level"),
    "slots": ({"max_replication_slots": "1"}, "no_free_slot"),
    "senders": ({"max_wal_senders": "1"}, "no_free_slot"),
}


@pytest.mark.parametrize("what", LOWERED)
async def test_a_restart_after_which_there_is_no_slot(make_postgres: MakePostgres, what: str) -> None:
    """What is written meanwhile was never seen: nothing of before is served when there is a slot again."""
    lowered, reason = LOWERED[what]
    server = make_postgres(fresh=True)
    before = {name: server.options[name] for name in lowered}
    database = await asyncio.to_thread(create_database, server, "lowered")
    await run(database, *STOCK)
    async with following(server.conninfo(), database.name) as followed:
        held = await followed.filled(READ, "stock")
        await asyncio.to_thread(server.restart, options=lowered)
        await eventually(lambda: followed.coherence.reason == reason, followed.coherence.report)
        assert not followed.coherence.serving
        assert followed.coherence.fill_point() is None
        assert not followed.valid(held)
        await run(database, "UPDATE stock SET value = 2")
        await asyncio.to_thread(server.restart, options=before)
        await followed.serving()
        await followed.reconnect(database.conninfo())
        assert followed.coherence.epoch != held.epoch
        assert not followed.valid(held)
        assert (await followed.filled(READ, "stock")).rows == [(2,)]


async def test_a_kept_slot_that_idled_too_long_is_begun_anew(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, tmp_path: Path
) -> None:
    """Between two runs nobody uses the slot that is kept for a warm restart: there the timeout does concern it."""
    server = make_postgres(fresh=True, options={"max_slot_wal_keep_size": "1GB"})
    database = await asyncio.to_thread(create_database, server, "kept")
    if (await run(database, "SELECT 1 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'")) == []:
        pytest.skip("this server knows no such timeout")
    await run(
        database, *STOCK, "ALTER SYSTEM SET idle_replication_slot_timeout = '1s'", "SELECT pg_reload_conf()"
    )  # fmt: skip
    settings = {
        "freshness.slot": "persistent", "l2.path": str(tmp_path / "l2"), "freshness.hit_wait": "2s",
        "freshness.max_staleness": "5s",
    }  # fmt: skip

    def value(proxy: InnerProxy) -> tuple[Any, ...] | None:
        with proxy.connect() as connection:
            return connection.execute(READ).fetchone()

    first = await asyncio.to_thread(make_inner_proxy, database.url(), settings)
    assert await asyncio.to_thread(value, first) == (1,)
    await asyncio.to_thread(first.stop)
    for _ in range(200):
        await run(database, "SELECT pg_logical_emit_message(true, 'other', '')", "CHECKPOINT")
        if await run(database, "SELECT 1 FROM pg_replication_slots WHERE invalidation_reason = 'idle_timeout'"):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("the kept slot is still there")
    await run(database, "UPDATE stock SET value = 2")
    second = await asyncio.to_thread(make_inner_proxy, database.url(), settings)
    coherence = coherence_of(second)
    assert coherence._keeping is not None
    assert coherence._keeping.why == "slot_lost", second.log
    assert await asyncio.to_thread(value, second) == (2,)
    await asyncio.to_thread(second.stop)
