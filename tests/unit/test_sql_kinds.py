"""Every kind of statement gets its kind and its facts: one table."""

from __future__ import annotations

from typing import Any

import pytest

from distribcache.sql.cacheability import REFUSALS, Kind
from distribcache.sql.parse import MAX_OUTLINE, MAX_TEXT, read

K = Kind
KINDS: list[tuple[str, Kind]] = [
    # Reads.
    ("SELECT 1", K.READ),
    ("select * from t", K.READ),
    ("VALUES (1), (2)", K.READ),
    ("TABLE t", K.READ),
    ("(SELECT 1)", K.READ),
    ("SELECT 1 UNION ALL SELECT 2 ORDER BY 1", K.READ),
    ("WITH a AS (SELECT 1) SELECT * FROM a", K.READ),
    ("WITH RECURSIVE a(n) AS (SELECT 1 UNION SELECT n + 1 FROM a) SELECT * FROM a", K.READ),
    ("SELECT now()", K.READ),
    ("SELECT nextval('s')", K.READ),
    ("SELECT pg_advisory_lock(1)", K.READ),
    ("SELECT", K.READ),
    ("SELECT 1;", K.READ),
    (";SELECT 1", K.READ),
    ("-- a comment\nSELECT 1 /* another /* nested */ */", K.READ),
    ("SELECT $1::int, $2", K.READ),
    ("SELECT U&'\\0441' AS \"наза\"", K.READ),
    ("SELECT * FROM t GROUP BY GROUPING SETS ((a), ()), ROLLUP (b), CUBE (c)", K.READ),
    ("SELECT a FROM t ORDER BY a FETCH FIRST 3 ROWS WITH TIES", K.READ),
    ("SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[1])) WITH ORDINALITY", K.READ),
    ("SELECT JSON_OBJECT('a': 1), JSON_ARRAY(1, 2), JSON_VALUE('1', '$')", K.READ),
    ("SELECT * FROM JSON_TABLE('[]', '$[*]' COLUMNS (a int PATH '$.a'))", K.READ),
    ("SELECT xmlelement(name a), xmlforest(a AS b) FROM t", K.READ),
    ("SELECT a[1:2], (b).c, ROW(1, 2), ARRAY(SELECT 1), CASE a WHEN 1 THEN 2 END FROM t", K.READ),
    ("SELECT sum(a) OVER (w ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM t WINDOW w AS ()", K.READ),
    # Drivers' probes.
    ("select pg_catalog.version()", K.READ),
    ("select current_schema()", K.READ),
    ("show standard_conforming_strings", K.SHOW),
    ("show transaction isolation level", K.SHOW),
    ("SHOW ALL", K.SHOW),
    ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", K.READ),
    ("SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'",
     K.READ),
    ("SELECT to_regtype('hstore')", K.READ),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", K.SET_TRANSACTION),
    # Locks in reads.
    ("SELECT * FROM t FOR UPDATE", K.LOCKING_READ),
    ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", K.LOCKING_READ),
    ("SELECT * FROM t FOR SHARE OF t NOWAIT", K.LOCKING_READ),
    ("SELECT * FROM (SELECT * FROM t FOR KEY SHARE) s", K.LOCKING_READ),
    ("WITH a AS (SELECT * FROM t FOR UPDATE) SELECT * FROM a", K.LOCKING_READ),
    ("SELECT (SELECT a FROM t FOR UPDATE)", K.LOCKING_READ),
    # Writes.
    ("INSERT INTO t VALUES (1)", K.WRITE),
    ("INSERT INTO t SELECT * FROM u ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING *", K.WRITE),
    ("UPDATE t SET a = 1 FROM u WHERE t.id = u.id", K.WRITE),
    ("UPDATE t SET (a, b) = (SELECT 1, 2) WHERE CURRENT OF c", K.WRITE),
    ("DELETE FROM ONLY t USING u WHERE true", K.WRITE),
    ("MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE", K.WRITE),
    ("TRUNCATE t, u CASCADE", K.WRITE),
    ("WITH w AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM w", K.WRITE),
    ("WITH w AS (DELETE FROM t RETURNING *) INSERT INTO u SELECT * FROM w", K.WRITE),
    ("SELECT * FROM (SELECT 1) s, (WITH w AS (SELECT 1) SELECT * FROM w) x", K.READ),
    # Definitions.
    ("SELECT * INTO x FROM t", K.DDL),
    ("SELECT * INTO TEMP x FROM t", K.DDL),
    ("CREATE TABLE x AS SELECT 1", K.DDL),
    ("CREATE TEMP TABLE x (a int)", K.DDL),
    ("CREATE UNLOGGED TABLE x (a int)", K.DDL),
    ("ALTER TABLE t ADD COLUMN b int", K.DDL),
    ("ALTER TABLE t RENAME TO u", K.DDL),
    ("DROP TABLE t", K.DDL),
    ("CREATE INDEX CONCURRENTLY i ON t (a)", K.DDL),
    ("REINDEX TABLE t", K.DDL),
    ("CLUSTER t", K.DDL),
    ("CREATE VIEW v AS SELECT 1", K.DDL),
    ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1", K.DDL),
    ("CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC END", K.DDL),
    ("CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()", K.DDL),
    ("CREATE POLICY p ON t USING (true)", K.DDL),
    ("CREATE TYPE e AS ENUM ('a')", K.DDL),
    ("ALTER TYPE e ADD VALUE 'b'", K.DDL),
    ("CREATE EXTENSION vector", K.DDL),
    ("CREATE SCHEMA s CREATE TABLE t (a int)", K.DDL),
    ("CREATE ROLE r", K.DDL),
    ("ALTER ROLE r SET search_path = x", K.DDL),
    ("DROP ROLE r", K.DDL),
    ("GRANT SELECT ON t TO r", K.DDL),
    ("GRANT a TO b", K.DDL),
    ("REVOKE ALL ON t FROM r", K.DDL),
    ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO r", K.DDL),
    ("REASSIGN OWNED BY a TO b", K.DDL),
    ("DROP OWNED BY a", K.DDL),
    ("COMMENT ON TABLE t IS 'x'", K.DDL),
    ("SECURITY LABEL ON TABLE t IS 'x'", K.DDL),
    ("REFRESH MATERIALIZED VIEW m", K.DDL),
    ("CREATE PUBLICATION p FOR ALL TABLES", K.DDL),
    ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", K.DDL),
    ("ALTER SYSTEM SET work_mem = '1MB'", K.DDL),
    ("CREATE SEQUENCE s", K.DDL),
    ("CREATE STATISTICS s ON a, b FROM t", K.DDL),
    ("CREATE TABLESPACE x LOCATION '/x'", K.DDL),
    ("IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y", K.DDL),
    ("ALTER DATABASE d SET work_mem = '1MB'", K.DDL),
    ("ALTER DATABASE d OWNER TO r", K.DDL),
    # Databases.
    ("CREATE DATABASE d", K.DATABASE),
    ("CREATE DATABASE d TEMPLATE x", K.DATABASE),
    ("DROP DATABASE IF EXISTS d WITH (FORCE)", K.DATABASE),
    ("ALTER DATABASE d RENAME TO e", K.DATABASE),
    ("ALTER DATABASE d SET TABLESPACE x", K.DATABASE),
    # Transactions.
    ("BEGIN", K.BEGIN),
    ("BEGIN WORK READ ONLY", K.BEGIN),
    ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE", K.BEGIN),
    ("COMMIT", K.COMMIT),
    ("END", K.COMMIT),
    ("COMMIT AND CHAIN", K.COMMIT),
    ("ROLLBACK", K.ROLLBACK),
    ("ABORT", K.ROLLBACK),
    ("ROLLBACK AND NO CHAIN", K.ROLLBACK),
    ("SAVEPOINT a", K.SAVEPOINT),
    ("RELEASE SAVEPOINT a", K.RELEASE),
    ("RELEASE a", K.RELEASE),
    ("ROLLBACK TO a", K.ROLLBACK_TO),
    ("ROLLBACK WORK TO SAVEPOINT a", K.ROLLBACK_TO),
    ("SET TRANSACTION READ ONLY", K.SET_TRANSACTION),
    ("SET TRANSACTION SNAPSHOT 'x'", K.SET_TRANSACTION),
    ("SET LOCAL TRANSACTION ISOLATION LEVEL READ COMMITTED", K.SET_TRANSACTION),
    ("PREPARE TRANSACTION 'x'", K.PREPARE_TRANSACTION),
    ("COMMIT PREPARED 'x'", K.TWO_PHASE_END),
    ("ROLLBACK PREPARED 'x'", K.TWO_PHASE_END),
    # Settings.
    ("SET search_path TO a, b", K.SET),
    ("SET LOCAL work_mem = '1MB'", K.SET),
    ("SET TIME ZONE 'UTC'", K.SET),
    ("SET ROLE x", K.SET),
    ("SET SESSION AUTHORIZATION x", K.SET),
    ("SET NAMES 'UTF8'", K.SET),
    ("SET SCHEMA 'x'", K.SET),
    ("SET distribcache.consistency = strict", K.SET),
    ("SET CONSTRAINTS ALL DEFERRED", K.OTHER),
    ("SET x TO DEFAULT", K.RESET),
    ("RESET x", K.RESET),
    ("RESET ALL", K.RESET),
    ("RESET ROLE", K.RESET),
    ("RESET SESSION AUTHORIZATION", K.RESET),
    # The rest.
    ("DISCARD ALL", K.DISCARD),
    ("DISCARD TEMP", K.DISCARD),
    ("PREPARE p (int) AS SELECT $1", K.PREPARE),
    ("EXECUTE p(1)", K.EXECUTE),
    ("DEALLOCATE p", K.DEALLOCATE),
    ("DEALLOCATE PREPARE ALL", K.DEALLOCATE),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", K.DECLARE),
    ("FETCH ALL FROM c", K.FETCH),
    ("MOVE 3 IN c", K.FETCH),
    ("CLOSE c", K.CLOSE),
    ("CLOSE ALL", K.CLOSE),
    ("LISTEN x", K.LISTEN),
    ("UNLISTEN *", K.UNLISTEN),
    ("NOTIFY x, 'y'", K.NOTIFY),
    ("LOCK TABLE t IN SHARE MODE", K.LOCK),
    ("COPY t FROM STDIN", K.COPY),
    ("COPY (SELECT 1) TO STDOUT", K.COPY),
    ("DO $$ BEGIN END $$", K.DO),
    ("CALL p(1)", K.CALL),
    ("EXPLAIN SELECT 1", K.EXPLAIN),
    ("EXPLAIN (COSTS OFF) INSERT INTO t VALUES (1)", K.EXPLAIN),
    ("EXPLAIN ANALYZE SELECT 1", K.EXPLAIN),
    ("EXPLAIN ANALYZE DELETE FROM t", K.WRITE),
    ("EXPLAIN (ANALYZE) CREATE TABLE x AS SELECT 1", K.DDL),
    ("EXPLAIN ANALYZE SELECT 1 FROM t FOR UPDATE", K.LOCKING_READ),
    ("VACUUM FULL t", K.OTHER),
    ("ANALYZE", K.OTHER),
    ("CHECKPOINT", K.OTHER),
    ("LOAD 'x'", K.OTHER),
    ("", K.EMPTY),
    (";", K.EMPTY),
    (" ;; -- nothing\n", K.EMPTY),
    ("/* only */", K.EMPTY),
]


