"""What `distribcache setup` makes in a database and `distribcache teardown` removes: a schema, a function, triggers.

After each DDL command the function writes the message ``distribcache.ddl`` into the WAL, inside the command's
transaction, so the reader learns of a schema change made around the proxy in the order of commits (coherence rule R6).
Nothing depends on it being there: without it the same change is seen by polls.

Rules:
1. A user's DDL never fails because of the triggers: the body catches everything that can be caught.
2. Who runs the DDL needs no right on anything of ours: the function is SECURITY DEFINER with a fixed search_path.
3. Commands that touch temporary objects only say nothing; they concern nobody else.
4. Objects of the same name that are not ours are never replaced nor dropped. Ours is: the function by its comment, a
   trigger by its function, the schema by its comment and only when nothing else is left in it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psycopg
from psycopg import sql

from distribcache.catalog.announcing import BODY, FUNCTION, SCHEMA, SEARCH_PATH
from distribcache.cli.link import Connection
from distribcache.clock import now_ns
from distribcache.coherence.decoding import LEAVE_LOCK
from distribcache.errors import ConfigError

__all__ = ["INSTALLED", "LEAVE_PREFIX", "SLOT_PATTERN", "Deed", "install", "release", "remove"]

MARK = "made by distribcache setup; distribcache teardown removes it"
TRIGGERS = {"distribcache_ddl": "ddl_command_end", "distribcache_drop": "sql_drop"}
# Slots of the cache, and nobody else's: the underscore is no wildcard here.
SLOT_PATTERN = r"distribcache\_%"
# A cache that reads this message in its stream leaves the database for half a minute, if somebody holds the lock
# (``LEAVE_LOCK``) who may ask for that: a superuser, a replication role, the database's owner, the cache's own role.
LEAVE_PREFIX = "distribcache.leave"
_LEAVE_SECONDS = 1.0
_RELEASE_SECONDS = 10.0

INSTALLED = f"""
SELECT count(*)::int AS triggers FROM pg_event_trigger t
  JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = '{SCHEMA}' AND p.proname = '{FUNCTION}' AND t.evtname IN ('distribcache_ddl', 'distribcache_drop')
   AND t.evtenabled = 'A'
"""

_FUNCTION = f"""
CREATE OR REPLACE FUNCTION {SCHEMA}.{FUNCTION}() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = {SEARCH_PATH} AS $distribcache${BODY}$distribcache$
"""

_STATE = """
SELECT n.oid IS NOT NULL AS has_schema, obj_description(n.oid, 'pg_namespace') AS schema_comment,
       p.oid IS NOT NULL AS has_function, obj_description(p.oid, 'pg_proc') AS function_comment,
       p.prosrc AS body, pg_get_userbyid(p.proowner) AS owner
  FROM (SELECT) AS one
  LEFT JOIN pg_namespace n ON n.nspname = %(schema)s
  LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = %(function)s AND p.pronargs = 0
"""

_TRIGGERS = """
SELECT t.evtname AS name, t.evtenabled = 'A' AS always, n.nspname = %(schema)s AND p.proname = %(function)s AS ours
  FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
"""

_NAMES = {"schema": SCHEMA, "function": FUNCTION}


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that was done, found as it should be, or not done; ``why`` and ``fix`` say more about the last."""

    thing: str
    outcome: str  # created | present | replaced | removed | absent | released | refused
    why: str = ""
    fix: str = ""


