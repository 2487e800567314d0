"""Questions, replies in any pieces, time that runs out and askers who leave, in any order: no answer is another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distribcache.tiers import connection as connection_module
from distribcache.tiers.breaker import Breaker
from distribcache.tiers.connection import BULK, Connection, Lost
from distribcache.tiers.resp import command

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 4)),
        st.tuples(st.just("reply"), st.integers(1, 60)),
        st.tuples(st.just("wait"), st.integers(1, 60)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
    ),
    max_size=60,
)


class Server:
    """As a transport: what is written are questions, which are answered in their order, when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.owed = b""

    def write(self, data: bytes) -> None:
        for _ in range(data.count(b"*2\r\n")):
            value = b"%d" % self.asked * (1 + self.asked % 5)
            self.owed += b"$%d\r\n%b\r\n" % (len(value), value)
            self.asked += 1

    def set_write_buffer_limits(self, high: int) -> None: ...
    def abort(self) -> None: ...


async def play(steps: list[tuple[str, int]], put: Callable[[Any, str, Any], None]) -> int:
    """How many were answered; fails when one got what another had asked for."""
    clock = [0]
    put(connection_module, "now_ns", lambda: clock[0])
    server = Server()
    breaker = Breaker(10**6, 1.0, 1.0)
    breaker.try_again()
    breaker.close()
    connection = Connection(asyncio.get_running_loop(), 100, 0.05, breaker, 1 << 20)
    connection.connection_made(server)  # type: ignore[arg-type]
    futures: list[asyncio.Future[Any]] = []
    for what, amount in steps:
        if what == "ask":
            futures += [connection.ask(command(b"GET", b"x"), BULK) for _ in range(amount)]
            await asyncio.sleep(0)  # they are sent
        elif what == "reply":
            piece, server.owed = server.owed[:amount], server.owed[amount:]
            if piece:
                connection.data_received(piece)
        elif what == "wait":
            clock[0] += amount * 1_000_000
            connection._timer_due = clock[0]  # the timer is on time
            connection._tick()
        elif amount < len(futures):
            futures[amount].cancel()
    connection.data_received(server.owed)
    answered = 0
    assert connection.why == ""
    for number, future in enumerate(futures):
        assert future.done()
        if not future.cancelled() and future.result() is not Lost.LATE:
            assert future.result() == b"%d" % number * (1 + number % 5)
            answered += 1
    connection.end("stopped", "the end")
    return answered


@given(STEPS)
@settings(max_examples=300)
def test_each_question_gets_its_own_answer_or_none(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(play(steps, patch.setattr))


@pytest.mark.sabotage
def test_it_shows_when_the_late_leave_the_row() -> None:
    steps = [("ask", 4), ("wait", 60), ("ask", 4), ("reply", 5), ("reply", 50)]
    assert 0 < asyncio.run(_with_patch(steps, None)) <= 4
    tick = Connection._tick

    def forgetful(self: Connection) -> None:
        tick(self)
        while self._late:
            self._waiting.popleft()
            self._late -= 1

    with pytest.raises(AssertionError):
        asyncio.run(_with_patch(steps, forgetful))


async def _with_patch(steps: list[tuple[str, int]], tick: Callable[[Connection], None] | None) -> int:
    with pytest.MonkeyPatch.context() as patch:
        if tick is not None:
            patch.setattr(Connection, "_tick", tick)
        return await play(steps, patch.setattr)


@pytest.mark.parametrize("answers", [True, False], ids=["it answers", "it says nothing"])
async def test_what_was_asked_one_by_one_is_late_once_between_two_replies(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Each question is late at a moment of its own. A server that answers others meanwhile is not sick."""
    clock = [0]
    monkeypatch.setattr(connection_module, "now_ns", lambda: clock[0])
    server = Server()
    breaker = Breaker(4, 1.0, 1.0)
    breaker.try_again()
    breaker.close()
    connection = Connection(asyncio.get_running_loop(), 100, 0.05, breaker, 1 << 20)
    connection.connection_made(server)  # type: ignore[arg-type]
    for _ in range(10):
        connection.ask(command(b"GET", b"x"), BULK)
        await asyncio.sleep(0)  # it is sent
        clock[0] += 2_000_000
    if answers:
        clock[0] = 45_000_000
        connection.data_received(server.owed[: server.owed.index(b"$", 1)])
    for _ in range(10):
        clock[0] = max(clock[0] + 2_000_000, 52_000_000)
        connection._timer_due = clock[0]
        connection._tick()
    assert bool(connection.why) is not answers
    connection.end("stopped", "the end")
