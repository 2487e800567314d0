"""What applies without being named, or is named like something else, is part of the answer: attacks by both.

A lasting object may depend on another session's temporary function or type; a cast, or an operator class for a built-in
type, applies unasked; an argument of a function, or a function of a row, may be called like a column.

Each case is asked until it is refused for its own reason. Muted, the same read is served, and shows what was before; a
text that is read as ``now`` is another time in every answer that PostgreSQL gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_postgres import Database
from fix_stock import warm
from rawclient import RawClient
from wait import until

from distribcache.catalog import bodies, judgement, resolve
from distribcache.wire.messages import query

STOCK = (
    "CREATE TABLE stock (id int, at timestamp, word text, doc json)",
    """INSERT INTO stock VALUES (1, '2024-01-01', 'now', '"1"'), (2, '2024-01-01', 'now', '"2"')""",
    "CREATE TABLE ways (way int)",
    "INSERT INTO ways VALUES (1)",
)
_SORTED = b"""
CREATE FUNCTION sorts(json, json) RETURNS int STABLE LANGUAGE plpgsql AS
$$ BEGIN RETURN (SELECT way FROM ways) * (CASE WHEN $1::text < $2::text THEN -1 WHEN $1::text > $2::text THEN 1 ELSE 0
END); END $$;
CREATE FUNCTION less(json, json) RETURNS bool STABLE RETURN sorts($1, $2) < 0;
CREATE FUNCTION same(json, json) RETURNS bool STABLE RETURN sorts($1, $2) = 0;
CREATE OPERATOR <# (LEFTARG = json, RIGHTARG = json, FUNCTION = less);
CREATE OPERATOR =# (LEFTARG = json, RIGHTARG = json, FUNCTION = same);
CREATE OPERATOR CLASS sorted DEFAULT FOR TYPE json USING btree
AS OPERATOR 1 <#, OPERATOR 3 =#, FUNCTION 1 sorts(json, json)"""
_RANKED = b"""
CREATE FUNCTION ranks(int, int) RETURNS int STABLE LANGUAGE plpgsql AS
$$ BEGIN RETURN (SELECT way FROM ways) * btint4cmp($1, $2); END $$;
CREATE OPERATOR <# (LEFTARG = int, RIGHTARG = int, FUNCTION = int4lt);
CREATE OPERATOR CLASS ranked FOR TYPE int USING btree AS OPERATOR 1 <#, OPERATOR 3 =, FUNCTION 1 ranks(int, int)"""

