"""What a text pins: each rule once where it holds, and where it must not."""

from __future__ import annotations

import pytest

from distribcache.sql.cacheability import Name
from distribcache.sql.parse import read
from distribcache.sql.predicates import Pin, Pinned, Value, occurrences

COLUMNS = {
    "t": frozenset({"id", "a", "b", "day", "on"}),
    "u": frozenset({"id", "t_id", "x", "a"}),
    "w": frozenset({"k", "t_id"}),
    "Odd name": frozenset({"Id"}),
}


def columns_of(name: Name) -> frozenset[str] | None:
    return COLUMNS.get(name.name) if name.schema in (None, "public") else None


def pinned(text: str) -> Pinned | None:
    parsed = read(text.encode())
    assert not parsed.error, text
    return occurrences(parsed.statements[0].levels, columns_of)


def shown(value: Value) -> str:
    source = f"${value.param}" if value.param else f"#{value.literal}" if value.literal >= 0 else value.const
    if value.quoted:
        source = f"'{source}'"
    source = f"{source}::{value.cast}" if value.cast else source
    return f"any({source})" if value.array else source


def pins(text: str) -> list[str]:
    """Each occurrence as ``relation: column=value|value, …``; ``~`` marks pins that follow through other columns."""
    found = pinned(text)
    if found is None:
        return ["none"]
    return [
        f"{each.relation}: "
        + ", ".join(f"{pin.column}{'~' * bool(pin.alike)}={'|'.join(map(shown, pin.values))}" for pin in each.pins)
        for each in found.occurrences
    ]


