"""Several processes over one ledger, played message by message: what a worker may know, and when (coherence traps 1
and 18).

Each race has its sabotage: the rule is muted, and the harm shows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from crew import NEW, OPTIONS, Crew, T, U, entry_of, hits, session_of
from muted import kept_and_muted

from distribcache.clock import now_ns
from distribcache.coherence import mirror as mirror_module
from distribcache.coherence import sharing
from distribcache.coherence.channel import Channel, Message, State, Traffic, Want, open_channel, pair
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.ledger import (
    ALARMED,
    ALARMS,
    EPOCH,
    FLOORS,
    FRESH_AT,
    NEVER,
    UNKNOWN,
    Ledger,
    V,
    W,
    memory,
    next_epoch,
)
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.mirror import Mirror
from distribcache.coherence.validity import valid
from distribcache.entry import Entry, make_entry
from distribcache.errors import UpstreamError
from distribcache.proxy.figures import Figures, join, joined, left_behind


@pytest.fixture
async def crew(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crew]:
    async def nothing(self: DatabaseCoherence) -> None:
        """The test plays the stream."""

    monkeypatch.setattr(DatabaseCoherence, "start", nothing)
    monkeypatch.setattr(sharing, "_GATHER_S", 0)
    made = await Crew().begin()
    yield made
    made.close()


# -- W, V and fresh_at


async def test_w_v_and_fresh_at_move_by_messages_only(crew: Crew) -> None:
    """Coherence trap 18: nothing rests on the order in which stores are seen."""
    shop = crew.hands[0].shop
    before = list(shop.head[EPOCH : FRESH_AT + 1])
    crew.commit(1100, "t")
    asked = crew.probe(1100)
    assert list(shop.head[EPOCH : FRESH_AT + 1]) == before, "no message was delivered"
    assert shop.words[shop.slot_of(T)] == 1100, "slots are read where they are stored"
    assert shop.words[FRESH_AT] == asked
    await crew.settle()
    assert (shop.head[W], shop.head[V], shop.head[FRESH_AT]) == (1100, 1100, asked)


async def test_a_hit_ends_with_the_commit_and_freshness_comes_by_message(crew: Crew) -> None:
    shop = crew.hands[1].shop
    hot = session_of(shop, entry_of(shop, shop.slot_of(T)))
    other = session_of(shop, entry_of(shop, shop.slot_of(U)))
    assert hits(hot) and hits(other)
    crew.commit(1100, "t")
    assert not hits(hot), "the slot is shared"
    assert hits(other)
    shop.raise_floor(now_ns())
    crew.probe(1100)
    assert not hits(other), "who wrote here waits for the message that tells of the proof"
    await crew.settle()
    assert hits(other) and not hits(hot)


async def test_only_what_has_changed_is_told_and_only_the_last_of_it(crew: Crew) -> None:
    down = crew.hands[0].down
    for _ in range(50):
        crew.probe(1000)
    await crew.run()
    assert [type(each) for each in down.queue] == [State]
    await crew.settle()
    crew.coverage.publish()
    await crew.run()
    assert not down.queue


async def test_a_worker_that_does_not_read_gets_one_state_when_it_reads_again(crew: Crew) -> None:
    hand = crew.hands[0]
    hand.down.full = True
    for _ in range(50):
        crew.probe(1000)
        await crew.run()
    assert not hand.down.queue
    hand.down.full = False
    crew.main.flush(hand.peer)
    assert len(hand.down.queue) == 1
    hand.down.deliver()
    assert hand.shop.head[FRESH_AT] == crew.at


# -- floors, rule R4


@kept_and_muted
async def test_a_write_through_one_worker_is_read_through_another(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    first, second = crew.hands[0].shop, crew.hands[1].shop
    hot = session_of(second, entry_of(second, second.slot_of(T)))
    if muted:
        hot.floors = second.words[FLOORS + 1 : FLOORS + 2]  # its own alone
        monkeypatch.setattr(Mirror, "raise_floor", lambda self, now: None)
    assert hits(hot)
    first.raise_floor(now_ns())
    assert hits(hot) is muted, "an acknowledged write that the stream has not brought yet"
    assert (second.floor_ns > crew.at) is not muted


async def test_each_worker_raises_its_own_floor_and_the_highest_counts(crew: Crew) -> None:
    first, second = (hand.shop for hand in crew.hands)
    second.raise_floor(2000)
    first.raise_floor(1000)
    words = crew.coherence.words
    assert (words[FLOORS], words[FLOORS + 1]) == (1000, 2000)
    assert first.floor_ns == second.floor_ns == 2000
    second.raise_floor(500)
    assert second.floor_ns == 2000


async def test_a_hit_that_waits_is_woken_by_the_message(crew: Crew) -> None:
    hand = crew.hands[0]
    floor = now_ns()
    waiting = [hand.shop.wait_fresh(floor - 1, 60), hand.shop.wait_fresh(floor, 60)]
    await crew.run()
    assert [each for each in hand.up.queue if isinstance(each, Want)] == [Want(hand.shop.number, floor, 60)]
    crew.probe(1000)
    await crew.run()
    assert not any(each.done() for each in waiting)
    await crew.settle()
    assert [await each for each in waiting] == [True, True]
    assert await hand.shop.wait_fresh(now_ns() + 10**12, 0.001) is False


# -- the catalogue, rule R6


class Sequence:
    """What a DDL through worker 0 and a hit through worker 1 may do, in the worst order."""

    def __init__(self, crew: Crew, *, eventual: bool) -> None:
        self.crew = crew
        self.first, self.second = crew.hands[0].shop, crew.hands[1].shop
        self.hot = session_of(self.second, entry_of(self.second, self.second.slot_of(T)), eventual=eventual)

    async def play(self) -> bool:
        """A REVOKE ends; its alarm is not delivered to main; a probe that begins then is answered. Is there a hit?"""
        assert hits(self.hot)
        self.first.catalogue_alarm("ddl")  # and now its client is told
        stopped = not hits(self.hot)
        self.crew.probe(1000)
        await self.crew.run()
        self.crew.hands[1].down.deliver()
        return not stopped or hits(self.hot)


@kept_and_muted
@pytest.mark.parametrize("eventual", [False, True], ids=["session", "eventual"])
async def test_no_freshness_beyond_a_ddl_that_main_has_not_heard_of(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, muted: bool, eventual: bool
) -> None:
    """The race of R6: DDL through one worker, a probe that was asked after it, a hit through the other."""
    if muted:
        monkeypatch.setattr(Coverage, "hear", lambda self, reason="": False)
    assert await Sequence(crew, eventual=eventual).play() is muted


@kept_and_muted
async def test_an_eventual_session_hits_nothing_between_a_ddl_and_its_look(crew: Crew, muted: bool) -> None:
    sequence = Sequence(crew, eventual=True)
    if muted:
        sequence.hot.floors = None
    sequence.first.catalogue_alarm("ddl")
    assert hits(sequence.hot) is muted


async def test_hits_resume_when_main_has_looked_and_those_of_before_are_gone(crew: Crew) -> None:
    sequence = Sequence(crew, eventual=False)
    await sequence.play()
    assert crew.coherence.reason == "catalogue_alarm"
    await crew.settle()
    assert sequence.second.reason == "catalogue_alarm" and sequence.second.fill_point() is None
    crew.look(1100, t=T, u=U)
    crew.commit(1200, "u")
    crew.probe(1200)
    await crew.settle()
    assert sequence.second.serving
    sequence.hot.schema = sequence.second.schema_lsn()
    assert not hits(sequence.hot), "analysed before the change"
    assert hits(session_of(sequence.second, entry_of(sequence.second, sequence.second.slot_of(T))))


@kept_and_muted
async def test_nothing_is_filled_nor_believed_while_main_has_not_heard_of_an_alarm(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """A trigger made through one worker; a write through another that fires it is not one that changes nothing."""
    if muted:
        monkeypatch.setattr(Mirror, "_current", True)
    first, second = (hand.shop for hand in crew.hands)
    first.catalogue_alarm("ddl")
    assert (second.fill_point() is not None) is muted
    assert second.serving is muted
    assert second.reason == ("" if muted else "catalogue_alarm")
    await crew.settle()
    assert second.fill_point() is None and second.reason == "catalogue_alarm"
    crew.look(1100, t=T, u=U)
    crew.commit(1200, "u")
    crew.probe(1200)
    await crew.settle()
    assert second.serving and second.fill_point() == 1200


async def test_the_count_is_stored_before_the_clock_is_read(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the race above rests on: a question asked after the floor's moment finds the count."""
    shop = crew.hands[0].shop
    counts: list[int] = []

    def read() -> int:
        counts.append(shop.words[ALARMS])
        return now_ns()

    monkeypatch.setattr(mirror_module, "now_ns", read)
    shop.catalogue_alarm("ddl")
    assert counts == [1]
    assert shop.words[ALARMED] == shop.words[FLOORS] > 0


