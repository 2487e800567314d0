"""The words in which the sessions of ``twin_play`` speak to the database of ``twin_stock``.

The vocabulary is wide; a run is about one topic and speaks only a small *hand* of it, so that the same reads come back,
as hits, around changes that concern them. Statements may fail: an error is an answer like another.

Texts are written one to a line, or several that belong together with bars between them; lines that begin with spaces
go on with the one before. What stands behind a question mark are values for ``$1``. Every answer has one order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["BEGINNINGS", "CONTROL", "DDL", "READS", "SESSION", "SETTINGS", "TABLES", "TOPICS", "WRITES"]

Groups = tuple[tuple[str, ...], ...]


def _groups(text: str) -> Groups:
    lines = re.sub(r"\n +", " ", text.strip()).splitlines()
    return tuple(tuple("" if each == "(nothing)" else each for each in line.split(" | ")) for line in lines)


def _reads(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    parts = [line.partition(" ? ") for line in re.sub(r"\n +", " ", text.strip()).splitlines()]
    return tuple((sql, tuple(values.split(" / ")) if values else ()) for sql, _, values in parts)


@dataclass(frozen=True, slots=True)
class Topic:
    """What a run is mostly about: words that its reads, writes and DDL hold (``themes``: two of the tables), words of
    its settings, how often it writes, does DDL or changes the session, and how often it begins transactions.
    """

    name: str
    weights: tuple[int, int, int]
    words: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    control: float = 0.15


TABLES = ("item", "item", "thin", "thin", "part", "fact", "doc", "log", "base", "long", "odd")
TOPICS = (
    Topic("rows", (8, 0, 1)),
    Topic("rows in transactions", (8, 0, 1), ("thin",), ("LOCAL", "true)"), 0.5),
    Topic("shapes", (1, 0, 6), ("at", "raw", "FROM thin"), ("TimeZone", "Style", "float", "bytea_output", "zone")),
    Topic(
        "people", (1, 2, 5), ("doc", "thin", "odd", "long", "GRANT", "POLICY"), ("ROLE", "AUTHOR", "row_sec", "become")
    ),
    Topic("names", (1, 2, 4), (" item", "early", "cheap", "shadow", "twice"), ("search_path",)),
    Topic("schema", (3, 3, 1)),
    Topic("everything", (4, 2, 3), ("",), ("",)),
)

READS = _reads("""
SELECT name FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT * FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT name, cost FROM public.item WHERE id = $1
  ? 1 / 2 / 5
SELECT name, kind FROM thin WHERE id = $1
  ? 1 / 2 / 5
SELECT * FROM thin WHERE id = $1
  ? 1 / 2 / 5
SELECT id, name FROM thin WHERE kind = $1 ORDER BY id
  ? 1 / 2
SELECT kind, count(*), max(name), min(at) FROM thin GROUP BY kind ORDER BY kind
SELECT t.name, i.name FROM thin t JOIN item i USING (id) WHERE t.id = $1
  ? 1 / 2 / 5
SELECT id, name FROM item WHERE id IN (1, 2, 5) ORDER BY id
SELECT id, name FROM item WHERE id = ANY ($1::int[]) ORDER BY id
  ? {1,5} / {2}
SELECT id FROM item WHERE kind = $1 ORDER BY id
  ? 1 / 3
SELECT id, state FROM item WHERE state = $1 ORDER BY id
  ? ok / happy / fine
SELECT id, at FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT at::text, due::text, span::text, raw::text FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT id, raw, ratio, span FROM item WHERE id < 4 ORDER BY id
SELECT both_of, tags FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT count(*), sum(cost), max(name) FROM item
SELECT kind, count(*) FROM item GROUP BY kind HAVING count(*) > 1 ORDER BY kind
SELECT i.name, p.note FROM item i JOIN part p ON p.item = i.id WHERE i.id = $1 ORDER BY p.number
  ? 1 / 2 / 5
