"""Several sessions, each played twice: directly, and through the proxy on a twin with the same history. No difference.

The order of messages, rows byte for byte, column types, command tags, SQLSTATEs and the state of the transaction must
be the same on both sides, whatever the sessions do: reads of every kind in both protocols, writes, DDL, grants,
policies, roles, settings, temporary tables, transactions, failures, changes around the proxy. What the sessions may say
is in ``twin_words``; how runs are drawn in ``twin_run``; what may differ in ``twin_play``.

A seed is a run of ``STEPS`` steps about one topic. One that fails is played again with fewer and fewer steps; what is
left is the bug report. ``TWIN_SEEDS=100-170`` plays others, ``TWIN_BIN`` on another PostgreSQL: ``make twins`` plays
ten thousand steps and more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from fix_postgres import QUIET
from fix_proxy import InnerProxy
from mutes import MUTES
from twin_play import Difference, Twins
from twin_run import Tally, gusts, play, shorten

from distribcache.cli.postgres import Postgres

STEPS = 150
FIRST, LAST = map(int, os.environ.get("TWIN_SEEDS", "1-6").split("-"))
_PATIENT = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}

MakeTwins = Callable[[], Twins]


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postgres, Postgres]]:
    folder = os.environ.get("TWIN_BIN")
    with Postgres(options=QUIET, bin_dir=folder) as direct, Postgres(options=QUIET, bin_dir=folder) as upstream:
        yield direct, upstream


@pytest.fixture
def make_twins(servers: tuple[Postgres, Postgres], monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeTwins]:
    made: list[Twins] = []

    def make() -> Twins:
        twins = Twins(*servers, InnerProxy(servers[1].url(), _PATIENT))
        gusts(twins, monkeypatch.setattr)
        made.append(twins)
        return twins

    yield make
    for twins in made:
        twins.close()
        twins.outside.close()
        twins.proxy.stop()


@pytest.mark.timeout(60 + 10 * (LAST - FIRST))
def test_no_session_can_tell_the_proxy_from_postgresql(make_twins: MakeTwins) -> None:
    twins, tally = make_twins(), Tally()
    for seed in range(FIRST, LAST + 1):
        try:
            play(twins, seed, STEPS, tally)
        except Difference as found:
            pytest.fail(f"seed {seed}: {shorten(twins, seed, found)}", pytrace=False)
    print(f"{tally.steps} steps, {tally.reads} reads, {tally.hits} hits of {len(tally.hit_texts)} texts")
    assert tally.steps >= STEPS * (1 + LAST - FIRST)
    assert tally.hits > tally.steps // 10, tally
    assert len(tally.hit_texts) > 20, tally.hit_texts


HARM = {
    "validity": "whatever was written, what was read before is served",
    "rows": "a change of a row is not told to those who pinned it",
    "schema": "a changed catalogue ends nothing",
    "settings": "settings are no part of the key",
    "people": "who asks is no part of the key",
    "unseen": "a transaction is served that has written",
}


@pytest.mark.sabotage
@pytest.mark.parametrize("mute", HARM)
def test_a_muted_rule_shows(make_twins: MakeTwins, monkeypatch: pytest.MonkeyPatch, mute: str) -> None:
    MUTES[mute](monkeypatch.setattr)
    twins, tally = make_twins(), Tally()
    with pytest.raises(Difference):
        for seed in range(1, 60):
            play(twins, seed, STEPS, tally)