HOLD = [
    # Values and their places.
    ("SELECT * FROM t WHERE id = $1", ["t: id=$1"]),
    ("SELECT * FROM t WHERE $1 = id", ["t: id=$1"]),
    ("SELECT * FROM t WHERE id = 5", ["t: id=#0"]),
    ("SELECT 1, a FROM t WHERE b = '2' AND id = 5", ["t: b='#1', id=#2"]),
    ("SELECT * FROM t WHERE id = 5 AND a = $1", ["t: id=5, a=$1"]),
    ("SELECT * FROM t WHERE id = -5 AND a = $1", ["t: id=-5, a=$1"]),
    ("SELECT * FROM t WHERE id = 99999999999", ["t: id=#0"]),
    ("SELECT * FROM t WHERE id = 1234567890123456789 AND a = $1", ["t: id=1234567890123456789, a=$1"]),
    ("SELECT * FROM t WHERE a = 'x y'", ["t: a='x y'"]),
    ("SELECT * FROM t WHERE a = ''", ["t: a='#0'"]),
    ("SELECT * FROM t WHERE a = 'x''y' AND id = $1", ["t: a='x'y', id=$1"]),
    ("SELECT * FROM t WHERE a = E'\\x41' AND id = 1", ["t: a='A', id=1"]),
    ("SELECT * FROM t WHERE a = true AND b = false", ["t: a=true, b=false"]),
    ("SELECT * FROM t WHERE id IN (1, $1, '3')", ["t: id=1|$1|'3'"]),
    ("SELECT * FROM t WHERE id IN (1, 2)", ["t: id=#0|#1"]),
    ("SELECT * FROM t WHERE a = ANY (ARRAY['x', 'y'])", ["t: a='x'|'y'"]),
    ("SELECT * FROM t WHERE id = ANY ($1)", ["t: id=any($1)"]),
    ("SELECT * FROM t WHERE id = ANY ($1::int[]) AND a = 1", ["t: id=any($1::int4), a=1"]),
    ("SELECT * FROM t WHERE id = ANY ('{1,2}'::bigint[])", ["t: id=any('{1,2}'::int8)"]),
    ("SELECT * FROM t WHERE a = ANY ('{x,y}')", ["t: a=any('{x,y}')"]),
    # Rows, place by place.
    ("SELECT * FROM t WHERE (id, a) = ($1, 2)", ["t: id=$1, a=2"]),
    ("SELECT * FROM t WHERE ROW(1, 'x') = ROW(id, a)", ["t: id=#0, a='x'"]),
    ("SELECT * FROM t WHERE (id, a + 1, b) IN ((1, 2, 3), (4, 5, $1))", ["t: id=1|4, b=3|$1"]),
    ("SELECT * FROM t JOIN u ON (t.id, u.x) = (u.t_id, $1) WHERE id = 1", ["t: ", "u: x=$1"]),
    ("SELECT * FROM t WHERE id = $1::int", ["t: id=$1::int4"]),
    ("SELECT * FROM t WHERE id = CAST($1 AS pg_catalog.int8)", ["t: id=$1::int8"]),
    ("SELECT * FROM t WHERE day = date '2024-01-01'", ["t: day='#0'::date"]),
    ("SELECT * FROM t WHERE id OPERATOR(pg_catalog.=) $1", ["t: id=$1"]),
    # Names.
    ("SELECT * FROM t x WHERE x.id = $1", ["t: id=$1"]),
    ("SELECT * FROM t AS x WHERE id = $1", ["t: id=$1"]),
    ("SELECT * FROM public.t WHERE t.id = $1", ["public.t: id=$1"]),
    ("SELECT * FROM public.t WHERE public.t.id = $1", ["public.t: id=$1"]),
    ('SELECT * FROM t WHERE T."on" = $1 AND ID = 1', ["t: on=$1, id=1"]),
    ('SELECT * FROM "Odd name" WHERE "Id" = $1', ["Odd name: Id=$1"]),
    ("SELECT * FROM ONLY t WHERE id = $1", ["t: id=$1"]),
    # Conjunctions.
    ("SELECT * FROM t WHERE id = $1 AND (a = $2 AND b > 5) AND (b = 1 OR b = 2)", ["t: id=$1, a=$2, b=1|2"]),
    ("SELECT * FROM t WHERE id = 1 OR id = 2 OR id IN (3, 4)", ["t: id=#0|#1|#2|#3"]),
    ("SELECT * FROM t WHERE id = $1 AND a = 1 OR a = 2 AND id = $2", ["t: id=$1|$2, a=1|2"]),
    ("SELECT * FROM t WHERE id = 1 AND (a = 2 OR b = 3 AND a = 4 OR (a, b) = (5, 6))", ["t: id=#0, a=#1|#3|#4"]),
    ("SELECT * FROM t WHERE id = 1 OR (id = 2 OR id = 3) AND a > 1", ["t: id=#0|#1|#2"]),
    ("SELECT * FROM t JOIN u ON t.id = u.t_id AND (u.x = 1 OR u.x = 2)", ["t: ", "u: x=#0|#1"]),
    ("SELECT * FROM t WHERE id = $1 AND id = $2", ["t: id=$1, id=$2"]),
    # Joins.
    ("SELECT * FROM t JOIN u ON u.t_id = t.id WHERE t.id = $1", ["t: id=$1", "u: t_id~=$1"]),
    ("SELECT * FROM t JOIN u ON u.t_id = t.id AND t.id = $1", ["t: id=$1", "u: t_id~=$1"]),
    ("SELECT * FROM t, u WHERE t.id = u.t_id AND u.t_id = $1", ["t: id~=$1", "u: t_id=$1"]),
    (
        "SELECT * FROM t JOIN u ON u.t_id = t.id JOIN w ON w.t_id = u.t_id WHERE t.id = $1",
        ["t: id=$1", "u: t_id~=$1", "w: t_id~=$1"],
    ),
    ("SELECT * FROM t x JOIN t y ON x.a = y.b WHERE x.a = $1", ["t: a=$1", "t: b~=$1"]),
    ("SELECT * FROM t JOIN u ON true WHERE x = $1 AND t_id = 1", ["t: ", "u: x=$1, t_id=1"]),
    ("SELECT * FROM t CROSS JOIN w WHERE k = $1", ["t: ", "w: k=$1"]),
    ("SELECT * FROM t WHERE a = b AND a = $1", ["t: a=$1, b~=$1"]),
    # Outer joins: ON pins the side that may be missing, WHERE both.
    ("SELECT * FROM t LEFT JOIN u ON u.t_id = t.id AND u.x = 5 WHERE t.id = $1", ["t: id=$1", "u: x=5, t_id~=$1"]),
    ("SELECT * FROM t LEFT JOIN u ON u.t_id = t.id AND t.id = $1", ["t: ", "u: t_id~=$1"]),
    ("SELECT * FROM u RIGHT JOIN t ON u.t_id = t.id WHERE t.id = $1", ["u: t_id~=$1", "t: id=$1"]),
    ("SELECT * FROM t LEFT JOIN u ON u.t_id = t.id WHERE u.x = $1", ["t: ", "u: x=$1"]),
    # What WHERE or a join says of the other side makes the ON true, or says that there is a row.
    ("SELECT * FROM t LEFT JOIN u ON u.t_id = t.id AND t.id = $1 WHERE u.x = 5", ["t: id=$1", "u: x=5, t_id~=$1"]),
    (
        "SELECT * FROM (t LEFT JOIN u ON u.x = $1) LEFT JOIN w ON w.t_id = u.x",
        ["t: ", "u: x=$1", "w: t_id~=$1"],
    ),
    (
        "SELECT * FROM t LEFT JOIN (u JOIN w ON w.t_id = u.t_id AND w.k = 7) ON u.t_id = t.id WHERE t.id = $1",
        ["t: id=$1", "u: t_id~=$1", "w: k=7, t_id~=$1"],
    ),
    # Levels: each by its own conditions.
    ("SELECT (SELECT max(x) FROM u WHERE u.t_id = $1) FROM t WHERE id = $2", ["u: t_id=$1", "t: id=$2"]),
    ("SELECT * FROM (SELECT * FROM t WHERE id = $1) s WHERE s.a = 5", ["t: id=$1"]),
    ("WITH q AS (SELECT * FROM t WHERE id = $1) SELECT * FROM q WHERE a = 1", ["t: id=$1"]),
    ("SELECT * FROM t WHERE id = $1 UNION ALL SELECT * FROM t WHERE id = $2", ["t: id=$1", "t: id=$2"]),
    ("SELECT * FROM t WHERE id = $1 AND EXISTS (SELECT FROM u WHERE u.t_id = t.id)", ["u: ", "t: id=$1"]),
    ("SELECT t.a FROM t, (SELECT 1 AS id) s WHERE t.id = $1", ["t: id=$1"]),
    # What comes after WHERE does not matter.
    ("SELECT rank() OVER (ORDER BY a) FROM t WHERE id = $1", ["t: id=$1"]),
    ("SELECT * FROM t WHERE id = $1 AND a IN (SELECT sum(x) OVER () FROM u WHERE x = 2)", ["t: id=$1", "u: x=2"]),
    (
        "SELECT DISTINCT ON (a) a, sum(b) FROM t WHERE id = $1 GROUP BY GROUPING SETS ((a), ()) HAVING true LIMIT 5",
        ["t: id=$1"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), HOLD)
def test_what_pins(text: str, expected: list[str]) -> None:
    assert sorted(pins(text)) == sorted(expected)


NOTHING = [
    "SELECT * FROM t WHERE id = $1 OR a = 2",
    "SELECT * FROM t WHERE id = $1 OR id > 2",
    "SELECT * FROM t WHERE id = $1 OR true",
    "SELECT * FROM t WHERE id = $1 OR NOT id = 2",
    "SELECT * FROM t WHERE NOT (id = 1 OR id = 2)",
    "SELECT * FROM t WHERE id = 1 OR t.id = 2",
    "SELECT * FROM t WHERE id = a OR id = b",
    "SELECT * FROM t WHERE NOT id = $1",
    "SELECT * FROM t WHERE NOT (id = $1 AND a = 2)",
    "SELECT * FROM t WHERE id <> $1",
    "SELECT * FROM t WHERE id > $1",
    "SELECT * FROM t WHERE id NOT IN ($1)",
    "SELECT * FROM t WHERE id <> ALL (ARRAY[1])",
    "SELECT * FROM t WHERE id = ALL (ARRAY[1])",
    "SELECT * FROM t WHERE id IS NOT DISTINCT FROM $1",
    "SELECT * FROM t WHERE id = NULL",
    "SELECT * FROM t WHERE id IN (1, NULL)",
    "SELECT * FROM t WHERE id IN (1, a)",
    "SELECT * FROM t WHERE id IN (SELECT 1)",
    "SELECT * FROM t WHERE id <> ALL ($1)",
    "SELECT * FROM t WHERE id = ALL ($1)",
    "SELECT * FROM t WHERE NOT id = ANY ($1)",
    "SELECT * FROM t WHERE $1 = ANY (id)",
    "SELECT * FROM t WHERE id = ANY ($1::int[][])",
    "SELECT * FROM t WHERE id = ANY ($1::numeric[])",
    "SELECT * FROM t WHERE id = ANY ($1::text::int[])",
    "SELECT * FROM t WHERE id = ANY (a)",
    "SELECT * FROM t WHERE id = ANY (SELECT 1)",
    "SELECT * FROM t WHERE id = ANY (ARRAY[$1, 2])",
    "SELECT * FROM t WHERE id = ANY (ARRAY[1]::int[])",
    "SELECT * FROM t WHERE id = (SELECT 1)",
    "SELECT * FROM t WHERE id = $1 + 1",
    "SELECT * FROM t WHERE id + 0 = $1",
    "SELECT * FROM t WHERE abs(id) = $1",
    "SELECT * FROM t WHERE id::text = $1",
    "SELECT * FROM t WHERE (id, a) <> ($1, 2)",
    "SELECT * FROM t WHERE (id, a) >= ($1, 2)",
    "SELECT * FROM t WHERE (id, a) NOT IN (($1, 2))",
    "SELECT * FROM t WHERE NOT (id, a) = ($1, 2)",
    "SELECT * FROM t WHERE (id, a) = (SELECT 1, 2)",
    "SELECT * FROM t WHERE (id, a) = $1",
    "SELECT * FROM t WHERE (id, a) IN (($1, 2), $2)",
    "SELECT * FROM t WHERE (id, a) OPERATOR(public.=) ($1, 2)",
    # A place may stand for several.
    "SELECT * FROM t, u WHERE (t.*, t.a, u.*) = (u.*, 5, t.*)",
    "SELECT * FROM t WHERE ((b).*, id) = (1, $1)",
    "SELECT * FROM t WHERE CASE WHEN id = $1 THEN true END",
    "SELECT * FROM t WHERE (id = $1) IS NOT FALSE",
    "SELECT * FROM t WHERE (id = $1) = true",
    "SELECT * FROM t WHERE id BETWEEN $1 AND $1",
    "SELECT * FROM t WHERE a LIKE 'x'",
    "SELECT * FROM t WHERE a = 'x' COLLATE \"C\"",
    'SELECT * FROM t WHERE a COLLATE "C" = $1',
    "SELECT * FROM t WHERE id OPERATOR(public.=) $1",
    "SELECT * FROM t WHERE id = $1::numeric",
    "SELECT * FROM t WHERE id = $1::text::int",
    "SELECT * FROM t WHERE a = $1::varchar(3)",
    "SELECT * FROM t WHERE a = $1::char",
    "SELECT * FROM t WHERE id = $1::myschema.int4",
    "SELECT * FROM t WHERE a = B'1'",
    "SELECT * FROM t WHERE id = 9999999999999999999 AND a <> $1",
    "SELECT * FROM t WHERE id = 1.0 AND a <> $1",
    "SELECT * FROM t WHERE id = 0x1F AND a <> $1",
    "SELECT * FROM t WHERE id = - 1.5 AND a <> $1",
    "SELECT a, count(*) FROM t GROUP BY a HAVING a = $1",
    "SELECT count(*) FILTER (WHERE id = $1) FROM t",
    "SELECT id = $1 FROM t",
    "SELECT * FROM t ORDER BY id = $1",
    # Names that may mean something else.
    "SELECT * FROM t WHERE nope = $1",
    "SELECT * FROM t WHERE s.id = $1",
    "SELECT * FROM t x WHERE t.id = $1",
    "SELECT * FROM t x WHERE public.t.id = $1",
    "SELECT * FROM t WHERE public.t.id = $1",
    "SELECT * FROM t x(id, c) WHERE x.id = $1",
    "SELECT * FROM t x(id, c) WHERE id = $1",
    "SELECT * FROM t JOIN u USING (id) WHERE id = $1",
    "SELECT * FROM t NATURAL JOIN u WHERE a = $1",
    "SELECT * FROM t, u WHERE id = $1",
    "SELECT * FROM t, unknown WHERE a = $1",
    "SELECT * FROM t, (SELECT 1) s WHERE day = $1",
    "SELECT * FROM t, generate_series(1, 2) WHERE day = $1",
    "SELECT * FROM (t JOIN u ON t.id = $1) j WHERE j.x = $2 AND t.a = $3",
    "SELECT * FROM unknown WHERE id = $1",
    "SELECT * FROM other.t WHERE id = $1",
    # Levels.
    "SELECT * FROM (SELECT * FROM t) s WHERE s.id = $1",
    "WITH q AS (SELECT * FROM t) SELECT * FROM q WHERE q.id = $1",
    "WITH t AS (SELECT * FROM u) SELECT * FROM t WHERE t.id = $1",
    "SELECT * FROM (SELECT * FROM t UNION SELECT * FROM t) s WHERE id = $1",
    # Joins.
    "SELECT * FROM t LEFT JOIN u ON t.id = $1",
    "SELECT * FROM u RIGHT JOIN t ON t.id = $1",
    "SELECT * FROM t FULL JOIN u ON t.id = $1 AND u.x = 2",
    "SELECT * FROM t FULL JOIN u ON t.id = u.t_id WHERE t.id = $1",
    "SELECT * FROM (t JOIN u ON t.id = $1) FULL JOIN w ON true",
    "SELECT * FROM t JOIN u ON u.t_id = t.id OR t.id = $1",
    "SELECT * FROM t JOIN u ON u.t_id >= t.id",
]


@pytest.mark.parametrize("text", NOTHING)
def test_what_does_not_pin(text: str) -> None:
    found = pinned(text)
    assert found is not None
    assert found.occurrences
    assert not any(each.pins for each in found.occurrences), pins(text)


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE q AS (SELECT id FROM t WHERE id = $1 UNION SELECT t.a FROM t, q WHERE t.id = q.id) TABLE q",
        # Not cacheable, so nobody asks.
        "SELECT now(), a FROM t WHERE id = $1 FOR UPDATE",
        "SELECT xmin FROM t WHERE id = $1",
        "INSERT INTO t SELECT * FROM u WHERE id = $1",
        "SELECT a FROM t WHERE id = $1; SELECT 1",
    ],
)
def test_what_makes_every_pin_doubtful(text: str) -> None:
    assert pinned(text) is None


