"""Row tags against a real server: each change of rows ends the entries that depend on them, and few others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import Database, MakePostgres, create_database, drop_database
from followed import Held, eventually, following
from published import publish
from rowtag_cases import FULL, KEYED, SCENARIOS, Scenario, play
from rowtags import Pin, hold, null_for_unknown, settled, slots

from distribcache.cli.postgres import Postgres
from distribcache.coherence.decoding import Collector, Commit
from distribcache.coherence.ledger import NEVER
from distribcache.coherence.tuples import Change
from distribcache.coherence.watching import Plan, Watching, plan

PLUGINS = ("test_decoding", "pgoutput")
Outcomes = dict[str, dict[Pin, bool]]


@pytest.fixture(scope="module", params=PLUGINS)
def outcomes(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    database = create_database(postgres, "rows")
    yield asyncio.run(play(database, SCENARIOS, request.param))
    drop_database(database)


def stale(one: Scenario, outcomes: Outcomes) -> list[Pin]:
    """What must have died, but for relations that pgoutput does not show and of which nothing is cached."""
    return [pin for pin in one.dies if outcomes[one.name].get(pin)]


def lost(one: Scenario, outcomes: Outcomes) -> list[Pin]:
    """What should have lived. pgoutput sends no generated columns: they are unknown."""
    return [pin for pin in one.lives if outcomes[one.name].get(pin) is False and pin.where[0][0] != "g"]


@pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one.name)
def test_entries_of_changed_rows_die(outcomes: Outcomes, one: Scenario) -> None:
    """Coherence traps 8 and 24, and every other kind of change."""
    assert stale(one, outcomes) == []


@pytest.mark.parametrize("one", [one for one in SCENARIOS if one.lives], ids=lambda one: one.name)
def test_entries_of_other_rows_live(outcomes: Outcomes, one: Scenario) -> None:
    assert lost(one, outcomes) == []


def test_most_relations_are_shown(outcomes: Outcomes) -> None:
    """What has no outcome proves nothing: with pgoutput those are the scenarios of tables without an identity."""
    assert len([name for name, pins in outcomes.items() if not pins]) < len(SCENARIOS) / 4


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_older_server_shows_as_much(make_postgres: MakePostgres, debian_bin: Path, plugin: str) -> None:
    database = create_database(make_postgres(bin_dir=debian_bin), "rows")
    found = asyncio.run(play(database, SCENARIOS, plugin))
    drop_database(database)
    assert [(one.name, stale(one, found)) for one in SCENARIOS if stale(one, found)] == []
    assert [(one.name, lost(one, found)) for one in SCENARIOS if lost(one, found)] == []


# -- a column set that is registered while a transaction is being decoded (trap 1)


async def registered_late(
    database: Database, monkeypatch: pytest.MonkeyPatch, plugin: str, *, watched_before: bool
) -> bool:
    """Between the last row of a transaction and its COMMIT a set is registered and an entry filled. → still valid?"""
    await asyncio.to_thread(database.execute, *(text.replace("#", "t") for text in FULL))
    if plugin == "pgoutput":
        await asyncio.to_thread(publish, database)
    async with following(database.server.conninfo(), database.name, plugin=plugin) as followed:
        await settled(followed)
        await followed.slot("t")
        if watched_before:
            await hold(followed, [Pin.of("t", v="a")])
        filled: list[Held] = []
        plain = Collector._end

        def late(self: Collector, lsn: int, *, empty: bool) -> Commit:
            if not filled:
                filled.append(Held([], followed.coherence.fill_point() or 0, followed.coherence.visible(),
                                   slots(followed, followed.oids["t"], Pin.of("t", id=1)), followed.coherence.epoch))
            return plain(self, lsn, empty=empty)

        monkeypatch.setattr(Collector, "_end", late)
        await asyncio.to_thread(database.execute, "UPDATE t SET v = 'z' WHERE id = 1")
        await eventually(lambda: filled)
        assert filled[0].fill
        return await followed.strictly(filled[0])


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("watched_before", [False, True])
async def test_a_set_registered_in_mid_transaction_misses_no_row(
    database: Database, monkeypatch: pytest.MonkeyPatch, watched_before: bool, plugin: str
) -> None:
    """Coherence trap 1."""
    assert not await registered_late(database, monkeypatch, plugin, watched_before=watched_before)


@pytest.mark.sabotage
@pytest.mark.parametrize("plugin", PLUGINS)
async def test_without_its_wildcard_a_set_registered_in_mid_transaction_is_stale(
    database: Database, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    """Coherence trap 1. Muted: a set that came in mid-transaction is not told."""
    monkeypatch.setattr(Plan, "missed_by", lambda self, earlier: frozenset())
    assert await registered_late(database, monkeypatch, plugin, watched_before=True)


# -- each rule muted leaves a stale entry


def untouched(self: Plan, change: Change, slots: set[int]) -> None:
    """Row slots are never touched."""


def all_kept(self: Plan, change: Change, slots: set[int]) -> None:
    """An UPDATE without old values keeps every column, not only those of the identity."""
    for one in self.sets:
        for side in (change.old, change.new):
            if side is not None:
                self._side(one, side, slots)


def without_ancestors(self: Watching, name: bytes) -> Plan | None:
    oids = self._relations.by_name.get(name, (0,))
    sets = list(self._sets.get(oids[0], {}).values())
    return plan(sets, self._relations.by_oid[oids[0]].key, self._ledger.hashed) if sets else None


touch_both = Plan.touch


def by_new_values_only(self: Plan, change: Change, slots: set[int]) -> None:
    touch_both(self, change._replace(old=None) if change.new is not None else change, slots)


def count_only(self: Collector, name: bytes, met: object, data: object, at: int) -> None:
    """More rows of a transaction than the first are not looked at, and nothing is touched instead."""


def ignored(self: Collector, names: list[bytes]) -> None:
    """TRUNCATE touches nothing."""


MUTED: list[tuple[str, Any, Any, str, Pin]] = [
    ("touch", Plan, untouched, "an_insert", Pin.of("an_insert", id=3)),
    ("touch", Plan, null_for_unknown, "a_delete", Pin.of("a_delete", c=5)),
    ("touch", Plan, all_kept, "an_update_that_keeps_the_key", Pin.of("an_update_that_keeps_the_key", v="a")),
    ("touch", Plan, by_new_values_only, "full_an_update", Pin.of("full_an_update", c=5)),
    ("plan_of", Watching, without_ancestors, "a_partition_truncated", Pin.of("a_partition_truncated", id=1)),
    ("_row", Collector, count_only, "bulk", Pin.of("bulk", id=1)),
]


@pytest.mark.sabotage
@pytest.mark.parametrize(
    ("plugin", "method", "owner", "muted", "name", "pin"),
    [(plugin, *one) for plugin in PLUGINS for one in MUTED]
    + [
        ("test_decoding", "_row", Collector, count_only, "a_truncate", Pin.of("a_truncate", id=1)),
        ("pgoutput", "_truncated", Collector, ignored, "a_truncate", Pin.of("a_truncate", id=1)),
    ],
)
async def test_a_muted_rule_leaves_a_stale_entry(
    database: Database, monkeypatch: pytest.MonkeyPatch, plugin: str,
    method: str, owner: Any, muted: Any, name: str, pin: Pin,
) -> None:  # fmt: skip
    """Coherence traps 8 and 24: rules muted one by one."""
    one = next(one for one in SCENARIOS if one.name == name)
    assert pin in one.dies
    monkeypatch.setattr(owner, method, muted)
    assert (await play(database, [one], plugin))[name][pin], "stale, as it must be when the rule is muted"


# -- epochs and bounds


async def test_sets_stay_registered_when_the_stream_begins_anew(database: Database) -> None:
    await asyncio.to_thread(database.execute, *(text.replace("#", "t") for text in KEYED))
    async with following(database.server.conninfo(), database.name) as followed:
        await settled(followed)
        before = await hold(followed, [Pin.of("t", id=1)])
        epoch = followed.coherence.epoch
        await asyncio.to_thread(
            database.execute, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active"
        )
        await eventually(lambda: followed.coherence.epoch != epoch)
        await followed.serving()
        assert not followed.valid(before[0])
        held = await hold(followed, [Pin.of("t", id=1), Pin.of("t", id=2)])
        assert held[0].slots == before[0].slots
        await asyncio.to_thread(database.execute, "UPDATE t SET v = 'z' WHERE id = 1")
        assert [await followed.strictly(entry) for entry in held] == [False, True]


async def test_a_relation_that_no_look_has_shown_serves_no_row(database: Database) -> None:
    async with following(database.server.conninfo(), database.name) as followed:
        wildcard = followed.coherence.watch(4_000_000_000, ("id",))
        assert followed.coherence.words[wildcard] == NEVER


# -- trap 8: the key is dropped in the transaction that changes it, so its old value is not shown

DROPPED = (
    "ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET id = 9 WHERE id = 1",
    "SELECT pg_logical_emit_message(true, 'distribcache.ddl', 'ALTER TABLE')",
)


@pytest.mark.parametrize("told", [True, False])
async def test_a_key_that_is_dropped_and_changed_in_one_transaction(database: Database, told: bool) -> None:
    """Coherence trap 8. Where the event trigger tells of it no read is stale; else the poll of the catalogue ends the
    entry.
    """
    await asyncio.to_thread(database.execute, *(text.replace("#", "t") for text in KEYED))
    async with following(database.server.conninfo(), database.name) as followed:
        await settled(followed)
        held = (await hold(followed, [Pin.of("t", id=1)]))[0]
        await asyncio.to_thread(database.execute, "; ".join(DROPPED if told else DROPPED[:1]))
        if told:
            assert not await followed.strictly(held)

        def outdated() -> bool:
            followed.coherence.note_traffic()
            return not followed.valid(held)

        await eventually(outdated, followed.coherence.report)
        await settled(followed)
        again = await hold(followed, [Pin.of("t", id=9), Pin.of("t", id=77)])
        await asyncio.to_thread(database.execute, "UPDATE t SET id = 10 WHERE id = 9")
        assert [await followed.strictly(entry) for entry in again] == [False, False]
