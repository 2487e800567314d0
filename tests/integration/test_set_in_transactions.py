"""What is set inside a transaction: reads behind it are answered from memory, each under what holds just then.

``SET LOCAL`` in front of every read is how applications with many tenants use row security. What a session is has to be
asked for inside the transaction, and is another thing when that ends, or is rolled back to a savepoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from rawclient import RawClient, run
from shapes import kinds
from transactions import PROTOCOLS
from wait import until

from distribcache.proxy import questions, standing
from distribcache.proxy.questions import Questions
from distribcache.wire.messages import FLUSH, SYNC, bind, close, describe, execute, parse, query

Ask = Callable[[bytes], bytes]
READ = "SELECT name FROM doc ORDER BY id"
SETTINGS = {"freshness.max_staleness": "30s", "freshness.hit_wait": "10s"}
STOCK = (
    "CREATE TABLE doc (id int PRIMARY KEY, tenant text, name text)",
    "INSERT INTO doc VALUES (1, 'a', 'one of a'), (2, 'b', 'one of b'), (3, 'a', 'two of a')",
    "ALTER TABLE doc ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON doc USING (tenant = current_setting('app.tenant', true))",
    "DO $$ BEGIN CREATE ROLE renter LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    "CREATE SCHEMA other",
    "CREATE TABLE other.doc (id int PRIMARY KEY, tenant text, name text)",
    "INSERT INTO other.doc VALUES (1, 'a', 'other')",
    "GRANT USAGE ON SCHEMA other TO renter",
    "GRANT ALL ON doc, other.doc TO renter",
)


@pytest.fixture
def both(stock: Database, inner: InnerProxy) -> Iterator[list[RawClient]]:
    """One that asks the server, and one that asks the proxy; to both no tenant is set."""
    with (
        RawClient(stock.server.host, stock.server.port, stock.name, "renter") as direct,
        RawClient(inner.host, inner.port, stock.name, "renter") as client,
    ):
        yield [direct, client]


def last(client: RawClient) -> list[bytes | None]:
    return client.rows(query(b"SHOW distribcache.last"))[0]


def of(tenant: str) -> list[str]:
    return ["BEGIN", f"SET LOCAL app.tenant = '{tenant}'", READ]


def warm(client: RawClient, ask: Ask, script: list[str]) -> None:
    """Until the read at the end of a transaction is answered from memory; then that is over."""

    def hit() -> bool:
        for sql in script:
            client.exchange(ask(sql.encode()))
        status = last(client)[0]
        client.exchange(ask(b"ROLLBACK"))
        return status == b"hit"

    until(hit, lambda: f"never a hit: {last(client)}")


SCRIPTS: dict[str, list[str]] = {
    "tenants by turns": [*of("a"), "COMMIT", *of("b"), READ, "COMMIT", *of("a"), "ROLLBACK", READ, "BEGIN", READ,
                         "END"],
    "set twice": [*of("a"), "SET LOCAL app.tenant = 'b'", READ, "RESET app.tenant", READ, "COMMIT", READ],
    "for the session": ["BEGIN", "SET app.tenant = 'a'", READ, "COMMIT", READ, "BEGIN", READ, "COMMIT"],
    "for the session, taken back": ["BEGIN", "SET app.tenant = 'a'", READ, "ROLLBACK", READ, "BEGIN", READ, "COMMIT"],
    "behind a savepoint": [
        *of("a"), "SAVEPOINT s", "SET LOCAL app.tenant = 'b'", READ, "ROLLBACK TO s", READ,
        "SET LOCAL app.tenant = 'b'", READ, "RELEASE s", READ, "COMMIT", READ,
    ],
    "behind a savepoint, in one text": [
        *of("a"), "SAVEPOINT s; SET LOCAL app.tenant = 'b'", READ, "ROLLBACK TO s; SELECT 1", READ, "COMMIT", READ,
    ],
    "a savepoint in front": ["BEGIN", "SAVEPOINT s", *of("a")[1:], "ROLLBACK TO s", READ, "COMMIT", READ],
    "and the next at once": [*of("a"), "COMMIT AND CHAIN", READ, "SET LOCAL app.tenant = 'b'", READ, "COMMIT", READ],
    "and the next in one text": [*of("a"), "COMMIT; BEGIN", READ, "COMMIT", READ],
    "behind an error": [*of("a"), "SELECT 1/0", READ, "ROLLBACK", READ],
    "behind an error and a savepoint": [
        *of("a"), "SAVEPOINT s", "SET LOCAL app.tenant = 'b'", READ, "SELECT 1/0", "ROLLBACK TO s", READ, "COMMIT",
        READ,
    ],
    "a role": ["BEGIN", "SET LOCAL ROLE postgres", READ, "COMMIT", READ],
    "a path": ["BEGIN", "SET LOCAL search_path = other", READ, "SAVEPOINT s", "SET LOCAL search_path = public", READ,
               "ROLLBACK TO s", READ, "COMMIT", READ],
    "a level behind it": [*of("a")[:2], "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", READ, "COMMIT"],
    "a level behind a read": [*of("a"), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "ROLLBACK", READ],
    "a level that is no longer the default": [
        "BEGIN", "SET LOCAL default_transaction_isolation = 'repeatable read'", READ, "COMMIT", "BEGIN", READ, "COMMIT",
    ],
    "a short timeout": [
        "BEGIN", "SET LOCAL statement_timeout = 1", "SET LOCAL app.tenant = 'a'", "SHOW app.tenant", "COMMIT",
    ],
    "a write behind it": [
        *of("a"), "UPDATE doc SET name = 'new' WHERE id = 1", READ, "ROLLBACK", *of("a"), "COMMIT",
    ],
    "nothing of it stays": [
        *of("a"), "SELECT name FROM pg_cursors", "SELECT name FROM pg_prepared_statements", "COMMIT",
    ],
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_is_answered_on_both_ways(both: list[RawClient], protocol: str) -> None:
    ask = PROTOCOLS[protocol]
    for tenant in ("a", "b", ""):
        warm(both[1], ask, of(tenant))
    hits = {}
    for name, script in SCRIPTS.items():
        statuses = []
        answers: list[list[list[bytes]]] = [[], []]
        for client, said in zip(both, answers, strict=True):
            for sql in script:
                said.append(client.exchange(ask(sql.encode())))
                if sql == READ and client is both[1]:
                    statuses.append(last(client)[0])
        for number, (direct, got) in enumerate(zip(*answers, strict=True)):
            if got != direct:
                raise AssertionError(f"{name}, {number}: {kinds(b''.join(got))} {got} instead of {direct}")
        hits[name] = statuses.count(b"hit")
    wanted = {"tenants by turns": 6, "set twice": 2, "behind a savepoint": 5, "for the session": 3, "a path": 1}
    assert all(hits[name] >= least for name, least in wanted.items()), hits


GROUPS: dict[str, list[bytes]] = {
    "the next in one group": [
        run(b"COMMIT") + run(b"BEGIN") + run(READ.encode()) + SYNC, run(b"COMMIT") + SYNC, run(READ.encode()) + SYNC,
    ],
    "the end in one group with the read": [run(READ.encode()) + run(b"COMMIT") + SYNC, run(READ.encode()) + SYNC],
    "a Parse behind the end": [
        run(b"ROLLBACK") + parse(b"kept", READ.encode()) + SYNC, bind(b"", b"kept") + execute(b"") + SYNC,
        bind(b"", b"kept") + execute(b"") + SYNC, close(b"S", b"kept") + SYNC,
    ],
    "a level in front of the read": [
        run(b"ROLLBACK") + SYNC, run(b"BEGIN") + SYNC, run(b"SET LOCAL app.tenant = 'b'") + SYNC,
        run(b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE") + run(READ.encode()) + SYNC, run(b"ROLLBACK") + SYNC,
    ],
    "a portal of the client's stays": [
        parse(b"", b"VALUES (1), (2), (3)") + bind(b"open", b"") + execute(b"open", 1) + SYNC,
        run(b"SET LOCAL app.tenant = 'b'") + SYNC, run(READ.encode()) + SYNC, execute(b"open", 1) + SYNC,
        run(b"ROLLBACK") + SYNC,
    ],
    "the unnamed statement stays": [
        parse(b"", READ.encode()) + SYNC, query(b"SET LOCAL app.tenant = 'b'"), run(READ.encode()) + SYNC,
        parse(b"", READ.encode()) + bind(b"", b"") + describe(b"P", b"") + execute(b"") + SYNC,
        bind(b"", b"") + execute(b"") + SYNC, run(b"ROLLBACK") + SYNC,
    ],
    "behind a Flush": [
        run(b"SET LOCAL app.tenant = 'b'") + FLUSH + run(READ.encode()) + SYNC, run(READ.encode()) + SYNC,
        run(b"ROLLBACK") + SYNC,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_groups_behind_a_read_of_a_tenant(both: list[RawClient], name: str) -> None:
    ask = PROTOCOLS["extended"]
    for tenant in ("a", "b", ""):
        warm(both[1], ask, of(tenant))
    for _ in range(3):
        for data in [*map(ask, map(str.encode, of("a"))), *GROUPS[name]]:
            direct, got = (client.exchange(data) for client in both)
            assert got == direct, f"{kinds(b''.join(got))} {got} instead of {kinds(b''.join(direct))} {direct}"
        for client in both:
            client.exchange(ask(b"ROLLBACK"))


def test_a_question_that_fails_is_the_answer_to_the_read(
    both: list[RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed the transaction, as a cancelled read would have."""
    client = both[1]
    warm(client, query, of("a"))
    for sql in of("b")[:-1]:
        client.exchange(query(sql.encode()))
    with monkeypatch.context() as patch:
        patch.setattr(questions, "scope_query", lambda *_: "SELECT 1/0")
        failed = client.exchange(query(READ.encode()))
    assert b"C22012\0" in failed[0]
    assert failed[1:] == [b"Z\0\0\0\5E"]
    assert b"C25P02\0" in client.exchange(query(READ.encode()))[0]
    client.exchange(query(b"ROLLBACK"))
    warm(client, query, of("b"))


MUTES = {
    "taken back": (SCRIPTS["behind a savepoint"], lambda put: put(standing, "_ENDS", frozenset())),
    "over": (GROUPS["the next in one group"], lambda put: put(standing, "_ENDS", frozenset())),
    "a level": (GROUPS["a level in front of the read"], lambda put: put(Questions, "_may_ask_inside", lambda _: True)),
}


@pytest.mark.sabotage
@pytest.mark.parametrize("rule", MUTES)
def test_muted_it_is_another_tenants_or_an_error(
    both: list[RawClient], monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    ask = PROTOCOLS["extended"]
    script, mute = MUTES[rule]
    for tenant in ("a", "b", ""):
        warm(both[1], ask, of(tenant))
    mute(monkeypatch.setattr)
    answers: list[list[list[bytes]]] = [[], []]
    for each in (*of("a"), *script, "ROLLBACK", *of("a")):
        for client, said in zip(both, answers, strict=True):
            said.append(client.exchange(each if isinstance(each, bytes) else ask(each.encode())))
    assert answers[0] != answers[1]
