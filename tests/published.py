"""For tests of ``pgoutput``: a database with what `distribcache setup` makes for it, and servers without test_decoding.

``publish(database)``    as ``distribcache setup`` with freshness.plugin = pgoutput; ``unpublish`` as teardown
``members(database)``    the tables whose updates are published
``pgoutput_alone(bin_dir)``  the setting of a server that finds pgoutput and no test_decoding
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from fix_postgres import Database
from psycopg.rows import dict_row

from distribcache.cli.objects import Deed, install, remove

__all__ = ["members", "pgoutput_alone", "publish", "unpublish"]


def publish(database: Database) -> dict[str, str]:
    """What was done, by thing."""
    return {deed.thing: deed.outcome for deed in _ask(database, publish=True)}


def unpublish(database: Database) -> dict[str, str]:
    return {deed.thing: deed.outcome for deed in _ask(database, publish=False)}


def _ask(database: Database, *, publish: bool) -> list[Deed]:
    with psycopg.connect(database.conninfo(), autocommit=True, row_factory=dict_row) as connection:
        connection.execute("SET search_path = pg_catalog")
        return install(connection, publish=True) if publish else remove(connection)


def members(database: Database) -> list[str]:
    rows = database.execute(
        "SELECT prrelid::regclass::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid "
        "WHERE pubname = 'distribcache_ud' ORDER BY 1"
    )
    return [row[0] for row in rows]


@contextmanager
def pgoutput_alone(bin_dir: Path) -> Iterator[dict[str, str]]:
    """Libraries are looked for in ``dynamic_library_path``: a folder that holds pgoutput and PL/pgSQL."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        for library in ("pgoutput.so", "plpgsql.so"):
            shutil.copy(bin_dir.parent / "lib" / library, place)
        yield {"dynamic_library_path": place}
