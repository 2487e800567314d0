"""Rows of the security page that the other files leave open, each by its number."""

from __future__ import annotations

import ast
import contextlib
import http.client
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from barewire import DESCRIBE, EXECUTE, SYNC, Bare, ask, bare, bind, fields, first_column, message, parse
from fix_postgres import Database, MakePostgres
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy, ProxyProcess, last
from inside import coherence_of
from muted import kept_and_muted
from psycopg import AsyncConnection
from rawclient import RawClient
from wait import until

import distribcache
from distribcache.proxy import standing
from distribcache.sql.effects import NEUTRAL
from distribcache.wire import facts

# ---- rows 1, 3 and 4: roles -----------------------------------------------------------------------------------------

READ = "SELECT name FROM secret ORDER BY id"


@pytest.fixture
def vault(shared_shop: Database) -> Iterator[Database]:
    shared_shop.execute(
        "DO $$ BEGIN CREATE ROLE ann LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "DO $$ BEGIN CREATE ROLE bob LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "DROP TABLE IF EXISTS secret CASCADE",
        "CREATE TABLE secret (id int PRIMARY KEY, owner text, name text)",
        "INSERT INTO secret VALUES (1, 'ann', 'of ann'), (2, 'bob', 'of bob')",
        "CREATE POLICY own ON secret USING (owner = current_user)",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON secret TO ann, bob",
    )
    yield shared_shop
    shared_shop.execute("DROP TABLE IF EXISTS secret CASCADE", "REVOKE ann FROM bob")


def denied(messages: list[tuple[str, bytes]]) -> bool:
    return [fields(body)["C"] for kind, body in messages if kind == "E"] == ["42501"]


