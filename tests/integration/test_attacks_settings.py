"""A setting that changes what PostgreSQL answers is part of who asks: attacks by settings that nobody saw being set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import Database, MakePostgres
from fix_proxy import InnerProxy, MakeInnerProxy
from fix_stock import warm
from rawclient import RawClient

from distribcache.catalog.resolve import resolve
from distribcache.cli.postgres import Postgres
from distribcache.coherence import scope
from distribcache.sql import settings
from distribcache.sql.cacheability import Name, Names
from distribcache.wire.messages import query

READ = query(b"SELECT value FROM shown")
STOCK = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE VIEW shown AS SELECT value FROM stock",
)
CLOSED = "-c restrict_nonsystem_relation_kind=view"


def test_a_session_that_may_read_no_views_is_shown_none(stock: Database, inner: InnerProxy, client: RawClient) -> None:
    warm(client, READ)
    with RawClient(inner.host, inner.port, stock.name, options=CLOSED) as closed:
        assert closed.rows(READ) == []
    assert client.rows(READ) == [[b"1"]]


def test_a_type_whose_text_the_session_reads_in_its_own_way(
    debian_bin: Path, make_postgres: MakePostgres, database_on: Callable[[Postgres], Database],
    make_inner_proxy: MakeInnerProxy,
) -> None:  # fmt: skip
    """isn_weak() is no setting: what one session takes for a number is an error to another."""
    database = database_on(make_postgres(bin_dir=debian_bin))
    if not database.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'isn'"):
        pytest.skip("no isn here")
    database.execute(*STOCK, "CREATE EXTENSION isn")
    inner = make_inner_proxy(database.url())
    read = query(b"SELECT '978-0-393-04002-1'::isbn13 FROM stock")
    with (
        RawClient(inner.host, inner.port, database.name) as weak,
        RawClient(inner.host, inner.port, database.name) as strict,
    ):
        weak.exchange(query(b"SELECT isn_weak(true)"))
        for _ in range(3):
            assert weak.rows(read) == [[b"978-0-393-04002-9!"]]
            assert weak.rows(query(b"SHOW distribcache.last"))[0][2] == b"user_type"
            assert strict.rows(read) == []


async def test_where_rows_are_kept_elsewhere_nothing_is_cached(stock: Database) -> None:
    """Citus has ordinary tables whose rows are on other servers: their changes are in no stream of ours. Here it is an
    entry of the catalogue only.
    """
    analyses = []
    for entry in ("", "INSERT INTO pg_extension SELECT 99999, 'citus', 10, 11, false, '1', NULL, NULL"):
        with stock.connect() as connection:
            connection.execute("SET search_path = pg_catalog")
            if entry:
                connection.execute(entry)

            async def ask(sql: str, params: Sequence[object] = (), on: Any = connection) -> list[tuple[Any, ...]]:
                found = on.execute(sql.encode(), params or None)
                return list(found.fetchall()) if found.description else []

            analyses.append(await resolve(ask, ("pg_catalog", "public"), Names(relations=(Name(None, "stock"),))))
    assert analyses[0].refusal is None
    assert analyses[1].refusal is not None and analyses[1].refusal.code == "foreign_table"


@pytest.mark.sabotage
def test_muted_the_view_is_shown(stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is not part of the key."""
    keyed = tuple(name for name in settings.KEYED if not name.startswith("restrict_"))
    for module in (settings, scope):
        monkeypatch.setattr(module, "KEYED", keyed)
    with RawClient(inner.host, inner.port, stock.name) as client:
        warm(client, READ)
        with RawClient(inner.host, inner.port, stock.name, options=CLOSED) as closed:
            assert closed.rows(READ) == [[b"1"]]
