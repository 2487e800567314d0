"""Column sets, plans and transactions, step by step: which slots a transaction touches (coherence traps 1 and 8)."""

from __future__ import annotations

import pytest

from distribcache.catalog.generation import CatalogueView, Relation, Relations
from distribcache.coherence import decoding, watching
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.decoding import BULK, Commit, Decoder
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.ledger import NEVER, SCHEMA, Ledger, W
from distribcache.coherence.passing import PassThrough
from distribcache.coherence.ttl import TtlOnly
from distribcache.coherence.visibility import Snapshot
from distribcache.coherence.watching import Plan, Watching

SECOND = 1_000_000_000
T, U, LEAF = 16384, 16385, 16386


def relations(*, key: bytes = b"id", leaf_key: bytes = b"", u: int = U, t: int = T) -> Relations:
    by_oid = {
        T: Relation(T, "r", "d", False, (), frozenset(key.split())),
        U: Relation(U, "r", "d", False, (), frozenset({b"id"})),
        LEAF: Relation(LEAF, "r", "d", False, (T,), frozenset(leaf_key.split())),
    }
    return Relations({b"public.t": (t,), b"public.u": (u,), b"public.leaf": (LEAF, t)}, by_oid, frozenset(by_oid))


class Play:
    """A coverage with tables t (key id), u and t's child leaf, and the decoder that feeds it."""

    def __init__(self) -> None:
        self.ledger = Ledger(64, 1 << 16)
        self.coverage = Coverage(self.ledger, Freshness(), full_poll_ns=SECOND, quick_poll_ns=SECOND)
        self.decoder = Decoder(self.coverage.watching.plan_of)
        self.coverage.begin(1000)
        self.coverage.observe(100, 0, Snapshot(500, 500, frozenset()), 1000)
        self.look(relations(), 1000)
        self.at = 1000
        self.xid = 600

    def look(self, known: Relations, insert: int) -> None:
        view = CatalogueView(Snapshot(900, 900, frozenset()), (insert,), (1,), known)
        self.coverage.reread(view, mark=self.coverage.alarms.mark, began_at=100, insert=insert)
        self.coverage.publish()

    def tag(self, columns: str, *values: str, oid: int = T) -> tuple[int, int]:
        """Wildcard and row slot of an entry."""
        names = tuple(columns.split())
        wildcard = self.coverage.watch(oid, names)
        assert wildcard
        return wildcard, self.ledger.row_slot(oid, names, tuple(value.encode() for value in values))

    def begin(self) -> None:
        self.xid += 1
        self.feed(b"BEGIN %d" % self.xid)

    def feed(self, text: bytes) -> Commit | None:
        if self.decoder.again(memoryview(b"header" + text), 6):
            return None
        return self.decoder.feed(text, self.at)

    def rows(self, *texts: str) -> None:
        for text in texts:
            assert self.feed(b"table public." + text.encode()) is None

    def commit(self) -> Commit:
        self.at += 100
        commit = self.feed(b"COMMIT %d" % self.xid)
        assert commit is not None
        self.coverage.commit(commit)
        self.coverage.publish()
        return commit

    def change(self, *texts: str) -> Commit:
        self.begin()
        self.rows(*texts)
        return self.commit()

    def lives(self, tag: tuple[int, int], fill: int) -> bool:
        words = self.ledger.words
        return words[SCHEMA] <= fill <= words[W] and all(words[slot] <= fill for slot in tag)


@pytest.fixture
def play() -> Play:
    return Play()


ONE = "t: UPDATE: id[integer]:1 c[integer]:5"


def test_a_change_touches_the_tags_of_its_values_and_no_others(play: Play) -> None:
    one, two, five = play.tag("id", "1"), play.tag("id", "2"), play.tag("c id", "5", "1")
    play.change("t: INSERT: id[integer]:1 c[integer]:5")
    assert [play.lives(tag, 1000) for tag in (one, two, five)] == [False, True, False]
    assert play.lives(one, 1100)


def test_what_is_within_the_identity_is_kept_and_all_else_is_unknown(play: Play) -> None:
    one, two, five, six = play.tag("id", "1"), play.tag("id", "2"), play.tag("c", "5"), play.tag("c", "6")
    play.change(ONE)
    assert [play.lives(tag, 1000) for tag in (one, two, five, six)] == [False, True, False, False]


