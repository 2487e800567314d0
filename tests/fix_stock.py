"""A table and a proxy inside the test's own process, for attacks in raw messages: a new database for each test.

A test module says what is in the database, ``STOCK``, and may say other settings of the proxy, ``SETTINGS``.

``stock``            the database, with what ``STOCK`` has made
``inner``            a proxy before it. A change that the test holds back may be late by as long as a test may last, and
                     a read waits for a proof for as long as a busy machine needs for one
``client, second``   two clients of it that log in and say nothing else
``warm``             repeat an exchange until it is answered from memory
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy
from rawclient import RawClient
from wait import until

from distribcache.wire.messages import query

__all__ = ["client", "inner", "second", "stock", "warm"]

_LATE = {"freshness.max_staleness": "30s", "freshness.hit_wait": "5s"}


@pytest.fixture
def stock(request: pytest.FixtureRequest, database: Database) -> Database:
    database.execute(*request.module.STOCK)
    return database


@pytest.fixture
def inner(request: pytest.FixtureRequest, stock: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    return make_inner_proxy(stock.url(), getattr(request.module, "SETTINGS", _LATE))


@pytest.fixture
def client(stock: Database, inner: InnerProxy) -> Iterator[RawClient]:
    with RawClient(inner.host, inner.port, stock.name) as client:
        yield client


@pytest.fixture
def second(stock: Database, inner: InnerProxy) -> Iterator[RawClient]:
    with RawClient(inner.host, inner.port, stock.name) as client:
        yield client


def warm(client: RawClient, data: bytes) -> None:
    def hit() -> bool:
        client.exchange(data)
        return client.rows(query(b"SHOW distribcache.last"))[0][0] == b"hit"

    until(hit, "never a hit")
