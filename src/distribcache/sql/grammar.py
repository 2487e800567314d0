"""Word lists about the grammar: node types of the raw parse tree, type names, operators that the syntax hides.

Nothing here is a rule by itself; the rules are where the words are used. A node type that is in none of the lists and
has no handler refuses its query.
"""

from __future__ import annotations

__all__ = [
    "AGGREGATES", "AGGREGATE_MARKS", "CONTAINERS", "HARMLESS_TYPES", "IMPLIED", "JSON_CALLS",
    "KEYWORD_CALLS", "REG_TYPES", "SYSTEM_COLUMNS", "TIME_TYPES", "VECTOR_OPERATORS",
]

SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax"})
VECTOR_OPERATORS = frozenset({"<->", "<=>", "<#>", "<+>", "<~>", "<%>"})
AGGREGATE_MARKS = frozenset({"agg_star", "agg_filter", "agg_distinct", "agg_order"})
AGGREGATES = frozenset(
    "count sum avg min max array_agg string_agg json_agg jsonb_agg json_object_agg jsonb_object_agg bool_and bool_or "
    "every stddev stddev_pop stddev_samp variance var_pop var_samp corr regr_slope percentile_cont percentile_disc "
    "mode any_value bit_and bit_or xmlagg range_agg".split()
)
# Their plain conversion cannot yield a date or time; a user type of the same name is looked for all the same.
HARMLESS_TYPES = frozenset(
    "bool bytea char name int8 int2 int4 text json jsonb xml float4 float8 money numeric bpchar varchar interval bit "
    "varbit uuid inet cidr macaddr macaddr8 point line lseg box path polygon circle tsvector tsquery oid jsonpath int "
    "integer smallint bigint real decimal boolean vector halfvec sparsevec citext hstore ltree geometry "
    "geography".split()
)
TIME_TYPES = frozenset("date time timetz timestamp timestamptz daterange tsrange tstzrange".split())
# Not regconfig and regdictionary: what these name is looked up in catalogues that the fingerprint covers.
REG_TYPES = frozenset(
    "regclass regcollation regnamespace regoper regoperator regproc regprocedure regrole regtype regdatabase".split()
)
CONTAINERS = frozenset(
    "List ResTarget BoolExpr NullTest BooleanTest CaseWhen CoalesceExpr MinMaxExpr RowExpr A_ArrayExpr "
    "A_Indices A_Star SortBy WindowDef GroupingSet GroupingFunc RangeSubselect SetToDefault "
    "NamedArgExpr Integer Float Boolean BitString String XmlExpr XmlSerialize JsonKeyValue JsonValueExpr "
    "JsonReturning JsonFormat JsonArgument JsonTablePathSpec JsonTablePlan JsonBehavior JsonIsPredicate "
    "JsonAggConstructor InferClause OnConflictClause MultiAssignRef MergeWhenClause ReturningOption IndexElem".split()
)
KEYWORD_CALLS = {
    "JsonArrayConstructor": "json_array",
    "JsonArrayQueryConstructor": "json_array",
    "JsonObjectConstructor": "json_object",
    "JsonObjectAgg": "json_objectagg",
    "JsonArrayAgg": "json_arrayagg",
    "JsonScalarExpr": "json_scalar",
    "JsonParseExpr": "json",
    "JsonSerializeExpr": "json_serialize",
}
JSON_CALLS = {"JSON_VALUE_OP": "json_value", "JSON_QUERY_OP": "json_query", "JSON_EXISTS_OP": "json_exists"}
IMPLIED = {
    "AEXPR_BETWEEN": (">=", "<="),
    "AEXPR_NOT_BETWEEN": ("<", ">"),
    "AEXPR_BETWEEN_SYM": (">=", "<="),
    "AEXPR_NOT_BETWEEN_SYM": ("<", ">"),
}
