"""A peer that does not read must not grow memory, nor must anything that is larger than what may be held."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

import psycopg
import pytest
from barewire import DESCRIBE, EXECUTE, SYNC, ask, bare, bind, first_column, message, parse, query
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last
from relay import Relay
from wait import until

MB = 1 << 20


@pytest.fixture
def big(database: Database) -> Database:
    database.execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL)",
        "INSERT INTO item SELECT i, 'item ' || i FROM generate_series(1, 100) i",
        "CREATE TABLE wide (id int PRIMARY KEY, body text NOT NULL)",
        "INSERT INTO wide VALUES (1, repeat('x', 1000000))",
    )
    return database


class Rss:
    """Greatest resident memory of a process, in bytes above what it was at the start."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/status")
        if not self._file.exists():
            pytest.skip("resident memory is read from /proc")
        self._clear = Path(f"/proc/{pid}/clear_refs")
        self._clear.write_text("5")  # reset the peak
        self._before = self._read("VmRSS")

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", self._file.read_text())
        assert found is not None
        return int(found[1]) * 1024

    def peak(self) -> int:
        return self._read("VmHWM") - self._before


def clean(proxy: ProxyProcess) -> None:
    assert proxy.process.poll() is None
    assert "Traceback" not in "".join(proxy.log)


def stalled(client: socket.socket, data: bytes) -> int:
    """Send until the other side takes no more; returns how many bytes it took."""
    client.settimeout(0.5)
    taken = 0
    view = memoryview(data)
    try:
        while taken < len(data):
            taken += client.send(view[taken : taken + 65536])
    except TimeoutError:
        pass
    return taken


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_client_that_pipelines_hits_and_reads_nothing(big: Database, make_proxy: MakeProxy, protocol: str) -> None:
    """Proxy trap 10. Security row 16."""
    proxy = make_proxy(big.url(), {"l1.max_entry": "2MB"})
    sql = "SELECT body FROM wide WHERE id = 1"
    request = query(sql) if protocol == "simple" else ask(sql)
    with bare(proxy.host, proxy.port) as client:
        client.login(big.name)
        hits = proxy.statistics()["hits_total"]

        def hit() -> bool:
            client.send(request)
            client.until_ready()
            return proxy.statistics()["hits_total"] > hits

        until(hit)
        rss = Rss(proxy.pid)
        client.send(request * 1000)
        with proxy.connect() as other:  # the others are served meanwhile
            assert other.execute("SELECT name FROM item WHERE id = 1").fetchone() == ("item 1",)
        time.sleep(0.5)
        assert rss.peak() < 24 * MB, rss.peak() / MB
        client.socket.settimeout(60)
        for _ in range(1000):  # and when it reads at last, everything is there, in order
            seen = client.until_ready()
            assert [kind for kind, _ in seen][-3:] == ["D", "C", "Z"]
            assert len(seen[-3][1]) > 1_000_000
        assert rss.peak() < 32 * MB, rss.peak() / MB
    clean(proxy)


def test_a_client_that_reads_nothing_of_a_huge_result(big: Database, make_proxy: MakeProxy) -> None:
    """Security row 16."""
    proxy = make_proxy(big.url())
    with bare(proxy.host, proxy.port) as client:
        client.login(big.name)
        rss = Rss(proxy.pid)
        client.send(query("SELECT repeat('y', 1000000) FROM generate_series(1, 500)"))
        time.sleep(1)
        assert rss.peak() < 16 * MB, rss.peak() / MB
    until(lambda: proxy.statistics()["sessions"] == 0)
    clean(proxy)


def test_a_server_that_does_not_read(big: Database, make_proxy: MakeProxy) -> None:
    with Relay(big.server.port, only=b"victim") as relay:
        proxy = make_proxy(f"postgresql://postgres@127.0.0.1:{relay.port}/{big.name}")
        with bare(proxy.host, proxy.port) as client:
            client.login(big.name, application_name="victim")
            client.send(query("CREATE TEMP TABLE t (a text); COPY t FROM STDIN"))
            while (client.read() or "?")[0] != "G":
                pass
            relay.thawed.clear()
            rss = Rss(proxy.pid)
            rows = message("d", b"x" * 60000 + b"\n") * 1000
            taken = stalled(client.socket, rows)
            assert taken < 30 * MB, "the client must be held back"
            assert rss.peak() < 16 * MB, rss.peak() / MB
            relay.thawed.set()
        clean(proxy)


