"""Coherence rules that the proxy has to keep, each with the sabotage that turns its assertion.

The stream is held in most of them, so nothing but the rule stands between the reader and an old answer.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, until_hit
from muted import kept_and_muted
from rawclient import RawClient

from distribcache.proxy import extended, forward, session, simple, standing
from distribcache.proxy.group import Message, Run, cut, parse_message
from distribcache.proxy.replies import Op
from distribcache.sql.effects import NEUTRAL
from distribcache.wire.messages import FLUSH, SYNC, bind, execute, parse

READ = "SELECT value FROM stock WHERE id = 1"


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1)")
    return database


@pytest.fixture
def proxy(stock: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(stock.url(), {"freshness.max_staleness": "30s"})


def neutral(*_args: object, **_kwargs: object) -> object:
    return NEUTRAL


LOCKS = {
    "advisory lock": "SELECT pg_advisory_xact_lock(42)",
    "for update": "SELECT 1 FROM stock WHERE id = 1 FOR UPDATE",
    "lock table": "LOCK TABLE stock IN EXCLUSIVE MODE",
}


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS.keys())
@kept_and_muted
@pytest.mark.parametrize("consistency", ["eventual", "session"])
def test_trap_11_lock_then_read_must_read(
    stock: Database, proxy: InnerProxy, monkeypatch: pytest.MonkeyPatch, lock: str, muted: bool, consistency: str
) -> None:
    """Coherence trap 11."""
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute(f"SET distribcache.consistency = {consistency}")
        until_hit(connection, READ)
        if muted:
            monkeypatch.setattr(standing, "effects", neutral)
        proxy.hold_stream(monkeypatch)
        stock.execute("UPDATE stock SET value = 2")
        connection.execute("BEGIN")
        connection.execute(lock)
        seen = connection.execute(READ).fetchone()
        connection.execute("COMMIT")
        assert seen == ((1,) if muted else (2,))


@kept_and_muted
def test_trap_11_session_lock_then_read_must_read(
    stock: Database, proxy: InnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 11: a lock taken outside a transaction. The floor of ``session`` is what makes the next read go
    to the server.
    """
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        until_hit(connection, READ)
        if muted:
            monkeypatch.setattr(standing, "effects", neutral)
        proxy.hold_stream(monkeypatch)
        stock.execute("UPDATE stock SET value = 2")
        connection.execute("SELECT pg_advisory_lock(42)")
        assert connection.execute(READ).fetchone() == ((1,) if muted else (2,))
        connection.execute("SELECT pg_advisory_unlock(42)")


def test_trap_11_notify_then_read_must_read(
    stock: Database, proxy: InnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 11."""
    with proxy.connect() as connection:
        connection.execute("LISTEN changed")
        until_hit(connection, READ)
        proxy.hold_stream(monkeypatch)
        stock.execute("UPDATE stock SET value = 2", "NOTIFY changed")
        assert [note.channel for note in connection.notifies(timeout=60, stop_after=1)] == ["changed"]
        assert connection.execute(READ).fetchone() == (2,)


@kept_and_muted
def test_trap_9_a_portal_bound_before_a_commit_never_fills(
    stock: Database, proxy: InnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 9: Bind takes the snapshot. What Execute returns after another's commit is old, and must not be
    stored as new.
    """
    eventual = "-c distribcache.consistency=eventual"  # never waits, so the sabotaged fill is served for certain
    strict = "-c distribcache.consistency=strict"  # whose hits prove that the write has arrived
    with (
        RawClient(proxy.host, proxy.port, stock.name, options=eventual) as client,
        proxy.connect(options=strict) as connection,
    ):
        until_hit(connection, READ)
        if muted:  # fill at Execute, as if it took the snapshot
            fill_at_execute(monkeypatch)
        client.send(parse(b"s", READ.encode()) + bind(b"", b"s") + FLUSH)
        client.until(b"2")
        stock.execute("UPDATE stock SET value = 2")
        # V has passed the commit: a fill that begins now would be taken for a new one.
        assert until_hit(connection, READ) == [(2,)]
        client.send(execute(b"") + SYNC)
        assert client.rows_until_ready() == [[b"1"]]
        client.send(bind(b"", b"s") + execute(b"") + SYNC)
        assert client.rows_until_ready() == ([[b"1"]] if muted else [[b"2"]])


def fill_at_execute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: treat an Execute alone as the run that it ends, with F read when it is sent."""
    original: Callable[..., object] = extended.group
    kept: dict[int, bytes] = {}

    def group(s: session.Session, data: bytes, messages: list[Message], ended: int) -> bool:
        kinds = [message.kind for message in messages]
        if kinds and kinds[-1] == ord("B"):
            kept[id(s)] = data[messages[-1].start : messages[-1].end]
        if kinds == [ord("E")] and id(s) in kept:
            bound = kept.pop(id(s))
            whole = bound + data
            run = cut([parse_message(whole, 0, len(bound)), parse_message(whole, len(bound), len(whole) - 5)])
            statement = s.statements[b"s"]
            item = run[0]
            assert isinstance(item, Run)
            plan = forward.Plan()
            forward._judge(s, whole, plan, 0, item, statement, last=True, alone=False)
            fill = plan.fills[0]
            fill.add(b"2\0\0\0\4")
            s.fills.append(fill)
            s.replies.expect(Op(ord("E"), fill=fill))
            s.replies.expect(Op(ord("S")))
            s.sent(awaiting=True)
            s.wires.to_upstream(data)
            return True
        return bool(original(s, data, messages, ended))

    monkeypatch.setattr(extended, "group", group)


@kept_and_muted
def test_trap_16_begin_under_a_role_whose_default_is_repeatable_read(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 16."""
    stock.execute(
        "DROP ROLE IF EXISTS careful",
        "CREATE ROLE careful LOGIN",
        "ALTER ROLE careful SET default_transaction_isolation = 'repeatable read'",
        "GRANT SELECT ON stock TO careful",
    )
    proxy = make_inner_proxy(stock.url(), {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"})
    if muted:
        monkeypatch.setattr(
            simple,
            "may_begin",
            lambda s: s.why_not() == "" or (None if s.questions.learn_scope() else s.scope is not None),
        )
    with proxy.connect("careful") as connection:
        until_hit(connection, READ)
        connection.execute("BEGIN")
        first = connection.execute(READ).fetchone()
        stock.execute("UPDATE stock SET value = value + 1")
        with proxy.connect(options="-c distribcache.consistency=strict") as other:
            assert until_hit(other, READ) != [first]  # a hit, so the write has arrived
        second = connection.execute(READ).fetchone()
        connection.execute("COMMIT")
        assert (first == second) is not muted
    stock.execute("REVOKE ALL ON stock FROM careful", "DROP ROLE careful")
