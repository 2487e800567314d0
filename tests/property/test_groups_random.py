"""Random messages in random pieces: what is said directly and through the proxy has the same answer, byte for byte.

Each run is one session on each of two databases with one history. It says the same bytes on both, to the proxy cut at
random places: whole units as drivers send them, most of them about the same few reads, and single messages of the
extended protocol in any order, with errors, row limits, formats, transactions, settings, cursors and copies between
them. A *batch* is what is sent before an answer is waited for.

What may differ is an error in a failed transaction: there the server may look for other things first. And a run never
comes back to the unnamed portal by a single message, nor flushes; what can be said of that stands in
``test_proxy_groups``.

``GROUP_SEEDS=1000-2000`` plays others than the suite. A run that differs is shortened: what is left is the report.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from fix_postgres import Database, create_database, drop_database
from fix_proxy import InnerProxy
from rawclient import RawClient

from distribcache.cli.postgres import Postgres
from distribcache.wire.messages import (
    SYNC,
    bind,
    close,
    copy_data,
    copy_done,
    copy_fail,
    describe,
    execute,
    message,
    parse,
    query,
    read_error,
)

BATCHES = 15
FIRST, LAST = map(int, os.environ.get("GROUP_SEEDS", "1-12").split("-"))
SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}
ROWS = "INSERT INTO item SELECT i, 'it\u00e9m ' || i, i * 1.5 FROM generate_series(1, 40) i"
STOCK = (
    "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price numeric)",
    ROWS,
    "CREATE TABLE note (id int, body text)",
)
TIDY = ("DELETE FROM note", "DELETE FROM item", ROWS)

PLAIN = (
    b"SELECT name FROM item WHERE id = 1", b"SELECT id, name, price FROM item WHERE id < 4 ORDER BY id",
    b"SELECT count(*) FROM note", b"SELECT id FROM item WHERE id < 6 ORDER BY id",
)  # fmt: skip
BOUND = (
    b"SELECT name FROM item WHERE id = $1", b"SELECT id, price FROM item WHERE id <= $1 ORDER BY id",
    b"SELECT $1::int + 1 FROM item WHERE id = 1",
)  # fmt: skip
WORDS = """
BEGIN | BEGIN | BEGIN READ ONLY | START TRANSACTION | BEGIN ISOLATION LEVEL REPEATABLE READ | COMMIT | COMMIT | ROLLBACK
SAVEPOINT a | RELEASE a | ROLLBACK TO a | COMMIT AND CHAIN | SET TRANSACTION READ ONLY
SET TRANSACTION ISOLATION LEVEL SERIALIZABLE | SET TimeZone = 'Asia/Tokyo' | SET LOCAL TimeZone = 'UTC' | RESET ALL
SET client_encoding = 'LATIN1' | SET client_encoding = 'UTF8' | SET extra_float_digits = 0 | SHOW TimeZone | SELECT 1
SELECT id / (id - 2) FROM item WHERE id < 5 ORDER BY id | SELECT nothing FROM nowhere | SELEC | SELECT 1 / 0 | ;
SELECT 1; SELECT 2 | SELECT name FROM item WHERE id = 1 FOR UPDATE | VALUES (1), (2) | TABLE note
INSERT INTO note VALUES (1, 'x') | UPDATE item SET price = price + 1 WHERE id = 2 RETURNING price | DELETE FROM note
UPDATE item SET name = name || '!' WHERE id = 1 | INSERT INTO item VALUES (1, 'twice') | LOCK TABLE item IN SHARE MODE
DECLARE p CURSOR FOR SELECT id FROM item ORDER BY id | FETCH 1 FROM p | CLOSE p | CLOSE ALL | DEALLOCATE ALL
DECLARE q CURSOR WITH HOLD FOR SELECT id FROM item ORDER BY id | FETCH 2 FROM q | DISCARD ALL | DISCARD PLANS
PREPARE a AS SELECT name FROM item WHERE id = 1 | EXECUTE a | DEALLOCATE a | DEALLOCATE b | VACUUM note
DO 'BEGIN RAISE NOTICE ''hello''; END' | COPY (SELECT id FROM item WHERE id < 3 ORDER BY id) TO STDOUT
"""
OTHER = tuple(text.strip().encode() for line in WORDS.strip().splitlines() for text in line.split(" | "))
SEVERAL = (
    b"BEGIN; SELECT name FROM item WHERE id = 1; COMMIT", b"SELECT 1; SELECT name FROM item WHERE id = 1",
    b"COMMIT; BEGIN", b"SELECT 1; BEGIN; SELECT 2", b"SELECT name FROM item WHERE id = 1; SELECT 1/0; SELECT 3",
    b"BEGIN; INSERT INTO note VALUES (3, 'z'); ROLLBACK; SELECT count(*) FROM note", b"SELECT 1; COMMIT; SELECT 2",
)  # fmt: skip
STATEMENTS, PORTALS = (b"", b"", b"a", b"b"), (b"p", b"q")
BROKEN = (
    message(ord("B"), b"\0\0\0"), message(ord("P"), b"\0SELECT 1\0\0\1"), message(ord("D"), b"Xa\0"),
    message(ord("C"), b"X\0"), message(ord("E"), b"p\0\0"), parse(b"", b"SELECT '\xff\xfe'"),
    parse(b"", b"SELECT $1, $3"),
)  # fmt: skip
FUNCTION = message(ord("F"), struct.pack("!IhHIiIih", 177, 0, 2, 4, 1, 4, 2, 0))
LAST_WORDS = (SYNC, *(7 * (close(b"S", b"mark"),)), SYNC)
"""Sent behind each batch, for seven completions and a ReadyForQuery that nothing else brings: then all is answered."""
ENDED = 7 * b"3\0\0\0\4" + b"Z\0\0\0\5"

Batch = tuple[bytes, ...]


class Speaker:
    """Draws batches from a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.favourite = draw.choice([0.3, 0.6, 0.8])
        self.plain, self.bound = draw.sample(PLAIN, 2), draw.choice(BOUND)
        types = draw.choice([[], [23]])
        self.units: list[Batch] = [(query(self.plain[0]),), (parse(b"a", self.bound, types), SYNC)]
        for sql in self.plain:
            self.units.append((parse(b"", sql), bind(b"", b""), describe(b"P", b""), execute(b""), SYNC))
        for value in (b"1", b"2"):
            bound = bind(b"", b"", [], [value])
            self.units.append((parse(b"", self.bound, types), bound, describe(b"P", b""), execute(b""), SYNC))
            self.units.append((bind(b"", b"a", [], [value], [1]), execute(b"", draw.choice([0, 1])), SYNC))
        self.units.append((parse(b"", self.plain[0]), bind(b"", b""), execute(b"")))
        self.units.append((query(b"BEGIN"),))
        self.units.append((query(b"COMMIT"),))
        self.units.append((parse(b"", b"BEGIN"), bind(b"", b""), execute(b"")))

    def batch(self) -> Batch:
        parts: list[bytes] = []
        for _ in range(self.draw.choice([1, 1, 1, 2, 3, 5, 8])):
            one = self.draw.choice(self.units) if self.draw.random() < self.favourite else self._unit()
            one = tuple(filter(None, one)) or (SYNC,)
            if parts and one[0][:1] in (b"Q", b"F") and parts[-1] != SYNC and parts[-1][:1] not in (b"Q", b"F"):
                parts.append(SYNC)  # PostgreSQL 18 itself stumbles over a Query behind messages without a Sync
            parts += one if self.draw.random() < 0.7 else 2 * one
        return tuple(parts)

    def _sql(self) -> bytes:
        draw = self.draw
        return draw.choice([draw.choice(self.plain), self.bound, draw.choice(OTHER)])

    def _bind(self, portal: bytes, statement: bytes, sql: bytes = b"$1") -> bytes:
        draw = self.draw
        values = [draw.choice([b"1", b"2", b"2", b"x", None])] if (b"$1" in sql) == (draw.random() < 0.95) else []
        return bind(portal, statement, [], values, draw.choice([[], [], [0], [1], [0, 1]]))

    def _unit(self) -> Batch:
        draw = self.draw
        sql, limit = self._sql(), draw.choice([*[0] * 8, 1, 2, -1])
        end = draw.choice([SYNC, SYNC, SYNC, b""])
        kind = draw.randrange(12)
        if kind < 4:
            return parse(b"", sql), self._bind(b"", b"", sql), describe(b"P", b""), execute(b"", limit), end
        if kind < 6:
            return (query(draw.choice([sql, sql, sql, draw.choice(SEVERAL)])),)
        if kind < 8:
            name = draw.choice(STATEMENTS)
            return self._bind(b"", name), execute(b"", limit), end
        if kind == 8:
            return draw.choice([close(b"S", b"a"), b""]), parse(draw.choice(STATEMENTS), sql), end
        if kind == 9:
            ends = draw.choice([copy_done(), copy_fail(b"no")])
            copy = draw.choice([(query(b"COPY note FROM STDIN"),), (*_run(b"COPY note FROM STDIN"), SYNC)])
            return draw.choice([(*copy, copy_data(b"7\tc\n"), ends, SYNC), (FUNCTION,), (draw.choice(BROKEN),)])
        return tuple(self._single() for _ in range(draw.choice([1, 2, 3])))

    def _single(self) -> bytes:
        draw = self.draw
        statement, portal = draw.choice(STATEMENTS), draw.choice(PORTALS)
        return draw.choice([
            parse(statement, self._sql()), self._bind(draw.choice([b"", *PORTALS]), statement), close(b"S", statement),
            describe(b"S", statement), describe(b"P", portal), execute(portal, draw.choice([0, 1])),
            close(b"P", draw.choice([b"", portal])), SYNC,
        ])  # fmt: skip