async def test_an_alarm_is_heard_once_whether_by_message_or_by_its_count(crew: Crew) -> None:
    crew.hands[0].shop.catalogue_alarm("ddl")
    crew.probe(1000)
    await crew.settle()
    assert crew.coherence.counters.alarms_by["ddl"] == 1
    crew.hands[0].shop.catalogue_alarm("ddl")
    crew.hands[1].shop.catalogue_alarm("ddl")
    await crew.settle()
    assert crew.coherence.counters.alarms_by["ddl"] == 2, "two counts, one look at them"


async def test_a_change_of_roles_concerns_databases_that_are_not_in_use_here(crew: Crew) -> None:
    crew.hands[1].mirrors.acquire("other")
    await crew.settle()
    crew.hands[0].mirrors.catalogue_alarm("ddl")
    await crew.settle()
    by_name = {each.name: each for each in crew.main}
    assert set(by_name) == {"shop", "other"}
    for each in by_name.values():
        assert each.words[ALARMS] == 1


# -- slots and column sets


async def test_a_relation_that_was_not_told_of_satisfies_no_entry(crew: Crew) -> None:
    shop = crew.hands[0].shop
    assert shop.slot_of(T) == crew.coherence.slot_of(T)
    assert shop.slot_of(NEW) == UNKNOWN and shop.words[UNKNOWN] == NEVER
    crew.coherence.catalogue_alarm("ddl")
    crew.look(1000, t=T, u=U, new=NEW)
    crew.hands[0].down.deliver()
    assert shop.slot_of(NEW) == UNKNOWN, "the look was not told of yet"
    await crew.settle()
    assert shop.slot_of(NEW) == crew.coherence.slot_of(NEW) != UNKNOWN


