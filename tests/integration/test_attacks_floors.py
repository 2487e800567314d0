"""What was acknowledged through this node is read by everybody behind it: attacks by every way to write."""

from __future__ import annotations

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy
from rawclient import RawClient, run
from wait import until

from distribcache.wire.messages import FLUSH, SYNC, bind, execute, message, parse, query

SETTINGS = {"freshness.max_staleness": "30s"}
"""Nobody waits for long: what is waited for does not come while the stream is held."""
READ = b"SELECT sum(value) FROM stock"
UPDATE = b"UPDATE stock SET value = 10"
STOCK = (
    "CREATE TABLE stock (value int)",
    "INSERT INTO stock VALUES (1)",
    "CREATE FUNCTION raise_it() RETURNS int LANGUAGE sql VOLATILE AS 'UPDATE stock SET value = 10 RETURNING 1'",
    "CREATE VIEW raising AS SELECT raise_it()",
    """CREATE PROCEDURE failing() LANGUAGE plpgsql AS
    $$ BEGIN UPDATE stock SET value = 10; COMMIT; RAISE EXCEPTION 'after'; END $$""",
)


WRITES: dict[str, list[bytes]] = {
    "simple": [query(UPDATE)],
    "text": [query(UPDATE + b"; SELECT 1")],
    "text with a commit and an error": [query(b"BEGIN; " + UPDATE + b"; COMMIT; SELECT 1/0")],
    "chain": [query(b"BEGIN"), query(UPDATE), query(b"COMMIT AND CHAIN")],
    "group": [run(UPDATE) + SYNC],
    "group behind a read": [run(READ) + run(UPDATE) + SYNC],
    "flush and sync": [run(UPDATE) + FLUSH + SYNC],
    "prepared": [parse(b"w", UPDATE) + SYNC, bind(b"", b"w") + execute(b"") + SYNC],
    "portal": [query(b"BEGIN"), parse(b"", UPDATE) + bind(b"p", b"") + SYNC, execute(b"p") + SYNC, query(b"COMMIT")],
    "limited rows": [parse(b"", UPDATE + b" RETURNING 1") + bind(b"", b"") + execute(b"", 1) + SYNC],
    "failed call": [query(b"CALL failing()")],
    "failed call in a group": [run(b"CALL failing()") + SYNC],
    "do": [query(b"DO $$ BEGIN PERFORM raise_it(); END $$")],
    "view": [query(b"SELECT * FROM raising")],
    "cte": [run(b"WITH w AS (UPDATE stock SET value = 10 RETURNING 1) SELECT * FROM w") + SYNC],
    "explain": [query(b"EXPLAIN ANALYZE " + UPDATE)],
    "sql execute": [query(b"PREPARE w AS " + UPDATE), query(b"EXECUTE w")],
    "copy": [query(b"COPY stock FROM STDIN"), message(ord("d"), b"9\n") + message(ord("c"))],
    "copy in a group": [run(b"COPY stock FROM STDIN") + SYNC, message(ord("d"), b"9\n") + message(ord("c")) + SYNC],
    "copy of a write": [query(b"COPY (UPDATE stock SET value = 10 RETURNING 1) TO STDOUT")],
    "long text": [query(UPDATE + b" -- " + b"x" * 300_000)],
    "cursor": [
        query(b"BEGIN"),
        query(b"DECLARE c CURSOR FOR SELECT raise_it()"),
        execute(b"c") + SYNC,
        query(b"COMMIT"),
    ],
    "merge": [query(b"MERGE INTO stock USING (SELECT 1) x ON true WHEN MATCHED THEN UPDATE SET value = 10")],
}


@pytest.mark.parametrize("how", WRITES)
def test_a_write_is_read_by_others_once_it_is_acknowledged(
    stock: Database, inner: InnerProxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with (
        RawClient(inner.host, inner.port, stock.name) as writer,
        RawClient(inner.host, inner.port, stock.name) as reader,
    ):

        def hit() -> bool:
            for client in (writer, reader):
                client.exchange(query(READ))
                client.exchange(run(READ) + SYNC)
            reader.send(query(b"SHOW distribcache.last"))
            return reader.rows_until_ready()[0][0] == b"hit"

        until(hit, "never a hit")
        inner.hold_stream(monkeypatch)
        for data in WRITES[how]:
            writer.send(data)
            while writer.message()[:1] not in (b"Z", b"G"):
                pass
        for data in (query(READ), run(READ) + SYNC):
            reader.send(data)
            assert reader.rows_until_ready() == [[b"10"]]
