"""Several sessions, each played twice: directly, and through the proxy on a twin with the same history. No difference.

The order of messages, rows byte for byte, column types, command tags, SQLSTATEs and the state of the transaction must
be the same on both sides, whatever the sessions do: reads of every kind in both protocols, writes, DDL, grants,
policies, roles, settings, temporary tables, transactions, failures, changes around the proxy. What the sessions may say
is in ``twin_words``; how runs are drawn in ``twin_run``; what may differ in ``twin_play``.

Each run is played on every form of the stream, and proves something only where answers came from memory: so hits are
counted, and every mute is tried on each.

A seed is a run of ``STEPS`` steps about one topic. One that fails is played again with fewer and fewer steps; what is
left is the bug report. ``TWIN_SEEDS=100-170`` plays others, ``TWIN_BIN`` on another PostgreSQL: ``make twins`` plays
45,000 steps, and ``make soak`` as many others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import psycopg
import pytest
from fix_postgres import QUIET
from fix_proxy import InnerProxy
from mutes import MUTES
from psycopg.rows import dict_row
from twin_play import Difference, Twins
from twin_run import Tally, gusts, play, shorten

from distribcache.cli import objects
from distribcache.cli.postgres import Postgres

STEPS = 150
STREAMS = ("polls", "trigger", "pgoutput")
"""How a change of the catalogue is learned: by polls alone, by the trigger of setup; and all by ``pgoutput``."""
FIRST, LAST = map(int, os.environ.get("TWIN_SEEDS", "1-7").split("-"))
_PATIENT = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}

MakeTwins = Callable[..., Twins]
Pairs = Callable[[str], tuple[Postgres, Postgres]]


def _install(server: Postgres, stream: str) -> None:
    with psycopg.connect(server.conninfo(), autocommit=True, row_factory=dict_row) as connection:
        objects.install(connection, publish=stream == "pgoutput")


@pytest.fixture(scope="module")
def servers() -> Iterator[Pairs]:
    """Two servers for each of ``STREAMS``."""
    folder = os.environ.get("TWIN_BIN")
    made: dict[str, tuple[Postgres, Postgres]] = {}
    with ExitStack() as stack:

        def make(stream: str) -> tuple[Postgres, Postgres]:
            if stream not in made:
                pair = [stack.enter_context(Postgres(options=QUIET, bin_dir=folder)) for _ in range(2)]
                if stream != "polls":
                    for server in pair:
                        _install(server, stream)
                made[stream] = pair[0], pair[1]
            return made[stream]

        yield make


@pytest.fixture
def make_twins(servers: Pairs, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeTwins]:
    made: list[Twins] = []

    def make(stream: str = "polls") -> Twins:
        direct, upstream = servers(stream)
        plugin = {"freshness.plugin": "pgoutput" if stream == "pgoutput" else "test_decoding"}
        twins = Twins(direct, upstream, InnerProxy(upstream.url(), _PATIENT | plugin))

        def publish() -> None:
            """pgoutput tells nothing of tables made since setup, until they are published."""
            for server in (direct, upstream):
                _install(server, stream)

        if stream == "pgoutput":
            twins.stocked, twins.polled = publish, True
            # New tables end its epoch in each run: the pauses must not grow.
            twins.coherence.options = replace(twins.coherence.options, retry_max_s=0.2)
        gusts(twins, monkeypatch.setattr)
        made.append(twins)
        return twins

    yield make
    for twins in made:
        twins.close()
        twins.outside.close()
        twins.proxy.stop()


@pytest.mark.timeout(60 + 10 * (LAST - FIRST))
@pytest.mark.parametrize("stream", STREAMS)
def test_no_session_can_tell_the_proxy_from_postgresql(make_twins: MakeTwins, stream: str) -> None:
    twins, tally = make_twins(stream), Tally()
    runs = 1 + LAST - FIRST
    for seed in range(FIRST, LAST + 1):
        try:
            play(twins, seed, STEPS, tally)
        except Difference as found:
            pytest.fail(f"seed {seed}: {shorten(twins, seed, found)}", pytrace=False)
    print(f"{stream}: {tally.steps} steps, {tally.reads} reads, {tally.hits} hits of {len(tally.hit_texts)} texts")
    assert tally.steps >= STEPS * runs
    assert tally.hits > tally.steps // 10, tally
    assert len(tally.hit_texts) > runs, tally.hit_texts


HARM = {
    "validity": "whatever was written, what was read before is served",
    "rows": "a change of a row is not told to those who pinned it",
    "schema": "a changed catalogue ends nothing",
    "settings": "settings are no part of the key",
    "people": "who asks is no part of the key",
    "unseen": "a transaction is served that has written",
}
CASES = [(stream, mute) for stream in STREAMS for mute in HARM]


@pytest.mark.sabotage
@pytest.mark.parametrize(("stream", "mute"), CASES, ids=[" ".join(each) for each in CASES])
def test_a_muted_rule_shows(make_twins: MakeTwins, monkeypatch: pytest.MonkeyPatch, stream: str, mute: str) -> None:
    MUTES[mute](monkeypatch.setattr)
    twins, tally = make_twins(stream), Tally()
    with pytest.raises(Difference):
        for seed in range(1, 60):
            play(twins, seed, STEPS, tally)
