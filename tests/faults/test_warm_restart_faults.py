"""Warm restarts, and servers that crash or shut down, and full disks (coherence rule R8, traps 3 and 14)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from followed import eventually, following
from inside import coherence_of, prove, warm_of
from muted import kept_and_muted
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence import catalogue as catalogue_module
from distribcache.coherence.keeping import Keeping
from distribcache.coherence.keptfile import KeptFile
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.probe import Probe
from distribcache.coherence.reader import Reader
from distribcache.store import Store
from distribcache.tiers.warm import WarmCache

ROWS = 30
READ = "SELECT id, value, repeat('x', 1200) AS pad FROM stock WHERE id = %s"
OTHER = "SELECT id, value, repeat('y', 1200) AS pad FROM stock WHERE id = %s"
SETTINGS = {
    "freshness.hit_wait": "2s", "freshness.max_staleness": "30s", "freshness.slot": "persistent", "audit.sample": "0",
    "ttl.oltp": "30min",
}  # fmt: skip
ASYNCHRONOUS = {"wal_writer_delay": "10s", "synchronous_commit": "off", "max_slot_wal_keep_size": "1GB"}

_COUNTERS = re.compile(r"\((?:[ +]*pg_stat_get_tuples_\w+\([^)]*\)(?: \* \d+)?)+\)")

MakeNode = Callable[[], InnerProxy]


def shop(server: Postgres) -> Database:
    database = create_database(server, "shop")
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        f"INSERT INTO stock SELECT i, 1 FROM generate_series(1, {ROWS}) i",
        "CHECKPOINT",
    )
    return database


def values(proxy: InnerProxy, sql: str = READ) -> list[int]:
    with proxy.connect() as connection:
        rows = [connection.execute(sql, (number,)).fetchone() for number in range(1, ROWS + 1)]
    return [int(row[1]) for row in rows if row is not None]


def fill(proxy: InnerProxy) -> None:
    before = warm_of(proxy).stats().puts

    def written() -> bool:
        values(proxy)
        prove(proxy)
        return warm_of(proxy).stats().puts >= before + ROWS

    until(written, lambda: str(warm_of(proxy).stats()))


def crash(database: Database, victim: psycopg.Connection[Any]) -> None:
    """Kill a backend; the postmaster restarts all others and recovers."""
    before = database.server.log().count("database system is ready to accept connections")
    os.kill(victim.info.backend_pid, signal.SIGKILL)
    until(
        lambda: database.server.log().count("database system is ready to accept connections") > before,
        database.server.log,
    )


def up_again(proxy: InnerProxy, link: object) -> None:
    coherence = coherence_of(proxy)
    until(
        lambda: coherence._following not in (None, link) and coherence._state is None and coherence.serving,
        lambda: str(coherence.report()),
    )


def round_of(
    server: Postgres, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, *, up: bool, muted: bool
) -> tuple[int, int, int, list[str]]:
    """Commits that clients have seen are lost. → how many, wrong answers afterwards, hits from L2, the log.

    A crash resets counters that the fingerprint has, so in truth all is begun anew. That is no part of what is shown.
    """
    database = shop(server)
    with monkeypatch.context() as patch:
        patch.setattr(catalogue_module, "PREPARE_SQL", _COUNTERS.sub("0", catalogue_module.PREPARE_SQL))
        if muted:
            patch.setattr(Store, "settle", lambda self: [self._give(self._next()) for _ in range(len(self._waiting))])
        first = make_node()
        fill(first)
        flush = Probe.flush
        patch.setattr(Probe, "flush", lambda self: False)  # as where our role may not write to the log
        link = coherence_of(first)._following
        with database.connect() as writer:
            writer.execute("UPDATE stock SET value = 2 WHERE id <= 10")
            assert values(first, OTHER)[:10] == [2] * 10
            if muted:
                until(lambda: warm_of(first).stats().puts >= 2 * ROWS, lambda: str(warm_of(first).stats()))
            if up:
                crash(database, writer)
                patch.setattr(Probe, "flush", flush)  # what could be lost is lost
                up_again(first, link)
                truth = [row[0] for row in database.execute("SELECT value FROM stock ORDER BY id")]
                assert values(first) == values(first, OTHER) == truth
            else:
                first.stop()
                crash(database, writer)
        patch.setattr(Probe, "flush", flush)
        first.stop()
        second = make_node()
    truth = [row[0] for row in database.execute("SELECT value FROM stock ORDER BY id")]
    wrong = hits = 0
    with second.connect() as connection:
        for sql in (READ, OTHER):
            for number, value in enumerate(truth, 1):
                row = connection.execute(sql, (number,)).fetchone()
                assert row is not None
                wrong += row[1] != value
                hits += last(connection)["tier"] == "L2"
    second.stop()
    return truth[:10].count(1), wrong, hits, second.log


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize(
    "muted", [pytest.param(False, id="kept"), pytest.param(True, id="muted", marks=pytest.mark.sabotage)]
)
def test_what_a_crash_takes_back_is_not_in_l2(
    make_postgres: MakePostgres, tmp_path: Path, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch,
    up: bool, muted: bool,
) -> None:  # fmt: skip
    """Rule 7, with the proxy up or down meanwhile. Muted: answers go down before they are settled.

    Where the proxy is up it has noticed, and nothing goes on from there, settled or not.
    """
    for attempt in range(5):
        server = make_postgres(options=ASYNCHRONOUS, fresh=True)

        def make(attempt: int = attempt, server: Postgres = server) -> InnerProxy:
            with psycopg.connect(server.conninfo()) as connection:
                row = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'shop%'").fetchone()
            assert row is not None
            return make_inner_proxy(server.url(row[0]), {**SETTINGS, "l2.path": str(tmp_path / f"l2-{attempt}")})

        lost, wrong, hits, said = round_of(server, make, monkeypatch, up=up, muted=muted)
        server.close()
        if lost:
            break
    assert lost == 10, "the log was always written in time"
    assert (wrong > 0) == (muted and not up), (wrong, hits, said)
    assert up or hits >= ROWS // 2, said


def test_a_storm_of_crashes(
    make_postgres: MakePostgres, tmp_path: Path, make_inner_proxy: MakeInnerProxy
) -> None:
    """Asynchronous commits in flight, a killed backend, restarts of the proxy in between: never a wrong answer."""
    server = make_postgres(options={**ASYNCHRONOUS, "wal_writer_delay": "200ms"}, fresh=True)
    database = shop(server)
    chosen = random.Random(7)
    wrong = hits = 0
    for turn in range(4):
        proxy = make_inner_proxy(database.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2")})
        ended = threading.Event()

        def write(ended: threading.Event = ended, seed: int = turn) -> None:
            numbers = random.Random(seed)
            with contextlib.suppress(psycopg.Error), database.connect() as connection:
                while not ended.is_set():
                    connection.execute("UPDATE stock SET value = value + 1 WHERE id = %s", (numbers.randint(1, 10),))
                    ended.wait(0.005)

        def reads(ended: threading.Event = ended, proxy: InnerProxy = proxy) -> None:
            while not ended.is_set():
                with contextlib.suppress(psycopg.Error, AssertionError):
                    values(proxy)

        workers = [threading.Thread(target=each, daemon=True) for each in (write, reads)]
        for each in workers:
            each.start()
        tier = warm_of(proxy)

        def written(proxy: InnerProxy = proxy, tier: WarmCache = tier) -> bool:
            prove(proxy)
            return tier.stats().puts + tier.stats().hits > ROWS // 2

        until(written, "nothing was ever written")
        down = bool(turn % 2)
        with database.connect() as victim:
            if down:
                ended.wait(chosen.random() * 0.2)
                proxy.stop()
            crash(database, victim)
        ended.set()
        for each in workers:
            each.join(60)
        proxy.stop()
        again = make_inner_proxy(database.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2")})
        truth = [row[0] for row in database.execute("SELECT value FROM stock ORDER BY id")]
        found = values(again)
        hits += warm_of(again).stats().hits
        wrong += sum(one != other for one, other in zip(found, truth, strict=True))
        again.stop()
    assert wrong == 0
    assert hits > 0


@kept_and_muted
async def test_a_fast_shutdown_is_not_held_up(
    make_postgres: MakePostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 2: the server waits for the position that we confirm. Muted: it is confirmed when that is due.

    As in trap 3 the reader stays alone: else all of the link is closed when the probe is sent away.
    """
    monkeypatch.setattr(DatabaseCoherence, "_lose", lambda self, state: None)
    server = make_postgres(fresh=True, options={"max_slot_wal_keep_size": "1GB"})
    database = await asyncio.to_thread(create_database, server, "held")
    options = {"slot": "persistent", "keep_at": tmp_path / "l2", "keep_s": 600.0}
    async with following(server.conninfo(), database.name, **options) as followed:
        await asyncio.to_thread(database.execute, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
        await followed.filled("SELECT v FROM t", "t")
        keeping = followed.coherence._keeping
        assert keeping is not None
        await eventually(lambda: keeping.saves > 0)
        await asyncio.to_thread(database.execute, "INSERT INTO t VALUES (2)")
        if muted:
            monkeypatch.setattr(Keeping, "tick", lambda *_: None)
        await asyncio.to_thread(server.stop, "fast", timeout_s=4 if muted else 30)
        assert ("received immediate shutdown request" in server.log()) is muted


@kept_and_muted
async def test_a_state_that_cannot_be_written_holds_nothing_back(
    make_postgres: MakePostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 2: the disk is full. Muted: the server keeps the stream for a state that never comes."""
    server = make_postgres(options={"max_slot_wal_keep_size": "1GB"})
    database = await asyncio.to_thread(create_database, server, "full")
    options = {"slot": "persistent", "keep_at": tmp_path / "l2", "keep_s": 0.1}
    async with following(server.conninfo(), database.name, **options) as followed:
        keeping = followed.coherence._keeping
        assert keeping is not None
        await eventually(lambda: keeping.saves > 0)

        def full(*_: Any) -> bool:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(KeptFile, "write", full)
        if muted:
            monkeypatch.setattr(Keeping, "_give_up", lambda *_: None)
        await asyncio.to_thread(database.execute, "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)")
        at = followed.coherence.ledger.words[2]

        slot = keeping.slot
        question = f"SELECT confirmed_flush_lsn - '0/0' > {at} FROM pg_replication_slots WHERE slot_name = '{slot}'"

        async def confirmed() -> bool:
            return bool((await asyncio.to_thread(database.execute, question))[0][0])

        await eventually(lambda: followed.coherence.ledger.words[2] > at)
        for _ in range(60 if not muted else 15):
            if await confirmed():
                break
            await asyncio.sleep(0.1)
        assert await confirmed() is not muted
        assert not list((tmp_path / "l2").glob("*.state")) or muted
    await asyncio.to_thread(database.execute, f"SELECT pg_drop_replication_slot('{keeping.slot}')")


async def test_what_cannot_be_saved_for_long_is_given_up(
    make_postgres: MakePostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 2: where no state may be saved, the server does not keep more than a part of ``max_wal_lag`` for us."""
    server = make_postgres(options={"max_slot_wal_keep_size": "1GB"})
    database = await asyncio.to_thread(create_database, server, "late")
    options = {"slot": "persistent", "keep_at": tmp_path / "l2", "keep_s": 0.1, "max_wal_lag": 32 << 20}
    async with following(server.conninfo(), database.name, **options) as followed:
        keeping = followed.coherence._keeping
        assert keeping is not None
        await eventually(lambda: keeping.saves > 0)
        monkeypatch.setattr("distribcache.coherence.keeping._is_savable", lambda _: False)
        reader: Reader = followed.coherence._following.reader  # type: ignore[union-attr]
        before = reader.durable
        assert before is not None
        await asyncio.to_thread(
            database.execute, "CREATE TABLE t (v text)",
            *["INSERT INTO t SELECT repeat(md5(i::text), 8) FROM generate_series(1, 15000) i"] * 4,
        )  # fmt: skip
        enough = before + (1 << 20)
        await eventually(lambda: reader.durable is not None and reader.durable > enough, followed.coherence.report)
        assert not list((tmp_path / "l2").glob("*.state"))
    await asyncio.to_thread(database.execute, f"SELECT pg_drop_replication_slot('{keeping.slot}')")
