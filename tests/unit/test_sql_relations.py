"""Names in a query: the scope of WITH, hidden operators, functions in disguise."""

from __future__ import annotations

import pytest

from distribcache.sql.cacheability import Statement
from distribcache.sql.parse import read


def _one(sql: str) -> Statement:
    parsed = read(sql.encode())
    assert parsed.error == ""
    return parsed.statements[0]


SCOPES: list[tuple[str, str]] = [
    ("SELECT * FROM a, b JOIN c USING (x)", "a b c"),
    ("SELECT * FROM s.a, ONLY b AS a", "s.a b"),
    ('SELECT * FROM "A b", "ü", Ä', "A b ü Ä"),
    ("SELECT (SELECT max(x) FROM a WHERE y IN (SELECT z FROM b)) FROM c WHERE EXISTS (SELECT FROM d)", "a b c d"),
    ("SELECT * FROM a UNION SELECT * FROM b EXCEPT (SELECT * FROM c INTERSECT TABLE d)", "a b c d"),
    ("SELECT * FROM LATERAL (SELECT * FROM a) x, ROWS FROM (f((SELECT 1 FROM b))) y", "a b"),
    ("SELECT * FROM a GROUP BY (SELECT 1 FROM b) HAVING (SELECT true FROM c) ORDER BY (SELECT 1 FROM d)", "a b c d"),
    ("SELECT * FROM a LIMIT (SELECT 1 FROM b) OFFSET (SELECT 1 FROM c)", "a b c"),
    ("SELECT sum(x) FILTER (WHERE (SELECT true FROM a)) OVER (PARTITION BY (SELECT 1 FROM b)) FROM c", "a b c"),
    ("VALUES ((SELECT 1 FROM a)), (2)", "a"),
    ("SELECT * FROM XMLTABLE('/' PASSING (SELECT x FROM a) COLUMNS c int PATH 'x' DEFAULT (SELECT 1 FROM b))", "a b"),
    ("SELECT CASE WHEN (SELECT true FROM a) THEN (SELECT 1 FROM b) ELSE (SELECT 2 FROM c) END", "a b c"),
    # A WITH name hides a table in its query and below …
    ("WITH a AS (SELECT 1) SELECT * FROM a", ""),
    ("WITH a AS (SELECT 1) SELECT * FROM s.a", "s.a"),
    ("WITH a AS (SELECT 1) SELECT * FROM (SELECT * FROM a WHERE EXISTS (SELECT FROM a, b)) x", "b"),
    ("WITH a AS (SELECT * FROM b) SELECT * FROM a UNION SELECT * FROM a", "b"),
    # … but not in itself, nor in earlier ones, unless RECURSIVE.
    ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "a"),
    ("WITH a AS (SELECT * FROM b), b AS (SELECT * FROM a) SELECT * FROM b", "b"),
    ("WITH b AS (SELECT 1), a AS (SELECT * FROM b) SELECT * FROM a", ""),
    ("WITH RECURSIVE a AS (SELECT 1 UNION ALL SELECT * FROM a) SELECT * FROM a", ""),
    ("WITH RECURSIVE a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a", ""),
    # Inner WITHs see outer ones; outer queries do not see inner ones.
    ("WITH a AS (SELECT 1) SELECT * FROM (WITH b AS (SELECT * FROM a) SELECT * FROM b) x, b", "b"),
    ("SELECT * FROM (WITH a AS (SELECT 1) SELECT * FROM a) x JOIN a ON true", "a"),
    ("WITH a AS (WITH a AS (SELECT * FROM a) SELECT * FROM a) SELECT * FROM a", "a"),
    ("SELECT * FROM x WHERE id IN (WITH x AS (SELECT 1) SELECT * FROM x)", "x"),
    # On one side of a set operation only.
    ("(WITH a AS (SELECT 1) SELECT * FROM a) UNION SELECT * FROM a", "a"),
    ("WITH a AS (SELECT 1) (SELECT * FROM a) UNION SELECT * FROM a", ""),
    ("WITH a AS MATERIALIZED (SELECT * FROM b) SELECT 1", "b"),
    # The target of a write is a table, whatever WITH says.
    ("WITH a AS (SELECT 1) DELETE FROM a USING a AS x WHERE true", "a"),
    ("WITH w AS (INSERT INTO t SELECT * FROM u RETURNING *) SELECT * FROM w, v", "t u v"),
    ("MERGE INTO t USING u ON true WHEN MATCHED THEN UPDATE SET x = (SELECT 1 FROM v)", "t u v"),
    ("INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = (SELECT 1 FROM u) RETURNING (SELECT 2 FROM v)",
     "t u v"),
    ("UPDATE t SET a = b FROM u WHERE t.x = (SELECT 1 FROM v)", "t u v"),
]


