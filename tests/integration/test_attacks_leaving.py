"""What was left for a statement is followed again, also when the statement never came: attacks by vanishing."""

from __future__ import annotations

import asyncio

import pytest
from fix_postgres import Database
from fix_proxy import MakeInnerProxy
from rawclient import RawClient
from wait import until

from distribcache.coherence.live import DatabaseCoherence
from distribcache.wire.messages import SYNC, bind, execute, parse, query


@pytest.mark.parametrize("protocol", ["simple", "extended"])
def test_a_client_that_vanishes_while_a_database_is_left(
    database: Database, make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    proxy = make_inner_proxy(database.url())
    (coherence,) = list(proxy.proxy.databases)
    asked: list[str] = []
    stop = DatabaseCoherence.stop

    async def slow(self: DatabaseCoherence) -> None:
        asked.append(self.name)
        await asyncio.sleep(0.5)
        await stop(self)

    with proxy.connect() as witness, monkeypatch.context() as delay:
        delay.setattr(DatabaseCoherence, "stop", slow)
        sql = f'CREATE DATABASE never TEMPLATE "{database.name}"'.encode()
        with RawClient(proxy.host, proxy.port, "postgres") as client:
            whole = parse(b"", sql) + bind(b"", b"") + execute(b"") + SYNC
            client.send(query(sql) if protocol == "simple" else whole)
            until(lambda: asked, "never left")
        until(lambda: not coherence.serving, "never stopped")
        until(lambda: coherence.serving, lambda: f"never followed again: {coherence.reason}")
        witness.execute("SELECT 1")
    assert database.execute("SELECT count(*) FROM pg_database WHERE datname = 'never'") == [(0,)]
