"""What is recognised is what the change stream prints of exactly those rows that the server finds by it.

Rows of every family go through a logical slot, which tells how the stream prints them. Then the same values, and many
that only resemble them, are asked for as parameters (text and binary, declared and open) and as constants.
"""

from __future__ import annotations

import os
import random
import re
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from psycopg import pq

from distribcache.sql import rowvalues
from distribcache.sql.fold import literals
from distribcache.sql.parse import read
from distribcache.sql.predicates import occurrences
from distribcache.sql.rowvalues import CASTS, FAMILY, Family, recognise, recognise_array, recognise_constant

Connection = psycopg.Connection[Any]

TRIES = 150
"""Values per column, each asked for in several ways."""

COLUMNS = {
    "i2": (21, "smallint"), "i4": (23, "integer"), "i8": (20, "bigint"), "t": (25, "text"),
    "v": (1043, "varchar(12)"), "c": (25, 'text COLLATE "C"'), "u": (2950, "uuid"), "b": (16, "boolean"),
    "d": (1082, "date"),
}  # fmt: skip
ARRAYS = {1005: 21, 1007: 23, 1016: 20, 1009: 25, 1015: 1043, 2951: 2950, 1000: 16, 1182: 1082}
WIDTH = {21: 2, 23: 4, 20: 8}
WIDTHS = {"i2": 2, "i4": 4, "i8": 8}
PRINTED = re.compile(r"([a-z0-9]+)\[[^\]]+\]:('(?:[^']|'')*'|[^ ]+)")
# As the reader's connection has it.
SETTINGS = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO'"


def proper(family: Family, choose: random.Random) -> str:
    """A value in any form that the server may take for the type."""
    match family:
        case Family.INT:
            number = choose.choice([0, 1, -1, 5, 10, 32767, -32768, choose.randrange(-20, 20)])
            return choose.choice(["{}", "{}", "{}", "0{}", "+{}", " {}", "{} ", "{}.0", "00{}", "-{}"]).format(number)
        case Family.TEXT:
            words = ["", " ", "a", "A", "a ", "a'b", "a''b", "ä", "a\u0308", "1", "01", "a\nb", "\\", "null", "a:b[c]"]
            return choose.choice([*words, "x" * 12])
        case Family.UUID:
            number = uuid.UUID(int=choose.choice([0, 1, 2**127 + 0xAB, 2**128 - 1]))
            return choose.choice([str(number), str(number), str(number).upper(), number.hex, f"{{{number}}}"])
        case Family.BOOL:
            return choose.choice(["true", "false", "t", "f", "TRUE", "yes", "off", "1", " true", "fals"])
        case Family.DATE:
            day = choose.choice(["2024-02-29", "1999-12-31", "0001-01-01", "9999-12-31", "2000-01-01", "0044-03-15"])
            return choose.choice([day, day, day.replace("-", ""), f"{day} BC", f" {day}", "infinity", "12024-01-01"])


def binary(family: Family, choose: random.Random, width: int) -> bytes:
    match family:
        case Family.INT:
            return choose.choice([0, 1, -1, 5, 32767, choose.randrange(-20, 20)]).to_bytes(width, signed=True)
        case Family.TEXT:
            return proper(family, choose).encode()
        case Family.UUID:
            return choose.choice([0, 1, 2**127 + 0xAB, 2**128 - 1]).to_bytes(16)
        case Family.BOOL:
            return choose.choice([b"\0", b"\1", b"\2"])
        case Family.DATE:
            days = [0, -1, 8825, 2921939, 2921940, -730119, -730120, 2**31 - 1, -(2**31), choose.randrange(-9, 9)]
            return choose.choice(days).to_bytes(4, signed=True)


@dataclass(slots=True)
class Outcome:
    recognised: int = 0
    found: int = 0
    unrecognised: int = 0
    wrong: list[tuple[Any, ...]] = field(default_factory=list)


