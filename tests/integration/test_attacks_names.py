"""A prepared statement means what the server was told under its name, at the time it was told: attacks on that."""

from __future__ import annotations

import pytest
from fix_proxy import InnerProxy
from fix_stock import warm
from rawclient import RawClient, run

from distribcache.wire.messages import FLUSH, SYNC, bind, close, execute, parse, query

READ = b"SELECT value FROM stock WHERE id = 1"
OTHER = b"SELECT value FROM stock WHERE id = 2"
DATED = b"SELECT value FROM stock WHERE day = '01/02/2020'"
STOCK = (
    "CREATE TABLE stock (id int PRIMARY KEY, value int, day date)",
    "INSERT INTO stock VALUES (1, 1, '2020-01-02'), (2, 2, '2020-02-01')",
)


@pytest.mark.parametrize("name", [b"", b"s"], ids=["unnamed", "named"])
def test_a_name_is_not_what_it_was_while_a_parse_of_it_is_under_way(
    client: RawClient, second: RawClient, name: bytes
) -> None:
    """The client does not wait for the answer to its Flush: the reply to Parse is not there when Bind is decided."""
    for each in (client, second):
        each.exchange(parse(name, READ) + SYNC)
    again = close(b"S", name) + parse(name, OTHER) + FLUSH
    client.send(again + bind(b"", name) + execute(b"") + SYNC)
    assert client.rows_until_ready() == [[b"2"]]
    assert second.rows(bind(b"", name) + execute(b"") + SYNC) == [[b"1"]]
    assert client.rows(bind(b"", name) + execute(b"") + SYNC) == [[b"2"]]


def test_a_write_under_a_name_that_was_a_read(
    inner: InnerProxy, client: RawClient, second: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm(second, query(READ))
    client.exchange(parse(b"s", OTHER) + SYNC)
    inner.hold_stream(monkeypatch)
    again = close(b"S", b"s") + parse(b"s", b"UPDATE stock SET value = 10 WHERE id = 1") + FLUSH
    client.exchange(again + bind(b"", b"s") + execute(b"") + SYNC)
    assert second.rows(query(READ)) == [[b"10"]]


def test_a_name_deallocated_in_the_exchange_that_parsed_it(client: RawClient, second: RawClient) -> None:
    """Parse, DEALLOCATE and PREPARE in one group: what the group leaves behind is not what its Parse said."""
    second.exchange(parse(b"s", READ) + SYNC)
    client.exchange(parse(b"s", READ) + run(b"DEALLOCATE s") + run(b"PREPARE s AS " + OTHER) + SYNC)
    for _ in range(3):
        assert client.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"2"]]
        assert second.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"1"]]


def test_literals_are_read_at_parse_also_while_the_scope_is_unknown(client: RawClient, second: RawClient) -> None:
    for each, style in ((client, b"MDY"), (second, b"DMY")):
        each.exchange(query(b"BEGIN"))
        each.exchange(query(b"SET DateStyle = 'ISO, " + style + b"'"))
        each.exchange(parse(b"s", DATED) + SYNC)
        each.exchange(query(b"COMMIT"))
        each.exchange(query(b"SET DateStyle = 'ISO, MDY'"))
    for _ in range(3):
        assert client.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"1"]]
        assert second.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"2"]]


def test_literals_are_read_at_parse_also_behind_a_set_in_the_same_group(client: RawClient, second: RawClient) -> None:
    for each, style in ((client, b"MDY"), (second, b"DMY")):
        each.exchange(query(b"SET DateStyle = 'ISO, MDY'"))
        each.exchange(query(READ))
        each.exchange(run(b"SET DateStyle = 'ISO, " + style + b"'") + parse(b"s", DATED) + SYNC)
        each.exchange(query(b"SET DateStyle = 'ISO, MDY'"))
    for _ in range(3):
        assert client.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"1"]]
        assert second.rows(bind(b"", b"s") + execute(b"") + SYNC) == [[b"2"]]


def test_a_parse_answered_here_was_read_under_the_settings_of_then(client: RawClient, second: RawClient) -> None:
    warm(second, run(DATED) + SYNC)
    client.exchange(parse(b"set", b"SET DateStyle = 'ISO, DMY'") + SYNC)
    warm(client, run(DATED) + SYNC)
    assert client.rows(run(DATED) + SYNC) == [[b"1"]]  # the unnamed statement, from memory
    client.exchange(bind(b"p", b"set") + execute(b"p") + SYNC)
    for _ in range(3):
        assert client.rows(bind(b"", b"") + execute(b"") + SYNC) == [[b"1"]]


@pytest.mark.parametrize(
    "how", ["EXECUTE 'DEALLOCATE s';", "EXECUTE 'DEALLOCATE ALL';", "EXECUTE 'DISCARD PLANS; DEALLOCATE ALL';"]
)
def test_a_name_deallocated_in_a_function(client: RawClient, second: RawClient, how: str) -> None:
    """The server would say 26000, so memory must not answer; what is still there is served on."""
    again = bind(b"", b"s") + execute(b"") + SYNC
    for each in (client, second):
        each.exchange(parse(b"s", READ) + parse(b"other", OTHER) + SYNC)
        warm(each, again)
    client.exchange(query(b"DO $$ BEGIN " + how.encode() + b" END $$"))
    for _ in range(2):
        assert any(b"C26000" in message for message in client.exchange(again))
    warm(second, again)
    if "ALL" not in how:
        warm(client, bind(b"", b"other") + execute(b"") + SYNC)
