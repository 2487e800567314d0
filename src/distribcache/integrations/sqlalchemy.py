"""SQLAlchemy 2: statements of an engine, Core and ORM, synchronous and asynchronous, answered from memory.

    enable(engine, cache)
    users = session.scalars(select(User).where(User.id == 5), execution_options={"distribcache": True}).all()

The place is the driver's cursor: what memory gives are the rows that the driver would have fetched, so types, loaders
and the identity map of a session work as ever. The drivers are psycopg 3 (``postgresql+psycopg``) and asyncpg
(``postgresql+asyncpg``); statements of another one pass by.

Rules:
1. Only statements that ask for it, by the execution option ``distribcache``: True, or a mapping of ``consistency``,
   ``max_staleness``, ``ttl``, ``workload``. Or all of the engine, with ``enable(…, every=True)``.
2. Only while the connection's transaction has not begun on the server: SQLAlchemy begins it with the first statement
   that is sent. A read from memory leaves it unbegun, one that memory lacks runs in a transaction of its own. Behind
   anything else that was sent all statements are sent, and so they are under any isolation level but READ COMMITTED.
3. The scope of that very connection is asked before each use, as for any connection.
4. What was sent and is no proven pure read raises the floor when its transaction has ended: in AUTOCOMMIT mode behind
   each statement. DDL is an alarm then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from distribcache.cache import DistribCache
from distribcache.errors import ConfigError
from distribcache.library.drivers import Session
from distribcache.library.drivers.base import PassedByError, named_once
from distribcache.library.plan import Wish
from distribcache.library.steps import Steps, block, go
from distribcache.library.writing import wrote

__all__ = ["enable"]

OPTION: Final = "distribcache"
_WISHES: Final = ("consistency", "max_staleness", "ttl", "workload")
_MOST_TEXTS: Final = 64
_NAMED: Final = re.compile(r"%\([^)]+\)s")
_DRIVERS: Final = ("psycopg", "asyncpg")


def enable(engine: Engine | AsyncEngine, cache: DistribCache, *, every: bool = False) -> None:
    """Let statements of this engine be answered by that cache. Call it once, before the engine is used.

    ``every``: all reads, unless they say ``distribcache=False``. Raises ConfigError for a driver that is not known.
    """
    synchronous = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    driver = synchronous.dialect.driver.removesuffix("_async")
    if synchronous.dialect.name != "postgresql" or driver not in _DRIVERS:
        raise ConfigError(
            f"{synchronous.dialect.name}+{synchronous.dialect.driver} cannot be read through the cache",
            where="enable", hint="use postgresql+psycopg:// or postgresql+asyncpg://",
        )
    _Way(synchronous, cache, every=every).install()


class _Way:
    """One engine's way through a cache."""

    def __init__(self, engine: Engine, cache: DistribCache, *, every: bool) -> None:
        self._engine = engine
        self._cache = cache
        self._every = every
        self._asynchronous = engine.dialect.is_async
        self._asyncpg = engine.dialect.driver == "asyncpg"
        self._representation = f"sqlalchemy {named_once(engine)}"

    def install(self) -> None:
        engine = self._engine
        dialect: Any = engine.dialect
        event.listen(engine, "do_execute", self._execute)
        event.listen(engine, "do_execute_no_params", self._execute_no_params)
        event.listen(engine, "do_executemany", self._executemany)
        event.listen(engine, "after_cursor_execute", self._executed)
        event.listen(engine, "handle_error", self._failed)
        # There is no event behind a commit, and before it would be too early.
        commit, rollback, commit_prepared = dialect.do_commit, dialect.do_rollback, dialect.do_commit_twophase

        def do_commit(connection: Any) -> None:
            try:
                commit(connection)
            finally:  # also where the answer to the COMMIT was lost
                self._ended(connection)

        def do_rollback(connection: Any) -> None:
            try:
                rollback(connection)
            finally:
                self._ended(connection)

        def do_commit_twophase(connection: Any, *args: Any, **more: Any) -> None:
            try:
                commit_prepared(connection, *args, **more)
            finally:
                self._ended(connection.connection)

        dialect.do_commit_twophase = do_commit_twophase
        dialect.do_commit = do_commit
        dialect.do_rollback = do_rollback

    # -- statements

    def _execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        return self._answer(cursor, statement, parameters, context)

    def _execute_no_params(self, cursor: Any, statement: str, context: Any) -> bool:
        return self._answer(cursor, statement, None, context)

    def _executemany(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        self._sent(context, statement, pure=False)
        return False

    def _answer(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        """Give the cursor's place to rows from memory; False: SQLAlchemy sends the statement."""
        option = context.execution_options.get(OPTION, self._every)
        pure = analysed = False
        if option and self._may(context):
            wish = self._wish(option)
            args = (parameters,) if isinstance(parameters, dict) else tuple(parameters or ())
            session = self._session(context.root_connection)
            try:
                result = self._play(self._cache._fetching.read(session, statement, args, wish))
            except PassedByError as passed:
                pure, analysed = passed.pure, passed.analysed
            else:
                described = [
                    (name, oid, None, None, None, None, None)
                    for name, oid in zip(result.columns, result.oids, strict=True)
                ]
                rows = [tuple(row) for row in result.rows]
                context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(cursor, described, rows)
                return True
        self._sent(context, statement, pure=pure, analysed=analysed)
        return False

    def _may(self, context: Any) -> bool:
        """Is it one statement whose rows are wanted all at once, under the level that reads each by itself?"""
        options, connection = context.execution_options, context.root_connection
        if options.get("stream_results") or options.get("yield_per") or not connection.connection.is_valid:
            return False
        return _level(connection) in ("READ COMMITTED", "AUTOCOMMIT")

    def _wish(self, option: Any) -> Wish:
        if not isinstance(option, Mapping):
            return Wish()
        unknown = sorted(set(option) - set(_WISHES))
        if unknown:
            raise ConfigError(
                f"there is no {unknown[0]}", where=f"execution option {OPTION}", hint=f"known are: {', '.join(_WISHES)}"
            )
        return Wish.of(*(option.get(name) for name in _WISHES))

    def _session(self, connection: Connection) -> Session:
        raw: Any = connection.connection.driver_connection
        session: Any
        if self._asyncpg:
            from distribcache.library.drivers.with_asyncpg import AsyncpgSession

            session = AsyncpgSession(None, raw, representation=self._representation)
        else:
            from distribcache.library.drivers.with_psycopg import AsyncSession, BlockingSession

            session = (AsyncSession if self._asynchronous else BlockingSession)(None, raw)
            session.passes = False
        found: Session = session
        return found

    def _play(self, steps: Steps[Any]) -> Any:
        return await_only(go(steps)) if self._asynchronous else block(steps)

    # -- what was sent

    def _sent(self, context: Any, statement: str, *, pure: bool, analysed: bool = False) -> None:
        info = _info(context.root_connection.connection)
        if not pure:
            texts = info.setdefault(OPTION, [])
            if len(texts) < _MOST_TEXTS:
                text = statement if self._asyncpg else _NAMED.sub("$1", statement).replace("%%", "%")
                texts.append((text, analysed))

    def _executed(self, connection: Connection, *_: Any) -> None:
        if _level(connection) == "AUTOCOMMIT":
            self._ended(connection.connection)

    def _failed(self, failure: ExceptionContext) -> None:
        """It may have done something before it failed, or have been done though its answer was lost."""
        connection = failure.connection
        if failure.is_disconnect or connection is None or connection.invalidated or connection.closed:
            self._cache.wrote()
        else:
            self._executed(connection)

    def _ended(self, connection: Any) -> None:
        """A transaction has ended. This blocks for as long as a word to the cache's own thread takes."""
        for text, analysed in _info(connection).pop(OPTION, ()):
            block(wrote(self._cache._keeper, text, analysed=analysed))


def _info(connection: Any) -> dict[Any, Any]:
    """What is noted about a connection; a dialect's first look at a server is none of ours."""
    try:
        info: dict[Any, Any] = connection.info
    except (NotImplementedError, AttributeError):
        return {}
    return info


def _level(connection: Connection) -> str:
    """The isolation level, without asking the server."""
    dialect: Any = connection.dialect
    level = connection.get_execution_options().get("isolation_level") or getattr(
        dialect, "_on_connect_isolation_level", None
    )
    return str(level or getattr(dialect, "default_isolation_level", None) or "").replace("_", " ").upper()
