"""Deferred BEGIN: what is answered here, what upstream is told later, and what must go up at once."""

from __future__ import annotations

import pytest

from distribcache.proxy.transaction import Transaction, control
from distribcache.sql.parse import read

Deferred = list[tuple[str, bytes]]
BEGUN: Deferred = [("", b"begin")]


def ask(text: str, deferred: Deferred, *, may_begin: bool = True) -> tuple[bytes, Deferred] | None:
    parsed = read(text.encode())
    assert len(parsed.statements) == 1, parsed
    return control(parsed.statements[0], text.encode(), b"<" + text.encode() + b">", deferred, may_begin=may_begin)


def names(answer: tuple[bytes, Deferred] | None) -> list[str]:
    assert answer is not None
    return [name for name, _ in answer[1]]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("BEGIN", b"BEGIN"),
        ("  begin work;", b"BEGIN"),
        ("BEGIN READ ONLY", b"BEGIN"),
        ("BEGIN READ WRITE", b"BEGIN"),
        ("BEGIN ISOLATION LEVEL READ COMMITTED", b"BEGIN"),
        ("start transaction read only", b"START TRANSACTION"),
    ],
)
def test_a_plain_begin_is_deferred_with_its_own_bytes(text: str, tag: bytes) -> None:
    assert ask(text, []) == (tag, [("", b"<" + text.encode() + b">")])


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN ISOLATION LEVEL REPEATABLE READ",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
        "BEGIN ISOLATION LEVEL READ UNCOMMITTED",
        "BEGIN DEFERRABLE",
        "BEGIN NOT DEFERRABLE",
        "/* c */ BEGIN",  # valid, but its tag is not known from the first word
    ],
)
def test_other_begins_go_upstream(text: str) -> None:
    assert ask(text, []) is None


def test_begin_needs_a_known_session_and_no_transaction() -> None:
    assert ask("BEGIN", [], may_begin=False) is None
    assert ask("BEGIN", BEGUN) is None


@pytest.mark.parametrize("text", ["COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "END", "ABORT"])
def test_outside_a_transaction_of_ours_all_of_it_goes_upstream(text: str) -> None:
    assert ask(text, []) is None


@pytest.mark.parametrize(
    ("text", "tag"),
    [("COMMIT", b"COMMIT"), ("END WORK", b"COMMIT"), ("ROLLBACK", b"ROLLBACK"), ("ABORT", b"ROLLBACK")],
)
def test_the_end_of_a_transaction_that_upstream_never_saw(text: str, tag: bytes) -> None:
    assert ask(text, [*BEGUN, ("a", b"sa")]) == (tag, [])


@pytest.mark.parametrize("text", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"])
def test_chains_go_upstream(text: str) -> None:
    assert ask(text, BEGUN) is None


def test_savepoints_are_kept_in_order() -> None:
    assert ask("SAVEPOINT a", BEGUN) == (b"SAVEPOINT", [*BEGUN, ("a", b"<SAVEPOINT a>")])
    assert names(ask('SAVEPOINT "A b"', BEGUN)) == ["", "A b"]


ABC: Deferred = [*BEGUN, ("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4")]


@pytest.mark.parametrize(
    ("text", "tag", "left"),
    [
        ("RELEASE c", b"RELEASE", ABC[:4]),
        ("RELEASE SAVEPOINT a", b"RELEASE", ABC[:3]),  # the newest of that name, and what came after it
        ("RELEASE b", b"RELEASE", ABC[:2]),
        ("ROLLBACK TO b", b"ROLLBACK", ABC[:3]),  # the savepoint itself stays
        ("ROLLBACK TO SAVEPOINT a", b"ROLLBACK", ABC[:4]),
    ],
)
def test_release_and_rollback_to(text: str, tag: bytes, left: Deferred) -> None:
    assert ask(text, ABC) == (tag, left)


@pytest.mark.parametrize("text", ["RELEASE nobody", "ROLLBACK TO nobody", 'RELEASE "B"'])
def test_unknown_savepoints_are_an_error_that_upstream_gives(text: str) -> None:
    assert ask(text, ABC) is None


@pytest.mark.parametrize("text", ["SELECT 1", "SET TRANSACTION READ ONLY", "LOCK TABLE t", "PREPARE TRANSACTION 'x'"])
def test_everything_else_goes_upstream(text: str) -> None:
    assert ask(text, BEGUN) is None


def test_nothing_given_is_changed() -> None:
    deferred = list(ABC)
    for text in ("COMMIT", "SAVEPOINT z", "RELEASE a", "ROLLBACK TO b"):
        ask(text, deferred)
    assert deferred == ABC


def test_an_ended_transaction_leaves_no_mark() -> None:
    txn = Transaction(list(BEGUN), impure=True, ddl=True, poll=True, bypass="isolation")
    assert txn.local
    txn.ended()
    assert (txn.impure, txn.ddl, txn.poll, txn.bypass) == (False, False, False, "")
    assert txn.local, "what is deferred is ended by its own COMMIT"
