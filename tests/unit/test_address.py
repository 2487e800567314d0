"""The URL of the server: what can never work is said at once; what to look at first when nobody answers."""

from __future__ import annotations

from typing import Any

import pytest

from distribcache import DistribCache, DistribCacheConfig
from distribcache.coherence.address import plainly, read_url, remedy
from distribcache.coherence.reasons import from_connect_error
from distribcache.errors import ConfigError
from distribcache.proxy.upstream import read_target


def test_its_parts() -> None:
    parts = read_url("postgresql://app:a%20b@db.example.com/shop?sslmode=require")
    assert (parts["host"], parts["dbname"], parts["password"], parts["sslmode"]) == (
        "db.example.com", "shop", "a b", "require"
    )  # fmt: skip
    assert read_target("postgresql://a@one,two:5433/shop", 1.0).hosts == (("one", 5432), ("two", 5433))
    assert read_target("postgresql://a@one,two/shop?port=7", 1.0).hosts == (("one", 7), ("two", 7))
    assert read_target("postgresql://a@%2Ftmp/shop", 1.0).hosts == (("/tmp", 5432),)


WRONG = [
    ("postgresql://a@h:abc/d", "'abc'", "1 to 65535"),
    ("postgresql://a@h:99999/d", "'99999'", "1 to 65535"),
    ("postgresql://a@h:0/d", "'0'", "1 to 65535"),
    ("postgresql://a@h,i/d?port=1,2,3", "2 hosts and 3 ports", "one port"),
    ("postgresql://a@h/d?sslmode=bogus", "'bogus'", "verify-full"),
    ("postgresql://a@h/d?colour=red", "colour", "postgresql://"),
    ("postgresql://a:b%zz@h/d", "URL", "postgresql://"),
]


@pytest.mark.parametrize(("url", "said", "hint"), WRONG)
def test_what_can_never_work(url: str, said: str, hint: str) -> None:
    makers: list[Any] = [
        lambda: read_url(url),
        lambda: read_target(url, 1.0),
        lambda: DistribCache(DistribCacheConfig(upstream_url=url)).__enter__(),
    ]
    for maker in makers:
        with pytest.raises(ConfigError) as raised:
            maker()
        assert raised.value.where == "upstream.url"
        assert said in raised.value.message and hint in raised.value.hint
        assert "\n" not in raised.value.message


def test_no_password_is_shown() -> None:
    with pytest.raises(ConfigError) as raised:
        read_url("postgresql://app:geheim@h/d?colour=red")
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "reason", "hint"),
    [
        ('FATAL:  database "nodb" does not exist', "login_refused", "names in upstream.url"),
        ('FATAL:  password authentication failed for user "a"', "login_refused", "user and password"),
        ("fe_sendauth: no password supplied", "login_refused", "into upstream.url"),
        ('FATAL:  no pg_hba.conf entry for host "1.2.3.4"', "login_refused", "pg_hba.conf"),
        ("server does not support SSL, but SSL was required", "unreachable", "sslmode"),
        ("could not translate: Name or service not known", "unreachable", "host name"),
        ("Connection refused", "unreachable", "the cache keeps trying"),
        ("something new", "unreachable", "check host and port"),
    ],
)
def test_what_to_look_at_first(words: str, reason: str, hint: str) -> None:
    state = from_connect_error(RuntimeError(words), was_up=False)
    assert state.reason == reason and hint in state.remedy
    assert remedy("something new") == ""


def test_what_libpq_asks_back_is_left_out() -> None:
    words = 'connection to server at "h", port 1 failed: Connection refused\n\tIs the server running on that host and '
    error = RuntimeError(f"connection failed: {words}accepting TCP/IP connections?\nmore")
    assert plainly(error) == 'connection to server at "h", port 1 failed: Connection refused more'
