"""Does this database announce its DDL? The event trigger that `distribcache setup` makes, and whether it can be relied
on.

A plain REFRESH MATERIALIZED VIEW writes a new file and not one row into the change stream. Alone in its transaction it
looks like any DDL there (coherence rule R6); beside writes of rows only the trigger's message tells of it. So a
materialized view is cached where the trigger is sure to run, and nowhere else.

Why its absence is not missed, though the verdict was formed while it was there: all that is looked at here is part of
the fingerprint (triggers, functions, owners and their rights, settings), so whoever drops, disables or weakens it
moves the schema slot, and the verdict is formed anew. A REFRESH that began before the trigger was there holds a lock
that keeps readers out until it has committed; with CONCURRENTLY its rows are in the stream.

What a superuser turns off for a session or a transaction of his own, which refreshes beside writes, is seen by the next
poll and not before, like any DDL that nothing announces.

Deny by default: another body, a filter, a mode in which some sessions skip it, an owner who may not write the message
(the body swallows errors), or a setting that turns event triggers off refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

__all__ = ["ANNOUNCES", "BODY", "FUNCTION", "ORDERED", "SCHEMA", "SEARCH_PATH", "announces"]

SCHEMA = "distribcache"
FUNCTION = "on_ddl"
SEARCH_PATH = "pg_catalog, pg_temp"

BODY = """
DECLARE
  foreign_to_nobody boolean;
BEGIN
  IF tg_event = 'sql_drop' THEN
    foreign_to_nobody := NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary);
  ELSE
    -- A command that lists nothing may still have changed something; only DROP is told by the other trigger.
    foreign_to_nobody := NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
                                      WHERE schema_name IS DISTINCT FROM 'pg_temp')
      AND (tg_tag LIKE 'DROP %' OR EXISTS (SELECT FROM pg_event_trigger_ddl_commands()));
  END IF;
  IF NOT foreign_to_nobody THEN
    PERFORM pg_logical_emit_message(true, 'distribcache.ddl', tg_tag);
  END IF;
EXCEPTION WHEN OTHERS THEN
  NULL;
END
"""

ANNOUNCES = """
SELECT EXISTS (
  SELECT FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_language l ON l.oid = p.prolang
  WHERE t.evtevent = 'ddl_command_end' AND t.evtenabled = 'A' AND t.evttags IS NULL
    AND n.nspname = %s AND p.proname = %s AND p.prosrc = %s AND l.lanname = 'plpgsql'
    AND p.prosecdef AND p.proconfig = ARRAY['search_path=' || %s]
    AND NOT EXISTS (SELECT FROM pg_proc f WHERE f.pronamespace = 'pg_catalog'::regnamespace
      AND f.proname IN ('pg_logical_emit_message', 'pg_event_trigger_ddl_commands')
      AND NOT has_function_privilege(p.proowner, f.oid, 'EXECUTE'))
) AND current_setting('event_triggers', true) IS DISTINCT FROM 'off'
  AND NOT EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) AS one WHERE one LIKE 'event_triggers=%%')
"""
ORDERED = (SCHEMA, FUNCTION, BODY, SEARCH_PATH)
"""Its parameters."""


async def announces(ask: Callable[[str, Sequence[object]], Awaitable[list[tuple[Any, ...]]]]) -> bool:
    """Will every REFRESH in this database write its message into the stream? Raises what ``ask`` raises."""
    rows = await ask(ANNOUNCES, ORDERED)
    return bool(rows[0][0])
