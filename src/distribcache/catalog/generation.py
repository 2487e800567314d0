"""What the catalogue looks like now: a fingerprint of everything in it that can change an answer, and the map of
names.

What it must do (coherence rule R6): tell by one question whether anything changed since the last time. A maximum of
xmin or a choice of columns is blind (coherence trap 5): a renamed enum value, a view's ``security_invoker``, a
dropped primary key, an attribute of a composite type; an older transaction that commits later. So the fingerprint is
a hash over (key, xmin) of **every row** of every such catalogue: a row that was changed has another xmin, also if it
was changed back.

Rules:
1. Rows of temporary relations, functions and types are left out: programs make and drop them all the time. Sessions
   that can see one are never served, and what depends on one is refused (``judgement.is_temporary``).
2. Left out too is what cannot change an answer: statistics, dependencies, comments, publications of others, indexes
   that are not unique and run no code of a user's, sequences, and the rows of indexes and TOAST tables in ``pg_class``.
   ANALYZE and VACUUM change rows in place.
3. Roles are hashed by all columns that everybody may read (the password is masked there). ``(key, xmin)`` cannot see
   a row that came and went between two looks. For memberships, role settings, roles and policies that would be a
   right once given and taken back; for triggers, rules, functions, operators and casts, code that ran for a moment.
   So their counters of inserted and deleted rows count too, and of changed roles (they may lag by seconds).
4. Fingerprint, snapshot and map of one look come from one statement or one repeatable-read transaction.
5. Names are printed by the server's ``quote_ident``, as the change stream prints them, and compared as bytes.

Every query runs with ``search_path = pg_catalog`` and reads only what any role may read. PostgreSQL 14 or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from distribcache.catalog.publications import NAMES

__all__ = [
    "FINGERPRINT_SQL", "MAP_PARTS", "PREPARE_SQL", "QUICK_SQL", "RELATIONS_SQL", "RELOADED", "CatalogueView",
    "Relation", "Relations", "relations_from",
]


class SnapshotLike(Protocol):
    """What the coherence layer calls a snapshot; this layer only carries it."""

    def sees(self, xid: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Relation:
    """``kind`` is relkind; ``identity`` is relreplident (d, n, f, i); ``fires`` tells of triggers or rules.

    ``key``: for identities d and i the columns of the index that serves as such, in UTF-8; none when there is no such
    index, or it is deferrable. An UPDATE shows their old values when it changes one of them, and else none at all.
    """

    oid: int
    kind: str
    identity: str
    fires: bool
    ancestors: tuple[int, ...]
    key: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Relations:
    """``by_name``: the relation and its ancestors, by its printed name and by its oid written as a number (a printed
    name has a dot); ``by_oid``: the facts of each.
    """

    by_name: Mapping[bytes, tuple[int, ...]]
    by_oid: Mapping[int, Relation]
    oids: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def empty(cls) -> Relations:
        return cls({}, {})


@dataclass(frozen=True, slots=True)
class CatalogueView:
    """One look: its snapshot, the two fingerprints, and the map (None when only the fingerprint was asked)."""

    snapshot: Any
    fingerprint: tuple[int, ...]
    quick: tuple[int, ...]
    relations: Relations | None


_TEMP_SCHEMAS = "(SELECT oid FROM tmp)"
_TEMP_RELATIONS = "(SELECT oid FROM tmprel)"
_TELLING = (
    "indisunique OR indisreplident OR indisexclusion OR indexprs IS NOT NULL OR indpred IS NOT NULL "
    "OR EXISTS (SELECT FROM unnest(indclass) AS c WHERE c >= 16384)"
)
_KINDS = "('r', 'p', 'v', 'm', 'f', 'c')"

# catalogue: (key columns, condition). A key column of a row that has an oid is that oid.
_CATALOGUES: dict[str, tuple[str, str]] = {
    "pg_aggregate": ("aggfnoid", ""),
    "pg_am": ("oid", ""),
    "pg_amop": ("oid", ""),
    "pg_amproc": ("oid", ""),
    "pg_attrdef": ("oid", f"adrelid NOT IN {_TEMP_RELATIONS}"),
    "pg_attribute": (
        "attrelid, attnum",
        f"attrelid IN (SELECT oid FROM pg_class WHERE relkind IN {_KINDS} AND relpersistence <> 't')",
    ),
    "pg_cast": ("oid", ""),
    "pg_class": ("oid", f"relkind IN {_KINDS} AND relpersistence <> 't' AND relnamespace NOT IN {_TEMP_SCHEMAS}"),
    "pg_collation": ("oid", ""),
    "pg_constraint": ("oid", f"connamespace NOT IN {_TEMP_SCHEMAS}"),
    "pg_conversion": ("oid", ""),
    "pg_database": ("oid", "datname = current_database()"),
    "pg_default_acl": ("oid", ""),
    "pg_enum": ("oid", f"enumtypid NOT IN (SELECT oid FROM pg_type WHERE typnamespace IN {_TEMP_SCHEMAS})"),
    "pg_event_trigger": ("oid", ""),
    "pg_extension": ("oid", ""),
    "pg_foreign_data_wrapper": ("oid", ""),
    "pg_foreign_server": ("oid", ""),
    "pg_foreign_table": ("ftrelid", ""),
    "pg_index": (
        "indexrelid",
        f"({_TELLING}) AND indrelid NOT IN {_TEMP_RELATIONS}",
    ),
    "pg_inherits": ("inhrelid, inhparent", f"inhrelid NOT IN {_TEMP_RELATIONS}"),
    "pg_language": ("oid", ""),
    "pg_namespace": ("oid", f"oid NOT IN {_TEMP_SCHEMAS}"),
    "pg_opclass": ("oid", ""),
    "pg_operator": ("oid", ""),
    "pg_opfamily": ("oid", ""),
    "pg_partitioned_table": ("partrelid", f"partrelid NOT IN {_TEMP_RELATIONS}"),
    "pg_policy": ("oid", f"polrelid NOT IN {_TEMP_RELATIONS}"),
    "pg_proc": ("oid", f"pronamespace NOT IN {_TEMP_SCHEMAS}"),
    "pg_publication": ("oid", f"pubname IN {NAMES}"),
    "pg_publication_rel": ("oid", f"prpubid IN (SELECT oid FROM pg_publication WHERE pubname IN {NAMES})"),
    "pg_range": ("rngtypid", ""),
    "pg_rewrite": ("oid", f"ev_class NOT IN {_TEMP_RELATIONS}"),
    "pg_seclabel": ("objoid, classoid, objsubid", ""),
    "pg_shseclabel": ("objoid, classoid", ""),
    "pg_transform": ("oid", ""),
    "pg_trigger": ("oid", f"tgrelid NOT IN {_TEMP_RELATIONS}"),
    "pg_ts_config": ("oid", ""),
    "pg_ts_config_map": ("mapcfg, maptokentype, mapseqno", ""),
    "pg_ts_dict": ("oid", ""),
    "pg_ts_parser": ("oid", ""),
    "pg_ts_template": ("oid", ""),
    "pg_type": ("oid", f"typnamespace NOT IN {_TEMP_SCHEMAS}"),
}
# Small and shared by all databases of the server: changes made from another database give no sign in our stream.
_SHARED: dict[str, tuple[str, str]] = {
    "pg_auth_members": ("roleid, member, grantor", ""),
    "pg_db_role_setting": ("setdatabase, setrole", ""),
}
_COUNTED = ("pg_auth_members", "pg_db_role_setting", "pg_authid", "pg_policy")
# Not those that a temporary table writes to: programs make and drop them all the time.
_COUNTED_TOO = ("pg_trigger", "pg_rewrite", "pg_proc", "pg_operator", "pg_cast")


def _hash(catalogue: str, keys: str, condition: str) -> str:
    # xor does not mind the order, and no (key, xmin) occurs twice in a catalogue.
    where = f" WHERE {condition}" if condition else ""
    return (
        f"(SELECT coalesce(bit_xor(hash_record_extended(ROW({keys}, xmin), 0)), 0) # count(*) "
        f"FROM {catalogue}{where})"
    )


_ROLES = "(SELECT coalesce(bit_xor(hashtextextended(r::text, 0)), 0) # count(*) FROM pg_roles r)"
_RELOADED = "(SELECT (extract(epoch FROM pg_conf_load_time()) * 1000000)::bigint)"


def _counted(catalogue: str) -> str:
    oid = f"'pg_catalog.{catalogue}'::regclass"
    # Versions of rows of pg_authid are nobody's to read: only a count tells of what was changed and changed back.
    updated = f" + pg_stat_get_tuples_updated({oid}) * 1000000007" if catalogue == "pg_authid" else ""
    return f"(pg_stat_get_tuples_inserted({oid}) * 1000003 + pg_stat_get_tuples_deleted({oid}){updated})"


_QUICK_COLUMNS = [_hash(name, *how) for name, how in _SHARED.items()] + [_ROLES, _RELOADED]
_QUICK_COLUMNS += [_counted(name) for name in _COUNTED]
_FULL_COLUMNS = [_hash(name, *how) for name, how in _CATALOGUES.items()] + [_counted(name) for name in _COUNTED_TOO]
RELOADED = _QUICK_COLUMNS.index(_RELOADED)
"""Where the time of the last reload stands in the array of ``QUICK_SQL``."""
MAP_PARTS = tuple(
    place
    for place, name in enumerate(_CATALOGUES)
    if name in ("pg_attribute", "pg_class", "pg_index", "pg_inherits", "pg_namespace")
)
"""Where the fingerprint has the catalogues of which ``RELATIONS_SQL`` is made: while these hashes stay, so does the
map.
"""

QUICK_SQL = "SELECT ARRAY[" + ", ".join(_QUICK_COLUMNS) + "]::bigint[]"
"""One row, one array: roles, memberships, role and database settings, time of the last reload."""

FINGERPRINT_SQL = (
    "WITH tmp AS MATERIALIZED (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'), "
    "tmprel AS MATERIALIZED (SELECT oid FROM pg_class WHERE relpersistence = 't') "
    "SELECT pg_current_snapshot()::text, ARRAY[" + ", ".join(_FULL_COLUMNS) + "]::bigint[], "
    "ARRAY[" + ", ".join(_QUICK_COLUMNS) + "]::bigint[]"
)
"""One row: snapshot, hashes of all catalogues, and the same array as ``QUICK_SQL``."""

# As relcache.c chooses it; what is stricter here only costs misses.
_IDENTITY = (
    "SELECT string_agg(encode(namesend(a.attname), 'hex'), ' ') FROM pg_index i JOIN pg_attribute a ON "
    "a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) WHERE i.indrelid = c.oid AND "
    "CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END AND i.indisunique AND "
    "i.indimmediate AND i.indisvalid AND i.indislive AND NOT i.indisexclusion AND i.indpred IS NULL"
)

RELATIONS_SQL = (
    "SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind, c.relreplident, "
    "c.relhastriggers OR c.relhasrules, (SELECT array_agg(inhparent) FROM pg_inherits WHERE inhrelid = c.oid), "
    f"CASE WHEN c.relreplident IN ('d', 'i') THEN ({_IDENTITY}) END "
    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND c.relpersistence <> 't'"
)
"""A row per relation: oid, printed name, relkind, replica identity, triggers or rules, parents, columns of the identity
in hexadecimal."""

PREPARE_SQL = (
    f"PREPARE distribcache_look AS {FINGERPRINT_SQL}; PREPARE distribcache_quick AS {QUICK_SQL}; "
    f"PREPARE distribcache_map AS {RELATIONS_SQL}"
)
"""Planning the fingerprint costs as much as running it on a small database: once per connection is enough."""


def relations_from(rows: Iterable[Sequence[bytes | None]]) -> Relations:
    """The map from the rows of ``RELATIONS_SQL``, every column in PostgreSQL's text form as bytes.

    Raises ValueError when a row has another form.
    """
    facts: dict[int, tuple[bytes, str, str, bool, frozenset[bytes]]] = {}
    parents: dict[int, tuple[int, ...]] = {}
    for oid, name, kind, identity, fires, above, key in rows:
        if oid is None or name is None or kind is None or identity is None:
            raise ValueError("a relation without a name")
        number = int(oid)
        columns = frozenset(bytes.fromhex(column.decode()) for column in (key or b"").split())
        facts[number] = (name, kind.decode(), identity.decode(), fires == b"t", columns)
        if above:
            parents[number] = tuple(map(int, above.strip(b"{}").split(b",")))
    by_name: dict[bytes, tuple[int, ...]] = {}
    by_oid: dict[int, Relation] = {}
    for number, (name, kind_text, identity_text, fired, columns) in facts.items():
        ancestors = _closure(number, parents)
        by_name[name] = by_name[b"%d" % number] = (number, *ancestors)
        by_oid[number] = Relation(number, kind_text, identity_text, fired, ancestors, columns)
    return Relations(by_name, by_oid, frozenset(facts))


def _closure(oid: int, parents: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """All ancestors of a relation; a child may have several parents."""
    found: dict[int, None] = {}
    todo = list(parents.get(oid, ()))
    while todo:
        parent = todo.pop()
        if parent not in found:
            found[parent] = None
            todo.extend(parents.get(parent, ()))
    return tuple(found)
