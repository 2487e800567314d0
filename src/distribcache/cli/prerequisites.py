"""What distribcache needs of a PostgreSQL server, checked one by one.

Each check has a stable name, a status, a sentence about what was found, and the statements that mend it:

* ``ok``       as it should be
* ``advice``   works, but something would be better or safer
* ``problem``  nothing is cached until it is mended (the proxy passes everything through)
* ``skipped``  could not be judged, because of another problem

Rules:
1. Nothing is changed on the server. The one thing made is a temporary replication slot, dropped at once: whether an
   output plugin can be loaded is known only by loading it.
2. A statement that mends something is complete: it can be pasted into psql. Lines that begin with ``--`` are for
   people.
3. What the role may not see is skipped and said, never guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from distribcache.catalog.publications import CHANGES, STATE_SQL, TRIGGERS, UNIDENTIFIED_SQL
from distribcache.cli import guard
from distribcache.cli.defining import defining_code
from distribcache.cli.link import Connection, connect
from distribcache.cli.objects import INSTALLED, SLOT_PATTERN
from distribcache.config import Settings
from distribcache.errors import UpstreamError

__all__ = ["Check", "examine"]

# So many must stay free beside the cache's own: the reader does not start otherwise.
FREE_BESIDE_OURS = 2
LEAST_VERSION = 140000
TESTED_VERSION = 150000
_PLUGIN = "test_decoding"
_SOME = 5
_SLOT_TIMEOUT = "5s"
_RESTART = "-- then restart PostgreSQL"
_RELOAD = "SELECT pg_reload_conf();"

_FACTS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
       pg_is_in_recovery() AS in_recovery, pg_backend_pid() AS pid, session_user AS role,
       current_database() AS database,
       (SELECT datistemplate FROM pg_database WHERE datname = current_database()) AS is_template,
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) AS is_super,
       (SELECT rolreplication FROM pg_roles WHERE rolname = session_user) AS has_replication,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'member')) AS has_rds,
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_superuser') AS is_rds,
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'cloudsqlsuperuser') AS is_cloudsql,
       current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int AS max_slots,
       (SELECT count(*) FROM pg_replication_slots)::int AS slots,
       EXISTS (SELECT FROM pg_replication_slots WHERE slot_name LIKE %(ours)s AND active) AS is_followed,
       (SELECT string_agg(slot_name::text, ', ' ORDER BY slot_name) FROM pg_replication_slots WHERE NOT active)
         AS idle_slots,
       current_setting('max_wal_senders')::int AS max_senders,
       (SELECT count(*) FROM pg_stat_replication)::int AS senders,
       (SELECT string_agg(DISTINCT quote_ident(application_name), ', ') FROM pg_stat_replication
         WHERE application_name NOT LIKE 'distribcache%%') AS standbys,
       current_setting('synchronous_standby_names') AS standby_names,
       current_setting('max_slot_wal_keep_size') AS slot_keep,
       (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit,
       current_setting('wal_writer_delay') AS wal_writer_delay
"""


_KEPT = """
SELECT slot_name AS name, active,
       coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)), 'lost') AS kept
  FROM pg_replication_slots WHERE slot_name LIKE %(ours)s AND NOT temporary ORDER BY slot_name
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One prerequisite and how the server stands to it."""

    name: str
    status: str
    detail: str
    fix: tuple[str, ...] = ()


def examine(settings: Settings, dbname: str | None = None) -> tuple[str, list[Check]]:
    """The server's version and all checks. Raises ConfigError and UpstreamError as ``connect`` does."""
    with connect(settings, dbname) as connection:
        row = connection.execute(_FACTS, {"ours": SLOT_PATTERN}).fetchone()
        assert row is not None
        checks = [Check("reachable", "ok", f"logged in as {row['role']} to {row['database']}")]
        checks += _judge(row)
        checks.append(_pooler(connection, row))
        checks.append(_event_trigger(connection, row))
        checks.append(Check("schema_changing_code", *defining_code(connection)))
        checks += _kept(connection, settings, row)
        checks.append(_replication_connection(settings, dbname, _blocking(checks)))
        checks += _plugin(connection, _blocking(checks), settings.freshness.plugin)
        return str(row["version"]), checks


