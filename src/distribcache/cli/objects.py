"""What `distribcache setup` makes in a database and `distribcache teardown` removes: a schema, functions, triggers, and
where ``pgoutput`` is to be used the publications (``guard``).

After each DDL command the function writes the message ``distribcache.ddl`` into the WAL, inside the command's
transaction, so the reader learns of a schema change made around the proxy in the order of commits (coherence rule R6).
With ``test_decoding`` nothing depends on it being there: without it the same change is seen by polls.

Rules:
1. A user's DDL never fails because of the triggers: the body catches everything that can be caught.
2. Who runs the DDL needs no right on anything of ours: the function is SECURITY DEFINER with a fixed search_path.
3. Commands that touch temporary objects only say nothing; they concern nobody else.
4. Objects of the same name that are not ours are never replaced nor dropped. Ours is: a function or a publication by
   its comment, a trigger by its function, the schema by its comment and only when nothing else is left in it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from distribcache.catalog.announcing import BODY, FUNCTION, SCHEMA
from distribcache.catalog.publications import CHANGES, ENROL_SQL, MEMBERS_SQL, NAMES, TRIGGERS, UNIDENTIFIED_SQL
from distribcache.cli import guard
from distribcache.cli.guard import PUBLICATIONS, Function
from distribcache.cli.link import Connection
from distribcache.clock import now_ns
from distribcache.coherence.decoding import LEAVE_LOCK
from distribcache.errors import ConfigError

__all__ = [
    "INSTALLED", "LEAVE_PREFIX", "SLOT_PATTERN", "Deed", "install", "loads", "publishes", "release", "remove",
]

MARK = "made by distribcache setup; distribcache teardown removes it"
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

FUNCTIONS = {FUNCTION: Function("", "event_trigger", BODY)}
"""What is always made; ``guard.FUNCTIONS`` only for ``pgoutput``."""

_SCHEMA = """
SELECT n.oid IS NOT NULL AS present, obj_description(n.oid, 'pg_namespace') AS comment
  FROM (SELECT) AS one LEFT JOIN pg_namespace n ON n.nspname = %(schema)s
"""

_FUNCTIONS = """
SELECT p.proname AS name, obj_description(p.oid, 'pg_proc') AS comment, p.prosrc AS body
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = %(schema)s
"""

_TRIGGERS = """
SELECT t.evtname AS name, t.evtenabled = 'A' AS always, p.proname AS function
  FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname = %(schema)s
UNION ALL
SELECT t.evtname, false, NULL
  FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE n.nspname <> %(schema)s
"""

_PUBLICATIONS = f"""
SELECT pubname AS name, obj_description(oid, 'pg_publication') AS comment, puballtables AS for_all,
       (pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot)::text AS options
  FROM pg_publication WHERE pubname IN {NAMES}
"""
_OPTIONS = {name: ("(f,t,t,f,f)" if name == CHANGES else "(t,f,f,t,f)") for name in PUBLICATIONS}

_NAMES = {"schema": SCHEMA}


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that was done, found as it should be, or not done; ``why`` and ``fix`` say more about the last."""

    thing: str
    outcome: str  # created | present | replaced | removed | absent | released | refused
    why: str = ""
    fix: str = ""


def loads(connection: Connection, plugin: str) -> bool:
    """Can the server load this output plugin? That is known only by making a slot, which is dropped at once.

    Making it may wait for others' transactions, but it fails before that when there is no such plugin.
    """
    slot = f"distribcache_setup_{connection.info.backend_pid}"
    try:
        connection.execute("SET statement_timeout = '1s'")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, %s, true)", [slot, plugin])
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    except psycopg.errors.UndefinedFile:
        return False
    except psycopg.Error:
        pass
    finally:
        connection.execute("RESET statement_timeout")
    return True


def publishes(connection: Connection, plugin: str) -> bool:
    """Would a cache with this setting follow the database through ``pgoutput``?"""
    if plugin == "auto":
        return bool(_rows(connection, _PUBLICATIONS)) and not loads(connection, "test_decoding")
    return plugin == "pgoutput"


def install(connection: Connection, *, publish: bool = False) -> list[Deed]:
    """Make what is missing, all or nothing; with ``publish``, or where they are already, the publications too.

    Raises ConfigError when a name is taken by something that is not ours.
    """
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('distribcache setup'))")
            publish = publish or bool(connection.execute(_PUBLICATIONS.encode()).fetchall())
            deeds = _install(connection, publish=publish)
        return deeds + (_enrol(connection) if publish else [])
    except psycopg.errors.InsufficientPrivilege as error:
        why = f"{error.diag.message_primary}; changes of the schema made around the proxy are seen by polls instead"
        if publish:
            why = f"{error.diag.message_primary}; without it and the publications nothing is cached"
        return [Deed("event trigger", "refused", why, "run distribcache setup as a superuser")]


