"""Who changed the catalogue through code of a user's reads what was changed: attacks by every way to run such code.

The change of the catalogue stands in one transaction with a row, so that the stream has no sign of it, and nobody looks
at the catalogue meanwhile.
"""

from __future__ import annotations

import asyncio

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from fix_stock import warm
from inside import quiet
from muted import kept_and_muted
from rawclient import RawClient, run
from wait import until

from distribcache.catalog.definers import Definers
from distribcache.coherence.catalogue import Catalogue
from distribcache.wire.messages import SYNC, message, query

READ = query(b"SELECT value FROM shown")
SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}
NEW = "CREATE OR REPLACE VIEW shown AS SELECT value + 1 AS value FROM stock"
STOCK = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE VIEW shown AS SELECT value FROM stock",
    "CREATE TABLE log (id int)",
    "CREATE TABLE noise (id int)",
    "CREATE TABLE plain (id int)",
    f"""CREATE FUNCTION remake() RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO log VALUES (1); {NEW}; RETURN 1; END $$""",
    "CREATE FUNCTION \"By Name\"() RETURNS int LANGUAGE sql AS 'SELECT remake()'",
    "CREATE FUNCTION further() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT remake(); END",
    "CREATE PROCEDURE proceed() LANGUAGE plpgsql AS 'BEGIN PERFORM further(); END'",
    """CREATE FUNCTION built(text) RETURNS int LANGUAGE plpgsql AS
    'BEGIN INSERT INTO log VALUES (1); EXECUTE $1; RETURN 1; END'""",
    "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM remake(); RETURN NULL; END'",
    "CREATE TRIGGER fire AFTER INSERT ON noise FOR EACH ROW EXECUTE FUNCTION fire()",
    "CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO noise VALUES (1); SELECT 1'",
    "CREATE VIEW hidden AS SELECT further()",
)
WAYS: dict[str, list[bytes]] = {
    "do": [query(f"DO $$ BEGIN INSERT INTO log VALUES (1); {NEW}; END $$".encode())],
    "do in a group": [run(f"DO $$ BEGIN INSERT INTO log VALUES (1); {NEW}; END $$".encode()) + SYNC],
    "do that calls": [query(b"DO $$ BEGIN PERFORM remake(); END $$")],
    "function": [query(b"SELECT remake()")],
    "function in a group": [run(b"SELECT remake()") + SYNC],
    "function that calls it": [query(b"SELECT FURTHER()")],
    "function with a name of its own": [query(b'SELECT "By Name"()')],
    "do that makes text": [query(b"DO $$ BEGIN EXECUTE 'UPDATE stock SET value = 1; SELECT ' || 'remake()'; END $$")],
    "text made by a function": [query(f"SELECT built('{NEW}')".encode())],
    "procedure": [query(b"CALL proceed()")],
    "trigger": [query(b"INSERT INTO noise VALUES (1)")],
    "trigger in a transaction": [query(b"BEGIN"), query(b"INSERT INTO noise VALUES (1)"), query(b"COMMIT")],
    "trigger of a copy": [query(b"COPY noise FROM STDIN"), message(ord("d"), b"1\n") + message(ord("c"))],
    "function that fires it": [query(b"SELECT writes()")],
    "view": [query(b"SELECT * FROM hidden")],
    "sql execute": [query(b"PREPARE p AS INSERT INTO noise VALUES (1)"), query(b"EXECUTE p")],
    "cursor": [query(b"BEGIN"), query(b"DECLARE c CURSOR FOR SELECT remake()"), query(b"FETCH c"), query(b"COMMIT")],
    "explain": [query(b"EXPLAIN ANALYZE INSERT INTO noise VALUES (1)")],
}


def learn(inner: InnerProxy) -> Definers:
    """What is known of the code that there is, when it is known."""
    until(lambda: inner.proxy.node._known, "never logged in")
    until(inner.settled, "never settled")
    (database,) = inner.proxy.node._known.values()
    return database.analyst.definers


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a look at the catalogue does not come to an end."""

    async def look(self: Catalogue, *_: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(Catalogue, "look", look)


def write(client: RawClient, way: list[bytes]) -> None:
    for data in way:
        client.send(data)
        while client.message()[:1] not in (b"Z", b"G"):
            pass


@pytest.mark.parametrize("how", WAYS)
def test_what_code_has_changed_is_read_once_it_is_acknowledged(
    inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    learn(inner)
    for each in (client, second):
        warm(each, READ)
    blind(monkeypatch)
    write(client, WAYS[how])
    for each in (client, second):
        assert each.rows(READ) == [[b"2"]]


def test_so_it_is_while_nobody_knows_what_code_there_is(
    inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(client, READ)
    blind(monkeypatch)
    learn(inner).forget()
    write(client, WAYS["view"])
    assert client.rows(READ) == [[b"2"]]


def test_code_that_defines_nothing_is_no_alarm(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock.execute(
        "DROP VIEW hidden",
        'DROP FUNCTION "By Name"',
        "DROP TRIGGER fire ON noise",
        """CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN UPDATE stock SET value = value + 1; RETURN NULL; END'""",
        """CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE 'UPDATE log SET id = 1'; EXECUTE format('  insert INTO %I VALUES (1)', 'log'); RETURN NULL; END $$""",
        "CREATE TRIGGER note_it AFTER INSERT ON noise FOR EACH ROW EXECUTE FUNCTION note_it()",
        "CREATE TRIGGER count_it AFTER INSERT ON noise FOR EACH ROW EXECUTE FUNCTION count_it()",
        """CREATE FUNCTION created_at() RETURNS int LANGUAGE plpgsql AS
        'BEGIN INSERT INTO log VALUES (2); RETURN 1; END'""",
    )
    quiet(inner, stock)
    learn(inner)
    (coherence,) = inner.proxy.databases
    warm(client, READ)
    raised: list[str] = []
    monkeypatch.setattr(coherence, "catalogue_alarm", raised.append)
    for text in (
        b"INSERT INTO noise VALUES (1)", b"SELECT created_at()", b"SELECT random(), pg_advisory_lock(1)",
        b"DO $$ BEGIN PERFORM created_at(); EXECUTE 'INSERT INTO noise VALUES (1)'; END $$", b"CALL proceed_not()",
    ):
        client.exchange(query(text))
    assert client.rows(READ) == [[b"3"]]
    assert raised == []


@pytest.mark.sabotage
def test_muted_what_was_before_is_served(
    inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(inner)
    monkeypatch.setattr(Definers, "may", lambda *_, **__: False)
    warm(client, READ)
    blind(monkeypatch)
    write(client, WAYS["trigger"])
    assert client.rows(READ) == [[b"1"]]


@kept_and_muted
def test_reads_behind_an_alarm_raise_no_further_ones(
    inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """While an alarm is pending no read is proved to be one, and might call what defines something. Muted: that is
    enough for an alarm, and reads stop the hits for ever.
    """
    definers = learn(inner)
    (database,) = inner.proxy.node._known.values()
    alarms = database.coherence.counters.alarms_by
    warm(client, READ)
    blind(monkeypatch)
    definers.forget()
    if muted:
        may = Definers.may
        monkeypatch.setattr(Definers, "may", lambda *given, analysed: may(*given))
    client.rows(query(b"CREATE TABLE another (id int)"))
    client.rows(query(b"SELECT further()"))
    until(lambda: definers.known, "never asked")
    before = alarms["code"]
    for _ in range(5):
        client.rows(READ)
    assert alarms["code"] - before == (5 if muted else 0)
