"""Everything that can happen to L3: the caller sees misses, soon, and hits again when it is over."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from fix_valkey import (
    MakeTier,
    Script,
    client,
    cluster_of,
    digest,
    filled,
    hits,
    on_loops,
    payload,
    record,
    until_true,
)  # fmt: skip
from muted import kept_and_muted
from relay import Relay

from distribcache.cli.valkey import Valkey
from distribcache.tiers import breaker as breaker_module
from distribcache.tiers import link as link_module
from distribcache.tiers import mesh as mesh_module
from distribcache.tiers.connection import BULK, Connection, Lost
from distribcache.tiers.distributed import DistributedCache
from distribcache.tiers.resp import command

MakeValkey = Callable[..., Valkey]
QUICK = {"deadline": 0.3, "connect_timeout": 2.0, "breaker_failures": 4, "breaker_pause": 0.1}
ANSWERING = {**QUICK, "deadline": 5.0}
"""For servers that answer: on a busy machine they may take longer than one that hangs is waited for."""
faults = on_loops("uvloop")


def failures(tier: DistributedCache) -> dict[str, int]:
    return dict(tier.stats().failures)


async def all_hit(tier: DistributedCache, count: int = 50, size: int = 200) -> bool:
    return await hits(tier, count, size) == count


async def refilled(tier: DistributedCache, count: int = 50) -> bool:
    """Hits after the memory of the server was lost."""
    for number in range(count):
        tier.put(digest(number), record(payload(number)))
    await tier.flush(60.0)
    return await all_hit(tier, count)


async def raw(tier: DistributedCache, key: bytes) -> object:
    """What our connection answers, without the proof by which the codec would notice another's answer."""
    assert tier._mesh is not None
    peer = tier._mesh.owners[0]
    if peer is None or peer.reads.connection is None:
        return Lost.ENDED
    return await peer.reads.connection.ask(command(b"GETRANGE", key, b"0", b"100000"), BULK)


async def warmed(tier: DistributedCache, count: int = 50) -> dict[str, int]:
    """Everything is there and was found in time, however busy the machine; what had failed until then."""
    await until_true(lambda: refilled(tier, count), lambda: str(tier.stats()))
    return failures(tier)


def planted(server: Valkey, count: int = 200, size: int = 2000) -> dict[bytes, bytes]:
    """Values to be read with ``raw``, of different lengths."""
    made = {b"dc:default:%032d" % number: payload(number, size + 13 * number) for number in range(count)}
    with client(server) as admin:
        admin.mset(made)
    return made


# -- servers that go away ---------------------------------------------------------------------------------------------