class World:
    """One table per column, each value once in every form; ``printed``: what the stream says of each row."""

    def __init__(self, connection: Connection, slot: Connection, choose: random.Random) -> None:
        self.connection = connection
        self.random = choose
        self.printed: dict[str, dict[str, str | None]] = {}
        slot.execute(SETTINGS)
        # On a connection of its own: any error drops a temporary slot.
        slot.execute("SELECT pg_create_logical_replication_slot('values', 'test_decoding', true)")
        for name, (oid, kind) in COLUMNS.items():
            connection.execute(f"CREATE TABLE {name}_ (k int, {name} {kind})".encode())
            for number in range(60):
                text = None if number % 12 == 0 else proper(FAMILY[oid], choose)
                try:
                    connection.execute(f"INSERT INTO {name}_ VALUES (%s, %s::text::{kind})".encode(), [number, text])
                except psycopg.DataError:
                    continue
            self.printed[name] = {}
        for (change,) in slot.execute("SELECT data FROM pg_logical_slot_get_changes('values', NULL, NULL)"):
            if ": INSERT: " in change:
                (_, key), (name, value) = PRINTED.findall(change.split(": INSERT: ", 1)[1])
                self.printed[name][key] = unquoted(value)

    def rows_of(self, name: str, value: bytes) -> set[str]:
        return {key for key, printed in self.printed[name].items() if printed is not None and printed.encode() == value}


def unquoted(printed: str) -> str | None:
    if printed == "null":
        return None
    return printed[1:-1].replace("''", "'") if printed.startswith("'") else printed


def parameters(world: World) -> Iterator[tuple[str, bytes | None, set[str], object]]:
    """Parameters: the column, what was recognised, the rows that the server found, and what was asked."""
    choose = world.random
    for name, (oid, _) in COLUMNS.items():
        family = FAMILY[oid]
        for _ in range(TRIES):
            declared = choose.choice([0, 0, oid, *(each for each in FAMILY if FAMILY[each] is family), 705, 1042, 1700])
            as_binary = choose.random() < 0.5
            width = {21: 2, 23: 4, 20: 8}.get(declared, WIDTHS.get(name, 4))
            value = binary(family, choose, width) if as_binary else proper(family, choose).encode()
            result = world.connection.pgconn.exec_params(
                f"SELECT k FROM {name}_ WHERE {name} = $1".encode(), [value], [declared], [int(as_binary)]
            )
            if result.status == pq.ExecStatus.TUPLES_OK:
                rows = {(result.get_value(row, 0) or b"").decode() for row in range(result.ntuples)}
                yield name, recognise(family, declared, value, as_binary, oid), rows, (name, declared, value, as_binary)


def arrays(world: World) -> Iterator[tuple[str, bytes | None, set[str], object]]:
    """Bound arrays, and strings that stand for them, each once for every element that was recognised."""
    choose = world.random
    for name, (oid, _) in COLUMNS.items():
        family = FAMILY[oid]
        for _ in range(TRIES):
            declared = choose.choice([0, 705, *ARRAYS])
            kind = ARRAYS.get(declared, oid)
            as_binary = choose.random() < 0.5
            if as_binary:
                value = plain_array(kind, [binary(FAMILY[kind], choose, WIDTH.get(kind, 4)) for _ in range(2)])
            else:
                one, two = (proper(family, choose) for _ in range(2))
                value = choose.choice(['{%s,"%s"}', "{%s,%s}", '{"%s","%s"}', "{%s, %s}", "{%s,NULL,%s}"]).encode() % (
                    one.encode(), two.encode(),
                )  # fmt: skip
            result = world.connection.pgconn.exec_params(
                f"SELECT k FROM {name}_ WHERE {name} = ANY ($1)".encode(), [value], [declared], [int(as_binary)]
            )
            if result.status == pq.ExecStatus.TUPLES_OK:
                rows = {(result.get_value(row, 0) or b"").decode() for row in range(result.ntuples)}
                known = recognise_array(family, declared, value, as_binary, oid)
                if known is None:
                    yield name, None, rows, (name, declared, value, as_binary)
                    continue
                # Together the elements are the rows that were found; each alone is some of them.
                together = set().union(*(world.rows_of(name, each) for each in known))
                for each in known:
                    mine = world.rows_of(name, each) if together == rows else rows
                    yield name, each, mine, (name, declared, value, as_binary)