@pytest.mark.parametrize(("sql", "kind"), KINDS, ids=[sql[:60] for sql, _ in KINDS])
def test_kind(sql: str, kind: Kind) -> None:
    parsed = read(sql.encode())
    assert parsed.error == ""
    assert parsed.statements[0].kind is kind
    for statement in parsed.statements:
        assert statement.refusal is None or statement.refusal.code in REFUSALS
        # Only reads may be cached, only reads and SHOW may be pure.
        assert statement.kind is K.READ or statement.refusal is not None
        assert statement.kind in (K.READ, K.SHOW, K.EMPTY) or not statement.is_pure_candidate


FACTS: list[tuple[str, dict[str, Any]]] = [
    ("BEGIN", {"isolation": None, "read_only": None, "deferrable": None}),
    ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE",
     {"isolation": "repeatable read", "read_only": True, "deferrable": False}),
    ("START TRANSACTION READ WRITE", {"read_only": False}),
    ("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", {"isolation": "read uncommitted", "name": "transaction"}),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
     {"isolation": "serializable", "name": "session characteristics"}),
    ("COMMIT AND CHAIN", {"chain": True}),
    ("ROLLBACK AND NO CHAIN", {"chain": False}),
    ('SAVEPOINT "S p"', {"name": "S p"}),
    ("RELEASE SP", {"name": "sp"}),
    ("PREPARE TRANSACTION 'G'", {"name": "G"}),
    ("SET Work_Mem = '1MB'", {"name": "work_mem", "value": "1MB", "local": False}),
    ("SET LOCAL work_mem = 64", {"value": "64", "local": True}),
    ("SET x.y = 1.5", {"name": "x.y", "value": "1.5"}),
    ("SET x.y = 0", {"value": "0"}),
    ("SET x.y = ''", {"value": ""}),
    ("SET x.y = on", {"value": "on"}),
    ("SET x.y = TRUE", {"value": "true"}),
    ("SET x.y = -3", {"value": "-3"}),
    ("SET search_path = a, b", {"name": "search_path", "value": None}),
    ("SET SCHEMA 'x'", {"name": "search_path", "value": "x"}),
    ("SET TIME ZONE INTERVAL '1' HOUR", {"name": "timezone", "value": None}),
    ("SET x FROM CURRENT", {"name": "x", "value": None}),
    ("SET ROLE NONE", {"name": "role", "value": "none"}),
    ("SET SESSION AUTHORIZATION DEFAULT", {"kind": Kind.RESET, "name": "session_authorization"}),
    ("RESET ALL", {"every": True, "name": ""}),
    ("SET LOCAL x TO DEFAULT", {"kind": Kind.RESET, "local": True, "name": "x"}),
    ("SHOW Search_Path", {"name": "search_path"}),
    ("SHOW distribcache.last", {"name": "distribcache.last"}),
    ("SHOW TIME ZONE", {"name": "timezone"}),
    ("DISCARD ALL", {"every": True}),
    ("DISCARD PLANS", {"every": False, "name": "plans"}),
    ("DEALLOCATE ALL", {"every": True}),
    ('DEALLOCATE "all"', {"every": False, "name": "all"}),
    ("CLOSE c", {"every": False, "name": "c"}),
    ("UNLISTEN *", {"every": True}),
    ("LISTEN X", {"name": "x", "every": False}),
    ("CREATE DATABASE a", {"databases": ("a", "template1")}),
    ("CREATE DATABASE a TEMPLATE = b OWNER = c", {"databases": ("a", "b")}),
    ("CREATE DATABASE a TEMPLATE 'B'", {"databases": ("a", "B")}),
    ("CREATE DATABASE a TEMPLATE DEFAULT", {"databases": ("a", "template1")}),
    ("DROP DATABASE a", {"databases": ("a",)}),
    ("ALTER DATABASE a RENAME TO b", {"databases": ("a", "b")}),
    ("SELECT $1", {"has_params": True}),
    ("SELECT 1", {"has_params": False}),
]


