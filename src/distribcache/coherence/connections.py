"""The cache's own connections to a database: how they are opened, what is pinned on them, and how they are gone for
sure.

Three per database: the change stream, the probe, and one for catalogue questions, which may take long and must not
hold up the probe. All carry ``application_name = distribcache``.

Rules:
1. Every setting that shapes text which we compare or parse is pinned by us, after the server's and the role's
   defaults.
2. ``synchronous_commit = local``: our flush message must not wait for a standby.
3. Nothing is set through a pooler: what we pin would stay on a server connection that then serves clients. So before
   the first SET the process that answers has to be the one that was greeted.
4. Closing means that the server's process has ended, not that we have stopped listening: ``DROP DATABASE`` fails at
   once on a slot in use. A copy of the socket is read until the server closes its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from distribcache.coherence.reasons import NotServing

__all__ = ["APPLICATION_NAME", "Connection", "close", "connect", "readable"]

APPLICATION_NAME = "distribcache"
Connection = AsyncConnection[tuple[Any, ...]]

_PINNED = (
    "SET search_path = pg_catalog; SET client_encoding = 'UTF8'; SET datestyle = 'ISO, YMD'; "
    "SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'; "
    "SET quote_all_identifiers = off; SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms}; "
    "SET jit = off; SET max_parallel_workers_per_gather = 0; "
    "SET idle_in_transaction_session_timeout = 0; SET synchronous_commit = local; "
    "SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off"
)
_OPTIONAL = ("idle_session_timeout", "transaction_timeout")


async def connect(
    conninfo: str, *, replication: bool = False, timeout_s: float = 10.0, statement_ms: int = 0, lock_ms: int = 0
) -> Connection:
    """Open and pin one connection. Raises psycopg.Error, TimeoutError, or NotServing behind a pooler.

    ``timeout_s`` bounds the whole of it; ``statement_ms`` and ``lock_ms`` are the server's limits, 0 for none.
    """
    own = make_conninfo(
        conninfo, application_name=APPLICATION_NAME, connect_timeout=str(max(2, round(timeout_s))),
        keepalives_idle="10", keepalives_interval="5", keepalives_count="3",
    )
    if replication:
        own = make_conninfo(own, replication="database")
    async with asyncio.timeout(timeout_s + 1):
        connection = await AsyncConnection.connect(own, autocommit=True)
        try:
            row = await (await connection.execute(b"SELECT pg_catalog.pg_backend_pid()")).fetchone()
            if row is None or row[0] != connection.pgconn.backend_pid:
                raise NotServing("pooler")
            await connection.execute(_PINNED.format(statement_ms=statement_ms, lock_ms=lock_ms).encode())
            for name in _OPTIONAL:
                # Not known to older servers.
                with contextlib.suppress(psycopg.errors.UndefinedObject):
                    await connection.execute(f"SET {name} = 0".encode())
        except BaseException:
            await connection.close()
            raise
    return connection


async def readable(fd: int) -> None:
    """Wait until a socket has something to read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def close(connection: Connection, timeout_s: float = 2.0) -> bool:
    """Close and wait until the server's process has ended; False when it had not within ``timeout_s``."""
    if connection.closed:
        return True
    copy = -1
    with contextlib.suppress(OSError, psycopg.Error):
        copy = os.dup(connection.pgconn.socket)
    connection.pgconn.finish()
    if copy < 0:
        return True
    try:
        os.set_blocking(copy, False)
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if not os.read(copy, 1 << 16):
                        return True
                except BlockingIOError:
                    await readable(copy)
                except OSError:
                    return True
    except TimeoutError:
        return False
    finally:
        os.close(copy)
