"""A database with one of everything that a query may depend on, and a way to ask an Analyst about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from distribcache.catalog.resolve import Ask
from distribcache.catalog.statement import Analyst

SCHEMAS = ("pg_catalog", "public")

WORLD = """
CREATE TABLE t (id int PRIMARY KEY, name text, created timestamptz, day date, n numeric, tags text[], j jsonb,
                label text, v varchar(20));
CREATE TABLE hid (id int, secret text);
CREATE TABLE "We ird" ("Col A" int, "ünïcode" text);
CREATE TABLE "ÄÖÜ" (id int);
CREATE TABLE "q""u'o\\t%s $1 {}" ("a""b" int);
CREATE FUNCTION "fn %s"(int) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;
CREATE TABLE zoned (id int, at timetz);
CREATE UNLOGGED TABLE ul (id int);
CREATE TABLE opening (day date, at time);
CREATE TABLE named (id int, what regclass[]);
CREATE FUNCTION f_zoned(timetz) RETURNS text IMMUTABLE LANGUAGE sql RETURN 'at ' || $1;
CREATE FUNCTION f_named(regclass) RETURNS text IMMUTABLE LANGUAGE sql RETURN 'of ' || $1;
CREATE VIEW v_zone AS SELECT at AT TIME ZONE 'UTC' AS at FROM opening;
CREATE SEQUENCE seq;
CREATE MATERIALIZED VIEW mv AS SELECT id, name FROM t;
CREATE VIEW v1 AS SELECT id, name, created FROM t;
CREATE VIEW v2 AS SELECT v1.id, hid.secret FROM v1 JOIN hid USING (id);
CREATE VIEW v_now AS SELECT id, now() AS x FROM t;
CREATE VIEW v_today AS SELECT id FROM t WHERE created > 'today'::text::date;
CREATE VIEW v_text AS SELECT id, name::date AS d FROM t;
CREATE VIEW v_plain AS SELECT id, created::date AS d, date_trunc('month', created)::date AS m FROM t;
CREATE VIEW v_invoker WITH (security_invoker = true) AS SELECT id FROM hid;
CREATE VIEW v_barrier WITH (security_barrier = true) AS SELECT id FROM hid WHERE id > 0;
CREATE VIEW v_random AS SELECT id, random() AS r FROM t;
CREATE VIEW v_nothing AS SELECT 1 AS one;
CREATE VIEW v_xmin AS SELECT xmin AS version, id FROM t;
CREATE VIEW v_cat AS SELECT relname FROM pg_class;
CREATE VIEW v_cte AS WITH hid AS (SELECT id FROM t) SELECT id FROM hid;
CREATE VIEW v_lock AS SELECT id FROM t FOR UPDATE;
CREATE VIEW v_sample AS SELECT id FROM t TABLESAMPLE SYSTEM (50);
CREATE TABLE part (id int, k int) PARTITION BY RANGE (k);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (k);
CREATE TABLE part_b1 PARTITION OF part_b FOR VALUES FROM (10) TO (20);
CREATE TABLE parent (id int);
CREATE TABLE child (extra int) INHERITS (parent);
CREATE TABLE parent_ul (id int);
CREATE UNLOGGED TABLE child_ul () INHERITS (parent_ul);
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE ft (line text) SERVER files OPTIONS (filename '/dev/null');
CREATE TABLE r_user (id int, owner text);
ALTER TABLE r_user ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON r_user FOR SELECT USING (owner = current_user OR upper(owner) = session_user::text);
CREATE TABLE r_setting (id int, tenant text);
ALTER TABLE r_setting ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON r_setting USING (tenant = current_setting('app.tenant', true));
CREATE TABLE r_other (id int);
ALTER TABLE r_other ENABLE ROW LEVEL SECURITY;
CREATE POLICY other ON r_other USING (EXISTS (SELECT FROM hid WHERE hid.id = r_other.id));
CREATE TABLE r_insert (id int);
ALTER TABLE r_insert ENABLE ROW LEVEL SECURITY;
CREATE POLICY ins ON r_insert FOR INSERT WITH CHECK (random() > 0);
CREATE VIEW v_policy AS SELECT * FROM r_setting;
CREATE TABLE r_any_setting (id int, tenant text);
ALTER TABLE r_any_setting ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_any_setting USING (current_setting(tenant) = 'x');
CREATE TABLE r_server_setting (id int);
ALTER TABLE r_server_setting ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_server_setting USING (current_setting('transaction_read_only') = 'on');
CREATE TABLE r_date (id int, day date);
ALTER TABLE r_date ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_date USING (day > current_setting('app.since')::date);
CREATE TABLE r_other_now (id int);
ALTER TABLE r_other_now ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_other_now USING (EXISTS (SELECT FROM t WHERE t.id = r_other_now.id AND t.created < now()));
CREATE TABLE r_other_view (id int);
ALTER TABLE r_other_view ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_other_view USING (id IN (SELECT v.id FROM v_now v));
CREATE TABLE r_catalog (id int, owner name);
ALTER TABLE r_catalog ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_catalog USING (owner IN (SELECT rolname FROM pg_roles));
CREATE TABLE r_temporary (id int);
ALTER TABLE r_temporary ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_temporary USING (id IN (SELECT u.id FROM ul u));
CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE spans (id int, s span);
CREATE VIEW v_search AS SELECT id, to_tsvector('english', name) AS words FROM t;
CREATE TYPE mood AS ENUM ('sad', 'happy', 'today');
CREATE TYPE pair AS (a int, b date);
CREATE TYPE plain_pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN moment AS date;
CREATE FUNCTION liar(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 IN (SELECT id FROM hid); END';
CREATE DOMAIN checked AS int CHECK (liar(VALUE));
CREATE TABLE r_function (id int);
ALTER TABLE r_function ENABLE ROW LEVEL SECURITY;
CREATE POLICY a ON r_function USING (liar(id));
CREATE DOMAIN nightly AS int CHECK (VALUE < extract(hour FROM now()));
CREATE TYPE nested AS (m moment, k int);
CREATE TABLE typed (id int, m mood, p plain_pair, pos positive, c checked, n nested);
CREATE TABLE enums (id int, m mood, pos positive);
CREATE FUNCTION f_atomic(k int) RETURNS bigint IMMUTABLE LANGUAGE sql
  BEGIN ATOMIC SELECT count(*) FROM hid WHERE hid.id = k; END;
CREATE FUNCTION f_return(k int) RETURNS int STABLE LANGUAGE sql RETURN k + 1;
CREATE FUNCTION f_return_now() RETURNS timestamptz STABLE LANGUAGE sql RETURN now();
CREATE FUNCTION f_atomic_default(k int) RETURNS bigint LANGUAGE sql
  BEGIN ATOMIC SELECT count(*) FROM hid; END;
CREATE FUNCTION f_atomic_today(x text) RETURNS date STABLE LANGUAGE sql RETURN x::date;
CREATE FUNCTION f_nested(k int) RETURNS bigint STABLE LANGUAGE sql RETURN f_atomic(k) + f_return(k);
CREATE FUNCTION f_sql(int) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM hid';
CREATE FUNCTION f_pl() RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION f_set(int) RETURNS int IMMUTABLE LANGUAGE sql SET work_mem = '1MB' RETURN $1;
CREATE FUNCTION full_name(t) RETURNS text STABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1.name; END';
CREATE FUNCTION good_name(t) RETURNS text STABLE LANGUAGE sql RETURN $1.name;
CREATE AGGREGATE a_plain(int) (sfunc = int4pl, stype = int4);
CREATE FUNCTION f_default(k int, at timestamptz DEFAULT now()) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;
CREATE FUNCTION f_default_plain(k int, j int DEFAULT 5, t text DEFAULT lower('X')) RETURNS int IMMUTABLE
  LANGUAGE sql RETURN $1 + $2;
CREATE FUNCTION f_default_liar(k int DEFAULT f_pl()) RETURNS int IMMUTABLE LANGUAGE sql RETURN $1;
CREATE FUNCTION f_table(k int) RETURNS TABLE (value text, at date) STABLE LANGUAGE sql
  BEGIN ATOMIC SELECT secret, date '2024-01-01' FROM hid WHERE id = k; END;
CREATE FUNCTION f_two(k int) RETURNS bigint STABLE LANGUAGE sql
  BEGIN ATOMIC SELECT 1; SELECT count(*) FROM r_setting; END;
CREATE FUNCTION f_writes(k int) RETURNS bigint STABLE LANGUAGE sql
  BEGIN ATOMIC WITH w AS (DELETE FROM hid RETURNING id) SELECT count(*) FROM w; END;
CREATE FUNCTION later(date, date) RETURNS date IMMUTABLE LANGUAGE sql RETURN greatest($1, $2);
CREATE AGGREGATE a_today(date) (sfunc = later, stype = date, initcond = 'today');
CREATE AGGREGATE a_epoch(date) (sfunc = later, stype = date, initcond = 'epoch');
CREATE AGGREGATE a_bad(int) (sfunc = f_pl2, stype = int4);
CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq);
CREATE FUNCTION eq_bad(pair, pair) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE OPERATOR ==== (leftarg = pair, rightarg = pair, function = eq_bad);
CREATE FUNCTION to_mood(int) RETURNS mood IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN ''sad''; END';
CREATE TYPE casted AS ENUM ('x');
CREATE FUNCTION to_casted(int) RETURNS casted IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN ''x''; END';
CREATE CAST (int AS casted) WITH FUNCTION to_casted(int) AS IMPLICIT;
CREATE TABLE has_casted (id int, c casted);
CREATE SCHEMA shadow;
CREATE FUNCTION shadow.lower(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE FUNCTION shadow.max(date) RETURNS text IMMUTABLE LANGUAGE sql RETURN 'to' || 'day';
CREATE TABLE shadow.t (other int, name date);
CREATE DOMAIN shadow.uuid AS date;
CREATE SCHEMA ext;
CREATE EXTENSION pg_trgm SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION unaccent SCHEMA ext;
CREATE TABLE ext.lookup (id int, h ext.hstore, c ext.citext);
"""

BEFORE = "CREATE FUNCTION f_pl2(int, int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';"


def build(connection: psycopg.Connection[Any]) -> None:
    """Make the world in an empty database; what this server cannot have (vector, virtual columns) is left out."""
    connection.execute(BEFORE + WORLD)
    if connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone():
        connection.execute("CREATE EXTENSION vector SCHEMA ext; CREATE TABLE docs (id int, e ext.vector(3))")
    if connection.info.server_version >= 180000:
        connection.execute(
            "CREATE TABLE virt (id int, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL,"
            " t text GENERATED ALWAYS AS (id::text || 'x') STORED,"
            " d date GENERATED ALWAYS AS (make_date(id, 1, 1)) VIRTUAL)"
        )


def ask_on(connection: psycopg.AsyncConnection[Any], log: list[str] | None = None) -> Ask:
    async def ask(sql: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        if log is not None:
            log.append(sql)
        cursor = await connection.execute(sql.encode(), parameters or None)
        return await cursor.fetchall()

    return ask


@asynccontextmanager
async def analyst(conninfo: str, **more: Any) -> Iterator[Analyst]:  # type: ignore[misc]
    """An Analyst whose slots are the relations' oids."""
    async with await psycopg.AsyncConnection.connect(
        conninfo, autocommit=True, options="-c search_path=pg_catalog"
    ) as connection:
        yield Analyst(ask_on(connection), lambda oid: oid, lambda: 10, lambda: 5, **more)
