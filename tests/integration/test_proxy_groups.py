"""Portals, silence and notifications: the same bytes said directly and through the proxy have the same answer.

Each case is a few exchanges; the two sides must say the same, and what can come from memory does.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy
from fix_stock import warm
from muted import kept_and_muted
from rawclient import RawClient, run
from wait import until

from distribcache.coherence.scope import read_scope
from distribcache.proxy import questions
from distribcache.proxy.presence import Presence
from distribcache.proxy.questions import Questions
from distribcache.proxy.session import Session
from distribcache.wire.messages import FLUSH, SYNC, bind, describe, execute, message, parse, query, read_error

READ = b"SELECT value FROM stock WHERE id = 1"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int)",
    "INSERT INTO stock VALUES (1, 1), (2, 2)",
)
PORTAL = describe(b"P", b"")
WHOLE = parse(b"", READ) + bind(b"", b"") + PORTAL + execute(b"")
OTHER = run(b"SELECT value FROM stock WHERE id = 2") + SYNC
AGAIN = bind(b"", b"") + execute(b"") + SYNC
"""Whatever the unnamed statement is."""
FUNCTION = message(ord("F"), struct.pack("!IHHHiIiIH", 177, 1, 1, 2, 4, 1, 4, 2, 1))
"""``int4pl(1, 2)``, in binary."""


@pytest.fixture
def direct(stock: Database, inner: InnerProxy) -> Iterator[RawClient]:
    with RawClient(stock.server.host, stock.server.port, stock.name) as client:
        yield client


def said(client: RawClient, data: bytes) -> list[bytes]:
    """The answer to ``data``; of an error only what concerns the client."""
    messages = client.exchange(data)
    return [
        f"E {(error := read_error(memoryview(each)[5:])).sqlstate} {error.text}".encode() if each[:1] == b"E" else each
        for each in messages
    ]


CASES: dict[str, tuple[bytes, ...]] = {
    "a portal described again behind a Flush": (WHOLE + FLUSH + PORTAL + execute(b"") + SYNC,),
    "a portal described again in a transaction": (query(b"BEGIN"), WHOLE + SYNC, PORTAL + execute(b"") + SYNC),
    "a Describe of nothing behind a read": (WHOLE + FLUSH + b"D\0\0\0\6X\0" + SYNC,),
    "the portal of a BEGIN described": (run(b"BEGIN") + SYNC, PORTAL + SYNC, query(READ)),
    "the portal of a BEGIN run again": (run(b"BEGIN") + SYNC, execute(b"") + SYNC),
    "the portal of a SAVEPOINT described": (query(b"BEGIN"), run(b"SAVEPOINT a") + SYNC, PORTAL + SYNC, query(READ)),
    "a Query behind messages without a Sync": (
        run(b"SELECT value FROM stock WHERE id = 2") + query(READ), SYNC,
    ),
    "a function called in a transaction that failed": (
        run(b"BEGIN") + SYNC, b"E\0\0\0\7p\0\0" + SYNC, FUNCTION, query(b"ROLLBACK"), FUNCTION,
    ),
    "a function called behind a read": (WHOLE + SYNC, FUNCTION, AGAIN, query(b"BEGIN"), WHOLE + SYNC, FUNCTION, AGAIN),
    "a Parse that is not read": (OTHER, WHOLE + SYNC, parse(b"", b"SELECT '\xff'") + SYNC, AGAIN),
    "a Query that is not read": (OTHER, WHOLE + SYNC, query(b"SELECT '\xff'"), AGAIN),
    "a BEGIN that declares a parameter": (
        parse(b"", b"BEGIN", [23]) + bind(b"", b"") + execute(b"") + SYNC, query(READ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_is_said_on_both_ways(client: RawClient, direct: RawClient, inner: InnerProxy, case: str) -> None:
    for data in (query(READ), WHOLE + SYNC):
        warm(client, data)
        direct.exchange(data)
    hits = inner.proxy.node.hits()
    for data in CASES[case]:
        assert said(client, data) == said(direct, data)
    assert WHOLE not in b"".join(CASES[case]) or inner.proxy.node.hits() > hits


def test_a_portal_that_memory_ran_is_not_run_in_a_failed_transaction(client: RawClient, direct: RawClient) -> None:
    warm(client, WHOLE + SYNC)
    for each in (client, direct):
        each.exchange(query(b"BEGIN"))
        each.exchange(WHOLE + SYNC)
        each.exchange(bind(b"", b"nothing") + SYNC)
        for data in (PORTAL, execute(b"")):
            assert [kind[:1] for kind in each.exchange(data + SYNC)] == [b"E", b"Z"]


# ---- waiting for each other ----


def test_nobody_waits_for_the_read_of_a_group_that_is_not_finished(
    stock: Database, make_inner_proxy: MakeInnerProxy
) -> None:
    """Not the one who sent it either: it is kept when the group's Sync has been answered."""
    inner = make_inner_proxy(stock.url(), {"cache.single_flight_wait": "10min"})
    with RawClient(inner.host, inner.port, stock.name) as one, RawClient(inner.host, inner.port, stock.name) as other:
        for client in (one, other):
            warm(client, WHOLE + SYNC)
        texts = (parse(b"", READ + b" AND value > -%d" % number) for number in range(10_000))

        def being_kept() -> bytes:
            one.sync()
            read = next(texts) + bind(b"", b"") + execute(b"")
            one.send(read + FLUSH)
            assert [each[:1] for each in one.until(b"C")] == [b"1", b"2", b"D", b"C"]
            return read if any(each.fills for each in list(inner.proxy.node.live)) else b""

        while not (read := being_kept()):
            pass
        one.send(read + FLUSH)
        assert [each[:1] for each in one.until(b"C")] == [b"1", b"2", b"D", b"C"]
        assert other.exchange(read + SYNC)[-1] == b"Z\0\0\0\5I"
        one.sync()


