"""A transaction may go on with rights and functions that are no longer there; what it reads is nobody else's.

A prepared statement that runs again in an open transaction takes no new lock, so its process of the server does not
look at what was invalidated meanwhile (measured: a REVOKE and a new function body are overlooked until the transaction
ends). PostgreSQL answers that session so, and it alone: a session whose scope was learned under another value of the
schema slot has none until it has been asked again, and inside a transaction that began before it is not asked: the
question would make the server look, and the client be told something else than without us.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from fix_proxy import InnerProxy, MakeInnerProxy, last
from inside import quiet
from wait import until

from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.proxy.questions import Questions
from distribcache.proxy.standing import Standing

READ = "SELECT a FROM item"
CALL = "SELECT a, f() FROM item"
REVOKE = "REVOKE SELECT ON item FROM PUBLIC"
REPLACE = "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql STABLE RETURN 2"


@pytest.fixture
def proxy(database: Database, make_inner_proxy: MakeInnerProxy) -> InnerProxy:
    database.execute(
        "DO $$ BEGIN CREATE ROLE reads_only LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "CREATE TABLE item (a int)",
        "INSERT INTO item VALUES (1)",
        "GRANT SELECT ON item TO PUBLIC",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE RETURN 1",
    )
    return make_inner_proxy(database.url(), {"freshness.hit_wait": "2s"})


@pytest.fixture
def ann(proxy: InnerProxy) -> Iterator[psycopg.Connection[Any]]:
    with proxy.connect("reads_only") as connection:
        connection.prepare_threshold = 0
        yield connection


def goes_on(proxy: InnerProxy, ann: psycopg.Connection[Any], sql: str, change: str, database: Database) -> None:
    """Read in a transaction, change something around it, and read on until that could be stored."""
    ann.execute("BEGIN")
    before = ann.execute(sql).fetchall()
    database.execute(change)
    quiet(proxy, database)
    for _ in range(3):
        assert ann.execute(sql).fetchall() == before, "the server looks at once: there is nothing to guard against"
    ann.execute("COMMIT")


def test_what_a_transaction_still_reads_after_a_revoke_is_not_kept(
    proxy: InnerProxy, ann: psycopg.Connection[Any], database: Database
) -> None:
    goes_on(proxy, ann, READ, REVOKE, database)
    with proxy.connect("reads_only") as again:
        for connection in (again, ann):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(READ)


def test_what_a_transaction_still_computes_by_an_old_function_is_not_kept(
    proxy: InnerProxy, ann: psycopg.Connection[Any], database: Database
) -> None:
    goes_on(proxy, ann, CALL, REPLACE, database)
    with proxy.connect("reads_only") as again:
        for connection in (again, ann):
            for _ in range(3):
                assert connection.execute(CALL).fetchall() == [(1, 2)]


def test_a_transaction_that_began_behind_the_change_is_kept(
    proxy: InnerProxy, ann: psycopg.Connection[Any], database: Database
) -> None:
    database.execute(REPLACE)
    until(proxy.settled, "never settled")

    def stored() -> bool:
        ann.execute("SELECT 1")
        ann.execute("BEGIN")
        ann.execute("SHOW work_mem")  # upstream, so the transaction is open there
        found = [(ann.execute(CALL).fetchall(), last(ann)["status"]) for _ in range(2)]
        ann.execute("COMMIT")
        assert [rows for rows, _ in found] == [[(1, 2)], [(1, 2)]]
        return bool(found[1][1] == "hit")

    until(stored, "a fill of a transaction is never kept")


@pytest.mark.sabotage
def test_muted_our_question_makes_the_server_look(
    proxy: InnerProxy, ann: psycopg.Connection[Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Questions, "_may_ask_inside", lambda self: self._session.at_rest(b"T"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        goes_on(proxy, ann, READ, REVOKE, database)


@pytest.mark.sabotage
def test_with_a_scope_of_before_the_change_a_revoked_right_is_served_on(
    proxy: InnerProxy, ann: psycopg.Connection[Any], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Standing.why_not

    def blind(self: Standing) -> str:
        self.hot.epoch, self.hot.schema = self.coherence.words[EPOCH], self.coherence.words[SCHEMA]
        return kept(self)

    monkeypatch.setattr(Standing, "why_not", blind)

    def leaks() -> bool:
        """A busy machine may keep none of the reads, or have the first one in memory: then it is tried again."""
        database.execute("GRANT SELECT ON item TO PUBLIC")
        until(proxy.settled, "never settled")
        try:
            goes_on(proxy, ann, READ, REVOKE, database)
            with proxy.connect("reads_only") as again:
                again.prepare_threshold = 0
                return bool(again.execute(READ).fetchall() == [(1,)])
        except psycopg.errors.InsufficientPrivilege:
            if ann.info.transaction_status:
                ann.execute("ROLLBACK")
            return False

    until(leaks, "the revoked right was never served on")
