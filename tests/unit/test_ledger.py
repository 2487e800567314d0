"""The ledger: what each store means for the entries that depend on it (coherence rules R1 and R8, traps 17 and 18)."""

from __future__ import annotations

import pytest

from distribcache.coherence.ledger import (
    EPOCH,
    FORMAT,
    FRESH_AT,
    LEDGER_FORMAT,
    NEVER,
    SCHEMA,
    Ledger,
    V,
    W,
    next_epoch,
)
from distribcache.coherence.lsn import format_lsn, normalise, parse_lsn

SEGMENT = 16 * 1024 * 1024


def test_words_are_single_aligned_words() -> None:
    """Coherence trap 18."""
    ledger = Ledger()
    assert ledger.words.format == "Q"
    assert ledger.words.itemsize == 8
    ledger.words[W] = (1 << 64) - 2
    assert ledger.words[W] == (1 << 64) - 2


def test_a_slot_is_dense_kept_and_starts_where_the_caller_says() -> None:
    ledger = Ledger()
    first, second = ledger.slot_of(16384, 700), ledger.slot_of(99999, 800)
    assert second == first + 1
    assert first > SCHEMA
    assert ledger.words[first] == 700
    assert ledger.slot_of(16384, 5000) == first
    assert ledger.words[first] == 700


def test_bump_only_raises() -> None:
    ledger = Ledger()
    slot = ledger.slot_of(1, 100)
    ledger.bump(slot, 90)
    assert ledger.words[slot] == 100
    ledger.touch(1, 120)
    assert ledger.words[slot] == 120


def test_what_is_touched_before_it_has_a_slot_is_not_forgotten() -> None:
    """An answer of another process, or of before a restart, may be older than this process's first look at it."""
    ledger = Ledger()
    ledger.touch(2, 120)
    assert ledger.words[ledger.slot_of(2, 50)] == 120


def test_a_full_table_shares_its_last_slot_and_only_costs_misses() -> None:
    ledger = Ledger(tables=3)
    slots = [ledger.slot_of(oid, oid) for oid in range(1, 9)]
    assert slots[0] != slots[1]
    assert set(slots[2:]) == {slots[2]}
    ledger.touch(5, 5000)
    assert ledger.words[slots[7]] == 5000
    ledger.bump_all(6000)
    assert {ledger.words[slot] for slot in slots} == {6000}


def test_never_is_lifted_only_for_relations_that_the_catalogue_shows() -> None:
    ledger = Ledger()
    shown, hidden = ledger.slot_of(1, NEVER), ledger.slot_of(2, NEVER)
    ledger.bump_all(400)
    assert ledger.words[shown] == NEVER
    ledger.admit(frozenset({1}), 500)
    assert (ledger.words[shown], ledger.words[hidden]) == (500, NEVER)


def test_a_new_epoch_satisfies_no_entry_of_before_and_keeps_what_indices_mean() -> None:
    ledger = Ledger()
    slot = ledger.slot_of(16384, 100)
    ledger.words[W] = ledger.words[V] = 1000
    ledger.words[FRESH_AT] = 5
    old, new = ledger.words[EPOCH], next_epoch()
    ledger.renew(new)
    assert ledger.words[EPOCH] == new != old
    assert ledger.words[FRESH_AT] == ledger.words[V] == ledger.words[W] == 0
    assert ledger.words[slot] == ledger.words[SCHEMA] == NEVER
    # A crash may have taken commits back: positions begin lower than they were.
    ledger.open(900)
    assert ledger.words[SCHEMA] == ledger.words[W] == 900
    assert ledger.slot_of(16384, 0) == slot


