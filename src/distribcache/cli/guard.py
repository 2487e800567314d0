"""What `distribcache setup` makes for ``pgoutput``: two publications, and the functions that keep a user's writes safe.

``prune``   takes out of ``distribcache_ud`` every table that has lost its identity
``enrol``   adds tables that have one, some at a time; a running cache calls it before it opens its stream
``guard``   event triggers: prune at the end of each command that may have cost a table its identity, inside the
            command's transaction, so the same transaction may go on to update the table

Rules:
1. A user's statement never fails because of them: the bodies catch everything that can be caught, and wait for a lock
   only so long.
2. Tables are added in transactions of the cache's own, never in a user's: adding locks the publication up to the end of
   the transaction, and others that must prune would wait for it.
3. After a table was added its identity is looked at again, under the lock that keeps others from taking it away. And
   whoever takes it away does not see an addition that is newer than the snapshot of his transaction, if that has one:
   what he alters is then taken out whether it seems to be in or not.
4. ``SET UNLOGGED`` fails for a member of a publication before any trigger could act at the command's end. So the tables
   that are named in a text with that word leave at its beginning; what left needlessly is added again later.
"""

from __future__ import annotations

from dataclasses import dataclass

from distribcache.catalog.announcing import SCHEMA, SEARCH_PATH
from distribcache.catalog.publications import ALL, CHANGES, ELIGIBLE_SQL, ENROL, GUARD, MEMBERS_SQL, PRUNE

__all__ = ["FUNCTIONS", "PUBLICATIONS", "Function"]

PUBLICATIONS = {
    ALL: (" FOR ALL TABLES", "publish = 'insert, truncate', publish_via_partition_root = false"),
    CHANGES: ("", "publish = 'update, delete', publish_via_partition_root = false"),
}
"""Name → for which tables, and the options."""

_DROP = (
    "SELECT string_agg(format('ONLY %I.%I', n.nspname, c.relname), ', ') INTO tables FROM pg_class c "
    f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid IN ({MEMBERS_SQL}) AND {{which}};\n"
    "IF tables IS NOT NULL THEN\n"
    f"  EXECUTE 'ALTER PUBLICATION {CHANGES} DROP TABLE ' || tables;\n"
    "END IF;"
)
_PRUNE = f"""
DECLARE
  tables text;
BEGIN
{_DROP.format(which=f"c.oid NOT IN (SELECT oid FROM ({ELIGIBLE_SQL}) AS e)")}
EXCEPTION WHEN OTHERS THEN
  NULL;
END
"""

_NAMED = """position(lower(replace(c.relname, '"', '""')) IN stack) > 0"""
_GUARD = f"""
DECLARE
  tables text;
  stack text;
BEGIN
  IF tg_event = 'ddl_command_start' THEN
    GET DIAGNOSTICS stack = PG_CONTEXT;
    stack := lower(current_query() || stack);
    IF position('unlogged' IN stack) > 0 THEN
{_DROP.format(which=_NAMED)}
    END IF;
  ELSIF tg_event = 'sql_drop' THEN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary
                AND object_type IN ('index', 'table column', 'table constraint')) THEN
      PERFORM {SCHEMA}.{PRUNE}();
    END IF;
  ELSIF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp') THEN
    PERFORM {SCHEMA}.{PRUNE}();
    IF current_setting('transaction_isolation') <> 'read committed' THEN
      FOR tables IN SELECT format('%I.%I', n.nspname, c.relname) FROM pg_event_trigger_ddl_commands() AS d
                      JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
                      JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.oid NOT IN (SELECT oid FROM ({ELIGIBLE_SQL}) AS e) LOOP
        BEGIN
          EXECUTE 'ALTER PUBLICATION {CHANGES} DROP TABLE ONLY ' || tables;
        EXCEPTION WHEN OTHERS THEN
          NULL;
        END;
      END LOOP;
    END IF;
  END IF;
EXCEPTION WHEN OTHERS THEN
  NULL;
END
"""

_ENROL = f"""
DECLARE
  one record;
  added int := 0;
  failed int := 0;
BEGIN
  -- Whoever may read the change stream may see to what is in it.
  IF NOT EXISTS (SELECT FROM pg_roles r WHERE pg_has_role(session_user, r.oid, 'member')
                  AND (r.rolsuper OR r.rolreplication OR r.rolname = 'rds_replication')) THEN
    RETURN 0;
  END IF;
  PERFORM {SCHEMA}.{PRUNE}();
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RETURN 0;
  END IF;
  FOR one IN SELECT e.oid, e.name FROM ({ELIGIBLE_SQL}) AS e WHERE e.oid NOT IN ({MEMBERS_SQL}) LOOP
    EXIT WHEN added >= most OR failed >= 20;
    BEGIN
      EXECUTE 'ALTER PUBLICATION {CHANGES} ADD TABLE ONLY ' || one.name;
      IF NOT EXISTS (SELECT FROM ({ELIGIBLE_SQL}) AS e WHERE e.oid = one.oid) THEN
        RAISE EXCEPTION 'it has lost its identity';
      END IF;
      added := added + 1;
    EXCEPTION WHEN OTHERS THEN
      failed := failed + 1;
    END;
  END LOOP;
  RETURN added;
END
"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of ours; it runs with its owner's rights. ``wait``: how long it may wait for a lock."""

    arguments: str
    returns: str
    body: str
    wait: str = ""

    def create(self, name: str) -> str:
        """The statement that makes it."""
        settings = f"SET search_path = {SEARCH_PATH}" + (f" SET lock_timeout = '{self.wait}'" if self.wait else "")
        return (
            f"CREATE OR REPLACE FUNCTION {SCHEMA}.{name}({self.arguments}) RETURNS {self.returns} LANGUAGE plpgsql "
            f"SECURITY DEFINER {settings} AS $distribcache${self.body}$distribcache$"
        )


FUNCTIONS = {
    PRUNE: Function("", "void", _PRUNE, "5s"),
    GUARD: Function("", "event_trigger", _GUARD, "5s"),
    ENROL: Function("most int", "int", _ENROL, "100ms"),
}
