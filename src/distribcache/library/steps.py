"""One story for callers who await and for callers who block.

A story is a generator. It yields what takes time (a coroutine of a driver, a future of another thread, ``Wait``) and is
sent what came of it; what a blocking driver has done already is passed back as it is. The stories never wait, and only
this module does.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any, NamedTuple, TypeVar

__all__ = ["Steps", "Wait", "block", "go"]

T = TypeVar("T")
Steps = Generator[Any, Any, T]


class Wait(NamedTuple):
    """Until the future is done, but no longer than so many seconds; what comes back is whether it is."""

    future: Future[Any]
    seconds: float


async def go(steps: Steps[T]) -> T:
    """Play a story in a task."""
    result: Any = None
    failure: BaseException | None = None
    with contextlib.closing(steps):
        while True:
            try:
                step = steps.send(result) if failure is None else steps.throw(failure)
            except StopIteration as end:
                value: T = end.value
                return value
            failure = None
            try:
                result = await _awaited(step)
            except BaseException as error:  # noqa: BLE001 - the story decides what it means
                failure = error


async def _awaited(step: Any) -> Any:
    if isinstance(step, Wait):
        # Shielded: one who gives up does not end it for the others.
        waiting = asyncio.wrap_future(step.future)
        done, _ = await asyncio.wait({waiting}, timeout=step.seconds) if not step.future.done() else ({waiting}, None)
        return bool(done)
    if isinstance(step, Future):
        return await asyncio.shield(asyncio.wrap_future(step))
    if inspect.isawaitable(step):
        return await step
    return step


def block(steps: Steps[T]) -> T:
    """Play a story in a thread that has nothing else to do."""
    result: Any = None
    failure: BaseException | None = None
    with contextlib.closing(steps):
        while True:
            try:
                step = steps.send(result) if failure is None else steps.throw(failure)
            except StopIteration as end:
                value: T = end.value
                return value
            failure = None
            try:
                result = _blocked(step)
            except BaseException as error:  # noqa: BLE001 - the story decides what it means
                failure = error


def _blocked(step: Any) -> Any:
    if isinstance(step, Wait):
        with contextlib.suppress(Late):
            step.future.exception(step.seconds)
        return step.future.done()
    return step.result() if isinstance(step, Future) else step
