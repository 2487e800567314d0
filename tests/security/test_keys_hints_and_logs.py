"""What must never share a key, what a comment must not widen, what must not stand in a log, and who may use trust."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from barewire import DESCRIBE, EXECUTE, SYNC, bare, bind, first_column, message, parse
from fix_postgres import Database, create_database, drop_database
from fix_proxy import MakeProxy, ProxyProcess, last
from hypothesis import given, settings
from hypothesis import strategies as st
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence.scope import Idents, read_scope
from distribcache.errors import UpstreamError
from distribcache.proxy.connection import Connection
from distribcache.proxy.group import Run, cut, parse_message
from distribcache.proxy.local import key_of
from distribcache.proxy.login import Login
from distribcache.proxy.prepared import Prepared
from distribcache.sql.settings import KEYED, OWN, SCOPE_COLUMNS
from distribcache.wire import messages as wire

# ---- keys (row 20) --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8).map(str.encode)
VALUE = st.none() | st.binary(max_size=6)
REQUEST = st.tuples(
    TEXT,  # SQL
    st.lists(st.sampled_from([0, 23, 25]), max_size=2).map(tuple),  # parameter types
    st.lists(VALUE, max_size=3).map(tuple),
    st.lists(st.sampled_from([0, 1]), max_size=2).map(tuple),  # parameter formats
    st.lists(st.sampled_from([0, 1]), max_size=2).map(tuple),  # result formats
    st.booleans(),  # Describe
    st.sampled_from([0, 1, 50]),  # row limit
    st.sampled_from([1, 2]),  # scope
    st.sampled_from([b"", b"s", b"t"]),  # statement name
)
IDENTS = Idents()


def key(request: tuple[Any, ...]) -> tuple[int, bytes]:
    sql, oids, params, formats, results, described, limit, scope, name = request
    data = b"" if name else wire.parse(b"", sql, oids)
    data += wire.bind(b"", name, formats, params, results)
    data += wire.describe(b"P", b"") if described else b""
    data += wire.execute(b"", limit)
    parts, at = [], 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        parts.append(parse_message(data, at, end))
        at = end
    (run,) = cut(parts)
    assert isinstance(run, Run)
    session = SimpleNamespace(scope=SimpleNamespace(ident=scope), node=SimpleNamespace(idents=IDENTS))
    return key_of(session, data, run, Prepared(sql, oids, scope))  # type: ignore[arg-type]


@settings(max_examples=400)
@given(REQUEST, REQUEST)
def test_different_requests_never_share_a_key(one: tuple[Any, ...], two: tuple[Any, ...]) -> None:
    # The name of a statement is no part of it; whether there is one only decides which of two forms the key has.
    """Security row 20."""
    if (*one[:8], bool(one[8])) != (*two[:8], bool(two[8])):
        assert key(one) != key(two)
    else:
        assert key(one) == key(two)


COLUMNS = len(SCOPE_COLUMNS) + len(OWN) + len(KEYED)


@pytest.mark.parametrize("column", range(COLUMNS))
def test_every_input_of_the_session_is_in_its_scope(column: int) -> None:
    """Security row 20."""
    names = [*SCOPE_COLUMNS, *OWN, *KEYED]
    row: list[bytes | None] = [b"0"] * COLUMNS
    row[names.index("schemas")] = b'["pg_catalog", "public"]'
    row[names.index("consistency")] = row[names.index("workload")] = row[names.index("prepared")] = None
    row[names.index("cache")], row[names.index("temporary")] = b"on", b"f"
    changed = list(row)
    special = {
        "schemas": b'["public", "pg_catalog"]', "consistency": b"strict", "workload": b"olap",
        "prepared": b'[["s"], null]',
    }  # fmt: skip
    changed[column] = special.get(names[column], b"1")
    same = read_scope(row, IDENTS).ident == read_scope(changed, IDENTS).ident
    no_identity = {
        "statement_timeout", "backend_pid", "in_recovery", "postmaster_start", "system_identifier",
        "cache", "consistency", "max_staleness", "prepared", "idle_timeouts", "listens",
    }  # fmt: skip
    assert same == (names[column] in no_identity), names[column]
    moved = [None, *row[1:]]
    assert read_scope(moved, IDENTS).ident != read_scope([b"", *row[1:]], IDENTS).ident, "NULL is not the empty text"


def test_a_name_that_means_another_statement_elsewhere(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Proxy trap 1. Security row 20. Byte-identical Binds on two connections, for different SQL (pgcat, pgdog:
    prepared statements mixed up).
    """
    with bare(shared_proxy.host, shared_proxy.port) as one, bare(shared_proxy.host, shared_proxy.port) as two:
        for number, client in enumerate((one, two), 1):
            client.login(shared_shop.name)
            client.send(parse(f"SELECT name FROM item WHERE id = {number}", "s") + SYNC)
            client.until_ready()
        for _ in range(10):
            for number, client in enumerate((one, two), 1):
                client.send(bind(name="s") + DESCRIBE + EXECUTE + SYNC)
                assert first_column(client.until_ready()) == [f"item {number}"]


