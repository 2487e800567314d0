"""R3, R5 and R6 played step by step: the stream, the probe and the catalogue speak in every awkward order.

Each race has its sabotage: the rule is muted, and the harm shows.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from distribcache.catalog.generation import CatalogueView, Relation, Relations
from distribcache.coherence.alarms import Alarms
from distribcache.coherence.coverage import SETTLE_NS, Coverage
from distribcache.coherence.decoding import Commit
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.ledger import FRESH_AT, NEVER, SCHEMA, Ledger, V, W
from distribcache.coherence.visibility import Snapshot, Visibility

SECOND = 1_000_000_000
T, U = 16384, 16385
EMPTY = frozenset[bytes]()


def snapshot(xmax: int, *running: int) -> Snapshot:
    return Snapshot(min(running, default=xmax), xmax, frozenset(running))


def relations(**names: int) -> Relations:
    by_name = {f"public.{name}".encode(): (oid,) for name, oid in names.items()}
    by_oid = {oid: Relation(oid, "r", "d", False, ()) for oid in names.values()}
    return Relations(by_name, by_oid, frozenset(by_oid))


class Play:
    """A coverage that has started at 1000 with tables t and u, and a fill's view of it."""

    def __init__(self) -> None:
        self.coverage = Coverage(Ledger(64), Freshness(), full_poll_ns=SECOND, quick_poll_ns=SECOND // 4)
        self.generation = 0
        self.coverage.begin(1000)
        self.at = 100 * SECOND
        self.probe(1000, snapshot(500))
        self.look(snapshot(500), 1000, relations(t=T, u=U), changed=True)
        self.slots = {oid: self.coverage.slot_of(oid) for oid in (T, U)}
        assert self.coverage.serving

    def publish(self) -> None:
        self.coverage.publish()

    def commit(self, xid: int, lsn: int, *names: str, empty: bool = False, ddl: bool = False) -> None:
        encoded = frozenset(f"public.{name}".encode() for name in names)
        self.coverage.commit(Commit(xid, lsn, encoded, empty, ddl, len(names)))
        self.publish()

    def keepalive(self, lsn: int) -> None:
        self.coverage.position(lsn)
        self.publish()

    def probe(self, insert: int, seen: Snapshot) -> int:
        self.at += 1
        assert self.coverage.observe(self.at, 0, seen, insert)
        self.publish()
        return self.at

    def look(
        self,
        seen: Snapshot,
        insert: int,
        names: Relations | None = None,
        *,
        changed: bool,
        began_at: int | None = None,
        settled: bool = True,
    ) -> None:
        self.generation += changed
        mark = self.coverage.alarms.mark
        view = CatalogueView(seen, (self.generation,), (1,), names)
        self.coverage.reread(
            view, mark=mark, began_at=self.at if began_at is None else began_at, insert=insert, settled=settled
        )
        self.publish()

    def valid(self, fill: int, oids: Iterable[int] = (T,), analysis: int | None = None) -> bool:
        """R1 for an entry of the present epoch."""
        words = self.coverage.ledger.words
        dated = fill if analysis is None else analysis
        return words[SCHEMA] <= dated and fill <= words[W] and all(words[self.slots[oid]] <= fill for oid in oids)

    @property
    def fresh_at(self) -> int:
        return self.coverage.ledger.words[FRESH_AT]

    @property
    def fill(self) -> int:
        point = self.coverage.fill_point()
        assert point is not None
        return point


# -- R3: visibility


@pytest.mark.parametrize(
    ("xid", "seen", "expected"),
    [
        (499, snapshot(500), True),
        (500, snapshot(500), False),
        (501, snapshot(500), False),
        (498, snapshot(500, 498), False),
        (497, snapshot(500, 498), True),
        ((1 << 32) - 5, snapshot((7 << 32) + 3), True),  # the stream's 32 bits are of the epoch before
        ((1 << 32) - 5, snapshot((7 << 32) + 3, (7 << 32) - 5), False),
        (4, snapshot((7 << 32) + 3), False),  # xmax and above, in modular order
        (3, snapshot((7 << 32) + 10, (6 << 32) + 3), True),  # a running transaction of another epoch is another one
    ],
)
def test_a_snapshot_sees_a_commit_by_its_own_id_only(xid: int, seen: Snapshot, expected: bool) -> None:
    assert seen.sees(xid) is expected


def test_snapshots_are_read_as_printed() -> None:
    assert Snapshot.parse(b"10:20:10,14") == Snapshot(10, 20, frozenset({10, 14}))
    assert Snapshot.parse("10:10:") == Snapshot(10, 10, frozenset())
    for wrong in (b"", b"1:2", b"a:b:c"):
        with pytest.raises(ValueError):
            Snapshot.parse(wrong)


def test_a_received_commit_that_is_not_visible_holds_v_back() -> None:
    play = Play()
    play.commit(600, 2000, "t")
    words = play.coverage.ledger.words
    assert words[W] == 2000
    assert words[V] == 1999
    # Seen by no snapshot yet: it waits for a standby. Everything behind it stays unfilled too.
    play.probe(2000, snapshot(602, 600))
    play.commit(601, 2100, "u")
    play.probe(2100, snapshot(602, 600))
    assert words[V] == 1999
    assert not play.valid(play.fill, [T])
    play.probe(2100, snapshot(602))
    assert words[V] == 2100
    assert play.valid(play.fill, [T])


def test_without_the_rule_a_fill_before_visibility_is_valid_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage of R3: F = W. The commit is dealt with, the snapshot of the fill did not see it, no event follows."""
    monkeypatch.setattr(Visibility, "visible", lambda self, applied: applied)
    play = Play()
    play.commit(600, 2000, "t")
    fill = play.fill  # the snapshot of this fill shows the old row
    play.probe(2000, snapshot(601))
    assert play.valid(fill, [T])


def test_transactions_of_before_the_start_keep_v_undefined() -> None:
    coverage = Coverage(Ledger(64), Freshness(), full_poll_ns=SECOND, quick_poll_ns=SECOND)
    coverage.begin(1000)
    coverage.observe(1, 0, snapshot(500, 498, 499), 1000)
    coverage.publish()
    assert coverage.ledger.words[V] == 0
    assert coverage.fill_point() is None
    assert not coverage.wants_reread(0)  # one that began now could miss what 498 did, and nothing else would tell
    coverage.observe(2, 0, snapshot(510, 499), 1000)
    coverage.publish()
    assert coverage.ledger.words[V] == 0
    # The other one is received after all: from here on it is an ordinary commit, unproved at its own position.
    coverage.commit(Commit(499, 1500, EMPTY, False, False, 0))
    coverage.publish()
    assert coverage.visibility.defined
    assert coverage.ledger.words[V] == 1000  # W is still held by the alarm of the start
    assert coverage.wants_reread(0)


def test_without_s0_a_commit_of_before_the_start_is_missed() -> None:
    """Sabotage: the first snapshot is treated like any other."""
    visibility = Visibility()
    visibility.seen_start = True
    visibility.observe(snapshot(500, 498))
    assert visibility.visible(1000) == 1000


# -- R3 and R5: freshness


def test_fresh_at_is_the_time_of_asking_and_only_when_w_has_come() -> None:
    play = Play()
    before = play.fresh_at
    asked = play.probe(3000, snapshot(600))
    assert play.fresh_at == before
    play.keepalive(2999)
    assert play.fresh_at == before
    play.keepalive(3000)
    assert play.fresh_at == asked


def test_the_newest_position_reached_counts() -> None:
    play = Play()
    play.probe(2000, snapshot(600))
    second = play.probe(3000, snapshot(600))
    third = play.probe(9000, snapshot(600))
    play.keepalive(3500)
    assert play.fresh_at == second
    play.keepalive(9000)
    assert play.fresh_at == third


def test_an_answered_ping_proves_nothing_by_its_arrival() -> None:
    """Trap 2: the server answers from inside a large decode, with the position it had before."""
    play = Play()
    before = play.fresh_at
    play.probe(50_000_000, snapshot(700))  # a large transaction and a small one were acknowledged before this
    for _ in range(50):
        play.keepalive(1000)
    assert play.fresh_at == before
    play.commit(600, 40_000_000, "u")
    assert play.fresh_at == before
    play.commit(601, 50_000_000, "t")
    assert play.fresh_at > before
    assert not play.valid(1000, [T])


def test_the_queue_of_positions_is_bounded_and_still_moves() -> None:
    play = Play()
    play.commit(600, 2000, empty=True)  # unproved: an alarm holds W
    for step in range(1000):
        play.probe(3000 + step, snapshot(700, 600))
    assert len(play.coverage.pending) <= 256
    play.probe(9000, snapshot(700))
    play.look(snapshot(700), 9000, changed=False)
    play.keepalive(9000)
    assert play.coverage.serving
    assert play.fresh_at == play.at


def test_a_position_just_behind_a_page_header_is_reached_at_the_page() -> None:
    play = Play()
    boundary = 0x24000000
    asked = play.probe(boundary + 40, snapshot(600))
    play.keepalive(boundary)
    assert play.fresh_at == asked


def test_a_log_that_goes_back_ends_the_epoch() -> None:
    play = Play()
    assert play.coverage.observe(play.at + 1, 0, snapshot(600), 5000)
    assert not play.coverage.observe(play.at + 2, 0, snapshot(600), 4000)
    assert not play.coverage.observe(play.at + 3, 9000, snapshot(600), 8000)  # received more than there is
    epoch = play.coverage.epoch
    play.coverage.end()
    assert play.coverage.epoch != epoch
    assert play.fresh_at == 0
    assert not play.valid(1000)
    assert play.coverage.fill_point() is None


def test_the_end_of_the_link_stops_everything_and_a_new_one_starts_empty() -> None:
    play = Play()
    play.coverage.end()
    play.publish()
    assert not play.coverage.serving
    play.coverage.begin(500)
    play.publish()
    assert play.coverage.ledger.words[W] == 500
    assert play.coverage.fill_point() is None
    assert play.coverage.ledger.words[play.slots[T]] == NEVER


# -- R6: the catalogue


def test_an_empty_transaction_stops_hits_and_holds_w_until_it_was_looked_at() -> None:
    play = Play()
    words = play.coverage.ledger.words
    play.commit(600, 2000, empty=True)
    assert not play.coverage.serving
    assert (play.fresh_at, words[W]) == (0, 1000)
    assert play.coverage.fill_point() is None
    play.commit(601, 2500, "t")
    assert words[W] == 1000
    assert not play.coverage.wants_reread(0)  # not visible yet: a look could miss it
    play.probe(2500, snapshot(602))
    assert play.coverage.wants_reread(0)
    play.look(snapshot(602), 2500, changed=False)
    assert words[W] == 2500
    assert play.coverage.serving
    assert play.fresh_at == play.at


def test_a_look_that_did_not_see_the_transaction_does_not_answer_it() -> None:
    play = Play()
    play.commit(600, 2000, empty=True)
    play.look(snapshot(700, 600), 2000, changed=False)
    assert not play.coverage.serving
    play.probe(2000, snapshot(700))
    play.look(snapshot(700), 2000, changed=False)
    assert play.coverage.serving


def test_answering_an_alarm_that_was_not_seen_leaves_old_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: any look answers any alarm. The DDL becomes visible afterwards, and nothing ever says so."""
    monkeypatch.setattr(Alarms, "answer", lambda self, *_: [self.pending.pop(0) for _ in list(self.pending)])
    play = Play()
    fill = play.fill
    play.commit(600, 2000, empty=True)
    play.look(snapshot(700, 600), 2000, changed=False)
    play.probe(2000, snapshot(700))
    assert play.coverage.serving
    assert play.valid(fill)


def test_a_changed_catalogue_outdates_all_and_hits_resume_when_w_is_there() -> None:
    play = Play()
    fill = play.fill
    play.commit(600, 2000, empty=True)
    play.probe(2100, snapshot(601))
    play.look(snapshot(601), 2200, relations(t=T, u=U), changed=True)
    words = play.coverage.ledger.words
    assert words[SCHEMA] == 2200
    assert not play.coverage.serving
    play.keepalive(2200)
    assert play.coverage.serving
    assert not play.valid(fill)
    assert not play.valid(2200, analysis=fill)  # a memoised analysis of before
    assert not play.valid(fill, analysis=2200)
    assert play.valid(play.fill)


def test_after_a_change_that_is_not_settled_everything_is_outdated_again_one_second_later() -> None:
    """The server publishes a commit before its invalidations: a fill in between may use the old definition."""
    play = Play()
    play.commit(600, 2000, empty=True)
    play.probe(2000, snapshot(601))
    play.look(snapshot(601), 2000, relations(t=T, u=U), changed=True, settled=False)
    fill = play.fill
    assert play.valid(fill)
    assert not play.coverage.wants_reread(play.at + SETTLE_NS - 1)
    later = play.at + SETTLE_NS
    assert play.coverage.wants_reread(later)
    play.look(snapshot(601), 2300, changed=False, began_at=later, settled=False)
    play.keepalive(2300)
    assert not play.valid(fill)
    fill = play.fill
    assert play.coverage.wants_reread(later + SETTLE_NS), "still not settled: a process of the server was stopped"
    play.look(snapshot(601), 2400, changed=False, began_at=later + SETTLE_NS)
    play.keepalive(2400)
    assert not play.valid(fill)
    assert not play.coverage.wants_reread(later + 3 * SETTLE_NS)


def test_a_change_that_is_settled_outdates_once() -> None:
    play = Play()
    play.commit(600, 2000, empty=True)
    play.probe(2000, snapshot(601))
    play.look(snapshot(601), 2000, relations(t=T, u=U), changed=True)
    fill = play.fill
    assert not play.coverage.wants_reread(play.at + SETTLE_NS)
    play.look(snapshot(601), 2300, changed=False, began_at=play.at + SETTLE_NS)
    assert play.valid(fill)


def test_behind_an_alarm_of_the_proxy_there_is_a_second_look_that_outdates_nothing_by_itself() -> None:
    play = Play()
    play.coverage.catalogue_alarm("ddl")
    play.look(snapshot(601), 2000, changed=True)
    play.keepalive(2000)
    fill = play.fill
    later = play.at + SETTLE_NS
    assert play.coverage.wants_reread(later)
    play.look(snapshot(601), 2300, changed=False, began_at=later)
    assert play.valid(fill)
    assert not play.coverage.wants_reread(later + SETTLE_NS)


def test_a_change_that_nobody_announced_stops_hits_and_is_answered_by_the_look_that_saw_it() -> None:
    play = Play()
    mark = play.coverage.alarms.mark
    own = play.coverage.catalogue_alarm("changed_poll")
    assert not play.coverage.serving
    play.coverage.catalogue_alarm("ddl")  # while the look was under way
    view = CatalogueView(snapshot(601), (99,), (1,), None)
    play.coverage.reread(view, mark=mark, began_at=play.at, insert=1000, settled=True, own=own)
    assert [alarm.reason for alarm in play.coverage.alarms.pending] == ["ddl"]


def test_noise_outdates_nothing() -> None:
    play = Play()
    play.look(snapshot(500), 1000, changed=False, began_at=play.at + SETTLE_NS)
    fill = play.fill
    for xid in range(600, 620):
        lsn = 2000 + 10 * (xid - 600)
        play.commit(xid, lsn, empty=True)
        play.probe(lsn, snapshot(xid + 1))
        play.look(snapshot(xid + 1), lsn, changed=False)
    assert play.valid(fill)
    assert play.coverage.serving


def test_rename_swap_in_a_mixed_transaction() -> None:
    """Trap 4: t and u swap names while rows of them change; the outdated map would mark the wrong one."""
    play = Play()
    fill = play.fill
    play.commit(600, 2000, "t", ddl=True)  # the swap, with the event trigger's message in it
    play.commit(601, 2100, "t")  # really U
    play.probe(2100, snapshot(602))
    play.look(snapshot(602), 2100, relations(t=U, u=T), changed=True)
    assert not play.valid(fill, [U])
    assert not play.valid(fill, [U], analysis=2100)
    play.commit(602, 2200, "t")
    play.probe(2200, snapshot(603))
    assert not play.valid(2100, [U])
    assert play.valid(2100, [T])


def test_without_bumping_all_a_swap_and_back_hides_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: only the schema slot takes T. An entry filled before, analysed after, then holds the old row of U."""
    monkeypatch.setattr(Ledger, "bump_all", lambda self, lsn: self.bump(SCHEMA, lsn))
    play = Play()
    fill = play.fill
    play.commit(600, 2000, empty=True)
    play.commit(601, 2100, "t")  # in truth a change of U: between the two swaps t was U
    play.commit(602, 2200, empty=True)
    play.probe(2200, snapshot(603))
    play.look(snapshot(603), 2200, relations(t=T, u=U), changed=True)
    assert play.valid(fill, [U], analysis=2200)


def test_an_unknown_name_is_an_alarm_and_ends_in_a_complete_map() -> None:
    play = Play()
    play.commit(600, 2000, "new")
    assert not play.coverage.serving
    play.probe(2000, snapshot(601))
    play.look(snapshot(601), 2000, relations(t=T, u=U, new=20000), changed=True)
    play.slots[20000] = play.coverage.slot_of(20000)
    assert play.coverage.serving
    assert play.valid(play.fill, [20000])
    play.commit(601, 2100, "new")
    play.probe(2100, snapshot(602))
    assert not play.valid(2000, [20000])


def test_a_relation_that_no_look_has_shown_satisfies_no_entry() -> None:
    """A table made and dropped between two equal fingerprints must leave no entry behind."""
    play = Play()
    play.slots[30000] = play.coverage.slot_of(30000)
    assert not play.valid(play.fill, [30000])
    play.commit(600, 2000, empty=True)
    play.commit(601, 2100, empty=True)
    play.probe(2100, snapshot(602))
    play.look(snapshot(602), 2100, changed=False)
    assert not play.valid(play.fill, [30000])


def test_a_new_slot_knows_all_that_was_received_also_beyond_a_held_w() -> None:
    play = Play()
    play.commit(600, 2000, empty=True)
    play.commit(601, 2100, "x")
    play.coverage.relations = relations(t=T, u=U, x=40000)
    play.slots[40000] = play.coverage.slot_of(40000)
    assert play.coverage.ledger.words[play.slots[40000]] == 2100


def test_an_alarm_that_the_last_look_saw_is_not_raised_again() -> None:
    play = Play()
    play.coverage.catalogue_alarm("proxy")  # a DDL through the proxy, already acknowledged by the server
    assert not play.coverage.serving
    play.look(snapshot(601), 2000, relations(t=T, u=U), changed=True)
    play.commit(600, 1900, empty=True)  # its commit arrives in the stream only now
    play.keepalive(2000)
    assert play.coverage.serving
    assert play.coverage.ledger.words[SCHEMA] == 2000
    play.commit(602, 2500, empty=True)
    assert not play.coverage.serving


def test_an_alarm_raised_during_a_look_needs_another() -> None:
    play = Play()
    play.coverage.catalogue_alarm("proxy")
    mark = play.coverage.alarms.mark
    play.coverage.catalogue_alarm("proxy")
    view = CatalogueView(snapshot(601), (play.generation,), (1,), None)
    play.coverage.reread(view, mark=mark, began_at=play.at, insert=0)
    play.publish()
    assert not play.coverage.serving
    play.look(snapshot(601), 2000, changed=False)
    assert play.coverage.serving


def test_a_changed_poll_is_an_alarm() -> None:
    play = Play()
    play.coverage.polled((1,), play.at)
    assert play.coverage.serving
    play.coverage.polled((2,), play.at)
    assert not play.coverage.serving
    assert play.coverage.wants_reread(0)


def test_fresh_at_does_not_outrun_the_polls() -> None:
    """After an idle hour a probe alone must not make hits fresh: a REVOKE elsewhere gives no sign in the stream."""
    play = Play()
    looked = play.at
    play.at += 3600 * SECOND
    play.probe(1000, snapshot(600))
    assert play.fresh_at <= looked + SECOND
    play.coverage.polled((1,), play.at)
    play.look(snapshot(600), 1000, changed=False)
    assert play.fresh_at == play.at
