"""A time of day that is put into a zone has the offset that the zone has today: attacks by times that nobody names."""

from __future__ import annotations

import pytest
from fix_stock import warm
from rawclient import RawClient

from distribcache.wire.messages import SYNC, bind, execute, parse, query

STOCK = (
    "CREATE TABLE stock (at time, day timestamp)",
    "INSERT INTO stock VALUES ('12:00', '2024-01-01')",
    "CREATE TABLE days AS SELECT day FROM stock",
)
TIME, TIMESTAMP = 1083, 1114


def reason(client: RawClient) -> bytes | None:
    return client.rows(query(b"SHOW distribcache.last"))[0][2]


@pytest.mark.parametrize(
    "read", [b"SELECT at AT TIME ZONE 'America/New_York' FROM stock", b"SELECT timestamptz(day::date, at) FROM stock"]
)
def test_a_stored_time(client: RawClient, read: bytes) -> None:
    for _ in range(3):
        client.exchange(query(read))
        assert reason(client) == b"time_dependent"


def test_a_bound_time(client: RawClient) -> None:
    sql = b"SELECT $1 AT TIME ZONE 'America/New_York', day FROM days"
    for oid, value, told in ((TIME, b"12:00", b"time_parameter"), (TIMESTAMP, b"2024-01-01 12:00", None)):
        data = parse(b"", sql, [oid]) + bind(b"", b"", params=[value]) + execute(b"") + SYNC
        if told is None:
            warm(client, data)
        for _ in range(3):
            client.exchange(data)
            assert reason(client) == told
