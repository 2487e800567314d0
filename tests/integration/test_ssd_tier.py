"""L2 behind the proxy: what has left memory comes back from the disk, as far as it still holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from inside import warm_of
from muted import kept_and_muted
from wait import until

from distribcache.coherence.live import DatabaseCoherence
from distribcache.store import Store
from distribcache.tiers.base import Record
from distribcache.tiers.warm import WarmCache

PAGE = "SELECT id, value, repeat('x', 100) AS pad FROM stock ORDER BY id"
SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "2s", "audit.sample": "0"}

Connection = psycopg.Connection[Any]


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        "INSERT INTO stock SELECT i, 1 FROM generate_series(1, 40) i",
    )
    return database


@pytest.fixture
def make_node(stock: Database, tmp_path: Path, make_inner_proxy: MakeInnerProxy) -> Callable[..., InnerProxy]:
    """A node in front of the test's database, with a directory of its own for L2."""
    return lambda **more: make_inner_proxy(stock.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2"), **more})


def as_olap(proxy: InnerProxy) -> Connection:
    connection = proxy.connect(prepare_threshold=None)
    connection.execute("SET distribcache.workload = 'olap'")
    return connection


def written(proxy: InnerProxy, connection: Connection, sql: str = PAGE) -> list[Any]:
    """Read until the answer is on disk."""
    before = warm_of(proxy).stats().entries
    rows: list[Any] = []

    def stored() -> bool:
        nonlocal rows
        rows = connection.execute(sql).fetchall()
        return warm_of(proxy).stats().entries > before

    until(stored, lambda: f"never written: {warm_of(proxy).stats()}")
    return rows


def forget(proxy: InnerProxy) -> None:
    """Drop L1."""

    async def clear() -> None:
        proxy.proxy.node.l1.clear()

    proxy.call(clear())


def test_what_memory_has_lost_comes_back(make_node: Callable[..., InnerProxy]) -> None:
    proxy = make_node()
    with as_olap(proxy) as a:
        rows = written(proxy, a)
        assert len(rows) == 40
        forget(proxy)
        assert a.execute(PAGE).fetchall() == rows
        assert (last(a)["status"], last(a)["tier"]) == ("hit", "L2")
        assert a.execute(PAGE).fetchall() == rows
        assert (last(a)["status"], last(a)["tier"]) == ("hit", "L1"), "it has come up"
        shown = a.execute("SHOW distribcache.tiers").fetchall()
        assert [row[0] for row in shown] == ["L1", "L2"]


def test_a_prepared_statement_and_a_text_do_not_meet_there(make_node: Callable[..., InnerProxy]) -> None:
    """Digests are of contents: no two requests that L1 keeps apart are one below it."""
    proxy = make_node()
    texts = [f"SELECT id, repeat('{letter}', 100) FROM stock WHERE value < %s" for letter in "xy"]
    with proxy.connect() as a, proxy.connect() as b:
        for connection in (a, b):
            connection.execute("SET distribcache.workload = 'olap'")
        for connection, text in ((a, texts[0]), (b, texts[1])):
            for _ in range(3):  # two connections send the same bytes under the same name for different texts
                connection.execute(text, (5,), prepare=True).fetchall()
        until(lambda: warm_of(proxy).stats().entries >= 2, lambda: f"never written: {warm_of(proxy).stats()}")
        forget(proxy)
        for connection, letter in ((a, "x"), (b, "y")):
            rows = connection.execute(texts["xy".index(letter)], (5,), prepare=True).fetchall()
            assert {row[1] for row in rows} == {letter * 100}
            assert connection.execute(texts["xy".index(letter)], (0,), prepare=True).fetchall() == []


@kept_and_muted
def test_a_commit_ends_what_is_on_disk_too(
    make_node: Callable[..., InnerProxy], stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule R1 on the way up."""
    proxy = make_node()
    if muted:
        monkeypatch.setattr("distribcache.store.valid", lambda *_: True)
        monkeypatch.setattr("distribcache.proxy.lookup.valid", lambda *_: True)
    with as_olap(proxy) as a:
        before = written(proxy, a)
        coherence = proxy.proxy.node.enter(stock.name).coherence
        commits = coherence.counters.commits
        stock.execute("UPDATE stock SET value = 9")
        until(lambda: coherence.counters.commits > commits, "never heard of it")
        forget(proxy)
        outdated = a.execute(PAGE).fetchall() == before
    assert outdated == muted


@kept_and_muted
def test_what_another_coverage_followed_is_nothing_here(
    make_node: Callable[..., InnerProxy], stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule R8: after a restart, or a hole in the stream, what lies on disk was followed by nobody.

    Muted: the epoch of the server is enough, and so is any position.
    """
    if muted:
        monkeypatch.setattr(DatabaseCoherence, "own_epoch", DatabaseCoherence.shared_epoch)
        monkeypatch.setattr("distribcache.store.valid", lambda *_: True)
    first = make_node()
    with as_olap(first) as a:
        before = written(first, a)
    first.stop()
    stock.execute("UPDATE stock SET value = 9")
    second = make_node()
    with as_olap(second) as b:
        outdated = b.execute(PAGE).fetchall() == before
    assert outdated == muted


def test_small_and_short_lived_answers_stay_in_memory(make_node: Callable[..., InnerProxy]) -> None:
    proxy = make_node(**{"ttl.olap": "60s"})
    with as_olap(proxy) as a, as_olap(proxy) as b:
        b.execute("SET distribcache.workload = 'rag'")
        a.execute(PAGE).fetchall()  # lives no longer than the bound
        b.execute("SELECT value FROM stock WHERE id < 5").fetchall()  # small
        rows = written(proxy, b)  # neither
        assert len(rows) == 40
        assert warm_of(proxy).stats().entries == 1


def test_a_full_waiting_room_forgets_the_oldest(
    make_node: Callable[..., InnerProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits to be settled is bounded in number and bytes."""
    monkeypatch.setattr("distribcache.store._WAITING_BYTES", 20_000)
    monkeypatch.setattr(Store, "settle", lambda self: None)
    proxy = make_node()
    with as_olap(proxy) as a:
        for number in range(12):
            a.execute(f"{PAGE} LIMIT 40 OFFSET {number}").fetchall()
        store = proxy.proxy.node.store
        assert 0 < store._waiting_bytes <= 20_000
        assert store._waiting_bytes == sum(len(one.entry[0]) for one in store._waiting)


@pytest.mark.parametrize("most", [100, 1 << 30], ids=["large", "small"])
def test_a_large_answer_is_read_without_holding_anybody_up(
    make_node: Callable[..., InnerProxy], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """What is larger than L2 reads in passing comes up by a thread, by the same rules."""
    monkeypatch.setattr("distribcache.tiers.warm.INLINE", most)
    threads: set[int] = set()
    get = WarmCache.get

    def noted(self: WarmCache, digest: bytes) -> Record | None:
        threads.add(threading.get_ident())
        return get(self, digest)

    monkeypatch.setattr(WarmCache, "get", noted)
    proxy = make_node()
    with as_olap(proxy) as a:
        rows = written(proxy, a)
        forget(proxy)
        threads.clear()
        assert a.execute(PAGE).fetchall() == rows
        assert (last(a)["status"], last(a)["tier"]) == ("hit", "L2")
    assert bool(threads) == (most == 100)
    assert proxy._thread.ident not in threads
