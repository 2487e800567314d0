"""Which settings shape an answer, and the question that learns them all from the client's own connection.

PostgreSQL reports only a few settings to its clients and search_path, role or default_transaction_isolation are not
among them (proxy trap 3), so what a session *is* cannot be watched, only asked for. One SELECT answers everything; it
runs under a reserved name, in the extended protocol, only while the server owes nothing (coherence trap 15).

``KEYED`` are the settings that can change the bytes of a result; their values become part of the session's scope by
content. Settings of extensions are asked with ``missing_ok``: absent reads as NULL, which is what ``UNLOADED`` says: a
session knows the settings of an extension only once it has run something of it. Settings that a session has been
seen to touch and that are not in the list are added for that session (``extra``): a policy or a function may read them.
"""

from __future__ import annotations

__all__ = ["KEYED", "OWN", "SCOPE_COLUMNS", "UNLOADED", "scope_query"]

KEYED: tuple[str, ...] = (
    "search_path",
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "timezone_abbreviations",
    "extra_float_digits",
    "bytea_output",
    "client_encoding",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lc_messages",
    "default_text_search_config",
    "row_security",
    "client_min_messages",
    "xmlbinary",
    "xmloption",
    "transform_null_equals",
    "array_nulls",
    "standard_conforming_strings",
    "backslash_quote",
    "quote_all_identifiers",
    "gin_fuzzy_search_limit",
    "gin_pending_list_limit",
    "restrict_nonsystem_relation_kind",
    "zero_damaged_pages",
    "session_replication_role",
    "default_transaction_read_only",
    "default_transaction_deferrable",
    "hnsw.ef_search",
    "hnsw.iterative_scan",
    "hnsw.max_scan_tuples",
    "hnsw.scan_mem_multiplier",
    "ivfflat.probes",
    "ivfflat.iterative_scan",
    "ivfflat.max_probes",
    "pg_trgm.similarity_threshold",
    "pg_trgm.word_similarity_threshold",
    "pg_trgm.strict_word_similarity_threshold",
)

UNLOADED: dict[str, str] = {
    "hnsw.ef_search": "40",
    "hnsw.iterative_scan": "off",
    "hnsw.max_scan_tuples": "20000",
    "hnsw.scan_mem_multiplier": "1",
    "ivfflat.probes": "1",
    "ivfflat.iterative_scan": "off",
    "ivfflat.max_probes": "32768",
    "pg_trgm.similarity_threshold": "0.3",
    "pg_trgm.word_similarity_threshold": "0.6",
    "pg_trgm.strict_word_similarity_threshold": "0.5",
}
"""What a setting will be that a session does not know yet. One that was set before, for the session or its role, it
knows."""

OWN: tuple[str, ...] = ("cache", "consistency", "max_staleness", "workload", "branch", "as_of")
"""The cache's own settings, each ``distribcache.<name>``: ordinary custom settings that PostgreSQL itself keeps."""

SCOPE_COLUMNS = (
    "database",
    "session_user",
    "current_user",
    "schemas",
    "temporary",
    "isolation",
    "statement_timeout",
    "backend_pid",
    "in_recovery",
    "postmaster_start",
    "system_identifier",
    "prepared",
    "idle_timeouts",
    "listens",
)

_IDLE = ("idle_session_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
"""When the server ends a session that it takes for idle; the first and the last are not known to all versions."""


_PATH = "pg_catalog.replace(pg_catalog.lower(pg_catalog.current_setting('search_path')), '\"$user\",', '')"
_SCHEMAS = (
    "CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) 0"
    f" AND pg_catalog.starts_with(pg_catalog.ltrim({_PATH}, ' \"'), 'pg_temp')"
    " THEN NULL ELSE pg_catalog.array_to_json(pg_catalog.current_schemas(true)) END"
)
"""NULL where the answer would make the session's temporary schema, which is to come first and is not there yet."""

_TEMPORARY = (
    "EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) '2615'"
    " AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())"
)
"""Does the session have a temporary object? Each depends on its schema (of class 2615, pg_namespace), by which the
server itself finds them when a session ends."""


def _literal(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def scope_query(extra: tuple[str, ...] = (), *, prove_server: bool = True, statements: bool = True) -> str:
    """The SELECT that learns a session's scope: ``SCOPE_COLUMNS``, then ``OWN``, ``KEYED``, ``extra`` as one array.

    Every function is qualified, so no schema of the user can answer in its place. ``prove_server`` adds the system
    identifier, which costs a read of the control file; ``statements`` the names of prepared statements.
    """
    columns = [
        "pg_catalog.current_database()",
        "session_user",
        "current_user",
        _SCHEMAS,
        _TEMPORARY,
        "pg_catalog.current_setting('default_transaction_isolation')",
        "pg_catalog.current_setting('statement_timeout')",
        "pg_catalog.pg_backend_pid()",
        "pg_catalog.pg_is_in_recovery()",
        "extract(epoch FROM pg_catalog.pg_postmaster_start_time())",
        "(SELECT system_identifier FROM pg_catalog.pg_control_system())" if prove_server else "NULL",
        # A function may have given a name that the client prepared another statement, or have deallocated it: the names
        # prepared in SQL, as no PREPARE of ours is, and those of the protocol.
        "NULL" if not statements else (
            "(SELECT pg_catalog.json_build_array(pg_catalog.json_agg(name) FILTER (WHERE from_sql),"
            " pg_catalog.json_agg(name) FILTER (WHERE NOT from_sql)) FROM pg_catalog.pg_prepared_statements)"
        ),
        "pg_catalog.concat_ws(' ', " + ", ".join(f"pg_catalog.current_setting('{name}', true)" for name in _IDLE) + ")",
        "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
    ]
    names = [f"distribcache.{name}" for name in OWN] + list(KEYED) + list(extra)
    listed = ", ".join(map(_literal, names))
    # One expression over an array, not one call per setting: a third of the time to parse and plan.
    columns.append(
        "(SELECT pg_catalog.json_agg(pg_catalog.current_setting(name, true) ORDER BY place)"
        f" FROM pg_catalog.unnest(ARRAY[{listed}]) WITH ORDINALITY AS asked(name, place))"
    )
    return "SELECT " + ", ".join(columns)