def test_a_leaf_is_judged_by_its_own_identity(play: Play) -> None:
    """Its parent's key says nothing about what the stream shows of the leaf."""
    one, two = play.tag("id", "1"), play.tag("id", "2")
    play.change("leaf: UPDATE: id[integer]:1")
    assert [play.lives(tag, 1000) for tag in (one, two)] == [False, False]
    play.look(relations(leaf_key=b"id"), 1200)
    play.coverage.position(1200)
    play.coverage.publish()
    play.at = 1200
    play.change("leaf: UPDATE: id[integer]:1")
    assert [play.lives(tag, 1200) for tag in (one, two)] == [False, True]


def test_a_null_is_equal_to_no_pin_but_a_missing_value_is_unknown(play: Play) -> None:
    five, both = play.tag("c", "5"), play.tag("c d", "5", "6")
    play.change("t: INSERT: id[integer]:1 c[integer]:null d[integer]:6")
    play.change("t: INSERT: id[integer]:1 c[integer]:7 d[integer]:null")
    play.change("t: INSERT: id[integer]:1 c[integer]:null")
    assert [play.lives(tag, 1000) for tag in (five, both)] == [True, True]
    play.change("t: INSERT: id[integer]:1 c[integer]:7")
    assert [play.lives(tag, 1000) for tag in (five, both)] == [True, False]
    # Under FULL an old NULL is left out; under DEFAULT every column is that does not belong to the key.
    play.change("t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:1 c[integer]:null d[integer]:null")
    assert not play.lives(five, 1400)


def test_a_set_registered_between_two_rows_has_missed_the_first(play: Play) -> None:
    for before in ("", "c"):
        fresh = Play()
        if before:
            fresh.tag("c id", "0", "0")
        fresh.begin()
        fresh.rows("t: INSERT: id[integer]:1 c[integer]:5")
        one, three = fresh.tag("id", "1"), fresh.tag("id", "3")
        fresh.rows("t: INSERT: id[integer]:2 c[integer]:5")
        fresh.commit()
        assert [fresh.lives(tag, 1000) for tag in (one, three)] == [False, False]
        fresh.change("t: INSERT: id[integer]:1 c[integer]:5")
        assert [fresh.lives(tag, 1100) for tag in (one, three)] == [False, True]


def test_a_set_registered_before_the_first_row_of_its_relation_misses_none(play: Play) -> None:
    play.begin()
    play.rows("u: INSERT: id[integer]:1")
    one, two = play.tag("id", "1"), play.tag("id", "2")
    play.rows("t: INSERT: id[integer]:1 c[integer]:5")
    play.commit()
    assert [play.lives(tag, 1000) for tag in (one, two)] == [False, True]


def test_a_set_of_an_ancestor_registered_in_mid_transaction_counts_too(play: Play) -> None:
    play.begin()
    play.rows("leaf: INSERT: id[integer]:1")
    one = play.tag("id", "1")
    play.commit()
    assert not play.lives(one, 1000)


def test_an_identity_that_turns_out_to_be_another_one_makes_all_unknown(play: Play) -> None:
    """The re-read came while the transaction was decoded; its rows were judged by the identity of before."""
    one, nine = play.tag("id", "1"), play.tag("id", "9")
    play.begin()
    play.rows("t: UPDATE: id[integer]:9 c[integer]:5")  # the key is gone: the old value 1 is not shown
    play.look(relations(key=b""), 1050)
    play.coverage.position(1060)
    play.coverage.publish()
    play.commit()
    assert [play.lives(tag, 1060) for tag in (one, nine)] == [False, False]


