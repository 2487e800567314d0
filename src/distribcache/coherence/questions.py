"""What the analysis of statements asks of a database, on a connection that is opened when the first question comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from distribcache.coherence.catalogue import Catalogue
from distribcache.coherence.connections import Connection, close

__all__ = ["Questions"]

_PATIENCE_S = 2.0


class Questions:
    """``connect`` opens the connection, and raises UpstreamError; it is called again when that has been lost."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._opening = asyncio.Lock()
        self._catalogue: Catalogue | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def ask(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of one question with psycopg's ``%s`` parameters. Raises UpstreamError."""
        async with self._opening:
            if self._catalogue is None or self._catalogue.connection.closed:
                self._catalogue = Catalogue(await self._connect())
            catalogue = self._catalogue
        return await catalogue.ask(sql, params)

    def drop(self) -> None:
        """The next question takes a new connection."""
        catalogue, self._catalogue = self._catalogue, None
        if catalogue is not None:
            task = asyncio.ensure_future(_retire(catalogue))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Returns when the server's process has ended; a connection that is being opened is waited for."""
        async with self._opening:
            catalogue, self._catalogue = self._catalogue, None
        if catalogue is not None:
            await _retire(catalogue)


async def _retire(catalogue: Catalogue) -> None:
    """Close a connection, when whoever asks something on it has been answered."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await catalogue.idle()
    await close(catalogue.connection)
