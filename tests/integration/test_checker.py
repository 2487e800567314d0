"""``make checker``, small: nothing is wrong where all rules hold, and each muted rule is found for what it does.

The checker's own proofs: without them a million right answers would say nothing. It runs as people run it, in processes
of its own, with a server of its own; a muted run ends at its first wrong answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distribcache.cli.postgres import Postgres

CHECKER = Path(__file__).parents[2] / "benchmarks" / "checker.py"
OLD = r"older than|not seen|not read|for ever"
MUTED = {
    "rows": rf"({OLD}).*: .*(by key|by any column|by a text|rows|partition|cascade)",
    "visibility": rf"({OLD}).*: ",
    "schema": rf"({OLD}).*: .*(swapped by names|a view made anew)",
    "settings": r"of another session: by (key, in a zone|the path)",
    "people": r"of another session: own rows",
    "validity": rf"({OLD}).*: ",
    "own_writes": r"(not read|not seen): ",
    "arrival": r"older than an acknowledged commit: strict",
}
"""What each harms. Without the rule that ``arrival`` or ``own_writes`` mutes, only a late stream lets it show."""
LATE = ("own_writes", "arrival")


def run(*arguments: str) -> tuple[int, str]:
    memory = {"TMPDIR": str(Postgres.folder)} if Postgres.folder is not None else {}
    done = subprocess.run(
        [sys.executable, CHECKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=290,
        env={**os.environ, **memory},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("stream", [[], ["--late"]], ids=["in time", "late"])
def test_nothing_is_older_than_promised(stream: list[str]) -> None:
    status, told = run("--hits", "10000", "--seconds", "200", "--ddl", "2", *stream)
    assert status == 0, told
    found = re.search(r"([\d,]+) reads, ([\d,]+) hits", told)
    assert found is not None and int(found[2].replace(",", "")) > 5_000, told


@pytest.mark.parametrize("stream", [[], ["--late"]], ids=["in time", "late"])
def test_nothing_is_older_than_promised_by_two_workers(stream: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBCACHE_LISTEN_WORKERS", "2")
    test_nothing_is_older_than_promised(stream)


@pytest.mark.sabotage
@pytest.mark.parametrize("mute", ["validity", "own_writes"])
def test_a_rule_that_is_muted_in_workers_is_found(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBCACHE_LISTEN_WORKERS", "2")
    test_a_muted_rule_is_found(mute)


@pytest.mark.sabotage
@pytest.mark.parametrize("mute", MUTED)
def test_a_muted_rule_is_found(mute: str) -> None:
    late = ["--late"] if mute in LATE else []
    ddl = "2" if mute == "schema" else "8"
    status, told = run("--mute", mute, "--first", "--seconds", "200", "--ddl", ddl, *late)
    assert status == 1, told
    assert re.search(MUTED[mute], told), told
