"""What ``pgoutput`` may send of a database: the two publications, and the tables that belong to them.

``pgoutput`` sends what publications name, and a publication may break a user's write: an UPDATE or DELETE of a table
without a replica identity fails as soon as a publication of it publishes such changes. So there are two:

* ``distribcache_all``, for all tables, publishes inserts and truncations, which need no identity;
* ``distribcache_ud`` publishes updates and deletes of the tables that have an identity which cannot be lost unseen.

Rules:
1. A table whose updates are not published is not cached from: ``no_replica_identity``. For a read of a parent that
   counts for every child.
2. An identity counts only if no statement can take it away in steps: a unique index that is no constraint can be
   dropped CONCURRENTLY, and while that lasts an UPDATE would fail. And only if no generated column is in it: from
   version 18 on these fail too, and after an upgrade so would those of an older server.
3. A table is added before the stream begins, never under it: a transaction that had begun before is decoded without the
   table's changes, however late it commits.

Members are named one by one and without their children. Every query runs with ``search_path = pg_catalog`` and reads
what any role may read.
"""

from __future__ import annotations

from distribcache.catalog.announcing import FUNCTION, SCHEMA

__all__ = [
    "ALL", "CHANGES", "ELIGIBLE_SQL", "ENROL", "ENROL_SQL", "GUARD", "MEMBERS_SQL", "NAMES", "PRUNE", "STATE_SQL",
    "TRIGGERS", "UNIDENTIFIED_SQL", "UNPUBLISHED_SQL", "WAITING_SQL",
]

ALL = "distribcache_all"
CHANGES = "distribcache_ud"
NAMES = f"('{ALL}', '{CHANGES}')"

GUARD, PRUNE, ENROL = "guard", "prune", "enrol"

TRIGGERS = {
    "distribcache_ddl": ("ddl_command_end", FUNCTION),
    "distribcache_drop": ("sql_drop", FUNCTION),
    "distribcache_guard_alter": ("ddl_command_end WHEN TAG IN ('ALTER TABLE')", GUARD),
    "distribcache_guard_drop": ("sql_drop", GUARD),
    "distribcache_guard_start": ("ddl_command_start WHEN TAG IN ('ALTER TABLE')", GUARD),
}
"""Event triggers: when they fire, and the function. The first two tell of DDL, the others guard the publications."""

_GENERATED = (
    "EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
    "AND a.attgenerated <> ''{among})"
)
_INDEX = (
    "i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indislive AND i.indpred IS NULL "
    "AND NOT " + _GENERATED.format(among=" AND a.attnum = ANY (i.indkey::int2[])")
)
_TABLES = (
    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname <> 'information_schema'"
)
ELIGIBLE_SQL = (
    f"SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name {_TABLES} AND CASE c.relreplident "
    f"WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE {_INDEX} AND i.indisprimary) "
    f"WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE {_INDEX} AND i.indisreplident "
    "AND EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))) "
    f"WHEN 'f' THEN NOT {_GENERATED.format(among='')} ELSE false END"
)
"""The tables that may belong to ``distribcache_ud`` (rule 2), by oid and printed name."""

_MEMBERS = (
    f"FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = '{CHANGES}'"
)
MEMBERS_SQL = f"SELECT r.prrelid AS oid {_MEMBERS}"
UNIDENTIFIED_SQL = (
    f"SELECT format('%I.%I', n.nspname, c.relname) AS name, c.oid IN ({MEMBERS_SQL}) AS member, "
    f"c.relreplident <> 'f' AND NOT {_GENERATED.format(among='')} AS full_helps "
    f"{_TABLES} AND c.oid NOT IN (SELECT oid FROM ({ELIGIBLE_SQL}) AS e) ORDER BY 1"
)
"""Tables without an identity that counts; a ``member`` among them is one whose updates fail."""

# Row filters and column lists came with version 15. Ours have none; who has given a table one gets no answers from it.
_WHOLE = "to_jsonb(r)->>'prqual' IS NULL AND to_jsonb(r)->>'prattrs' IS NULL"

UNPUBLISHED_SQL = (
    "SELECT c.relkind::text, n.nspname || '.' || c.relname FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace "
    f"WHERE c.oid = ANY (%s::int8[]) AND c.relkind IN ('r', 'm') AND c.oid NOT IN ({MEMBERS_SQL} AND {_WHOLE}) "
    "ORDER BY c.oid LIMIT 1"
)
"""One of these tables and materialized views whose updates are not published; none if all are. (No materialized view's
are: with CONCURRENTLY its refresh changes rows.)
"""

WAITING_SQL = (
    f"SELECT count(*) FILTER (WHERE m.oid IS NULL), count(*) FILTER (WHERE e.oid IS NULL) "
    f"FROM ({ELIGIBLE_SQL}) AS e FULL JOIN ({MEMBERS_SQL}) AS m ON m.oid = e.oid"
)
"""How many tables could be added, and how many must be taken out."""

ENROL_SQL = f"SELECT {SCHEMA}.{ENROL}({{most}})"
"""Take out what must not be in it, then add so many tables at most; the answer is how many it added."""

STATE_SQL = (
    "SELECT (SELECT count(*) FROM pg_publication WHERE NOT pubviaroot AND CASE pubname "
    f"WHEN '{ALL}' THEN puballtables AND pubinsert AND pubtruncate AND NOT pubupdate AND NOT pubdelete "
    f"WHEN '{CHANGES}' THEN NOT puballtables AND pubupdate AND pubdelete END), "
    "(SELECT count(*) FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid "
    "JOIN pg_namespace n ON n.oid = f.pronamespace "
    f"WHERE n.nspname = '{SCHEMA}' AND t.evtenabled = 'A' AND f.proname = CASE t.evtname "
    + " ".join(f"WHEN '{name}' THEN '{function}'" for name, (_, function) in TRIGGERS.items())
    + f" END), (SELECT string_agg(r.oid::text, ' ') {_MEMBERS} AND {_WHOLE}), "
    f"(SELECT string_agg(oid || '.' || xmin, ' ' ORDER BY oid) FROM pg_publication WHERE pubname IN {NAMES})"
)
"""One row: publications that are as they must be, event triggers of ours that always fire, oids of the memberships (not
of the tables: one that left and came back has another), and the versions of the publications.
"""