SELECT i.id, p.number FROM item i LEFT JOIN part p ON p.item = i.id AND p.number = 1 ORDER BY 1, 2
SELECT note FROM part WHERE item = $1 AND number = 2
  ? 1 / 2 / 5
SELECT count(*) FROM part WHERE item = $1
  ? 1 / 2 / 5
SELECT * FROM cheap WHERE id = $1
  ? 1 / 2 / 5
SELECT * FROM cheap ORDER BY id
SELECT * FROM totals ORDER BY kind
SELECT * FROM frozen ORDER BY kind
SELECT value FROM fact WHERE id = $1
  ? 2 / 5 / 8
SELECT * FROM fact ORDER BY id
SELECT sum(value) FROM fact_high
SELECT tableoid::regclass::text, id, v FROM base ORDER BY 1, 2, 3
SELECT v FROM ONLY base WHERE id = $1
  ? 1 / 3
SELECT v FROM base WHERE id = $1 ORDER BY v
  ? 1 / 3
SELECT id, body FROM doc ORDER BY id
SELECT body FROM doc WHERE id = $1
  ? 3 / 4 / 5
SELECT count(*) FROM doc
SELECT count(*), max(body) FROM tenant_doc doc
SELECT * FROM documents ORDER BY id
SELECT * FROM own_documents ORDER BY id
SELECT count(*) FROM log
SELECT text FROM log WHERE id = $1 ORDER BY text
  ? 1 / 3
SELECT id, what FROM audit ORDER BY n
SELECT count(*) FROM audit WHERE id = $1
  ? 2 / 8
SELECT v FROM fast WHERE id = $1
  ? 1 / 2
SELECT last_value, is_called FROM ticket
SELECT n, length(body), left(body, 3) FROM long WHERE id = $1
  ? 1 / 2
SELECT n FROM long WHERE body = repeat('1', 4000)
SELECT c, n FROM odd WHERE c = $1
  ? a / a   / b
SELECT n, d FROM odd WHERE d = $1
  ? 2024-02-29 / 2024-2-29
SELECT b FROM odd WHERE u = $1
  ? 00000000-0000-0000-0000-00000000000a / {00000000-0000-0000-0000-00000000000A}
SELECT b, n FROM odd WHERE i8 = $1
  ? 1 / 01
SELECT u FROM odd WHERE n = $1
  ? 1.5 / 1.50
SELECT c FROM odd WHERE b = $1 ORDER BY c
  ? t / true / f
SELECT twice(id), id FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT * FROM of_kind($1) ORDER BY 1
  ? 1 / 3
SELECT peek($1)
  ? 1 / 2 / 5
SELECT id FROM item WHERE peek(id) = 'item 2'
WITH a AS (SELECT id, kind FROM item WHERE id < 6) SELECT a.id, b.id FROM a JOIN a b USING (kind) ORDER BY 1, 2
SELECT id, rank() OVER (ORDER BY cost DESC) FROM item ORDER BY id LIMIT 5
SELECT id FROM item UNION SELECT id::int FROM other.item ORDER BY 1
SELECT i.id FROM item i WHERE EXISTS (SELECT FROM part p WHERE p.item = i.id) ORDER BY 1
TABLE other.item ORDER BY id
SELECT name FROM other.item WHERE id = $1
  ? 1 / 2 / 5
SELECT DISTINCT current_user, session_user, count(*) FROM log
SELECT current_setting('app.tenant', true), count(*) FROM tenant_doc
SELECT id, 1 / (id - 5) FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT to_char(cost, 'L999D99'), to_char(at, 'TMMonth') FROM item WHERE id = $1
  ? 1 / 2 / 5
SELECT relname FROM pg_class WHERE relname IN ('item', 'part', 'shadow') AND relpersistence <> 't' ORDER BY 1
SELECT column_name FROM information_schema.columns WHERE table_name = 'log' ORDER BY 1
SELECT id FROM shadow ORDER BY id
SELECT to_regclass('early.item') IS NULL, count(*) FROM log
SHOW TimeZone
SHOW search_path
""")

WRITES = _groups("""
UPDATE item SET name = name || '!' WHERE id = 1 | UPDATE item SET cost = cost + 1 WHERE id = 2
UPDATE item SET kind = (kind + 1) % 4 WHERE id IN (1, 5)
UPDATE thin SET name = name || '-' WHERE id = 1 | UPDATE thin SET kind = (kind + 1) % 3 WHERE id IN (2, 5) | UPDATE
  thin SET at = at + interval '1 day' WHERE id = 5
