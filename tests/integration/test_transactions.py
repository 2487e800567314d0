"""Transactions of every kind answer through the proxy what they answer directly, and from memory where that is allowed.

A table: how a transaction begins × what happens inside it × the two protocols. Each cell is played on a direct
connection and through the proxy, and every answer has to be the same bytes (``transactions``). Where the effective
isolation is read committed, reads are answered from memory until the transaction did anything but read; elsewhere
never: a snapshot that outlives one statement, or is watched for conflicts, is the server's own.

Of products of three, a part is played, another one for each cell; ``TRANSACTIONS=all`` plays all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from fix_postgres import create_database, drop_database
from fix_proxy import InnerProxy
from mutes import MUTES
from rawclient import run
from transactions import COUNT, PROTOCOLS, READ, STOCK, Stage, begins, played, warm

from distribcache.cli.postgres import Postgres
from distribcache.coherence.scope import Scope, read_scope
from distribcache.proxy import extended, questions, simple, transaction
from distribcache.proxy.standing import Standing
from distribcache.wire.messages import SYNC, query

Set = Callable[[object, str, object], None]
EVERY = os.environ.get("TRANSACTIONS") == "all"
CHANGE = "UPDATE item SET price = price + 1 WHERE id = 7"
LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
MODES = (*(f"ISOLATION LEVEL {level}" for level in LEVELS), "READ ONLY", "READ WRITE", "DEFERRABLE")
SHOWS = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
WHAT = [f"me: SHOW {name}" for name in SHOWS]
TWICE = [f"me*: {READ}", f"me*: {COUNT}", f"me*: {READ}"]


@contextmanager
def staged(postgres: Postgres) -> Iterator[Stage]:
    database = create_database(postgres)
    database.execute(*STOCK)
    # What may be served is served: a wait on a busy machine is no reason to go to the server.
    proxy = InnerProxy(database.url(), {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"})
    stage = Stage(database, proxy)
    yield stage
    stage.close()
    proxy.stop()
    drop_database(database)


@pytest.fixture(scope="module")
def stage(postgres: Postgres) -> Iterator[Stage]:
    with staged(postgres) as stage:
        yield stage


@pytest.fixture
def own_stage(postgres: Postgres) -> Iterator[Stage]:
    """For tests that mute a rule, and so leave answers in memory that nobody may see."""
    with staged(postgres) as stage:
        yield stage


def part(items: Sequence[str], of: int, at: int = 0) -> Sequence[str]:
    """Each ``of``-th."""
    return items if EVERY else items[at % of :: of]


both = pytest.mark.parametrize("protocol", PROTOCOLS)


def is_served(begin: str) -> bool:
    """Is it read committed, if that is the default?"""
    return "LEVEL" not in begin or "READ COMMITTED" in begin


# ---- every way to begin ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("start", ["BEGIN", "BEGIN WORK", "BEGIN TRANSACTION", "START TRANSACTION"])
def test_every_beginning(stage: Stage, protocol: str, start: str) -> None:
    """What it is, what it reads twice, and what may no longer be said of it."""
    texts = [text for text in begins() if text.startswith(start)]
    if start == "BEGIN":
        texts = [text for text in texts if not text.startswith(("BEGIN WORK", "BEGIN TRANSACTION"))]
    assert len(texts) >= 45
    hits = 0
    texts = list(part(texts, 1 if protocol == "simple" else 4))  # each mode comes up: there are five, three and three
    for text in texts:
        inside = [f"me: {text}", *TWICE, *WHAT, f"me*: {READ}", "me: COMMIT", f"me: {READ}"]
        hits += played(stage, inside, PROTOCOLS[protocol], served=is_served(text))
    assert hits >= 4 * sum(map(is_served, texts))


# ---- what happens inside --------------------------------------------------------------------------------------------

INSIDES: dict[str, list[str]] = {
    "nothing": ["me: COMMIT", "me: ROLLBACK"],
    "an empty text": ["me: ", f"me*: {READ}", "me: ;", "me: ABORT"],
    "another's commit between two reads": [
        f"me*: {READ}", f"out: {CHANGE}", f"me-: {READ}", f"me-: {COUNT}", f"me*: {READ}", f"me*: {COUNT}", "me: END",
        f"me: {READ}",
    ],
    "another's commit before the first read": [f"out: {CHANGE}", f"me-: {READ}", f"me: {COUNT}", "me: COMMIT"],
    "another's commit behind a SHOW": [
        "me: SHOW transaction_isolation", f"out: {CHANGE}", f"me-: {READ}", f"me: {COUNT}", "me: COMMIT",
    ],
    "a commit of another client of the proxy": [
        f"me*: {READ}", f"other: {CHANGE}", f"me-: {READ}", "me: COMMIT", f"me: {READ}",
    ],
    "a write of its own": [
        f"me*: {READ}", f"me: {CHANGE}", f"me-: {READ}", f"me-: {COUNT}", f"other: {READ}", "me: COMMIT",
        f"me: {READ}", f"other: {READ}",
    ],
    "a write of its own, taken back": [
        f"me: {CHANGE}", f"me-: {READ}", "me: ROLLBACK", f"me: {READ}", f"me: {COUNT}",
    ],
    "a write that changes nothing": [
        "me: UPDATE item SET price = 0 WHERE false", f"me-: {READ}", "me: COMMIT", f"me: {READ}",
    ],
    "savepoints around reads": [
        "me: SAVEPOINT a", f"me*: {READ}", 'me: SAVEPOINT "A"', f"me*: {READ}", 'me: RELEASE "A"', f"me*: {READ}",
        "me: ROLLBACK TO a", f"me*: {READ}", "me: ROLLBACK TO SAVEPOINT a", "me: RELEASE SAVEPOINT a", "me: COMMIT",
    ],
    "savepoints of one name": [
        "me: SAVEPOINT a", "me: SAVEPOINT a", f"me: {CHANGE}", "me: SAVEPOINT a", f"me: {CHANGE}", "me: ROLLBACK TO a",
        f"me-: {READ}", "me: RELEASE a", "me: ROLLBACK TO a", f"me-: {READ}", "me: RELEASE a", "me: ROLLBACK TO a",
        f"me-: {READ}", "me: RELEASE a", "me: COMMIT", f"me: {READ}",
    ],
    "a write in a savepoint, rolled back to": [
        f"me*: {READ}", "me: SAVEPOINT a", f"me: {CHANGE}", f"me-: {READ}", "me: ROLLBACK TO a", f"me-: {READ}",
        f"me-: {COUNT}", "me: COMMIT", f"me: {READ}",
    ],
    "a write in a savepoint, released": [
        "me: SAVEPOINT a", f"me: {CHANGE}", "me: RELEASE a", f"me-: {READ}", f"other: {READ}", "me: COMMIT",
        f"other: {READ}", f"me: {READ}",
    ],
    "a savepoint outlives what is nested in it": [
        "me: SAVEPOINT a", "me: SAVEPOINT b", "me: SAVEPOINT c", "me: ROLLBACK TO a", "me: ROLLBACK TO b",
        f"me-: {READ}", "me: ROLLBACK TO a", f"me: {READ}", "me: COMMIT",
    ],
    "an error in a savepoint": [
        "me: SAVEPOINT a", "me: SELECT 1/0", f"me-: {READ}", "me: SAVEPOINT b", "me: ROLLBACK TO a", f"me: {READ}",
        "me: COMMIT", f"me: {READ}",
    ],
    "savepoints that nobody made": ["me: RELEASE nobody", f"me-: {READ}", "me: ROLLBACK TO nobody", "me: ROLLBACK"],
    "a savepoint with a long name": [
        f"me: SAVEPOINT {'s' * 63}", f"me: SAVEPOINT {'s' * 64}", f"me*: {READ}", f"me: ROLLBACK TO {'s' * 70}",
        f"me: RELEASE {'s' * 64}", "me: COMMIT",
    ],
    "an error": [
        f"me*: {READ}", "me: SELECT 1/0", f"me-: {READ}", "me: SAVEPOINT a", "me: SHOW transaction_isolation", "me: ",
        "me: COMMIT", f"me: {READ}",
    ],
    "what is no statement": [f"me*: {READ}", "me: SELEC", f"me-: {READ}", "me: END", f"me: {READ}"],
    "an error, then a chain": ["me: SELECT 1/0", "me: COMMIT AND CHAIN", *WHAT, f"me: {READ}", "me: COMMIT"],
    "a chain": [
        f"me*: {READ}", "me: COMMIT AND CHAIN", *WHAT, f"me: {READ}", f"out: {CHANGE}", f"me-: {READ}",
        "me: ROLLBACK AND CHAIN", *WHAT, f"me: {READ}", "me: COMMIT AND NO CHAIN", "me: COMMIT AND CHAIN",
    ],
    "a chain behind a write": [
        f"me: {CHANGE}", "me: COMMIT AND CHAIN", f"other: {READ}", f"me: {READ}", f"me: {CHANGE}",
        "me: ROLLBACK AND CHAIN", f"me: {READ}", "me: ROLLBACK", f"me: {READ}",
    ],
    "a second beginning": [
        f"me*: {READ}", "me: BEGIN", f"me: {READ}", "me: START TRANSACTION READ ONLY", f"me: {READ}", "me: COMMIT",
        "me: COMMIT", f"me: {READ}",
    ],
    "another beginning after a hit": [
        f"me*: {READ}", "me: BEGIN ISOLATION LEVEL REPEATABLE READ", f"me-: {READ}", "me: ROLLBACK",
    ],
    "a conflict": [
        f"me: {READ}", f"out: {CHANGE}", f"me: {CHANGE}", f"me-: {READ}", "me: COMMIT", f"me: {READ}",
    ],
    "a lock": [
        f"me*: {READ}", "me: LOCK TABLE item IN SHARE MODE", f"me-: {READ}", "me: COMMIT", f"me: {READ}",
    ],
    "a lock of a row": [f"me: {READ} FOR SHARE", f"me-: {READ}", "me: COMMIT", f"me: {READ}"],
    "what may not be in a transaction": [f"me*: {READ}", "me: VACUUM item", f"me-: {READ}", "me: ROLLBACK"],
    "a constraint that fails at the end": [
        f"me*: {READ}", "me: INSERT INTO part VALUES (1, 999)", f"me-: {READ}", "me: COMMIT", f"me: {READ}",
    ],
    "a cursor": [
        f"me: DECLARE c CURSOR FOR {READ}", f"out: {CHANGE}", "me: FETCH c", f"me-: {READ}", "me: COMMIT",
        "me: FETCH c",
    ],
    "a cursor that is held": [
        f"me: DECLARE h CURSOR WITH HOLD FOR {READ}", "me: COMMIT", f"out: {CHANGE}", "me: FETCH h", f"me: {READ}",
        "me: CLOSE h",
    ],
    "a procedure": [f"me*: {READ}", "me: CALL pay(false)", f"me-: {READ}", "me: COMMIT", f"me: {READ}"],
    "a procedure that commits": [f"me*: {READ}", "me: CALL pay(true)", f"me-: {READ}", "me: ROLLBACK", f"me: {READ}"],
    "a default set inside": [
        "me: SET default_transaction_isolation = 'repeatable read'", *WHAT, f"me: {READ}", f"out: {CHANGE}",
        f"me-: {READ}", "me: COMMIT", "me: BEGIN", *WHAT, f"me-: {READ}", f"out: {CHANGE}", f"me-: {READ}",
        "me: COMMIT", f"me: {READ}",
    ],
    "a default set inside and taken back": [
        "me: SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", "me: ROLLBACK",
        "me: BEGIN", *WHAT, "me: COMMIT", f"me: {READ}",
    ],
    "a default for this transaction only": [
        "me: SET LOCAL default_transaction_isolation = 'repeatable read'", "me: COMMIT AND CHAIN", *WHAT, "me: COMMIT",
        "me: BEGIN", *WHAT, "me: COMMIT",
    ],
    "several in one text": [
        f"me: {READ}; {COUNT}", "me: COMMIT; BEGIN READ ONLY", *WHAT, f"me: {READ}", "me: ROLLBACK; BEGIN; SELECT 1",
        f"me: {READ}", f"me: COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; {COUNT}", f"out: {CHANGE}", f"me-: {READ}",
        f"me: COMMIT; {READ}", f"me: BEGIN; {CHANGE}; SELECT 1/0; COMMIT", f"me-: {READ}", "me: ROLLBACK; SELECT 1",
    ],
    "what a session may not do inside": [
        f"me*: {READ}", "me: DISCARD ALL", f"me-: {READ}", "me: ROLLBACK", "me: BEGIN", "me: LISTEN there",
        f"me-: {READ}", "me: PREPARE TRANSACTION 'p'", f"me: {READ}", "me: UNLISTEN *",
    ],
    "a table made and dropped again": [
        f"me*: {READ}", "me: CREATE TABLE made AS SELECT 1 AS n", "me: SELECT n + 0 FROM made", f"me-: {READ}",
        "me: ROLLBACK", f"me: {READ}", "me: SELECT n FROM made",
    ],
}  # fmt: skip

BEGINNINGS = (
    "BEGIN", "BEGIN READ ONLY", "BEGIN NOT DEFERRABLE", "START TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
    "BEGIN ISOLATION LEVEL REPEATABLE READ", "/* not first */ BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "BEGIN ISOLATION LEVEL READ UNCOMMITTED", "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
)  # fmt: skip


@both
@pytest.mark.parametrize("inside", INSIDES)
def test_inside(stage: Stage, inside: str, protocol: str) -> None:
    for begin in part(BEGINNINGS, 2 if protocol == "simple" else 5):
        played(stage, [f"me: {begin}", *INSIDES[inside]], PROTOCOLS[protocol], served=is_served(begin))


LONELY = [
    "SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "COMMIT", "ROLLBACK", "END", "ABORT", "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN", "PREPARE TRANSACTION 'p'", "SET TRANSACTION READ ONLY", "SET LOCAL TimeZone = 'Asia/Tokyo'",
    "SET TRANSACTION SNAPSHOT '00000003-00000002-1'", "LOCK TABLE item", f"DECLARE c CURSOR FOR {READ}",
    "COMMIT PREPARED 'nobody'", "ROLLBACK PREPARED 'nobody'", "BEGIN ISOLATION LEVEL WRONG", "BEGIN READ",
    "BEGIN AND CHAIN",
]  # fmt: skip


@both
@pytest.mark.parametrize("text", LONELY)
def test_outside_a_transaction(stage: Stage, text: str, protocol: str) -> None:
    """Each is refused, warned of, or means nothing; and what comes next is in no transaction."""
    script = [f"me*: {READ}", f"me: {text}", *WHAT, f"me: {READ}", f"me: {CHANGE}", f"other: {READ}", f"me: {READ}"]
    assert played(stage, script, PROTOCOLS[protocol], served=True)


# ---- SET TRANSACTION ------------------------------------------------------------------------------------------------

SETS = [
    *(f"SET TRANSACTION {mode}" for mode in MODES),
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "SET LOCAL TRANSACTION NOT DEFERRABLE, ISOLATION LEVEL SERIALIZABLE",
    "SET transaction_isolation = 'repeatable read'",
    "SET LOCAL transaction_isolation TO serializable",
    "SET transaction_read_only = off",
    "SET LOCAL transaction_deferrable = on",
    "RESET transaction_isolation",
    "SET TRANSACTION SNAPSHOT 'no such'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL REPEATABLE READ",
]
AHEAD = {
    "first": [],
    "behind a SHOW": ["me: SHOW server_version_num"],
    "behind a savepoint": ["me: SAVEPOINT a"],
    "behind a read": [f"me*: {READ}"],
    "behind a SHOW and a read": ["me: SHOW server_version_num", f"me*: {READ}"],
    "behind a read and a savepoint": [f"me*: {READ}", "me: SAVEPOINT a"],
    "behind a chain and a read": ["me: COMMIT AND CHAIN", f"me: {READ}", f"me: {READ}"],
    "behind a read in front of a chain": ["me: SHOW server_version_num", f"me*: {READ}", "me: COMMIT AND CHAIN"],
    "behind a read in front of another": ["me: SHOW server_version_num", f"me*: {READ}", "me: COMMIT; BEGIN"],
    "outside": ["me: COMMIT"],
}


@both
@pytest.mark.parametrize("ahead", AHEAD)
def test_set_transaction(stage: Stage, ahead: str, protocol: str) -> None:
    starts = ("BEGIN", "BEGIN NOT DEFERRABLE", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN READ ONLY")
    for number, text in enumerate(SETS):
        for begin in part(starts, 4, number) if protocol == "simple" else part(starts, 8, number + 1):
            script = [
                f"me: {begin}", *AHEAD[ahead], f"me: {text}", *WHAT, f"me: {READ}", f"out: {CHANGE}", f"me-: {READ}",
                f"me: {CHANGE}", "me: COMMIT", *WHAT, f"me: {READ}",
            ]  # fmt: skip
            played(stage, script, PROTOCOLS[protocol], served=is_served(begin))


@both
@pytest.mark.parametrize(
    "begin", ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE"]
)
@pytest.mark.parametrize("ahead", ["first", "behind a read", "behind a savepoint"])
def test_a_snapshot_that_is_imported(stage: Stage, begin: str, ahead: str, protocol: str) -> None:
    """It shows what was there when another session exported it, also where memory knows better."""
    with ExitStack() as stack:
        exporter = stack.enter_context(stage.database.connect())
        exporter.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        row = exporter.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        script = [
            f"out: {CHANGE}", f"me: {READ}", f"me: {begin}", *AHEAD[ahead],
            f"me: SET TRANSACTION SNAPSHOT '{row[0]}'", f"me-: {READ}", f"me-: {COUNT}", "me: COMMIT", f"me: {READ}",
        ]  # fmt: skip
        ask = PROTOCOLS[protocol]
        if begin == "BEGIN" or ahead != "first":
            played(stage, script, ask, served=is_served(begin))
            return
        # The rows are written anew before each play, so the snapshot must be of a moment behind that.
        for through in (False, True):
            stage.reset()
            exporter.execute("ROLLBACK")
            exporter.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            row = exporter.execute("SELECT pg_export_snapshot()").fetchone()
            assert row is not None
            with ExitStack() as sides:
                me = stage.connect(through, sides)
                stage.out.execute(CHANGE)
                stage.arrived()
                me.exchange(ask(READ.encode()))
                me.exchange(ask(begin.encode()))
                me.exchange(ask(f"SET TRANSACTION SNAPSHOT '{row[0]}'".encode()))
                assert me.rows(ask(READ.encode())) == [[b"item 7", b"7"]]
                me.exchange(ask(b"COMMIT"))
                assert me.rows(ask(READ.encode())) == [[b"item 7", b"8"]]


# ---- what is the default --------------------------------------------------------------------------------------------

PLAINLY = ("BEGIN", "BEGIN READ WRITE", "START TRANSACTION ISOLATION LEVEL READ COMMITTED", "BEGIN DEFERRABLE")
DEFAULTS = [(level, access) for level in LEVELS for access in ("off", "on")]
OUTSIDE = [
    *WHAT, f"me*: {READ}", f"out: {CHANGE}", f"me-: {READ}", f"me*: {READ}", f"me: {CHANGE}", f"me-: {READ}",
    "me: COMMIT", f"me: {READ}", *WHAT,
]  # fmt: skip


def under(begin: str, level: str) -> bool:
    """May it be served where ``level`` is the default?"""
    return level == "READ COMMITTED" or (level != "SERIALIZABLE" and "LEVEL" in begin)


@both
@pytest.mark.parametrize(
    "how", ["SET", "SET SESSION CHARACTERISTICS", "ALTER ROLE", "ALTER DATABASE", "options", "parameter"]
)
def test_defaults(stage: Stage, how: str, protocol: str) -> None:
    ask = PROTOCOLS[protocol]
    stage.database.execute(
        "DO $$ BEGIN CREATE ROLE careful LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT ALL ON item, part TO careful",
    )
    hits = 0
    for number, (level, access) in enumerate(DEFAULTS):
        settings = {"default_transaction_isolation": level.lower(), "default_transaction_read_only": access}
        ahead: list[str] = []
        parameters: dict[str, str] = {}
        whom = "ROLE careful" if how == "ALTER ROLE" else f"DATABASE {stage.database.name}"
        if how == "SET":
            ahead = [f"me: SET {name} = '{value}'" for name, value in settings.items()]
        elif how == "SET SESSION CHARACTERISTICS":
            mode = "READ ONLY" if access == "on" else "READ WRITE"
            ahead = [f"me: SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}, {mode}"]
        elif how == "options":
            escaped = {name: value.replace(" ", "\\ ") for name, value in settings.items()}
            parameters = {"options": " ".join(f"-c {name}={value}" for name, value in escaped.items())}
        elif how == "parameter":
            parameters = settings
        else:
            for name, value in settings.items():
                stage.define(f"ALTER {whom} SET {name} = '{value}'")
        try:
            for begin in part(PLAINLY, 4, number // 2):
                script = [*ahead, f"me: {READ}", f"me: {READ}", f"me: {begin}", *OUTSIDE]
                hits += played(
                    stage, script, ask, served=under(begin, level), must=not how.startswith("ALTER"),
                    warmed=level != "SERIALIZABLE", user="careful", **parameters,
                )  # fmt: skip
        finally:
            if how.startswith("ALTER"):
                stage.define(f"ALTER {whom} RESET ALL")
    assert hits


# ---- two phases -----------------------------------------------------------------------------------------------------

ENDS = [f"{who}: {how} PREPARED 'p'" for who in ("me", "other", "out") for how in ("COMMIT", "ROLLBACK")]
TWO_PHASES: dict[str, list[str]] = {
    **{
        end: [
            f"me: {CHANGE}", f"me-: {READ}", "me: PREPARE TRANSACTION 'p'", f"me: {READ}", f"me: {READ}",
            f"other: {READ}", f"other: {COUNT}", end, f"me: {READ}", f"me: {COUNT}", f"other: {READ}",
        ]
        for end in ENDS
    },
    "of a transaction that has only read": [
        f"me*: {READ}", "me: PREPARE TRANSACTION 'p'", f"me: {READ}", "me: COMMIT PREPARED 'p'", f"me: {READ}",
    ],
    "of nothing": ["me: PREPARE TRANSACTION 'p'", "me: ROLLBACK PREPARED 'p'", "me: PREPARE TRANSACTION 'p'"],
    "of a failed transaction": [
        f"me: {CHANGE}", "me: SELECT 1/0", "me: PREPARE TRANSACTION 'p'", f"me: {READ}", "me: COMMIT PREPARED 'p'",
    ],
    "a name that is taken": [
        "me: PREPARE TRANSACTION 'p'", "me: BEGIN", f"me: {CHANGE}", "me: PREPARE TRANSACTION 'p'", f"me: {READ}",
        "me: ROLLBACK PREPARED 'p'",
    ],
    "a name that nobody gave": [f"me*: {READ}", "me: COMMIT", "me: COMMIT PREPARED 'nobody'", f"me: {READ}"],
    "ended inside another transaction": [
        f"me: {CHANGE}", "me: PREPARE TRANSACTION 'p'", "me: BEGIN", f"me: {READ}", "me: COMMIT PREPARED 'p'",
        f"me-: {READ}", "me: ROLLBACK", "me: COMMIT PREPARED 'p'", f"me: {READ}",
    ],
    "with a savepoint": [
        "me: SAVEPOINT a", f"me: {CHANGE}", "me: ROLLBACK TO a", f"me: {CHANGE}", "me: PREPARE TRANSACTION 'p'",
        f"other: {READ}", "other: COMMIT PREPARED 'p'", f"me: {READ}",
    ],
    "with a temporary table": [
        "me: CREATE TEMP TABLE mine (id int)", "me: PREPARE TRANSACTION 'p'", f"me: {READ}",
    ],
    "that made a table": [
        "me: CREATE TABLE made AS SELECT 1 AS n", "me: PREPARE TRANSACTION 'p'", f"me: {READ}",
        "me: SELECT n FROM made", "other: ROLLBACK PREPARED 'p'", "me: SELECT n FROM made",
    ],
}  # fmt: skip


@both
@pytest.mark.parametrize("how", TWO_PHASES)
def test_two_phases(stage: Stage, how: str, protocol: str) -> None:
    begins = ("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ", "BEGIN ISOLATION LEVEL SERIALIZABLE")
    for begin in part(begins, 3, list(TWO_PHASES).index(how) + (protocol == "extended")):
        played(stage, [f"me: {begin}", *TWO_PHASES[how]], PROTOCOLS[protocol], served=is_served(begin))


# ---- conflicts ------------------------------------------------------------------------------------------------------

EIGHT = "SELECT name, price FROM item WHERE id = 8"


@both
@pytest.mark.parametrize("who", ["other", "out"])
@pytest.mark.parametrize("level", LEVELS)
def test_write_skew(stage: Stage, level: str, who: str, protocol: str) -> None:
    """Each reads what the other writes. Only at serializable does one of them fail, and then through the proxy too."""
    begin = f"BEGIN ISOLATION LEVEL {level}"
    script = [
        f"me: {READ}", f"me: {EIGHT}", f"me: {begin}", f"{who}: {begin}", f"me: {READ}", f"{who}: {EIGHT}",
        f"me: {EIGHT}", f"{who}: {READ}", f"{who}: {CHANGE}", "me: UPDATE item SET price = price + 1 WHERE id = 8",
        f"{who}: COMMIT", "me: COMMIT", f"me: {READ}", f"me: {EIGHT}",
    ]  # fmt: skip
    played(stage, script, PROTOCOLS[protocol], served=is_served(begin))


def mute_watched(put: Set) -> None:
    """Who is watched is served like anybody."""

    def lax(*what: Any) -> Scope:
        scope = read_scope(*what)
        return replace(scope, refusal="") if scope.refusal == "isolation" else scope

    put(questions, "read_scope", lax)


@pytest.mark.sabotage
@pytest.mark.parametrize("reads", ["one by one", "in one group"])
def test_without_that_the_anomaly_is_let_through(own_stage: Stage, monkeypatch: pytest.MonkeyPatch, reads: str) -> None:
    mute_watched(monkeypatch.setattr)
    assert failures(own_stage, "serializable", reads) == [True, False]


@pytest.mark.parametrize("reads", ["one by one", "in one group", "in a transaction"])
@pytest.mark.parametrize("default", ["serializable", "read committed"])
def test_a_reader_whose_reads_are_watched(stage: Stage, default: str, reads: str) -> None:
    watched = default == "serializable" or reads == "in a transaction"
    assert failures(stage, default, reads) == [watched, watched]


def failures(stage: Stage, default: str, reads: str) -> list[bool]:
    """The anomaly of the one that only reads: it sees that the batch is closed, but not the receipt still to be written
    into it. The server sees what it has read, and lets the writer fail; a read from memory it would not see.
    """
    ask = PROTOCOLS["extended"]
    failed = []
    for through in (False, True):
        stage.reset()
        stage.arrived()
        with ExitStack() as stack:
            reader = stage.connect(through, stack, default_transaction_isolation=default)
            for read in (READ, EIGHT) * 4:
                reader.exchange(ask(read.encode()))
            writer = stack.enter_context(stage.database.connect())
            writer.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            writer.execute(READ)
            stage.late.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            stage.late.execute(CHANGE)
            stage.late.execute("COMMIT")
            stage.arrived()
            for _ in range(3):
                assert reader.rows(ask(READ.encode())) == [[b"item 7", b"8"]]
            if reads == "one by one":
                reader.exchange(ask(EIGHT.encode()))
            elif reads == "in one group":
                reader.exchange(run(READ.encode()) + run(EIGHT.encode()) + SYNC)
            else:
                reader.exchange(ask(b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"))
                reader.exchange(ask(READ.encode()))
                reader.exchange(ask(EIGHT.encode()))
                reader.exchange(ask(b"COMMIT"))
            try:
                writer.execute("UPDATE item SET price = 0 WHERE id = 8")
                writer.execute("COMMIT")
            except psycopg.errors.SerializationFailure:
                writer.execute("ROLLBACK")
                failed.append(True)
            else:
                failed.append(False)
    return failed


@pytest.mark.parametrize("again", ["one group", "one by one"])
def test_a_transaction_is_not_told_what_the_one_before_has_read(stage: Stage, again: str) -> None:
    """Its isolation may be set: only reads since its own BEGIN are in front of that."""
    messages = [run(READ.encode()), run(b"COMMIT"), run(b"BEGIN")]
    with ExitStack() as stack:
        me = stage.connect(True, stack)
        warm(stage, me, PROTOCOLS["extended"], READ)
        me.exchange(run(b"BEGIN") + SYNC)
        me.exchange(run(READ.encode()) + SYNC)
        for data in messages[:-1] if again == "one by one" else []:
            me.exchange(data + SYNC)
        rest = messages[-1] if again == "one by one" else b"".join(messages)
        assert me.exchange(rest + SYNC)[-1] == b"Z\0\0\0\5T"
        assert me.exchange(query(b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))[0][:1] == b"C"
        assert me.rows(query(b"SHOW transaction_isolation")) == [[b"serializable"]]
        me.exchange(query(b"ROLLBACK"))


@pytest.mark.parametrize("opened", ["deferred", "upstream"])
def test_a_level_behind_a_read_of_the_same_group(stage: Stage, opened: str) -> None:
    group = run(READ.encode()) + run(b"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE") + SYNC
    answers = []
    for through in (False, True):
        with ExitStack() as stack:
            me = stage.connect(through, stack)
            if through:
                warm(stage, me, PROTOCOLS["extended"], READ)
            me.exchange(query(b"BEGIN" if opened == "deferred" else b"BEGIN DEFERRABLE"))
            answers.append(me.exchange(group))
            me.exchange(query(b"ROLLBACK"))
    assert answers[1] == answers[0]
    assert any(b"C25001" in each for each in answers[0])


# ---- and the table can tell -----------------------------------------------------------------------------------------


def mute_levels(put: Set) -> None:
    put(simple, "begin_meaning", lambda s, statement: "")


def mute_level_set_inside(put: Set) -> None:
    """Neither is it noticed, nor is the session asked for anew."""
    MUTES["opaque"](put)
    apply = Standing.apply

    def lax(self: Standing, *what: Any, **how: Any) -> None:
        before = self.txn.bypass
        apply(self, *what, **how)
        self.txn.bypass = before

    put(Standing, "apply", lax)


def mute_queries(put: Set) -> None:
    for module in (simple, extended):
        put(module, "must_query", lambda *_, **__: False)


def mute_names(put: Set) -> None:
    put(transaction, "_LONGEST", 1000)


RED: dict[str, tuple[Callable[[Set], None], list[str]]] = {
    "levels": (
        mute_levels, ["me: BEGIN ISOLATION LEVEL REPEATABLE READ", *INSIDES["another's commit between two reads"]],
    ),
    "a level set inside": (
        mute_level_set_inside,
        ["me: BEGIN", f"me: {SETS[2]}", f"me: {READ}", f"out: {CHANGE}", f"me-: {READ}", f"me: {READ}", "me: COMMIT"],
    ),
    "queries": (mute_queries, ["me: BEGIN", *AHEAD["behind a SHOW and a read"], f"me: {SETS[2]}", "me: COMMIT"]),
    "names": (mute_names, ["me: BEGIN", *INSIDES["a savepoint with a long name"]]),
    "what it wrote": (MUTES["unseen"], ["me: BEGIN", *INSIDES["a write of its own, taken back"]]),
}  # fmt: skip


@pytest.mark.sabotage
@pytest.mark.parametrize("rule", RED)
def test_the_table_finds_what_is_muted(own_stage: Stage, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    mute, script = RED[rule]
    served = "LEVEL" not in script[0]
    played(own_stage, script, PROTOCOLS["simple"], served=served, must=False)
    mute(monkeypatch.setattr)
    with pytest.raises(AssertionError, match=r" instead of | was "):
        played(own_stage, script, PROTOCOLS["simple"], served=served, must=False)
