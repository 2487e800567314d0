"""Sessions around a transaction, written as lines, and played once directly and once through the proxy.

A *script* is a list of lines, one statement each: ``who: sql``. ``me`` is the session whose answers count, ``other``
another one that goes the same way, ``out`` always goes to the server directly. A mark behind the name tells where an
answer must come from: ``me*`` from memory if its transaction may be served at all, ``me-`` never from memory.

Both plays begin with the same rows, so every answer has to be the same bytes: rows, tags, errors, warnings, and the
byte that says in which state the transaction is. Steps are sequential, and what ``out`` has committed is waited for
until the ledger has it: so a change around the proxy is no excuse for an older answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import psycopg
from fix_postgres import Database
from fix_proxy import InnerProxy
from rawclient import RawClient, run
from shapes import kinds
from wait import until

from distribcache.coherence.ledger import V
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.lsn import parse_lsn
from distribcache.wire.messages import SYNC, query

__all__ = ["COUNT", "PROTOCOLS", "READ", "STOCK", "Stage", "begins", "played", "warm"]

READ = "SELECT name, price FROM item WHERE id = 7"
COUNT = "SELECT count(*), sum(price) FROM item"
STOCK = (
    # New rows go where half of the page is free. A new version of one that does not fit beside it is put into the index
    # as well, and at serializable the server takes that for a conflict with whoever has looked there.
    "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, price int) WITH (fillfactor = 50)",
    "CREATE TABLE part (id int PRIMARY KEY, item int REFERENCES item DEFERRABLE INITIALLY DEFERRED)",
    """CREATE PROCEDURE pay(commits bool) LANGUAGE plpgsql AS
    'BEGIN UPDATE item SET price = price + 1 WHERE id = 7; IF commits THEN COMMIT; END IF; END'""",
)
_FILL = "INSERT INTO item SELECT i, 'item ' || i, i FROM generate_series(1, 20) i"
_ROWS = "SELECT sum(hashtext(item::text)), (SELECT count(*) FROM part) FROM item"
_LINE = re.compile(r"(me|other|out)([*-]?): (.*)", re.DOTALL)
_SHOW = query(b"SHOW distribcache.last")

Protocol = Callable[[bytes], bytes]
PROTOCOLS: dict[str, Protocol] = {"simple": query, "extended": lambda sql: run(sql) + SYNC}


def begins() -> list[str]:
    """Every way to say how a transaction begins, as the grammar has it."""
    texts = []
    for start in ("BEGIN", "BEGIN WORK", "BEGIN TRANSACTION", "START TRANSACTION"):
        for isolation in ("", "READ COMMITTED", "READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
            for access in ("", "READ ONLY", "READ WRITE"):
                for deferrable in ("", "DEFERRABLE", "NOT DEFERRABLE"):
                    modes = [isolation and f"ISOLATION LEVEL {isolation}", access, deferrable]
                    comma = ", " if start.startswith("START") else " "
                    texts.append(f"{start} {comma.join(filter(None, modes))}".strip())
    return [*texts, "BEGIN READ ONLY, READ WRITE", "BEGIN ISOLATION LEVEL SERIALIZABLE, ISOLATION LEVEL READ COMMITTED"]


@dataclass
class Stage:
    """One database, a server and a proxy before it, and what was seen so far."""

    database: Database
    proxy: InnerProxy
    hits: int = 0
    _rows: object = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.out = self._stack.enter_context(psycopg.connect(self.database.conninfo(), autocommit=True))
        self.late = self._stack.enter_context(psycopg.connect(self.database.conninfo(), autocommit=True))
        self.reset()

    def close(self) -> None:
        self._stack.close()

    def reset(self) -> None:
        """The rows of the beginning; written only if they are not there, so that what is cached stays."""
        for (gid,) in self.out.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"):
            self.out.execute(f"ROLLBACK PREPARED '{gid}'".encode())
        if self._rows is None or self.out.execute(_ROWS).fetchone() != self._rows:
            self.out.execute("DELETE FROM part")
            self.out.execute("DELETE FROM item")  # not TRUNCATE: that changes the catalogue
            self.out.execute(_FILL)
            self._rows = self.out.execute(_ROWS).fetchone()

    def define(self, sql: str) -> None:
        """Change the catalogue, and the server's counters at once: a look sees them, and they may be seconds late."""
        self.out.execute(sql.encode())
        self.out.execute("SELECT pg_stat_force_next_flush()")

    def arrived(self) -> None:
        """What is committed now is in the ledger, and an answer that is read from now on may be kept."""
        row = self.late.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row is not None
        lsn = parse_lsn(row[0])
        until(lambda: self._followed().words[V] >= lsn, "the stream is late")

    def alarms(self) -> dict[str, int]:
        """Why the database was not served for a while, and how often."""
        return dict(self._followed().counters.alarms_by)

    def _followed(self) -> DatabaseCoherence:
        (one,) = (each for each in self.proxy.proxy.databases if isinstance(each, DatabaseCoherence))
        return one

    def connect(self, through: bool, stack: ExitStack, user: str = "postgres", **parameters: str) -> RawClient:
        server = self.proxy if through else self.database.server
        return stack.enter_context(RawClient(server.host, server.port, self.database.name, user, 60.0, **parameters))


def last(client: RawClient) -> list[bytes | None]:
    """What became of the statement before: the status comes first."""
    return client.rows(_SHOW)[0]


def warm(stage: Stage, client: RawClient, ask: Protocol, read: str) -> None:
    """Until this read is answered from memory."""

    def hit() -> bool:
        client.exchange(ask(read.encode()))
        return last(client)[0] == b"hit"

    until(hit, lambda: f"never a hit: {last(client)}")


def played(
    stage: Stage,
    script: Sequence[str],
    ask: Protocol,
    *,
    served: bool,
    must: bool = True,
    warmed: bool = True,
    user: str = "postgres",
    **parameters: str,
) -> int:
    """Play it both ways and compare; returns how many answers came from memory. ``must``: those that may, do."""
    answers: dict[bool, list[tuple[str, list[bytes]]]] = {False: [], True: []}
    became = []
    hits = 0
    for through in (False, True):
        stage.reset()
        with ExitStack() as stack:
            clients = {who: stage.connect(through, stack, user=user, **parameters) for who in ("me", "other")}
            if through:
                stage.arrived()
                until(stage.proxy.settled, "not serving")
                for read in (READ, COUNT) if warmed else ():
                    warm(stage, clients["me"], ask, read)
            for line in script:
                found = _LINE.fullmatch(line)
                assert found is not None, line
                who, mark, sql = found.groups()
                if who == "out":
                    stage.out.execute(sql.encode())
                    if through:
                        stage.arrived()
                    continue
                answers[through].append((line, clients[who].exchange(ask(sql.encode()))))
                if not through or not mark:
                    continue
                status = last(clients[who])
                became.append((line, status[0], status[2]))
                where = f"{line!r} was {status} in {script}; so far {became}, alarms {stage.alarms()}"
                hits += status[0] == b"hit"
                if mark == "-" or not served:
                    assert status[0] != b"hit", where
                elif must:
                    assert status[0] == b"hit", where
    for (line, wanted), (_, got) in zip(answers[False], answers[True], strict=True):
        if got != wanted:
            shown = f"{kinds(b''.join(got))} {got} instead of {kinds(b''.join(wanted))} {wanted}"
            raise AssertionError(f"{line!r}: {shown} in {script}")
    return hits