@pytest.mark.parametrize(("sql", "facts"), FACTS, ids=[sql[:60] for sql, _ in FACTS])
def test_facts(sql: str, facts: dict[str, Any]) -> None:
    (statement,) = read(sql.encode()).statements
    assert {name: getattr(statement, name) for name in facts} == facts


def test_several_statements_keep_their_order() -> None:
    parsed = read(b"BEGIN; SELECT 1; ; INSERT INTO t VALUES (1); COMMIT")
    assert [one.kind for one in parsed.statements] == [K.BEGIN, K.READ, K.WRITE, K.COMMIT]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"SELEC 1", "syntax error"),
        (b"SELECT 'open", "syntax error"),
        (b"SELECT 1\0; DROP TABLE t", "NUL byte"),
        (b"SELECT '\xff'", "not UTF-8"),
        (b"DO '" + b"x" * MAX_TEXT + b"'", "too large"),
        (b"SELECT " + b"x" * MAX_OUTLINE, "too large"),
        (b"SELECT 1 INTO x, " + b"a," * 32_000 + b"a", "syntax error"),
        (b"SELECT 1 INTO x WHERE a IN (" + b"1," * 32_000 + b"1)", "too large"),
        (b"/*" * 30_000, "too many operator characters in a row"),
        (b"SELECT " + b"+" * 60_000 + b"1", "too many operator characters in a row"),
        (b"SELECT " + b"+" * 600_000 + b"1", "too many operator characters in a row"),
        (b"SELECT " + b"1+" * 4_000 + b"1", "nested too deeply"),
        (b"SELECT " + b"(" * 20_000 + b"1" + b")" * 20_000, "syntax error"),
        (b"SELECT " + b"f(" * 500 + b"1" + b")" * 500, "nested too deeply"),
        (b"SELECT 1 FROM t WHERE " + b"NOT " * 5_000 + b"a", "nested too deeply"),
        (b"SELECT 1" + b" UNION SELECT 1" * 2_000, "nested too deeply"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_what_is_not_understood_says_so(text: bytes, error: str) -> None:
    parsed = read(text)
    assert parsed.statements == ()
    assert parsed.error == error


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (b"SELECT " + b"a," * 32_000 + b"a", [Kind.LOCKING_READ]),
        (b"INSERT INTO t VALUES " + b"(1)," * 50_000 + b"(1)", [Kind.WRITE]),
        (b"-- a\n/* b */ update t SET a = 1 WHERE a IN (" + b"1," * 50_000 + b"1); DELETE FROM t", [Kind.WRITE] * 2),
        (b"WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x WHERE a IN (" + b"1," * 50_000 + b"1)", [
            Kind.LOCKING_READ]),
        (b" " * 100_000, [Kind.EMPTY]),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else "",
)  # fmt: skip
def test_of_a_long_text_only_the_kinds_are_known(text: bytes, kinds: list[Kind]) -> None:
    parsed = read(text)
    assert [each.kind for each in parsed.statements] == kinds
    assert not any(each.is_pure_candidate and each.kind is not Kind.EMPTY for each in parsed.statements)
    assert not any(each.is_write_candidate for each in parsed.statements)


