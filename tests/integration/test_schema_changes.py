"""A changed catalogue changes what is served, in time, whatever was changed and however it is noticed (rule R6).

Every case is made around the proxy while a valid answer is kept, and asked once, strictly:

alone      a transaction of its own: empty in the stream, an alarm. At once.
announced  beside writes of rows, with the event trigger. At once.
polled     beside writes of rows, without it: behind the next poll. The sabotage beside it shows that until then nothing
           tells of it.

Except for the last, polls are an hour apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from fix_postgres import create_database, drop_database
from fix_proxy import InnerProxy, last
from schema_cases import CASES, SHARED, Case, Shared
from wait import until

from distribcache.cli.objects import install
from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.lsn import parse_lsn

Connection = psycopg.Connection[Any]
FAR = {"freshness.max_staleness": "1h", "freshness.hit_wait": "5s"}
NEAR = {**FAR, "freshness.schema_poll": "200ms"}
ROLES = "DO $$ BEGIN CREATE ROLE looker LOGIN; CREATE ROLE lender; EXCEPTION WHEN duplicate_object THEN NULL; END $$"


class Stage:
    """A database behind a proxy, made anew for each case."""

    def __init__(self, server: Postgres, settings: dict[str, str], *, trigger: bool) -> None:
        self.database = create_database(server)
        self.database.execute(ROLES, "CREATE TABLE public.beside (a int)")
        if trigger:
            with psycopg.connect(
                self.database.conninfo(), autocommit=True, row_factory=psycopg.rows.dict_row
            ) as connection:
                install(connection)
        self.proxy = InnerProxy(self.database.url(), settings)
        self.acts = self.database.connect(options="-c search_path=c")

    def make(self, sql: str) -> None:
        self.acts.execute("DROP SCHEMA IF EXISTS c CASCADE; DROP SCHEMA IF EXISTS early CASCADE")
        self.acts.execute("CREATE SCHEMA c; CREATE SCHEMA early; GRANT USAGE ON SCHEMA c, early TO PUBLIC")
        self.act(sql)
        # Alone in its transaction: an alarm, whatever of the names above a look of before may have known.
        self.acts.execute("CREATE TABLE made ()")
        row = self.acts.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        assert row is not None
        reached = parse_lsn(row[0].encode())
        until(lambda: self.coverage().applied >= reached and self.proxy.settled(), "never settled")

    def act(self, sql: str) -> None:
        self.acts.execute(sql.replace("{db}", self.database.name).encode())

    def through(self, who: str) -> Connection:
        options = f"-c distribcache.consistency=strict{path(who)}"
        return self.proxy.connect(who, options=options, prepare_threshold=None)

    def direct(self, who: str) -> Connection:
        return self.database.connect(who, options=path(who))

    def coverage(self) -> Coverage:
        found = next(each for each in self.proxy.proxy.databases if each.name == self.database.name)
        assert isinstance(found, DatabaseCoherence)
        found.note_traffic()
        return found.coverage

    def close(self) -> None:
        self.proxy.stop()
        self.acts.close()
        drop_database(self.database)


def path(who: str) -> str:
    return " -c search_path=early,c" if who == "postgres" else ""


@pytest.fixture(scope="module")
def stages(postgres: Postgres) -> Iterator[Callable[[str], Stage]]:
    made: dict[str, Stage] = {}

    def stage(how: str) -> Stage:
        if how not in made:
            made[how] = Stage(postgres, NEAR if how == "polled" else FAR, trigger=how == "announced")
        return made[how]

    yield stage
    for each in made.values():
        each.close()


def outcome(connection: Connection, sql: str) -> object:
    """The rows, or why there are none."""
    try:
        return connection.execute(sql).fetchall()
    except psycopg.Error as error:
        return error.sqlstate


def warm(connection: Connection, sql: str) -> object:
    rows: list[object] = []

    def hit() -> bool:
        rows[:] = [outcome(connection, sql)]
        return bool(last(connection)["status"] == "hit")

    until(hit, lambda: f"never a hit: {rows} {last(connection)}")
    return rows[0]


def beside(change: str) -> str:
    return f"BEGIN; INSERT INTO public.beside VALUES (1); {change}; COMMIT"


@pytest.mark.parametrize("how", ["alone", "announced", "polled"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_changed_catalogue_changes_what_is_served(stages: Callable[[str], Stage], case: Case, how: str) -> None:
    stage = stages(how)
    if stage.acts.info.server_version < case.since:
        pytest.skip("this server has no such thing")
    stage.make(case.made)
    with stage.through(case.who) as reader, stage.direct(case.who) as truth:
        before = warm(reader, case.read)
        assert before == outcome(truth, case.read)
        stage.act(f"BEGIN; {case.change}; COMMIT" if how == "alone" else beside(case.change))
        if case.then:
            stage.act(case.then)
        if how == "polled":
            done = now_ns()
            until(lambda: stage.coverage().full_at > done, "no poll")
        served = outcome(reader, case.read)
        assert served == outcome(truth, case.read)
        assert served != before, "the change changes nothing: there was nothing to see"


@pytest.mark.sabotage
def test_until_the_poll_nothing_tells_of_a_change_beside_writes(stages: Callable[[str], Stage]) -> None:
    """So the cases above are not seen by accident: here the trigger is missing, and polls are far."""
    stage = stages("alone")
    case = next(case for case in CASES if case.name == "enum value renamed")
    stage.make(case.made)
    with stage.through(case.who) as reader:
        before = warm(reader, case.read)
        stage.act(beside(case.change))
        assert outcome(reader, case.read) == before


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_a_change_made_in_another_database_is_seen_by_the_quick_poll(
    stages: Callable[[str], Stage], postgres: Postgres, case: Shared
) -> None:
    """It leaves no trace in this database's stream; whole looks are an hour apart."""
    stage = stages("alone")
    version = stage.acts.info.server_version
    if "INHERIT" in case.made and version < 160000:
        pytest.skip("this server has no such thing")
    with psycopg.connect(postgres.conninfo(), autocommit=True) as elsewhere:

        def act(sql: str) -> None:
            elsewhere.execute(sql.replace("{db}", stage.database.name).encode())

        act(case.made)
        stage.make(case.here)
        try:
            with stage.through("looker") as reader:
                before = warm(reader, case.read)
                act(case.change)
                done = now_ns()
                until(lambda: stage.coverage().quick_at > done, "no poll")
                with stage.through("looker") as again, stage.direct("looker") as truth:
                    for _ in range(3):
                        after = outcome(truth, case.read)
                        assert outcome(again, case.read) == after
                        assert outcome(reader, case.read) == (before if case.anew else after)
                    assert after != before
        finally:
            act(case.undo)


def test_a_revoke_of_an_older_transaction_that_commits_later(stages: Callable[[str], Stage]) -> None:
    """The greatest xmin does not move: versions of all rows do."""
    stage = stages("polled")
    stage.make("CREATE TABLE t AS SELECT 1 AS v; GRANT SELECT ON t TO looker")
    with stage.through("looker") as reader, stage.database.connect() as older:
        older.execute("BEGIN; INSERT INTO public.beside VALUES (1); REVOKE SELECT ON c.t FROM looker")
        stage.act("CREATE TABLE newer (a int); GRANT SELECT ON newer TO looker")
        until(stage.proxy.settled, "never settled")
        assert warm(reader, "SELECT v FROM c.t") == [(1,)]
        older.execute("COMMIT")
        done = now_ns()
        until(lambda: stage.coverage().full_at > done, "no poll")
        assert outcome(reader, "SELECT v FROM c.t") == "42501"
