"""Who a session is was learned after everything that could have changed it: attacks by changes out of sight."""

from __future__ import annotations

import pytest
from fix_stock import warm
from rawclient import RawClient, run

from distribcache.wire.messages import FLUSH, SYNC, bind, describe, execute, message, parse, query

READ = b"SELECT value FROM stock"
STOCK = (
    "CREATE TABLE stock (value text)",
    "INSERT INTO stock VALUES ('public')",
    "CREATE SCHEMA hidden",
    "CREATE TABLE hidden.stock (value text)",
    "INSERT INTO hidden.stock VALUES ('hidden')",
    "CREATE TABLE noise (id int)",
    """CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('search_path', 'hidden', false); RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER late AFTER INSERT ON noise DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION move()""",
    """CREATE PROCEDURE move_too() LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('search_path', 'hidden', false); COMMIT; RAISE EXCEPTION 'after'; END $$""",
)


SET = b"SET search_path = hidden"
CHANGES: dict[str, list[bytes]] = {
    "set": [query(SET)],
    "set in a text": [query(b"SELECT 1; " + SET + b"; SELECT 2")],
    "set in a group": [run(b"SELECT 1") + run(SET) + SYNC],
    "set and flush": [run(SET) + FLUSH + SYNC],
    "prepared set": [parse(b"p", SET) + SYNC, bind(b"", b"p") + execute(b"") + SYNC],
    "set by portal": [
        query(b"BEGIN"), parse(b"", SET) + bind(b"p", b"") + SYNC, execute(b"p") + SYNC, query(b"COMMIT"),
    ],
    "set in a transaction": [query(b"BEGIN"), query(SET), query(b"COMMIT")],
    "pipelined transaction": [run(b"BEGIN") + run(SET) + run(b"COMMIT") + SYNC],
    "commit and chain": [query(b"BEGIN"), query(SET), query(b"COMMIT AND CHAIN"), query(b"ROLLBACK")],
    "released savepoint": [
        query(b"BEGIN"), query(b"SAVEPOINT a"), query(SET), query(b"RELEASE a"), query(b"COMMIT"),
    ],
    "rolled back reset": [query(SET), query(b"BEGIN"), query(b"RESET search_path"), query(b"ROLLBACK")],
    "deferred trigger": [query(b"INSERT INTO noise VALUES (1)")],
    "deferred trigger at commit": [query(b"BEGIN"), query(b"INSERT INTO noise VALUES (1)"), query(b"COMMIT")],
    "deferred trigger of a copy": [query(b"COPY noise FROM STDIN"), message(ord("d"), b"1\n") + message(ord("c"))],
    "procedure that fails": [query(b"CALL move_too()")],
    "do": [query(b"DO $$ BEGIN SET search_path = hidden; END $$")],
    "function": [query(b"SELECT set_config('search_path', 'hidden', false)")],
    "explain": [query(b"EXPLAIN ANALYZE SELECT set_config('search_path', 'hidden', false)")],
    "sql execute": [
        query(b"PREPARE x AS SELECT set_config('search_path', 'hidden', false)"), query(b"EXECUTE x"),
    ],
    "cursor": [
        query(b"BEGIN"), query(b"DECLARE c CURSOR FOR SELECT set_config('search_path', 'hidden', false)"),
        execute(b"c") + SYNC, query(b"COMMIT"),
    ],
    "long text": [query(SET + b" -- " + b"x" * 300_000)],
    "long parse": [parse(b"", SET + b" -- " + b"x" * 300_000) + bind(b"", b"") + execute(b"") + SYNC],
    "create schema": [query(b"SET search_path = '$user', public"), query(b"ALTER SCHEMA hidden RENAME TO postgres")],
}  # fmt: skip


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_of_the_session_is_learned(client: RawClient, how: str) -> None:
    warm(client, query(READ))
    warm(client, run(READ) + SYNC)
    client.exchange(parse(b"named", READ) + describe(b"S", b"named") + SYNC)
    warm(client, bind(b"", b"named") + execute(b"") + SYNC)
    for data in CHANGES[how]:
        client.send(data)
        while client.message()[:1] not in (b"Z", b"G"):
            pass
    for data in (query(READ), run(READ) + SYNC, bind(b"", b"named") + execute(b"") + SYNC):
        assert client.rows(data) == [[b"hidden"]]
        assert client.rows(data) == [[b"hidden"]]
