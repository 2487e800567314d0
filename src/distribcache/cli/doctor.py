"""`distribcache doctor`: is this server ready, and what mends it if not?"""

from __future__ import annotations

import typer

from distribcache.cli.link import Config, Database, Json, Upstream, settings_for
from distribcache.cli.prerequisites import Check, examine
from distribcache.cli.report import as_dicts, print_checks, print_json
from distribcache.config import mask
from distribcache.errors import UpstreamError

__all__ = ["doctor"]


def doctor(upstream: Upstream = None, db: Database = None, config: Config = None, as_json: Json = False) -> None:
    """Check every prerequisite on the server and name the statement that mends what is missing.

    Changes nothing. Exit status 0: ready, 1: something is missing, 2: a setting is wrong, 3: not reachable.
    """
    settings = settings_for(upstream, config)
    url = mask(settings.upstream_url())
    try:
        version, checks = examine(settings, db)
    except UpstreamError as error:
        if as_json:
            check = Check("reachable", "problem", error.message, (f"-- {error.hint}",))
            print_json({"ok": False, "upstream": url, "server_version": None, "checks": as_dicts([check])})
            raise typer.Exit(3) from None
        raise
    problems = sum(check.status == "problem" for check in checks)
    if as_json:
        print_json({"ok": not problems, "upstream": url, "server_version": version, "checks": as_dicts(checks)})
    else:
        print_checks(checks)
        many = "1 problem" if problems == 1 else f"{problems} problems"
        print(f"\n{many}: until mended, everything is passed through and nothing is cached" if problems else "\nready")
    raise typer.Exit(1 if problems else 0)