@pytest.mark.parametrize(("sql", "relations"), SCOPES, ids=[sql[:70] for sql, _ in SCOPES])
def test_relations(sql: str, relations: str) -> None:
    expected = {"A b", "ü", "Ä"} if '"A b"' in sql else set(relations.split())
    assert {str(name) for name in _one(sql).relations} == expected


@pytest.mark.parametrize(
    ("sql", "operators"),
    [
        ("SELECT a + b FROM t", "+"),
        ("SELECT - a FROM t", "-"),
        ("SELECT * FROM t WHERE a BETWEEN 1 AND 2", "<= >="),
        ("SELECT * FROM t WHERE a NOT BETWEEN SYMMETRIC 1 AND 2", "< >"),
        ("SELECT * FROM t WHERE a IN (1, 2)", "="),
        ("SELECT * FROM t WHERE a NOT IN (1, 2)", "<>"),
        ("SELECT * FROM t WHERE a IN (SELECT 1)", "="),
        ("SELECT * FROM t WHERE a <= ALL (SELECT 1)", "<="),
        ("SELECT * FROM t WHERE a < ANY (ARRAY[1])", "<"),
        ("SELECT * FROM t WHERE a IS DISTINCT FROM b", "="),
        ("SELECT nullif(a, b) FROM t", "="),
        ("SELECT CASE a WHEN 1 THEN 2 END FROM t", "="),
        ("SELECT CASE WHEN a THEN 2 END FROM t", ""),
        ("SELECT * FROM t JOIN u USING (a)", "="),
        ("SELECT * FROM t NATURAL JOIN u", "="),
        ("SELECT * FROM t WHERE a LIKE 'x' OR a NOT ILIKE 'y'", "!~~* ~~"),
        ("SELECT * FROM t WHERE a SIMILAR TO 'x'", "~"),
        ("SELECT * FROM t ORDER BY a USING >", ">"),
        ("SELECT a FROM t UNION SELECT b FROM u", "="),
        ("SELECT count(DISTINCT a) FROM t", "="),
        ("SELECT a OPERATOR(s.+) b FROM t", "s.+"),
    ],
)
def test_operators_that_the_grammar_hides_are_seen(sql: str, operators: str) -> None:
    assert {str(name) for name in _one(sql).operators} == set(operators.split())


@pytest.mark.parametrize(
    ("sql", "functions"),
    [
        ("SELECT f(), s.g(1, 2), h(VARIADIC a), count(*), k(a => 1) FROM t", "f/0 s.g/2 h/1 count/0 k/1"),
        ("SELECT extract(year FROM a), a AT TIME ZONE 'UTC' FROM t", "pg_catalog.extract/2 pg_catalog.timezone/2"),
        ("SELECT trim(a), substring(a FROM 1), position('x' IN a) FROM t",
         "pg_catalog.btrim/1 pg_catalog.substring/2 pg_catalog.position/2"),
        ("SELECT mode() WITHIN GROUP (ORDER BY a), rank(1) WITHIN GROUP (ORDER BY a) FROM t", "mode/1 rank/2"),
        ("SELECT * FROM f(1), ROWS FROM (g(), h(2)) x", "f/1 g/0 h/1"),
        ("SELECT coalesce(a, b), greatest(a, b), nullif(a, b), row(a), array[a] FROM t", ""),
        ("SELECT json_array(1), json_value(a, '$') FROM t", "json_array/-1 json_value/-1"),
    ],
)
def test_functions(sql: str, functions: str) -> None:
    assert {f"{str(call)[:-2]}/{call.arguments}" for call in _one(sql).functions} == set(functions.split())


def test_a_dotted_reference_may_be_a_call() -> None:
    assert _one("SELECT t.full_name, (t).other, x FROM t").names.attributes == ("full_name", "other")


