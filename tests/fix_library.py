"""The library in the test's own process, in front of a database of its own.

``shop``    a small ``item`` table for one test module, and ways to make caches in front of it. Freshness may take its
            time (``hit_wait`` 2 s), so that on a busy machine a read that can be served is served.
``cache``   one of them, serving, for one test
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from fix_postgres import Database, create_database, drop_database
from followed import eventually
from wait import until

from distribcache import DistribCache, DistribCacheConfig, Row
from distribcache.cli.postgres import Postgres
from distribcache.coherence.live import DatabaseCoherence
from distribcache.library import planning

__all__ = ["Shop", "cache", "hit", "hit_sync", "settled", "shop"]

planning._PATIENCE_S = 30.0  # type: ignore[misc]  # a busy machine may need more than a second for an analysis
PATIENT = {"freshness_hit_wait": "2s", "freshness_max_staleness": "10s", "cache_single_flight_wait": "60s"}
# Roles are the server's, and other tests have some of these names too.
ROLES = """
DO $$ DECLARE name text; BEGIN
  FOREACH name IN ARRAY ARRAY['ann', 'bob', 'app'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN EXECUTE format('CREATE ROLE %I LOGIN', name); END IF;
  END LOOP;
  GRANT ann, bob TO app;
END $$
"""


@dataclass(frozen=True)
class Shop:
    """A database with ``item`` (100 rows), ``note`` with row security by role, ``diary`` by a setting."""

    database: Database

    @property
    def url(self) -> str:
        return self.database.url()

    def conninfo(self, user: str = "postgres", **more: str | int) -> str:
        return self.database.conninfo(user, **more)

    def outside(self, *statements: str) -> list[tuple[Any, ...]]:
        """Statements of somebody who knows nothing of any cache."""
        return self.database.execute(*statements)

    def config(self, **settings: Any) -> DistribCacheConfig:
        return DistribCacheConfig(**{"upstream_url": self.url, **PATIENT, **settings})

    @asynccontextmanager
    async def cache(self, **settings: Any) -> AsyncIterator[DistribCache]:
        async with DistribCache(self.config(**settings), log=lambda _: None) as cache:
            assert await cache.ready("60s"), cache.stats()
            await settled(cache)
            yield cache

    async def psycopg(self, user: str = "postgres", **more: Any) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.conninfo(user), **{"autocommit": True, **more})


async def settled(cache: DistribCache) -> None:
    """Wait until the second look after the last change of the catalogue is over: it may move the schema slot, and with
    it all that is believed of connections.
    """
    coherence = cache._keeper.coherence
    if isinstance(coherence, DatabaseCoherence):
        await eventually(lambda: coherence.serving and not coherence.coverage.settle_at, coherence.report)


async def hit(cache: DistribCache, source: Any, sql: str, *args: Any, **wishes: Any) -> list[Row]:
    """The rows, from memory: read again until they come from there. The first second after a start may move the schema
    slot, and a busy machine may prove freshness too late.
    """
    for _ in range(3000):
        rows = await cache.fetch(source, sql, *args, **wishes)
        if cache.last.status == "hit":
            return rows
        await asyncio.sleep(0.02)
    raise AssertionError(f"never a hit: {cache.last} {cache.stats()}")


def hit_sync(cache: DistribCache, source: Any, sql: str, *args: Any) -> list[Row]:
    """The same without asyncio."""
    until(lambda: (cache.fetch_sync(source, sql, *args), cache.last.status == "hit")[1], lambda: f"{cache.last}")
    return cache.fetch_sync(source, sql, *args)


@pytest.fixture(scope="module")
def shop(postgres: Postgres) -> Iterator[Shop]:
    database = create_database(postgres, "shop")
    database.execute(
        ROLES,
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price numeric)",
        "INSERT INTO item SELECT i, 'item ' || i, i * 1.5 FROM generate_series(1, 100) i",
        "CREATE TABLE note (id int PRIMARY KEY, owner name NOT NULL, body text)",
        "INSERT INTO note VALUES (1, 'ann', 'of ann'), (2, 'bob', 'of bob')",
        "ALTER TABLE note ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON note USING (owner = current_user)",
        "CREATE TABLE diary (id int PRIMARY KEY, tenant text NOT NULL, body text)",
        "INSERT INTO diary VALUES (1, 'red', 'of red'), (2, 'blue', 'of blue')",
        "ALTER TABLE diary ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON diary USING (tenant = current_setting('app.tenant', true))",
        "GRANT SELECT ON item, note, diary TO PUBLIC",
    )
    yield Shop(database)
    drop_database(database)


@pytest.fixture
async def cache(shop: Shop) -> AsyncIterator[DistribCache]:
    async with shop.cache() as made:
        yield made
