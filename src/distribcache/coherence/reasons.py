"""Why a database is not served from memory: stable codes, a sentence, and the statement that mends it.

A code is part of the interface (metrics, ``SHOW distribcache.freshness``, tests); the texts are for people. Every
hint is something to run or to do, never a description of the fault again.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from distribcache.coherence.address import plainly, remedy

__all__ = ["REASONS", "NotServing", "from_connect_error"]

_RESTART = "-- then restart PostgreSQL"
_SLOTS = f"ALTER SYSTEM SET max_replication_slots = 20; ALTER SYSTEM SET max_wal_senders = 20; {_RESTART}"

# Each code with its sentence and its hint.
REASONS: dict[str, tuple[str, str]] = {
    "starting": ("the change stream is being opened", "wait a moment"),
    "asked_to_leave": (
        "somebody asked the cache to leave this database for a while, to drop, rename or copy it",
        "wait a minute: the cache comes back by itself",
    ),
    "stopped": ("the cache has left this database", "connect again"),
    "wal_level": (
        "PostgreSQL does not write what logical decoding needs",
        "ALTER SYSTEM SET wal_level = 'logical'; -- then restart PostgreSQL",
    ),
    "no_replication_privilege": (
        "the cache's role may not open a change stream",
        "ALTER ROLE {role} REPLICATION; -- on a managed service, grant its replication role instead",
    ),
    "login_refused": (
        "PostgreSQL refuses the cache's own login",
        "check user and password in upstream.url, and pg_hba.conf (a line for this database, not for 'replication')",
    ),
    "no_free_slot": ("two replication slots and two WAL senders must stay free beside ours", _SLOTS),
    "no_connection": (
        "PostgreSQL has no connection left for the cache, which needs three per database",
        "ALTER SYSTEM SET max_connections = 200; -- then restart PostgreSQL; or raise the role's CONNECTION LIMIT",
    ),
    "no_output_plugin": (
        "the output plugin test_decoding is not installed on the server",
        "install PostgreSQL's contrib modules (Debian: postgresql-contrib); or, as superuser: distribcache setup",
    ),
    "no_publication": (
        "the publications that pgoutput needs are missing, or are not as distribcache setup makes them",
        "run as superuser: distribcache setup, with freshness.plugin = pgoutput",
    ),
    "no_event_trigger": (
        "with pgoutput the event triggers of distribcache setup must be there: they tell of changes of the catalogue",
        "run as superuser: distribcache setup, with freshness.plugin = pgoutput",
    ),
    "publication_changed": (
        "the publications were changed; the change stream is being opened anew",
        "wait a moment",
    ),
    "slot_waits": (
        "creating the slot waits for transactions that were open before it",
        "end them, for instance: SELECT pg_terminate_backend({pid});",
    ),
    "synchronous_standby": (
        "synchronous_standby_names would make PostgreSQL wait for the cache at every commit",
        "ALTER SYSTEM SET synchronous_standby_names = '<the real standbys by name>'; SELECT pg_reload_conf();",
    ),
    "in_recovery": (
        "the upstream is a standby; the cache needs the primary",
        "point upstream.url at the primary (libpq: target_session_attrs=read-write)",
    ),
    "database_name": ("the name of this database is not UTF-8", "ALTER DATABASE … RENAME TO a name in UTF-8"),
    "template_database": ("a template database is never followed", "connect to an ordinary database"),
    "too_many_databases": (
        "more databases are in use than the cache may follow at once",
        "raise freshness.max_databases",
    ),
    "pooler": (
        "a connection pooler answers in the server's place",
        "name PostgreSQL itself in upstream.url; put the pooler in front of the cache if you need one",
    ),
    "different_servers": (
        "the cache's connections reached different servers",
        "name one host in upstream.url, not several and no load balancer",
    ),
    "server_too_old": ("the server is older than PostgreSQL 14", "upgrade PostgreSQL"),
    "catalogue_alarm": (
        "the catalogue may have changed and is being read again",
        "wait a moment; if it is frequent, see alarms_by in SHOW distribcache.freshness, and ask distribcache doctor",
    ),
    "catching_up": ("the change stream has not yet reached the present", "wait a moment"),
    "reader_lost": ("the change stream ended; it is being opened anew", "wait a moment; the server's log says why"),
    "wal_lag": (
        "the change stream fell behind by more than freshness.max_wal_lag",
        "raise freshness.max_wal_lag, or split huge transactions; the stream starts anew by itself",
    ),
    "log_went_back": ("the server's log went back: it lost commits in a crash", "set synchronous_commit = on"),
    "upstream_down": ("PostgreSQL is starting up, shutting down or gone", "start PostgreSQL; the cache keeps trying"),
    "unreachable": ("PostgreSQL cannot be reached", "check host and port in upstream.url; the cache keeps trying"),
}


@dataclass
class NotServing(Exception):  # noqa: N818 - a state, not a fault
    """Why the present attempt ends. ``text`` says more than the table, ``hint`` replaces its hint when not empty."""

    reason: str
    text: str = ""
    hint: str = ""

    @property
    def detail(self) -> str:
        return self.text or REASONS[self.reason][0]

    @property
    def remedy(self) -> str:
        return self.hint or REASONS[self.reason][1]


def from_connect_error(error: Exception, *, was_up: bool, role: str = "CURRENT_ROLE") -> NotServing:
    """Translate a failure to connect. libpq gives the server's words without their SQLSTATE, in its own language."""
    text = plainly(error)[:300]
    low = text.lower()
    if "max_wal_senders" in low:
        return NotServing("no_free_slot", text)
    if "connection slots" in low or "too many c" in low:
        return NotServing("no_connection", text)
    if "wal sender" in low or "walsender" in low:
        return NotServing("no_replication_privilege", text, REASONS["no_replication_privilege"][1].format(role=role))
    if "starting up" in low or "shutting down" in low or "recovery" in low:
        return NotServing("upstream_down", text)
    if "authentication" in low or "pg_hba.conf" in low or "password" in low or "does not exist" in low:
        return NotServing("login_refused", text, remedy(text))
    if isinstance(error, psycopg.Error) and was_up:
        return NotServing("upstream_down", text)
    first = remedy(text)
    return NotServing("unreachable", text, f"{first}; the cache keeps trying" if first else "")