# What is made, what is read, what is done then (nothing, where the answer changes by itself), why it is refused.
Case = tuple[list[bytes], bytes, bytes, bytes]
CASES: dict[str, Case] = {
    "type": (
        [b"CREATE TYPE pg_temp.mood AS ENUM ('a')", b"CREATE TABLE moods (m pg_temp.mood)",
         b"INSERT INTO moods VALUES ('a')"],
        b"SELECT m FROM moods", b"ALTER TYPE pg_temp.mood RENAME VALUE 'a' TO 'b'", b"temporary_relation",
    ),
    "domain": (
        [b"CREATE DOMAIN pg_temp.small AS int", b"CREATE VIEW smalls AS SELECT id::pg_temp.small FROM stock"],
        b"SELECT * FROM smalls", b"ALTER DOMAIN pg_temp.small ADD CHECK (VALUE < 2)", b"temporary_relation",
    ),
    "function": (
        [b"CREATE FUNCTION pg_temp.f(int) RETURNS int IMMUTABLE RETURN $1",
         b"CREATE VIEW shown AS SELECT pg_temp.f(id) FROM stock"],
        b"SELECT * FROM shown", b"CREATE OR REPLACE FUNCTION pg_temp.f(int) RETURNS int IMMUTABLE RETURN -$1",
        b"temporary_relation",
    ),
    "operator of a class": (
        [_RANKED], b"SELECT id FROM stock ORDER BY id USING <#", b"UPDATE ways SET way = -1", b"user_function",
    ),
    "operator class": ([_SORTED], b"SELECT doc FROM stock ORDER BY doc", b"UPDATE ways SET way = -1", b"user_function"),
    "cast": (
        [b"CREATE CAST (text AS timestamptz) WITH INOUT AS IMPLICIT"],
        b"SELECT extract(epoch FROM word) FROM stock", b"", b"text_to_time",
    ),
    "argument": (
        [b"""CREATE FUNCTION f(at text) RETURNS timestamptz STABLE
         BEGIN ATOMIC SELECT f.at::timestamptz FROM stock LIMIT 1; END"""],
        b"SELECT f(word) FROM stock", b"", b"text_to_time",
    ),
    "argument in a zone": (
        [b"""CREATE FUNCTION f(at time) RETURNS text STABLE
         BEGIN ATOMIC SELECT (f.at AT TIME ZONE 'America/New_York')::text FROM stock LIMIT 1; END"""],
        b"SELECT f('12:00') FROM stock", b"", b"time_dependent",
    ),
    "function of a row": (
        [b"CREATE FUNCTION way(stock) RETURNS text STABLE RETURN $1.word"],
        b"SELECT stock.way::timestamptz FROM stock, ways", b"", b"text_to_time",
    ),
    "function of a row in a zone": (
        [b"CREATE FUNCTION at(ways) RETURNS time STABLE RETURN '12:00'::time"],
        b"SELECT (ways.at AT TIME ZONE 'America/New_York')::text FROM stock, ways", b"",
        b"time_dependent",
    ),
    "stored type": (
        [b"CREATE TYPE pg_temp.mood AS ENUM ('a')", b"CREATE TABLE types (t regtype)",
         b"INSERT INTO types VALUES ('pg_temp.mood')"],
        b"SELECT right(t::text, 4) FROM types", b"ALTER TYPE pg_temp.mood RENAME TO other", b"reg_type",
    ),
}  # fmt: skip


def _closure(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    assert before in resolve.CLOSURE
    monkeypatch.setattr(resolve, "CLOSURE", resolve.CLOSURE.replace(before, after))


def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bodies.function
    monkeypatch.setattr(bodies, "function", lambda text, where, _: made(text, where, frozenset()))


MUTES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "type": lambda patch: patch.setattr(resolve, "is_temporary", lambda _: False),
    "operator class": lambda patch: _closure(patch, "WHERE m.obj >= 16384", "WHERE false"),
    "operator of a class": lambda patch: _closure(patch, "AND o.amopopr = d.obj", "AND false"),
    "cast": lambda patch: _closure(patch, "'clocked', ", "'clocked', false AND "),
    "argument": _arguments,
    "function of a row": lambda patch: patch.setattr(judgement, "_is_function", lambda *_: False),
    "stored type": lambda patch: patch.setattr(resolve, "NAMED", frozenset()),
}


@pytest.fixture
def direct(stock: Database) -> Iterator[RawClient]:
    with RawClient(stock.server.host, stock.server.port, stock.name) as client:
        yield client


@pytest.mark.parametrize("how", CASES)
def test_it_is_refused_for_what_it_is(client: RawClient, second: RawClient, direct: RawClient, how: str) -> None:
    made, read, change, why = CASES[how]
    for text in made:
        second.exchange(query(text))

    def refused() -> bool:
        client.exchange(query(read))
        return client.rows(query(b"SHOW distribcache.last"))[0][2] == why

    until(refused, lambda: f"refused for {client.rows(query(b'SHOW distribcache.last'))[0]}")
    if change:
        second.exchange(query(change))
        assert client.rows(query(read)) == direct.rows(query(read))


def test_a_class_that_nobody_names_keeps_no_read_from_memory(client: RawClient, second: RawClient) -> None:
    second.exchange(query(_RANKED))
    warm(client, query(b"SELECT id FROM stock ORDER BY id"))


@pytest.mark.sabotage
@pytest.mark.parametrize("how", MUTES)
def test_muted_what_was_before_is_shown(
    client: RawClient, second: RawClient, direct: RawClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made, read, change, _ = CASES[how]
    MUTES[how](monkeypatch)
    for text in made:
        second.exchange(query(text))
    warm(client, query(read))
    before = client.rows(query(read))
    if change:
        second.exchange(query(change))
    warm(client, query(read))
    assert client.rows(query(read)) == before != direct.rows(query(read))
