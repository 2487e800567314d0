"""Wire fidelity, type by type: what PostgreSQL sends, what a miss relays and what a hit replays are the same bytes.

Every base type of the server that has an input function, its arrays, ranges and multiranges, and user-made types (enum,
domain, composite), each with values, NULL and the empty string where it is one; as text and binary; in the simple
protocol, as an unnamed and as a prepared statement. A type that the server has and this page does not know fails
the test of completeness.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from fix_postgres import create_database, drop_database
from fix_proxy import proxies
from fix_world import SETTINGS, World
from psycopg import errors, sql
from rawclient import RawClient
from shapes import DP, B, E, P, Q, S, Step, kinds, play, step
from wait import until

from distribcache.cli.postgres import Postgres

LITERALS: dict[str, tuple[str, ...]] = {
    "aclitem": ("postgres=r/postgres",),
    "bit": ("1",),
    "bool": ("t", "f"),
    "box": ("(1,1),(0,0)",),
    "bpchar": ("padded  ", ""),
    "bytea": ("\\xdeadbeef00", ""),
    "char": ("a", ""),
    "cid": ("1",),
    "cidr": ("10.0.0.0/8", "::1/128"),
    "circle": ("<(0,0),1.5>",),
    "date": ("2026-11-22", "infinity", "4713-01-01 BC"),
    "float4": ("1.1", "NaN", "-0", "-Infinity"),
    "float8": ("0.1", "NaN", "-0", "1e308"),
    "inet": ("192.168.0.1/24", "::1"),
    "int2": ("-32768",),
    "int4": ("2147483647",),
    "int8": ("-9223372036854775808",),
    "interval": ("1 mon -3 days 04:05:06.7", "-1 year"),
    "json": ('{"a" :  [1, null]}', '""'),
    "jsonb": ('{"a" :  [1, null]}', '""'),
    "jsonpath": ("$.a[*] ? (@ > 1)",),
    "line": ("{1,-1,0}",),
    "lseg": ("[(0,0),(1,1)]",),
    "macaddr": ("08:00:2b:01:02:03",),
    "macaddr8": ("08:00:2b:01:02:03:04:05",),
    "money": ("-1234.56",),
    "name": ("a name", ""),
    "numeric": ("1.0", "1.00", "-0.000", "NaN", "Infinity", "123456789012345678901234567890.5"),
    "oid": ("4294967295",),
    "oid8": ("18446744073709551615",),
    "oidvector": ("1 2 3", ""),
    "int2vector": ("1 2 3", ""),
    "path": ("((0,0),(1,1))", "[(0,0),(2,2)]"),
    "pg_lsn": ("16/B374D848",),
    "pg_snapshot": ("10:20:10,14,15",),
    "point": ("(1.5,-2)",),
    "polygon": ("((0,0),(1,1),(1,0))",),
    "refcursor": ("a cursor", ""),
    "regclass": ("pg_class", "-"),
    "regcollation": ('"C"',),
    "regconfig": ("english",),
    "regdatabase": ("postgres",),
    "regdictionary": ("simple",),
    "regnamespace": ("pg_catalog",),
    "regoper": ("pg_catalog.||/",),
    "regoperator": ("+(integer,integer)",),
    "regproc": ("now", "-"),
    "regprocedure": ("abs(integer)",),
    "regrole": ("postgres",),
    "regtype": ("integer",),
    "text": ("Grüße, 世界", "", 'with\ttab\nand \\ and "quote"'),
    "tid": ("(1,2)",),
    "time": ("04:05:06.789", "24:00"),
    "timestamp": ("2026-11-22 01:02:03.456789", "-infinity"),
    "timestamptz": ("2026-11-22 01:02:03.456789+05:30", "infinity"),
    "timetz": ("04:05:06-08",),
    "tsquery": ("'fat' & ( 'cat' | 'rat':a )", ""),
    "tsvector": ("'a':1A 'fat':2B,4C", ""),
    "txid_snapshot": ("10:20:10,14,15",),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "varbit": ("101", ""),
    "varchar": ("varying ", ""),
    "xid": ("3",),
    "xid8": ("18446744073709551615",),
    "xml": ("<a>b</a>",),
    "int4range": ("[1,5)", "empty", "(,)"),
    "int8range": ("[1,5]",),
    "numrange": ("(1.0,2.50]",),
    "daterange": ("[2026-01-01,infinity)",),
    "tsrange": ('["2026-01-01 00:00","2026-01-02 00:00")',),
    "tstzrange": ('["2026-01-01 00:00+00",)',),
    "int4multirange": ("{[1,3),[5,8)}", "{}"),
    "int8multirange": ("{[1,3)}",),
    "nummultirange": ("{[1.0,3)}",),
    "datemultirange": ("{[2026-01-01,2026-02-01)}",),
    "tsmultirange": ('{["2026-01-01 00:00","2026-01-02 00:00")}',),
    "tstzmultirange": ('{["2026-01-01 00:00+00",)}',),
    "public.mood": ("sad", "so so"),
    "public.positive": ("7",),
    "public.pair": ("(1,two)", "(,)", '(,"")'),
    "public.floatrange": ("[1.5,2.5)",),
}

NO_INPUT = {
    "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_ddl_command", "pg_dependencies", "pg_mcv_list",
    "pg_ndistinct", "pg_node_tree", "gtsvector",
}  # fmt: skip
"""Types of the server's own catalogues that take no literal."""