def test_an_on_does_not_see_its_neighbours_in_from() -> None:
    """In the ON, a is of the outer query: it pins nothing, and nothing follows from it."""
    found = pins("SELECT (SELECT count(*) FROM t a, t b JOIN t c ON a.id = c.id WHERE a.id = $1) FROM u a")
    assert sorted(found) == ["t: ", "t: ", "t: id=$1", "u: "]


def test_what_stands_on_the_kept_side_does_not_follow_through_an_outer_join() -> None:
    """u's ON names t, which is kept whatever it says; w hangs on u and not on t."""
    assert pins("SELECT * FROM (t LEFT JOIN u ON t.id = 5) LEFT JOIN w ON w.t_id = t.id") == ["t: ", "u: ", "w: "]


def test_a_pin_through_other_columns_names_them_all() -> None:
    found = pinned("SELECT * FROM t JOIN u ON u.t_id = t.id JOIN w ON w.t_id = u.t_id WHERE t.id = $1")
    assert found is not None
    assert found.occurrences[2].pins == (
        Pin("t_id", (Value(param=1),), ((Name(None, "u"), "t_id"), (Name(None, "t"), "id"))),
    )


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        ("SELECT * FROM t WHERE id = $1", set()),
        ("SELECT $1, a FROM t WHERE id = $1", {1}),
        ("SELECT a FROM t WHERE id = $1 LIMIT $2", {2}),
        ("SELECT a FROM t WHERE id = $1 AND b > $1", {1}),
        ("SELECT a FROM t WHERE id = $1 AND a = $1", set()),
        ("SELECT a FROM t WHERE id = $1 AND a = $2::int", set()),
        ("SELECT a FROM t WHERE id = $1 AND nope = $1", {1}),
        ("SELECT a FROM t WHERE id IN ($1, $2, a)", {1, 2}),
        ("SELECT a FROM t WHERE id IN ($1, $2)", set()),
        # A declared type of $1, or a long number, is the type of $2 everywhere.
        ("SELECT a FROM t WHERE id IN ($1, $2) AND b = $2", {2}),
        ("SELECT a FROM t WHERE id IN (99999999999999999999, $2) AND b = $2", {2}),
        ("SELECT a FROM t, unknown q WHERE t.id = $1 AND q.id = $1", {1}),
        # The same words mean another column in the outer query.
        ("SELECT a FROM t WHERE id = $1 AND EXISTS (SELECT FROM w WHERE id = $1)", {1}),
        ("SELECT t.a FROM t LEFT JOIN w ON t.id = $1 WHERE t.id = $2", {1}),
    ],
)
def test_parameters_whose_type_may_come_from_elsewhere(text: str, elsewhere: set[int]) -> None:
    found = pinned(text)
    assert found is not None
    assert found.elsewhere == elsewhere


def test_long_lists_and_crowds_pin_nothing() -> None:
    values = ", ".join(map(str, range(33)))
    assert pins(f"SELECT * FROM t WHERE id IN ({values})") == ["t: "]
    crowd = ", ".join(f"t t{n}" for n in range(17))
    assert set(pins(f"SELECT * FROM {crowd} WHERE t1.id = 1")) == {"t: "}
    assert pins(" UNION ALL ".join(["SELECT * FROM t WHERE id = 1"] * 33)) == ["none"]
