"""A shop behind a proxy, for many tests: one database and one proxy per test module.

``world``   a small ``item`` table, a direct way and one through the proxy. Freshness may take its time (``hit_wait``
            2 s), so that on a busy machine a read that can be served is served: these tests ask whether, not how fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from fix_postgres import Database, create_database, drop_database
from fix_proxy import ProxyProcess, proxies
from rawclient import RawClient
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence.lsn import parse_lsn

__all__ = ["World", "until_hits", "world"]

SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}


@dataclass(frozen=True)
class World:
    database: Database
    proxy: ProxyProcess

    def direct(self) -> RawClient:
        server = self.database.server
        return RawClient(server.host, server.port, self.database.name)

    def through(self) -> RawClient:
        return RawClient(self.proxy.host, self.proxy.port, self.database.name)

    def hits(self) -> float:
        return self.proxy.statistics()["hits_total"]

    def quiet(self) -> int:
        """How many alarms there were, when the stream has brought all that was committed and none is pending."""
        shown: dict[str, str] = {}
        with self.proxy.connect() as watch:

            def arrived() -> bool:
                ((position,),) = self.database.execute("SELECT pg_current_wal_flush_lsn()::text")
                watch.execute("SELECT count(*) FROM item")
                shown.update(watch.execute("SHOW distribcache.freshness").fetchall())
                done = shown["serving"] == "True" and shown["pending_alarms"] == "0"
                return done and parse_lsn(shown["applied"].encode()) >= parse_lsn(str(position).encode())

            until(arrived, lambda: f"never quiet: {shown}")
        return int(shown["alarms"])


@pytest.fixture(scope="module")
def world(postgres: Postgres) -> Iterator[World]:
    database = create_database(postgres)
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price numeric)",
        "INSERT INTO item SELECT i, 'item ' || i, i * 1.5 FROM generate_series(1, 100) i",
        "CREATE TABLE note (id serial PRIMARY KEY, body text)",
    )
    with proxies() as make:
        yield World(database, make(database.url(), SETTINGS))
    drop_database(database)


def until_hits(world: World, reads: Callable[[], object], hits: int = 1, seconds: float = 60.0) -> None:
    """Repeat ``reads`` (which asserts its own rows) until two rounds in a row bring at least ``hits`` hits each.

    A hit that waits more than a few ms for freshness goes upstream, which a busy machine may do to any single one.
    """

    def warm() -> bool:
        before = world.hits()
        reads()
        return world.hits() - before >= hits

    until(lambda: warm() and warm(), lambda: f"never {hits} hits twice: {world.proxy.status()}", seconds)
