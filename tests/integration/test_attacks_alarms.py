"""Alarms end: what follows one is no reason for the next, nor is code that nobody runs. Attacks by what looks as if it
could change the catalogue.
"""

from __future__ import annotations

import asyncio

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from inside import quiet
from muted import kept_and_muted
from rawclient import RawClient
from wait import until

from distribcache import DistribCache, DistribCacheConfig
from distribcache.catalog import definers
from distribcache.catalog.definers import Definers
from distribcache.coherence.catalogue import Catalogue
from distribcache.coherence.live import DatabaseCoherence
from distribcache.proxy.standing import Standing
from distribcache.wire.messages import SYNC, bind, execute, parse, query

SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}
READ = query(b"SELECT value FROM stock")
AGAIN = bind(b"", b"p") + execute(b"") + SYNC
STOCK = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE SCHEMA other",
    "CREATE TABLE both_have (id int)",
    "CREATE TABLE other.both_have (id int)",
    """CREATE FUNCTION remake() RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN EXECUTE 'ALTER TABLE stock SET (fillfactor = 90)'; RETURN 1; END $$""",
    "CREATE VIEW hidden AS SELECT remake()",
)


def hold_looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """As long as something is in the list, a look at the catalogue does not begin."""
    look = Catalogue.look
    held: list[bool] = []

    async def wait(self: Catalogue, *given: object) -> object:
        while held:
            await asyncio.sleep(0.01)
        return await look(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Catalogue, "look", wait)
    return held


@kept_and_muted
def test_a_read_prepared_behind_an_alarm_raises_no_further_ones(
    stock: Database,
    inner: InnerProxy,
    client: RawClient,
    second: RawClient,
    monkeypatch: pytest.MonkeyPatch,
    muted: bool,
) -> None:
    """What it means is not known as long as its connection lasts; so it may read a view that runs code. Muted: that is
    enough for an alarm at each run, and nobody is served again.
    """
    quiet(inner, stock)
    (database,) = inner.proxy.node._known.values()
    until(lambda: database.analyst.definers.known, "never known")
    assert database.analyst.definers.hidden
    client.exchange(query(b"SET search_path = public, other"))
    held = hold_looks(monkeypatch)
    held.append(True)
    second.exchange(query(b"CREATE TABLE another (id int)"))
    client.exchange(parse(b"p", b"SELECT count(*) FROM both_have") + SYNC)
    client.exchange(AGAIN)
    held.clear()
    quiet(inner, stock)
    warm(second, READ)
    if muted:
        effects_of = Standing.effects_of
        monkeypatch.setattr(
            Standing, "effects_of",
            lambda self, *given, analysed, **more: effects_of(self, *given, analysed=True, **more),
        )  # fmt: skip
    alarms = database.coherence.counters.alarms_by
    before, polls = alarms["code"], database.coherence.counters.rereads
    client.exchange(AGAIN)
    assert client.rows(query(b"SHOW distribcache.last"))[0][2] == b"prepared_before"
    assert (alarms["code"] > before) is muted
    until(lambda: database.coherence.counters.rereads > polls, "never looked")


@kept_and_muted
def test_a_read_of_the_library_behind_an_alarm_raises_no_further_ones(
    stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """While an alarm is pending nothing is analysed, so a read may be one of a view that runs code. Muted: that is
    enough, and who reads again and again is never served again.
    """
    config = DistribCacheConfig(upstream_url=stock.url(), freshness_max_staleness="30s", freshness_hit_wait="5s")
    with DistribCache(config) as cache, stock.connect() as connection:
        cache.ready_sync()
        keeper = cache._keeper

        def served() -> bool:
            cache.fetch_sync(connection, "SELECT value FROM stock")
            return cache.last.status == "hit"

        until(served, "never a hit")
        until(lambda: keeper.analyst.definers.hidden, "never known")
        held = hold_looks(monkeypatch)
        held.append(True)
        cache.execute_sync(connection, "CREATE TABLE another (id int)")
        if muted:
            may = Definers.may
            monkeypatch.setattr(Definers, "may", lambda *given, analysed: may(*given))
        coherence = keeper.coherence
        assert isinstance(coherence, DatabaseCoherence)
        before = coherence.counters.alarms_by["code"]
        assert not served() and cache.last.reason == "catalogue_alarm"
        assert (coherence.counters.alarms_by["code"] > before) is muted
        held.clear()
        if not muted:
            until(served, "never served again")


@kept_and_muted
def test_code_that_only_ddl_runs_is_reached_by_nobody(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """The extension dblink has a function that checks the options of a server that is made. Muted: with the extension
    every write that is not known to be quiet stops the hits.
    """
    if muted:
        monkeypatch.setattr(
            definers, "DEFINERS", definers.DEFINERS.replace(", 'pg_foreign_data_wrapper'::regclass", "")
        )
    assert muted == ("pg_foreign_data_wrapper" not in definers.DEFINERS)
    stock.execute(
        "DROP VIEW hidden",
        "CREATE FUNCTION like_dblink(text[], oid) RETURNS bool LANGUAGE plpgsql AS "
        "'BEGIN IF false THEN EXECUTE $1[1]; END IF; RETURN true; END'",
        "CREATE FOREIGN DATA WRAPPER likeness VALIDATOR like_dblink",
    )
    quiet(inner, stock)
    (database,) = inner.proxy.node._known.values()
    assert isinstance(database.analyst.definers, Definers)
    until(lambda: inner.settled() and database.analyst.definers.known, "never known")
    raised: list[str] = []
    warm(client, READ)
    monkeypatch.setattr(database.coherence, "catalogue_alarm", raised.append)
    client.exchange(query(b"DO $$ BEGIN UPDATE stock SET value = 2; END $$"))
    assert set(raised) == ({"code"} if muted else set())
