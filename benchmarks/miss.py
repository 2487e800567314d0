"""Microseconds per miss, without sockets: a session between fake wires, with a canned server.

``python benchmarks/miss.py`` prints, for each shape of request, the time that Python spends on one exchange which goes
upstream: client bytes in, bytes to the server, the reply in, bytes to the client. Beside it stands the time of a bare
relay, which passes the same bytes on through the same wires and looks at nothing. Every read is of a new row, so each
misses and is stored. A figure is the least of many short rounds, which is what the machine's other work disturbs least.
Compare ratios, not absolute times. ``--only NAME`` measures one shape, ``--profile`` also says where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import json
import pstats
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from distribcache.catalog import statement
from distribcache.catalog.resolve import Resolution
from distribcache.clock import now_ns
from distribcache.coherence.ledger import EPOCH, FRESH_AT, NEVER, SCHEMA, Ledger, V, W
from distribcache.config import Settings
from distribcache.proxy.node import Node
from distribcache.proxy.session import Session
from distribcache.sql.settings import KEYED, OWN, SCOPE_COLUMNS
from distribcache.wire.messages import (
    BIND_COMPLETE,
    PARSE_COMPLETE,
    SYNC,
    bind,
    command_complete,
    data_row,
    describe,
    execute,
    message,
    parse,
    query,
)

_ROUNDS = 40
_EACH = 500
_READY = {False: b"Z\0\0\0\5I", True: b"Z\0\0\0\5T"}
_COLUMN = message(ord("T"), b"\0\1abalance\0\0\0\x40\2\0\3\0\0\0\x17\0\4\xff\xff\xff\xff\0\0")
_ROW = data_row((b"0",)) + command_complete(b"SELECT 1")
_READ = b"SELECT abalance FROM pgbench_accounts WHERE aid = "
_UPDATE = b"UPDATE pgbench_%ss SET %sbalance = %sbalance + %d WHERE %sid = %d;"


class Known:
    """A database that is served and never changes."""

    mode, plugin, serving, reason, epoch, max_staleness_ns = "wal", "test_decoding", True, "", 1, 10**18
    identity = SimpleNamespace(system_identifier="0", postmaster_start="0")
    floor_ns = 0

    def __init__(self) -> None:
        self.words = self.head = Ledger(64).words
        self.floors = self.alarmed = None
        self.words[EPOCH], self.words[W], self.words[V], self.words[SCHEMA] = 1, 100, 100, 1
        self.words[FRESH_AT] = NEVER
        self.epoch_listeners: list[Callable[[int], None]] = []
        self.alarms: list[str] = []

    def catalogue_alarm(self, reason: str) -> None:
        self.alarms.append(reason)

    def schedule_poll(self) -> None:
        self.alarms.append("poll")

    def fill_point(self) -> int:
        return 100

    def visible(self) -> int:
        return 100

    def schema_lsn(self) -> int:
        return 1

    def slot_of(self, oid: int) -> int:
        return 80

    def raise_floor(self, now: int) -> None:
        pass

    def note_traffic(self) -> None:
        pass

    async def ask(self, sql: str, params: object = ()) -> list[tuple[Any, ...]]:
        raise AssertionError(sql)


class Wires:
    """Both sockets: what is written is kept until somebody reads it."""

    def __init__(self) -> None:
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.to_upstream = self.up.append
        self.to_client = self.down.append

    def hold_client(self, hold: bool) -> None:
        pass

    def finish(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        raise error


def _scope_row(*, cache: str, prepared: bytes | None) -> bytes:
    values: list[bytes | None] = [b"0"] * (len(SCOPE_COLUMNS) + len(OWN))
    facts = {"schemas": '["pg_catalog", "public"]', "temporary": "f", "isolation": "read committed", "backend_pid": "1"}
    for name, value in facts.items():
        values[SCOPE_COLUMNS.index(name)] = value.encode()
    values[SCOPE_COLUMNS.index("prepared")] = prepared
    values[len(SCOPE_COLUMNS) :] = [cache.encode()] + [None] * (len(OWN) - 1)
    keyed = {"client_encoding": "UTF8", "standard_conforming_strings": "on"}
    return data_row((*values, json.dumps([keyed.get(name, "x") for name in KEYED]).encode()))


class World:
    """One session that has learned its scope. ``cache``: the session's own setting. ``prepared``: what the server says
    of prepared statements.
    """

    def __init__(self, cache: str = "on", prepared: bytes | None = None) -> None:
        coherence = Known()
        databases = SimpleNamespace(acquire=lambda _: coherence, release=lambda _: None)
        self.node = Node(Settings(), databases)  # type: ignore[arg-type]
        self.wires = Wires()
        self.session = Session(self.node, self.node.enter("postgres"), self.wires)
        self.session.backend_pid = 1
        row = _scope_row(cache=cache, prepared=prepared)
        self.answer = (
            PARSE_COMPLETE + BIND_COMPLETE + row + command_complete(b"SELECT 1") + b"3\0\0\0\4" + _READY[False]
        )

    async def settle(self, exchanges: Callable[[bytes], bytes], data: bytes) -> None:
        """One exchange as a whole, with whatever it has to ask first."""
        self.session.from_client(data)
        while not self.wires.down:
            await asyncio.sleep(0)
            for sent in self.wires.up:
                self.session.from_upstream(exchanges(sent))
            self.wires.up.clear()
        self.wires.down.clear()


Unit = tuple[bytes, bytes]
"""What the client sends, and what the server answers."""


def simple() -> Iterator[Unit]:
    for aid in itertools.count():
        yield query(_READ + b"%d;" % aid), _COLUMN + _ROW + _READY[False]


def unnamed() -> Iterator[Unit]:
    reply = PARSE_COMPLETE + BIND_COMPLETE + _COLUMN + _ROW + _READY[False]
    head, tail = parse(b"", _READ + b"$1", (23,)), describe(b"P", b"") + execute(b"") + SYNC
    for aid in itertools.count():
        yield head + bind(b"", b"", (), (b"%d" % aid,)) + tail, reply


def prepared() -> Iterator[Unit]:
    yield parse(b"P_0", _READ + b"$1", (23,)) + SYNC, PARSE_COMPLETE + _READY[False]
    reply, tail = BIND_COMPLETE + _COLUMN + _ROW + _READY[False], describe(b"P", b"") + execute(b"") + SYNC
    for aid in itertools.count():
        yield bind(b"", b"P_0", (), (b"%d" % aid,)) + tail, reply


def tpcb() -> Iterator[Unit]:
    """The statements of pgbench's own transaction, inside one that never ends."""
    yield query(b"BEGIN; SELECT 1"), command_complete(b"BEGIN") + _COLUMN + _ROW + _READY[True]
    updated = command_complete(b"UPDATE 1") + _READY[True]
    for number in itertools.count():
        yield query(_UPDATE % (b"account", b"a", b"a", number, b"a", number)), updated
        yield query(_READ + b"%d;" % number), _COLUMN + _ROW + _READY[True]
        yield query(_UPDATE % (b"teller", b"t", b"t", number, b"t", number)), updated
        yield query(_UPDATE % (b"branche", b"b", b"b", number, b"b", number)), updated
        yield (
            query(b"INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, %d, 1, now());" % number),
            command_complete(b"INSERT 0 1") + _READY[True],
        )


