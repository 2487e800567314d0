"""The command line: one file per command, joined here.

A command parses its arguments, builds objects, calls them and prints; it holds no logic of the cache. Exit status:
0 done, 1 it ran and found something wrong, 2 a setting is wrong, 3 PostgreSQL cannot be reached. Errors go to stderr
with their hint and without a traceback.

A command's file is imported when it is asked for: `distribcache version` need not load the proxy.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from distribcache.errors import ConfigError, DistribCacheError, UpstreamError

__all__ = ["EXIT_STATUS", "application", "main"]

# Each lives in the module of its name, as the function of its name.
COMMANDS = ("audit", "demo", "doctor", "explain", "serve", "setup", "status", "teardown", "version")
EXIT_STATUS = (
    "Exit status: 0 done, 1 it ran and found something wrong, 2 a setting or flag is wrong, 3 PostgreSQL, or the node "
    "that was asked, cannot be reached."
)
_WORKER = "worker"
"""Not for people: what ``serve --workers`` starts."""


def application(*names: str) -> typer.Typer:
    """The commands of these names, or all of them, as one typer application."""
    app = typer.Typer(
        name="distribcache",
        help="A coherent cache in front of PostgreSQL.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    # With a callback typer keeps the command's name as an argument even when there is only one command.
    app.callback(epilog=EXIT_STATUS)(_before)
    for name in names or COMMANDS:
        app.command(name)(getattr(importlib.import_module(f"distribcache.cli.{name}"), name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        importlib.import_module("distribcache.cli.version").version()
        raise typer.Exit


def _before(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def exit_status(error: DistribCacheError) -> int:
    """The exit status that stands for an error's kind."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, UpstreamError) else 1


def main() -> None:
    """Entry point of the console script."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if asked == _WORKER:
            importlib.import_module("distribcache.cli.worker").main(sys.argv[2:])
            return
        application(*[asked] if asked in COMMANDS else [])()
    except DistribCacheError as error:
        print(f"distribcache: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)