@faults
async def test_a_server_that_is_killed_and_comes_back(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    lines: list[str] = []
    tier = await make_tier(server, log=lines, **ANSWERING)
    await filled(tier)
    for _ in range(2):
        waiting = [asyncio.ensure_future(tier.get(digest(number))) for number in range(50)]
        server.stop()
        await asyncio.gather(*waiting)
        await until_true(lambda: tier.stats().reason, "it is gone")
        assert await hits(tier) == 0
        assert not tier.put(digest(1), record())
        server.start()
        await until_true(lambda: refilled(tier), lambda: str(tier.stats()))
    assert set(failures(tier)) <= {"off", "lost", "put_lost", "put_off"}
    assert [line for line in lines if line == "L3 on"] == ["L3 on"] * 3
    assert len(lines) <= 12, lines


@kept_and_muted
@faults
async def test_a_server_that_hangs_costs_a_few_deadlines(
    make_tier: MakeTier, make_valkey: MakeValkey, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muted, without a breaker: each look-up waits."""
    server = make_valkey()
    if muted:
        monkeypatch.setattr(breaker_module.Breaker, "failed", lambda self: False)
    tier = await make_tier(server, **{**QUICK, "deadline": 0.15})
    before = (await warmed(tier)).get("deadline", 0)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            assert await tier.get(digest(1)) is None
        late = failures(tier)["deadline"] - before
        assert late == (20 if muted else 4), failures(tier)
        assert muted or tier.stats().reason in ("slow", "timeout")
        times = []
        for number in range(2000):
            began = time.perf_counter()
            if not muted:
                assert await tier.get(digest(number)) is None
            times.append(time.perf_counter() - began)
        assert statistics.median(times) < 1e-3
        assert muted or failures(tier)["deadline"] == before + 4
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))


@faults
async def test_the_deadline_holds_from_the_first_question_on(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    """Connecting may take longer than a question; that must not become the deadline of the first ones."""
    server = make_valkey()
    tier = await make_tier(server, **{**QUICK, "deadline": 0.1, "connect_timeout": 30.0})
    os.kill(server.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert await tier.get(digest(1)) is None
        assert time.monotonic() - began < 15.0
        assert failures(tier) == {"deadline": 1}
    finally:
        os.kill(server.pid, signal.SIGCONT)


@kept_and_muted
@faults
async def test_a_line_that_is_full_is_no_server_that_is_sick(
    make_tier: MakeTier, make_valkey: MakeValkey, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many large replies at once: those who wait for the last ones miss. Muted, each of them counts as a failure."""
    if muted:
        monkeypatch.setattr(Connection, "_is_answering", lambda self, now: False)
    server = make_valkey()
    with Relay(server.port) as relay:
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **{**QUICK, "deadline": 2.5})
        for number in range(60):
            tier.put(digest(number), record(os.urandom(200_000)))
        assert await tier.flush(60.0)
        relay.delay = 0.05
        found = await asyncio.gather(*(tier.get(digest(number)) for number in range(60)))
        assert 0 < sum(each is not None for each in found) < 60, failures(tier)
        assert (failures(tier).get("lost", 0) > 0) is muted, failures(tier)
        assert (tier.stats().reason == "slow") is muted
        relay.delay = 0.0

        async def back() -> bool:
            return await tier.get(digest(1)) is not None

        await until_true(back, lambda: str(tier.stats()))


@kept_and_muted
@faults
async def test_large_entries_on_their_way_out_make_no_question_late(
    make_tier: MakeTier, make_valkey: MakeValkey, muted: bool
) -> None:
    """Muted, what is written goes the way of the questions."""
    server = make_valkey()
    with Relay(server.port) as relay:
        settings = {**QUICK, "deadline": 3.0, "connect_timeout": 20.0}
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **settings)
        await filled(tier, 5)
        assert tier._mesh is not None
        (peer,) = tier._mesh.peers.values()
        own = peer.writes
        if muted:
            peer.writes = peer.reads
        relay.delay = 0.15
        for number in range(100, 116):
            assert tier.put(digest(number), record(os.urandom(1 << 20)))
        await until_true(lambda: tier._unanswered > 3 << 20, "it is on its way")
        found = await tier.get(digest(1))
        assert (found is not None) is not muted, failures(tier)
        relay.delay = 0.0
        peer.writes = own
        await tier.flush(60.0)


@faults
async def test_many_who_wait_for_a_hung_server_wait_once(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    """Those who asked at the same time are released together, by the first few that are late."""
    server = make_valkey()
    tier = await make_tier(server, **QUICK)
    before = await warmed(tier)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert await asyncio.gather(*(tier.get(digest(number)) for number in range(200))) == [None] * 200
        counted = failures(tier)
        assert counted["deadline"] - before.get("deadline", 0) == 4
        assert counted["lost"] - before.get("lost", 0) == 196
        assert await tier.lease(digest(1), 5.0), "without an answer everybody asks"
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))


@faults
async def test_a_server_that_pauses_its_clients(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    tier = await make_tier(server, **QUICK)
    before = await warmed(tier)
    with client(server) as admin:
        admin.client_pause(5000)
    for _ in range(10):
        assert await tier.get(digest(1)) is None
    assert failures(tier)["deadline"] - before.get("deadline", 0) == 4
    await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))


