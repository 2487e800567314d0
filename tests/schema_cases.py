"""Changes of the catalogue that change an answer: one line per source (coherence rule R6, trap 5)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "SHARED", "Case", "Shared"]


@dataclass(frozen=True, slots=True)
class Case:
    """``made`` and ``change`` run around the proxy in schema ``c``; ``then`` are writes behind the change. ``who``
    reads: the superuser, whose search path is ``early, c``, or ``looker``. ``since``: a server version.
    """

    name: str
    made: str
    read: str
    change: str
    then: str = ""
    who: str = "postgres"
    since: int = 0


T = "CREATE TABLE t (id int PRIMARY KEY, v int, name text); INSERT INTO t VALUES (1, 1, 'b a'), (2, 2, 'c')"
SHOWN = f"{T}; GRANT SELECT ON t TO looker"
READ = "SELECT id, v, name FROM t ORDER BY id"
ONE = "SELECT v FROM t WHERE id = 1"

CASES = (
    # What values look like.
    Case(
        "enum value renamed",
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE m (m mood); INSERT INTO m VALUES ('ok')",
        "SELECT m FROM m",
        "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
    ),
    Case(
        "attribute added to a composite type",
        "CREATE TYPE pair AS (a int, b int); CREATE TABLE p (p pair); INSERT INTO p VALUES ('(1,2)')",
        "SELECT p FROM p",
        "ALTER TYPE pair ADD ATTRIBUTE c int",
    ),
    Case(
        "check of a domain",
        f"CREATE DOMAIN small AS int; {T}",
        "SELECT v::small FROM t ORDER BY id",
        "ALTER DOMAIN small ADD CHECK (VALUE < 2)",
    ),
    Case(
        "text search configuration",
        f"CREATE TEXT SEARCH CONFIGURATION words (COPY = english); {T}",
        "SELECT to_tsvector('c.words', name) FROM t ORDER BY id",
        "ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR asciiword WITH simple",
    ),
    Case(
        "text search dictionary",
        f"CREATE TEXT SEARCH DICTIONARY d (TEMPLATE = simple); CREATE TEXT SEARCH CONFIGURATION words (COPY = simple); "
        f"ALTER TEXT SEARCH CONFIGURATION words ALTER MAPPING FOR asciiword WITH d; {T}",
        "SELECT to_tsvector('c.words', name) FROM t ORDER BY id",
        "ALTER TEXT SEARCH DICTIONARY d (STOPWORDS = english)",
    ),
    Case(
        "collation made anew",
        "CREATE COLLATION l (PROVIDER = builtin, LOCALE = 'C.UTF-8'); CREATE TABLE w AS SELECT 'é'::text AS w",
        "SELECT upper(w COLLATE c.l) FROM w",
        'DROP COLLATION l; CREATE COLLATION l FROM "C"',
        since=170000,
    ),
    # Tables.
    Case("column added", T, "SELECT * FROM t ORDER BY id", "ALTER TABLE t ADD COLUMN n int DEFAULT 7"),
    Case("column renamed", T, READ, "ALTER TABLE t RENAME COLUMN v TO w"),
    Case("type changed", T, READ, "ALTER TABLE t ALTER COLUMN v TYPE text"),
    Case("same type, other values", T, READ, "ALTER TABLE t ALTER COLUMN v TYPE int USING v * 10"),
    Case(
        "expression of a stored column",
        "CREATE TABLE g (v int, w int GENERATED ALWAYS AS (v * 2) STORED); INSERT INTO g VALUES (1)",
        "SELECT w FROM g",
        "ALTER TABLE g ALTER COLUMN w SET EXPRESSION AS (v * 3)",
        since=170000,
    ),
    Case(
        "expression of a virtual column",
        "CREATE TABLE g (v int, w int GENERATED ALWAYS AS (v * 2) VIRTUAL); INSERT INTO g VALUES (1)",
        "SELECT w FROM g",
        "ALTER TABLE g ALTER COLUMN w SET EXPRESSION AS (v * 3)",
        since=180000,
    ),
    Case("renamed away", T, READ, "ALTER TABLE t RENAME TO u"),
    Case(
        "names swapped",
        f"{T}; CREATE TABLE u (id int, v int, name text)",
        READ,
        "ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u",
    ),
    Case(
        "moved to another schema",
        T,
        READ,
        "ALTER TABLE t SET SCHEMA early; CREATE TABLE t (LIKE early.t)",
        "DELETE FROM early.t",
    ),
    Case("shadowed by an earlier schema", T, READ, "CREATE TABLE early.t (LIKE t)"),
    Case("dropped", T, READ, "DROP TABLE t"),
    Case(
        "primary key dropped",
        T,
        "SELECT id, v FROM t GROUP BY id ORDER BY id",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
    ),
    Case(
        "primary key dropped under a pin",
        T,
        ONE,
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "UPDATE t SET id = 9 WHERE id = 1",
    ),
    Case(
        "primary key made on another column",
        T,
        ONE,
        "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (v)",
        "UPDATE t SET id = 9 WHERE id = 1",
    ),
    Case("replica identity", T, ONE, "ALTER TABLE t REPLICA IDENTITY NOTHING", "UPDATE t SET id = 9 WHERE id = 1"),
    Case("not logged any more", T, ONE, "ALTER TABLE t SET UNLOGGED", "UPDATE t SET v = 9"),
    Case(
        "child taken away",
        f"{T}; CREATE TABLE k () INHERITS (t); INSERT INTO k VALUES (3, 3, 'd')",
        READ,
        "ALTER TABLE k NO INHERIT t",
    ),
    Case(
        "partition attached, then written to",
        "CREATE TABLE r (k int) PARTITION BY LIST (k); CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1); "
        "INSERT INTO r VALUES (1); CREATE TABLE r2 (k int)",
        "SELECT k FROM r ORDER BY k",
        "ALTER TABLE r ATTACH PARTITION r2 FOR VALUES IN (2)",
        "INSERT INTO r2 VALUES (2)",
    ),
    # What runs when it is read.
    Case("view replaced", f"{T}; CREATE VIEW w AS SELECT v FROM t", "SELECT v FROM w ORDER BY v",
         "CREATE OR REPLACE VIEW w AS SELECT v + 1 AS v FROM t"),
    Case(
        "view made its invoker's",
        f"{T}; CREATE VIEW w AS SELECT v FROM t; GRANT SELECT ON w TO looker",
        "SELECT v FROM c.w ORDER BY v",
        "ALTER VIEW w SET (security_invoker = true)",
        who="looker",
        since=150000,
    ),
    Case(
        "barrier of a view",
        f"{T}; CREATE VIEW w WITH (security_barrier) AS SELECT v FROM t WHERE abs(abs(abs(v))) <> 1",
        "SELECT v FROM w WHERE 1 / (v - 1) > 0",
        "ALTER VIEW w RESET (security_barrier)",
    ),
    Case("function replaced", f"{T}; CREATE FUNCTION f(int) RETURNS int IMMUTABLE RETURN $1",
         "SELECT f(v) FROM t ORDER BY id", "CREATE OR REPLACE FUNCTION f(int) RETURNS int IMMUTABLE RETURN $1 + 1"),
    Case("function shadowed", f"{T}; CREATE FUNCTION f(int) RETURNS int IMMUTABLE RETURN $1",
         "SELECT f(v) FROM t ORDER BY id", "CREATE FUNCTION early.f(int) RETURNS int IMMUTABLE RETURN -1"),
    Case(
        "aggregate made anew",
        f"{T}; CREATE AGGREGATE a (int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')",
        "SELECT a(v) FROM t",
        "DROP AGGREGATE a (int); CREATE AGGREGATE a (int) (SFUNC = int4pl, STYPE = int, INITCOND = '5')",
    ),
    Case(
        "operator made anew",
        f"{T}; CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
        "SELECT id FROM t WHERE v === 1",
        "DROP OPERATOR === (int, int); CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4ne)",
    ),
    # Who may.
    Case("select revoked", SHOWN, "SELECT v FROM c.t", "REVOKE SELECT ON t FROM looker", who="looker"),
    Case(
        "column revoked",
        f"{T}; GRANT SELECT (id, v) ON t TO looker",
        "SELECT v FROM c.t ORDER BY id",
        "REVOKE SELECT (v) ON t FROM looker",
        who="looker",
    ),
    Case("schema revoked", SHOWN, "SELECT v FROM c.t", "REVOKE USAGE ON SCHEMA c FROM PUBLIC", who="looker"),
    Case(
        "execution revoked",
        f"{SHOWN}; CREATE FUNCTION f(int) RETURNS int IMMUTABLE RETURN $1",
        "SELECT c.f(v) FROM c.t ORDER BY id",
        "REVOKE EXECUTE ON FUNCTION f(int) FROM PUBLIC",
        who="looker",
    ),
    Case(
        "function made its invoker's",
        f"{T}; CREATE FUNCTION f() RETURNS bigint STABLE SECURITY DEFINER BEGIN ATOMIC SELECT count(*) FROM t; END; "
        "CREATE TABLE one AS SELECT 1 AS a; GRANT SELECT ON one TO looker",
        "SELECT a, c.f() FROM c.one",
        "ALTER FUNCTION f() SECURITY INVOKER",
        who="looker",
    ),
    Case(
        "setting that a policy reads",
        f"{SHOWN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY; "
        "CREATE POLICY p ON t USING (name = coalesce(current_setting('app.name', true), 'c'))",
        "SELECT v FROM c.t",
        "ALTER POLICY p ON t USING (name = coalesce(current_setting('app.other', true), 'b a'))",
        who="looker",
    ),
    Case(
        "table that a policy reads",
        f"{SHOWN}; CREATE TABLE mine AS SELECT 1 AS v; GRANT SELECT ON mine TO looker; "
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (v IN (SELECT m.v FROM mine m))",
        "SELECT v FROM c.t",
        "REVOKE SELECT ON mine FROM looker",
        who="looker",
    ),
    Case(
        "right of a view's owner",
        f"{T}; GRANT SELECT ON t TO lender; CREATE VIEW w AS SELECT v FROM t; GRANT CREATE ON SCHEMA c TO lender; "
        "ALTER VIEW w OWNER TO lender; GRANT SELECT ON w TO looker",
        "SELECT v FROM c.w ORDER BY v",
        "REVOKE SELECT ON t FROM lender",
        who="looker",
    ),
    Case(
        "owner changed",
        f"{T}; GRANT CREATE ON SCHEMA c TO looker; ALTER TABLE t OWNER TO looker",
        "SELECT v FROM c.t",
        "ALTER TABLE t OWNER TO postgres",
        who="looker",
    ),
    Case(
        "row security switched on",
        SHOWN,
        "SELECT v FROM c.t",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        who="looker",
    ),
    Case(
        "policy altered",
        f"{SHOWN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (v = 1)",
        "SELECT v FROM c.t",
        "ALTER POLICY p ON t USING (v = 2)",
        who="looker",
    ),
    Case(
        "policy dropped",
        f"{SHOWN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (v = 1)",
        "SELECT v FROM c.t",
        "DROP POLICY p ON t",
        who="looker",
    ),
    Case(
        "row security forced on its owner",
        f"{T}; GRANT CREATE ON SCHEMA c TO looker; ALTER TABLE t OWNER TO looker; "
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "SELECT v FROM c.t",
        "ALTER TABLE t FORCE ROW LEVEL SECURITY",
        who="looker",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shared:
    """A change of what all databases share, made in another one: ``made``, ``change`` and ``undo`` run there, ``here``
    in the database that is read. ``anew``: only sessions begun later are concerned.
    """

    name: str
    here: str
    made: str
    read: str
    change: str
    undo: str = "SELECT 1"
    anew: bool = False


SHARED = (
    Shared(
        "membership",
        f"{T}; GRANT SELECT ON t TO lender",
        "GRANT lender TO looker",
        "SELECT v FROM c.t",
        "REVOKE lender FROM looker",
    ),
    Shared("superuser", T, "ALTER ROLE looker SUPERUSER", "SELECT v FROM c.t", "ALTER ROLE looker NOSUPERUSER"),
    Shared(
        "bypass of row security",
        f"{SHOWN}; ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER ROLE looker BYPASSRLS",
        "SELECT v FROM c.t",
        "ALTER ROLE looker NOBYPASSRLS",
    ),
    Shared(
        "inheritance of a membership",
        f"{T}; GRANT SELECT ON t TO lender",
        "GRANT lender TO looker WITH INHERIT TRUE",
        "SELECT v FROM c.t",
        "GRANT lender TO looker WITH INHERIT FALSE",
        "REVOKE lender FROM looker",
    ),
    Shared(
        "search path of a role",
        f"{SHOWN}; CREATE TABLE early.t AS SELECT 5 AS v; GRANT SELECT ON early.t TO looker",
        "ALTER ROLE looker SET search_path = c",
        "SELECT v FROM t",
        "ALTER ROLE looker SET search_path = early",
        "ALTER ROLE looker RESET ALL",
        anew=True,
    ),
    Shared(
        "setting of a database",
        "CREATE TABLE z AS SELECT '2024-05-17 12:00+00'::timestamptz AS z; GRANT SELECT ON z TO looker",
        "SELECT 1",
        "SELECT z::text FROM c.z",
        "ALTER DATABASE {db} SET timezone = 'Asia/Tokyo'",
        "ALTER DATABASE {db} RESET ALL",
        anew=True,
    ),
)
