"""The drivers through which rows are fetched: which one a connection or pool belongs to.

Drivers are recognised by the classes of their objects and imported only then, so none has to be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distribcache.errors import ClientError
from distribcache.library.drivers.base import Session

__all__ = ["Session", "session_of"]

_makers: dict[type, Callable[[Any], Session]] = {}


def session_of(source: Any, *, blocking: bool) -> Session:
    """What one fetch sees of ``source``. Raises ClientError for what is no connection or pool that we know."""
    maker = _makers.get(type(source))
    if maker is None:
        maker = _makers[type(source)] = _maker(type(source))
    session = maker(source)
    if session.blocking is not blocking:
        raise ClientError(
            f"{type(source).__qualname__} {'blocks' if session.blocking else 'is asynchronous'}", where="fetch",
            hint="use fetch_sync with it" if session.blocking else "use await fetch with it",
        )
    return session


def _maker(kind: type) -> Callable[[Any], Session]:
    modules = {base.__module__.partition(".")[0] for base in kind.__mro__}
    found: Callable[[Any], Session] | None = None
    if "asyncpg" in modules:
        from distribcache.library.drivers import with_asyncpg

        found = with_asyncpg.maker(kind)
    elif modules & {"psycopg", "psycopg_pool"}:
        from distribcache.library.drivers import with_psycopg

        found = with_psycopg.maker(kind)
    if found is None:
        raise ClientError(
            f"{_module(kind)}{kind.__qualname__} is no connection or pool that is known", where="fetch",
            hint="give an asyncpg Pool or Connection, or a psycopg 3 connection or psycopg_pool pool",
        )
    return found


def _module(kind: type) -> str:
    return "" if kind.__module__ == "builtins" else f"{kind.__module__}."