def _run(sql: bytes) -> Batch:
    return parse(b"", sql), bind(b"", b""), execute(b"")


@dataclass
class Both:
    """The two databases, and the proxy before the second."""

    direct: Database
    upstream: Database
    proxy: InnerProxy
    hits: int = 0

    def differ(self, batches: Sequence[Batch], seed: int) -> tuple[int, list[bytes], list[bytes]] | None:
        """Play a session; the first batch that is answered otherwise, and both answers."""
        draw = random.Random(seed)
        for database in (self.direct, self.upstream):
            database.execute(*TIDY)
        before, status = self.proxy.proxy.node.hits(), b"I"
        here, there = self.direct.server, self.proxy
        with (
            RawClient(here.host, here.port, self.direct.name) as one,
            RawClient(there.host, there.port, self.upstream.name) as other,
        ):
            for number, batch in enumerate(batches):
                data = b"".join((*batch, *LAST_WORDS))
                one.send(data)
                at = 0
                while at < len(data):
                    size = draw.choice([1, 5, 6, 20, 60, 200, 10_000])
                    other.send(data[at : at + size])
                    at += size
                wanted, got = _answer(one), _answer(other)
                if not _alike(wanted, got, status):
                    return number, wanted, got
                if wanted[-1] == b"the end":
                    break
                status = wanted[-1][-1:]
        self.hits += self.proxy.proxy.node.hits() - before
        return None


