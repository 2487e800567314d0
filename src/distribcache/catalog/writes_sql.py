"""The question about the targets of a write: everything that PostgreSQL may run when rows of them change.

One parameter: a JSON object with ``relations`` and ``types`` (oids). One row per finding: (kind, oid, text as JSON).
``refused``: something that is not known to be harmless; the text names it. ``text``: an expression that is evaluated,
as the server prints it; the functions in it are judged by ``writes``.

Rules:
1. Any relation of the statement counts as a target: which of them is written is not asked.
2. Followed are children and parents (a row of a partition is checked against the keys of all its ancestors), and the
   tables that a foreign key changes by itself (CASCADE, SET NULL, SET DEFAULT), as far as that goes.
3. A trigger is harmless only if it is the server's own for a constraint. Rules, views, foreign tables, tables of other
   access methods, temporary tables and catalogues are refused.
4. Whatever a default, generated column, constraint, index, partition key or policy depends on is in ``pg_depend`` if it
   did not come with the server: functions, operators, operator classes and other relations are refused, types are
   followed. What came with the server is in no dependency, so the expressions are returned as texts.
5. Of types that users make, enums, domains, composites and their arrays are followed; other ones run their own
   functions. A cast with a function to or from any of them is refused, as an assignment may use it.
"""

from __future__ import annotations

__all__ = ["WRITES"]

