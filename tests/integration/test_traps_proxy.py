"""The traps of the proxy with their rules muted: each test shows the harm that ``test_proxy_traps`` finds absent."""

from __future__ import annotations

import gc
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from muted import kept_and_muted
from rawclient import RawClient, run
from wait import until

from distribcache.coherence.database import Databases
from distribcache.coherence.ledger import SCHEMA
from distribcache.entry import TOUCHED, Entry
from distribcache.proxy import extended, forward, local, session, standing
from distribcache.proxy.connection import Connection
from distribcache.proxy.login import Login
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.session import Session
from distribcache.proxy.single import NOT_HERE
from distribcache.proxy.standing import Standing
from distribcache.sql import effects
from distribcache.wire.messages import FLUSH, PARSE_COMPLETE, SYNC, Front, bind, describe, execute, parse, query

READ = b"SELECT value FROM stock WHERE id = 1"
OTHER = b"SELECT value FROM stock WHERE id = 2"
ALL = b"SELECT id FROM stock ORDER BY id"
ROLES = (
    "DO $$ BEGIN CREATE ROLE trap_reader LOGIN; CREATE ROLE trap_nobody; GRANT trap_nobody TO trap_reader; "
    "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
)
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value text, weight float8)",
    "INSERT INTO stock VALUES (1, '1', 0.1::float8 + 0.2), (2, '2', 2)",
    "CREATE TABLE wide AS SELECT repeat('x', 200000) AS body",
    "CREATE TABLE noise (id int)",
    ROLES,
    "GRANT SELECT ON stock TO trap_reader",
)
AGAIN = bind(b"", b"s1") + execute(b"") + SYNC


