"""`distribcache teardown`: remove everything of the cache from a database."""

from __future__ import annotations

import typer

from distribcache.cli.link import Config, Database, Json, Upstream, connect, settings_for
from distribcache.cli.objects import release, remove
from distribcache.cli.report import as_dicts, print_deeds, print_json

__all__ = ["teardown"]


def teardown(upstream: Upstream = None, db: Database = None, config: Config = None, as_json: Json = False) -> None:
    """Remove what setup made, and the cache's replication slots and sessions in that database.

    Use --db NAME before a DROP DATABASE issued around the proxy. A cache that is running loses its stream and comes
    back with its next client. Nothing of yours is touched. Exit status 1: something could not be removed.
    """
    settings = settings_for(upstream, config)
    with connect(settings, db) as connection:
        database = connection.info.dbname
        deeds = release(connection) + remove(connection)
    refused = any(deed.outcome == "refused" for deed in deeds)
    if as_json:
        print_json({"ok": not refused, "database": database, "deeds": as_dicts(deeds)})
    else:
        print_deeds(deeds)
    raise typer.Exit(1 if refused else 0)