WRITES = """
WITH RECURSIVE
asked AS MATERIALIZED (SELECT %s::jsonb AS j),
rel(oid) AS (
  SELECT value::oid FROM asked, jsonb_array_elements_text(j->'relations')
  UNION
  SELECT x.oid FROM rel r CROSS JOIN LATERAL (
    SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = r.oid
    UNION ALL
    SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = r.oid
    UNION ALL
    SELECT k.conrelid FROM pg_constraint k
    WHERE k.contype = 'f' AND k.confrelid = r.oid
      AND (k.confdeltype NOT IN ('a', 'r') OR k.confupdtype NOT IN ('a', 'r'))
  ) AS x(oid)
),
part(cls, obj) AS MATERIALIZED (
  SELECT 'pg_class'::regclass::oid, oid FROM rel
  UNION ALL
  SELECT 'pg_attrdef'::regclass, d.oid FROM rel r JOIN pg_attrdef d ON d.adrelid = r.oid
  UNION ALL
  SELECT 'pg_constraint'::regclass, k.oid FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid
  UNION ALL
  SELECT 'pg_class'::regclass, i.indexrelid FROM rel r JOIN pg_index i ON i.indrelid = r.oid
  UNION ALL
  SELECT 'pg_policy'::regclass, y.oid FROM rel r JOIN pg_policy y ON y.polrelid = r.oid
),
type(oid) AS (
  SELECT value::oid FROM asked, jsonb_array_elements_text(j->'types')
  UNION
  SELECT a.atttypid FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid
  WHERE a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT p.refobjid FROM part t JOIN pg_depend p ON p.classid = t.cls AND p.objid = t.obj
  WHERE p.refclassid = 'pg_type'::regclass
  UNION
  SELECT x.oid FROM type t CROSS JOIN LATERAL (
    SELECT unnest(ARRAY[y.typbasetype, y.typelem]) FROM pg_type y WHERE y.oid = t.oid
    UNION ALL
    SELECT a.atttypid FROM pg_type y JOIN pg_attribute a ON a.attrelid = y.typrelid
    WHERE y.oid = t.oid AND y.typtype = 'c' AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT p.refobjid FROM pg_constraint k
    JOIN pg_depend p ON p.classid = 'pg_constraint'::regclass AND p.objid = k.oid
    WHERE k.contypid = t.oid AND p.refclassid = 'pg_type'::regclass
  ) AS x(oid) WHERE x.oid >= 16384
),
whole(cls, obj) AS MATERIALIZED (
  SELECT cls, obj FROM part
  UNION ALL
  SELECT 'pg_type'::regclass, oid FROM type
  UNION ALL
  SELECT 'pg_constraint'::regclass, k.oid FROM type t JOIN pg_constraint k ON k.contypid = t.oid
)
SELECT 'refused', c.oid::int8, to_json(s.nspname || '.' || c.relname)::text
FROM rel r JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace s ON s.oid = c.relnamespace
LEFT JOIN pg_am m ON m.oid = c.relam
WHERE c.oid < 16384 OR c.relkind NOT IN ('r', 'p') OR c.relpersistence = 't' OR c.relkind = 'r' AND m.amname <> 'heap'
UNION ALL
SELECT 'refused', g.oid::int8, to_json('trigger ' || g.tgname)::text
FROM rel r JOIN pg_trigger g ON g.tgrelid = r.oid WHERE NOT g.tgisinternal OR g.tgfoid >= 16384
UNION ALL
SELECT 'refused', w.oid::int8, to_json('rule ' || w.rulename)::text
FROM rel r JOIN pg_rewrite w ON w.ev_class = r.oid
UNION ALL
SELECT 'refused', k.oid::int8, to_json('constraint ' || k.conname)::text
FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid
WHERE EXISTS (SELECT FROM unnest(k.conexclop || k.conpfeqop || k.conppeqop || k.conffeqop) o WHERE o >= 16384)
UNION ALL
SELECT 'refused', p.refobjid::int8, to_json(pg_describe_object(p.refclassid, p.refobjid, 0))::text
FROM whole w JOIN pg_depend p ON p.classid = w.cls AND p.objid = w.obj
WHERE p.refobjid >= 16384 AND (
  p.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass,
                   'pg_am'::regclass, 'pg_cast'::regclass)
  OR p.refclassid = 'pg_class'::regclass AND p.refobjid NOT IN (SELECT oid FROM rel) AND w.cls = 'pg_policy'::regclass)
UNION ALL
SELECT 'refused', t.oid::int8, to_json(format_type(t.oid, NULL))::text
FROM type t JOIN pg_type y ON y.oid = t.oid
WHERE y.typtype NOT IN ('e', 'd', 'c') AND NOT (y.typinput = 'array_in'::regproc AND y.typelem <> 0)
  OR y.typnamespace IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_temp_')
UNION ALL
SELECT 'refused', k.oid::int8, to_json('cast ' || format_type(k.castsource, NULL) || ' as '
  || format_type(k.casttarget, NULL))::text
FROM pg_cast k WHERE k.castfunc >= 16384
  AND (k.castsource IN (SELECT oid FROM type) OR k.casttarget IN (SELECT oid FROM type))
UNION ALL
-- A function of a user's in an operator family of the server's own runs for the server's own types.
SELECT 'refused', m.oid::int8, to_json('operator family ' || f.opfname)::text
FROM pg_amproc m JOIN pg_opfamily f ON f.oid = m.amprocfamily WHERE m.amproc >= 16384 AND f.oid < 16384
UNION ALL
SELECT 'text', d.oid::int8, to_json(pg_get_expr(d.adbin, d.adrelid))::text
FROM rel r JOIN pg_attrdef d ON d.adrelid = r.oid
UNION ALL
SELECT 'text', k.oid::int8, to_json(pg_get_expr(k.conbin, k.conrelid))::text
FROM rel r JOIN pg_constraint k ON k.conrelid = r.oid AND k.conbin IS NOT NULL
UNION ALL
SELECT 'text', k.oid::int8, to_json(pg_get_expr(k.conbin, 0))::text
FROM type t JOIN pg_constraint k ON k.contypid = t.oid AND k.conbin IS NOT NULL
UNION ALL
SELECT 'text', t.oid::int8, to_json(pg_get_expr(y.typdefaultbin, 0))::text
FROM type t JOIN pg_type y ON y.oid = t.oid AND y.typdefaultbin IS NOT NULL
UNION ALL
SELECT 'text', i.indexrelid::int8, to_json(e)::text
FROM rel r JOIN pg_index i ON i.indrelid = r.oid
CROSS JOIN unnest(ARRAY[pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)]) e WHERE e IS NOT NULL
UNION ALL
SELECT 'text', r.oid::int8, to_json(pg_get_expr(p.partexprs, p.partrelid))::text
FROM rel r JOIN pg_partitioned_table p ON p.partrelid = r.oid AND p.partexprs IS NOT NULL
UNION ALL
SELECT 'text', y.oid::int8, to_json(e)::text
FROM rel r JOIN pg_policy y ON y.polrelid = r.oid
CROSS JOIN unnest(ARRAY[pg_get_expr(y.polqual, y.polrelid), pg_get_expr(y.polwithcheck, y.polrelid)]) e
WHERE e IS NOT NULL
"""
