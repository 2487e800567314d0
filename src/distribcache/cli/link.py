"""Connections of the commands to PostgreSQL, and what is said when there is none.

The URL comes like every setting from flag, environment or file. A wrong one is a ``ConfigError``, everything else an
``UpstreamError`` with libpq's words and a hint (``coherence.address``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from distribcache.coherence.address import plainly, read_url, remedy
from distribcache.config import Settings, load, mask
from distribcache.errors import ConfigError, UpstreamError

__all__ = ["Config", "Connection", "Database", "Json", "Upstream", "connect", "settings_for"]

Connection = psycopg.Connection[DictRow]

Upstream = Annotated[
    str | None, typer.Option("--upstream", metavar="URL", help="The PostgreSQL server, as postgresql://user@host:5432/db.")
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings; default: distribcache.toml if it is there.")
]
Database = Annotated[str | None, typer.Option("--db", metavar="NAME", help="Another database of the same server.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

def settings_for(upstream: str | None, config: Path | None) -> Settings:
    """The settings of a command that needs a server; ConfigError when none is given."""
    settings = load(config, {"upstream.url": upstream})
    settings.upstream_url()
    return settings


def connect(settings: Settings, dbname: str | None = None, **more: str) -> Connection:
    """An autocommit connection with rows as dicts; ``more`` are further libpq parameters.

    Names are resolved in pg_catalog only, and a commit of ours does not wait for standbys.
    """
    url = settings.upstream_url()
    parts = read_url(url)
    parts.setdefault("connect_timeout", str(max(2, round(settings.upstream.connect_timeout))))
    parts.setdefault("application_name", "distribcache command")
    if dbname is not None:
        parts["dbname"] = dbname
    parts.update(more)
    try:
        connection = psycopg.connect(make_conninfo(**parts), autocommit=True, row_factory=dict_row)
        # Statements, not the startup parameter `options`: poolers refuse that before they could be recognised.
        connection.execute("SET search_path = pg_catalog; SET synchronous_commit = local")
        return connection
    except psycopg.OperationalError as error:
        raise unreachable(url, error) from None
    except UnicodeError:
        raise ConfigError(
            "it holds characters that cannot be sent", where="upstream.url", hint="%-encode them"
        ) from None


def unreachable(url: str, error: Exception) -> UpstreamError:
    """What to say about a connection that failed."""
    words = plainly(error)
    hint = remedy(words) or "check upstream.url and the server's log"
    return UpstreamError(f"cannot connect: {mask(words)}", where=mask(url), hint=hint)