def plain_array(kind: int, elements: list[bytes]) -> bytes:
    head = struct.pack("!iiIii", 1, 0, kind, len(elements), 1)
    return head + b"".join(len(each).to_bytes(4) + each for each in elements)


def constants(world: World) -> Iterator[tuple[str, bytes | None, set[str], object]]:
    """Constants of all kinds, through the whole reading of the text."""
    choose = world.random
    for name, (oid, _) in COLUMNS.items():
        family = FAMILY[oid]
        for _ in range(TRIES):
            text = proper(family, choose)
            quoted = text.replace("'", "''")
            cast = choose.choice([*CASTS, "numeric", "bpchar"])
            constant = choose.choice([f"'{quoted}'", f"'{quoted}'", text, f"'{quoted}'::{cast}", f"{text}::{cast}"])
            sql = f"SELECT k FROM {name}_ WHERE {name} = {constant}{choose.choice(['', ' -- whole'])}"
            try:
                rows = {str(key) for (key,) in world.connection.execute(sql.encode())}
            except psycopg.Error:
                continue
            statements = read(sql.encode()).statements
            found = occurrences(statements[0].levels, lambda _: frozenset({"k", *COLUMNS})) if statements else None
            for pin in found.occurrences[0].pins if found else ():
                value = pin.values[0]
                known = literals(sql.encode())[value.literal] if value.literal >= 0 else value.const.encode()
                fits = not value.cast or CASTS[value.cast] is family
                yield name, recognise_constant(family, known, quoted=value.quoted) if fits else None, rows, sql


def play(database: Database) -> Outcome:
    outcome = Outcome()
    choose = random.Random(int(os.environ.get("SEED", "7")))
    with database.connect() as connection, database.connect() as slot:
        world = World(connection, slot, choose)
        assert all(any(printed.values()) for printed in world.printed.values())
        for asked in (parameters, arrays, constants):
            for name, known, rows, what in asked(world):
                outcome.unrecognised += known is None
                if known is None:
                    continue
                outcome.recognised += 1
                outcome.found += bool(rows)
                if world.rows_of(name, known) != rows:
                    outcome.wrong.append((what, known, rows, world.rows_of(name, known)))
    return outcome


def test_what_is_recognised_is_what_the_stream_prints(database: Database) -> None:
    """Coherence trap 6."""
    outcome = play(database)
    assert outcome.wrong == []
    assert outcome.found > TRIES
    assert outcome.recognised > 2 * TRIES
    assert outcome.unrecognised > TRIES


def test_dates_of_a_thousand_years(database: Database) -> None:
    """Binary dates are printed here, so by our calendar: it must be the server's."""
    with database.connect() as connection:
        rows = connection.execute(
            "SELECT d::text, d - date '2000-01-01' FROM generate_series(date '0001-01-01', '9999-12-31', '97 days') g, "
            "LATERAL (SELECT g::date AS d) s"
        ).fetchall()
    assert len(rows) > 30_000
    for text, days in rows:
        assert recognise(Family.DATE, 0, days.to_bytes(4, signed=True), True, 1082) == text.encode()


@pytest.mark.sabotage
@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        (Family.INT, lambda value: value if value.strip().isdigit() else None),
        (Family.TEXT, lambda value: value.strip()),
        (Family.UUID, lambda value: value),
        (Family.BOOL, lambda value: b"true" if value[:1] == b"t" else value),
        (Family.DATE, lambda value: value[:10]),
    ],
)
def test_a_value_taken_for_what_it_resembles_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, family: Family, wrong: Any
) -> None:
    """Coherence trap 6. Muted: what resembles a value is taken for it."""
    monkeypatch.setitem(rowvalues._TEXTS, family, wrong)
    assert play(database).wrong != []


@pytest.mark.sabotage
def test_a_parameter_of_any_declared_type_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """char(n) is compared without its blanks."""
    monkeypatch.setitem(rowvalues.FAMILY, 1042, Family.TEXT)
    assert play(database).wrong != []