@faults
async def test_what_cannot_be_written_is_bounded(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    tier = await make_tier(server, **QUICK)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for number in range(400):
            tier.put(digest(1000 + number), record(os.urandom(1 << 19)))
            await asyncio.sleep(0)
            assert tier.stats().queued_bytes <= 32 << 20
        assert tier.stats().refusals["queue_full"] > 0
        await until_true(lambda: tier.stats().queued_bytes == 0, "the writer hangs as well")
        assert tier._unanswered == 0
    finally:
        os.kill(server.pid, signal.SIGCONT)
    await until_true(lambda: refilled(tier), lambda: str(tier.stats()))


@faults
async def test_a_server_that_refuses_connections(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    with Relay(server.port) as relay:
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **QUICK)
        await filled(tier)
        relay.refusing = True
        relay.cut()
        await until_true(lambda: tier.stats().reason, "it is cut off")
        assert await hits(tier) == 0
        relay.refusing = False
        await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))


@faults
async def test_a_server_that_is_slower_than_the_deadline_is_not_asked(
    make_tier: MakeTier, make_valkey: MakeValkey
) -> None:
    server = make_valkey()
    with Relay(server.port) as relay:
        relay.delay = 0.4
        settings = {**QUICK, "deadline": 0.2, "connect_timeout": 6.0}
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **settings)

        async def off() -> bool:
            """This loop may have been held up so long that nobody can say who was late."""
            assert await tier.get(digest(1)) is None
            return tier.stats().reason in ("slow", "connecting")

        await until_true(off, lambda: str(tier.stats()))
        before = failures(tier)
        for _ in range(50):
            assert await tier.get(digest(1)) is None
        assert failures(tier) == {**before, "off": before.get("off", 0) + 50}
        relay.delay = 0.0
        await until_true(lambda: refilled(tier), lambda: str(tier.stats()))


@faults
async def test_the_servers_own_end_of_idle_connections(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    tier = await make_tier(server, **QUICK)
    await warmed(tier)
    for _ in range(5):
        with client(server) as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))


# -- replies and their order ------------------------------------------------------------------------------------------


