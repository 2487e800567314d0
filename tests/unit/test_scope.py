"""A session's identity: what keeps two sessions apart, what makes them one, and what may not be cached at all."""

from __future__ import annotations

import pytest

from distribcache.coherence.scope import Idents, Scope, milliseconds, read_scope
from distribcache.errors import ProtocolError
from distribcache.query import Consistency, WorkloadType
from distribcache.sql.settings import KEYED, OWN, SCOPE_COLUMNS

FIXED = {
    "database": b"5",
    "session_user": b"alice",
    "current_user": b"alice",
    "schemas": b'["pg_catalog","public"]',
    "temporary": b"f",
    "isolation": b"read committed",
    "statement_timeout": b"0",
    "backend_pid": b"4711",
    "in_recovery": b"f",
    "postmaster_start": b"1763700000.25",
    "system_identifier": b"7300000000000000001",
}


def row(extra: tuple[bytes | None, ...] = (), **changed: bytes | None) -> list[bytes | None]:
    """One row of the question, with some columns changed; ``own_cache`` is ``distribcache.cache``."""
    settings = dict.fromkeys(KEYED, b"") | {"client_encoding": b"UTF8", "standard_conforming_strings": b"on"}
    own: dict[str, bytes | None] = dict.fromkeys(OWN)
    fixed: dict[str, bytes | None] = {name: FIXED.get(name, b"[null, null]") for name in SCOPE_COLUMNS}
    for name, value in changed.items():
        place = own if name.startswith("own_") else fixed if name in fixed else settings
        key = name.removeprefix("own_")
        assert key in place, name
        place[key] = value  # type: ignore[assignment]
    return [*fixed.values(), *own.values(), *settings.values(), *extra]


def scope(extra: tuple[bytes | None, ...] = (), idents: Idents | None = None, **changed: bytes | None) -> Scope:
    return read_scope(row(extra, **changed), idents or Idents())


def test_all_facts() -> None:
    found = scope(own_consistency=b"strict", own_max_staleness=b"250ms", own_workload=b"olap", statement_timeout=b"2s")
    assert found.schemas == ("pg_catalog", "public")
    assert found.read_committed
    assert not found.refusal
    assert found.statement_timeout_ms == 2000
    assert (found.consistency, found.workload) == (Consistency.STRICT, WorkloadType.OLAP)
    assert found.max_staleness_ns == 250_000_000
    assert (found.idle_ms, found.listens) == (0, False)
    assert (found.server.backend_pid, found.server.in_recovery) == (4711, False)
    assert found.server.system_identifier == "7300000000000000001"


def test_the_shortest_time_that_the_server_waits() -> None:
    assert scope(idle_timeouts=b"0 2s 1min").idle_ms == 2000
    assert scope(idle_timeouts=b"1d").idle_ms == 86_400_000
    assert scope(idle_timeouts=b"0 0").idle_ms == 0
    assert scope(listens=b"t").listens


def test_equal_sessions_are_one_identity() -> None:
    idents = Idents()
    assert scope(idents=idents).ident == scope(idents=idents, backend_pid=b"1", statement_timeout=b"5s").ident
    assert scope(idents=idents).ident == scope(idents=idents, own_consistency=b"eventual").ident


def test_a_session_whose_temporary_schema_comes_first_and_is_not_there_is_not_served() -> None:
    path = b'pg_temp, "We ird", "$user", public'
    found = scope(schemas=None, search_path=path, current_user=b"ann")
    assert found.refusal == "temporary_schema"
    assert found.schemas == ("pg_catalog", "We ird", "ann", "public")
    assert scope(schemas=None, search_path=b"pg_temp, public, pg_catalog").schemas == ("public", "pg_catalog")


DIFFERENT = [
    {"database": b"6"},
    {"session_user": b"bob"},
    {"current_user": b"bob"},
    {"schemas": b'["pg_catalog","other"]'},
    {"isolation": b"repeatable read"},
    {"own_branch": b"feature"},
    {"own_as_of": b"yesterday"},
    {"own_workload": b"olap"},
    *({name: b"something else"} for name in KEYED if name != "client_encoding"),
    {"client_encoding": b"SQL_ASCII"},
]


@pytest.mark.parametrize("changed", DIFFERENT, ids=lambda changed: next(iter(changed)))
def test_whatever_shapes_an_answer_keeps_sessions_apart(changed: dict[str, bytes]) -> None:
    idents = Idents()
    assert read_scope(row(), idents).ident != read_scope(row(**changed), idents).ident  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in KEYED if name != "client_encoding"])
def test_a_setting_that_is_absent_is_not_one_that_is_empty(name: str) -> None:
    idents = Idents()
    assert read_scope(row(**{name: None}), idents).ident != read_scope(row(), idents).ident  # type: ignore[arg-type]


def test_other_settings_count_by_name_and_value() -> None:
    idents = Idents()
    found = {
        read_scope(row((value,)), idents, (name,)).ident
        for name in ("app.one", "app.two")
        for value in (b"1", b"2", None)
    }
    assert len(found) == 6
    assert read_scope(row(), idents).ident not in found


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"temporary": b"t"}, "temporary_schema"),
        ({"own_cache": b"off"}, "cache_off"),
        ({"own_cache": b"false"}, "cache_off"),
        ({"own_cache": b"perhaps"}, "bad_setting"),
        ({"own_cache": b"on"}, ""),
        ({"own_cache": b""}, ""),
        ({"client_encoding": b"LATIN1"}, "client_encoding"),
        ({"client_encoding": b"SJIS"}, "client_encoding"),
        ({"client_encoding": b"utf8"}, ""),
        ({"standard_conforming_strings": b"off"}, "standard_conforming_strings"),
        ({"isolation": b"serializable"}, "isolation"),
        ({"isolation": b"repeatable read"}, ""),
        ({"own_consistency": b"sometimes"}, "bad_setting"),
        ({"own_workload": b"sometimes"}, "bad_setting"),
        ({"own_max_staleness": b"soon"}, "bad_setting"),
        ({"own_max_staleness": b"-1s"}, "bad_setting"),
        ({"temporary": b"t", "own_consistency": b"sometimes"}, "temporary_schema"),
    ],
)
def test_refusals(changed: dict[str, bytes], refusal: str) -> None:
    assert scope(**changed).refusal == refusal  # type: ignore[arg-type]


@pytest.mark.parametrize("isolation", [b"repeatable read", b"serializable", b"read uncommitted", None])
def test_only_read_committed_is_read_committed(isolation: bytes | None) -> None:
    assert not scope(isolation=isolation).read_committed


def test_a_row_of_another_shape() -> None:
    with pytest.raises(ProtocolError):
        read_scope(row()[:-1], Idents())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("250", 250), ("250ms", 250), (" 2 s ", 2000), ("2s", 2000), ("1min", 60_000), ("1.5s", 1500),
        ("1h", 3_600_000), ("", None), ("s", None), ("-1", None), ("one", None), ("1d", 86_400_000),
    ],
)  # fmt: skip
def test_milliseconds(text: str, expected: int | None) -> None:
    assert milliseconds(text) == expected


def test_idents_are_never_given_twice() -> None:
    """The oldest is forgotten beyond the cap; when it comes again it is somebody new, so its old entries only miss."""
    idents = Idents(cap=3)
    first = [idents.of(content) for content in "abc"]
    assert [idents.of(content) for content in "abc"] == first
    assert 0 not in first, "0 means: no identity"
    assert idents.of("a") == first[0]  # now b is the oldest
    fourth = idents.of("d")
    again = idents.of("b")
    assert len({*first, fourth, again}) == 5