def test_decoration_in_comments_is_no_reason_to_refuse() -> None:
    ruler = b"-- " + b"=" * 100 + b"\n/*" + b"*" * 100 + b"*/\n"
    assert read(ruler * 50 + b"SELECT a FROM t").error == ""


def test_a_long_list_is_understood() -> None:
    assert read(b"SELECT * FROM t WHERE id IN (" + b"12345, " * 9_000 + b"1)").error == ""


@pytest.mark.parametrize(
    ("sql", "nocache"),
    [
        ("SELECT 1 /* distribcache: nocache */ FROM t", True),
        ("/*distribcache:nocache*/ SELECT 1 FROM t", True),
        ("SELECT 1 FROM t -- DistribCache: NoCache", True),
        ("SELECT 1 /* outer /* distribcache: nocache */ */ FROM t", True),
        ("SELECT '/* distribcache: nocache */' FROM t", False),
        ("SELECT E'\\'/* distribcache: nocache */' FROM t", False),
        ("SELECT $x$/* distribcache: nocache */$x$ FROM t", False),
        ('SELECT "/* distribcache: nocache */" FROM t', False),
        ("SELECT 'ü', '/* distribcache: nocache */' /* ü distribcache: nocache */ FROM t", True),
        ("SELECT 1 /* distribcache: cache */ FROM t", False),
    ],
)
def test_a_comment_may_forbid_caching_and_only_a_comment(sql: str, nocache: bool) -> None:
    (statement,) = read(sql.encode()).statements
    assert statement.nocache is nocache
    assert (statement.refusal is not None and statement.refusal.code == "nocache") is nocache