def test_row_3_privilege_revoked_between_parse_and_execute(vault: Database, shared_proxy: ProxyProcess) -> None:
    """Security row 3: a verdict counts when a statement runs, not when it is parsed."""
    vault.execute("ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
    with bare(shared_proxy.host, shared_proxy.port) as ann, shared_proxy.connect() as admin:
        ann.login(vault.name, "ann")
        for name in ("", "s"):
            admin.execute("GRANT SELECT ON secret TO ann")
            run = bind(name=name) + DESCRIBE + EXECUTE + SYNC
            ann.send(parse(READ, name) + SYNC)
            ann.until_ready()
            hits = shared_proxy.statistics()["hits_total"]

            def hit(run: bytes = run, hits: float = hits) -> bool:
                ann.send(run)
                assert first_column(ann.until_ready()) == ["of ann", "of bob"]
                return shared_proxy.statistics()["hits_total"] > hits

            until(hit, "never a hit")
            admin.execute("REVOKE SELECT ON secret FROM ann")
            ann.send(run)
            assert denied(ann.until_ready())


def test_row_3_what_a_borrowed_role_has_read(vault: Database, shared_proxy: ProxyProcess) -> None:
    """Security row 3: bob reads as ann; what that fills is neither his own nor a stranger's."""
    vault.execute("ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
    vault.execute("GRANT ann TO bob", "REVOKE SELECT ON secret FROM bob")
    with bare(shared_proxy.host, shared_proxy.port) as bob, bare(shared_proxy.host, shared_proxy.port) as ann:
        bob.login(vault.name, "bob")
        ann.login(vault.name, "ann")
        assert first_column(bob.simple(READ)) == ["of ann", "of bob"]  # by inheritance
        vault.execute("REVOKE ann FROM bob")
        until(lambda: denied(bob.simple(READ)), "still served")  # made around the proxy: seen by the next poll
        for _ in range(5):
            assert first_column(ann.simple(READ)) == ["of ann", "of bob"]
            assert denied(bob.simple(READ))
            assert denied(bob.extended(READ))


@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_row_4_a_plan_is_not_reused_under_another_role(
    vault: Database, shared_proxy: ProxyProcess, protocol: str
) -> None:
    """Security row 4: one session, one text, one prepared statement; the role changes between two runs of it."""
    with bare(shared_proxy.host, shared_proxy.port) as client:
        client.login(vault.name)
        client.send(parse(READ, "s") + SYNC)
        client.until_ready()

        def rows() -> list[str]:
            if protocol == "simple":
                return first_column(client.simple(READ))
            client.send(bind(name="s") + DESCRIBE + EXECUTE + SYNC if protocol == "prepared" else ask(READ))
            return first_column(client.until_ready())

        for _ in range(4):
            for role in ("ann", "bob"):
                client.simple(f"SET ROLE {role}")
                assert [rows(), rows()] == [[f"of {role}"]] * 2
            client.simple("RESET ROLE")
            assert [rows(), rows()] == [["of ann", "of bob"]] * 2


@kept_and_muted
def test_row_1_without_the_role_in_its_scope_a_session_is_shown_anothers_rows(
    vault: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Security row 1. Muted: SET ROLE is believed to change nothing."""
    vault.execute("ALTER TABLE secret DISABLE ROW LEVEL SECURITY")
    vault.execute("GRANT bob TO ann", "REVOKE SELECT ON secret FROM bob")
    if muted:
        plain = standing.effects
        monkeypatch.setattr(
            standing, "effects", lambda sql, *a, **k: NEUTRAL if sql[:8] == b"SET ROLE" else plain(sql, *a, **k)
        )
    proxy = make_inner_proxy(vault.url(), {"freshness.max_staleness": "30s"})
    with bare(proxy.host, proxy.port) as ann:
        ann.login(vault.name, "ann")

        def hit() -> bool:
            ann.simple(READ)
            return first_column(ann.simple("SHOW distribcache.last")) == ["hit"]

        until(hit, "never a hit")
        ann.simple("SET ROLE bob")
        assert denied(ann.simple(READ)) is not muted
    vault.execute("REVOKE bob FROM ann")


# ---- row 13: secrets are compared by the server ---------------------------------------------------------------------


def test_row_13_no_secret_is_compared_here() -> None:
    """Security row 13: whether a password, cancel key or token is right is decided by PostgreSQL alone;
    the tokens and proofs of what lies in L3 are compared in a time that tells nothing.
    """
    assert distribcache.__file__ is not None
    found = []
    for file in Path(distribcache.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                sides = [each for each in (node.left, *node.comparators) if not isinstance(each, ast.Constant)]
                words = " ".join(map(ast.unparse, sides)).lower()
                if any(word in words for word in ("secret", "passwd", "password", "token")) and "len(" not in words:
                    found.append(f"{file.name}:{node.lineno} {ast.unparse(node)}")
    allowed = ("Front.PASSWORD", "_CHECKSUM")  # the latter tells only whether there is a secret
    assert [each for each in found if not any(word in each for word in allowed)] == []


# ---- row 17: many that say nothing ----------------------------------------------------------------------------------


def test_row_17_a_thousand_half_open_connections(database: Database, make_proxy: MakeProxy) -> None:
    """Security row 17: they are counted, refused beyond a bound, and sent away; others get in again."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    number = 1000 if most == resource.RLIM_INFINITY else min(1000, most - 300)
    proxy = make_proxy(database.url(), {"listen.max_unauthenticated": "100", "listen.login_timeout": "1s"})
    crowd: list[Bare] = []
    with proxy.connect_at_last() as patient:
        try:
            for _ in range(number):
                crowd.append(Bare(proxy.host, proxy.port))
            assert patient.execute("SELECT 1").fetchone() == (1,)  # who is in is served

            until(proxy.accepts, "nobody gets in any more")
            files = Path(f"/proc/{proxy.pid}/fd")
            if files.exists():
                until(lambda: len(list(files.iterdir())) < 100, lambda: f"{len(list(files.iterdir()))} left open")
        finally:
            for one in crowd:
                one.close()
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)


# ---- row 18: what is secret has no text -----------------------------------------------------------------------------


def test_row_18_secrets_have_no_repr() -> None:
    """Security row 18."""
    hidden = b"do not show me"
    shown = []
    for name in facts.__all__:
        made = getattr(facts, name)
        if not isinstance(made, type) or not hasattr(made, "__dataclass_fields__"):
            continue
        for each, spec in made.__dataclass_fields__.items():
            if spec.repr and any(word in each for word in ("secret", "password", "params", "values")):
                shown.append(f"{name}.{each}")
    assert shown == []
    bound = facts.Bind(b"", b"", (), (hidden,), ())
    assert "do not show me" not in repr(bound)


# ---- row 21: encodings ----------------------------------------------------------------------------------------------

ENCODINGS = {
    # Text whose bytes end or hide a quote for who reads it under another encoding.
    "SJIS": b"SELECT name FROM item WHERE name <> '\x83\x5c' AND id = 7",
    "GBK": b"SELECT name FROM item WHERE name <> '\xbf\x5c' AND id = 7",
    "BIG5": b"SELECT name FROM item WHERE name <> '\xa5\x5c' AND id = 7",
    "LATIN1": b"SELECT name FROM item WHERE name <> '\xe9' AND id = 7",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_row_21_an_encoding_that_is_not_read_here_is_not_cached(
    shared_shop: Database, shared_proxy: ProxyProcess, encoding: str
) -> None:
    """Security row 21: the bytes go to the server as they are, and its answer is nobody else's."""
    sql = message("Q", ENCODINGS[encoding] + b"\0")
    answers = []
    for host, port in ((shared_proxy.host, shared_proxy.port), (shared_shop.server.host, shared_shop.server.port)):
        with bare(host, port) as client:
            client.login(shared_shop.name, client_encoding=encoding)
            for _ in range(4):
                client.send(sql)
                answers.append([(kind, body) for kind, body in client.until_ready() if kind != "S"])
            if port == shared_proxy.port:
                assert first_column(client.simple("SHOW distribcache.last"))[0] != "hit"
    assert all(answer == answers[-1] for answer in answers), answers
    assert first_column(answers[0]) == ["item 7"]


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_row_21_bytes_that_are_no_text_are_the_servers_to_judge(
    shared_shop: Database, shared_proxy: ProxyProcess, protocol: str
) -> None:
    """Security row 21: CVE-2025-1094, bytes that are not UTF-8, in a text and in a parameter."""
    broken = b"SELECT name FROM item WHERE name = '\xc0\x27 OR true --' AND id = 7"
    bound = message("B", b"\0\0" + struct.pack("!hhi", 0, 1, 2) + b"\xc0\x27" + b"\0\0")
    request = {
        "simple": message("Q", broken + b"\0"),
        "extended": parse("SELECT name FROM item WHERE name = $1") + bound + DESCRIBE + EXECUTE + SYNC,
    }[protocol]
    answers = []
    for host, port in ((shared_proxy.host, shared_proxy.port), (shared_shop.server.host, shared_shop.server.port)):
        with bare(host, port) as client:
            client.login(shared_shop.name)
            client.simple("SELECT name FROM item WHERE id = 7")
            for _ in range(3):
                client.send(request)
                answers.append([fields(body)["C"] for kind, body in client.until_ready() if kind == "E"])
    assert all(answer == answers[-1] for answer in answers), answers
    assert answers[0] == ["22021"]


# ---- row 24: the role of the cache, and what a dead proxy leaves ----------------------------------------------------


def slots(database: Database) -> int:
    sql = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    return int(database.execute(sql)[0][0])


def test_row_24_a_killed_proxy_leaves_no_slot(database: Database, make_proxy: MakeProxy) -> None:
    """Security row 24: a dead proxy must not fill the server's disk."""
    proxy = make_proxy(database.url())
    assert slots(database) == 1
    proxy.process.kill()
    until(lambda: slots(database) == 0, "the slot stays")


@kept_and_muted
def test_row_24_a_lasting_slot_would_stay(
    make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Security row 24. Muted: the slot is not a temporary one, and holds back log for whoever never comes back."""
    if muted:
        plain = AsyncConnection.execute

        async def lasting(self: Any, sql: Any, *given: Any, **more: Any) -> Any:
            if isinstance(sql, bytes):
                sql = sql.replace(b" TEMPORARY LOGICAL", b" LOGICAL")
            return await plain(self, sql, *given, **more)

        monkeypatch.setattr(AsyncConnection, "execute", lasting)
    server = make_postgres(fresh=True)
    database = Database(server, "postgres")
    proxy: InnerProxy = make_inner_proxy(server.url())
    assert slots(database) == 1
    coherence = coherence_of(proxy)

    async def die() -> None:
        """As if the process had ended: every socket closes, nothing is said."""
        following = coherence._following  # type: ignore[attr-defined]
        for connection in list(following.link._open):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
                copy.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr("distribcache.coherence.live._LONG_PAUSES_S", {"reader_lost": 60.0, "upstream_down": 60.0})
    proxy.call(die())
    gone = "SELECT count(*) FROM pg_stat_replication"
    until(lambda: database.execute(gone) == [(0,)], "the stream goes on")
    if muted:
        assert slots(database) == 1
        database.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    else:
        until(lambda: slots(database) == 0, "the slot stays")


def test_row_24_replication_is_privilege_enough(database: Database, make_proxy: MakeProxy) -> None:
    """Security row 24: a role with LOGIN and REPLICATION and nothing else serves."""
    role = f"follows_{database.name}"
    database.execute(
        f"CREATE ROLE {role} LOGIN REPLICATION", "CREATE TABLE t (v int)", "INSERT INTO t VALUES (1)",
        f"REVOKE ALL ON t FROM {role}",
    )  # fmt: skip
    proxy = make_proxy(database.url(role))
    with RawClient(proxy.host, proxy.port, database.name) as client, proxy.connect() as watch:
        assert client.socket.fileno() > 0

        def hit() -> bool:
            watch.execute("SELECT v FROM t")
            return bool(last(watch)["status"] == "hit")

        until(hit, "never a hit")
    proxy.stop()
    database.execute(f"DROP ROLE {role}")


# ---- row 25: the admin endpoint -------------------------------------------------------------------------------------


def test_row_25_the_admin_endpoint_answers_to_its_own_name_only(shared_proxy: ProxyProcess) -> None:
    """Security row 25: a page elsewhere cannot read it through a rebound name, nor change anything."""
    host, port = shared_proxy.admin.removeprefix("http://").split(":")
    for name, path, method, wanted in (
        (f"{host}:{port}", "/", "GET", 200),
        ("evil.example", "/api/status", "GET", 400),
        (f"evil.example:{port}", "/", "GET", 400),
        (f"{host}:{port}", "/api/status", "POST", 405),
        (f"{host}:{port}", "/api/status", "DELETE", 405),
    ):
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request(method, path, headers={"Host": name})
        answer = connection.getresponse()
        assert answer.status == wanted, (name, path, method)
        if wanted == 200:
            assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
        connection.close()
