"""A text that the server cannot even read leaves the unnamed statement what it was; one that it reads replaces it.

The error has the same code in both cases. Whoever gets it wrong runs another statement than the client has prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fix_postgres import Database, create_database, drop_database
from fix_proxy import InnerProxy, MakeInnerProxy
from fix_stock import warm
from rawclient import RawClient, run

from distribcache.cli.postgres import Postgres
from distribcache.proxy import forward, simple, single
from distribcache.wire.messages import SYNC, bind, describe, execute, parse, query, read_error

READ = b"SELECT value FROM stock WHERE id = 1"
STOCK = ("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1), (2, 2)")
WHOLE = parse(b"", READ) + bind(b"", b"") + describe(b"P", b"") + execute(b"") + SYNC
OTHER = run(b"SELECT value FROM stock WHERE id = 2") + SYNC
AGAIN = bind(b"", b"") + execute(b"") + SYNC
"""Whatever the unnamed statement is."""

TEXTS: dict[str, tuple[str, bytes]] = {
    "no text of the client's encoding": ("UTF8", b"SELECT value FROM stock WHERE '\xff' <> ''"),
    "no bytes of it, written as escapes": ("UTF8", rb"SELECT value FROM stock WHERE E'\xff' <> ''"),
    "the same, in a text that has others": ("UTF8", "SELECT value FROM stock WHERE E'\\xff' <> 'ö'".encode()),
    "not in the encoding of the database": ("LATIN1", "SELECT value FROM stock WHERE '€' <> ''".encode()),
    "the same in a comment": ("LATIN1", "SELECT value FROM stock /* € */".encode()),
    "the same, written as an escape": ("LATIN1", rb"SELECT value FROM stock WHERE U&'\20AC' <> ''"),
    "with another sign": ("LATIN1", b"SELECT value FROM stock WHERE U&'!20AC' UESCAPE '!' <> ''"),
    "it has only others": ("LATIN1", "SELECT value FROM stock WHERE 'ö' <> ''".encode()),
}
UNSURE = [
    sql
    for label, (_, sql) in TEXTS.items()
    if label in ("not in the encoding of the database", "the same in a comment")
]
"""A Query with such a text may also have been run and have met the character then, so nothing is left behind it."""
GONE = [b"E 26000", b"Z\0\0\0\5I"]
SHAPES = {
    "a Parse": lambda sql: parse(b"", sql) + SYNC,
    "a whole unit": lambda sql: parse(b"", sql) + bind(b"", b"") + describe(b"P", b"") + execute(b"") + SYNC,
    "a Query": query,
    "a named statement": lambda sql: parse(b"named", sql) + SYNC,
}


@dataclass(frozen=True)
class Place:
    database: Database
    proxy: InnerProxy
    texts: dict[str, bytes]


@pytest.fixture(scope="module", params=["UTF8", "LATIN1"])
def place(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Place]:
    database = create_database(postgres, encoding=request.param)
    database.execute(*STOCK)
    proxy = InnerProxy(database.url(), {"freshness.max_staleness": "30s", "freshness.hit_wait": "10s"})
    yield Place(database, proxy, {label: sql for label, (where, sql) in TEXTS.items() if where == request.param})
    proxy.stop()
    drop_database(database)


def said(client: RawClient, data: bytes) -> list[bytes]:
    """The answer to ``data``; of an error only what concerns the client."""
    return [
        f"E {read_error(memoryview(each)[5:]).sqlstate}".encode() if each[:1] == b"E" else each
        for each in client.exchange(data)
    ]


@pytest.mark.parametrize("before", ["from memory", "upstream"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_run_behind_it_is_what_was_prepared(place: Place, shape: str, before: str) -> None:
    for label, sql in place.texts.items():
        ahead = [OTHER, WHOLE] if before == "from memory" else [WHOLE, OTHER]
        answers = []
        for server in (place.database.server, place.proxy):
            with RawClient(server.host, server.port, place.database.name, client_encoding="UTF8") as client:
                if server is place.proxy:
                    warm(client, WHOLE)
                answers.append([said(client, data) for data in (*ahead, SHAPES[shape](sql), AGAIN)])
        if shape == "a Query" and sql in UNSURE:
            answers[0][-1] = GONE
        if answers[1] != answers[0]:
            raise AssertionError(f"{label}: {answers[1]} instead of {answers[0]}")


def test_what_it_ran_may_say_the_same(place: Place) -> None:
    """Then the statement is gone, though the text holds other characters."""
    for text in ("SELECT convert_from(decode('ff', 'hex'), 'UTF8'), 'ö'", "SELECT '€'::text COLLATE \"ö\""):
        answers = []
        for server in (place.database.server, place.proxy):
            with RawClient(server.host, server.port, place.database.name, client_encoding="UTF8") as client:
                if server is place.proxy:
                    warm(client, WHOLE)
                answers.append([said(client, data) for data in (OTHER, WHOLE, query(text.encode()), AGAIN)])
        assert answers[1][:3] == answers[0][:3]
        assert answers[1][3] in (answers[0][3], GONE)


@pytest.mark.sabotage
def test_muted_another_statement_is_run(
    postgres: Postgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (forward, simple, single):
        monkeypatch.setattr(module, "refused", lambda s, *_, **__: s.statements.pop(b"", None))
    database = create_database(postgres, encoding="LATIN1")
    database.execute(*STOCK)
    inner = make_inner_proxy(database.url(), {"freshness.max_staleness": "30s"})
    with RawClient(inner.host, inner.port, database.name, client_encoding="UTF8") as client:
        warm(client, WHOLE)
        for data in (OTHER, WHOLE, query("SELECT '€'".encode())):
            said(client, data)
        monkeypatch.undo()
        assert client.rows(AGAIN) == [[b"2"]], "the one before it"