def _answer(client: RawClient) -> list[bytes]:
    messages: list[bytes] = []
    while not b"".join(messages[-8:])[:-1].endswith(ENDED):
        try:
            each = client.message()
        except EOFError:  # a message that may not come here at all
            return [*messages, b"the end"]
        if each[:1] in (b"E", b"N"):
            error = read_error(memoryview(each)[5:])
            each = each[:1] + f"{error.sqlstate} {error.text}".encode()
        messages.append(each)
    return messages


def _alike(wanted: list[bytes], got: list[bytes], status: bytes) -> bool:
    """``status`` was that of the transaction before. Oids of relations are the same: both databases are copies of one.
    """
    if len(wanted) != len(got):
        return False
    for one, other in zip(wanted, got, strict=True):
        if one != other and not (status == b"E" and one[:1] == other[:1] == b"E"):
            return False
        if one[:1] == b"Z":
            status = one[-1:]
    return True


@pytest.fixture(scope="module")
def both(postgres: Postgres) -> Iterator[Both]:
    made = create_database(postgres)
    made.execute(*STOCK)
    names = [f"{made.name}_{side}" for side in ("direct", "upstream")]
    server = Database(postgres, "postgres")
    for name in names:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {made.name}")
    databases = [Database(postgres, name) for name in names]
    proxy = InnerProxy(databases[1].url(), SETTINGS)
    yield Both(*databases, proxy)
    proxy.stop()
    for database in (*databases, made):
        drop_database(database)


@pytest.mark.timeout(240 + 3 * (LAST - FIRST))
def test_any_messages_have_the_same_answer(both: Both) -> None:
    for seed in range(FIRST, LAST + 1):
        speaker = Speaker(seed)
        batches = [speaker.batch() for _ in range(BATCHES)]
        if (found := both.differ(batches, seed)) is not None:
            pytest.fail(f"seed {seed}: {_shortened(both, batches, seed, found)}", pytrace=False)
    assert both.hits > LAST - FIRST


def _shortened(both: Both, batches: Sequence[Batch], seed: int, found: tuple[int, list[bytes], list[bytes]]) -> str:
    """Without each of its messages that does not matter."""
    flat = [list(batch) for batch in batches[: found[0] + 1]]
    for at in reversed(range(len(flat))):
        for place in reversed(range(len(flat[at]))):
            without = [*flat[:at], [*flat[at][:place], *flat[at][place + 1 :]], *flat[at + 1 :]]
            if (again := both.differ([tuple(each) for each in without], seed)) is not None:
                flat, found = without, again
    said = "\n".join(f"  {b' '.join(each)!r}" for each in flat if each)
    return f"\n{said}\n  directly: {found[1]}\n  through the proxy: {found[2]}"
