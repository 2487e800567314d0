"""What all cached functions of one cache share: the generations of their tags, and refreshing that nobody waits for.

A tag is part of the key, as a number that another one takes the place of when the tag is invalidated. So nothing has to
be searched for, and what is being made at that moment is stored under a key that nobody asks for any more.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Final

from distribcache.library.forks import concerns, left_behind
from distribcache.library.heat import Heat
from distribcache.library.keeper import Keeper
from distribcache.library.outcome import Tally
from distribcache.library.steps import Steps, block, go

__all__ = ["Memos"]

_MOST_TAGS: Final = 100_000
_THREADS: Final = 4


class Memos:
    """What all cached functions of one cache share."""

    def __init__(self, keeper: Keeper, tally: Tally, heat: Heat) -> None:
        self.keeper = keeper
        self.tally = tally
        self.heat = heat
        self._tags: dict[str, int] = {}
        self._generation = 0
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._threads: ThreadPoolExecutor | None = None
        concerns(self)

    def forked(self) -> None:
        """Its threads are the parent's."""
        left_behind(self._threads)
        self._threads = None

    def generation(self, tag: str) -> int:
        """A number that another one takes the place of when the tag is invalidated."""
        return self._tags.get(tag, self._generation)

    def invalidate(self, tag: str) -> None:
        """Nothing that bears this tag is served any more, nor what is being made at this moment."""
        if len(self._tags) >= _MOST_TAGS and tag not in self._tags:
            self._tags.clear()
            self._generation = next(self._numbers)
        self._tags[tag] = next(self._numbers)

    def behind(self, steps: Steps[Any], *, blocking: bool) -> None:
        """Play a story that nobody waits for."""
        if blocking:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, "distribcache refresh")
            self._threads.submit(contextvars.copy_context().run, _quietly, steps, self.keeper)
            return
        task = asyncio.get_running_loop().create_task(_quietly_async(steps, self.keeper))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Begin no more refreshing."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _quietly(steps: Steps[Any], keeper: Keeper) -> None:
    try:
        block(steps)
    except Exception as error:  # noqa: BLE001 - the old value stays until its time is over
        keeper.failed(error, "refresh")


async def _quietly_async(steps: Steps[Any], keeper: Keeper) -> None:
    try:
        await go(steps)
    except Exception as error:  # noqa: BLE001 - as above
        keeper.failed(error, "refresh")