def _blocking(checks: list[Check]) -> list[str]:
    """Problems without whose mending a replication connection or a slot cannot be had."""
    return [check.name for check in checks if check.status == "problem" and check.name != "synchronous_standby"]


def _judge(row: dict[str, Any]) -> Iterator[Check]:
    """Everything that one row of facts decides."""
    number = row["number"]
    if number < LEAST_VERSION:
        upgrade = ("-- upgrade to PostgreSQL 15 or later",)
        yield Check("version", "problem", f"PostgreSQL {row['version']} is too old", upgrade)
    elif number < TESTED_VERSION:
        yield Check("version", "advice", f"PostgreSQL {row['version']}: tested from 15 on")
    else:
        yield Check("version", "ok", f"PostgreSQL {row['version']}")

    if row["in_recovery"]:
        primary = ("-- name the primary in the URL; with several hosts add ?target_session_attrs=read-write",)
        yield Check("in_recovery", "problem", "this server is a standby", primary)
    else:
        yield Check("in_recovery", "ok", "this server is a primary")

    if row["is_template"]:
        hint = ("-- name another database in the URL; a session in a template database breaks CREATE DATABASE",)
        yield Check("template_database", "problem", f"{row['database']} is a template database", hint)

    if row["wal_level"] == "logical":
        yield Check("wal_level", "ok", "logical")
    else:
        mend: tuple[str, ...] = ("ALTER SYSTEM SET wal_level = 'logical';", _RESTART)
        if row["is_rds"]:
            mend = ("-- set rds.logical_replication = 1 in the instance's parameter group", _RESTART)
        elif row["is_cloudsql"]:
            mend = ("-- set the flag cloudsql.logical_decoding = on for the instance", _RESTART)
        yield Check("wal_level", "problem", f"{row['wal_level']}; commits cannot be followed", mend)

    if row["is_super"] or row["has_replication"] or row["has_rds"]:
        yield Check("replication_privilege", "ok", f"{row['role']} may replicate")
    else:
        role = sql.Identifier(row["role"]).as_string(None)
        grant = f"GRANT rds_replication TO {role};" if row["is_rds"] else f"ALTER ROLE {role} REPLICATION;"
        yield Check("replication_privilege", "problem", f"{row['role']} has no REPLICATION attribute", (grant,))

    ours = 0 if row["is_followed"] else 1
    yield _free("free_slots", "max_replication_slots", row["max_slots"], row["slots"] + ours, row["idle_slots"])
    yield _free("free_walsenders", "max_wal_senders", row["max_senders"], row["senders"] + ours, None)
    yield _standby(row["standby_names"], row["standbys"])

    if row["slot_keep"] == "-1":
        mend = ("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';", _RELOAD)
        yield Check("max_slot_wal_keep_size", "advice", "unlimited: a slot left by anyone can fill the disk", mend)
    else:
        yield Check("max_slot_wal_keep_size", "ok", str(row["slot_keep"]))

    if row["synchronous_commit"] == "off":
        mend = ("ALTER SYSTEM SET wal_writer_delay = '10ms';", _RELOAD)
        detail = f"off: commits reach the cache up to three times wal_writer_delay ({row['wal_writer_delay']}) late"
        yield Check("synchronous_commit", "advice", detail, mend)
    else:
        yield Check("synchronous_commit", "ok", str(row["synchronous_commit"]))


def _free(name: str, setting: str, most: int, used: int, idle: str | None) -> Check:
    detail = f"{max(most - used, 0)} of {most} stay free beside the cache's own"
    if most - used >= FREE_BESIDE_OURS:
        return Check(name, "ok", detail)
    fix = [f"ALTER SYSTEM SET {setting} = {max(used + FREE_BESIDE_OURS, 10)};", _RESTART]
    if idle:
        detail += f"; not in use: {idle}"
        fix.append("-- or drop one that nobody needs: SELECT pg_drop_replication_slot('NAME');")
    return Check(name, "problem", f"{detail}; {FREE_BESIDE_OURS} must", tuple(fix))