# ---- silence ----


def looks(inner: InnerProxy, count: int) -> None:
    """Let that many looks at the session pass: each is a quarter of its timeout."""
    (session,) = inner.proxy.node.live
    for _ in range(count):
        inner.call(_look(session))


async def _look(session: Session) -> None:
    session.presence._look()


@pytest.mark.parametrize("begin", [[], [b"BEGIN", b"SELECT count(*) FROM stock"]], ids=["session", "transaction"])
def test_a_session_that_is_answered_from_memory_is_not_silent(
    client: RawClient, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, begin: list[bytes]
) -> None:
    """The server is told that somebody is there, as often as it has to be."""
    told = syncs(monkeypatch)
    client.exchange(query(b"SET idle_in_transaction_session_timeout = '1h'"))
    client.exchange(query(b"SET idle_session_timeout = '1h'"))
    warm(client, query(READ))
    for sql in begin:
        client.exchange(query(sql))
    looks(inner, 2)
    count = len(told)
    looks(inner, 2)
    assert len(told) == count, "nobody was there"
    before = inner.proxy.node.hits()
    client.exchange(query(READ))
    looks(inner, 2)
    assert inner.proxy.node.hits() == before + 1
    assert len(told) == count + 1


def test_a_transaction_that_was_only_begun_here_is_opened_before_the_server_would_end_it(
    client: RawClient, inner: InnerProxy
) -> None:
    client.exchange(query(b"SET idle_in_transaction_session_timeout = '1h'"))
    warm(client, query(READ))
    client.exchange(query(b"BEGIN"))
    (session,) = inner.proxy.node.live
    assert session.txn.local
    looks(inner, 1)
    until(lambda: not session.txn.local and session.replies.status == b"T" and not session.waiting, "not opened")
    assert client.rows(query(READ)) == [[b"1"]]
    assert client.exchange(query(b"COMMIT")) == [b"C\0\0\0\x0bCOMMIT\0", b"Z\0\0\0\5I"]


def test_where_no_timeout_is_set_nobody_looks(client: RawClient, inner: InnerProxy) -> None:
    warm(client, query(READ))
    (session,) = inner.proxy.node.live
    assert not session.presence._every
    client.exchange(query(b"SET idle_session_timeout = '1h'"))
    warm(client, query(READ))
    assert session.presence._every == 900
    client.exchange(query(b"RESET idle_session_timeout"))
    warm(client, query(READ))
    assert not session.presence._every


@kept_and_muted
def test_the_server_ends_a_silent_session_and_no_other(
    client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 12. Muted: it ends the one that is busy, since it hears nothing of it."""
    if muted:
        monkeypatch.setattr(Presence, "expected", lambda self, idle_ms: None)
    for each in (client, second):
        warm(each, query(READ))
    for each in (client, second):  # one of them says nothing for as long as the other needs for this
        each.exchange(query(b"SET idle_session_timeout = '%ds'" % (4 if muted else 15)))
        each.exchange(query(b"SET idle_in_transaction_session_timeout = '3s'"))
        warm(each, query(READ))
    second.exchange(query(b"BEGIN"))
    ended: list[bytes] = []

    def one_is_ended() -> bool:
        client.send(query(READ))
        said = [client.message()]
        while said[-1][:1] not in (b"Z", b"E"):
            said.append(client.message())
        ended.extend(each for each in said if each[:1] == b"E")
        if select.select([second.socket], [], [], 0.1)[0]:
            ended.append(second.message())
        return bool(ended)

    until(one_is_ended, "nobody is ended")
    assert (b"C25P03" in ended[0]) is not muted
    assert (b"C57P05" in ended[0]) is muted


# ---- notifications ----


@kept_and_muted
def test_who_listens_is_notified_between_transactions(
    stock: Database, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Proxy trap 13. Muted: it is notified in the midst of a transaction."""
    if muted:
        monkeypatch.setattr(questions, "read_scope", lambda *given: replace(read_scope(*given), listens=False))
    client.exchange(query(b"LISTEN news"))
    warm(client, query(READ))
    client.exchange(query(b"BEGIN"))
    assert client.rows(query(READ)) == [[b"1"]]
    stock.execute("NOTIFY news")
    second.exchange(query(b"LISTEN news"))
    stock.execute("NOTIFY news, 'again'")
    assert second.message()[:1] == b"A", "both were sent"

    def is_notified() -> bool:
        return b"A" in [each[:1] for each in client.exchange(query(READ))]

    if muted:  # each process of the server sends it in its own time
        until(is_notified, "muted, and yet not notified")
        return
    assert not is_notified()
    assert [each[:1] for each in client.exchange(query(b"COMMIT"))] == [b"C", b"A", b"A", b"Z"]
    client.exchange(query(b"UNLISTEN *"))
    warm(client, query(READ))
    client.exchange(query(b"BEGIN"))


def syncs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    told: list[bytes] = []
    sync = Questions.sync

    def noted(self: Questions) -> None:
        told.append(SYNC)
        sync(self)

    monkeypatch.setattr(Questions, "sync", noted)
    return told
