"""The one question to the catalogue: names as a session would find them, and everything they depend on.

One parameter: a JSON object with ``schemas`` (the session's effective schemas, in order) and the names. One row per
object: (kind, oid, JSON of facts). The side connection has ``search_path = pg_catalog``, so every definition that the
server prints qualifies all names but built-in ones.

Rules:
1. Names are joined, never converted (``to_regclass`` would check our own privileges, not the session's).
2. A relation's name has one meaning: the first schema that holds it (``named``: all that hold it). A function, operator
   or type may mean any object of that name in any of the schemas: arguments are not typed here, so every candidate is
   followed.
   Of a collation or a text search configuration only one in the first schema counts where it is looked for, with the
   versions of its row and of its schema's: see ``meaning``.
3. Followed are: views, inheritance, policies, virtual columns, column types, domains and their checks, composite and
   range types, user types' input, output, comparison and cast functions, visible function bodies and default
   arguments, aggregates, operators.
4. ``slot`` marks relations that are read by name somewhere. Children reached only through a parent have none of their
   own to watch: a change of theirs counts for the parent too. Nothing is followed from them, and an ordinary one is
   only named (``member``): there may be thousands of partitions.
5. Functions of extensions are taken at their word: the types of their arguments are not followed, and those that
   read and write a type's text are not listed (they are stable: they ask for the client's encoding). Functions that
   the server makes with a range type count as an extension's.
6. An extension that keeps the rows of ordinary tables on other servers is told of (``elsewhere``).
7. Built-in objects have an oid below 16384. Dependencies on them are not recorded by the server: the names in printed
   definitions are looked up in a second question.
"""

from __future__ import annotations

__all__ = ["CLOSURE"]

