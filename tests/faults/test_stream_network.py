"""The network between the cache and its server fails, not that of its clients: slow, frozen, cut, garbled.

Whatever happens to the change stream, the probe and the looks at the catalogue, who asks strictly reads what has been
committed, and who writes through the proxy reads it back. Only the share of hits may suffer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last
from relay import Relay
from wait import until

READ = "SELECT value FROM stock WHERE id = 1"
STRICT = "-c distribcache.consistency=strict"


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 0), (2, 0)")
    return database


@pytest.fixture
def relay(shop: Database, request: pytest.FixtureRequest) -> Iterator[Relay]:
    with Relay(shop.server.port, only=getattr(request, "param", b"application_name\0distribcache")) as relay:
        yield relay


@pytest.fixture
def proxy(shop: Database, relay: Relay, make_proxy: MakeProxy) -> ProxyProcess:
    return make_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{shop.name}")


def tell_the_truth(shop: Database, proxy: ProxyProcess, rounds: int, between: Callable[[int], None]) -> None:
    """Writes around the proxy and through it, each read back at once."""
    with (
        shop.connect() as direct,
        proxy.connect(options=STRICT, prepare_threshold=None) as strict,
        proxy.connect(prepare_threshold=None) as one,
        proxy.connect(prepare_threshold=None) as two,
    ):
        for number in range(1, rounds + 1):
            between(number)
            direct.execute("UPDATE stock SET value = %s WHERE id = 1", [number])
            assert strict.execute(READ).fetchone() == (number,)
            assert strict.execute(READ).fetchone() == (number,)
            one.execute(f"UPDATE stock SET value = {-number} WHERE id = 1")
            assert two.execute(READ).fetchone() == (-number,)
            assert one.execute(READ).fetchone() == (-number,)
            assert strict.execute(READ).fetchone() == (-number,)


def recovers(proxy: ProxyProcess) -> None:
    """Hits are served again, and nothing has been printed that should not be."""
    until(proxy.serving, lambda: str(proxy.status()))
    with proxy.connect(prepare_threshold=None) as connection:

        def hit() -> bool:
            connection.execute(READ)
            return bool(last(connection)["status"] == "hit")

        until(hit, lambda: str(last(connection)))
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)


def test_a_slow_network(shop: Database, relay: Relay, proxy: ProxyProcess) -> None:
    relay.delay = 0.02
    tell_the_truth(shop, proxy, 25, lambda number: None)
    relay.delay = 0.0
    recovers(proxy)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_a_network_of_small_pieces(shop: Database, relay: Relay, proxy: ProxyProcess, size: int) -> None:
    relay.slice_bytes = size
    tell_the_truth(shop, proxy, 25, lambda number: None)
    recovers(proxy)


def test_a_network_that_freezes(shop: Database, relay: Relay, proxy: ProxyProcess) -> None:
    def freeze(number: int) -> None:
        if number % 4:
            relay.thawed.clear()
        else:
            relay.thawed.set()

    tell_the_truth(shop, proxy, 24, freeze)
    relay.thawed.set()
    recovers(proxy)


def test_a_network_that_is_cut(shop: Database, relay: Relay, proxy: ProxyProcess) -> None:
    stop = threading.Event()

    def scissors() -> None:
        while not stop.wait(0.15):
            relay.cut()

    cutting = threading.Thread(target=scissors)
    cutting.start()
    try:
        tell_the_truth(shop, proxy, 60, lambda number: None)
    finally:
        stop.set()
        cutting.join()
    recovers(proxy)


def test_a_server_that_refuses_the_cache(shop: Database, relay: Relay, proxy: ProxyProcess) -> None:
    """Its clients are connected already; the cache's own connections end and find nobody for a while."""

    def refuse(number: int) -> None:
        if number == 3:
            relay.refusing = True
            relay.cut()

    with proxy.connect():
        with shop.connect() as direct, proxy.connect(options=STRICT, prepare_threshold=None) as strict:
            for number in range(1, 20):
                refuse(number)
                direct.execute("UPDATE stock SET value = %s WHERE id = 1", [number])
                assert strict.execute(READ).fetchone() == (number,)
        until(lambda: not proxy.serving(), "it still serves")
        relay.refusing = False
        recovers(proxy)


def reconnects(connection: psycopg.Connection[Any]) -> int:
    return int(dict(connection.execute("SHOW distribcache.freshness").fetchall())["reconnects"])


HARM: dict[str, Callable[[bytes], bytes]] = {
    "an unknown kind": lambda one: one[:1] + one[1:5] + b"?" + one[6:],
    "a changed word": lambda one: one.replace(b"table ", b"tXble ").replace(b"COMMIT", b"COMMUT"),
    "a message cut short": lambda one: one[:1] + (5).to_bytes(4, "big") + one[5:6],
    "an impossible length": lambda one: one[:1] + (3).to_bytes(4, "big") + one[5:],
    "a type of message that none has": lambda one: b"?" + one[1:],
    "the end of the stream": lambda one: b"c\0\0\0\4",
    "an error": lambda one: b"E" + (4 + 24).to_bytes(4, "big") + b"SERROR\0C58000\0Mno more\0\0",
}


@pytest.mark.parametrize("relay", [b"replication\0database"], indirect=True)
@pytest.mark.parametrize("harm", HARM)
def test_a_change_stream_that_is_garbled(shop: Database, relay: Relay, proxy: ProxyProcess, harm: str) -> None:
    """Each message of the stream about a row or a commit is harmed once: a new epoch begins, nothing is believed."""

    def garble(number: int, one: bytes) -> bytes:
        about = one[:1] == b"d" and (b"table public.stock" in one or b"COMMIT" in one)
        return HARM[harm](one) if about else one

    with proxy.connect(prepare_threshold=None) as connection, shop.connect() as direct:
        for number in range(1, 4):
            recovers(proxy)
            before = reconnects(connection)
            relay.arm(garble)
            direct.execute("UPDATE stock SET value = %s WHERE id = 1", [number])

            def seen(number: int = number) -> bool:
                return bool(connection.execute(READ).fetchone() == (number,))

            until(seen, "the change is never seen")
            until(lambda before=before: reconnects(connection) > before, "it goes on")  # type: ignore[misc]
            relay.disarm()
            for _ in range(5):
                assert seen()
    recovers(proxy)


def test_a_client_that_vanishes_does_not_take_the_stream_along(shop: Database, proxy: ProxyProcess) -> None:
    with shop.connect() as direct:
        for number in range(1, 10):
            with psycopg.connect(proxy.conninfo(), autocommit=True) as client:
                direct.execute("UPDATE stock SET value = %s WHERE id = 1", [number])
                until(lambda number=number: client.execute(READ).fetchone() == (number,))  # type: ignore[misc]
    recovers(proxy)
