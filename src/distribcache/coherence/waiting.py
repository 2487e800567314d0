"""Hits that wait until the ledger is known to be complete up to a moment (coherence rule R4)."""

from __future__ import annotations

import asyncio

__all__ = ["Waiting"]


class Waiting:
    """Floors, in nanoseconds, and who waits for each."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: list[tuple[int, asyncio.Future[bool]]] = []

    def __bool__(self) -> bool:
        """Does anybody wait still?"""
        return any(not future.done() for _, future in self._all)

    def add(self, floor_ns: int, timeout_s: float) -> asyncio.Future[bool]:
        """True when the floor is reached; False after ``timeout_s``, or when there is no hope."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._all.append((floor_ns, future))
        timer = loop.call_later(timeout_s, _resolve, future, False)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def reached(self, fresh_at: int) -> None:
        """The ledger is complete up to here."""
        if self._all:
            waiters, self._all = self._all, []
            for waiter in waiters:
                if waiter[0] <= fresh_at:
                    _resolve(waiter[1], True)
                elif not waiter[1].done():
                    self._all.append(waiter)

    def give_up(self) -> None:
        """Nothing more will be known."""
        waiters, self._all = self._all, []
        for _, future in waiters:
            _resolve(future, False)

    def prune(self) -> None:
        """Forget those who have stopped waiting."""
        self._all = [waiter for waiter in self._all if not waiter[1].done()]

    def beyond(self, moment_ns: int) -> bool:
        """Does one of those who were there at the last ``prune`` wait for later than this?"""
        return any(floor > moment_ns for floor, _ in self._all)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