def _standby(names: str, standbys: str | None) -> Check:
    """A name list that matches everyone would make users' commits wait for the cache."""
    members = re.sub(r'"[^"]*"', lambda found: found[0].replace("*", ""), names)
    if not re.search(r"\*|distribcache", members):
        return Check("synchronous_standby", "ok", names or "no synchronous standbys")
    if standbys:
        fix: tuple[str, ...] = (f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ({standbys})';", _RELOAD)
    else:
        note = "-- no standby is connected; if you have some, write their names: 'FIRST 1 (name, …)'"
        fix = (note, "ALTER SYSTEM SET synchronous_standby_names = '';", _RELOAD)
    return Check("synchronous_standby", "problem", f"'{names}' would count the cache as a synchronous standby", fix)


def _pooler(connection: Connection, row: dict[str, Any]) -> Check:
    """Poolers invent process ids, and share one server session between clients."""
    try:
        connection.execute("SHOW distribcache.help")
    except psycopg.Error:
        if connection.info.backend_pid == row["pid"]:
            return Check("direct_connection", "ok", "nothing stands between the cache and PostgreSQL")
        found = "a connection pooler answers at this address"
    else:
        found = "a distribcache answers at this address"
    return Check("direct_connection", "problem", found, ("-- name PostgreSQL's own address and port in the URL",))


def _event_trigger(connection: Connection, row: dict[str, Any]) -> Check:
    """Optional: without it, schema changes made around the proxy are seen by polls."""
    installed = connection.execute(INSTALLED).fetchone()
    if installed is not None and installed["triggers"] == 2:
        return Check("event_trigger", "ok", "installed: schema changes from anywhere end hits at once")
    detail = "not installed: schema changes made around the proxy are seen within freshness.schema_poll"
    if row["is_super"]:
        return Check("event_trigger", "advice", detail, ("-- run: distribcache setup",))
    return Check("event_trigger", "advice", detail, ("-- run as superuser: distribcache setup",))


def _kept(connection: Connection, settings: Settings, row: dict[str, Any]) -> Iterator[Check]:
    """Persistent slots of the cache: what they hold back, and what they need."""
    slots = connection.execute(_KEPT, {"ours": SLOT_PATTERN}).fetchall()
    wanted = settings.freshness.slot == "persistent"
    if not slots and not wanted:
        return
    found = [f"{each['name']} ({'in use' if each['active'] else 'waits'}, {each['kept']})" for each in slots]
    detail = f"they keep the change stream over a restart: {_list(found)}" if found else "none yet"
    if wanted and row["slot_keep"] == "-1":
        detail += "; freshness.slot = persistent has no effect without max_slot_wal_keep_size"
        yield Check("kept_slots", "advice", detail, ("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';", _RELOAD))
    elif any(not each["active"] for each in slots):
        yield Check("kept_slots", "advice", detail, ("-- if no cache is to come back for it: distribcache teardown",))
    else:
        yield Check("kept_slots", "ok", detail)


def _replication_connection(settings: Settings, dbname: str | None, blocked: list[str]) -> Check:
    """pg_hba.conf and anything in between must let a replication connection through."""
    name = "replication_connection"
    if blocked:
        return Check(name, "skipped", f"needs {', '.join(blocked)} first")
    try:
        with connect(settings, dbname, replication="database") as link:
            link.pgconn.exec_(b"IDENTIFY_SYSTEM")
    except (UpstreamError, psycopg.Error) as error:
        hint = error.hint if isinstance(error, UpstreamError) else "see the server's log"
        return Check(name, "problem", str(getattr(error, "message", error)).strip(), (f"-- {hint}",))
    return Check(name, "ok", "accepted")


def _plugin(connection: Connection, blocked: list[str], wanted: str) -> Iterator[Check]:
    """Make a temporary slot and drop it. It waits for transactions that are writing now; so will the cache's own."""
    plugin = "pgoutput" if wanted == "pgoutput" else _PLUGIN
    check = _slot(connection, blocked, plugin)
    if check is None and wanted == "auto":
        plugin = "pgoutput"
        check = _slot(connection, blocked, plugin)
    if check is None:
        fix = ("-- install PostgreSQL's contrib package for this version (test_decoding.so)",)
        check = Check("slot_creation", "problem", f"output plugin {plugin} is missing", fix)
    yield check
    if plugin == "pgoutput" and check.status != "skipped":
        yield _publications(connection)


def _slot(connection: Connection, blocked: list[str], plugin: str) -> Check | None:
    """None when the server has no such plugin."""
    if blocked:
        return Check("slot_creation", "skipped", f"needs {', '.join(blocked)} first")
    slot = f"distribcache_doctor_{os.getpid()}"
    try:
        connection.execute(f"SET statement_timeout = '{_SLOT_TIMEOUT}'")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, %s, true)", [slot, plugin])
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    except psycopg.errors.QueryCanceled:
        who, fix = _writers(connection)
        return Check("slot_creation", "problem", f"waited {_SLOT_TIMEOUT} for transactions that write: {who}", fix)
    except psycopg.errors.UndefinedFile:
        return None
    except psycopg.Error as error:
        return Check("slot_creation", "problem", str(error.diag.message_primary or error).strip())
    return Check("slot_creation", "ok", f"{plugin} works")