def test_epochs_are_never_reused() -> None:
    assert len({next_epoch() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(("tables", "rows"), [(1, 0), (0, 0), (16, 3), (16, -8)])
def test_impossible_sizes_are_refused(tables: int, rows: int) -> None:
    with pytest.raises(ValueError):
        Ledger(tables, rows)


def test_room_is_left_for_row_tags() -> None:
    ledger = Ledger(tables=16, row_slots=1024)
    assert len(ledger.words) == ledger.rows_at + 1024


def test_positions_are_read_and_printed_as_postgresql_does() -> None:
    assert parse_lsn(b"0/16EF500") == parse_lsn("0/16EF500") == 0x16EF500
    assert parse_lsn("1A/2B") == (0x1A << 32) + 0x2B
    assert format_lsn((0x1A << 32) + 0x2B) == "1A/2B"
    for wrong in ("", "17", "x/y"):
        with pytest.raises(ValueError):
            parse_lsn(wrong)


@pytest.mark.parametrize(
    ("insert", "end"),
    [
        (3 * SEGMENT + 40, 3 * SEGMENT),  # just behind the long header of a new segment
        (3 * SEGMENT + 8192 + 24, 3 * SEGMENT + 8192),  # just behind the short header of a new page
        (3 * SEGMENT + 8192 + 32, 3 * SEGMENT + 8192 + 32),  # a record whose last 8 bytes are on this page
        (3 * SEGMENT + 8192 + 40, 3 * SEGMENT + 8192 + 40),  # … its last 16 bytes
        (3 * SEGMENT + 8192, 3 * SEGMENT + 8192),
        (3 * SEGMENT + 24, 3 * SEGMENT + 24),
        (3 * SEGMENT + 12345, 3 * SEGMENT + 12345),
    ],
)
def test_only_a_position_just_behind_a_page_header_is_normalised(insert: int, end: int) -> None:
    assert normalise(insert, SEGMENT) == end


def test_rounding_a_range_of_offsets_down_would_skip_a_commit() -> None:
    """Sabotage: the rule `offset <= 40` lets a wait end before a commit record that ends at offset 32."""
    commit_end = 5 * SEGMENT + 7 * 8192 + 32
    received = 5 * SEGMENT + 7 * 8192 - 96  # everything up to the commit's start
    careless = commit_end - commit_end % 8192 if commit_end % 8192 <= 40 else commit_end
    assert received + 96 >= careless
    assert received + 96 < normalise(commit_end, SEGMENT)


# -- row tags


def test_the_hash_of_row_tags_is_fixed() -> None:
    """Another hash under the same format would let a ledger in a file, or another node's, mean other rows."""
    ledger = Ledger(row_slots=1 << 22)
    assert LEDGER_FORMAT == 2
    assert ledger.row_slot(16384, ("id",), (b"1",)) - ledger.rows_at == 3761057
    assert ledger.row_slot(16384, ("a", "größe"), (b"", "ß".encode())) - ledger.rows_at == 2733330


def test_row_tags_of_other_relations_columns_and_values_have_other_slots() -> None:
    ledger = Ledger()
    tags = [
        (1, ("a",), (b"1",)), (2, ("a",), (b"1",)), (1, ("b",), (b"1",)), (1, ("a",), (b"2",)), (1, ("a",), (b"",)),
        (1, ("a", "b"), (b"1", b"2")), (1, ("a", "b"), (b"12", b"")), (1, ("a", "b"), (b"", b"12")),
        (1, ("ab",), (b"12",)), (1, ("a", "b"), (b"2", b"1")), (1, (), ()),
    ]
    slots = [ledger.row_slot(*tag) for tag in tags]
    assert len(set(slots)) == len(tags)
    assert all(slot >= ledger.rows_at for slot in slots)


def test_no_row_slot_is_a_dense_slot() -> None:
    """Trap 17: by chance a row tag would sooner or later end all that depends on a table, or everything."""
    ledger = Ledger(tables=2, row_slots=1)
    dense = {SCHEMA, ledger.slot_of(1, 0), ledger.wildcard_of(1, ("a",), 0), ledger.slot_of(3, 0)}
    assert ledger.row_slot(1, ("a",), (b"1",)) == ledger.rows_at > max(dense)


def test_a_wildcard_is_dense_kept_and_follows_its_relation() -> None:
    ledger = Ledger()
    table, shown = ledger.slot_of(1, 100), ledger.wildcard_of(1, ("a",), 700)
    hidden, other = ledger.wildcard_of(2, ("a",), NEVER), ledger.wildcard_of(1, ("a", "b"), NEVER)
    assert len({table, shown, hidden, other}) == 4
    assert ledger.wildcard_of(1, ("a",), 9000) == shown
    assert ledger.words[shown] == 700
    ledger.touch(1, 800)
    assert ledger.words[shown] == 700
    ledger.admit(frozenset({1}), 900)
    assert [ledger.words[slot] for slot in (shown, hidden, other)] == [700, NEVER, 900]
    ledger.bump_all(1000)
    assert [ledger.words[slot] for slot in (shown, hidden, other)] == [1000, NEVER, 1000]


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_a_new_epoch_forgets_rows_and_keeps_wildcards_unusable(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tables=100, row_slots=1 << 18)
    wildcard, row = ledger.wildcard_of(1, ("a",), 5), ledger.row_slot(1, ("a",), (b"1",))
    last = len(ledger.words) - 1
    for slot in (row, ledger.rows_at, last):
        ledger.bump(slot, 5000)
    monkeypatch.setattr("distribcache.coherence.ledger.sys.platform", platform)
    ledger.renew(next_epoch())
    assert ledger.words[wildcard] == NEVER
    assert not any(ledger.words[ledger.rows_at :])
    assert ledger.words[FORMAT] == LEDGER_FORMAT
    ledger.bump(row, 3000)
    assert ledger.words[row] == 3000


def test_row_slots_take_no_memory_until_they_are_touched() -> None:
    before = resident()
    ledgers = [Ledger() for _ in range(16)]
    assert sum(8 * len(ledger.words) for ledger in ledgers) > 512 << 20
    assert resident() - before < 64 << 20


def resident() -> int:
    """Bytes of memory that this process occupies."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096


def test_tags_mean_the_same_to_another_ledger() -> None:
    here, there = Ledger(), Ledger()
    for oid in (9, 8, 7):
        there.slot_of(oid, 0)
    there.wildcard_of(7, ("b", "a"), 3)
    there.wildcard_of(7, ("a",), 4)
    slots = (here.slot_of(7, 0), here.wildcard_of(7, ("a",), 0), here.row_slot(7, ("a",), (b"1",)))
    tags = here.tags_of(slots)
    assert tags is not None
    expected = (there.slot_of(7, 0), there.wildcard_of(7, ("a",), 0), there.row_slot(7, ("a",), (b"1",)))
    assert there.slots_for(tags, lambda oid: there.slot_of(oid, 5)) == expected
    assert there.tags_of(expected) == tags


def test_a_relation_without_a_slot_gets_one_and_an_unregistered_column_set_is_no_answer() -> None:
    """Coherence trap 1, across processes: rows of a set that nobody watches here may have changed unseen."""
    here, there = Ledger(), Ledger()
    made: list[int] = []
    tags = here.tags_of((here.slot_of(7, 0), here.wildcard_of(7, ("a",), 0)))
    assert tags is not None
    assert there.slots_for(tags[:1], lambda oid: made.append(oid) or there.slot_of(oid, 5)) == (there.slot_of(7, 0),)
    assert made == [7]
    assert there.words[there.slot_of(7, 0)] == 5
    assert there.slots_for(tags, lambda oid: there.slot_of(oid, 5)) is None


@pytest.mark.parametrize(
    "tag", [b"", b"t", b"t1234567", b"t123456789", b"x12345678", b"r" + (1 << 22).to_bytes(8, "little"), b"r1", b"w"]
)
def test_what_is_no_tag_is_no_slot(tag: bytes) -> None:
    ledger = Ledger()
    assert ledger.slots_for((tag,), lambda oid: ledger.slot_of(oid, 0)) is None


def test_a_slot_shared_by_several_relations_has_no_tag() -> None:
    ledger = Ledger(tables=3)
    slots = [ledger.slot_of(oid, 0) for oid in range(1, 9)]
    assert ledger.tags_of(slots[:2]) is not None
    assert ledger.tags_of(slots[:3]) is None
