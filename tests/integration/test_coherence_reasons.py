"""Every state in which nothing is served has a stable reason and the statement that mends it; starting never fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, MakePostgres, create_database
from followed import connect, eventually, following

from distribcache.clock import now_ns
from distribcache.coherence.database import Coherence, DatabaseCoherence, Databases, Options
from distribcache.coherence.ledger import EPOCH
from distribcache.coherence.reasons import REASONS, from_connect_error
from distribcache.errors import UpstreamError


async def reason_of(conninfo: str, name: str, expected: str, **options: Any) -> DatabaseCoherence:
    """Follow until the reason is the expected one; nothing may be served, filled or asked meanwhile."""
    async with following(conninfo, name, wait=False, **options) as followed:
        coherence = followed.coherence
        await eventually(lambda: coherence.reason == expected, coherence.report)
        assert not coherence.serving
        assert coherence.fill_point() is None
        assert coherence.visible() == 0
        assert await coherence.wait_fresh(now_ns(), 0.01) is False
        with pytest.raises(UpstreamError):
            await coherence.ask("SELECT 1")
        assert coherence.detail
        hint = coherence.hint
        report = coherence.report()
    assert report["reason"] == expected
    coherence.__dict__["seen_hint"] = hint
    return coherence


def hint(coherence: DatabaseCoherence) -> str:
    return str(coherence.__dict__["seen_hint"])


async def test_stock_wal_level(make_postgres: MakePostgres) -> None:
    server = make_postgres(options={"wal_level": "replica"})
    coherence = await reason_of(server.conninfo(), "postgres", "wal_level")
    assert "ALTER SYSTEM SET wal_level = 'logical'" in hint(coherence)


async def test_no_replication_privilege_names_the_role(database: Database) -> None:
    role = f"plain_{database.name}"
    await asyncio.to_thread(database.execute, f"CREATE ROLE {role} LOGIN")
    coherence = await reason_of(database.server.conninfo(user=role), database.name, "no_replication_privilege")
    assert f"ALTER ROLE {role} REPLICATION" in hint(coherence)
    await asyncio.to_thread(database.execute, f"ALTER ROLE {role} REPLICATION")
    async with following(database.server.conninfo(user=role), database.name) as followed:
        assert followed.coherence.serving, "a role with nothing but REPLICATION is enough"
    await asyncio.to_thread(database.execute, f"DROP ROLE {role}")


@pytest.mark.parametrize("setting", ["max_replication_slots", "max_wal_senders"])
async def test_two_slots_and_two_senders_stay_free(make_postgres: MakePostgres, setting: str) -> None:
    """Coherence trap 22."""
    few, enough = make_postgres(options={setting: "2"}), make_postgres(options={setting: "3"})
    coherence = await reason_of(few.conninfo(), "postgres", "no_free_slot")
    assert f"ALTER SYSTEM SET {setting}" in hint(coherence)
    async with following(enough.conninfo(), "postgres") as followed:
        assert followed.coherence.serving


async def test_a_server_that_waits_for_any_standby(make_postgres: MakePostgres) -> None:
    """Coherence trap 3."""
    server = make_postgres(options={"synchronous_standby_names": "*"})
    coherence = await reason_of(server.conninfo(), "postgres", "synchronous_standby")
    assert "ALTER SYSTEM SET synchronous_standby_names" in hint(coherence)


async def test_a_forgotten_prepared_transaction_is_named(make_postgres: MakePostgres) -> None:
    """Coherence trap 22."""
    server = make_postgres(fresh=True)
    database = await asyncio.to_thread(create_database, server, "prepared")
    await asyncio.to_thread(
        database.execute, "CREATE TABLE t (v int)", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'forgotten'"
    )
    coherence = await reason_of(server.conninfo(), database.name, "slot_waits", slot_deadline_s=0.5)
    assert "COMMIT PREPARED 'forgotten'" in hint(coherence)


async def test_a_standby_is_refused(make_postgres: MakePostgres) -> None:
    primary = make_postgres(fresh=True)
    standby = make_postgres(standby_of=primary, fresh=True)
    await reason_of(standby.conninfo(), "postgres", "in_recovery")
    await asyncio.to_thread(standby.stop)


async def test_nobody_there() -> None:
    coherence = DatabaseCoherence("host=127.0.0.1 port=1", "postgres", Options(retry_min_s=0.01))
    await coherence.start()
    await eventually(lambda: coherence.reason == "unreachable", coherence.report)
    assert "upstream.url" in coherence.hint
    await coherence.stop()
    assert coherence.reason == "stopped"


async def test_a_wrong_password(make_postgres: MakePostgres) -> None:
    server = make_postgres(hba=["host all secretive 127.0.0.1/32 scram-sha-256"])
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS secretive")
        admin.execute("CREATE ROLE secretive LOGIN REPLICATION PASSWORD 'right'")
    coherence = DatabaseCoherence(server.conninfo(user="secretive", password="wrong"), "postgres")
    await coherence.start()
    await eventually(lambda: coherence.reason == "login_refused", coherence.report)
    assert "wrong" not in str(coherence.report())
    await coherence.stop()
    async with AsyncCoherence(server.conninfo(user="secretive", password="right")) as good:
        await eventually(lambda: good.serving, good.report)


class AsyncCoherence:
    def __init__(self, conninfo: str) -> None:
        self.coherence = DatabaseCoherence(conninfo, "postgres")

    async def __aenter__(self) -> DatabaseCoherence:
        await self.coherence.start()
        return self.coherence

    async def __aexit__(self, *_: object) -> None:
        await self.coherence.stop()


def test_every_reason_has_words_and_a_remedy() -> None:
    for code, (sentence, remedy) in REASONS.items():
        assert code == code.lower()
        assert sentence
        assert remedy
    for text, code in [
        ("FATAL:  permission denied to start WAL sender", "no_replication_privilege"),
        ("FATAL:  must be superuser or replication role to start walsender", "no_replication_privilege"),
        ("FATAL:  number of requested standby connections exceeds max_wal_senders (currently 2)", "no_free_slot"),
        ("FATAL:  sorry, too many clients already", "no_connection"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", "no_connection"),
        ('FATAL:  too many connections for role "x"', "no_connection"),
        ("FATAL:  the database system is starting up", "upstream_down"),
        ('FATAL:  password authentication failed for user "x"', "login_refused"),
        ('FATAL:  database "x" does not exist', "login_refused"),
        ("connection refused", "unreachable"),
    ]:
        assert from_connect_error(psycopg.OperationalError(text), was_up=False).reason == code


# -- several databases


@asynccontextmanager
async def databases(conninfo: str, **options: Any) -> AsyncIterator[Databases]:
    made = Databases(conninfo, Options(retry_min_s=0.02, **options))
    try:
        yield made
    finally:
        await made.stop()


async def serves(coherence: Coherence) -> None:
    await eventually(lambda: coherence.serving, coherence.report)


async def test_a_template_is_never_followed(database: Database) -> None:
    async with databases(database.server.conninfo()) as all_of_them:
        assert all_of_them.acquire("template1").reason == "template_database"
        assert all_of_them.acquire("template0").reason == "template_database"
    await asyncio.to_thread(database.execute, f"ALTER DATABASE {database.name} IS_TEMPLATE true")
    await reason_of(database.server.conninfo(), database.name, "template_database")
    await asyncio.to_thread(database.execute, f"ALTER DATABASE {database.name} IS_TEMPLATE false")


async def test_at_most_so_many(database: Database) -> None:
    async with databases(database.server.conninfo(), max_databases=1) as some:
        first, second = some.acquire(database.name), some.acquire("postgres")
        assert second.reason == "too_many_databases"
        assert some.acquire(database.name) is first
        await serves(first)
        some.release("postgres")
        assert [one.name for one in some] == [database.name]


async def test_it_lingers_and_then_leaves(database: Database) -> None:
    async with databases(database.server.conninfo(), linger_s=0.05) as some:
        first = some.acquire(database.name)
        await serves(first)
        some.release(database.name)
        assert some.acquire(database.name) is first
        some.release(database.name)
        await eventually(lambda: not list(some))
        await eventually(lambda: first.reason == "stopped")
        second = some.acquire(database.name)
        assert second is not first
        await serves(second)


async def test_ddl_on_databases_is_not_hindered(database: Database) -> None:
    name = database.name
    server = database.server
    async with databases(server.conninfo()) as some:
        coherence = some.acquire(name)
        await serves(coherence)
        admin = await connect(server.conninfo())
        with pytest.raises((psycopg.errors.ObjectInUse, psycopg.Error)):
            await admin.execute(f"ALTER DATABASE {name} RENAME TO {name}_x".encode())
        for ddl in (f"CREATE DATABASE {name}_copy TEMPLATE {name}", f"DROP DATABASE {name}_copy"):
            await some.close_for_ddl([name, f"{name}_copy"])
            assert not coherence.serving
            await admin.execute(ddl.encode())
            some.reopen([name, f"{name}_copy"])
            await serves(coherence)
        await some.close_for_ddl([name])
        late = some.acquire(name)  # a client that comes in between does not bring us back
        assert late is coherence
        await admin.execute(f"DROP DATABASE {name}".encode())
        some.reopen([name])
        await eventually(lambda: coherence.reason == "login_refused", coherence.report)
        await admin.execute(f"CREATE DATABASE {name}".encode())
        epoch = coherence.epoch
        await serves(coherence)
        assert coherence.epoch == epoch or coherence.epoch > epoch
        await admin.close()


async def test_an_alarm_in_one_database_is_looked_at_in_all(database: Database) -> None:
    async with databases(database.server.conninfo()) as some:
        first, second = some.acquire(database.name), some.acquire("postgres")
        await serves(first)
        await serves(second)
        looks = second.counters.rereads
        first.catalogue_alarm("proxy")
        await eventually(lambda: second.counters.rereads > looks)
        some.catalogue_alarm("role")
        assert not first.serving
        assert not second.serving
        await serves(second)


async def test_ttl_is_an_explicit_choice_and_says_so(database: Database) -> None:
    async with databases(database.server.conninfo(), invalidation="ttl") as some:
        coherence = some.acquire(database.name)
        assert coherence.mode == "ttl"
        assert coherence.serving
        assert coherence.fill_point()
        assert await coherence.wait_fresh(now_ns(), 0)
        assert await coherence.ask("SELECT %s + 1", [1]) == [(2,)]
        assert coherence.report()["mode"] == "ttl"
        epoch = coherence.words[EPOCH]
        coherence.catalogue_alarm("ddl")
        assert coherence.words[EPOCH] == coherence.epoch != epoch
        slots = await asyncio.to_thread(
            database.execute, f"SELECT * FROM pg_replication_slots WHERE database = '{database.name}'"
        )
        assert slots == []
