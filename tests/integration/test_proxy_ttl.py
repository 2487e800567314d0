"""``invalidation = "ttl"``: an explicit choice, in which only time and DDL through the proxy end an entry."""

from __future__ import annotations

import psycopg
from fix_postgres import Database
from fix_proxy import MakeProxy, last
from pooler import pgbouncer
from wait import until


def test_only_time_and_our_own_ddl_end_an_entry(database: Database, make_proxy: MakeProxy) -> None:
    database.execute("CREATE TABLE note (id int PRIMARY KEY, text text)", "INSERT INTO note VALUES (1, 'old')")
    proxy = make_proxy(database.url(), {"freshness.invalidation": "ttl", "ttl.oltp": "5s"})
    read = "SELECT text FROM note WHERE id = 1"
    with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:

        def outlived() -> bool:
            """A change is not seen, which is what the mode means. The time may be over first, on a busy machine."""
            until(lambda: connection.execute(read).fetchone() and last(connection)["status"] == "hit", "never a hit")
            (before,) = connection.execute(read).fetchone() or ("",)
            database.execute("UPDATE note SET text = text || '+'")
            return connection.execute(read).fetchone() == (before,)

        until(outlived, "something else than time ends an entry")
        new = database.execute("SELECT text FROM note")
        until(lambda: connection.execute(read).fetchall() == new, "the entry outlived its TTL")
        until(lambda: connection.execute(read).fetchall() == new and last(connection)["status"] == "hit")
        connection.execute("ALTER TABLE note ALTER COLUMN text SET DEFAULT 'x'")
        connection.execute(read)
        assert last(connection)["status"] in ("miss", "bypass")
        freshness = dict(connection.execute("SHOW distribcache.freshness").fetchall())
        assert freshness["mode"] == "ttl"
        assert "TTL" in str(freshness["detail"])


def test_it_works_without_logical_decoding_and_says_so(database: Database, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(database.url(), {"freshness.invalidation": "ttl"})
    assert [each["mode"] for each in proxy.status()["databases"]] == ["ttl"]
    slots = database.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
    assert slots == [(0,)]


def test_behind_a_pooler_everything_passes(database: Database, make_proxy: MakeProxy) -> None:
    """What we pin would stay on a connection that then serves others: nothing is answered from memory."""
    database.execute("CREATE TABLE note (id int PRIMARY KEY)")
    with pgbouncer(database) as port:
        url = database.url().replace(f":{database.server.port}/", f":{port}/")
        proxy = make_proxy(url, {"freshness.invalidation": "ttl"})
        with proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
            for _ in range(3):
                assert connection.execute("SELECT count(*) FROM note").fetchone() == (0,)
                told = last(connection)
            assert (told["status"], told["reason"]) == ("bypass", "pooler")