DELETE FROM thin WHERE id = 2 | INSERT INTO thin VALUES (2, 'again', 0) | UPDATE thin SET id = 55 WHERE id = 5 |
  UPDATE thin SET id = 5 WHERE id = 55
UPDATE item SET id = 50 WHERE id = 5 | UPDATE item SET id = 5 WHERE id = 50
DELETE FROM item WHERE id = 2 | INSERT INTO item (id, name, kind) VALUES (2, 'again', 2) RETURNING id, state
INSERT INTO item (id, name) VALUES (1, 'twice') ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING name
UPDATE item SET state = 'happy' WHERE id < 3 | UPDATE item SET state = 'fine' WHERE id = 1
UPDATE item SET at = at + interval '1 hour', raw = raw || '\\x01', ratio = ratio / 3 WHERE id < 4
MERGE INTO item i USING (VALUES (1), (30)) s(id) ON i.id = s.id WHEN MATCHED THEN UPDATE SET cost = 3 WHEN NOT
  MATCHED THEN INSERT (id, name) VALUES (s.id, 'merged') | DELETE FROM item WHERE id = 30
UPDATE part SET note = note || '+' WHERE number = 2 | DELETE FROM part WHERE item = 1 AND number = 2 | INSERT INTO
  part VALUES (1, 2, 'new')
UPDATE part SET item = 2 WHERE item = 1 AND number = 3 | INSERT INTO part VALUES (2, 9, 'nine')
UPDATE fact SET value = value + 1 WHERE id IN (2, 8) | UPDATE fact_high SET value = 0 WHERE id = 8
UPDATE fact SET id = 60 WHERE id = 2 | UPDATE fact SET id = 2 WHERE id = 60
INSERT INTO fact VALUES (5, 1) ON CONFLICT DO NOTHING | DELETE FROM fact WHERE id = 5
UPDATE base SET v = v + 1 WHERE id = 3 | UPDATE derived SET v = 0 | INSERT INTO derived VALUES (1, 9, 'x')
UPDATE doc SET body = body || '.' WHERE id IN (3, 4, 5) | UPDATE doc SET owner = 'bob' WHERE id = 4
DELETE FROM doc WHERE id = 3 | INSERT INTO doc VALUES (3, current_user, 't0', 'mine')
INSERT INTO log VALUES (3, 'more') | DELETE FROM log WHERE text = 'more' | UPDATE log SET id = 3 WHERE id = 1
INSERT INTO log VALUES (0, 'escape') | INSERT INTO log VALUES (0, 'hex')
UPDATE fast SET v = v + 1
SELECT nextval('ticket')
UPDATE long SET n = n + 1 WHERE id = 1 | UPDATE long SET body = repeat('1', 4000) WHERE id = 2 | UPDATE long SET id =
  9 WHERE id = 2
UPDATE odd SET n = n + 1 WHERE c = 'a' | UPDATE odd SET b = NOT b, d = d + 1 | UPDATE odd SET i8 = 1, u = NULL
SELECT spend(1) | SELECT spend(id) FROM item WHERE id IN (2, 5) ORDER BY id
DO 'BEGIN UPDATE item SET cost = 7 WHERE id = 1; END' | DO 'BEGIN UPDATE item SET cost = 9 WHERE id = 1; RAISE
  EXCEPTION USING ERRCODE = ''ZZ001''; END'
WITH gone AS (DELETE FROM part WHERE item = 5 RETURNING *) SELECT count(*) FROM gone | WITH w AS (UPDATE item SET
  kind = 3 WHERE id = 1 RETURNING id) INSERT INTO log SELECT id, 'cte' FROM w
