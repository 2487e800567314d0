"""Connections of the commands to PostgreSQL, and what is said when there is none.

The URL comes like every setting from flag, environment or file. libpq's words are kept, because people search for them;
the hint says what to look at first. A wrong URL is a ``ConfigError``, everything else an ``UpstreamError``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

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

# Part of libpq's or the server's message → what to look at first.
_HINTS = (
    ("password authentication failed", "check user and password of the URL; special characters need %-encoding"),
    ("no password supplied", "put the password into the URL, ~/.pgpass or PGPASSWORD"),
    ("no pg_hba.conf entry", "add a line for this user, database and address to the server's pg_hba.conf"),
    ("Connection refused", "is PostgreSQL running, and does it listen on that address and port?"),
    ("resolve", "check the host name of the URL"),
    ("Name or service not known", "check the host name of the URL"),
    ("timeout", "check host, port and firewalls; upstream.connect_timeout says how long to wait"),
    ("does not exist", "check the names in the URL; createdb and createuser make new ones"),
    ("too many", "the server is out of connections; raise max_connections or use fewer"),
    ("connection slots", "the server is out of connections; raise max_connections or use fewer"),
    ("starting up", "wait until the server has started"),
    ("shutting down", "wait until the server is back"),
    ("SSL", "check sslmode and sslrootcert of the URL against the server's settings"),
)


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
    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError as error:
        raise ConfigError(
            f"not a valid connection URL: {mask(str(error)).strip()}", where="upstream.url",
            hint='write a URL such as "postgresql://user@db.example.com:5432/shop"',
        ) from None
    for port in parts.get("port", "5432").split(","):
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"not a port: {port!r}", where="upstream.url", hint="a port is a number from 1 to 65535")
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
        raise ConfigError("the URL holds characters that cannot be sent", where="upstream.url") from None


def unreachable(url: str, error: Exception) -> UpstreamError:
    """What to say about a connection that failed."""
    words = " ".join(str(error).split()).removeprefix("connection failed: ")
    hint = next((hint for part, hint in _HINTS if part.lower() in words.lower()), "check the URL and the server's log")
    return UpstreamError(f"cannot connect: {mask(words)}", where=mask(url), hint=hint)