def _publications(connection: Connection) -> Check:
    """What pgoutput needs beside the slot, and the tables that it cannot tell of."""
    name = "publications"
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(STATE_SQL.encode()).fetchone()
    assert row is not None
    publications, triggers, members, _ = row
    setup = ("-- run as superuser, with freshness.plugin = pgoutput: distribcache setup",)
    if publications != len(guard.PUBLICATIONS) or triggers != len(TRIGGERS):
        return Check(name, "problem", "pgoutput needs two publications and the event triggers that guard them", setup)
    outside = connection.execute(UNIDENTIFIED_SQL.encode()).fetchall()
    broken = [row["name"] for row in outside if row["member"]]
    if broken:
        fix = ("SELECT distribcache.prune();",)
        detail = f"updates of these tables fail, they have lost their identity: {_list(broken)}"
        return Check(name, "problem", detail, fix)
    if outside:
        names = [row["name"] for row in outside]
        detail = f"not cached, because their updates are not in the change stream: {_list(names)}"
        keyed = "-- or, where rows have a key: ALTER TABLE … ADD PRIMARY KEY …; REPLICA IDENTITY FULL writes more WAL"
        full = [f"ALTER TABLE {row['name']} REPLICA IDENTITY FULL;" for row in outside if row["full_helps"]][:_SOME]
        return Check(name, "advice", detail, (*full, keyed, "-- then: distribcache setup"))
    return Check(name, "ok", f"{len((members or '').split())} tables in {CHANGES}")


def _list(names: list[str]) -> str:
    more = len(names) - _SOME
    return ", ".join(names[:_SOME]) + (f" and {more} more" if more > 0 else "")


def _writers(connection: Connection) -> tuple[str, tuple[str, ...]]:
    """Who holds a transaction open that has written, sessions and prepared transactions."""
    sessions = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start"
    ).fetchall()
    prepared = connection.execute("SELECT gid FROM pg_prepared_xacts ORDER BY prepared").fetchall()
    who = [f"pid {row['pid']}" for row in sessions] + [f"prepared {row['gid']!r}" for row in prepared]
    fix = [f"SELECT pg_terminate_backend({row['pid']});" for row in sessions]
    fix += [f"ROLLBACK PREPARED {sql.Literal(row['gid']).as_string(None)};" for row in prepared]
    return ", ".join(who) or "of roles that this one may not see", tuple(fix)