def test_without_comparing_identities_at_the_commit_the_old_row_stays(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage of the test above."""
    monkeypatch.setattr(Plan, "missed_by", lambda self, earlier: frozenset())
    one = play.tag("id", "1")
    play.begin()
    play.rows("t: UPDATE: id[integer]:9 c[integer]:5")
    play.look(relations(key=b""), 1050)
    play.coverage.position(1060)
    play.coverage.publish()
    play.commit()
    assert play.lives(one, 1060)


def test_names_that_are_swapped_in_mid_decode_leave_no_row_behind(play: Play) -> None:
    """Trap 4 for rows: what is printed as t is U by the time of the commit."""
    of_t, of_u = play.tag("id", "1"), play.tag("id", "1", oid=U)
    play.begin()
    play.rows("t: INSERT: id[integer]:1 c[integer]:5")
    play.look(relations(t=U, u=T), 1050)
    play.coverage.position(1060)
    play.coverage.publish()
    play.commit()
    assert not play.lives(of_u, 1060)
    assert not play.lives(of_t, 1000)


def test_what_was_received_during_a_look_is_outdated_by_it(play: Play) -> None:
    """A commit behind the position that the look asked for, but attributed by the map of before it."""
    play.begin()
    play.rows("t: INSERT: id[integer]:1")  # really U
    play.commit()
    of_u = play.coverage.slot_of(U)
    play.look(relations(t=U, u=T), 1050)
    assert not play.lives((of_u, of_u), 1099)


def test_truncate_touches_every_wildcard(play: Play) -> None:
    tags = [play.tag("id", "1"), play.tag("c", "5"), play.tag("id", "1", oid=U)]
    play.change("t, public.u: TRUNCATE: (no-flags)")
    assert [play.lives(tag, 1000) for tag in tags] == [False, False, False]
    play.change("leaf: TRUNCATE: cascade")
    assert [play.lives(tag, 1100) for tag in tags] == [False, False, True]
    play.change(ONE, "t: TRUNCATE: (no-flags)", ONE)
    assert not play.lives(play.tag("id", "77"), 1200)


@pytest.mark.parametrize(("rows", "lives"), [(BULK, True), (BULK + 1, False)])
def test_many_rows_touch_the_wildcards_once(play: Play, rows: int, lives: bool) -> None:
    other = play.tag("id", "77")
    commit = play.change(*["t: INSERT: id[integer]:5 c[integer]:5"] * rows)
    assert commit.rows == rows
    assert play.lives(other, 1000) is lives
    assert len(commit.slots) <= 2


def test_many_slots_of_one_transaction_end_in_wildcards(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many relations of a few rows each, many sets: what one commit stores stays bounded."""
    monkeypatch.setattr(decoding, "_MOST_SLOTS", 20)
    other, elsewhere = play.tag("id", "77"), play.tag("id", "77", oid=U)
    commit = play.change(*[f"t: INSERT: id[integer]:{n}" for n in range(30)], *["u: INSERT: id[integer]:1"] * 2)
    assert len(commit.slots) < 30
    assert [play.lives(tag, 1000) for tag in (other, elsewhere)] == [False, False]


def test_rows_after_a_touched_wildcard_are_only_counted(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play.tag("c", "5")
    read = []
    plain = decoding.read_change
    monkeypatch.setattr(decoding, "read_change", lambda *given: read.append(1) or plain(*given))
    assert play.change(*[ONE] * 50).rows == 50
    assert len(read) == 1


def test_rows_that_nobody_watches_are_not_read(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "read_change", None)
    play.tag("id", "1", oid=U)
    assert play.change(*[ONE] * 5).slots == frozenset()


def test_registration_is_idempotent_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST_OF_ONE", 2)
    monkeypatch.setattr(watching, "MOST_SETS", 3)
    watched = Watching(Ledger(64, 1))
    first = watched.register(1, ("a",), 5)
    assert first == watched.register(1, ("a",), 9)
    assert watched.register(1, ("b",), 5) not in (0, first)
    assert watched.register(1, ("c",), 5) == 0
    assert watched.register(2, ("a",), 5)
    assert watched.register(3, ("a",), 5) == 0
    assert watched.register(1, ("b",), 5)
    assert len(watched) == 3


def test_a_wildcard_begins_at_all_that_was_received(play: Play) -> None:
    play.change(ONE)
    one = play.tag("id", "1")
    assert not play.lives(one, 1099)
    assert play.lives(one, 1100)
    assert play.ledger.words[play.tag("id", "1", oid=99)[0]] == NEVER


def test_a_new_epoch_keeps_sets_and_satisfies_no_entry_until_the_catalogue_was_read(play: Play) -> None:
    one = play.tag("id", "1")
    play.change(ONE)
    play.coverage.end()
    play.coverage.begin(900)
    assert play.ledger.words[one[0]] == NEVER
    play.coverage.observe(200, 0, Snapshot(500, 500, frozenset()), 900)
    play.look(relations(), 900)
    assert play.tag("id", "1") == one
    assert play.lives(one, 900)
    play.at = 900
    play.change(ONE)
    assert not play.lives(one, 900)


def test_where_no_stream_is_read_rows_and_wildcards_never_move() -> None:
    for coherence in (TtlOnly("host=nowhere", "db"), PassThrough("db", "too_many_databases")):
        wildcard, row = coherence.watch(T, ("id",)), coherence.row_slot(T, ("id",), (b"1",))
        assert wildcard and row
        coherence.catalogue_alarm("ddl")
        assert (coherence.words[wildcard], coherence.words[row]) == (0, 0)
