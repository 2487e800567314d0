"""The words in which the sessions of ``twin_play`` speak to the database of ``twin_stock``.

The vocabulary is wide; a run is about one topic and speaks only a small *hand* of it, so that the same reads come back,
as hits, around changes that concern them. Statements may fail: an error is an answer like another.

Texts are written one to a line, or several that belong together with bars between them; lines that begin with spaces
go on with the one before. What is read stands in ``twin_reads``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["BEGINNINGS", "CONTROL", "DDL", "SESSION", "SETTINGS", "TABLES", "TOPICS", "WRITES"]

Groups = tuple[tuple[str, ...], ...]


def _groups(text: str) -> Groups:
    lines = re.sub(r"\n +", " ", text.strip()).splitlines()
    return tuple(tuple("" if each == "(nothing)" else each for each in line.split(" | ")) for line in lines)


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


TABLES = ("made", "deep", "frozen", "item", "item", "thin", "thin", "part", "fact", "doc", "log", "base", "long", "odd")
TOPICS = (
    Topic("rows", (8, 0, 1)),
    Topic("rows in transactions", (8, 0, 1), ("thin",), ("LOCAL", "true)"), 0.5),
    Topic("shapes", (1, 0, 6), ("at", "raw", "FROM thin"), ("TimeZone", "Style", "float", "bytea_output", "zone")),
    Topic(
        "people", (1, 4, 5), ("doc", "thin", "odd", "long", "GRANT", "POLICY"), ("ROLE", "AUTHOR", "row_sec", "become")
    ),
    Topic("names", (1, 3, 4), (" item", "early", "cheap", "shadow", "twice"), ("search_path",)),
    Topic("schema", (2, 5, 1)),
    Topic("everything", (4, 2, 3), ("",), ("",)),
)

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
UPDATE member SET tenant = 't1' WHERE who = 'alice' | DELETE FROM member WHERE who = 'bob' | INSERT INTO member VALUES
  ('bob', 't0') ON CONFLICT DO NOTHING
UPDATE shared_doc SET body = body || '*' WHERE id < 6 | UPDATE shared_doc SET tenant = 't0' WHERE id = 3
UPDATE tenant_doc SET body = body || '*' WHERE id < 6 | UPDATE tenant_doc SET tenant = 't1' WHERE id = 4
UPDATE made SET n = n + 1 WHERE id = 1 | UPDATE made SET n = 1 WHERE id = 2 | UPDATE made SET n = 2
UPDATE deep SET v = v + 1 WHERE id = 2 | UPDATE deep SET region = 'c' WHERE region = 'a' AND id = 1 | UPDATE deep_rest
  SET v = 0
DELETE FROM deep WHERE region = 'c' AND id = 1 | UPDATE deep SET id = 9 WHERE id = 3 | INSERT INTO deep_z VALUES ('c',
  1, 7)
COPY log FROM STDIN | COPY thin (id, name) FROM STDIN
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
REFRESH MATERIALIZED VIEW frozen | UPDATE item SET kind = 1 WHERE id = 2
ALTER TABLE made ADD COLUMN virtual int GENERATED ALWAYS AS (n + 1) VIRTUAL | ALTER TABLE made DROP COLUMN virtual
ALTER TABLE made ALTER COLUMN double DROP EXPRESSION
ALTER TABLE made ALTER COLUMN double SET EXPRESSION AS (n * 3)
ALTER TABLE deep DETACH PARTITION deep_a | ALTER TABLE deep ATTACH PARTITION deep_a FOR VALUES IN ('a', 'b')
TRUNCATE deep_a1 | DROP TABLE deep_z CASCADE
ALTER POLICY of_member ON shared_doc USING (tenant = 't0') | ALTER TABLE shared_doc DISABLE ROW LEVEL SECURITY
DROP POLICY of_tenant ON tenant_doc | CREATE POLICY of_tenant ON tenant_doc USING (tenant = current_setting('app.t'))
REVOKE SELECT ON member FROM team, bob | GRANT SELECT ON member TO team, bob
ALTER FUNCTION secrets() SECURITY INVOKER | ALTER FUNCTION secrets() SECURITY DEFINER
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
SET app.t = 't1' | SET LOCAL app.tenant = 't0' | SET app.tenant = ''
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