REFUSED = {
    "timetz": b"time_dependent", "regclass": b"reg_type", "regproc": b"reg_type", "regprocedure": b"reg_type",
    "regtype": b"reg_type",
}  # fmt: skip
"""Types of which no read is cached, and the refusal: a cast depends on the day, a name may be a temporary object's."""

TYPES = [name for name in LITERALS if name not in NO_INPUT]


@pytest.fixture(scope="module")
def types(postgres: Postgres) -> Iterator[World]:
    database = create_database(postgres)
    database.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy')",
        "CREATE DOMAIN positive AS int CHECK (value > 0)",
        "CREATE TYPE pair AS (one int, two text)",
        "CREATE TYPE floatrange AS RANGE (subtype = float8)",
    )
    with database.connect() as connection:
        for name in TYPES:
            if known(connection, name):
                build(connection, name)
    with proxies() as make:
        yield World(database, make(database.url(), SETTINGS))
    drop_database(database)


def table_of(name: str) -> str:
    return "of_" + name.replace("public.", "")


def type_of(name: str) -> sql.Composable:
    return sql.Identifier(*(name if "." in name else f"pg_catalog.{name}").split("."))


def known(connection: psycopg.Connection[tuple[object, ...]], name: str) -> bool:
    """Has this server the type, and was it built with what the type needs (xml)?"""
    try:
        connection.execute(sql.SQL("SELECT {}::{}").format(sql.Literal(LITERALS[name][0]), type_of(name)))
    except (errors.UndefinedObject, errors.FeatureNotSupported):
        return False
    return True


