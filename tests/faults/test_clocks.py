"""Time jumps: the machine sleeps, the process is stopped, the wall clock is set. No old proof counts as a new one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy
from fix_stock import warm
from muted import kept_and_muted
from rawclient import RawClient
from wait import until

from distribcache import clock
from distribcache.coherence import reader
from distribcache.proxy import hit, lookup
from distribcache.wire.messages import query

READ = query(b"SELECT value FROM stock")
STOCK = ("CREATE TABLE stock (value int)", "INSERT INTO stock VALUES (1)")
EVENTUAL = "-c distribcache.consistency=eventual"
PLAIN = clock.now_ns


def set_clock(monkeypatch: pytest.MonkeyPatch, now: Callable[[], int]) -> None:
    """From now on everybody reads this clock."""
    for name, module in list(sys.modules.items()):
        if name.startswith("distribcache") and getattr(module, "now_ns", None) is PLAIN:
            monkeypatch.setattr(module, "now_ns", now)


def test_a_clock_that_jumps_forward_outdates_the_last_proof(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of sleep: the first read after it is the server's, and soon memory answers again."""
    warm(client, READ)
    with monkeypatch.context() as held:
        inner.hold_stream(held)
        stock.execute("UPDATE stock SET value = 2")
        assert client.rows(READ) == [[b"1"]], "within max_staleness, so it proves nothing that it is fresh below"
        set_clock(monkeypatch, lambda: PLAIN() + 3_600_000_000_000)
        assert client.rows(READ) == [[b"2"]]
    until(inner.settled, "never serving again")
    warm(client, READ)
    assert client.rows(READ) == [[b"2"]]


@kept_and_muted
def test_a_clock_that_stood_still_would_believe_an_old_proof(
    stock: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Coherence trap 18. Muted: hits read a clock that did not go on while the loop stood still."""
    inner = make_inner_proxy(stock.url(), {"freshness.max_staleness": "300ms"})
    with RawClient(inner.host, inner.port, stock.name, options=EVENTUAL) as client:

        def believed(value: int) -> bool:
            """Is the old value served? Muted, a busy machine may have had an old proof already: then once more."""
            warm(client, READ)
            with monkeypatch.context() as held:
                if muted:
                    frozen = PLAIN()
                    held.setattr(hit, "now_ns", lambda: frozen)
                    held.setattr(lookup, "now_ns", lambda: frozen)
                inner.hold_stream(held)
                stock.execute(f"UPDATE stock SET value = {value}")
                inner.call(stand_still(0.7))
                ((found,),) = client.rows(READ)
            assert found is not None and int(found) in (value - 1, value)
            until(lambda: client.rows(READ) == [[b"%d" % value]], "the change does not arrive")
            return int(found) == value - 1

        assert any(believed(value) for value in range(2, 22 if muted else 4)) is muted


async def stand_still(seconds: float) -> None:
    """The loop does nothing, as in a process that is stopped."""
    time.sleep(seconds)


def test_a_process_that_was_stopped_believes_no_old_proof(database: Database, make_proxy: MakeProxy) -> None:
    """Coherence trap 18: SIGSTOP, a commit, a read, SIGCONT. What the process sees first is up to the system."""
    database.execute(*STOCK)
    proxy = make_proxy(database.url(), {"freshness.max_staleness": "500ms"})
    with RawClient(proxy.host, proxy.port, database.name, options=EVENTUAL) as client:
        for value in range(2, 8):
            warm(client, READ)
            os.kill(proxy.pid, signal.SIGSTOP)
            try:
                database.execute(f"UPDATE stock SET value = {value}")
                client.send(READ)
                time.sleep(0.8)
            finally:
                os.kill(proxy.pid, signal.SIGCONT)
            assert client.rows_until_ready() == [[b"%d" % value]]
    assert "Traceback" not in "".join(proxy.log)


@pytest.mark.parametrize("when", [0.0, 4e9], ids=["1970", "2096"])
def test_the_wall_clock_means_nothing(
    stock: Database, inner: InnerProxy, client: RawClient, monkeypatch: pytest.MonkeyPatch, when: float
) -> None:
    """It is only told to the server, in the feedback of the stream."""
    warm(client, READ)
    monkeypatch.setattr(reader, "wall_time", lambda: when)
    monkeypatch.setattr(clock, "wall_time", lambda: when)
    for value in range(2, 6):
        stock.execute(f"UPDATE stock SET value = {value}")
        until(lambda value=value: client.rows(READ) == [[b"%d" % value]], "the change does not arrive")  # type: ignore[misc]
        warm(client, READ)
    (coherence,) = list(inner.proxy.databases)
    assert coherence.report()["reconnects"] == 0


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that goes on in sleep")
def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    """Coherence trap 18."""
    apart = abs(clock.now_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    assert apart < 60_000_000_000
    assert clock._CLOCK == time.CLOCK_BOOTTIME