@pytest.mark.parametrize(
    ("sql", "collations", "configurations", "configured", "vague"),
    [
        ('SELECT a COLLATE "C" FROM t ORDER BY b COLLATE s.x', "C s.x", "", 0, False),
        ("SELECT * FROM f() AS x(a text COLLATE mine)", "mine", "", 0, False),
        ("SELECT a COLLATE d.s.x FROM t", "", "", 0, True),
        ('SELECT a COLLATE "é" FROM t', "", "", 0, True),
        ("SELECT to_tsvector('english', a), ts_headline('s.x', a, b) FROM t", "", "english s.x", 2, False),
        ("SELECT to_tsvector($1, a), to_tsquery(a, b), to_tsvector('a') FROM t", "", "", 2, False),
        ("SELECT to_tsvector('English', a) FROM t", "", "", 0, False),
        ("SELECT to_tsvector('13', a), to_tsquery('english', a) FROM t", "", "english", 1, False),
        ("SELECT to_tsvector('english', a), to_tsvector(coalesce('x', a), a) FROM t", "", "english", 0, False),
        ("SELECT f('english', a), ts_lexize('simple', a) FROM t", "", "", 0, False),
    ],
)
def test_names_that_are_never_looked_up_again(
    sql: str, collations: str, configurations: str, configured: int, vague: bool
) -> None:
    names = _one(sql).names
    assert {str(name) for name in names.collations} == set(collations.split())
    assert {str(name) for name in names.configurations} == set(configurations.split())
    assert (len(names.configured), names.vague) == (configured, vague)


def test_texts_that_differ_in_literals_have_equal_names() -> None:
    first = _one("SELECT a::date, f(b) FROM t WHERE c = 1 AND d = 'x'").names
    second = _one("select a::date , f(b) from t where c = 222 and d = 'y' -- other").names
    assert first == second
    assert hash(first) == hash(second)
    assert first != _one("SELECT a::date, g(b) FROM t WHERE c = 1 AND d = 'x'").names


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT 1", "no_relation"),
        ("SELECT xmin FROM t", "system_column"),
        ("SELECT t.ctid FROM t", "system_column"),
        ("SELECT oid, tableoid FROM t", ""),
        ("SELECT current_date FROM t", "time_dependent"),
        ("SELECT localtime(3) FROM t", "time_dependent"),
        ("SELECT current_timestamp(0) FROM t", "time_dependent"),
        ("SELECT current_user, session_user FROM t", ""),
        ("SELECT * FROM t TABLESAMPLE system (1)", "tablesample"),
        ("SELECT 'x'::regclass FROM t", "reg_type"),
        ("SELECT 'x'::_regtype FROM t", "reg_type"),
        ("SELECT a::timetz FROM t", "time_dependent"),
        ("SELECT a::time with time zone FROM t", "time_dependent"),
        ("SELECT * FROM db.s.t", "other_database"),
        ("SELECT db.s.f() FROM t", "other_database"),
        ("SELECT 'now'::timestamp FROM t", "time_literal"),
        ("SELECT a FROM t WHERE b = 'yesterday'", "time_literal"),
        ("SELECT a FROM t WHERE b = E'\\x74oday'", "time_literal"),
        ("SELECT a FROM t WHERE b = U&'\\0074oday'", "time_literal"),
        ("SELECT a FROM t WHERE b = 'to'\n'day'", "time_literal"),
        ("SELECT a FROM t WHERE b = $q$today$q$", "time_literal"),
        ("SELECT a FROM t WHERE b IN ('{today,1}')", "time_literal"),
        ("SELECT a FROM t LIMIT 5", ""),
    ],
)
def test_syntactic_refusals(sql: str, code: str) -> None:
    refusal = _one(sql).refusal
    assert (refusal.code if refusal else "") == code


def test_refusals_name_what_they_refuse() -> None:
    refusal = _one("SELECT t.ctid FROM t").refusal
    assert str(refusal) == "system_column: ctid"


@pytest.mark.parametrize(
    ("sql", "point", "joins", "aggregates", "windows", "grouped", "vector", "limit"),
    [
        ("SELECT a FROM t WHERE id = 5", True, 0, 0, 0, False, False, None),
        ("SELECT a FROM t WHERE id = $1 AND 3 = b LIMIT 1", True, 0, 0, 0, False, False, 1),
        ("SELECT a FROM t WHERE id = '5'::int", True, 0, 0, 0, False, False, None),
        ("SELECT a FROM t WHERE id > 5", False, 0, 0, 0, False, False, None),
        ("SELECT a FROM t", False, 0, 0, 0, False, False, None),
        ("SELECT count(*), sum(x) FROM t GROUP BY y LIMIT ALL", False, 0, 2, 0, True, False, None),
        ("SELECT rank() OVER (ORDER BY a) FROM t, u JOIN v ON true", False, 2, 0, 1, False, False, None),
        ("SELECT a FROM t ORDER BY e <-> '[1]' LIMIT $1", False, 0, 0, 0, False, True, -1),
    ],
)
def test_shape(sql: str, point: bool, joins: int, aggregates: int, windows: int, grouped: bool, vector: bool,
               limit: int | None) -> None:
    assert _one(sql).shape == (aggregates, windows, joins, grouped, vector, point, limit)