@pytest.mark.parametrize(
    "swap",
    [
        "DEALLOCATE s; PREPARE s AS SELECT name FROM item WHERE id = 2",
        "DO $$ BEGIN EXECUTE 'DEALLOCATE s'; EXECUTE 'PREPARE s AS SELECT name FROM item WHERE id = 2'; END $$",
        "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; EXECUTE 'PREPARE s AS SELECT name FROM item WHERE id = 2'; END $$",
    ],
)
def test_a_name_that_is_given_another_statement_behind_our_back(
    shared_shop: Database, shared_proxy: ProxyProcess, swap: str
) -> None:
    """Security row 20."""
    with bare(shared_proxy.host, shared_proxy.port) as client, bare(shared_proxy.host, shared_proxy.port) as other:
        client.login(shared_shop.name)
        other.login(shared_shop.name)
        for each in (client, other):
            each.send(parse("SELECT name FROM item WHERE id = 1", "s") + SYNC)
            each.until_ready()
        for _ in range(5):
            client.send(bind(name="s") + DESCRIBE + EXECUTE + SYNC)
            assert first_column(client.until_ready()) == ["item 1"]
        client.simple(swap)
        for _ in range(5):
            client.send(bind(name="s") + DESCRIBE + EXECUTE + SYNC)
            assert first_column(client.until_ready()) == ["item 2"]
            other.send(bind(name="s") + DESCRIBE + EXECUTE + SYNC)
            assert first_column(other.until_ready()) == ["item 1"]


# ---- hints (row 19) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "cached"),
    [
        ("SELECT name FROM item WHERE id = 5", True),
        ("/* distribcache: nocache */ SELECT name FROM item WHERE id = 5", False),
        ("SELECT name FROM item WHERE id = 5 /* distribcache: nocache */", False),
        ("SELECT name, '/* distribcache: nocache */' FROM item WHERE id = 5", True),
        ("SELECT name, $$ /* distribcache: nocache */ $$ FROM item WHERE id = 5", True),
        ("SELECT name, E'\\'/* distribcache: nocache */' FROM item WHERE id = 5", True),
        # Nothing widens: what may not be cached is not, whatever a comment asks for.
        ("/* distribcache: cache */ SELECT name, random() FROM item WHERE id = 5", False),
        ("/*FORCE QUERY CACHE*/ SELECT name, now() FROM item WHERE id = 5", False),
        ("/* distribcache: cache, consistency = eventual */ SELECT name FROM item WHERE id = 5 FOR UPDATE", False),
    ],
)
@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_comments_only_narrow(
    shared_shop: Database, shared_proxy: ProxyProcess, sql: str, cached: bool, protocol: str
) -> None:
    """Security row 19."""
    factory = psycopg.ClientCursor if protocol == "simple" else psycopg.Cursor
    with shared_proxy.connect(cursor_factory=factory) as connection:

        def status() -> str:
            assert connection.execute(sql).fetchone()[0] == "item 5"  # type: ignore[index]
            return str(last(connection)["status"])

        connection.execute("SELECT name FROM item WHERE id = 6")
        if cached:
            until(lambda: status() == "hit", lambda: str(last(connection)))
        else:
            until(lambda: status() in ("refused", "bypass"))
            assert [status() for _ in range(5)].count("hit") == 0


