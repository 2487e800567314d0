"""Where PostgreSQL is: the URL as libpq reads it, and what to look at first when nobody answers there, or not us.

What is wrong with the URL itself is a ``ConfigError``, said before anything is tried: asked again and again, libpq
would say it every time. libpq's own words are kept, because people search for them; what may be a password is masked.
"""

from __future__ import annotations

import re
from typing import Final

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from distribcache.config import mask
from distribcache.errors import ConfigError

__all__ = ["plainly", "read_url", "remedy"]

_ASKED_BACK: Final = re.compile(r" Is the server running (locally|on that host) and accepting [^?]*\?")
_WHERE: Final = "upstream.url"
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# Part of libpq's or the server's message → what to look at first.
_REMEDIES: Final = (
    ("password authentication failed", "check user and password in upstream.url; special characters need %-encoding"),
    ("no password supplied", "put the password into upstream.url, ~/.pgpass or PGPASSWORD"),
    (
        "no pg_hba.conf entry",
        "add a line for this user, address and database (not 'replication') to pg_hba.conf, or mend upstream.url",
    ),
    ("Connection refused", "is PostgreSQL running, and does it listen on host and port of upstream.url?"),
    ("resolve", "check the host name in upstream.url"),
    ("Name or service not known", "check the host name in upstream.url"),
    ("timeout", "check host and port in upstream.url, and firewalls; upstream.connect_timeout says how long to wait"),
    ("does not exist", "check the names in upstream.url; createdb and createuser make new ones"),
    ("too many", "the server is out of connections; raise max_connections or use fewer"),
    ("connection slots", "the server is out of connections; raise max_connections or use fewer"),
    ("starting up", "wait until the server has started"),
    ("shutting down", "wait until the server is back"),
    ("SSL", "check sslmode and sslrootcert in upstream.url against the server's settings"),
)


def read_url(url: str) -> dict[str, str]:
    """Its parts by libpq's names. Raises ConfigError for what can never work."""
    try:
        parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except ProgrammingError as error:
        raise ConfigError(
            f"not a valid connection URL: {mask(' '.join(str(error).split()))}", where=_WHERE,
            hint='write a URL such as "postgresql://user@db.example.com:5432/shop"',
        ) from None  # fmt: skip
    except UnicodeError:
        raise ConfigError("it holds characters that cannot be sent", where=_WHERE, hint="%-encode them") from None
    ports = [port for port in parts.get("port", "").split(",") if port]
    for port in ports:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"not a port: {port!r}", where=_WHERE, hint="a port is a number from 1 to 65535")
    hosts = (parts.get("hostaddr") or parts.get("host") or "localhost").split(",")
    if len(ports) > 1 and len(ports) != len(hosts):
        raise ConfigError(f"{len(hosts)} hosts and {len(ports)} ports", where=_WHERE, hint="one port for each host")
    mode = parts.get("sslmode") or _MODES[2]
    if mode not in _MODES:
        raise ConfigError(f"sslmode {mode!r} is unknown", where=_WHERE, hint=f"it is one of {', '.join(_MODES)}")
    return parts


def plainly(error: BaseException) -> str:
    """libpq's and the server's words in one line, without what libpq asks back."""
    return _ASKED_BACK.sub("", " ".join(str(error).split()).removeprefix("connection failed: "))


def remedy(words: str) -> str:
    """What to look at first; empty when that cannot be told from libpq's or the server's words."""
    low = words.lower()
    return next((remedy for part, remedy in _REMEDIES if part.lower() in low), "")