def _install(connection: Connection, *, publish: bool) -> list[Deed]:
    wanted = {**FUNCTIONS, **(guard.FUNCTIONS if publish else {})}
    triggers = {name: how for name, how in TRIGGERS.items() if how[1] in wanted}
    schema = _one(connection, _SCHEMA)
    functions = _rows(connection, _FUNCTIONS)
    found = _rows(connection, _TRIGGERS)
    for name in wanted:
        if name in functions and functions[name]["comment"] != MARK:
            raise _taken(f"function {SCHEMA}.{name}")
    for name, (_, function) in triggers.items():
        if name in found and found[name]["function"] != function:
            raise _taken(f"event trigger {name}")
    if not schema["present"]:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{MARK}'")
    deeds = [Deed(f"schema {SCHEMA}", "present" if schema["present"] else "created")]
    if publish:
        # The cache's own role calls a function there.
        connection.execute(f"GRANT USAGE ON SCHEMA {SCHEMA} TO PUBLIC")
        deeds += _publish(connection)
    for name, how in wanted.items():
        present = name in functions and functions[name]["body"] == how.body
        if not present:
            connection.execute(how.create(name).encode())
            connection.execute(f"COMMENT ON FUNCTION {SCHEMA}.{name} IS '{MARK}'".encode())
        outcome = "present" if present else "replaced" if name in functions else "created"
        deeds.append(Deed(f"function {SCHEMA}.{name}()", outcome))
    for name, (event, function) in triggers.items():
        if name in found and found[name]["always"]:
            deeds.append(Deed(f"event trigger {name}", "present"))
            continue
        if name not in found:
            made = f"CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION {SCHEMA}.{function}()"
            connection.execute(made.encode())
        # Sessions with session_replication_role = replica change schemas too.
        connection.execute(f"ALTER EVENT TRIGGER {name} ENABLE ALWAYS".encode())
        deeds.append(Deed(f"event trigger {name}", "replaced" if name in found else "created"))
    return deeds


def _publish(connection: Connection) -> list[Deed]:
    """The publications, ``distribcache_ud`` still without tables when it is new."""
    deeds = []
    found = _rows(connection, _PUBLICATIONS)
    for name, (tables, options) in PUBLICATIONS.items():
        known = found.get(name)
        if known is not None and known["comment"] != MARK:
            raise _taken(f"publication {name}")
        outcome = "created" if known is None else "replaced"
        if known is not None and known["for_all"] == bool(tables) and known["options"] == _OPTIONS[name]:
            deeds.append(Deed(f"publication {name}", "present"))
            continue
        if known is not None:
            connection.execute(f"DROP PUBLICATION {name}".encode())
        connection.execute(f"CREATE PUBLICATION {name}{tables} WITH ({options})".encode())
        connection.execute(f"COMMENT ON PUBLICATION {name} IS '{MARK}'".encode())
        deeds.append(Deed(f"publication {name}", outcome))
    return deeds


def _enrol(connection: Connection) -> list[Deed]:
    """Add the tables that have an identity, some at a time: each addition holds a lock on its table for a moment."""
    added = 0
    connection.execute("SET default_transaction_isolation = 'read committed'")
    while (some := int(_one(connection, ENROL_SQL.format(most=50))["enrol"])) > 0:
        added += some
    members = _one(connection, f"SELECT count(*)::int AS tables FROM ({MEMBERS_SQL}) AS m")["tables"]
    outside = [row for row in connection.execute(UNIDENTIFIED_SQL.encode()).fetchall() if not row["member"]]
    why = str(members)
    if outside:
        why += f"; {len(outside)} without a replica identity stay out and are not cached"
    return [Deed(f"tables in {CHANGES}", "created" if added else "present", why)]


def remove(connection: Connection) -> list[Deed]:
    """Remove what ``install`` made, each part if it is there and ours. What is not ours stays and is said."""
    found = _rows(connection, _TRIGGERS)
    functions = _rows(connection, _FUNCTIONS)
    publications = _rows(connection, _PUBLICATIONS)
    deeds = []
    for name, (_, function) in TRIGGERS.items():
        ours = None if name not in found else found[name]["function"] == function
        deeds += _drop(connection, f"event trigger {name}", f"DROP EVENT TRIGGER {name}", ours, function == FUNCTION)
    for name in PUBLICATIONS:
        ours = None if name not in publications else publications[name]["comment"] == MARK
        deeds += _drop(connection, f"publication {name}", f"DROP PUBLICATION {name}", ours, False)
    for name in (*FUNCTIONS, *guard.FUNCTIONS):
        ours = None if name not in functions else functions[name]["comment"] == MARK
        statement = f"DROP FUNCTION {SCHEMA}.{name}"
        deeds += _drop(connection, f"function {SCHEMA}.{name}()", statement, ours, name == FUNCTION)
    schema = _one(connection, _SCHEMA)
    ours = schema["comment"] == MARK if schema["present"] else None
    # Without CASCADE: whatever a user has put there stays, and so does the schema.
    return deeds + _drop(connection, f"schema {SCHEMA}", f"DROP SCHEMA {SCHEMA}", ours, True)


def _drop(connection: Connection, thing: str, statement: str, ours: bool | None, said: bool) -> list[Deed]:
    """``ours`` is None when there is no such thing, which is ``said`` only of what every setup makes."""
    if ours is None:
        return [Deed(thing, "absent")] if said else []
    if not ours:
        return [Deed(thing, "absent", "one of that name is not ours and stays")]
    return [_try(connection, thing, statement)]


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


def _one(connection: Connection, question: str) -> dict[str, Any]:
    row = connection.execute(question.encode(), _NAMES if "%(" in question else None).fetchone()
    assert row is not None
    return row


def _rows(connection: Connection, question: str) -> dict[str, dict[str, Any]]:
    """The rows of a question by the column ``name``."""
    rows = connection.execute(question.encode(), _NAMES if "%(" in question else None).fetchall()
    return {row["name"]: row for row in rows}


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