UPDATE other.item SET name = name || '?' WHERE id = 1 | DELETE FROM other.item WHERE id = 2
UPDATE item SET kind = kind / (id - 5) | INSERT INTO item (id, name) VALUES (1, 'dup') | UPDATE item SET cost = -1
  WHERE id = 1
UPDATE item SET name = 'one' WHERE id = 1; UPDATE part SET note = 'both' WHERE item = 1 | UPDATE item SET name =
  'lost' WHERE id = 1; SELECT 1 / 0
LOCK TABLE item IN SHARE ROW EXCLUSIVE MODE | SELECT id, name FROM item WHERE id = 1 FOR UPDATE
EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off, BUFFERS off) DELETE FROM part WHERE item = 1 AND number = 1
PREPARE w AS UPDATE item SET name = 'prepared' WHERE id = 2 | EXECUTE w
""")

DDL = _groups("""
ALTER TABLE item ADD COLUMN IF NOT EXISTS extra int DEFAULT 7 | ALTER TABLE item DROP COLUMN IF EXISTS extra CASCADE
ALTER TABLE item RENAME TO item_gone | ALTER TABLE item_gone RENAME TO item
ALTER TABLE item RENAME COLUMN name TO title | ALTER TABLE item RENAME COLUMN title TO name
ALTER TABLE thin DROP CONSTRAINT thin_pkey | ALTER TABLE thin ADD PRIMARY KEY (id) | ALTER TABLE thin REPLICA
  IDENTITY FULL
REVOKE SELECT ON thin FROM bob | GRANT SELECT ON thin TO bob
CREATE INDEX by_kind ON item (kind) | DROP INDEX by_kind
CREATE OR REPLACE VIEW cheap AS SELECT * FROM public.item WHERE cost < 3 | CREATE OR REPLACE VIEW cheap AS SELECT *
  FROM public.item WHERE cost < 30
ALTER TYPE mood ADD VALUE IF NOT EXISTS 'fine' | ALTER TYPE mood RENAME VALUE 'ok' TO 'okay' | ALTER TYPE mood RENAME
  VALUE 'okay' TO 'ok'
ALTER TABLE part DROP CONSTRAINT part_pkey | ALTER TABLE part ADD CONSTRAINT part_pkey PRIMARY KEY (item, number)
ALTER TABLE odd REPLICA IDENTITY FULL | ALTER TABLE odd REPLICA IDENTITY DEFAULT
ALTER TABLE log REPLICA IDENTITY FULL | ALTER TABLE log REPLICA IDENTITY NOTHING
TRUNCATE part | TRUNCATE fact | TRUNCATE item CASCADE
ALTER TABLE item RENAME TO tmp_item; ALTER TABLE other.item SET SCHEMA early; ALTER TABLE early.item SET SCHEMA
  public; ALTER TABLE tmp_item SET SCHEMA other; ALTER TABLE other.tmp_item RENAME TO item
CREATE TABLE early.item AS SELECT id, 'early'::text AS name, 0::numeric AS cost FROM public.item WHERE id < 3 | DROP
  TABLE early.item
CREATE TABLE early.shadow (id int) | CREATE TABLE shadow AS SELECT 1 AS id | DROP TABLE shadow
ALTER TABLE part ALTER note TYPE varchar(4) USING left(note, 4) | ALTER TABLE part ALTER note TYPE text
ALTER TABLE fact DETACH PARTITION fact_high | ALTER TABLE fact ATTACH PARTITION fact_high FOR VALUES FROM (6) TO
  (100)
ALTER TABLE derived NO INHERIT base | ALTER TABLE derived INHERIT base
ALTER TABLE fast SET LOGGED | ALTER TABLE fast SET UNLOGGED
ALTER TABLE log SET UNLOGGED | ALTER TABLE log SET LOGGED
REVOKE SELECT ON item FROM team, bob | GRANT SELECT ON item TO team, bob
REVOKE ALL ON part FROM team, bob; GRANT SELECT (note, item) ON part TO bob | GRANT ALL ON part TO team
REVOKE team FROM alice | GRANT team TO alice | GRANT team TO bob
ALTER ROLE bob BYPASSRLS | ALTER ROLE bob NOBYPASSRLS
CREATE POLICY of_tenant ON doc FOR SELECT USING (tenant = current_setting('app.tenant', true)) | DROP POLICY
  of_tenant ON doc