def build(connection: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    """A table of the type's values: each with an array of them all; and a row of NULLs, and one with an empty array."""
    table, kind = sql.Identifier(table_of(name)), type_of(name)
    arrays = connection.execute(
        sql.SQL(
            "SELECT typarray <> 0 AND typname NOT IN ('int2vector', 'oidvector') FROM pg_type WHERE oid = {}::regtype"
        ).format(sql.Literal(kind.as_string(connection)))
    ).fetchone()
    array = sql.SQL("{}[]").format(kind) if arrays == (True,) else sql.SQL("int[]")
    insert = sql.SQL("INSERT INTO {} VALUES ({}, {}, {})")
    connection.execute(sql.SQL("CREATE TABLE {} (id int, v {}, a {})").format(table, kind, array))
    values = [sql.SQL("{}::{}").format(sql.Literal(each), kind) for each in LITERALS[name]]
    several = sql.SQL("ARRAY[{}, NULL]::{}").format(
        sql.SQL(", ").join(values if arrays == (True,) else [sql.SQL("1")]), array
    )
    for number, value in enumerate(values):
        connection.execute(insert.format(table, sql.Literal(number), value, several))
    connection.execute(insert.format(table, sql.Literal(90), sql.SQL("NULL"), sql.SQL("NULL")))
    connection.execute(insert.format(table, sql.Literal(91), sql.SQL("NULL"), sql.SQL("ARRAY[]::{}").format(array)))


def test_every_type_of_the_server_is_known_here(types: World) -> None:
    there = types.database.execute(
        "SELECT typname FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND typnamespace = 'pg_catalog'::regnamespace "
        "AND typcategory NOT IN ('A', 'P')"
    )
    assert {str(name) for (name,) in there} - set(LITERALS) - NO_INPUT == set()


def shapes(text: bytes, name: bytes) -> list[Step]:
    return [
        step(Q(text)),
        *(step(P(b"", text), B(b"", b"", [], [], [form]), DP(), E(b""), S) for form in (0, 1)),
        *(step(B(b"", name, [], [], [form]), DP(), E(b""), S) for form in (0, 1)),
    ]


@pytest.fixture(scope="module")
def clients(types: World) -> Iterator[tuple[RawClient, RawClient]]:
    with types.direct() as direct, types.through() as through:
        yield direct, through


@pytest.mark.parametrize("name", TYPES)
def test_type(types: World, clients: tuple[RawClient, RawClient], name: str) -> None:
    direct, through = clients
    with types.database.connect() as connection:
        if not known(connection, name):
            pytest.skip("not a type of this version")
    text = f"SELECT v, a, id FROM {table_of(name)} ORDER BY id".encode()
    prepare = [step(P(name.encode(), text), S)]
    shape = shapes(text, name.encode())
    wanted = play(direct, prepare + shape)[1:]
    sent = ["C" in kinds(each).split() for each in wanted]  # a type without binary output is an error, which is no hit
    hits = sum(sent)
    assert hits >= 3
    before = types.hits()
    missed = play(through, prepare + shape)[1:]
    assert missed == wanted
    assert types.hits() == before, "the first time is a miss"

    def hit() -> bool:
        before = types.hits()
        assert play(through, shape) == wanted
        return types.hits() - before == hits

    if name in REFUSED:
        for _ in range(3):
            assert not hit()
            assert REFUSED[name] in b"".join(play(through, [step(Q(b"SHOW distribcache.last"))]))
        return
    until(hit, lambda: f"never {hits} hits: {types.proxy.statistics()}")


def test_settings_that_shape_an_answer_are_kept_apart(types: World) -> None:
    """The same bytes asked under other settings are other bytes, hit or miss."""
    reads = [
        step(Q(f"SELECT v FROM {table_of(name)} ORDER BY id".encode()))
        for name in ("timestamptz", "date", "interval", "bytea", "float8", "money", "text")
    ]
    settings = [
        b"SET TimeZone = 'Asia/Kathmandu'", b"SET DateStyle = 'German'", b"SET IntervalStyle = 'iso_8601'",
        b"SET bytea_output = 'escape'", b"SET extra_float_digits = 0", b"SET client_encoding = 'SQL_ASCII'",
    ]  # fmt: skip
    with types.direct() as direct, types.through() as through:
        plain = play(direct, reads)
        for _ in range(3):
            assert play(through, reads) == plain
        for setting in settings:
            change = step(Q(setting))
            assert play(through, [change]) == play(direct, [change])
            changed = play(direct, reads)
            for _ in range(3):
                assert play(through, reads) == changed
        before = types.hits()
        assert play(through, reads) == changed
        assert types.hits() > before
        assert changed != plain
        assert play(through, [step(Q(b"RESET ALL"))]) == play(direct, [step(Q(b"RESET ALL"))])
        assert play(through, reads) == plain
