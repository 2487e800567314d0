"""What to do about a read that is not answered from memory: one sentence for each code that is counted.

Three kinds of code: what the analysis refuses (``REFUSALS``), why a read that could be kept was passed by
(``BYPASSES``), and why nothing of a database is served (``coherence.reasons``). Where nothing helps, that is said:
whoever reads the counts wants to know which of them to leave alone.
"""

from __future__ import annotations

from distribcache.coherence.reasons import REASONS

__all__ = ["BYPASSES", "REMEDIES", "remedy"]

REMEDIES: dict[str, str] = {
    "not_understood": "Look for an error in the text; what only PostgreSQL understands, it answers each time.",
    "too_large": "Send values as parameters, and a long list as one array: = ANY ($1).",
    "not_a_read": "Nothing: writes and commands are PostgreSQL's to answer.",
    "several_statements": "Send the read as a statement of its own.",
    "no_relation": "Nothing: such an answer is not worth keeping.",
    "nocache": "Take the comment out where the answer may be kept.",
    "locking_read": "Leave the locking clause out where no row has to be locked; else nothing.",
    "data_modifying_cte": "Send the write and the read as two statements.",
    "unsupported_syntax": "See what `distribcache explain` names, and write it in another way.",
    "tablesample": "Nothing: it is to differ. For a sample that stays, filter by a hash of the key.",
    "time_dependent": "Send the moment as a parameter, as coarse as it may be: WHERE day >= $1, not current_date - 7.",
    "time_literal": "Write the date itself; if the word is no date, send it as a parameter of type text.",
    "time_parameter": "Bind the date itself instead of the word.",
    "text_to_time": "Store it as a date or timestamp, or convert it in the application.",
    "volatile_function": "Nothing for PostgreSQL's own. Your own: STABLE if it only reads, and in BEGIN ATOMIC.",
    "stable_function": "Work the value out in the application and send it as a parameter.",
    "user_function": "Write its body in SQL as BEGIN ATOMIC … END or RETURN …, without SET clauses: nothing else is "
    "looked into.",
    "unknown_function": "Check name, number of arguments and search_path; PostgreSQL's own error says more.",
    "unknown_relation": "Check name, search_path and USAGE on the schema; PostgreSQL's own error says more.",
    "unknown_type": "Check name and search_path; PostgreSQL's own error says more.",
    "user_operator": "Mend the function that `distribcache explain` names, as for `user_function`; or name the "
    "operator that is meant: OPERATOR(pg_catalog.=).",
    "user_cast": "Mend the function that `distribcache explain` names, as for `user_function`.",
    "user_type": "Mend the function that `distribcache explain` names, as for `user_function`; or use another type.",
    "reg_type": "Leave the conversion out of this query; ask for the name of an object in one of its own.",
    "system_column": "Select a column of your own, such as a version number or updated_at.",
    "other_database": "Leave the name of the database out.",
    "catalog_relation": "Nothing. Many of them may mean that connections are not kept: drivers ask when they connect.",
    "temporary_relation": "Nothing: it is this session's own.",
    "unlogged_relation": "ALTER TABLE … SET LOGGED, if its reads are worth it.",
    "foreign_table": "Copy what is read often into a table, or into a materialized view.",
    "sequence": "Nothing: it has to be asked.",
    "materialized_view": "Run `distribcache setup` as superuser in this database.",
    "no_replica_identity": "Add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL; then `distribcache setup`. "
    "`distribcache doctor` names the tables.",
    "table_access_method": "ALTER TABLE … SET ACCESS METHOD heap, if its reads are worth it.",
    "row_security": "Let the policy use no more than the row, current_user, other tables, and settings that are "
    "written out: current_setting('app.tenant').",
    "encoding": "Use names in ASCII, or a database in UTF-8.",
    "analysis_failed": "See `last_error` in `SHOW distribcache.freshness`, and the log: the cache's own connection "
    "failed, or more texts were new at once than are asked about.",
}
"""By the codes of ``REFUSALS``."""

BYPASSES: dict[str, tuple[str, str]] = {
    "disabled": ("The cache is switched off.", "Set cache.enabled."),
    "cache_off": ("This session has switched the cache off.", "SET distribcache.cache = on."),
    "bad_setting": (
        "A distribcache setting of the session has a value that means nothing.",
        "See `SHOW distribcache.help`; it may be set for the role or the database (`\\drds` in psql).",
    ),
    "temporary_schema": (
        "The session has temporary objects, whose names hide others.",
        "Drop them when they are done with (ON COMMIT DROP, DISCARD TEMP), or make them on connections of their own.",
    ),
    "client_encoding": ("The client's encoding is not UTF-8.", "SET client_encoding = 'UTF8'."),
    "standard_conforming_strings": (
        "The server reads backslashes in strings in the old way.", "SET standard_conforming_strings = on.",
    ),
    "isolation": (
        "The transaction, or the session by default, is not read committed: it is to see one snapshot.",
        "Use READ COMMITTED for reads that do not need more.",
    ),
    "isolation_unknown": ("The transaction began before the session was known.", "Nothing: it passes."),
    "transaction_unknown": (
        "How the transaction began was not seen (AND CHAIN, or several statements in one text).",
        "Send BEGIN and COMMIT as statements of their own.",
    ),
    "transaction_wrote": (
        "The transaction did something other than reads that are proved to be ones.",
        "Read before the first write, or outside; `distribcache explain` says what a statement counts as.",
    ),
    "failed_transaction": ("The transaction has failed; it waits for ROLLBACK.", "See PostgreSQL's error before it."),
    "scope_unknown": (
        "It is not known which settings and rights the session has, and its connection is too busy to be asked.",
        "Nothing where it is rare. Behind a write that runs code of yours, such as a trigger, do not pipeline reads.",
    ),
    "scope_query_failed": (
        "The session could not be asked who it is.", "See the log: a pooler, or a server other than PostgreSQL?",
    ),
    "analysis_unsettled": (
        "The catalogue was being asked what the text means, for longer than a second or while it changed.",
        "Nothing where it is rare; else see whether the server is busy.",
    ),
    "prepared_before": (
        "The statement was prepared before a change of the catalogue that may give its text another meaning.",
        "Prepare it again: DEALLOCATE ALL, DISCARD ALL or a new connection. In a pool, bound the life of connections.",
    ),
    "row_limit": (
        "Only some of the rows are asked for, inside a transaction or a pipeline.",
        "Fetch all rows at once, or use LIMIT; JDBC: setFetchSize(0).",
    ),
    "unfinished_group": ("Replies are still owed to messages before it without a Sync.", "Nothing: few drivers do so."),
    "malformed": ("A message does not keep to the protocol.", "Mend the client; PostgreSQL answers it as it likes."),
    "wrong_server": (
        "The client's connection leads to another server than the change stream.",
        "Name one host in upstream.url: not several, no load balancer, no standby.",
    ),
    "not_ready": ("The change stream is being opened.", "Nothing: it passes."),
}
"""Why a read was passed by, and what to do about it. Codes of ``REFUSALS`` and ``REASONS`` stand there."""


def remedy(code: str) -> str:
    """What to do about it; empty for a code that is none of the proxy's."""
    if code in REMEDIES:
        return REMEDIES[code]
    if code in BYPASSES:
        return BYPASSES[code][1]
    return REASONS[code][1].replace("{role}", "NAME").replace("{pid}", "PID") if code in REASONS else ""
