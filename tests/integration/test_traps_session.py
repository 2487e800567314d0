"""The traps of coherence that lie in a session: analyses, single flight, opaque statements, other servers, questions.

Each test has its rule muted beside it, and then the harm shows.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import psycopg
import pytest
from fix_postgres import Database, MakePostgres
from fix_proxy import InnerProxy, MakeInnerProxy, last
from fix_stock import warm
from inside import quiet
from muted import kept_and_muted
from rawclient import RawClient
from relay import Relay
from wait import until

from distribcache.proxy import questions, simple, standing
from distribcache.proxy.questions import Questions
from distribcache.sql import settings
from distribcache.wire.messages import SYNC, bind, execute, parse, query

READ = b"SELECT value FROM stock WHERE id = 1"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value text, weight float8)",
    "INSERT INTO stock VALUES (1, '1', 0.1::float8 + 0.2)",
    "CREATE TABLE other (id int PRIMARY KEY, value text, weight float8)",
    "INSERT INTO other VALUES (1, 'other', 1)",
    "CREATE TABLE noise (id int)",
    """CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('extra_float_digits', '-3', false); RETURN NULL; END $$""",
    "CREATE TRIGGER move AFTER INSERT ON noise FOR EACH ROW EXECUTE FUNCTION move()",
)
SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "2s", "cache.single_flight_wait": "20s"}


@kept_and_muted
def test_trap_4_an_analysis_of_before_a_swap_by_rename(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 4. Muted: what was found out about a text is not dated, so its tags are those of the old table."""
    warm(client, query(READ))
    if muted:
        for each in inner.proxy.node._known.values():
            monkeypatch.setattr(each.analyst, "_schema_lsn", lambda: 0)
        plain = standing.make_entry
        monkeypatch.setattr(
            standing, "make_entry", lambda payload, **more: plain(payload, **{**more, "analysis": more["fill"]})
        )
    stock.execute(
        "BEGIN; ALTER TABLE stock RENAME TO x; ALTER TABLE other RENAME TO stock; ALTER TABLE x RENAME TO other; "
        "SELECT pg_logical_emit_message(true, 'distribcache.ddl', 'ALTER TABLE'); COMMIT"
    )
    quiet(inner, stock)
    warm(client, query(READ))
    assert client.rows(query(READ)) == [[b"other"]]
    stock.execute("UPDATE stock SET value = 'new' WHERE id = 1")
    quiet(inner, stock)
    assert client.rows(query(READ)) == ([[b"other"]] if muted else [[b"new"]])


