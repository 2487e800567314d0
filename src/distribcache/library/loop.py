"""A thread with an event loop of its own, and the ways to give it work: from tasks of any loop, from any thread.

An application that computes for a second does not stop what runs here for a second.

Rules:
1. ``start`` returns when ``_open`` is done and raises what it raised; ``stop`` returns when ``_close`` is done.
2. What fails here is a counter in ``failures``, never an error of the one who gave it.
3. Work for a loop that is not there, or not any more, is not done, and whoever gave it is told so.
4. In a child after a fork the loop is not there: it stayed with the parent. It may be started there anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

import uvloop

from distribcache.errors import DistribCacheError
from distribcache.library.forks import concerns, left_behind
from distribcache.library.steps import Steps

__all__ = ["OwnLoop"]

T = TypeVar("T")


class OwnLoop(ABC):
    """See the module."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Event
        concerns(self)

    # -- what runs here

    @abstractmethod
    async def _open(self) -> None:
        """What is there before anybody is served."""

    @abstractmethod
    async def _live(self) -> None:
        """What goes on until it is cancelled."""

    @abstractmethod
    async def _close(self) -> None:
        """Let go of everything, or of as much as there is when ``_open`` has failed."""

    # -- life

    @property
    def running(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        """Begin; returns when everything is there. Raises what ``_open`` raises."""
        if self._thread is not None:
            return
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="distribcache", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise

    def stop(self) -> None:
        """End; returns when everything is let go of."""
        thread, loop = self._thread, self._loop
        if thread is not None and loop is not None:
            loop.call_soon_threadsafe(self._ended.set)
            thread.join()
            self._thread = None

    def forked(self) -> None:
        """See 4."""
        left_behind(self._thread, self._loop)
        self._thread = self._loop = None

    def _run(self, ready: Future[None]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main(ready))

    async def _main(self, ready: Future[None]) -> None:
        self._ended = asyncio.Event()
        try:
            await self._open()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            with contextlib.suppress(Exception):
                await self._close()  # what was opened before
            ready.set_exception(error)
            return
        self._loop = asyncio.get_running_loop()
        ready.set_result(None)
        living = asyncio.create_task(self._live())
        try:
            await self._ended.wait()
        finally:
            self._loop = None
            living.cancel()
            await asyncio.wait({living})
            await self._close()

    # -- work for it, from any thread

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do it on the loop."""
        loop = self._loop
        if loop is None:
            work.close()
            raise DistribCacheError(
                "the cache is not running", where="DistribCache", hint="await cache.start(), or: async with cache"
            )
        return asyncio.run_coroutine_threadsafe(work, loop)

    def ask(self, work: Coroutine[Any, Any, T], otherwise: T) -> Steps[T]:
        """What came of it on the loop; ``otherwise`` when that failed or the loop has ended meanwhile."""
        try:
            future = self.call(work)
        except (DistribCacheError, RuntimeError):
            work.close()
            return otherwise
        try:
            result: T = yield future
            return result
        except (asyncio.CancelledError, CancelledError):
            if not future.cancelled():  # it is the caller who was
                raise
        except Exception as error:  # noqa: BLE001 - rule 2
            self.failed(error)
        return otherwise

    def soon(self, work: Callable[..., object], *args: Any) -> bool:
        """Do it on the loop some time; nobody waits for it. False: there is no loop any more."""
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._guarded, work, *args)
        except RuntimeError:
            return False
        return loop is not None

    def _guarded(self, work: Callable[..., object], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001 - rule 2
            self.failed(error)

    def failed(self, error: BaseException, what: str = "") -> None:
        """Count a failure by its kind; ``what`` says of what, where that is not plain."""
        self.failures[f"{what} {type(error).__name__}" if what else type(error).__name__] += 1