CLOSURE = """
WITH RECURSIVE
asked AS MATERIALIZED (SELECT %s::jsonb AS j),
path AS MATERIALIZED (
  SELECT n.oid, n.nspname::text AS name, min(p.i) AS place
  FROM asked, jsonb_array_elements_text(j->'schemas') WITH ORDINALITY AS p(name, i)
  JOIN pg_namespace n ON n.nspname = p.name::name GROUP BY n.oid, n.nspname
),
seed(what, number, cls, obj) AS MATERIALIZED (
  SELECT 'relation', u.i, 'pg_class'::regclass::oid, found.oid
  FROM asked, jsonb_array_elements(j->'relations') WITH ORDINALITY AS u(n, i)
  CROSS JOIN LATERAL (
    SELECT c.oid FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace LEFT JOIN path p ON p.oid = s.oid
    WHERE c.relname = (u.n->>1)::name
      AND CASE WHEN u.n->>0 IS NULL THEN p.oid IS NOT NULL ELSE s.nspname = (u.n->>0)::name END
    ORDER BY p.place LIMIT 1) found
  UNION ALL
  SELECT 'function', u.i, 'pg_proc'::regclass::oid, f.oid
  FROM asked, jsonb_array_elements(j->'functions') WITH ORDINALITY AS u(n, i)
  JOIN pg_proc f ON f.proname = (u.n->>1)::name
  JOIN pg_namespace s ON s.oid = f.pronamespace LEFT JOIN path p ON p.oid = s.oid
  WHERE CASE WHEN u.n->>0 IS NULL THEN p.oid IS NOT NULL ELSE s.nspname = (u.n->>0)::name END
    AND ((u.n->>2)::int < 0
      OR (u.n->>2)::int BETWEEN f.pronargs - f.pronargdefaults AND f.pronargs
      OR f.provariadic <> 0 AND (u.n->>2)::int >= f.pronargs - f.pronargdefaults - 1)
  UNION ALL
  SELECT 'attribute', u.i, 'pg_proc'::regclass::oid, f.oid
  FROM asked, jsonb_array_elements_text(j->'attributes') WITH ORDINALITY AS u(n, i)
  JOIN pg_proc f ON f.proname = u.n::name AND f.pronargs >= 1 AND f.pronargs - f.pronargdefaults <= 1
  JOIN path p ON p.oid = f.pronamespace
  JOIN pg_type t ON t.oid = f.proargtypes[0] AND (t.typtype = 'c' OR t.typcategory = 'P')
  UNION ALL
  SELECT 'operator', u.i, 'pg_operator'::regclass::oid, o.oid
  FROM asked, jsonb_array_elements(j->'operators') WITH ORDINALITY AS u(n, i)
  JOIN pg_operator o ON o.oprname = (u.n->>1)::name AND o.oid >= 16384
  JOIN pg_namespace s ON s.oid = o.oprnamespace LEFT JOIN path p ON p.oid = s.oid
  WHERE CASE WHEN u.n->>0 IS NULL THEN p.oid IS NOT NULL ELSE s.nspname = (u.n->>0)::name END
  UNION ALL
  SELECT 'type', u.i, 'pg_type'::regclass::oid, t.oid
  FROM asked, jsonb_array_elements(j->'types') WITH ORDINALITY AS u(n, i)
  JOIN pg_type t ON t.typname = (u.n->>1)::name
  JOIN pg_namespace s ON s.oid = t.typnamespace LEFT JOIN path p ON p.oid = s.oid
  WHERE CASE WHEN u.n->>0 IS NULL THEN p.oid IS NOT NULL ELSE s.nspname = (u.n->>0)::name END
  UNION ALL
  -- Casts between built-in types apply wherever they please.
  SELECT 'cast', 0, 'pg_cast'::regclass::oid, k.oid
  FROM pg_cast k WHERE k.oid >= 16384 AND k.castsource < 16384 AND k.casttarget < 16384
  UNION ALL
  -- So do functions by which a user has built-in types sorted, hashed and compared, in families that hold the default
  -- class of a type or came with the server. Others take part where one of their operators is named, or in an index or
  -- a partition's key, where they may decide what is looked at, but not what is found.
  SELECT 'cast', 0, m.cls, m.obj
  FROM (
    SELECT amprocfamily, 'pg_proc'::regclass::oid, amproc::oid FROM pg_amproc
    WHERE oid >= 16384 AND amproclefttype < 16384
    UNION ALL
    SELECT amopfamily, 'pg_operator'::regclass::oid, amopopr FROM pg_amop
    WHERE oid >= 16384 AND amoplefttype < 16384
  ) AS m(family, cls, obj)
  JOIN pg_opfamily y ON y.oid = m.family JOIN pg_am i ON i.oid = y.opfmethod AND i.amname IN ('btree', 'hash')
  WHERE m.obj >= 16384
    AND (y.oid < 16384 OR EXISTS (SELECT FROM pg_opclass c WHERE c.opcfamily = y.oid AND c.opcdefault))
),
dep(cls, obj, slot) AS (
  SELECT cls, obj, what = 'relation' FROM seed
  UNION
  SELECT x.cls, x.obj, x.slot FROM dep d CROSS JOIN LATERAL (
    SELECT p.refclassid, p.refobjid, p.refclassid = 'pg_class'::regclass
    FROM pg_rewrite r JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
    JOIN pg_depend p ON p.classid = 'pg_rewrite'::regclass AND p.objid = r.oid
    WHERE d.cls = 'pg_class'::regclass AND r.ev_class = d.obj AND r.ev_type = '1'
    UNION ALL
    SELECT p.refclassid, p.refobjid, p.refclassid = 'pg_class'::regclass AND p.refobjid <> d.obj
    FROM pg_attrdef ad JOIN pg_attribute a ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = 'v'
    JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = ad.oid
    WHERE d.cls = 'pg_class'::regclass AND ad.adrelid = d.obj AND p.refobjid <> d.obj
    UNION ALL
    SELECT p.refclassid, p.refobjid, p.refclassid = 'pg_class'::regclass
    FROM pg_class c JOIN pg_policy y ON y.polrelid = c.oid AND y.polcmd IN ('r', '*')
    JOIN pg_depend p ON p.classid = 'pg_policy'::regclass AND p.objid = y.oid
    WHERE d.cls = 'pg_class'::regclass AND c.oid = d.obj AND c.relrowsecurity AND p.refobjid <> d.obj
    UNION ALL
    SELECT 'pg_type'::regclass, a.atttypid, false FROM pg_attribute a
    WHERE d.cls = 'pg_class'::regclass AND a.attrelid = d.obj AND d.obj >= 16384 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT p.refclassid, p.refobjid, p.refclassid = 'pg_class'::regclass FROM pg_depend p
    WHERE d.cls = 'pg_proc'::regclass AND d.obj >= 16384 AND p.classid = 'pg_proc'::regclass AND p.objid = d.obj
      AND p.deptype = 'n'
    UNION ALL
    SELECT 'pg_type'::regclass, t, false FROM pg_proc f, unnest(f.proargtypes::oid[] || f.prorettype) t
    WHERE d.cls = 'pg_proc'::regclass AND f.oid = d.obj AND d.obj >= 16384
      AND (t >= 16384 OR t IN ('time'::regtype, 'timetz'::regtype, 'regclass'::regtype, 'regtype'::regtype,
        'regproc'::regtype, 'regprocedure'::regtype))
      AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.classid = 'pg_proc'::regclass AND p.objid = f.oid
        AND p.deptype = 'e')
    UNION ALL
    SELECT 'pg_proc'::regclass, f::oid, false FROM pg_aggregate g,
      unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn,
                   aggmfinalfn]) f
    WHERE d.cls = 'pg_proc'::regclass AND d.obj >= 16384 AND g.aggfnoid = d.obj AND f::oid <> 0
    UNION ALL
    SELECT 'pg_proc'::regclass, o.oprcode::oid, false FROM pg_operator o
    WHERE d.cls = 'pg_operator'::regclass AND o.oid = d.obj AND o.oprcode::oid <> 0
    UNION ALL
    SELECT 'pg_operator'::regclass, r, false FROM pg_operator o, unnest(ARRAY[o.oprcom, o.oprnegate]) r
    WHERE d.cls = 'pg_operator'::regclass AND o.oid = d.obj AND r >= 16384
    UNION ALL
    SELECT 'pg_proc'::regclass, m.amproc::oid, false FROM pg_amop o JOIN pg_amproc m ON m.amprocfamily = o.amopfamily
    JOIN pg_am i ON i.oid = o.amopmethod AND i.amname IN ('btree', 'hash')
    WHERE d.cls = 'pg_operator'::regclass AND d.obj >= 16384 AND o.amopopr = d.obj AND m.amproc::oid >= 16384
    UNION ALL
    SELECT 'pg_proc'::regclass, k.castfunc, false FROM pg_cast k
    WHERE d.cls = 'pg_cast'::regclass AND k.oid = d.obj AND k.castfunc <> 0
    UNION ALL
    SELECT 'pg_cast'::regclass, k.oid, false FROM pg_cast k
    WHERE d.cls = 'pg_type'::regclass AND d.obj >= 16384 AND d.obj IN (k.castsource, k.casttarget)
    UNION ALL
    SELECT 'pg_type'::regclass, b, false FROM pg_type t, unnest(ARRAY[t.typbasetype, t.typelem]) b
    WHERE d.cls = 'pg_type'::regclass AND t.oid = d.obj AND b <> 0
    UNION ALL
    SELECT 'pg_type'::regclass, b, false FROM pg_range r, unnest(ARRAY[r.rngsubtype, r.rngtypid]) b
    WHERE d.cls = 'pg_type'::regclass AND d.obj IN (r.rngtypid, r.rngmultitypid) AND b <> d.obj
    UNION ALL
    SELECT 'pg_type'::regclass, a.atttypid, false FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
    WHERE d.cls = 'pg_type'::regclass AND t.oid = d.obj AND d.obj >= 16384 AND t.typtype = 'c' AND a.attnum > 0
      AND NOT a.attisdropped
    UNION ALL
    SELECT 'pg_proc'::regclass, f::oid, false FROM pg_type t,
      unnest(ARRAY[typinput, typoutput, typreceive, typsend, typmodin, typmodout, typsubscript]) f
    WHERE d.cls = 'pg_type'::regclass AND t.oid = d.obj AND f::oid >= 16384
      AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.classid = 'pg_proc'::regclass AND p.objid = f::oid
        AND p.deptype = 'e')
    UNION ALL
    SELECT 'pg_proc'::regclass, f::oid, false FROM pg_range r, unnest(ARRAY[r.rngcanonical, r.rngsubdiff]) f
    WHERE d.cls = 'pg_type'::regclass AND r.rngtypid = d.obj AND f::oid >= 16384
    UNION ALL
    SELECT 'pg_proc'::regclass, m.amproc::oid, false FROM pg_amproc m
    JOIN pg_opfamily y ON y.oid = m.amprocfamily JOIN pg_am i ON i.oid = y.opfmethod AND i.amname IN ('btree', 'hash')
    WHERE d.cls = 'pg_type'::regclass AND d.obj >= 16384 AND d.obj IN (m.amproclefttype, m.amprocrighttype)
      AND m.amproc::oid >= 16384
    UNION ALL
    SELECT 'pg_operator'::regclass, m.amopopr, false FROM pg_amop m
    WHERE d.cls = 'pg_type'::regclass AND d.obj >= 16384 AND d.obj IN (m.amoplefttype, m.amoprighttype)
      AND m.amopopr >= 16384
    UNION ALL
    SELECT p.refclassid, p.refobjid, p.refclassid = 'pg_class'::regclass
    FROM pg_constraint k JOIN pg_depend p ON p.classid = 'pg_constraint'::regclass AND p.objid = k.oid
    WHERE d.cls = 'pg_type'::regclass AND d.obj >= 16384 AND k.contypid = d.obj AND p.deptype = 'n'
  ) AS x(cls, obj, slot)
  WHERE x.cls IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass,
                  'pg_cast'::regclass)
),
child(oid) AS (
  SELECT obj FROM dep WHERE cls = 'pg_class'::regclass
  UNION
  SELECT i.inhrelid FROM child p JOIN pg_inherits i ON i.inhparent = p.oid
),
object(cls, obj, slot) AS MATERIALIZED (
  SELECT cls, obj, bool_or(slot) FROM dep GROUP BY cls, obj
  UNION ALL
  SELECT 'pg_class'::regclass, oid, false FROM child
  WHERE oid NOT IN (SELECT obj FROM dep WHERE cls = 'pg_class'::regclass)
)
SELECT 'seed', obj::int8, json_build_array(what, number)::text FROM seed
UNION ALL
SELECT 'seed', c.oid::int8, json_build_array('named', u.i)::text
FROM asked, jsonb_array_elements(j->'relations') WITH ORDINALITY AS u(n, i)
JOIN pg_class c ON c.relname = (u.n->>1)::name JOIN pg_namespace s ON s.oid = c.relnamespace
LEFT JOIN path p ON p.oid = s.oid
WHERE CASE WHEN u.n->>0 IS NULL THEN p.oid IS NOT NULL ELSE s.nspname = (u.n->>0)::name END
UNION ALL
SELECT 'seed', l.oid::int8, json_build_array('collation', u.i, l.xmin::text::int8, s.xmin::text::int8)::text
FROM asked CROSS JOIN jsonb_array_elements(j->'collations') WITH ORDINALITY AS u(n, i)
JOIN pg_namespace s ON s.nspname = coalesce(u.n->>0, j->'schemas'->>0)::name
JOIN pg_collation l ON l.collnamespace = s.oid AND l.collname = (u.n->>1)::name
  AND l.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT 'seed', l.oid::int8, json_build_array('configuration', u.i, l.xmin::text::int8, s.xmin::text::int8)::text
FROM asked CROSS JOIN jsonb_array_elements(j->'configurations') WITH ORDINALITY AS u(n, i)
JOIN pg_namespace s ON s.nspname = coalesce(u.n->>0, j->'schemas'->>0)::name
JOIN pg_ts_config l ON l.cfgnamespace = s.oid AND l.cfgname = (u.n->>1)::name
UNION ALL
SELECT 'relation', c.oid::int8, json_build_object(
    'schema', s.nspname, 'name', c.relname, 'kind', c.relkind, 'persistence', c.relpersistence,
    'method', m.amname, 'slot', o.slot,
    'definition', CASE WHEN c.relkind = 'v' AND c.oid >= 16384 THEN pg_get_viewdef(c.oid) END,
    'policies', CASE WHEN c.relrowsecurity THEN (
      SELECT coalesce(json_agg(json_build_array(y.polname, pg_get_expr(y.polqual, y.polrelid))), '[]')
      FROM pg_policy y WHERE y.polrelid = c.oid AND y.polcmd IN ('r', '*') AND y.polqual IS NOT NULL) END,
    'virtual', (SELECT json_agg(pg_get_expr(ad.adbin, ad.adrelid)) FROM pg_attrdef ad
      JOIN pg_attribute a ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = 'v'
      WHERE ad.adrelid = c.oid),
    'columns', CASE WHEN o.slot THEN (SELECT json_object_agg(a.attname, a.atttypid::int8) FROM pg_attribute a
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) END,
    'exact', CASE WHEN o.slot THEN (SELECT json_agg(a.attname) FROM pg_attribute a
      LEFT JOIN pg_collation l ON l.oid = a.attcollation
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
        AND coalesce(l.collisdeterministic, true)) END,
    'identity', CASE WHEN c.relreplident <> 'f' THEN (SELECT coalesce(json_agg(a.attname), '[]') FROM pg_index x
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (x.indkey)
      WHERE x.indrelid = c.oid
        AND CASE c.relreplident WHEN 'd' THEN x.indisprimary ELSE x.indisreplident END) END)::text
FROM object o JOIN pg_class c ON o.cls = 'pg_class'::regclass AND c.oid = o.obj
JOIN pg_namespace s ON s.oid = c.relnamespace LEFT JOIN pg_am m ON m.oid = c.relam
WHERE o.slot OR c.relkind NOT IN ('r', 'p') OR c.relpersistence <> 'p' OR m.amname <> 'heap' OR c.relrowsecurity
UNION ALL
SELECT 'member', c.oid::int8, to_json(s.nspname || '.' || c.relname)::text
FROM object o JOIN pg_class c ON o.cls = 'pg_class'::regclass AND c.oid = o.obj AND NOT o.slot
JOIN pg_namespace s ON s.oid = c.relnamespace
UNION ALL
SELECT 'function', f.oid::int8, json_build_object(
    'schema', s.nspname, 'name', f.proname, 'signature', f.oid::regprocedure::text, 'volatility', f.provolatile,
    'language', l.lanname, 'kind', f.prokind, 'settings', f.proconfig IS NOT NULL,
    'extension', EXISTS (SELECT FROM pg_depend p WHERE p.classid = 'pg_proc'::regclass AND p.objid = f.oid
      AND p.deptype = 'e') OR l.lanname = 'internal' AND f.prosrc ~ '^(range|multirange)_constructor[0-3]$',
    'body', CASE WHEN f.prosqlbody IS NOT NULL THEN pg_get_function_sqlbody(f.oid) END,
    'source', CASE WHEN l.lanname = 'sql' AND f.oid >= 16384 AND f.prosqlbody IS NULL THEN f.prosrc END,
    'defaults', CASE WHEN f.oid >= 16384 THEN pg_get_expr(f.proargdefaults, 0) END,
    'arguments', CASE WHEN f.oid >= 16384 THEN (SELECT json_agg(a.name) FROM unnest(f.proargnames, f.proargmodes)
      AS a(name, mode) WHERE a.name <> '' AND coalesce(a.mode, 'i') IN ('i', 'b', 'v')) END,
    'starts', (SELECT json_build_array(g.agginitval, g.aggminitval) FROM pg_aggregate g
      WHERE g.aggfnoid = f.oid AND f.oid >= 16384),
    'returns', f.prorettype::int8,
    'scalar', f.proargmodes IS NULL AND (r.typtype NOT IN ('c', 'p') OR f.prorettype = 'anyelement'::regtype),
    'internal', f.pronargs > 0 AND f.proargtypes[0] IN ('cstring'::regtype, 'internal'::regtype),
    'finds', f.proargtypes::oid[] && '{regproc,regprocedure,regoper,regoperator,regclass,regtype,regconfig,
      regdictionary,regnamespace,regrole,regcollation}'::regtype[]::oid[])::text
FROM object o JOIN pg_proc f ON o.cls = 'pg_proc'::regclass AND f.oid = o.obj
JOIN pg_namespace s ON s.oid = f.pronamespace JOIN pg_language l ON l.oid = f.prolang
JOIN pg_type r ON r.oid = f.prorettype
UNION ALL
SELECT 'type', t.oid::int8, json_build_object(
    'schema', s.nspname, 'name', t.typname, 'kind', t.typtype,
    'parts', (SELECT coalesce(json_agg(part::int8), '[]') FROM (
      SELECT unnest(ARRAY[t.typbasetype, t.typelem]) UNION
      SELECT unnest(ARRAY[g.rngsubtype, g.rngtypid]) FROM pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid) UNION
      SELECT a.atttypid FROM pg_attribute a
      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS x(part) WHERE part <> 0 AND part <> t.oid),
    'checks', (SELECT json_agg(pg_get_expr(k.conbin, 0)) FROM pg_constraint k
      WHERE k.contypid = t.oid AND k.contype = 'c'))::text
FROM object o JOIN pg_type t ON o.cls = 'pg_type'::regclass AND t.oid = o.obj
JOIN pg_namespace s ON s.oid = t.typnamespace
UNION ALL
SELECT 'operator', p.oid::int8, json_build_object('name', p.oprname, 'function', p.oprcode::oid::int8,
  'operands', json_build_array(p.oprleft::int8, p.oprright::int8),
  'strict', (SELECT f.proisstrict FROM pg_proc f WHERE f.oid = p.oprcode))::text
FROM object o JOIN pg_operator p ON o.cls = 'pg_operator'::regclass AND p.oid = o.obj
UNION ALL
SELECT 'cast', k.oid::int8, json_build_object('name', format_type(k.castsource, NULL) || ' as '
  || format_type(k.casttarget, NULL), 'function', k.castfunc::int8, 'clocked', k.castmethod = 'i'
  AND k.castcontext = 'i' AND a.typcategory NOT IN ('N', 'B', 'D', 'T', 'V', 'I', 'G')
  AND b.typcategory IN ('A', 'C', 'D', 'R'))::text
FROM object o JOIN pg_cast k ON o.cls = 'pg_cast'::regclass AND k.oid = o.obj
JOIN pg_type a ON a.oid = k.castsource JOIN pg_type b ON b.oid = k.casttarget
UNION ALL
SELECT 'elsewhere', oid::int8, to_json(extname)::text FROM pg_extension WHERE extname = 'citus'
UNION ALL
SELECT 'encoding', encoding::int8, to_json(pg_encoding_to_char(encoding))::text
FROM pg_database WHERE datname = current_database()
"""
