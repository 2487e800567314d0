"""`distribcache setup`: the event trigger in a database, and the publications where ``pgoutput`` is used."""

from __future__ import annotations

import typer

from distribcache.cli.link import Config, Database, Json, Upstream, connect, settings_for
from distribcache.cli.objects import install, loads
from distribcache.cli.report import as_dicts, print_deeds, print_json

__all__ = ["setup"]


def setup(upstream: Upstream = None, db: Database = None, config: Config = None, as_json: Json = False) -> None:
    """Install the event trigger that tells the cache of schema changes made around the proxy.

    Optional: without it such changes are seen by polls. On a server without test_decoding, or with freshness.plugin =
    pgoutput, two publications are made as well; there neither is optional. May be run again at any time; touches
    nothing of yours. Server settings are not changed: see `distribcache doctor`. Exit status 1: what is not optional
    could not be made.
    """
    settings = settings_for(upstream, config)
    with connect(settings, db) as connection:
        database = connection.info.dbname
        plugin = settings.freshness.plugin
        publish = plugin == "pgoutput" or (plugin == "auto" and not loads(connection, "test_decoding"))
        deeds = install(connection, publish=publish)
    installed = all(deed.outcome != "refused" for deed in deeds)
    failed = publish and not installed
    if as_json:
        print_json({"ok": not failed, "database": database, "event_trigger": installed, "deeds": as_dicts(deeds)})
    else:
        print_deeds(deeds)
    raise typer.Exit(1 if failed else 0)
