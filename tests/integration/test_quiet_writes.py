"""A write that provably runs no code of a user's leaves the scope known; after any other it is asked again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy
from rawclient import RawClient
from wait import until

from distribcache.catalog import writes
from distribcache.catalog.meaning import NO_NAMES, Meaning
from distribcache.proxy.questions import Questions
from distribcache.wire.messages import SYNC, bind, execute, parse, query

READ = b"SELECT value FROM stock"
BEFORE = [[b"\\x61"]]
AFTER = [[b"a"]]

WORLD = """
CREATE TABLE stock (value bytea);
INSERT INTO stock VALUES ('a');
CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('bytea_output', 'escape', false); RETURN NEW; END $$;
CREATE FUNCTION moved() RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('bytea_output', 'escape', false); RETURN 1; END $$;
CREATE FUNCTION moved(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('bytea_output', 'escape', false); RETURN $1; END $$;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN small AS int DEFAULT 3 CHECK (VALUE < 1000);

-- Quiet ones.
CREATE TABLE plain (id serial PRIMARY KEY, n int DEFAULT 1 CHECK (n > 0), at timestamptz DEFAULT now(), m mood
  DEFAULT 'sad', s small, u uuid DEFAULT gen_random_uuid(), twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE INDEX ON plain (lower(u::text), (n + 1)) WHERE n > 2;
CREATE TABLE child (id int PRIMARY KEY, plain int REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE parts (id int, k int) PARTITION BY RANGE (abs(k));
CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE guarded (id int);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
CREATE POLICY all_of_them ON guarded USING (id > 0) WITH CHECK (id < 1000);

-- Loud ones: each changes a setting of the session that no server reports.
CREATE TABLE by_trigger (id int);
CREATE TRIGGER t AFTER INSERT ON by_trigger FOR EACH ROW EXECUTE FUNCTION move();
CREATE TABLE by_statement (id int);
CREATE TRIGGER t AFTER INSERT ON by_statement EXECUTE FUNCTION move();
CREATE TABLE by_default (id int, n int DEFAULT moved());
CREATE TABLE by_builtin_default (id int, n text DEFAULT set_config('bytea_output', 'escape', false));
CREATE TABLE by_check (id int CHECK (moved(id) > 0));
CREATE TABLE by_generated (id int, n int GENERATED ALWAYS AS (moved(id)) STORED);
CREATE DOMAIN evil AS int CHECK (moved(VALUE) > 0);
CREATE TABLE by_domain (id evil);
CREATE DOMAIN unset AS int DEFAULT moved();
CREATE TABLE by_domain_default (id int, n unset);
CREATE TYPE pair AS (a int, b evil);
CREATE TABLE by_composite (id pair[]);
CREATE TABLE by_index (id int);
CREATE INDEX ON by_index (moved(id));
CREATE TABLE by_predicate (id int);
CREATE INDEX ON by_predicate (id) WHERE moved(id) > 0;
CREATE TABLE by_rule (id int);
CREATE RULE r AS ON INSERT TO by_rule DO ALSO SELECT moved();
CREATE TABLE by_policy (id int);
ALTER TABLE by_policy ENABLE ROW LEVEL SECURITY;
ALTER TABLE by_policy FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON by_policy WITH CHECK (moved(id) > 0);
CREATE TABLE by_leaf (id int, k int) PARTITION BY RANGE (k);
CREATE TABLE by_leaf_a PARTITION OF by_leaf FOR VALUES FROM (0) TO (100);
CREATE TRIGGER t BEFORE INSERT ON by_leaf_a FOR EACH ROW EXECUTE FUNCTION move();
CREATE TABLE by_key (id int) PARTITION BY RANGE (moved(id));
CREATE TABLE by_key_a PARTITION OF by_key FOR VALUES FROM (0) TO (100);
CREATE TABLE kept (id int PRIMARY KEY);
INSERT INTO kept VALUES (1);
CREATE TABLE swept (id int REFERENCES kept ON DELETE SET NULL);
INSERT INTO swept VALUES (1);
CREATE TRIGGER t AFTER UPDATE ON swept FOR EACH ROW EXECUTE FUNCTION move();
CREATE VIEW by_view AS SELECT id FROM by_trigger;
CREATE TYPE casted AS ENUM ('x');
CREATE FUNCTION to_casted(int) RETURNS casted LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('bytea_output', 'escape', false); RETURN 'x'; END $$;
CREATE CAST (int AS casted) WITH FUNCTION to_casted(int) AS ASSIGNMENT;
CREATE TABLE by_cast (id casted);
CREATE OPERATOR @@@ (leftarg = int, rightarg = int, function = int4pl);
CREATE FUNCTION moved(int, int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN PERFORM set_config('bytea_output', 'escape', false); RETURN $1; END $$;
CREATE OPERATOR ### (leftarg = int, rightarg = int, function = moved);
CREATE TABLE later (id int);
CREATE TABLE sink (value text);
"""

QUIET = [
    "INSERT INTO plain (n) VALUES (5)",
    "UPDATE plain SET n = n + 1 WHERE id = 1",
    "UPDATE plain SET n = n @@@ 1 WHERE id = 1",
    "INSERT INTO plain (at) SELECT clock_timestamp() FROM generate_series(1, 2)",
    "DELETE FROM plain WHERE id = 999",
    "INSERT INTO parts VALUES (1, 5)",
    "INSERT INTO parts_a VALUES (1, 5)",
    "INSERT INTO guarded VALUES (5)",
    "INSERT INTO plain (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET n = excluded.n + 1 RETURNING now()",
    "WITH gone AS (DELETE FROM child RETURNING id) SELECT count(*) FROM gone",
]
LOUD = {
    "trigger": "INSERT INTO by_trigger VALUES (1)",
    "statement trigger": "INSERT INTO by_statement VALUES (1)",
    "default": "INSERT INTO by_default VALUES (1)",
    "default of a built-in": "INSERT INTO by_builtin_default VALUES (1)",
    "check": "INSERT INTO by_check VALUES (1)",
    "generated": "INSERT INTO by_generated VALUES (1)",
    "domain": "INSERT INTO by_domain VALUES (1)",
    "domain default": "INSERT INTO by_domain_default VALUES (1)",
    "composite": "INSERT INTO by_composite VALUES (ARRAY[ROW(1, 2)::pair])",
    "index": "INSERT INTO by_index VALUES (1)",
    "predicate": "INSERT INTO by_predicate VALUES (1)",
    "rule": "INSERT INTO by_rule VALUES (1)",
    "policy": "INSERT INTO by_policy VALUES (1)",
    "leaf": "INSERT INTO by_leaf VALUES (1, 1)",
    "partition key": "INSERT INTO by_key VALUES (1)",
    "partition key of a leaf": "INSERT INTO by_key_a VALUES (1)",
    "cascade": "DELETE FROM kept WHERE id = 1",
    "view": "INSERT INTO by_view VALUES (1)",
    "cast": "INSERT INTO by_cast VALUES (1)",
    "operator": "INSERT INTO plain (n) VALUES (1 ### 2)",
    "function": "INSERT INTO plain (n) VALUES (moved())",
    "built-in": "INSERT INTO sink SELECT set_config('bytea_output', 'escape', false) WHERE false OR random() >= 0",
    "query in text": "INSERT INTO sink SELECT word FROM ts_stat('SELECT to_tsvector(moved()::text)')",
    "data-modifying": "WITH x AS (INSERT INTO by_trigger VALUES (1) RETURNING id) SELECT id FROM x",
    "truncate": "TRUNCATE later",
}
STILL = {"truncate"}
"""Refused without looking, though nothing happens."""


@pytest.fixture
def stock(database: Database) -> Database:
    database.execute(
        WORLD,
        "DO $$ BEGIN CREATE ROLE a_writer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO a_writer",
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO a_writer",
    )
    return database


@pytest.fixture
def proxy(stock: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(stock.url(), {"freshness.max_staleness": "30s", "freshness.hit_wait": "2s"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every question about a session's scope."""
    count: list[int] = []
    scope = Questions.scope

    def counted(self: Questions, behind: bytes = b"", **how: Any) -> Any:
        count.append(1)
        return scope(self, behind, **how)

    monkeypatch.setattr(Questions, "scope", counted)
    return count


@pytest.fixture
def client(stock: Database, proxy: InnerProxy) -> Iterator[RawClient]:
    with RawClient(proxy.host, proxy.port, stock.name, user="a_writer") as client:
        yield client


def rows(client: RawClient, data: bytes) -> list[list[bytes | None]]:
    client.send(data)
    return client.rows_until_ready()


def warm(client: RawClient) -> None:
    def hit() -> bool:
        assert rows(client, query(READ)) == BEFORE
        return rows(client, query(b"SHOW distribcache.last"))[0][0] == b"hit"

    until(hit, "never a hit")


def settle(proxy: InnerProxy) -> None:
    """Until no verdict on a write is being formed."""
    until(lambda: not any(each.analyst.writes._asking for each in proxy.proxy.node._known.values()), "still asking")


def do(client: RawClient, sql: str) -> None:
    replies = client.exchange(query(sql.encode()))
    assert not any(each[:1] == b"E" for each in replies), replies


def ask(sql: str) -> bytes:
    return parse(b"", sql.encode()) + bind(b"", b"") + execute(b"") + SYNC


def test_a_quiet_write_asks_nothing(proxy: InnerProxy, client: RawClient, asked: list[int]) -> None:
    for sql in QUIET:
        warm(client)
        do(client, sql)
        settle(proxy)
        warm(client)
        before = len(asked)
        do(client, sql)
        warm(client)
        do(client, "BEGIN")
        do(client, sql)
        do(client, "COMMIT")
        warm(client)
        client.exchange(ask(sql))
        warm(client)
        assert len(asked) == before, sql


def test_a_loud_write_has_the_scope_asked_again(
    stock: Database, proxy: InnerProxy, client: RawClient, asked: list[int]
) -> None:
    for how, sql in LOUD.items():
        warm(client)
        client.exchange(query(b"BEGIN"))
        client.exchange(query(sql.encode()))
        client.exchange(query(b"ROLLBACK"))  # undone, but a verdict was asked for
        settle(proxy)
        warm(client)
        before = len(asked)
        do(client, sql)
        found = rows(client, query(READ))
        assert len(asked) > before, how
        if how not in STILL:
            assert found == AFTER, how
            assert rows(client, query(READ)) == AFTER, how
        do(client, "RESET bytea_output")


def test_muted_the_write_would_not_be_noticed(
    proxy: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def quiet(*_: object) -> tuple[None, Meaning]:
        return None, NO_NAMES

    monkeypatch.setattr(writes, "why_loud", quiet)
    warm(client)
    do(client, "INSERT INTO by_trigger VALUES (1)")  # unknown: asked
    do(client, "RESET bytea_output")
    settle(proxy)
    warm(client)

    def wrong() -> bool:
        do(client, "INSERT INTO by_trigger VALUES (1)")
        found = rows(client, query(READ))
        do(client, "RESET bytea_output")
        warm(client)
        return found == BEFORE

    until(wrong, "the muted rule is not what this test needs")


def test_a_trigger_made_elsewhere_is_not_missed(stock: Database, proxy: InnerProxy, client: RawClient) -> None:
    warm(client)
    do(client, "INSERT INTO later VALUES (1)")
    settle(proxy)
    with stock.connect() as other:
        for _ in range(10):
            warm(client)
            do(client, "INSERT INTO later VALUES (1)")
            warm(client)
            other.execute("CREATE TRIGGER t AFTER INSERT ON later FOR EACH ROW EXECUTE FUNCTION move()")
            do(client, "INSERT INTO later VALUES (1)")
            assert rows(client, query(READ)) == AFTER
            other.execute("DROP TRIGGER t ON later")
            do(client, "RESET bytea_output")
            assert rows(client, query(READ)) == BEFORE


def test_a_parameter_of_a_users_type_may_run_code(
    stock: Database, proxy: InnerProxy, client: RawClient, asked: list[int]
) -> None:
    with stock.connect() as other:
        row = other.execute("SELECT 'evil'::regtype::oid::int8").fetchone()
        assert row is not None
    sql = b"INSERT INTO public.later VALUES ($1)"
    warm(client)
    client.exchange(parse(b"", sql) + bind(b"", b"", params=[b"1"]) + execute(b"") + SYNC)
    settle(proxy)
    warm(client)
    replies = client.exchange(parse(b"", sql, (row[0],)) + bind(b"", b"", params=[b"1"]) + execute(b"") + SYNC)
    assert not any(each[:1] == b"E" for each in replies), replies
    assert rows(client, query(READ)) == AFTER
