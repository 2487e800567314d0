"""Every trap and every row of the security page is cited by a test; every trap also by one that mutes its rule.

A test cites in its docstring: "Coherence trap 9", "Proxy traps 1 and 4", "Security row 7". One that mutes a rule is
marked ``sabotage``, by itself or through ``kept_and_muted``. What has no test is listed here with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs" / "explanation"

NO_TEST = {
    ("coherence", 20): "left out on purpose: nothing is handed over between nodes",
    ("security", 11): "there is no admin console",
    ("security", 22): "nothing is stored outside memory yet",
    ("security", 23): "there is no shared tier yet",
    ("security", 26): "there are no semantic caches yet",
    ("security", 27): "SECURITY.md",
}

FAULTS = {
    "reader killed": "test_a_terminated_connection_begins_a_new_epoch_and_comes_back",
    "reader slow": "test_too_far_behind_it_drops_its_slot",
    "the cache's own network slow": "test_a_slow_network",
    "frozen": "test_a_network_that_freezes",
    "cut": "test_a_network_that_is_cut",
    "refused": "test_a_server_that_refuses_the_cache",
    "garbled": "test_a_change_stream_that_is_garbled",
    "reader paused": "test_a_paused_change_stream_ends_hits_when_its_proof_is_old",
    "probe paused": "test_a_server_that_stands_still_is_not_served_from_memory",
    "slot dropped": "test_a_slot_that_is_dropped_is_made_anew",
    "slot lost": "test_a_slot_lost_to_max_slot_wal_keep_size",
    "restart, fast and immediate": "test_a_restart_of_the_server",
    "crash recovery": "test_crash_recovery_under_one_postmaster",
    "failover": "test_failover_to_a_promoted_standby",
    "point-in-time rewind": "test_a_rewind_to_an_older_copy",
    "long transactions": "test_a_long_transaction_does_not_stop_hits",
    "large update": "test_a_slice_of_a_large_decode_is_short",
    "synchronous_commit = off": "test_a_crash_that_takes_visible_commits_back",
    "clock jumps": "test_a_clock_that_jumps_forward_outdates_the_last_proof",
    "process stopped": "test_a_process_that_was_stopped_believes_no_old_proof",
    "memory pressure": "test_a_cache_that_holds_next_to_nothing_is_right",
}

_CITED = re.compile(r"\b(Coherence|Proxy|Security) (?:traps?|rows?) (\d+(?:(?:, | and )\d+)*)")
_ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


class Cited(NamedTuple):
    page: str
    number: int
    test: str
    kept: bool
    muted: bool


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield file, node


def citations() -> list[Cited]:
    found = []
    for file, node in functions():
        marks = " ".join(map(ast.unparse, node.decorator_list))
        both, muted = "kept_and_muted" in marks, "mark.sabotage" in marks
        for page, numbers in _CITED.findall(ast.get_docstring(node) or ""):
            for number in re.findall(r"\d+", numbers):
                where = f"{file.relative_to(TESTS)}::{node.name}"
                found.append(Cited(page.lower(), int(number), where, both or not muted, both or muted))
    return found


def numbers_of(page: str) -> list[int]:
    """The numbers of a page's tables, one list per page: the two tables of traps begin anew at 1."""
    text = (DOCS / ("security.md" if page == "security" else "coherence.md")).read_text("utf-8")
    if page != "security":
        coherence, proxy = text.split("## Traps of coherence")[1].split("## Traps of the proxy")
        text = proxy if page == "proxy" else coherence
    return [int(number) for number in _ROW.findall(text)]


PAGES = ("coherence", "proxy", "security")
ALL = [(page, number) for page in PAGES for number in numbers_of(page)]
CITATIONS = citations()


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_numbered_without_a_gap(page: str) -> None:
    numbers = numbers_of(page)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 10


@pytest.mark.parametrize(("page", "number"), ALL)
def test_each_has_a_test_that_cites_it(page: str, number: int) -> None:
    cited = [each for each in CITATIONS if (each.page, each.number) == (page, number)]
    if (page, number) in NO_TEST:
        assert not [each for each in cited if each.kept], "it has a test now: take it off the list"
        return
    assert [each for each in cited if each.kept], f"no test cites {page} {number}"
    if page != "security":
        assert [each for each in cited if each.muted], f"no test mutes the rule of {page} trap {number}"


def test_nothing_else_is_cited() -> None:
    assert {(each.page, each.number) for each in CITATIONS} <= set(ALL)


def test_every_fault_has_its_test() -> None:
    names = {node.name for _, node in functions()}
    assert {fault: name for fault, name in FAULTS.items() if name not in names} == {}


def test_a_trap_without_a_test_would_be_found() -> None:
    assert _CITED.findall("Proxy traps 1, 4 and 9. Security row 7: x. Coherence trap 22") == [
        ("Proxy", "1, 4 and 9"), ("Security", "7"), ("Coherence", "22"),
    ]  # fmt: skip
    assert ("coherence", 99) not in {(each.page, each.number) for each in CITATIONS}
