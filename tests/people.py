"""Users of every way to log in, for servers of the tests' own."""

from __future__ import annotations

import psycopg

from distribcache.cli.postgres import Postgres

SCRAM_HBA = (
    "host all alice 127.0.0.1/32 scram-sha-256",
    "host all expired 127.0.0.1/32 scram-sha-256",
    "host all mallory 127.0.0.1/32 reject",
    "host all cleo 127.0.0.1/32 password",
    "host all mido 127.0.0.1/32 md5",
)


def add_users(server: Postgres) -> None:
    """Users of every way to log in; the password of each is "secret of NAME"."""
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        for name in ("alice", "cleo", "expired"):
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret of {name}'")  # type: ignore[arg-type]
        connection.execute("ALTER ROLE expired VALID UNTIL '2001-01-01'")
        connection.execute("SET password_encryption = 'md5'")
        connection.execute("CREATE ROLE mido LOGIN PASSWORD 'secret of mido'")
