"""Drivers keep statements prepared; one that was prepared before a table of its name came into an earlier schema reads
the old one still. What the cache keeps under the text is the answer of whoever prepares it now.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from fix_library import Shop, hit
from muted import kept_and_muted

from distribcache import DistribCache
from distribcache.library.drivers.with_asyncpg import AsyncpgSession
from distribcache.library.drivers.with_psycopg import AsyncSession

READ = "SELECT name FROM item WHERE id = $1"


@kept_and_muted
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_is_kept_is_what_the_text_means_now(
    shop: Shop, cache: DistribCache, driver: str, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muted: the driver may take the statement that it has."""
    if muted:
        for kind in (AsyncpgSession, AsyncSession):
            run: Any = kind.run
            as_held = lambda self, *args, _run=run, anew=False, **more: _run(self, *args, **more)
            monkeypatch.setattr(kind, "run", as_held)
    schema = f"early_{driver}_{muted}".lower()
    shop.outside(f"CREATE SCHEMA {schema}")
    source: Any
    if driver == "asyncpg":
        path = {"search_path": f"{schema}, public"}
        source = await asyncpg.create_pool(shop.url, min_size=1, max_size=1, server_settings=path)
    else:
        source = await shop.psycopg(options=f"-c search_path={schema},public", prepare_threshold=0)
    assert await hit(cache, source, READ, 5, consistency="strict") == [("item 5",)]
    shop.outside(f"CREATE TABLE {schema}.item AS SELECT 5 AS id, 'early'::text AS name")
    found = await hit(cache, source, READ, 5, consistency="strict")
    await source.close()
    assert (found == [("early",)]) is not muted, found
