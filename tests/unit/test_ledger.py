"""The ledger: what each store means for the entries that depend on it (coherence rules R1 and R8, traps 17 and 18)."""

from __future__ import annotations

import pytest

from distribcache.coherence.ledger import (
    EPOCH,
    FRESH_AT,
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
    ledger.touch(2, 120)
    assert 2 not in ledger


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
