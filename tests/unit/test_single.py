"""The short way of a single read: it decides what the long way decides, and it is taken.

Two worlds without sockets get the same bytes, one with the short way and one without it. Everything that they send,
keep and know afterwards has to be the same.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distribcache.coherence.ledger import SCHEMA
from distribcache.proxy import session as session_module
from distribcache.proxy.single import NOT_HERE
from distribcache.wire.messages import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    FLUSH,
    PARSE_COMPLETE,
    SYNC,
    bind,
    close,
    command_complete,
    data_row,
    describe,
    error_response,
    execute,
    parse,
    query,
    row_description,
)

READ = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1"
TIME = b"SELECT abalance FROM pgbench_accounts WHERE at = $1::timetz"
BROKEN = b"SELECT broken FROM pgbench_accounts WHERE aid = $1"
WRITE = b"UPDATE pgbench_accounts SET abalance = $1"
READY = b"Z\0\0\0\5I"
ERROR = error_response("ERROR", "22012", "division by zero")
NOTICE = b"N" + ERROR[1:]


def benchmark() -> ModuleType:
    """The worlds of the benchmark of misses."""
    path = Path(__file__).parents[2] / "benchmarks" / "miss.py"
    spec = importlib.util.spec_from_file_location("distribcache_miss", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def miss(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = benchmark()
    monkeypatch.setattr(module.statement, "resolve", module.statement.resolve)  # put back at the end
    module._know_names()
    return module


def messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 1 + int.from_bytes(data[1:5])
        found.append(data[:end])
        data = data[end:]
    return found


class Server:
    """Answers every message, with an error where the message asks for one."""

    def __init__(self, scope: bytes) -> None:
        self.scope = scope
        self.skipping = False
        self.statements: dict[bytes, bytes] = {}
        self.bound = b""

    def answer(self, sent: bytes) -> bytes:
        if b"distribcache scope" in sent:
            return self.scope
        return b"".join(map(self.one, messages(sent)))

    def one(self, message: bytes) -> bytes:
        kind = message[:1]
        if kind == b"S":
            self.skipping = False
            return READY
        if self.skipping or kind == b"H":
            return b""
        said = self.said(kind, message)
        self.skipping = said.endswith(ERROR) and kind != b"Q"
        return said

    def said(self, kind: bytes, message: bytes) -> bytes:
        if kind == b"Q":
            return row_description([(b"a", 23, -1, 0)]) + data_row((b"1",)) + command_complete(b"SELECT 1") + READY
        if kind == b"P":
            name, sql, _ = message[5:].split(b"\0", 2)
            if not name:
                self.statements.pop(b"", None)
            if sql == BROKEN or (name and name in self.statements):
                return ERROR
            self.statements[name] = sql
            return PARSE_COMPLETE
        if kind == b"B":
            name = message[5:].split(b"\0", 2)[1]
            self.bound = message
            return ERROR if name not in self.statements or b"bind fails" in message else BIND_COMPLETE
        if kind == b"D":
            return row_description([(b"a", 23, -1, 0)])
        if kind == b"C":
            self.statements.pop(message[6:-1], None)
            return CLOSE_COMPLETE
        if b"run fails" in self.bound:
            return data_row((b"1",)) + ERROR
        rows = 3 if b"many" in self.bound else 1
        before = NOTICE if b"notice" in self.bound else b""
        if int.from_bytes(message[-4:]) == 1:
            return before + data_row((b"1",)) + b"s\0\0\0\4"
        return before + data_row((b"1", b"x" * 9)) * rows + command_complete(b"SELECT %d" % rows)


Unit = tuple[bytes, int]
"""What the client sends, and in how many pieces the server answers."""

SCHEMA_CHANGED = b"!"

VALUES = (b"1", b"2", b"1", b"many", b"notice", b"bind fails", b"run fails", b"today", b"\0\0\0\7")


@st.composite
def units(draw: st.DrawFn) -> Unit:
    name = draw(st.sampled_from([b"", b"", b"s1", b"s2"]))
    sql = draw(st.sampled_from([READ, READ, READ, READ + b" ", BROKEN, TIME, WRITE]))
    data = parse(name, sql, draw(st.sampled_from([(), (23,), (1266,)]))) if draw(st.booleans()) else b""
    values = draw(st.sampled_from([(each,) for each in VALUES] + [(), (None,), (b"1", b"2")]))
    formats = draw(st.sampled_from([(), (), (0,), (1,), (0, 0)]))
    bound = bind(draw(st.sampled_from([b"", b"", b"", b"p"])), name, formats, values, draw(st.sampled_from([(), (1,)])))
    data += bound if draw(st.integers(0, 9)) else bound[:-1] + b"\7"
    data += describe(b"P", b"") if draw(st.booleans()) else b""
    data += execute(b"", draw(st.sampled_from([0, 0, 0, 1])))
    data += draw(st.sampled_from([SYNC, SYNC, SYNC, SYNC, execute(b"") + SYNC, FLUSH + SYNC]))
    whole = draw(st.sampled_from([data, data, data, data, query(READ.replace(b"$1", b"5")), close(b"S", name) + SYNC]))
    return whole, draw(st.sampled_from([1, 1, 2, 5, 400]))


async def played(miss: ModuleType, given_units: list[Unit], cache: str) -> list[Any]:
    """All that can be seen of a session after each unit."""
    world = miss.World(cache, b'[null, ["s1", "s2"]]')
    server = Server(world.answer)
    session, wires = world.session, world.wires
    seen = []
    for data, pieces in given_units:
        sent = []

        def reply(up: bytes, pieces: int = pieces, sent: list[bytes] = sent) -> bytes:
            sent.append(up)
            answer = server.answer(up)
            step = max(1, len(answer) // pieces)
            *most, last = [answer[at : at + step] for at in range(0, len(answer), step)] or [b""]
            for each in most:
                session.from_upstream(each)
            return last

        misses = sum(world.node.totals.misses.values())
        if data is SCHEMA_CHANGED:
            session.coherence.words[SCHEMA] += 1
            continue
        session.from_client(data)
        down = b""
        for _ in range(12):  # what is asked first is answered first
            await miss.asyncio.sleep(0)
            for up in wires.up[:]:
                wires.up.remove(up)
                session.from_upstream(reply(up))
            down += b"".join(wires.down)
            wires.down.clear()
        hot, txn = session.hot, session.txn
        entries = sorted((key[1], entry[0], entry[3]) for key, entry in world.node.l1.entries.items())
        statements = {
            name: (each.sql, each.oids, each.proved, each.own, each.meaning, each.lsn)
            for name, each in session.statements.items()
        }
        seen.append((
            down, [each for each in sent if b"distribcache scope" not in each], entries, statements, session.outcome,
            hot.kept, hot.portal, hot.ident != 0, hot.ready, hot.in_txn, hot.hits, txn.impure, txn.ddl, session.fills,
            session.awaiting, session.open, sum(world.node.totals.misses.values()) - misses, list(session.portals),
            session.replies.skipping, len(session.replies.pending), session.parsing, session.unsettled,
            session.coherence.alarms[:],
        ))  # fmt: skip
        assert not any(key in world.node.flights for key in world.node.l1.entries)
        assert not wires.up and not session._inbox
    return seen


def unnamed(value: bytes, sql: bytes = READ, oids: tuple[int, ...] = (23,), pieces: int = 1) -> Unit:
    return parse(b"", sql, oids) + bound(value)[0], pieces


def bound(value: bytes, name: bytes = b"", portal: bytes = b"") -> Unit:
    return bind(portal, name, (), (value,)) + execute(portal) + SYNC, 1


PREPARED = parse(b"s1", READ, (23,)) + SYNC, 1
CASES: dict[str, list[Unit]] = {
    "the unnamed statement that was answered here gives way": [
        unnamed(b"1"), unnamed(b"1"), unnamed(b"2"), bound(b"3")],
    "and is sent again when it does not": [unnamed(b"1"), unnamed(b"1"), bound(b"3")],
    "it is bound again": [unnamed(b"1"), bound(b"2"), bound(b"3")],
    "its reply comes in pieces": [unnamed(b"1"), unnamed(b"2", pieces=9), bound(b"3")],
    "its text is broken": [unnamed(b"1"), unnamed(b"2", BROKEN), bound(b"3")],
    "its Bind fails": [unnamed(b"1"), unnamed(b"bind fails"), bound(b"3"), unnamed(b"4")],
    "it fails": [unnamed(b"1"), unnamed(b"run fails"), bound(b"3"), unnamed(b"4")],
    "a value is a moment": [unnamed(b"1"), unnamed(b"today"), unnamed(b"today")],
    "a type is of the day": [unnamed(b"1"), unnamed(b"2", TIME), unnamed(b"3", READ, (1266,))],
    "a Query is answered in front of it": [
        PREPARED, (query(READ.replace(b"$1", b"5")), 1), (query(READ.replace(b"$1", b"5")), 1), bound(b"1", b"s1"),
        bound(b"2")],
    "the schema changes": [
        PREPARED, (parse(b"s2", READ, (23,)) + SYNC, 1), bound(b"1", b"s1"), bound(b"2", b"s2"), (SCHEMA_CHANGED, 0),
        bound(b"3", b"s1"), bound(b"4", b"s2"), bound(b"5", b"s2")],
    "another portal is executed": [
        PREPARED, bound(b"1", b"s1"), (bind(b"p", b"s1", (), (b"2",)) + execute(b"") + SYNC, 1)],
    "a notice comes": [PREPARED, bound(b"notice", b"s1"), bound(b"notice", b"s1")],
    "a named portal": [PREPARED, bound(b"1", b"s1"), bound(b"2", b"s1", b"p"), bound(b"2", b"s1", b"p")],
    "nothing that is known": [PREPARED, bound(b"1", b"s2"), bound(b"2", b"s1"), bound(b"2")],
    "a write": [PREPARED, bound(b"1", b"s1"), unnamed(b"2", WRITE), bound(b"1", b"s1"), bound(b"3", b"s1")],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cache", ["on", "off"])
def test_both_ways_come_to_the_same_end_when(miss: ModuleType, case: str, cache: str) -> None:
    short = miss.asyncio.run(played(miss, CASES[case], cache))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "single", lambda *_: NOT_HERE)
        assert short == miss.asyncio.run(played(miss, CASES[case], cache))


@settings(max_examples=150)
@given(st.lists(units(), min_size=1, max_size=7), st.sampled_from(["on", "on", "on", "off"]))
def test_the_short_way_decides_what_the_long_way_decides(miss: ModuleType, given_units: list[Unit], cache: str) -> None:
    short = miss.asyncio.run(played(miss, given_units, cache))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "single", lambda *_: NOT_HERE)
        long = miss.asyncio.run(played(miss, given_units, cache))
    assert short == long


NAMED = bind(b"", b"s1", (), (b"%d",)) + execute(b"") + SYNC


@pytest.mark.parametrize("described", [b"", describe(b"P", b"")])
@pytest.mark.parametrize("named", [False, True])
def test_the_plain_shapes_take_the_short_way(miss: ModuleType, named: bool, described: bytes) -> None:
    taken: list[int] = []
    short = session_module.single

    def counted(*arguments: Any) -> int:
        taken.append(short(*arguments))
        return taken[-1]

    async def play() -> None:
        first = parse(b"s1", READ, (23,)) + SYNC
        head = b"" if named else parse(b"", READ, (23,))
        reads = [head + bind(b"", b"s1" if named else b"", (), (b"%d" % n,)) + described + execute(b"") + SYNC
                 for n in range(5)]  # fmt: skip
        seen = await played(miss, [(each, 1) for each in [first, *reads, *reads]], "on")
        assert [each[10] for each in seen] == [0] * 6 + [1, 2, 3, 4, 5]
        assert [size for size in taken if size > 0] == [len(each) for each in reads]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "single", counted)
        miss.asyncio.run(play())


@pytest.mark.parametrize("shape", ["miss, simple", "miss, extended unnamed", "miss, prepared", "tpcb, simple"])
def test_the_benchmark_of_misses_runs(miss: ModuleType, monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    monkeypatch.setattr(miss, "_ROUNDS", 2)
    monkeypatch.setattr(miss, "_EACH", 20)
    taken, _ = miss.asyncio.run(miss._shape(*miss.SHAPES[shape], None))
    assert taken > 0
