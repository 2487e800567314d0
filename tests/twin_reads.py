"""What the sessions of ``twin_play`` read: every way that an answer may depend on the database of ``twin_stock``.

One text to a line; lines that begin with spaces go on with the one before. What stands behind a question mark are
values for ``$1``. Every answer has one order.
"""

from __future__ import annotations

import re

__all__ = ["READS"]


def _reads(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    parts = [line.partition(" ? ") for line in re.sub(r"\n +", " ", text.strip()).splitlines()]
    return tuple((sql, tuple(values.split(" / ")) if values else ()) for sql, _, values in parts)


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
SELECT id, body FROM tenant_doc ORDER BY id
SELECT body FROM tenant_doc WHERE id = $1
  ? 3 / 4 / 5
SELECT id, body FROM shared_doc ORDER BY id
SELECT body FROM shared_doc WHERE id = $1
  ? 3 / 4 / 5
SELECT s.body, t.body FROM shared_doc s JOIN tenant_doc t USING (id) ORDER BY s.id
SELECT tenant FROM member WHERE who = $1 ORDER BY 1
  ? alice / bob
SELECT secrets(), count(*) FROM tenant_doc
SELECT id, double FROM made WHERE id = $1
  ? 1 / 2
SELECT id FROM made WHERE double = $1 ORDER BY id
  ? 2 / 4
SELECT id FROM made WHERE virtual = $1 ORDER BY id
  ? 2 / 3
SELECT v FROM deep WHERE region = $1 AND id = 2
  ? a / b / c
SELECT region, id, v FROM deep WHERE id = $1 ORDER BY 1
  ? 1 / 3
SELECT sum(v) FROM deep_a WHERE region = $1
  ? a / b
SELECT note FROM part WHERE (item, number) = ($1, 2)
  ? 1 / 2 / 5
SELECT i.id, l.n FROM item i, LATERAL (SELECT count(*) AS n FROM part p WHERE p.item = i.id) l WHERE i.id = $1
  ? 1 / 2 / 5
SELECT (SELECT name FROM item WHERE id = t.id), t.kind FROM thin t WHERE t.id = $1
  ? 1 / 2 / 5
SELECT p.note FROM item i RIGHT JOIN part p ON i.id = p.item AND i.id = 1 WHERE p.item = $1 ORDER BY p.number
  ? 1 / 2
SELECT id, name FROM thin ORDER BY kind, id LIMIT 3 OFFSET 1
SELECT name FROM thin WHERE id BETWEEN $1 AND $1
  ? 1 / 2
SELECT name FROM thin WHERE id = 1 AND id = $1
  ? 1 / 2
SELECT name FROM thin WHERE id = 1 OR kind = $1 ORDER BY id
  ? 1 / 2
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