# ---- logs (row 18) --------------------------------------------------------------------------------------------------

NASTY = 'evil\n2026-01-01 distribcache: all is well \x1b[31mred "q" \r\x07'


@pytest.fixture
def nasty_database(postgres: Postgres) -> Iterator[Database]:
    made = create_database(postgres, NASTY)
    yield made
    drop_database(made)


def test_log_injection_and_secrets(nasty_database: Database, make_proxy: MakeProxy, scram_server: Postgres) -> None:
    """Security row 18. No text of a client, no name of its choice and no password reaches the log as it is."""
    proxy = make_proxy(scram_server.url(user="alice", password="secret of alice"), {}, serving=False)
    proxy.database = "postgres"
    for user, database in ((NASTY, "postgres"), ("alice", NASTY), ("\x1b[31m", "\n")):
        with pytest.raises(psycopg.Error):
            psycopg.connect(
                host=proxy.host, port=proxy.port, user=user, dbname=database, password="secret of nobody",
                application_name=NASTY,
            )  # fmt: skip
    text = proxy.conninfo("alice", password="secret of alice", application_name="app")
    with psycopg.connect(text, autocommit=True) as connection:
        named = NASTY.replace('"', "")
        for statement in (f'SELECT 1 AS "{named}"', "ALTER ROLE alice PASSWORD 'secret of alice'"):
            try:
                connection.execute(statement)
            except psycopg.Error:
                pass
        shown = str(connection.execute("SHOW distribcache.config").fetchall())
        assert "secret of" not in shown
    with bare(proxy.host, proxy.port) as client:
        client.send(message("Q", NASTY.encode() + b"\0"))
        client.rest()
    other = make_proxy(nasty_database.url())
    with psycopg.connect(
        host=other.host, port=other.port, user="postgres", dbname=nasty_database.name, autocommit=True
    ) as connection:
        connection.execute("SELECT 1")
        with bare(other.host, other.port) as client:
            client.login(nasty_database.name)
            client.send(b"Q" + struct.pack("!i", -1))
            client.rest()
        nasty_database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        until(lambda: "not cached" in "".join(other.log))
    for process in (proxy, other):
        log = "".join(process.log)
        assert "secret" not in log
        assert "Traceback" not in log
        assert not any(ord(letter) < 32 and letter != "\n" for letter in log), log
        assert all(line.startswith(("distribcache: ", "  hint")) for line in process.log), log


# ---- trust (row 9) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "loopback"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.9.10", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("::ffff:10.0.0.1", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        (("0.0.0.0", 1), False),
        (("not an address", 1), False),
        ("/run/socket", True),
        (None, False),
    ],
)
def test_who_is_on_loopback(peer: object, loopback: bool) -> None:
    """Proxy trap 7."""
    class Listener:
        node = None

    connection = Connection(Listener())  # type: ignore[arg-type]
    connection.client = SimpleNamespace(get_extra_info=lambda name: peer)  # type: ignore[assignment]
    assert connection._from_loopback() is loopback


OK = message("R", struct.pack("!i", 0))
CLEARTEXT = message("R", struct.pack("!i", 3))


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize("challenged", [True, False])
def test_trust_is_refused_to_strangers(needed: bool, challenged: bool) -> None:
    """Proxy trap 7. Security row 9. pg_hba.conf's trust sees our address, not the client's."""
    login = Login(strip_plus=True, challenge_needed=needed)
    said = (CLEARTEXT if challenged else b"") + OK
    if needed and not challenged:
        with pytest.raises(UpstreamError, match="without a password") as refused:
            list(login.from_server(said))
        assert refused.value.sqlstate == "28000"
        assert "allow_trust" in refused.value.hint
    else:
        assert b"".join(login.from_server(said)) == said