SHAPES: dict[str, tuple[Callable[[], Iterator[Unit]], str]] = {
    "miss, simple": (simple, "on"),
    "miss, extended unnamed": (unnamed, "on"),
    "miss, prepared": (prepared, "on"),
    "off, simple": (simple, "off"),
    "off, extended unnamed": (unnamed, "off"),
    "off, prepared": (prepared, "off"),
    "tpcb, simple": (tpcb, "on"),
}


def _know_names() -> None:
    """The catalogue's answer about every name, without a catalogue."""

    async def resolve(*_: object, **__: object) -> Resolution:
        return Resolution(None, True, ((16384, "public.pgbench_accounts"),))

    statement.resolve = resolve  # type: ignore[assignment]


async def _shape(
    make: Callable[[], Iterator[Unit]], cache: str, profile: cProfile.Profile | None
) -> tuple[float, float]:
    """Least nanoseconds of an exchange through the session, and of the bare relay of it."""
    world = World(cache)
    units = make()
    for data, reply in itertools.islice(units, 20):
        await world.settle(lambda sent, reply=reply: world.answer if b"distribcache scope" in sent else reply, data)
    taken, floors = [], []
    wires, session = world.wires, world.session
    from_client, from_upstream = session.from_client, session.from_upstream
    for _ in range(_ROUNDS):
        batch = list(itertools.islice(units, _EACH))
        misses = sum(world.node.totals.misses.values())
        if profile is not None:
            profile.enable()
        began = time.process_time_ns()
        for data, reply in batch:
            from_client(data)
            from_upstream(reply)
        taken.append((time.process_time_ns() - began) / _EACH)
        if profile is not None:
            profile.disable()
        assert wires.up[-1].endswith(batch[-1][0])
        assert b"".join(wires.down) == b"".join(reply for _, reply in batch)
        assert make is tpcb or sum(world.node.totals.misses.values()) - misses == (_EACH if cache == "on" else 0)
        began = time.process_time_ns()
        for data, reply in batch:
            wires.to_upstream(data)
            wires.to_client(reply)
        floors.append((time.process_time_ns() - began) / _EACH)
        wires.up.clear()
        wires.down.clear()
        session.node.clock.now = now_ns() / 1e9
    return min(taken), min(floors)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="one of: " + "; ".join(SHAPES))
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    _know_names()
    for name, (make, cache) in SHAPES.items():
        if not asked.only or asked.only == name:
            profile = cProfile.Profile() if asked.profile else None
            taken, floor = asyncio.run(_shape(make, cache, profile))
            print(f"{name:24} {taken / 1000:7.2f} µs   {taken / floor:6.1f} x a bare relay ({floor:.0f} ns)")
            if profile is not None:
                pstats.Stats(profile).sort_stats("tottime").print_stats(32)


if __name__ == "__main__":
    main()
