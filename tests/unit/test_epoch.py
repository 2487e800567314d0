"""Epochs that others compare: equal only where positions of the log mean the same (coherence rule R8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distribcache.coherence import epoch
from distribcache.coherence.epoch import digest, server_epoch
from distribcache.coherence.link import ServerIdentity

SERVER = ServerIdentity("7300000000000000001", "1763700000.25", in_recovery=False, timeline=1, database_oid=5)


@pytest.mark.parametrize(
    "change",
    [
        {"system_identifier": "7300000000000000002"}, {"postmaster_start": "1763700000.26"}, {"timeline": 2},
        {"database_oid": 6},
    ],
)  # fmt: skip
def test_another_server_run_timeline_or_database_is_another_epoch(change: dict[str, Any]) -> None:
    """Coherence trap 19: a restored snapshot keeps system id and timeline, a recreated database its name."""
    assert server_epoch(SERVER, 1 << 22) == server_epoch(replace(SERVER), 1 << 22)
    assert server_epoch(replace(SERVER, **change), 1 << 22) != server_epoch(SERVER, 1 << 22)


def test_another_format_or_version_is_another_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    here = server_epoch(SERVER, 1 << 22)
    assert server_epoch(SERVER, 1 << 21) != here
    for name, value in (("VERSION", "0.0.0"), ("LEDGER_FORMAT", -1)):
        with monkeypatch.context() as changed:
            changed.setattr(epoch, name, value)
            server_epoch.cache_clear()
            assert server_epoch(SERVER, 1 << 22) != here
    server_epoch.cache_clear()
    assert server_epoch(SERVER, 1 << 22) == here


def test_fields_do_not_run_into_each_other() -> None:
    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abc", b"")}) == 4
