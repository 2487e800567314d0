"""The command line: one file per command, joined here.

A command parses its arguments, builds objects, calls them and prints; it holds no logic of the cache. Exit status:
0 done, 1 it ran and found something wrong, 2 a setting is wrong, 3 PostgreSQL cannot be reached. Errors go to stderr
with their hint and without a traceback.
"""

from __future__ import annotations

import sys

import typer

from distribcache.cli import version
from distribcache.errors import ConfigError, DistribCacheError, UpstreamError

__all__ = ["app", "main"]

app = typer.Typer(
    name="distribcache",
    help="A coherent cache in front of PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("version")(version.version)


@app.callback()
def _root() -> None:
    """Keeps `distribcache version` a sub-command while there is only one."""


def exit_status(error: DistribCacheError) -> int:
    """The exit status that stands for an error's kind."""
    if isinstance(error, ConfigError):
        return 2
    return 3 if isinstance(error, UpstreamError) else 1


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except DistribCacheError as error:
        print(f"distribcache: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)
