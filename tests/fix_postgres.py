"""Real PostgreSQL servers.

``postgres``       one embedded server of the newest version for the whole session: wal_level=logical, trust on loopback
``make_postgres``  special servers: ``make_postgres(options={"wal_level": "replica"})``; cached by what was asked,
                   because a start takes half a second. A test that restarts, stops or breaks its server asks with
                   ``fresh=True`` and gets one of its own, which ends with the test.
``database``       a new, empty database on ``postgres``, dropped after the test
``debian_bin``     the binaries of a PostgreSQL installed by the system, for tests that need TLS or an older version

Half the processor time of a run could go to a disk's file system: a database is 300 small files. So the servers lie in
memory where there is plenty, and a database is copied file by file from one that was entered before, which also spares
the first session of each the making of its own index of the catalogue. Temporary files of tests lie there too: a busy
disk can hold up an fsync for half a minute.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import sql
from wait import until

from distribcache.cli.postgres import Postgres

_numbers = itertools.count(1)


class MakePostgres(Protocol):
    def __call__(
        self,
        *,
        options: Mapping[str, str] | None = None,
        hba: Sequence[str] = (),
        bin_dir: Path | str | None = None,
        standby_of: Postgres | None = None,
        fresh: bool = False,
    ) -> Postgres: ...


@dataclass(frozen=True, slots=True)
class Database:
    """One database for one test; ``conninfo`` and ``url`` as of the server, for any user."""

    server: Postgres
    name: str

    def conninfo(self, user: str = "postgres", **more: str | int) -> str:
        return self.server.conninfo(self.name, user, **more)

    def url(self, user: str = "postgres", password: str = "") -> str:
        return self.server.url(self.name, user, password)

    def connect(self, user: str = "postgres", **more: Any) -> psycopg.Connection[Any]:
        """A synchronous connection in autocommit mode; the caller closes it (use ``with``)."""
        return psycopg.connect(self.conninfo(user), autocommit=True, **more)

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements one by one as superuser; the rows of the last one, if it has any.

        The server's counters know of it as well. They would be late by up to ten seconds, and a look at the catalogue
        sees some of them.
        """
        with self.connect() as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            connection.execute("SELECT pg_stat_force_next_flush()")
            return rows


_MEMORY = Path("/dev/shm")
_PLENTY = 8 << 30


def _in_memory() -> Path | None:
    """Where servers lie: some take more than 1 GB, and several workers have several of them each."""
    return _MEMORY if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _PLENTY else None


Postgres.folder = _in_memory()
if Postgres.folder is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(Postgres.folder))


def create_database(server: Postgres, prefix: str = "test", *, encoding: str = "") -> Database:
    """``encoding``: another one than the server's own, in the locale that goes with all of them."""
    name = f"{prefix}_{next(_numbers)}"
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        how = sql.SQL("STRATEGY file_copy" if connection.info.server_version >= 150000 else "")
        if encoding:
            how += sql.SQL(" TEMPLATE template0 ENCODING {} LOCALE 'C'").format(encoding)
        connection.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), how))
    return Database(server, name)


def drop_database(database: Database) -> None:
    """Drop it whoever is connected. Slots that a test left are dropped first, else DROP DATABASE would fail."""
    with psycopg.connect(database.server.conninfo(), autocommit=True) as connection:
        followed = (
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots "
            "WHERE database = %s AND active_pid IS NOT NULL"
        )
        until(lambda: not connection.execute(followed, [database.name]).fetchall(), "it is still followed")
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
            "WHERE database = %s AND NOT temporary AND NOT active",
            [database.name],
        )
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name))
        )
        connection.execute("SELECT pg_stat_force_next_flush()")  # settings go with it, and all databases see that


QUIET = {"autovacuum": "off", "track_counts": "off"}
"""An ANALYZE of the server's own looks like a change of the catalogue, and so do the server's counters, which know of a
change up to ten seconds later: hits stop for a moment that no test chose. A test of counters turns them on.
"""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres(options=QUIET) as server:
        yield server


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[Any, Postgres]]:
    servers: dict[Any, Postgres] = {}
    yield servers
    for server in reversed(servers.values()):
        server.close()


@pytest.fixture
def make_postgres(_servers: dict[Any, Postgres]) -> Iterator[MakePostgres]:
    own: list[Postgres] = []

    def make(
        *,
        options: Mapping[str, str] | None = None,
        hba: Sequence[str] = (),
        bin_dir: Path | str | None = None,
        standby_of: Postgres | None = None,
        fresh: bool = False,
    ) -> Postgres:
        key = (tuple(sorted((options or {}).items())), tuple(hba), str(bin_dir), id(standby_of))
        if not fresh and key in _servers:
            return _servers[key]
        server = Postgres(options={**QUIET, **(options or {})}, hba=hba, bin_dir=bin_dir, standby_of=standby_of)
        server.start()
        if fresh:
            own.append(server)
        else:
            _servers[key] = server
        return server

    yield make
    for server in reversed(own):
        server.close()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    made = create_database(postgres)
    yield made
    drop_database(made)


@pytest.fixture
def database_on() -> Iterator[Callable[[Postgres], Database]]:
    """A new database on a server of the test's choice, dropped after the test if that server still runs."""
    made: list[Database] = []

    def make(server: Postgres) -> Database:
        made.append(create_database(server))
        return made[-1]

    yield make
    for one in made:
        if one.server.pid:
            drop_database(one)


@pytest.fixture(scope="session")
def debian_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("no PostgreSQL installed by the system")
    return found[-1].parent
