"""Two programs with the library, one L3: an expensive miss is asked once, and what one fetched the other has."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from fix_library import Shop
from muted import kept_and_muted

from distribcache.cli.valkey import Valkey
from distribcache.store import Store

SLOW = "SELECT count(*) FROM item a, item b, item c WHERE (a.id * b.id + c.id) % 7 = 1"


@kept_and_muted
async def test_one_program_asks_for_all(
    shop: Shop, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """64 tasks of two programs want one slow answer at once. Muted: no lease is asked for."""
    if muted:
        monkeypatch.setattr(Store, "dear", lambda *_: False)
    sql = f"{SLOW} AND {int(muted)} = {int(muted)}"
    far = {"l3_peers": valkey.address, "l3_password": valkey.password, "l3_deadline": "10s"}
    async with (
        shop.cache(**far) as first, shop.cache(**far) as second,
        asyncpg.create_pool(shop.url, min_size=2, max_size=4) as one,
        asyncpg.create_pool(shop.url, min_size=2, max_size=4) as other,
    ):  # fmt: skip
        answers = await asyncio.gather(
            *[
                cache.fetch(pool, sql, workload="olap")
                for _ in range(32)
                for cache, pool in ((first, one), (second, other))
            ]
        )
        assert len({rows[0][0] for rows in answers}) == 1
        asked = sum(cache.stats().misses for cache in (first, second))
    assert (asked == 1) == (not muted), asked