def install(connection: Connection) -> list[Deed]:
    """Make what is missing, all or nothing. Raises ConfigError when a name is taken by something that is not ours."""
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('distribcache setup'))")
            return _install(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        why = f"{error.diag.message_primary}; changes of the schema made around the proxy are seen by polls instead"
        return [Deed("event trigger", "refused", why, "run distribcache setup as a superuser")]


def _install(connection: Connection) -> list[Deed]:
    deeds: list[Deed] = []
    state = _state(connection)
    if state["has_function"] and state["function_comment"] != MARK:
        raise _taken(f"function {SCHEMA}.{FUNCTION}")
    triggers = {row["name"]: row for row in connection.execute(_TRIGGERS, _NAMES).fetchall()}
    for name in TRIGGERS:
        if name in triggers and not triggers[name]["ours"]:
            raise _taken(f"event trigger {name}")
    if not state["has_schema"]:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
    deeds.append(Deed(f"schema {SCHEMA}", "present" if state["has_schema"] else "created"))
    if state["body"] != BODY:
        connection.execute(_FUNCTION)
        connection.execute(f"COMMENT ON FUNCTION {SCHEMA}.{FUNCTION}() IS '{MARK}'")
    outcome = "present" if state["body"] == BODY else "replaced" if state["has_function"] else "created"
    deeds.append(Deed(f"function {SCHEMA}.{FUNCTION}()", outcome))
    for name, event in TRIGGERS.items():
        if name in triggers and triggers[name]["always"]:
            deeds.append(Deed(f"event trigger {name}", "present"))
            continue
        if name not in triggers:
            connection.execute(f"CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION {SCHEMA}.{FUNCTION}()")
        # Sessions with session_replication_role = replica change schemas too.
        connection.execute(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS")
        deeds.append(Deed(f"event trigger {name}", "replaced" if name in triggers else "created"))
    return deeds


def remove(connection: Connection) -> list[Deed]:
    """Remove what ``install`` made, each part if it is there and ours. What is not ours stays and is said."""
    deeds = [_drop_trigger(connection, name) for name in TRIGGERS]
    state = _state(connection)
    if not state["has_function"]:
        deeds.append(Deed(f"function {SCHEMA}.{FUNCTION}()", "absent"))
    elif state["function_comment"] != MARK:
        deeds.append(Deed(f"function {SCHEMA}.{FUNCTION}()", "absent", "one of that name is not ours and stays"))
    else:
        deeds.append(_try(connection, f"function {SCHEMA}.{FUNCTION}()", f"DROP FUNCTION {SCHEMA}.{FUNCTION}()"))
    if not state["has_schema"]:
        deeds.append(Deed(f"schema {SCHEMA}", "absent"))
    elif state["schema_comment"] != MARK:
        deeds.append(Deed(f"schema {SCHEMA}", "absent", "one of that name is not ours and stays"))
    else:
        # Without CASCADE: whatever a user has put there stays, and so does the schema.
        deeds.append(_try(connection, f"schema {SCHEMA}", f"DROP SCHEMA {SCHEMA}"))
    return deeds


def release(connection: Connection) -> list[Deed]:
    """Have running caches leave this database, first asked, then made to; and drop slots that a crash left.

    A running cache that is asked stays away for a while (``LEAVE_PREFIX``), so a DROP DATABASE can follow.
    """
    deeds: list[Deed] = []
    pids = _sessions(connection)
    if pids:
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT pg_try_advisory_lock_shared(%s::int, %s::int)", LEAVE_LOCK)
            connection.execute("SELECT pg_logical_emit_message(true, %s, '')", [LEAVE_PREFIX])
        if not _gone(connection, pids, _LEAVE_SECONDS):
            for pid in pids:
                deed = _try(connection, f"session {pid}", f"SELECT pg_terminate_backend({pid})")
                deeds += [deed] if deed.outcome == "refused" else []
            _gone(connection, pids, _RELEASE_SECONDS if not deeds else 0)
        left = _sessions(connection)
        deeds += [Deed(f"session {pid}", "released") for pid in pids if pid not in left]
        refused = {deed.thing for deed in deeds}
        deeds += [Deed(f"session {pid}", "refused", "still there") for pid in left if f"session {pid}" not in refused]
    slots = connection.execute(
        "SELECT slot_name FROM pg_replication_slots "
        "WHERE database = current_database() AND slot_name LIKE %s AND NOT temporary",
        [SLOT_PATTERN],
    ).fetchall()
    for row in slots:
        statement = f"SELECT pg_drop_replication_slot({sql.Literal(row['slot_name']).as_string(None)})"
        deeds.append(_try(connection, f"replication slot {row['slot_name']}", statement))
    return deeds or [Deed("replication slots", "absent")]


def _sessions(connection: Connection) -> list[int]:
    """The cache's own sessions in this database: stream, probe, catalogue. Clients' sessions are not ours."""
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'distribcache' AND pid <> pg_backend_pid() "
        "UNION SELECT active_pid FROM pg_replication_slots "
        "WHERE database = current_database() AND slot_name LIKE %s AND active_pid IS NOT NULL ORDER BY 1",
        [SLOT_PATTERN],
    )
    return [row["pid"] for row in rows.fetchall()]


def _gone(connection: Connection, pids: list[int], seconds: float) -> bool:
    """Wait until none of these sessions is left; the server does the waiting between two looks."""
    deadline = now_ns() + int(seconds * 1e9)
    while set(pids) & set(_sessions(connection)):
        if now_ns() > deadline:
            return False
        connection.execute("SELECT pg_sleep(0.05)")
    return True


def _state(connection: Connection) -> dict[str, object]:
    row = connection.execute(_STATE, _NAMES).fetchone()
    assert row is not None
    return row


def _drop_trigger(connection: Connection, name: str) -> Deed:
    found = [row for row in connection.execute(_TRIGGERS, _NAMES).fetchall() if row["name"] == name]
    if not found:
        return Deed(f"event trigger {name}", "absent")
    if not found[0]["ours"]:
        return Deed(f"event trigger {name}", "absent", "one of that name is not ours and stays")
    return _try(connection, f"event trigger {name}", f"DROP EVENT TRIGGER {name}")


def _try(connection: Connection, thing: str, statement: str) -> Deed:
    try:
        connection.execute(statement.encode())
    except psycopg.errors.UndefinedObject:
        return Deed(thing, "absent")
    except psycopg.errors.InsufficientPrivilege as error:
        return Deed(thing, "refused", str(error.diag.message_primary), f"as its owner or a superuser: {statement};")
    except psycopg.errors.DependentObjectsStillExist:
        return Deed(thing, "refused", "something of yours is in it", "move it elsewhere, then run this again")
    except psycopg.Error as error:
        return Deed(thing, "refused", str(error.diag.message_primary or error), f"{statement};")
    return Deed(thing, "removed")


def _taken(what: str) -> ConfigError:
    return ConfigError("exists and was not made by distribcache", where=what, hint="rename it, then run setup again")