@kept_and_muted
def test_trap_1_one_name_for_two_statements(
    client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 1. Muted: the key is the message with its names, and one client gets the other's row."""

    def by_name(s: Any, data: bytes, one: Any, statement: Prepared) -> tuple[int, bytes]:
        return s.scope.ident, data[one.start : one.end]

    if muted:
        monkeypatch.setattr(local, "key_of", by_name)
        monkeypatch.setattr(forward, "key_of", by_name)
        monkeypatch.setattr(session, "single", lambda *_: NOT_HERE)
    for each, sql in ((client, READ), (second, OTHER)):
        each.exchange(parse(b"s1", sql) + SYNC)
    warm(client, AGAIN)
    assert second.rows(AGAIN) == ([[b"1"]] if muted else [[b"2"]])


@kept_and_muted
def test_trap_3_a_setting_that_is_not_reported(
    client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 3. Muted: a SET is believed to change only what the server reports."""
    if muted:
        plain = standing.effects
        monkeypatch.setattr(
            standing, "effects", lambda sql, *a, **k: effects.NEUTRAL if sql[:3] == b"SET" else plain(sql, *a, **k)
        )
    sql = query(b"SELECT weight FROM stock WHERE id = 1")
    warm(client, sql)
    client.exchange(query(b"SET extra_float_digits = -3"))
    assert client.rows(sql) == ([[b"0.30000000000000004"]] if muted else [[b"0.3"]])


@kept_and_muted
def test_trap_3_a_role_that_is_not_reported(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 3. Muted: the reader's rows are shown to a role that may not read them."""
    if muted:
        plain = standing.effects
        monkeypatch.setattr(
            standing, "effects", lambda sql, *a, **k: effects.NEUTRAL if sql[:3] == b"SET" else plain(sql, *a, **k)
        )
    with RawClient(inner.host, inner.port, stock.name, user="trap_reader") as client:
        warm(client, query(READ))
        client.exchange(query(b"SET ROLE trap_nobody"))
        kinds = [each[:1] for each in client.exchange(query(READ))]
        assert (b"D" in kinds) is muted
        assert (b"E" in kinds) is not muted


@kept_and_muted
def test_trap_4_a_row_limit_is_part_of_the_key(
    client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 4. Muted: who asks for one row gets all of them."""
    if muted:
        plain = local.key_of

        def without_limit(s: Any, data: bytes, one: Any, statement: Prepared) -> tuple[int, bytes]:
            key = plain(s, data, one, statement)
            return key[0], key[1][:-4]

        monkeypatch.setattr(local, "key_of", without_limit)
        monkeypatch.setattr(forward, "key_of", without_limit)
        monkeypatch.setattr(session, "single", lambda *_: NOT_HERE)
    client.exchange(parse(b"s1", ALL) + SYNC)
    warm(client, AGAIN)
    assert client.rows(bind(b"", b"s1") + execute(b"", 1) + SYNC) == ([[b"1"], [b"2"]] if muted else [[b"1"]])


@kept_and_muted
def test_trap_5_a_sync_follows_what_went_up(
    stock: Database, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 5. Muted: the end of the group is answered here, and the server goes on holding its lock."""
    client.exchange(parse(b"s1", READ) + SYNC)
    warm(client, AGAIN)
    if muted:
        plain = Standing.sent

        def forgotten(self: Standing, *, awaiting: bool, synced: bool = False) -> None:
            plain(self, awaiting=awaiting, synced=synced)
            self.open = False

        monkeypatch.setattr(Standing, "sent", forgotten)
    client.send(parse(b"s2", READ) + describe(b"S", b"s2") + FLUSH)
    client.until(b"T")
    assert client.rows(bind(b"", b"s2") + execute(b"") + SYNC) == [[b"1"]]
    with stock.connect() as other:
        other.execute("SET lock_timeout = '500ms'" if muted else "SET lock_timeout = '60s'")
        try:
            other.execute("TRUNCATE stock")
            locked_out = False
        except psycopg.errors.LockNotAvailable:
            locked_out = True
    assert locked_out is muted


@kept_and_muted
def test_trap_6_a_named_statement_exists_upstream(
    client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 6. Muted: its Parse is answered here, and EXECUTE finds nothing."""
    warm(client, run(READ) + SYNC)
    if muted:
        plain = extended.answer_loose

        def here(s: Any, message: Any, state: Any) -> Any:
            if message.kind != Front.PARSE:
                return plain(s, message, state)
            state.statements[message.name] = Prepared(message.sql, message.oids, s.scope.ident, s.hot.words[SCHEMA])
            state.out.append(PARSE_COMPLETE)
            return True

        monkeypatch.setattr(extended, "answer_loose", here)
    client.exchange(parse(b"s6", READ) + SYNC)
    messages = client.exchange(query(b"EXECUTE s6"))
    assert any(b"C26000" in each for each in messages) is muted


@kept_and_muted
def test_trap_7_trust_sees_the_proxys_address(
    inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 7. Muted: pg_hba.conf trusts loopback, so whoever reaches the proxy from anywhere is let in."""
    monkeypatch.setattr(Connection, "_from_loopback", lambda self: False)
    if muted:
        plain = Login.__init__
        monkeypatch.setattr(
            Login, "__init__", lambda self, *, strip_plus, challenge_needed: plain(
                self, strip_plus=strip_plus, challenge_needed=False
            )
        )  # fmt: skip
        with inner.connect() as stranger:
            assert stranger.execute("SELECT count(*) FROM stock").fetchone() == (2,)
    else:
        with pytest.raises(psycopg.OperationalError, match="without a password"):
            inner.connect()


@kept_and_muted
def test_trap_8_a_pools_reset_is_no_write(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 8. Muted: every release of a pooled connection makes all clients wait for the stream."""
    warm(client, query(READ))
    if muted:
        monkeypatch.setattr(effects, "_KNOWN_TEXTS", {})
    inner.hold_stream(monkeypatch)
    stock.execute("INSERT INTO noise VALUES (1)")
    client.exchange(query(b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;"))
    assert client.rows(query(READ)) == [[b"1"]]
    assert (client.rows(query(b"SHOW distribcache.last"))[0][0] == b"hit") is not muted


@kept_and_muted
def test_trap_9_the_collector_does_not_walk_entries(
    inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 9. Muted: one container in an entry, and a collection visits all of them."""
    if muted:
        plain = standing.make_entry

        def with_a_list(*given: Any, **more: Any) -> Entry:
            made = plain(*given, **more)
            return (*made[:TOUCHED], [0], *made[TOUCHED + 1 :])  # type: ignore[return-value]

        monkeypatch.setattr(standing, "make_entry", with_a_list)
    warm(client, query(READ))

    def walked() -> set[bool]:
        gc.collect()
        return {gc.is_tracked(entry) for entry in inner.proxy.node.l1.entries.values()}

    walked()
    if not muted:  # a tuple that holds a tuple is left alone one collection later, and none begins during another
        until(lambda: walked() == {False}, "it walks them")
    assert walked() == {muted}


@kept_and_muted
def test_trap_10_hits_stop_for_a_client_that_does_not_read(
    inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 10. Muted: 60 MB of hits lie in the write buffer of one client."""
    sql = query(b"SELECT body FROM wide")
    warm(client, sql)
    (session,) = inner.proxy.node.live
    assert isinstance(session.wires, Connection)
    transport = session.wires.client
    assert transport is not None
    if muted:
        monkeypatch.setattr(Session, "pause", lambda self, paused: None)
    client.send(sql * 300)
    if muted:
        until(lambda: transport.get_write_buffer_size() > 20 << 20, "no harm")
        return
    with inner.connect() as other:

        def paused() -> bool:
            """Nothing more is said to it while others are served; at first the system may still take some of it."""
            hits = session.hot.hits
            for _ in range(20):
                assert other.execute("SELECT count(*) FROM stock").fetchone() == (2,)
            return session.hot.paused and session.hot.hits == hits

        until(paused, "never paused")
    assert session.hot.hits < 150
    assert transport.get_write_buffer_size() < 2 << 20
    for _ in range(300):
        assert len(client.rows_until_ready()[0][0] or b"") == 200_000


@kept_and_muted
def test_trap_11_a_database_is_left_before_it_is_dropped(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 11. Muted: our slot makes DROP DATABASE fail, even by force."""

    async def stay(self: Databases, names: object) -> None:
        return None

    if muted:
        monkeypatch.setattr(Databases, "close_for_ddl", stay)
    sql = f'DROP DATABASE "{stock.name}" WITH (FORCE)'.encode()
    with RawClient(inner.host, inner.port, "postgres") as admin:
        messages = admin.exchange(query(sql))
    assert any(b"C55006" in each for each in messages) is muted
