"""The server decides what is a moment: whatever it reads as one must be seen by our rule, without asking it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Postgres
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distribcache.sql.parse import read
from distribcache.sql.timewords import dangerous_parameter, names_a_moment

PARTS = st.sampled_from(
    "now today tomorrow yesterday NOW Today epoch infinity allballs 10:00 10:00:00.5 2024-01-01 Jan 1 2024 BC AM PM "
    "UTC Z PST EST5EDT America/New_York Etc/GMT+3 Cuba +02 -3:30 T at on Monday { } [ ( ) , \" ' . ; : / - _ J2451187 "
    "y2024".split()
)
# Two readings a year apart in the server's own clock cannot be had; a moment is what falls near the clock.
MOMENT = """
SELECT abs(extract(epoch FROM (%s::timestamptz - now()))) < 5 * 86400
"""


@pytest.fixture(scope="module")
def connection(postgres: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        yield connection


def _is_moment(connection: psycopg.Connection[Any], text: str) -> bool:
    try:
        row = connection.execute(MOMENT, [text]).fetchone()
    except psycopg.Error:
        return False
    return bool(row and row[0])


@settings(max_examples=500)
@given(st.lists(PARTS, min_size=1, max_size=5), st.sampled_from([" ", "", ",", "\t"]))
@example(["today10:00"], "")
@example(["(now)"], "")
@example(["now", "America/Argentina/ComodRivadavia"], " ")
@example(["10:00", "today"], " ")
def test_what_the_server_reads_as_a_moment_we_see(
    connection: psycopg.Connection[Any], parts: list[str], separator: str
) -> None:
    text = separator.join(parts)
    if _is_moment(connection, text):
        assert names_a_moment(text), text
        assert dangerous_parameter(text.encode()), text


def test_every_zone_may_stand_beside_a_moment(connection: psycopg.Connection[Any]) -> None:
    rows = connection.execute(
        "SELECT name FROM pg_timezone_names UNION SELECT abbrev FROM pg_timezone_abbrevs"
    ).fetchall()
    assert len(rows) > 500
    assert [zone for (zone,) in rows if not names_a_moment(f"today 10:00 {zone}")] == []


@pytest.mark.parametrize(
    "literal",
    ["'today'", "E'\\x74oday'", "U&'\\0074oday'", "$a$today$a$", "'to'\n'day'", "e'to\\144ay'", "' today '", "'TODAY'"],
)
def test_however_it_is_spelled_a_literal_reaches_us_as_the_server_reads_it(
    connection: psycopg.Connection[Any], literal: str
) -> None:
    row = connection.execute(f"SELECT {literal}::date = current_date".encode()).fetchone()
    assert row == (True,)
    refusal = read(f"SELECT * FROM t WHERE d = {literal}".encode()).statements[0].refusal
    assert refusal is not None
    assert refusal.code == "time_literal"


def test_long_names_are_cut_where_the_server_cuts_them(connection: psycopg.Connection[Any]) -> None:
    for name in ("x" * 80, "é" * 40, "a" + "é" * 40):
        with connection.transaction(force_rollback=True):
            connection.execute(f'CREATE TABLE "{name}" (id int)'.encode())
            row = connection.execute(f"SELECT '\"{name}\"'::regclass::oid::regclass::text".encode()).fetchone()
        (relation,) = read(f'SELECT * FROM "{name}"'.encode()).statements[0].relations
        assert row == (relation.name if relation.name.isascii() else f'"{relation.name}"',) or row == (relation.name,)
