"""An extension's settings are unknown to a session until it runs something of it: attacks by sessions that have, beside
others that have not. They are the same to an answer, and different where somebody has set one.
"""

from __future__ import annotations

import asyncpg
import pytest
from fix_postgres import Database
from fix_stock import warm
from muted import kept_and_muted
from rawclient import RawClient

from distribcache import DistribCache, DistribCacheConfig
from distribcache.coherence import scope
from distribcache.sql.settings import KEYED, UNLOADED
from distribcache.wire.messages import query

SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}
STOCK = (
    "CREATE EXTENSION pg_trgm",
    "CREATE TABLE stock (id int PRIMARY KEY, word text)",
    "INSERT INTO stock VALUES (1, 'word'), (2, 'wordy'), (3, 'other')",
)
LOADS = "SELECT id FROM stock WHERE word % 'word' ORDER BY id"
READ = "SELECT word FROM stock WHERE id = 1"


def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known is something else than what it will be."""
    monkeypatch.setattr(scope, "UNLOADED", {})


def status(client: RawClient) -> bytes | None:
    return client.rows(query(b"SHOW distribcache.last"))[0][0]


def test_they_will_be_what_we_say(stock: Database) -> None:
    with stock.connect() as connection:
        connection.execute(LOADS.encode())
        available = connection.execute("SELECT FROM pg_available_extensions WHERE name = 'vector'").fetchall()
        if available:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("SELECT '[1]'::vector")
        found = connection.execute(
            "SELECT name, boot_val FROM pg_settings WHERE name = ANY (%s)", [list(UNLOADED)]
        ).fetchall()
    assert found == [(name, UNLOADED[name]) for name, _ in found]
    assert len(found) == (len(UNLOADED) if available else 3)
    assert {name for name in KEYED if "." in name} == set(UNLOADED)


@kept_and_muted
def test_a_session_that_has_loaded_one_and_a_session_that_has_not_share_answers(
    client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    if muted:
        mute(monkeypatch)
    client.exchange(query(LOADS.encode()))
    client.exchange(query(b"DO 'BEGIN END'"))  # it is learned again what the session is
    warm(client, query(READ.encode()))
    assert second.rows(query(READ.encode())) == [[b"word"]]
    assert status(second) == (b"miss" if muted else b"hit")


def test_one_that_was_set_before_is_another(client: RawClient, second: RawClient) -> None:
    warm(client, query(LOADS.encode()))
    second.exchange(query(b"SET pg_trgm.similarity_threshold = 0.9"))
    for _ in range(3):
        assert second.rows(query(LOADS.encode())) == [[b"1"]]
        assert client.rows(query(LOADS.encode())) == [[b"1"], [b"2"]]


@kept_and_muted
async def test_a_pool_is_still_believed(stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool) -> None:
    """One connection of it has loaded the extension. Muted: it differs from the other, for good."""
    if muted:
        mute(monkeypatch)
    config = DistribCacheConfig(upstream_url=stock.url(), freshness_max_staleness="30s", freshness_hit_wait="5s")
    async with DistribCache(config) as cache, asyncpg.create_pool(stock.url(), min_size=2, max_size=2) as pool:
        await cache.ready()
        one, other = await pool.acquire(), await pool.acquire()
        await one.execute(LOADS)
        reasons = []
        for number in range(1000 if muted else 5):  # the first may be asked under different states of the catalogue
            await pool.release(one)
            await cache.fetch(pool, f"{READ} -- {number}")  # a miss, so the connection that is free is asked
            one = await pool.acquire()
            await pool.release(other)
            await cache.fetch(pool, f"{READ} -- again {number}")
            other = await pool.acquire()
            reasons.append(cache.last.reason)
            if "pool_differs" in reasons:
                break
        await pool.release(one)
        await pool.release(other)
        assert ("pool_differs" in reasons) is muted, reasons[-3:]