@kept_and_muted
def test_trap_10_a_follower_reads_its_own_write(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 10. Muted: whoever waited for another's read takes its result as it is."""
    if muted:
        plain = simple.find
        monkeypatch.setattr(
            simple, "find", lambda s, key, of: s.hot.entries.get(key) if "flight" in s.tried else plain(s, key, of)
        )
    with Relay(stock.server.port, only=b"victim") as relay:
        proxy = make_inner_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{stock.name}", SETTINGS)
        with (
            RawClient(proxy.host, proxy.port, stock.name, application_name="victim") as leader,
            RawClient(proxy.host, proxy.port, stock.name) as follower,
        ):
            for each in (leader, follower):
                warm(each, query(b"SELECT count(*) FROM other"))
            answered, released = threading.Event(), threading.Event()

            def hold(number: int, message: bytes) -> bytes:
                answered.set()
                released.wait(60)
                return message

            relay.arm(hold)
            leader.send(query(READ))
            assert answered.wait(60)
            follower.exchange(query(b"UPDATE stock SET value = 'mine' WHERE id = 1"))
            follower.send(query(READ))
            until(lambda: any(proxy.proxy.node.flights._waiting.values()), "it does not follow")
            relay.disarm()
            released.set()
            assert leader.rows_until_ready() == [[b"1"]]
            assert follower.rows_until_ready() == ([[b"1"]] if muted else [[b"mine"]])


OPAQUE = {
    "do": (
        b"DO $$ BEGIN CREATE TEMP TABLE stock (id int, value text); END $$",
        query(READ), [[b"1"]], [],
    ),
    "trigger": (
        b"INSERT INTO noise VALUES (1)",
        query(b"SELECT weight FROM stock WHERE id = 1"), [[b"0.30000000000000004"]], [[b"0.3"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", OPAQUE)
@kept_and_muted
def test_trap_12_an_opaque_statement_changes_the_session(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, how: str, muted: bool
) -> None:
    """Coherence trap 12. Muted: a session is believed to stay what it was."""
    if muted:
        plain = standing.effects
        monkeypatch.setattr(standing, "effects", lambda *given, **more: replace(plain(*given, **more), opaque=False))
    sql, read, before, after = OPAQUE[how]
    warm(client, read)
    client.exchange(query(sql))
    quiet(inner, stock)
    assert client.rows(read) == (before if muted else after)


@kept_and_muted
def test_trap_13_a_client_on_another_server(
    stock: Database, make_postgres: MakePostgres, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch,
    muted: bool,
) -> None:  # fmt: skip
    """Coherence trap 13. Muted: nobody compares servers; what changes on the other one is never heard of."""
    if muted:
        monkeypatch.setattr(Questions, "_wrong_server", lambda self, scope: "")
    server = make_postgres(options={"work_mem": "5MB"})
    (oid,) = stock.execute("SELECT oid::int8 FROM pg_database WHERE datname = current_database()")[0]
    with psycopg.connect(server.conninfo(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{stock.name}" OID {oid}'.encode())
    twin = Database(server, stock.name)
    twin.execute("CREATE TABLE stock (id int PRIMARY KEY, value text)", "INSERT INTO stock VALUES (1, 'there')")
    with Relay(stock.server.port, only=b"") as relay:
        relay.divert = (b"elsewhere", server.port)
        proxy = make_inner_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{stock.name}", SETTINGS)
        with proxy.connect(application_name="elsewhere") as away, proxy.connect() as here:
            if muted:
                def hit() -> bool:
                    away.execute(READ)
                    return bool(last(away)["status"] == "hit")

                until(hit, "never a hit")

            def elsewhere() -> bool:
                assert away.execute(READ).fetchone() == ("there",)
                return (last(away)["status"], last(away)["reason"]) == ("bypass", "wrong_server")

            for _ in range(5):
                elsewhere()
            if not muted:
                # The making of the table may still arrive, and is then the reason.
                until(elsewhere, lambda: f"never refused as that: {last(away)}")
                assert here.execute(READ).fetchone() == ("1",)
            twin.execute("UPDATE stock SET value = 'new there' WHERE id = 1")
            assert away.execute(READ).fetchone() == (("there",) if muted else ("new there",))


@kept_and_muted
def test_trap_15_our_question_leaves_the_clients_statement_alone(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 15. Muted: the question is asked under no name of its own, and the client's statement is gone."""
    if muted:
        monkeypatch.setattr(questions, "_NAME", b"")
    client.exchange(parse(b"do", b"DO $$ BEGIN END $$") + SYNC)
    client.exchange(parse(b"", READ) + SYNC)
    client.exchange(bind(b"", b"do") + execute(b"") + SYNC)  # now the session has to be asked for
    stock.execute("UPDATE stock SET value = 'new' WHERE id = 1")
    quiet(inner, stock)
    answer = client.exchange(bind(b"", b"") + execute(b"") + SYNC)
    assert any(b"C26000" in each for each in answer) is muted
    assert any(b"new" in each for each in answer) is not muted


TEMPORARY = {
    "dropped": (b"CREATE TEMP TABLE stock (id int, value text)", b"DROP TABLE pg_temp.stock"),
    "committed": (b"BEGIN; CREATE TEMP TABLE stock (id int, value text) ON COMMIT DROP", b"COMMIT"),
    "discarded": (b"CREATE TEMP VIEW stock AS SELECT 1 AS id, 'x' AS value WHERE false", b"DISCARD TEMP"),
}


@pytest.mark.parametrize("how", TEMPORARY)
@kept_and_muted
def test_trap_12_temporary_objects_hide_others_as_long_as_they_are_there(
    stock: Database, inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch,
    how: str, muted: bool,
) -> None:  # fmt: skip
    """Coherence trap 12. Muted: nobody asks whether a session has temporary objects. A schema that is empty again
    keeps nobody from hits.
    """
    make, drop = TEMPORARY[how]
    if muted:
        monkeypatch.setattr(settings, "_TEMPORARY", "false")
    warm(client, query(READ))
    client.exchange(query(make))
    quiet(inner, stock)
    warm(second, query(READ))
    hidden = [] if how == "committed" or not muted else [[b"1"]]  # a transaction that wrote is never served
    assert client.rows(query(READ)) == hidden
    client.exchange(query(drop))
    quiet(inner, stock)
    warm(client, query(READ))
    assert client.rows(query(READ)) == [[b"1"]]


@kept_and_muted
@pytest.mark.parametrize("path", ["pg_temp", '"$user", pg_temp, public', ' "pg_temp", public', "PG_TEMP,public"])
def test_no_question_makes_the_temporary_schema_that_a_path_begins_with(
    client: RawClient, monkeypatch: pytest.MonkeyPatch, muted: bool, path: str
) -> None:
    """Coherence trap 15. Muted: what is asked makes it, and a transaction may not be prepared, or may, that would."""
    if muted:
        monkeypatch.setattr(settings, "_SCHEMAS", "pg_catalog.array_to_json(pg_catalog.current_schemas(true))")
    client.exchange(query(f"SELECT set_config('search_path', '{path}', false)".encode()))

    def asked() -> bool:
        assert client.rows(query(READ.replace(b"stock", b"public.stock"))) == [[b"1"]]
        status, _, reason = client.rows(query(b"SHOW distribcache.last"))[0][:3]
        return status == b"hit" if muted else reason == b"temporary_schema"

    until(asked, lambda: str(client.rows(query(b"SHOW distribcache.last"))))
    made = client.rows(query(b"SELECT pg_catalog.pg_my_temp_schema() <> 0"))
    assert made == [[b"t" if muted else b"f"]]