def test_a_row_of_200_mb_passes_without_being_held(big: Database, make_proxy: MakeProxy) -> None:
    """Security row 16."""
    proxy = make_proxy(big.url())
    for request in (query("SELECT repeat('z', 200000000)"), ask("SELECT repeat('z', 200000000) FROM item LIMIT 1")):
        with bare(proxy.host, proxy.port) as client:
            client.login(big.name)
            rss = Rss(proxy.pid)
            client.send(request)
            seen = 0
            while seen < 200_000_000:
                seen += len(client.socket.recv(1 << 20))
            assert rss.peak() < 24 * MB, rss.peak() / MB
    clean(proxy)


def test_a_value_of_100_mb_goes_up_without_being_held(big: Database, make_proxy: MakeProxy) -> None:
    """Security row 16."""
    proxy = make_proxy(big.url())
    with bare(proxy.host, proxy.port) as client:
        client.login(big.name)
        rss = Rss(proxy.pid)
        client.send(parse("SELECT length($1::text)") + bind("x" * 100_000_000) + DESCRIBE + EXECUTE + SYNC)
        assert first_column(client.until_ready()) == ["100000000"]
        assert rss.peak() < 24 * MB, rss.peak() / MB
        assert first_column(client.simple("SELECT name FROM item WHERE id = 1")) == ["item 1"]
    clean(proxy)


@pytest.mark.parametrize("size", [60_000, 70_000, 200_000, 3_000_000])
def test_long_texts_and_long_groups(big: Database, make_proxy: MakeProxy, size: int) -> None:
    """Around and beyond what is held for a decision: right answers in order, in both protocols."""
    proxy = make_proxy(big.url())
    sql = f"SELECT name /* {'c' * size} */ FROM item WHERE id = 3"
    with bare(proxy.host, proxy.port) as client:
        client.login(big.name)
        for _ in range(3):
            assert first_column(client.simple(sql)) == ["item 3"]
            assert first_column(client.extended(sql)) == ["item 3"]
            assert first_column(client.simple("SELECT name FROM item WHERE id = 4")) == ["item 4"]
        one = parse("SELECT name FROM item WHERE id = $1::int") + bind("5") + DESCRIBE + EXECUTE
        count = min(size, 200_000) // len(one) + 1
        for _ in range(2):
            data = one * count + SYNC
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            seen = client.until_ready()
            sender.join()
            assert first_column(seen) == ["item 5"] * count
        client.send(query("BEGIN") + query(sql) + query("COMMIT"))
        assert first_column(client.until_ready() + client.until_ready() + client.until_ready()) == ["item 3"]
    with psycopg.connect(proxy.conninfo(), autocommit=True) as connection:
        assert connection.execute(sql).fetchone() == ("item 3",)
        if size > 65536:
            assert last(connection)["status"] in ("bypass", "refused")
    clean(proxy)


def test_clients_that_read_nothing_and_vanish_leave_nothing(big: Database, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(big.url())
    files = Path(f"/proc/{proxy.pid}/fd")
    with proxy.connect() as patient:
        before = len(list(files.iterdir()))
        for _ in range(20):
            with bare(proxy.host, proxy.port) as client:
                client.login(big.name)
                client.send(query("SELECT repeat('y', 1000000) FROM generate_series(1, 50)"))
        until(lambda: proxy.statistics()["sessions"] == 1)
        until(lambda: len(list(files.iterdir())) <= before, lambda: f"{len(list(files.iterdir()))} of {before}")
        assert patient.execute("SELECT name FROM item WHERE id = 1").fetchone() == ("item 1",)
    clean(proxy)
