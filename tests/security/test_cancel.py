"""Cancel requests: relayed with the server's own pid and secret, and never felt by anybody else (pgbouncer 1.18)."""

from __future__ import annotations

import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from barewire import Bare, ask, bare, cancel, fields, first_column, message, query
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last, proxies
from relay import Relay
from wait import until

HOLD, RELEASE = "SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock(7)"
HELD = "pg_advisory_xact_lock_shared(7)"
"""Goes on for as long as a test wants it to."""

SLOW = "SELECT count(*) FROM item a, item b, item c, item d WHERE a.id + b.id + c.id + d.id > 3"


def send_cancel(proxy: ProxyProcess, pid: int, secret: bytes) -> None:
    """Send and wait for the close, which says that the server has acted."""
    with bare(proxy.host, proxy.port) as courier:
        courier.send(cancel(pid, secret))
        assert courier.rest() == []


def running(database: Database, text: str) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()"
    with database.connect() as connection:
        row = connection.execute(sql, [f"%{text}%"]).fetchone()
    assert row is not None
    return int(row[0])


def test_a_cancel_ends_the_query_of_its_own_client_only(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Security row 12."""
    with (
        bare(shared_proxy.host, shared_proxy.port) as one,
        bare(shared_proxy.host, shared_proxy.port) as two,
        shared_shop.connect() as holder,
    ):
        for each in (one, two):
            each.login(shared_shop.name)
        holder.execute(HOLD)
        one.send(query("SELECT 'one', " + HELD))
        two.send(query("SELECT 'two', " + HELD))
        until(lambda: running(shared_shop, HELD) == 2)
        send_cancel(shared_proxy, one.pid, one.secret)
        assert [fields(body)["C"] for kind, body in one.until_ready() if kind == "E"] == ["57014"]
        holder.execute(RELEASE)
        assert first_column(two.until_ready()) == ["two"]
        assert first_column(one.simple("SELECT 'alive'")) == ["alive"]


def test_cve_2026_6478_forged_secret(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Security rows 12 and 13."""
    with bare(shared_proxy.host, shared_proxy.port) as victim, shared_shop.connect() as holder:
        victim.login(shared_shop.name)
        holder.execute(HOLD)
        victim.send(query("SELECT 'unharmed', " + HELD))
        until(lambda: running(shared_shop, "unharmed") == 1)
        wrong = bytes([victim.secret[0] ^ 1]) + victim.secret[1:]
        for pid, secret in ((victim.pid, wrong), (victim.pid + 1, victim.secret), (victim.pid, b"\0\0\0\0")):
            send_cancel(shared_proxy, pid, secret)
        for secret in (b"", b"x" * 257, b"x" * 5000):
            with bare(shared_proxy.host, shared_proxy.port) as courier:
                courier.send(cancel(victim.pid, secret))
                assert [kind for kind, _ in courier.rest()] in (["E"], [])
        assert running(shared_shop, "unharmed") == 1
        holder.execute(RELEASE)
        assert first_column(victim.until_ready()) == ["unharmed"]


def test_late_cancel_hits_nothing(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Coherence trap 15. Security row 12."""
    with bare(shared_proxy.host, shared_proxy.port) as client:
        client.login(shared_shop.name)
        sql = "SELECT name FROM item WHERE id = 3"
        for _ in range(20):
            assert first_column(client.extended(sql)) == ["item 3"]
            send_cancel(shared_proxy, client.pid, client.secret)
            assert first_column(client.simple(sql)) == ["item 3"]
    send_cancel(shared_proxy, client.pid, client.secret)  # and after the client has gone


def test_a_cancelled_question_of_ours_does_not_end_caching(shared_shop: Database) -> None:
    """Coherence trap 15. Security row 12. A cancel, or the client's own statement_timeout, may hit the question about
    the session: it is asked again.
    """
    with Relay(shared_shop.server.port, only=b"victim") as relay, proxies() as make:
        proxy = make(f"postgresql://postgres@127.0.0.1:{relay.port}/{shared_shop.name}")
        error = message("E", b"SERROR\0VERROR\0C57014\0Mcanceling statement due to user request\0\0")
        cancelled: list[int] = []

        def fault(count: int, one: bytes) -> bytes:
            """The replies to our question are 1 2 D C 3 Z, those to the client's 1 2 T."""
            if count == 2 and one[:1] == b"D":
                cancelled.append(count)
                return error
            return b"" if cancelled and count in (3, 4) else one

        def read() -> bool:
            assert connection.execute("SELECT name FROM item WHERE id = 4").fetchone() == ("item 4",)
            return bool(last(connection)["status"] == "hit")

        while not cancelled:  # nothing is asked while nothing could be served
            with psycopg.connect(proxy.conninfo(application_name="victim"), autocommit=True) as connection:
                relay.arm(fault)
                read()
                relay.disarm()
                if cancelled:
                    until(read, lambda: str(last(connection)))


def test_cancel_storm(shared_shop: Database, shared_proxy: ProxyProcess) -> None:
    """Security row 12."""
    with (
        bare(shared_proxy.host, shared_proxy.port) as victim,
        bare(shared_proxy.host, shared_proxy.port) as target,
    ):
        victim.login(shared_shop.name)
        target.login(shared_shop.name)
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                with bare(shared_proxy.host, shared_proxy.port) as courier:
                    courier.send(cancel(target.pid, target.secret))
                    courier.rest()

        with ThreadPoolExecutor(8) as pool:
            storms = [pool.submit(storm) for _ in range(8)]
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                for number in range(1, 10):
                    assert first_column(victim.simple(f"SELECT name FROM item WHERE id = {number}")) == [
                        f"item {number}"
                    ]
            stop.set()
            for each in storms:
                each.result()
        with bare(shared_proxy.host, shared_proxy.port) as flood:  # a hundred at once that say nothing more
            couriers = [Bare(shared_proxy.host, shared_proxy.port) for _ in range(100)]
            for each in couriers:
                each.send(cancel(target.pid, target.secret))
            flood.login(shared_shop.name)
            for each in couriers:
                each.rest()
                each.close()


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_cancel_of_a_follower_in_single_flight(database: Database, make_proxy: MakeProxy, protocol: str) -> None:
    """Security row 12."""
    database.execute("CREATE TABLE item AS SELECT i AS id FROM generate_series(1, 400) i")
    proxy = make_proxy(database.url(), {"cache.single_flight_wait": "60s"})
    data = query(SLOW) if protocol == "simple" else ask(SLOW)
    with bare(proxy.host, proxy.port) as leader, bare(proxy.host, proxy.port) as follower:
        for each in (leader, follower):
            each.login(database.name)

            def served(each: Bare = each) -> bool:
                """What all its names mean is known: else nobody would be waited for."""
                each.simple(SLOW.replace("WHERE", "WHERE false AND"))
                return first_column(each.simple("SHOW distribcache.last")) == ["hit"]

            until(served, "never a hit")
        leader.send(data)
        until(lambda: running(database, "item a, item b") == 1)
        follower.send(data)
        time.sleep(0.3)
        assert running(database, "item a, item b") == 1, "the follower must wait in the proxy"
        # A cancel that overtakes what it is meant for ends nothing.
        while not select.select([follower.socket], [], [], 0.1)[0]:
            send_cancel(proxy, follower.pid, follower.secret)
        answer = follower.until_ready()
        assert [kind for kind, _ in answer] == ["E", "Z"]
        assert fields(answer[0][1])["C"] == "57014"
        assert first_column(follower.simple("SELECT id FROM item WHERE id = 2")) == ["2"]
        # The leader is not disturbed by its follower's cancel; its own cancel is its own affair.
        assert running(database, "item a, item b") == 1
        follower.send(data)
        time.sleep(0.2)
        send_cancel(proxy, leader.pid, leader.secret)
        assert [fields(body)["C"] for kind, body in leader.until_ready() if kind == "E"] == ["57014"]
        until(lambda: running(database, "item a, item b") == 1, "the follower must go upstream itself")
        send_cancel(proxy, follower.pid, follower.secret)
        assert [fields(body)["C"] for kind, body in follower.until_ready() if kind == "E"] == ["57014"]
    assert "Traceback" not in "".join(proxy.log)
