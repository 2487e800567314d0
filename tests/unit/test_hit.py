"""The hit path: what it answers, and every reason for which it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distribcache.clock import CoarseClock, now_ns
from distribcache.coherence.ledger import EPOCH, FLOORS, FRESH_AT, SCHEMA, W
from distribcache.coherence.validity import valid
from distribcache.entry import TOUCHED, Entry, make_entry
from distribcache.proxy.hit import AS_UPSTREAM, FINISHED, GONE, Hot, serve
from distribcache.wire.messages import FLUSH, SYNC, bind, close, describe, execute, parse, query

SLOT, OTHER = SCHEMA + 10, SCHEMA + 11
IDENT, STATEMENT = 7, 8
Q = query(b"SELECT 1 FROM t")
UNNAMED = parse(b"", b"SELECT 1 FROM t") + bind(b"", b"") + describe(b"P", b"") + execute(b"")
TAIL = bind(b"", b"s1")[5 + 1 + 3 :] + execute(b"")
NAMED = bind(b"", b"s1") + execute(b"")
Z = b"Z\0\0\0\5I"


def entry(payload: bytes = b"<payload>", **changed: object) -> Entry:
    facts: dict[str, object] = {
        "fill": 100, "analysis": 90, "slots": (SLOT, OTHER), "epoch": 3, "expires": 50.0, "cost_ns": 1000, "at_ns": 1,
        "tables": "public.t", "workload": "oltp",
    }  # fmt: skip
    return make_entry(payload, **(facts | changed))  # type: ignore[arg-type]


class World:
    """A session that may be served, with one entry for each of three shapes; a test spoils one thing."""

    def __init__(self, touch: Callable[[tuple[int, bytes]], None] | None = None) -> None:
        self.written: list[bytes] = []
        self.entries: dict[tuple[int, bytes], Entry] = {
            (IDENT, Q): entry(b"<query>"),
            (IDENT, UNNAMED): entry(b"<unnamed>"),
            (STATEMENT, TAIL): entry(b"<named>"),
        }
        clock = CoarseClock()
        clock.now = 40.0
        self.hot = hot = Hot(self.entries, touch, clock, self.written.append)
        words = hot.words
        words[EPOCH], words[W], words[SCHEMA], words[SLOT], words[OTHER] = 3, 120, 80, 100, 99
        words[FRESH_AT] = now_ns()
        hot.ident, hot.epoch, hot.schema, hot.max_staleness = IDENT, 3, 80, 10**12
        hot.names[b"s1"] = (STATEMENT, 80)

    def ask(self, data: bytes, pos: int = 0) -> tuple[int, bytes]:
        self.written.clear()
        return serve(data, pos, self.hot), b"".join(self.written)

    def refuses(self, data: bytes) -> bool:
        return self.ask(data) == (0, b"")


SHAPES = {"query": (Q, b"<query>"), "unnamed": (UNNAMED + SYNC, b"<unnamed>"), "named": (NAMED + SYNC, b"<named>")}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hit(shape: str) -> None:
    world = World()
    data, payload = SHAPES[shape]
    assert world.ask(data) == (len(data), payload + Z)
    hot = world.hot
    assert (hot.hits, hot.saved_ns) == (1, 1000)
    assert hot.last is not None
    assert hot.last[0] == payload
    assert hot.last[TOUCHED][0] == 1
    assert hot.oldest_ns >= hot.age_ns >= 0


def test_the_policy_is_told_when_it_asks() -> None:
    touched: list[tuple[int, bytes]] = []
    world = World(touched.append)
    world.ask(Q)
    assert touched == [(IDENT, Q)]
    assert world.hot.last is not None
    assert world.hot.last[TOUCHED][0] == 0


def test_several_units_and_the_rest() -> None:
    world = World()
    units = Q + UNNAMED + SYNC + NAMED + SYNC
    assert world.ask(units + Q[:7]) == (len(units), b"<query>" + Z + b"<unnamed>" + Z + b"<named>" + Z)
    assert world.ask(Q + query(b"SELECT 2 FROM t") + Q) == (len(Q), b"<query>" + Z)
    assert world.ask(b"....." + Q, 5) == (5 + len(Q), b"<query>" + Z)


@pytest.mark.parametrize("shape", SHAPES)
def test_cut_at_every_length_it_waits(shape: str) -> None:
    data, payload = SHAPES[shape]
    world = World()
    for end in range(len(data)):
        assert world.refuses(data[:end]), end
    assert world.ask(data)[1] == payload + Z


def later(world: World, **words: int) -> None:
    for name, value in words.items():
        world.hot.words[{"epoch": EPOCH, "schema": SCHEMA, "w": W, "slot": SLOT, "other": OTHER}[name]] = value


SPOILS: dict[str, Callable[[World], object]] = {
    "no identity": lambda world: setattr(world.hot, "ident", 0),
    "another scope": lambda world: setattr(world.hot, "ident", 9),
    "older than max_staleness": lambda world: setattr(world.hot, "max_staleness", -(10**9)),
    "never fresh": lambda world: world.hot.words.__setitem__(FRESH_AT, 0) or setattr(world.hot, "max_staleness", 10**9),
    "a write through this node": lambda world: world.hot.words.__setitem__(FLOORS, now_ns() + 10**9),
    "a notification relayed": lambda world: setattr(world.hot, "notified", now_ns() + 10**9),
    "a new epoch": lambda world: later(world, epoch=4),
    "a new schema": lambda world: later(world, schema=81),
    "a table changed": lambda world: later(world, slot=101),
    "another table changed": lambda world: later(world, other=101),
    "filled ahead of W": lambda world: later(world, w=99),
    "expired": lambda world: setattr(world.hot.clock, "now", 50.1),
}


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("shape", ["query", "unnamed"])
def test_reasons_to_refuse(spoil: str, shape: str) -> None:
    world = World()
    data, _ = SHAPES[shape]
    assert not World().refuses(data)
    SPOILS[spoil](world)
    assert world.refuses(data)
    assert world.hot.hits == 0


def test_eventual_needs_no_floor_but_keeps_the_bound() -> None:
    world = World()
    world.hot.eventual = True
    world.hot.words[FLOORS] = now_ns() + 10**12
    world.hot.notified = now_ns() + 10**12
    assert not world.refuses(Q)
    world.hot.max_staleness = -(10**9)
    assert world.refuses(Q)


GROUPS = {
    "unknown statement": bind(b"", b"s2") + execute(b"") + SYNC,
    "unnamed statement": bind(b"", b"") + execute(b"") + SYNC,
    "named portal": bind(b"p", b"s1") + execute(b"p") + SYNC,
    "named Parse": parse(b"s1", b"SELECT 1 FROM t") + SYNC,
    "Flush": NAMED + FLUSH,
    "Close inside": bind(b"", b"s1") + close(b"P", b"") + execute(b"") + SYNC,
    "other parameters": bind(b"", b"s1", [], [b"1"]) + execute(b"") + SYNC,
    "other result format": bind(b"", b"s1", [], [], [1]) + execute(b"") + SYNC,
    "other row limit": bind(b"", b"s1") + execute(b"", 1) + SYNC,
    "two runs": NAMED + NAMED + SYNC,
    "only Sync": SYNC,
    "Execute first": execute(b"") + SYNC,
    "Bind without a body": b"B\0\0\0\4" + SYNC,
    "Parse without a body": b"P\0\0\0\4" + SYNC,
    "Bind without an end of its names": b"B\0\0\0\6\0s" + SYNC,
    "Sync that is too long": NAMED + b"S\0\0\0\5x",
    "length zero": b"Q\0\0\0\0",
    "length 2**32-1": b"Q\xff\xff\xff\xff" + Q,
    "inner length zero": bind(b"", b"s1") + b"E\0\0\0\0" + SYNC,
    "Terminate": b"X\0\0\0\4",
}


@pytest.mark.parametrize("group", GROUPS)
def test_anything_unusual_is_left_alone(group: str) -> None:
    assert World().refuses(GROUPS[group])


def test_a_statement_proved_before_the_schema_changed_goes_upstream() -> None:
    world = World()
    world.hot.names[b"s1"] = (STATEMENT, 79)
    assert world.refuses(NAMED + SYNC)


def test_one_statement_of_two_names_is_one_entry() -> None:
    world = World()
    world.hot.names[b"another name"] = (STATEMENT, 80)
    assert world.ask(bind(b"", b"another name") + execute(b"") + SYNC)[1] == b"<named>" + Z


def test_in_a_transaction_only_without_a_row_limit() -> None:
    world = World()
    limited = UNNAMED[: -len(execute(b""))] + execute(b"", 5)
    world.entries[IDENT, limited] = entry(b"<limited>")
    assert world.ask(limited + SYNC)[1] == b"<limited>" + Z
    world.hot.in_txn, world.hot.ready = True, b"Z\0\0\0\5T"
    assert world.refuses(limited + SYNC)
    assert world.ask(UNNAMED + SYNC)[1] == b"<unnamed>Z\0\0\0\5T"


def test_what_the_client_believes_of_the_unnamed_statement_and_portal() -> None:
    world = World()
    hot = world.hot
    world.ask(NAMED + SYNC)
    assert (hot.kept, hot.portal) == (None, AS_UPSTREAM)
    world.ask(UNNAMED + SYNC)
    assert hot.kept is not None
    assert hot.kept.startswith(parse(b"", b"SELECT 1 FROM t"))
    hot.in_txn = True
    world.ask(NAMED + SYNC)
    assert hot.kept, "a named statement leaves it alone"
    assert hot.portal == FINISHED, "in a transaction the portal outlives Sync"
    world.ask(Q)
    assert (hot.kept, hot.portal) == (b"", GONE), "a Query destroys both"


def test_a_client_that_does_not_read_stops_the_hits() -> None:
    world = World()
    world.entries[IDENT, Q] = entry(b"x" * 70_000)

    def write(data: bytes) -> None:
        world.written.append(data)
        world.hot.paused = True

    world.hot.write = write
    assert serve(Q * 5, 0, world.hot) == len(Q)
    assert len(world.written) == 1
    world.hot.write = world.written.append
    assert serve(Q * 5, len(Q), world.hot) == 2 * len(Q), "still paused: one reply at a time"
    world.hot.paused = False
    assert serve(Q * 5, 2 * len(Q), world.hot) == 5 * len(Q)


@pytest.mark.parametrize(
    ("changed", "is_valid"),
    [
        ({}, True),
        ({"fill": 120}, True),
        ({"fill": 121}, False),  # ahead of W: what came in between is not in the ledger yet
        ({"fill": 99}, False),  # a slot is newer
        ({"slots": ()}, True),
        ({"slots": (OTHER,), "fill": 99}, True),
        ({"slots": (OTHER,), "fill": 98}, False),
        ({"analysis": 80}, True),
        ({"analysis": 79}, False),
        ({"epoch": 2}, False),
        ({"epoch": 4}, False),
        ({"expires": 40.0}, True),
        ({"expires": 39.9}, False),
    ],
)
def test_valid(changed: dict[str, object], is_valid: bool) -> None:
    hot = World().hot
    assert valid(entry(**changed), hot.words, 40.0, hot.head) is is_valid
