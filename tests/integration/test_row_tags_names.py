"""Row tags are off where a name may mean something of a user's: then a write ends every answer about its table."""

from __future__ import annotations

import psycopg
import pytest
from fix_postgres import Database

from distribcache.catalog.facts import Answer, Support
from distribcache.catalog.resolve import resolve
from distribcache.catalog.rows import pinnable
from distribcache.sql.cacheability import Name
from distribcache.sql.parse import read

TEXT = b"SELECT a FROM t WHERE id = 1"
LENIENT = (
    "CREATE TYPE pair AS (a int)",
    "CREATE FUNCTION same(pair, pair) RETURNS bool LANGUAGE sql IMMUTABLE RETURN true",
    "CREATE OPERATOR = (LEFTARG = pair, RIGHTARG = pair, FUNCTION = same)",
)
OF_INT = (
    "CREATE FUNCTION equal(int, int) RETURNS bool LANGUAGE sql IMMUTABLE STRICT RETURN $1 - $2 = 0",
    "CREATE OPERATOR = (LEFTARG = int, RIGHTARG = int, FUNCTION = equal)",
)


async def rows(database: Database, *schemas: str, text: bytes = TEXT) -> bool:
    """May the rows of what ``text`` reads be pinned?"""
    async with await psycopg.AsyncConnection.connect(database.conninfo(), autocommit=True) as connection:
        await connection.execute("SET search_path = pg_catalog")

        async def ask(sql: str, parameters: object) -> list[tuple[object, ...]]:
            return await (await connection.execute(sql.encode(), parameters or None)).fetchall()  # type: ignore[arg-type]

        names = read(text).statements[0].names
        return bool((await resolve(ask, schemas, names)).rows)


@pytest.mark.parametrize(
    ("made", "schemas", "pinned"),
    [
        ((), ("pg_catalog", "public"), True),
        ((), ("public", "pg_catalog"), False),
        (LENIENT, ("pg_catalog", "public"), False),
        (OF_INT, ("pg_catalog", "public"), False),
        (OF_INT, ("pg_catalog", "other"), True),
    ],
    ids=["plain", "pg_catalog is not first", "an = that NULL passes", "an = of integers", "an = elsewhere"],
)
async def test_names(database: Database, made: tuple[str, ...], schemas: tuple[str, ...], pinned: bool) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a int)", "CREATE SCHEMA other", *made)
    if "other" in schemas:
        database.execute("ALTER TABLE t SET SCHEMA other")
    assert await rows(database, *schemas) is pinned


@pytest.mark.parametrize(
    ("strict", "operand", "pinned"), [(True, 90_001, True), (False, 90_001, False), (True, 23, False)]
)
def test_an_equality_of_an_extension(strict: bool, operand: int, pinned: bool) -> None:
    """Its body is not looked into; it must reject NULL and not be about the types of pins."""
    name = Name(None, "t")
    answer = Answer(relation_of={name: 20_000})
    facts = {
        "schema": "public", "name": "t", "kind": "r", "persistence": "p", "method": "heap", "slot": True,
        "definition": None, "policies": None, "virtual": None, "columns": {"id": 23}, "exact": ["id"],
        "identity": ["id"],
    }  # fmt: skip
    answer._relation(20_000, facts)
    answer.supports["operator", 90_000] = Support("operator", "=", 90_002, (operand, operand), strict)
    assert bool(pinnable(answer, ("pg_catalog", "public"))) is pinned


async def test_what_a_policy_reads_is_read_whole(database: Database) -> None:
    """Though the text pins a row of it as well."""
    database.execute(
        "CREATE TABLE member (id int PRIMARY KEY, doc int)",
        "CREATE TABLE doc (id int PRIMARY KEY, body text)",
        "ALTER TABLE doc ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY plain ON doc USING (body <> 'secret')",
    )
    text = b"SELECT d.body FROM doc d JOIN member m ON m.id = 7 WHERE d.id = 1"
    assert await rows(database, "pg_catalog", "public", text=text)
    database.execute("CREATE POLICY theirs ON doc USING (id IN (SELECT m.doc FROM member m))")
    assert not await rows(database, "pg_catalog", "public", text=text)