async def test_slots_are_told_before_the_state_that_makes_them_count(crew: Crew) -> None:
    crew.coherence.catalogue_alarm("ddl")
    crew.look(1000, t=T, u=U, new=NEW)
    await crew.run()
    kinds = [each["kind"] if isinstance(each, dict) else "state" for each in crew.hands[0].down.queue]
    assert kinds.index("slots") < kinds.index("state")


@kept_and_muted
async def test_a_column_set_counts_only_when_main_has_registered_it(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 1, from another process."""
    hand, shop, set_of = crew.hands[0], crew.hands[0].shop, ("id",)
    if muted:  # as if a number of one's own would do
        monkeypatch.setattr(Mirror, "watch", lambda self, oid, columns: 300)
    wildcard = shop.watch(T, set_of)
    row = shop.row_slot(T, set_of, (b"1",))
    answer = entry_of(shop, row, wildcard) if wildcard else entry_of(shop, shop.slot_of(T))
    plan = crew.coverage.watching.plan_of(b"public.t")
    assert plan is None, "nobody watches rows of t yet"
    crew.commit(1100, "t")
    assert valid(answer, shop.words, 1.0, shop.head) is muted
    if muted:
        return
    await crew.settle()
    wildcard = shop.watch(T, set_of)
    assert wildcard == crew.coherence.watch(T, set_of) and not hand.up.queue
    assert shop.words[wildcard] == 1100, "an answer of before the registration is not pinned by it"
    plan = crew.coverage.watching.plan_of(b"public.t")
    assert plan is not None
    crew.probe(1100)
    await crew.settle()
    pinned, other = entry_of(shop, row, wildcard), entry_of(shop, shop.row_slot(T, set_of, (b"2",)), wildcard)
    touched: set[int] = set()
    plan.touch((None, {b"id": b"1"}, False), touched)
    crew.commit(1200, "t", slots=frozenset(touched))
    assert not valid(pinned, shop.words, 1.0, shop.head)
    assert valid(other, shop.words, 1.0, shop.head)


async def test_a_column_set_is_asked_for_once_and_told_to_all(crew: Crew) -> None:
    first, second = crew.hands
    for _ in range(3):
        assert first.shop.watch(T, ("id",)) == 0
    assert [each for each in first.up.queue if isinstance(each, dict) and each["kind"] == "watch"]
    assert len(first.up.queue) == 1
    await crew.settle()
    assert second.shop.watch(T, ("id",)) == first.shop.watch(T, ("id",)) != 0
    assert not second.up.queue


async def test_no_room_for_a_column_set_is_remembered(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatabaseCoherence, "watch", lambda self, oid, columns: 0)
    hand = crew.hands[0]
    hand.shop.watch(T, ("id",))
    await crew.settle()
    assert hand.shop.watch(T, ("id",)) == 0 and not hand.up.queue


# -- epochs, rule R8


async def test_the_end_of_an_epoch_is_seen_at_once_and_no_fill_is_dated_across_it(crew: Crew) -> None:
    shop = crew.hands[0].shop
    hot = session_of(shop, entry_of(shop, shop.slot_of(T)))
    heard: list[int] = []
    shop.epoch_listeners.append(heard.append)
    crew.coverage.end()
    assert not hits(hot) and shop.fill_point() is None and shop.visible() == 0
    assert shop.epoch != shop.words[EPOCH] == crew.coherence.epoch
    crew.coverage.begin(900)  # the log went back
    crew.probe(900)
    crew.look(900, t=T, u=U)
    assert shop.fill_point() is None, "V of the old epoch is no date in the new one"
    await crew.settle()
    assert heard == [crew.coherence.epoch] and shop.epoch == crew.coherence.epoch
    assert shop.fill_point() == 900 and not hits(hot)


class Racing:
    """A ledger whose epoch ends, and is followed by another, between two loads of whoever looks at an entry."""

    def __init__(self, ledger: Ledger, at: int) -> None:
        self.ledger = ledger
        self.at = at

    def __getitem__(self, slot: int) -> int:
        if not self.at:
            self.ledger.renew(next_epoch())
            self.ledger.open(10)
            self.ledger.words[W] = 10_000
        self.at -= 1
        return self.ledger.words[slot]


def _epoch_first(entry: Entry, words: Any, now: float, head: Any = None) -> bool:
    if entry[4] != words[EPOCH]:
        return False
    return all(words[slot] <= entry[1] for slot in entry[3])


@kept_and_muted
def test_rows_that_are_cleared_while_they_are_looked_at_make_nothing_valid(muted: bool) -> None:
    """A dead entry whose row slot is cleared under its reader: the new epoch is seen behind it."""
    look = _epoch_first if muted else valid
    seen = []
    for at in range(8):
        fd = memory()
        ledger = Ledger(64, 1 << 12, fd=fd)
        os.close(fd)
        ledger.renew(epoch := next_epoch())
        ledger.open(10)
        row, table = ledger.row_slot(T, ("id",), (b"1",)), ledger.slot_of(T, 10)
        ledger.words[W] = 1000
        ledger.bump(row, 900)
        dead = make_entry(
            b"", fill=500, analysis=500, slots=(table, row), epoch=epoch, expires=9.0, cost_ns=1, at_ns=1, tables="t",
            workload="oltp",
        )  # fmt: skip
        head = memoryview(bytearray(64)).cast("Q")
        head[W] = 1000
        seen.append(look(dead, cast("memoryview", Racing(ledger, at)), 1.0, head))
    assert any(seen) is muted


def test_epochs_never_come_twice_also_not_in_another_process() -> None:
    before = now_ns()
    made = [next_epoch() for _ in range(1000)]
    assert len(set(made)) == 1000 and made == sorted(made)
    assert made[0] >= before


# -- the shared ledger


def test_a_ledger_in_shared_memory_is_one() -> None:
    fd = memory()
    try:
        writer = Ledger(64, 1 << 12, fd=fd)
        reader = Ledger(64, 1 << 12, fd=fd, writer=False)
    finally:
        os.close(fd)
    slot, wildcard = writer.slot_of(T, 7), writer.wildcard_of(T, ("id",), 8)
    row = writer.row_slot(T, ("id",), (b"1",))
    writer.bump(row, 9)
    reader.learn(writer.slots())
    for each in writer.wildcards():
        reader.learn_wildcard(*each)
    assert (reader.known(T), reader.known_wildcard(T, ("id",))) == (slot, wildcard)
    assert [reader.words[each] for each in (slot, wildcard, row)] == [7, 8, 9]
    assert reader.tags_of((slot, wildcard, row)) == writer.tags_of((slot, wildcard, row))
    assert reader.slots_for(writer.tags_of((slot, wildcard, row)) or (), reader.known) == (slot, wildcard, row)
    writer.renew(next_epoch())
    assert reader.words[wildcard] == reader.words[slot] == NEVER
    assert reader.words[row] == 9, "cleared behind the end of the old epoch, not with it"
    writer.open(20)
    assert reader.words[row] == 0


def test_a_ledger_of_another_format_is_refused() -> None:
    fd = memory()
    try:
        Ledger(64, 1 << 12, fd=fd).words[0] += 1
        with pytest.raises(ValueError, match="format"):
            Ledger(64, 1 << 12, fd=fd, writer=False)
    finally:
        os.close(fd)


# -- lives


async def test_a_worker_whose_channel_has_ended_serves_nothing_more(crew: Crew) -> None:
    hand = crew.hands[0]
    hot = session_of(hand.shop, entry_of(hand.shop, hand.shop.slot_of(T)))
    waiting = hand.shop.wait_fresh(now_ns() + 10**12, 60)
    hand.mirrors.lost()
    assert not hits(hot) and not hand.shop.serving and hand.shop.fill_point() is None
    assert await waiting is False


async def test_what_a_dead_worker_held_is_let_go_and_its_last_words_are_feared(crew: Crew) -> None:
    first, second = crew.hands
    hot = session_of(second.shop, entry_of(second.shop, second.shop.slot_of(T)))
    first.mirrors.acquire("shop")
    leaving = asyncio.ensure_future(first.mirrors.close_for_ddl(["elsewhere"]))
    await crew.settle()
    assert crew.main._ddl == {"elsewhere": 1} and crew.main._clients["shop"] == 2
    await leaving
    before = now_ns()
    crew.main.part(first.peer)
    assert crew.coherence.counters.last_alarm == "session_lost"
    assert crew.coherence.words[FLOORS] >= before and not hits(hot)
    assert not crew.main._ddl and crew.main._clients["shop"] == 1
    crew.main.part(first.peer)
    assert crew.main._clients["shop"] == 1


async def test_a_database_is_left_when_every_worker_has_left_it(crew: Crew) -> None:
    first, second = crew.hands
    leaving = asyncio.ensure_future(first.mirrors.close_for_ddl(["shop"]))
    await crew.run()
    first.up.deliver()  # the question
    await crew.run()
    first.down.deliver()
    await crew.run()
    first.up.deliver()  # left, says the first
    await crew.run()
    first.down.deliver()
    await crew.run()
    assert not leaving.done(), "the second may still have a connection there"
    await crew.settle()
    await leaving
    for hand in crew.hands:
        with pytest.raises(UpstreamError):
            await hand.shop.ask("SELECT 1")
    first.mirrors.reopen(["shop"])
    await crew.settle()
    assert not second.shop._left


async def test_a_worker_that_hangs_holds_up_no_ddl_for_ever(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections end with it: main gives it up, and whoever keeps it alive kills it."""
    timeout, limits = asyncio.timeout, list[asyncio.Timeout]()

    def limited(seconds: float) -> asyncio.Timeout:
        """Its time is over when the test says so."""
        assert seconds == sharing._PATIENCE_S
        limits.append(timeout(None))
        return limits[-1]

    monkeypatch.setattr(asyncio, "timeout", limited)
    first, second = crew.hands
    leaving = asyncio.ensure_future(first.mirrors.close_for_ddl(["shop"]))
    while not limits or first.peer.owes:
        await crew.run()
        first.up.deliver()
        first.down.deliver()
    limits[0].reschedule(asyncio.get_running_loop().time())
    while not second.down.ended:
        await crew.run()
    assert not leaving.done() and not first.down.ended
    crew.main.part(second.peer)
    await crew.settle()
    await leaving


async def test_a_database_is_followed_when_every_worker_can_raise_an_alarm_there(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    async def start(self: DatabaseCoherence) -> None:
        started.append(self.name)

    monkeypatch.setattr(DatabaseCoherence, "start", start)
    first, second = crew.hands
    first.mirrors.acquire("other")
    await crew.run()
    first.up.deliver()
    await crew.run()
    first.down.deliver()
    first.up.deliver()
    await crew.run()
    assert not started, "the second has not mapped its ledger"
    second.down.deliver()
    second.up.deliver()
    await crew.run()
    assert started == ["other"]


async def test_a_database_that_is_opened_again_has_a_ledger_of_its_own(crew: Crew) -> None:
    hand = crew.hands[0]
    mirrored = hand.mirrors.acquire("other")
    await crew.settle()
    before = mirrored.words
    hand.mirrors.release("other")
    await crew.settle()
    for timer in crew.main._linger.values():
        timer.cancel()
    crew.main._leave("other")
    again = hand.mirrors.acquire("other")
    assert again is mirrored
    await crew.settle()
    assert mirrored.words is not before
    assert cast("Mirror", mirrored).number == max(crew.main._shared)


async def test_too_many_databases_are_said_to_every_worker(crew: Crew) -> None:
    crew.main._options = type(OPTIONS)(tables=64, max_databases=1)
    for hand in crew.hands:
        found = hand.mirrors.acquire("other")
        await crew.settle()
        assert (found.serving, found.reason, found.mode) == (False, "too_many_databases", "off")


async def test_templates_need_no_main(crew: Crew) -> None:
    hand = crew.hands[0]
    assert hand.mirrors.acquire("template1").reason == "template_database"
    hand.mirrors.release("template1")
    assert not hand.up.queue


async def test_where_only_time_ends_an_entry_others_hear_of_ddl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crew.OPTIONS", type(OPTIONS)(tables=64, invalidation="ttl"))
    crew = Crew()
    try:
        for hand in crew.hands:
            crew.main.join(hand.peer)
        first, second = (hand.mirrors.acquire("shop") for hand in crew.hands)
        await crew.settle()
        epochs = first.epoch, second.epoch
        first.catalogue_alarm("ddl")
        await crew.settle()
        assert first.epoch > epochs[0] and second.epoch > epochs[1]
    finally:
        for hand in crew.hands:
            crew.main.part(hand.peer)
        await crew.main.stop()
        crew.close()


# -- the channel


async def test_messages_arrive_whole_and_in_order() -> None:
    heard: list[Message] = []
    ended: list[bool] = []
    ours, theirs = pair()
    channel = Channel(heard.append, lambda: ended.append(True))
    await open_channel(ours, channel)
    other = Channel(lambda _: None, lambda: None)
    await open_channel(theirs, other)
    sent: list[Message] = [
        State(7, True, False, 2**64 - 1, 1, 2, 3, 4, 5, 6), Want(7, 2**63, 0.005), Traffic(7),
        {"kind": "facts", "name": "caf\u00e9 \udc80", "text": "x" * 300_000},
    ]  # fmt: skip
    for each in sent:
        other.send(each)
    while len(heard) < len(sent):
        await asyncio.sleep(0.001)
    assert heard == sent
    other.close()
    while not ended:
        await asyncio.sleep(0.001)
    assert channel.ended
    channel.send(Traffic(1))  # into nothing


async def test_a_length_that_cannot_be_ends_the_channel() -> None:
    ended: list[bool] = []
    ours, theirs = pair()
    await open_channel(ours, Channel(lambda _: None, lambda: ended.append(True)))
    theirs.send(b"\xff\xff\xff\xff\x01")
    while not ended:
        await asyncio.sleep(0.001)
    theirs.close()


# -- figures


def test_counters_are_added_and_greatest_values_stay() -> None:
    one = Figures({"hits_total": 3, "oldest_answer_ms": 7.0, "uptime_seconds": 5, "sessions": 2})
    other = Figures({"hits_total": 4, "oldest_answer_ms": 2.0, "uptime_seconds": 9, "sessions": 1})
    whole = join([one, other]).statistics
    assert whole == {"hits_total": 7, "oldest_answer_ms": 7.0, "uptime_seconds": 9, "sessions": 3}
    assert left_behind(one).statistics == {"hits_total": 3, "oldest_answer_ms": 7.0}
    assert Figures.read(one.plain()) == one


def test_tables_are_joined_row_by_row() -> None:
    columns = ("workload", "entries", "bytes", "average_cost_ms")
    first = (columns, [("oltp", "1", "10", "2.000")])
    second = (columns, [("oltp", "3", "30", "6.000"), ("olap", "1", "5", "9.000")])
    assert joined("queries", [first, second])[1] == [("oltp", "4", "40", "5.000"), ("olap", "1", "5", "9.000")]
    stats = ("name", "value")
    one, other = (stats, [("hits_total", "1"), ("oldest_answer_ms", "4")]), (stats, [("oldest_answer_ms", "3")])
    assert joined("stats", [one, other])[1] == [("hits_total", "1"), ("oldest_answer_ms", "4")]
