"""Rows that a read pins, with parameters as each driver sends them: the row's change ends the entry, others' do not."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from fix_library import Shop, hit
from muted import kept_and_muted

from distribcache import DistribCache
from distribcache.library.drivers.with_asyncpg import AsyncpgSession

KEYS: dict[str, tuple[Any, Any]] = {
    "int2": (-7, 8),
    "int4": (70_000, 70_001),
    "int8": (1 << 40, -(1 << 40)),
    "text": ("tea 'ü' \\ \"x\"", "01"),
    "varchar(20)": ("", "a"),
    "uuid": (UUID(int=1041), UUID(int=7)),
    "bool": (True, False),
    "date": (dt.date(2004, 2, 29), dt.date(1, 1, 1)),
    "numeric": (7, 8),
    "timestamptz": (dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 1, 1, tzinfo=dt.UTC)),
}
ROWS = {"int2", "int4", "int8", "text", "varchar(20)", "uuid", "bool", "date"}
ARRAYS = {("asyncpg", kind) for kind in ROWS - {"text"}} | {
    ("psycopg", kind) for kind in ("int2", "int4", "int8", "varchar(20)", "date")
}
"""Where an array of such keys pins them: no escape is undone, and psycopg writes other forms of some in an array."""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("kind", KEYS)
async def test_a_change_of_the_pinned_row_is_seen(shop: Shop, cache: DistribCache, kind: str, driver: str) -> None:
    mine, others = KEYS[kind]
    with shop.database.connect() as outside:
        outside.execute(f"DROP TABLE IF EXISTS keyed; CREATE TABLE keyed (k {kind} PRIMARY KEY, n int)")
        outside.execute("INSERT INTO keyed VALUES (%s, 0), (%s, 0)", [mine, others])
        source: Any = await (asyncpg.connect(shop.url) if driver == "asyncpg" else shop.psycopg())
        text = "SELECT n FROM keyed WHERE k = $1"
        assert await hit(cache, source, text, mine) == [(0,)]
        assert await hit(cache, source, "SELECT n FROM keyed WHERE k IN ($1, $2)", mine, mine) == [(0,)]
        several = "SELECT n FROM keyed WHERE k = ANY ($1)"
        assert await hit(cache, source, several, [mine]) == [(0,)]
        stayed = both = 0
        for n in range(1, 7):
            outside.execute("UPDATE keyed SET n = n + 1 WHERE k = %s", [others])
            await cache.fetch(source, text, mine, consistency="strict")
            stayed += cache.last.status == "hit"
            await cache.fetch(source, several, [mine], consistency="strict")
            both += cache.last.status == "hit"
            if n % 2:
                outside.execute("UPDATE keyed SET n = %s WHERE k = %s", [n, mine])
                for sql, given in ((text, mine), (several, [mine])):
                    assert await cache.fetch(source, sql, given, consistency="strict") == [(n,)]
        assert (stayed > 0) is (kind in ROWS), cache.last
        assert (both > 0) is ((driver, kind) in ARRAYS), cache.last
        outside.execute("DELETE FROM keyed WHERE k = %s", [mine])
        for sql, given in ((text, mine), (several, [mine])):
            assert await cache.fetch(source, sql, given, consistency="strict") == []
        await source.close()


@kept_and_muted
async def test_codecs_of_ones_own_pin_nothing(
    shop: Shop, cache: DistribCache, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coherence trap 6: what asyncpg sends is not what it was given."""
    if muted:
        plain = AsyncpgSession.bound

        def believing(self: AsyncpgSession, question: Any) -> Any:
            self._honest = True
            return plain(self, question)

        monkeypatch.setattr(AsyncpgSession, "bound", believing)
    connection = await asyncpg.connect(shop.url)
    await connection.set_type_codec(
        "int4", schema="pg_catalog", encoder=lambda value: str(value + 1), decoder=lambda text: int(text)
    )
    text = "SELECT name FROM item WHERE id = $1"
    assert await hit(cache, connection, text, 80) == [("item 81",)]
    shop.outside("UPDATE item SET name = 'changed' WHERE id = 81")
    assert (await cache.fetch(connection, text, 80, consistency="strict") == [("changed",)]) is not muted
    shop.outside("UPDATE item SET name = 'item 81' WHERE id = 81")
    await connection.close()
