"""The traps of the stream, the ledger and the catalogue, each with its rule muted beside it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from followed import connect, eventually, following
from muted import kept_and_muted
from rowtags import settled
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.coherence import catalogue as catalogue_module
from distribcache.coherence import link as link_module
from distribcache.coherence import reader as reader_module
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.database import Databases
from distribcache.coherence.decoding import Commit
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.ledger import SCHEMA, Ledger, W
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.probe import Probe
from distribcache.coherence.ttl import TtlOnly


async def run(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(database.execute, *statements)


class Zeros:
    """Feedback that never says how far it is."""

    def pack(self, kind: bytes, *fields: Any) -> bytes:
        written, flushed, applied, micros, ask = fields
        return PLAIN.pack(kind, written * 0, flushed * 0, applied * 0, micros, ask)


PLAIN = reader_module._STATUS


@kept_and_muted
async def test_trap_3_feedback_of_zeros_blocks_a_shutdown(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 3. Muted: the server waits for a position that never comes, until somebody kills it.

    The probe is the first to be sent away, and then all of the link is closed. Here the reader stays alone.
    """
    monkeypatch.setattr(DatabaseCoherence, "_lose", lambda self, state: None)
    if muted:
        monkeypatch.setattr(reader_module, "_STATUS", Zeros())
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "zeros")
    async with following(server.conninfo(), database.name) as followed:
        await run(database, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
        await followed.filled("SELECT v FROM t", "t")
        await asyncio.to_thread(server.stop, "fast", timeout_s=4 if muted else 30)
        assert ("received immediate shutdown request" in server.log()) is muted


_ROWS = re.compile(r"coalesce\(bit_xor\(hash_record_extended\(ROW\([^)]*\), 0\)\), 0\) # count\(\*\)")
_HIGHEST = "coalesce(max((SELECT max(c.xmin::text::bigint) FROM pg_class c)), 0)"


def blind() -> str:
    """The question for the fingerprint, with the highest xmin of the relations in place of every row."""
    text, found = _ROWS.subn(_HIGHEST, catalogue_module.PREPARE_SQL)
    assert found > 10, "the fingerprint is asked for in another way"
    return text


CHANGES = {
    "a renamed value": ("SELECT m::text FROM t", "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'"),
    "a text search configuration": (
        "SELECT m FROM t WHERE to_tsvector('search', 'a') IS NOT NULL",
        "ALTER TEXT SEARCH CONFIGURATION search DROP MAPPING FOR word",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@kept_and_muted
async def test_trap_5_a_change_that_few_catalogues_do_not_show(
    database: Database, monkeypatch: pytest.MonkeyPatch, change: str, muted: bool
) -> None:
    """Coherence trap 5. Muted: the fingerprint is the highest xmin of the relations."""
    if muted:
        monkeypatch.setattr(catalogue_module, "PREPARE_SQL", blind())
    sql, ddl = CHANGES[change]
    await run(database, "CREATE TYPE mood AS ENUM ('ok')", "CREATE TABLE t (m mood)", "INSERT INTO t VALUES ('ok')",
              "CREATE TEXT SEARCH CONFIGURATION search (COPY = english)")  # fmt: skip
    async with following(database.server.conninfo(), database.name) as followed:
        await settled(followed)
        held = await followed.filled(sql, "t")
        assert await followed.strictly(held)
        await run(database, ddl)
        assert await followed.strictly(held) is muted


@kept_and_muted
def test_trap_17_no_row_ends_everything_by_chance(monkeypatch: pytest.MonkeyPatch, muted: bool) -> None:
    """Coherence trap 17. Muted: rows are hashed over all slots, the one of the schema among them."""
    if muted:
        plain = Ledger.hashed

        def anywhere(self: Ledger, prefix: bytes, values: Any) -> int:
            return SCHEMA + (plain(self, prefix, values) - self.rows_at) % (len(self.words) - SCHEMA)

        monkeypatch.setattr(Ledger, "hashed", anywhere)
    ledger = Ledger(64, 1024)
    ledger.open(100)
    table = ledger.slot_of(1, 100)
    for number in range(20_000):
        ledger.bump(ledger.row_slot(2, ("id",), (b"%d" % number,)), 200)
    assert (ledger.words[SCHEMA] == 200) is muted
    assert (ledger.words[table] == 200) is muted


class Watched:
    """The words of a ledger as another process would see them: ``see`` is called after each store."""

    def __init__(self, words: memoryview, see: Any) -> None:
        self.words = words
        self.see = see

    def __getitem__(self, at: int) -> int:
        return int(self.words[at])

    def __setitem__(self, at: int, value: int) -> None:
        self.words[at] = value
        self.see()


ORDERS = ["W before the slots", "a keepalive before the commit"]


@pytest.mark.parametrize("order", ORDERS)
@kept_and_muted
def test_trap_18_the_ledger_claims_nothing_that_it_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, order: str, muted: bool
) -> None:
    """Coherence trap 18: after each single store, if W has passed a commit its slot shows it.

    One process reads these words today. The order is kept all the same, for workers that will share them.
    """
    plain = Coverage.commit
    if muted and order == ORDERS[0]:

        def early(self: Coverage, commit: Commit) -> None:
            self.ledger.words[W] = commit.lsn
            plain(self, commit)

        monkeypatch.setattr(Coverage, "commit", early)
    ledger = Ledger(64, 64)
    coverage = Coverage(ledger, Freshness(), full_poll_ns=1 << 40, quick_poll_ns=1 << 40)
    coverage.begin(1000)
    coverage.alarms.pending.clear()
    coverage.relations.by_name[b"public.t"] = (1,)
    slot = ledger.slot_of(1, 1000)
    wrong: list[int] = []
    words = ledger.words

    def see() -> None:
        if words[W] >= 2000 > words[slot]:
            wrong.append(words[W])

    ledger.words = Watched(words, see)  # type: ignore[assignment]
    stream = [lambda: coverage.commit(Commit(7, 2000, frozenset({b"public.t"}), False, False, 1)),
              lambda: coverage.position(3000)]  # fmt: skip
    for message in reversed(stream) if muted and order == ORDERS[1] else stream:
        message()
        coverage.publish()
    assert (words[W], words[slot]) == (3000, 2000)
    assert bool(wrong) is muted


@kept_and_muted
async def test_trap_21_an_answer_speaks_for_the_time_of_its_question(
    database: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 21: one probe dates everything. Muted: it is dated by its arrival, and covers a later commit."""
    await run(database, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    async with following(database.server.conninfo(), database.name) as followed:
        await settled(followed)
        plain = Probe._complete
        held = await followed.filled("SELECT v FROM t", "t")
        moments: list[bool] = []
        armed: list[bool] = []

        def complete(self: Probe, result: Any) -> None:
            if not armed or not self.asked_at or self._flushing:
                plain(self, result)
                return
            armed.clear()
            database.execute("UPDATE t SET v = v + 1")  # the server has answered; we have not looked yet
            floor = now_ns()
            if muted:
                self.asked_at = floor
            plain(self, result)
            moments.append(followed.valid(held, floor))

        monkeypatch.setattr(Probe, "_complete", complete)
        # What the server logs by itself puts off the moment at which an answer counts.
        for _ in range(40 if muted else 5):
            held = await followed.filled("SELECT v FROM t", "t")
            armed.append(True)
            followed.coherence.wait_fresh(now_ns(), 10)
            await eventually(lambda: not armed)
            assert await followed.coherence.wait_fresh(now_ns(), 60)
            if any(moments):
                break
        assert any(moments) is muted


@kept_and_muted
def test_trap_22_slots_stay_free_for_others(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 22. Muted: the cache takes one of two slots, and the second standby finds none."""
    if muted:
        monkeypatch.setattr(link_module, "_FREE", 0)
    server = make_postgres(options={"max_replication_slots": "2"})
    reached: list[str] = []

    def decided(self: InnerProxy) -> bool:
        reached[:] = [each.reason for each in self.proxy.databases]
        return reached in (["no_free_slot"], [""])

    monkeypatch.setattr(InnerProxy, "settled", decided)
    make_inner_proxy(server.url())
    assert reached == ([""] if muted else ["no_free_slot"])
    with psycopg.connect(server.conninfo(), autocommit=True) as standbys:
        standbys.execute("SELECT pg_create_physical_replication_slot('one', false, true)")
        try:
            standbys.execute("SELECT pg_create_physical_replication_slot('two', false, true)")
            refused = False
        except psycopg.errors.ConfigurationLimitExceeded:
            refused = True
    assert refused is muted


@kept_and_muted
async def test_trap_23_a_read_that_prunes_moves_the_insert_position(
    make_postgres: MakePostgres, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 23. Muted: nobody flushes, and ``strict`` waits for the WAL writer."""
    server: Postgres = make_postgres(options={"wal_writer_delay": "10s", "checkpoint_timeout": "1h"})
    database = await asyncio.to_thread(create_database, server, "prune")
    await run(database, "CREATE TABLE h (id int, v int)", "INSERT INTO h SELECT i, 0 FROM generate_series(1, 200) i")
    async with following(server.conninfo(), database.name) as followed:
        await settled(followed)
        following_now = followed.coherence._following
        assert following_now is not None
        following_now.probe.may_flush = not muted
        reads = await connect(database.conninfo())
        found: list[bool] = []
        pruned = 0
        for _ in range(40 if muted else 8):
            await run(database, "UPDATE h SET v = v + 1", "UPDATE h SET v = v + 1")
            assert await followed.coherence.wait_fresh(now_ns(), 60)
            await reads.execute("SELECT count(*) FROM h")
            behind = "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()"
            row = await (await reads.execute(behind)).fetchone()
            assert row is not None
            pruned += row[0]
            found.append(await followed.coherence.wait_fresh(now_ns(), 0.5 if muted else 60))
            if muted and row[0] and not found[-1]:
                break
        await reads.close()
        assert pruned, "the trap itself is gone: a count(*) writes no log"
        assert all(found) is not muted


@kept_and_muted
def test_trap_25_a_stock_server_is_not_quietly_cached_by_time(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 25. Muted: where there is no stream, time ends entries, and readers see old rows."""
    if muted:
        monkeypatch.setattr(
            Databases, "_make", lambda self, name: TtlOnly(self._conninfo, name, self._options, self._log)
        )
    monkeypatch.setattr(InnerProxy, "settled", lambda self: True)
    server = make_postgres(options={"wal_level": "replica"})
    database = create_database(server, "stock")
    database.execute("CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
    proxy = make_inner_proxy(database.url())
    with proxy.connect() as connection:

        def decided() -> bool:
            connection.execute("SELECT v FROM t")
            found = last(connection)
            return bool(found["status"] == "hit" if muted else found["reason"] == "wal_level")

        until(decided, lambda: str(last(connection)))
        database.execute("UPDATE t SET v = 2")
        assert connection.execute("SELECT v FROM t").fetchone() == ((1,) if muted else (2,))