@kept_and_muted
@faults
async def test_a_late_reply_is_nobody_elses(
    make_tier: MakeTier, make_valkey: MakeValkey, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muted, a question that was given up leaves the row."""
    server = make_valkey()
    values = planted(server)
    tier = await make_tier(server, **{**QUICK, "deadline": 0.2, "breaker_failures": 10**6})
    if muted:
        tick = Connection._tick

        def forgetful(self: Connection) -> None:
            tick(self)
            while self._late:
                self._waiting.popleft()
                self._late -= 1

        monkeypatch.setattr(Connection, "_tick", forgetful)
    keys = list(values)
    wrong = late = 0
    for turn in range(6):
        os.kill(server.pid, signal.SIGSTOP)
        got = await asyncio.gather(*(raw(tier, key) for key in keys[turn : turn + 30]))
        late += got.count(Lost.LATE)
        os.kill(server.pid, signal.SIGCONT)
        for key in reversed(keys):  # the first of these was none of those
            answer = await raw(tier, key)
            wrong += answer not in (values[key], Lost.LATE, Lost.ENDED)
            if wrong:
                break
        await until_true(lambda: tier.stats().healthy_peers, "it comes back")
    assert late > 0
    assert (wrong > 0) is muted


@faults
async def test_no_reply_shifts_while_connections_are_cut(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    """Replies arrive in small pieces and connections end in the middle of them."""
    server = make_valkey()
    values = planted(server)
    with Relay(server.port) as relay:
        relay.slice_bytes = 700
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **QUICK)
        tally = {"right": 0, "lost": 0, "wrong": 0}
        over = False

        async def ask(first: int) -> None:
            keys = list(values)[first:]
            while not over:
                for key in keys:
                    answer = await raw(tier, key)
                    kind = "lost" if isinstance(answer, Lost) else "right" if answer == values[key] else "wrong"
                    tally[kind] += 1
                    if kind == "lost":
                        await asyncio.sleep(0.005)

        tasks = [asyncio.ensure_future(ask(first)) for first in range(16)]
        for _ in range(15):
            before = tally["right"]
            await until_true(lambda before=before: tally["right"] > before + 50, lambda: str(tally))
            relay.cut()
        over = True
        await asyncio.gather(*tasks)
        assert tally["wrong"] == 0
        assert tally["lost"] > 0
        await until_true(lambda: raw(tier, next(iter(values))), "it comes back")


@faults
async def test_a_reply_that_ends_in_the_middle(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    with Relay(server.port) as relay:
        tier = await make_tier(f"127.0.0.1:{relay.port}", password=server.password, **{**QUICK, "deadline": 5.0})
        tier.put(digest(1), record(os.urandom(50_000)))
        assert await tier.flush(60.0)
        relay.slice_bytes, relay.delay = 100, 0.0
        relay.thawed.clear()
        question = asyncio.ensure_future(tier.get(digest(1)))
        await asyncio.sleep(0.05)
        relay.thawed.set()
        relay.cut()
        await question
        relay.slice_bytes = 0

        async def back() -> bool:
            got = await tier.get(digest(1))
            return got is not None and len(got.payload) == 50_000

        await until_true(back, lambda: str(tier.stats()))


GARBAGE = {
    "noise": b"\x00" + os.urandom(64),
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a number": b":1\r\n",
    "an array": b"*1\r\n$1\r\na\r\n",
    "two replies": b"$-1\r\n$-1\r\n",
    "a bulk beyond all bounds": b"$99999999999\r\n",
    "a bulk beyond the bound": b"$%d\r\n" % ((1 << 20) + (1 << 16) + 2) + b"x" * 100,
    "a bulk without end": b"$3\r\nabcde",
    "a negative bulk": b"$-7\r\n",
    "an array of many": b"*2000000000\r\n",
    "a line without end": b"+" * 9000,
    "RESP3": b"%1\r\n+a\r\n+b\r\n",
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
@faults
async def test_garbage_ends_the_connection_and_nothing_else(make_tier: MakeTier, sent: bytes) -> None:
    async with Script(lambda words: sent) as script:
        tier = await make_tier(script.address, **ANSWERING)
        for turn in range(3):
            await until_true(lambda: not tier.stats().reason, lambda: str(tier.stats()))
            assert await asyncio.gather(*(tier.get(digest(number)) for number in range(20))) == [None] * 20
            await until_true(lambda: tier.stats().reason, "it trusts garbage")
            assert tier.stats().reason == "malformed", turn
        assert tier.stats().hits == 0
        script.answer = lambda words: b"$0\r\n\r\n"
        await until_true(lambda: not tier.stats().reason, lambda: str(tier.stats()))


FOREIGN = {
    "a word": b"+OK\r\n",
    "a text": b"$5\r\nhello\r\n",
    "another type": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "an error without a word": b"-\r\n",
    "an error in no charset": b"-\xff\xfe \xff\r\n",
}


@pytest.mark.parametrize("sent", FOREIGN.values(), ids=FOREIGN)
@faults
async def test_foreign_values_are_misses_and_no_more(make_tier: MakeTier, sent: bytes) -> None:
    async with Script(lambda words: sent) as script:
        tier = await make_tier(script.address, **ANSWERING)
        opened = script.connections
        assert await asyncio.gather(*(tier.get(digest(number)) for number in range(20))) == [None] * 20
        assert sum(failures(tier).values()) == 20
        assert set(failures(tier)) <= {"foreign", "refused"}
        assert tier.stats().reason == ""
        assert script.connections == opened


@pytest.mark.parametrize("code", ["LOADING", "CLUSTERDOWN", "BUSY", "MASTERDOWN", "NOPERM"])
@faults
async def test_a_server_that_says_it_is_sick_is_left_alone(make_tier: MakeTier, code: str) -> None:
    async with Script(lambda words: f"-{code} whatever it says\r\n".encode()) as script:
        tier = await make_tier(script.address, **{**ANSWERING, "breaker_pause": 600.0})
        asked = len(script.commands)
        for _ in range(50):
            assert await tier.get(digest(1)) is None
        assert len([words for words in script.commands[asked:] if words[0] == b"GETRANGE"]) == 4
        assert failures(tier)["off"] == 46
        assert tier.stats().detail.endswith(f"it answers {code}")


@faults
async def test_a_server_that_says_nothing(make_tier: MakeTier) -> None:
    async with Script(lambda words: b"", everything=True) as script:
        began = time.monotonic()
        tier = await make_tier(script.address, **{**QUICK, "connect_timeout": 0.3})
        assert time.monotonic() - began < 20
        await until_true(lambda: tier.stats().reason == "timeout", lambda: str(tier.stats()))
        assert await tier.get(digest(1)) is None


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def breakable() -> Iterator[list[Valkey]]:
    with cluster_of() as servers:
        yield servers


@faults
async def test_a_primary_that_is_killed_is_replaced(make_tier: MakeTier, breakable: list[Valkey]) -> None:
    lines: list[str] = []
    # With three names, so that the one that is killed is not the only one to ask.
    tier = await make_tier(*breakable[3:], log=lines, **QUICK)
    await filled(tier, 100)
    for server in breakable[:3]:
        with client(server) as admin:
            admin.wait(1, 5000)
    over = False
    wrong = answered = 0

    async def ask(first: int) -> None:
        nonlocal wrong, answered
        number = first
        while not over:
            number = (number + 7) % 100
            got = await tier.get(digest(number))
            answered += got is not None
            wrong += got is not None and got.payload != payload(number)
            await asyncio.sleep(0.001)

    tasks = [asyncio.ensure_future(ask(first)) for first in range(8)]
    await until_true(lambda: answered > 200, "no hits")
    breakable[0].stop()
    await until_true(lambda: tier.stats().healthy_peers < 3 or tier.stats().note, "it is missed")
    # Entries of the dead server come back with the replica that takes its place.
    await until_true(lambda: all_hit(tier, 100), lambda: f"{tier.stats()} {lines}", 120.0)
    over = True
    await asyncio.gather(*tasks)
    assert wrong == 0
    assert tier.stats().healthy_peers == tier.stats().peers == 3
    assert f"{breakable[0].host}:{breakable[0].port}" not in {f"{a.host}:{a.port}" for a in tier._mesh.peers}  # type: ignore[union-attr]
    await filled(tier, 100)


@faults
async def test_a_cluster_that_hangs_as_a_whole(make_tier: MakeTier, breakable: list[Valkey]) -> None:
    tier = await make_tier(breakable[0], **QUICK)
    before = (await warmed(tier, 100)).get("deadline", 0)
    for server in breakable:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        assert await hits(tier, 100) == 0
        assert failures(tier)["deadline"] - before <= 3 * 4
        assert await hits(tier, 100) == 0
        assert failures(tier)["deadline"] - before <= 3 * 4
        assert tier.stats().reason != ""
    finally:
        for server in breakable:
            os.kill(server.pid, signal.SIGCONT)
    await until_true(lambda: all_hit(tier, 100), lambda: str(tier.stats()), 120.0)


@faults
async def test_a_slot_that_moved_is_found_again(make_tier: MakeTier, breakable: list[Valkey]) -> None:
    tier = await make_tier(breakable[0], **ANSWERING)
    await filled(tier, 30)
    await tier.discard(digest(0))
    assert tier._mesh is not None
    key = f"dc:default:{digest(0).hex()}"
    with client(breakable[0]) as admin:
        slot = admin.execute_command("CLUSTER KEYSLOT", key)
    source = next(at for at in range(3) if 16384 * at // 3 <= slot < 16384 * (at + 1) // 3)
    target = (source + 1) % 3
    with client(breakable[source]) as old, client(breakable[target]) as new:
        names = old.execute_command("CLUSTER MYID"), new.execute_command("CLUSTER MYID")
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
        # While it moves: ASK, a miss.
        assert await tier.get(digest(0)) is None
        assert failures(tier)["moved"] == 1
        new.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])
        old.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])

    async def back() -> bool:
        tier.put(digest(0), record(payload(0)))
        await tier.flush(60.0)
        return await tier.get(digest(0)) is not None

    await until_true(back, lambda: str(tier.stats()))
    assert await hits(tier, 30) == 30
    assert tier._mesh.owners[slot].address.port == breakable[target].port  # type: ignore[union-attr]


@kept_and_muted
@faults
async def test_a_storm_of_moved_is_no_storm_of_looks(
    make_tier: MakeTier, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends everybody elsewhere, to itself, for ever. Muted, each time is a reason to look."""
    if muted:
        monkeypatch.setattr(mesh_module, "_LEAST_GAP_S", 0.0)
        monkeypatch.setattr(mesh_module, "_MOST_GAP_S", 0.0)
    async with Script(lambda words: b"-MOVED 1 127.0.0.1:%d\r\n" % script.port) as script:
        tier = await make_tier(script.address, **ANSWERING)
        assert tier._mesh is not None
        began, looks, asked = time.monotonic(), tier._mesh.looks, 0
        while time.monotonic() - began < 1.5:
            assert await asyncio.gather(*(tier.get(digest(number)) for number in range(20))) == [None] * 20
            asked += 20
            await asyncio.sleep(0.001)
        assert failures(tier) == {"moved": asked}
        assert asked > 100
        assert (tier._mesh.looks - looks > 10) is muted
        assert tier.stats().reason == ""


def slots(*ranges: tuple[int, int, bytes, int]) -> bytes:
    return b"*%d\r\n" % len(ranges) + b"".join(
        b"*3\r\n:%d\r\n:%d\r\n*2\r\n$%d\r\n%b\r\n:%d\r\n" % (first, last, len(host), host, port)
        for first, last, host, port in ranges
    )


LIES = {
    "no list": b"$2\r\nhi\r\n",
    "an error": b"-ERR who knows\r\n",
    "no ranges": b"*0\r\n",
    "no range": b"*1\r\n:1\r\n",
    "slots that do not exist": slots((0, 16384, b"127.0.0.1", 1)),
    "negative slots": slots((-5, 10, b"127.0.0.1", 1)),
    "backwards": slots((10, 5, b"127.0.0.1", 1)),
    "two owners": slots((0, 10, b"127.0.0.1", 1), (5, 16, b"127.0.0.1", 2)),
    "port 0": slots((0, 16383, b"127.0.0.1", 0)),
    "a port beyond": slots((0, 16383, b"127.0.0.1", 70000)),
    "a host that is none": slots((0, 16383, b"127.0.0.1\r\nHello", 1)),
    "a host of bytes": slots((0, 16383, b"\xff\xfe", 1)),
    "a long host": slots((0, 16383, b"a" * 5000, 1)),
    "too deep": b"*1\r\n" * 10 + b":1\r\n",
    "too many": b"*1000000\r\n",
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
@faults
async def test_lies_about_the_cluster(make_tier: MakeTier, said: bytes) -> None:
    truth = False

    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"CLUSTER":
            return slots((0, 16383, b"", script.port)) if truth else said
        return b"$0\r\n\r\n" if words[0] == b"GETRANGE" else b"+OK\r\n"

    async with Script(answer, everything=True) as script:  # type: ignore[arg-type]
        tier = await make_tier(script.address, **{**QUICK, "connect_timeout": 0.5})
        assert await tier.get(digest(1)) is None
        known = ("malformed", "refused", "no_owner")
        await until_true(lambda: tier.stats().reason in known, lambda: str(tier.stats()))
        truth = True
        await until_true(lambda: not tier.stats().reason, lambda: str(tier.stats()))


@pytest.mark.parametrize("host", [b"a..b", b"a" * 70 + b".invalid", b"256.256.256.256", b":::", b"?", b"%"])
@faults
async def test_owners_that_cannot_exist(make_tier: MakeTier, host: bytes) -> None:
    """Names that no resolver takes are servers that are not there; the others are asked."""

    def answer(words: list[bytes]) -> bytes:
        if words[0] == b"CLUSTER":
            return slots((0, 99, host, 7000), (100, 16383, b"", script.port))
        return b"$0\r\n\r\n" if words[0] == b"GETRANGE" else b"+OK\r\n"

    async with Script(answer, everything=True) as script:  # type: ignore[arg-type]
        tier = await make_tier(script.address, **{**QUICK, "connect_timeout": 1.0})
        await until_true(lambda: tier.stats().healthy_peers == 1, lambda: str(tier.stats()))
        for number in range(300):
            assert await tier.get(digest(number)) is None
        assert tier.stats().reason == ""


# -- refusals ---------------------------------------------------------------------------------------------------------


@faults
async def test_a_full_server_still_answers(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey(options={"maxmemory": "4mb", "maxmemory-policy": "noeviction"})
    tier = await make_tier(server, **ANSWERING)
    await filled(tier, 10)
    for number in range(100, 200):
        tier.put(digest(number), record(os.urandom(100_000)))
    assert await tier.flush(60.0)
    assert failures(tier)["put_full"] > 50
    assert await hits(tier, 10) == 10
    assert tier.stats().reason == ""


@faults
async def test_a_server_that_evicts_is_an_ordinary_one(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey(maxmemory="8mb")
    tier = await make_tier(server, **ANSWERING)
    for number in range(300):
        tier.put(digest(number), record(os.urandom(100_000)))
        await asyncio.sleep(0.001)
    assert await tier.flush(60.0)
    assert failures(tier) == {}
    found = [await tier.get(digest(number)) for number in range(300)]
    assert 0 < sum(each is not None for each in found) < 300


@faults
async def test_a_wrong_password_is_said_and_not_repeated(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    lines: list[str] = []
    tier = await make_tier(server, log=lines, **{**QUICK, "password": "not this one"})
    await until_true(lambda: tier.stats().reason == "denied", lambda: str(tier.stats()))
    for _ in range(100):
        assert await tier.get(digest(1)) is None
        await asyncio.sleep(0.01)
    assert failures(tier) == {"off": 100}
    assert len(lines) == 1
    assert "WRONGPASS" in lines[0]
    assert "not this one" not in str(lines) + str(tier.stats()) + repr(tier._mesh._access)  # type: ignore[union-attr]
    with client(server) as admin:
        assert admin.info("stats")["total_connections_received"] < 30


@faults
async def test_a_user_who_loses_his_rights(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    with client(server) as admin:
        admin.execute_command("ACL SETUSER cache on >word ~dc:* +@all")
        tier = await make_tier(server, **ANSWERING, user="cache", password="word")
        await filled(tier)
        admin.execute_command("ACL SETUSER cache -@all")
        for _ in range(10):
            assert await tier.get(digest(1)) is None
        assert failures(tier)["denied"] == 4
        assert tier.stats().reason == "denied"
        admin.execute_command("ACL SETUSER cache +@all")
        await until_true(lambda: all_hit(tier), lambda: str(tier.stats()))
        admin.execute_command("ACL DELUSER cache")
        await until_true(lambda: tier.stats().reason == "denied", lambda: str(tier.stats()))


@kept_and_muted
@faults
async def test_tries_become_rare(make_tier: MakeTier, muted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that greets and then closes is tried less and less. Muted, at the same pace for ever."""
    if muted:
        monkeypatch.setattr(link_module, "LONGEST_PAUSES", 1)
    async with Script(lambda words: None) as script:
        lines: list[str] = []
        tier = await make_tier(script.address, log=lines, **{**QUICK, "breaker_pause": 0.05})
        end = time.monotonic() + 3.0

        def logins() -> int:
            return sum(words[0] == b"CLIENT" for words in script.commands)

        while time.monotonic() < end or len(lines) <= 4 or (muted and logins() <= 60):
            await tier.get(digest(1))
            await asyncio.sleep(0.002)
        assert (logins() > 60) is muted, logins()
        assert 4 < len(lines) <= 11, "nor is the log filled"