CREATE POLICY everything ON doc FOR SELECT TO bob USING (true) | DROP POLICY everything ON doc
ALTER POLICY own ON doc USING (owner = session_user) | ALTER POLICY own ON doc USING (owner = current_user)
ALTER TABLE doc DISABLE ROW LEVEL SECURITY | ALTER TABLE doc ENABLE ROW LEVEL SECURITY | ALTER TABLE doc FORCE ROW
  LEVEL SECURITY
ALTER TABLE part ENABLE ROW LEVEL SECURITY; CREATE POLICY some ON part USING (item < 3) | ALTER TABLE part DISABLE
  ROW LEVEL SECURITY; DROP POLICY some ON part
ALTER VIEW documents SET (security_invoker = true) | ALTER VIEW documents RESET (security_invoker)
ALTER VIEW documents OWNER TO alice; GRANT SELECT ON doc TO alice | ALTER VIEW documents OWNER TO postgres
CREATE OR REPLACE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1 * 20 | CREATE OR REPLACE FUNCTION
  twice(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1 * 2
CREATE OR REPLACE FUNCTION of_kind(int) RETURNS SETOF int LANGUAGE sql STABLE BEGIN ATOMIC SELECT id + 100 FROM item
  WHERE kind = $1; END | DROP FUNCTION of_kind(int)
CREATE FUNCTION early.twice(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN -1 | DROP FUNCTION early.twice(int)
ALTER TABLE fact DISABLE TRIGGER followed | ALTER TABLE fact ENABLE TRIGGER followed
CREATE RULE also AS ON INSERT TO log DO ALSO UPDATE item SET cost = 11 WHERE id = 1 | DROP RULE also ON log
REFRESH MATERIALIZED VIEW frozen
ALTER ROLE alice SET TimeZone = 'Asia/Tokyo' | ALTER ROLE alice RESET TimeZone
ALTER DOMAIN money_ok DROP CONSTRAINT money_ok_check | ALTER DOMAIN money_ok ADD CHECK (VALUE >= 0)
ALTER TYPE two ADD ATTRIBUTE c int CASCADE | ALTER TYPE two DROP ATTRIBUTE c CASCADE
DO 'BEGIN EXECUTE ''ALTER TABLE log ADD COLUMN IF NOT EXISTS more int''; END' | DO 'BEGIN EXECUTE ''ALTER TABLE log
  DROP COLUMN IF EXISTS more''; END'
BEGIN; ALTER TABLE item ADD COLUMN undone int; ROLLBACK
DROP VIEW cheap | CREATE VIEW cheap AS SELECT id, name FROM item WHERE cost < 20
COMMENT ON TABLE item IS 'nothing' | ANALYZE item | VACUUM item
ALTER TABLE item ALTER COLUMN id TYPE bigint | ALTER TABLE item ALTER COLUMN id TYPE int
CREATE TABLE item_new (LIKE item INCLUDING ALL); INSERT INTO item_new SELECT * FROM item WHERE id > 1; DROP TABLE
  item CASCADE; ALTER TABLE item_new RENAME TO item
""")

SETTINGS = _groups("""
SET TimeZone = 'Asia/Kolkata' | SET TIME ZONE 'UTC' | RESET TimeZone
SET DateStyle = 'German' | SET DateStyle = 'SQL, DMY' | RESET DateStyle
SET IntervalStyle = 'iso_8601' | RESET IntervalStyle
SET extra_float_digits = -3 | SET extra_float_digits = 1
SET bytea_output = 'escape' | SET bytea_output = 'hex'
SET search_path = other, public | SET search_path = early, public | SET search_path = public | RESET search_path
SET app.tenant = 't0' | SET app.tenant = 't1' | RESET app.tenant
SET row_security = off | SET row_security = on
SET LOCAL TimeZone = 'America/Lima' | SET LOCAL search_path = other | SET LOCAL app.tenant = 't1'
SELECT set_config('TimeZone', 'Asia/Kolkata', false) | SELECT set_config('search_path', 'other', true) | SELECT
  set_config('app.tenant', 't1', false)
SELECT zone('Africa/Cairo') | SELECT zone('UTC'), count(*) FROM log
DO 'BEGIN SET DateStyle = ''Postgres''; END' | DO 'BEGIN SET LOCAL DateStyle = ''Postgres''; END'
SET ROLE alice | SET ROLE bob | SET ROLE team | RESET ROLE | SET LOCAL ROLE team
CALL become('alice') | CALL become('none')
SET SESSION AUTHORIZATION bob | SET SESSION AUTHORIZATION alice | RESET SESSION AUTHORIZATION
SET client_encoding = 'LATIN1' | SET client_encoding = 'UTF8'
SET lc_monetary = 'C' | SET lc_time = 'C'
SET standard_conforming_strings = off | SET standard_conforming_strings = on
SET session_replication_role = replica | RESET session_replication_role
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ | SET default_transaction_isolation =
  'read committed'
SET default_transaction_read_only = on | SET default_transaction_read_only = off
RESET ALL | DISCARD ALL
""")

SESSION = _groups("""
CREATE TEMP TABLE item (id int, name text) | CREATE TEMP TABLE log AS SELECT 1 AS id, 'mine'::text AS text | DROP
  TABLE pg_temp.item | DROP TABLE pg_temp.log | DISCARD TEMP
CREATE TEMP VIEW cheap AS SELECT 1 AS id | DROP VIEW pg_temp.cheap
DO 'BEGIN CREATE TEMP TABLE part (item int, number int, note text); END' | DISCARD TEMP
PREPARE r AS SELECT name FROM item WHERE id = 1 | EXECUTE r | DEALLOCATE r | DEALLOCATE ALL
DECLARE c CURSOR FOR SELECT id FROM item ORDER BY id | FETCH 2 FROM c | CLOSE c
DECLARE h CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY id | FETCH 2 FROM h | CLOSE ALL
SELECT pg_try_advisory_lock(1) | SELECT pg_advisory_unlock(1) | SELECT pg_advisory_unlock_all()
DISCARD ALL | DISCARD PLANS | DEALLOCATE ALL
SELECT 1 / 0 | SELEC | SELECT nothing FROM item | SELECT * FROM nowhere | (nothing) | ;
COPY (SELECT id, name FROM item WHERE id < 3 ORDER BY id) TO STDOUT | COPY log TO STDOUT
SET distribcache.cache = off | SET distribcache.cache = on
LISTEN nobody | UNLISTEN *
SELECT name FROM item WHERE id = 1; SELECT count(*) FROM part | SELECT 1; SELECT text FROM log WHERE id = 3
""")

BEGINNINGS = (
    *["BEGIN"] * 12, "BEGIN READ WRITE", "BEGIN READ ONLY", "START TRANSACTION",
    "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN; SELECT count(*) FROM item",
    "COMMIT", "SAVEPOINT a", "COMMIT PREPARED 'p'", "ROLLBACK PREPARED 'p'", "SET TRANSACTION READ ONLY",
    "ROLLBACK; BEGIN",
)  # fmt: skip
CONTROL = (
    *["COMMIT"] * 4, *["ROLLBACK"] * 3, *["SAVEPOINT a"] * 3, *["ROLLBACK TO a"] * 3, "RELEASE a", "COMMIT AND CHAIN",
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SET TRANSACTION READ ONLY", "END", "ABORT", "COMMIT; BEGIN",
    "BEGIN", "PREPARE TRANSACTION 'p'", "PREPARE TRANSACTION 'p'",
)  # fmt: skip
