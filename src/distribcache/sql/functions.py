"""Which built-in functions an answer may depend on: the allow-list of stable ones, and the exceptions.

Rules:
1. Immutable built-ins are fine, but for a few that look at the server all the same.
2. A stable built-in is fine only if it is listed here: it depends on its arguments, on settings in the key
   (TimeZone, DateStyle, lc_*, default_text_search_config …), on who asks, or on the catalogue, which the schema tag
   covers. Those that read tables, sizes, statistics, locks, sequences, the connection, the clock or arbitrary settings
   are not listed, and neither are those that turn text into dates where no cast shows it.
3. Volatile ones are never fine.

The lists are names: every overload of a listed name was looked at (PostgreSQL 15 and 18).
"""

from __future__ import annotations

__all__ = [
    "EXTENSION_DENIED", "EXTENSION_STABLE", "IMMUTABLE_DENIED", "IMPURE", "PLAIN_TYPES", "SESSION_TYPES", "STABLE",
    "TIME",
]

# Immutable by the catalogue; they read the timeline or the catalogue.
IMMUTABLE_DENIED = frozenset(
    {"pg_walfile_name", "pg_walfile_name_offset", "pg_partition_root", "satisfies_hash_partition"}
)

TIME = frozenset("now transaction_timestamp statement_timestamp clock_timestamp timeofday age timetz".split())

STABLE = frozenset(
    # Dates and times: TimeZone, lc_time.
    "date date_add date_subtract date_part date_trunc extract generate_series in_range overlaps time timestamp "
    "timestamptz timezone make_timestamptz interval_pl_timestamptz timestamptz_pl_interval "
    "timestamptz_mi_interval to_char to_date to_number to_timestamp date_cmp_timestamptz date_eq_timestamptz "
    "date_ge_timestamptz date_gt_timestamptz date_le_timestamptz date_lt_timestamptz date_ne_timestamptz "
    "timestamp_cmp_timestamptz timestamp_eq_timestamptz timestamp_ge_timestamptz timestamp_gt_timestamptz "
    "timestamp_le_timestamptz timestamp_lt_timestamptz timestamp_ne_timestamptz timestamptz_cmp_date "
    "timestamptz_eq_date timestamptz_ge_date timestamptz_gt_date timestamptz_le_date timestamptz_lt_date "
    "timestamptz_ne_date timestamptz_cmp_timestamp timestamptz_eq_timestamp timestamptz_ge_timestamp "
    "timestamptz_gt_timestamp timestamptz_le_timestamp timestamptz_lt_timestamp timestamptz_ne_timestamp "
    # Text of values: DateStyle, IntervalStyle, extra_float_digits, bytea_output, lc_monetary, lc_numeric.
    "anytextcat textanycat concat concat_ws format quote_literal quote_nullable array_to_string money numeric "
    "convert convert_from convert_to length "
    # JSON and XML. json_to_record and its kin: the types of their columns are judged where they are declared.
    "array_to_json row_to_json to_json to_jsonb json_agg json_agg_strict jsonb_agg jsonb_agg_strict "
    "json_object_agg json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict json_build_array "
    "json_build_object jsonb_build_array jsonb_build_object json_to_record json_to_recordset jsonb_to_record "
    # Not jsonb_path_exists_tz and its kin: a time without a date that they compare has the offset of today.
    "jsonb_to_recordset json_agg_transfn jsonb_agg_transfn jsonb_agg_finalfn json_to_tsvector jsonb_to_tsvector "
    "xml xml_is_well_formed "
    # Enums: the catalogue.
    "enum_first enum_last enum_range "
    # Text search: default_text_search_config and the catalogue.
    "to_tsvector to_tsquery plainto_tsquery phraseto_tsquery websearch_to_tsquery ts_headline ts_match_tq "
    "ts_match_tt get_current_ts_config "
    # Who asks, and where: part of the key.
    "current_database current_schema current_schemas current_user session_user getpgusername getdatabaseencoding "
    "pg_client_encoding pg_typeof version".split()
)

# Stable, yet not a proven pure read: they take a transaction id, or run whatever a table's or type's name stands for.
IMPURE = frozenset(
    "txid_current pg_current_xact_id table_to_xml table_to_xmlschema table_to_xml_and_xmlschema schema_to_xml "
    "schema_to_xmlschema schema_to_xml_and_xmlschema database_to_xml database_to_xmlschema "
    "database_to_xml_and_xmlschema pg_input_is_valid pg_input_error_info fmgr_c_validator fmgr_internal_validator "
    "fmgr_sql_validator".split()
)

# Of extensions: stable, and depending only on settings that are part of the key (pg_trgm's thresholds) or on a text
# search dictionary (unaccent).
EXTENSION_STABLE = frozenset(
    "unaccent similarity_op word_similarity_op word_similarity_commutator_op strict_word_similarity_op "
    "strict_word_similarity_commutator_op".split()
)

# Of extensions: immutable by the catalogue; they turn stored text into any type, or read something else.
EXTENSION_DENIED = frozenset({"populate_record", "st_transform", "st_asgml", "postgis_transform_geometry"})

# Of the extension isn: whether their text is read as an error depends on isn_weak(), which is no setting.
SESSION_TYPES = frozenset("isbn isbn13 ismn ismn13 issn issn13 ean13 upc".split())

# bool, int8, int2, int4, float4, float8, date, time, timestamp, timestamptz, interval, timetz, numeric: never text.
PLAIN_TYPES = frozenset({16, 20, 21, 23, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700})
