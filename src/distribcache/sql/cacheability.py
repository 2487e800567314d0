"""What a statement is, and why it may not be cached: the facts that the SQL reader hands upwards.

Rules:
1. Deny by default. A statement is cacheable only if nothing refused it; whatever is not recognised refuses.
2. Every refusal has a stable code (``REFUSALS``) and a detail that names the function, table or value concerned.
3. These are facts about the text only. What a name means is the server's to say: see ``catalog``.
4. Over-approximate. A wrong refusal costs a miss, a wrong permission costs a stale answer.

``Names`` is everything about a read that its verdict depends on besides its kind. Two texts that differ in literals
only have equal ``Names``, so the catalogue's answer for one serves the other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from distribcache.sql.timewords import dangerous_parameter

if TYPE_CHECKING:
    from distribcache.sql.levels import Levels

__all__ = [
    "REFUSALS", "Coercion", "FunctionCall", "Kind", "Name", "Names", "Parsed", "Refusal", "Shape",
    "Statement", "dangerous_parameter",
]


class Kind(enum.Enum):
    """What a statement does, as far as its grammar tells."""

    READ = "read"
    SHOW = "show"
    SET = "set"
    RESET = "reset"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    RELEASE = "release"
    ROLLBACK_TO = "rollback_to"
    SET_TRANSACTION = "set_transaction"
    PREPARE_TRANSACTION = "prepare_transaction"
    TWO_PHASE_END = "two_phase_end"
    WRITE = "write"
    LOCKING_READ = "locking_read"
    DDL = "ddl"
    DATABASE = "database"
    LOCK = "lock"
    COPY = "copy"
    LISTEN = "listen"
    UNLISTEN = "unlisten"
    NOTIFY = "notify"
    DEALLOCATE = "deallocate"
    DISCARD = "discard"
    CLOSE = "close"
    DECLARE = "declare"
    FETCH = "fetch"
    PREPARE = "prepare"
    EXECUTE = "execute"
    DO = "do"
    CALL = "call"
    EXPLAIN = "explain"
    EMPTY = "empty"
    OTHER = "other"


class Name(NamedTuple):
    """A name as written, folded as the server folds it; ``schema`` is None when the text gives none."""

    schema: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


class FunctionCall(NamedTuple):
    """A call by name and number of arguments.

    ``keyword`` marks a construct of newer grammars (JSON_VALUE …) that is an ordinary call on older servers: it needs
    no function of that name, but if there is one it is judged.
    """

    schema: str | None
    name: str
    arguments: int
    keyword: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}()" if self.schema else f"{self.name}()"


class Coercion(NamedTuple):
    """A conversion to a type other than the plainly harmless ones.

    It is harmless only if the value cannot be text (stored text ``today`` means another day tomorrow): every column in
    ``columns`` has a plain non-text type and every function in ``functions`` returns one. A column flagged True must
    exist in a relation of the statement. ``scans`` are functions in FROM: unless they return scalars, they may bring
    columns of any name. ``opaque``: nothing is known of the value.
    """

    type: Name
    columns: tuple[tuple[str, bool], ...] = ()
    functions: tuple[FunctionCall, ...] = ()
    scans: tuple[FunctionCall, ...] = ()
    opaque: bool = False


class Names(NamedTuple):
    """Everything in a read that the server must be asked about; sorted, without repetitions, hashable."""

    relations: tuple[Name, ...] = ()
    functions: tuple[FunctionCall, ...] = ()
    operators: tuple[Name, ...] = ()
    types: tuple[Name, ...] = ()
    # Last parts of dotted references: t.f may call the function f(t).
    attributes: tuple[str, ...] = ()
    coercions: tuple[Coercion, ...] = ()
    # What AT TIME ZONE is applied to: a column's name, or nothing for an expression.
    zoned: tuple[str, ...] = ()
    collations: tuple[Name, ...] = ()
    configurations: tuple[Name, ...] = ()
    # Calls of text search: what their configurations are called is in ``configurations``, or no name in the text.
    configured: tuple[FunctionCall, ...] = ()
    # Other names of such kinds: nobody asks about them.
    vague: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an answer is not cached: a key of ``REFUSALS`` and the name of what caused it."""

    code: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class Shape(NamedTuple):
    """What the structure of a read says about its workload. Counts, not bounds; ``limit`` is -1 when not a constant."""

    aggregates: int = 0
    windows: int = 0
    joins: int = 0
    group_by: bool = False
    vector_operator: bool = False
    point_lookup: bool = False
    limit: int | None = None


_NO_NAMES = Names()
_NO_SHAPE = Shape()


@dataclass(frozen=True, slots=True)
class Statement:
    """Facts about one statement.

    ``name`` is the savepoint, prepared statement, cursor, channel, database or (lower-case) setting; ``every`` marks
    ALL (``DISCARD ALL``, ``DEALLOCATE ALL``, ``RESET ALL``, ``CLOSE ALL``, ``UNLISTEN *``). ``value`` is the value of
    a SET when it is one plain literal or word. ``isolation`` is lower-case (``read committed``). ``read_only`` and
    ``deferrable`` are None when not said. ``is_write_candidate``: ``names`` say all that a write could run.
    ``levels``: what an unrefused read reads, level by level.
    ``outline``: the text is so long that only its kind is known.
    """

    kind: Kind
    name: str = ""
    value: str | None = None
    every: bool = False
    local: bool = False
    isolation: str | None = None
    read_only: bool | None = None
    deferrable: bool | None = None
    chain: bool = False
    names: Names = _NO_NAMES
    refusal: Refusal | None = None
    has_params: bool = False
    is_pure_candidate: bool = False
    is_write_candidate: bool = False
    outline: bool = False
    shape: Shape = _NO_SHAPE
    nocache: bool = False
    databases: tuple[str, ...] = ()
    levels: Levels | None = None

    @property
    def relations(self) -> tuple[Name, ...]:
        return self.names.relations

    @property
    def functions(self) -> tuple[FunctionCall, ...]:
        return self.names.functions

    @property
    def operators(self) -> tuple[Name, ...]:
        return self.names.operators

    @property
    def types(self) -> tuple[Name, ...]:
        return self.names.types


@dataclass(frozen=True, slots=True)
class Parsed:
    """The statements of one text. A text that was not understood has an ``error`` and goes upstream as it is."""

    statements: tuple[Statement, ...]
    error: str = ""


# Stable: they are metric labels and documentation anchors. The texts are shown to people.
REFUSALS: dict[str, str] = {
    "not_understood": "The text is not valid PostgreSQL for our parser, is far too long, or is nested too deeply.",
    "too_large": "The text is longer than 64 KiB, or its syntax tree than 768 KiB: only its kind was looked at.",
    "not_a_read": "Only one plain SELECT, VALUES, TABLE or read-only WITH can be cached.",
    "several_statements": "A text with several statements is sent on as a whole.",
    "no_relation": "The query reads no table, so there is nothing that could invalidate it.",
    "nocache": "The query carries the comment /* distribcache: nocache */.",
    "locking_read": "FOR UPDATE, FOR SHARE and their kin take locks; a cached answer would not.",
    "data_modifying_cte": "A WITH clause of this query writes.",
    "unsupported_syntax": "The query uses a construct that the analysis does not know.",
    "tablesample": "TABLESAMPLE picks other rows each time.",
    "time_dependent": "The answer depends on the current date or time.",
    "time_literal": "A literal such as 'now' or 'today' may be read as a date.",
    "time_parameter": "A bound parameter such as 'now' or 'today' may be read as a date.",
    "text_to_time": "Text that is not a literal is converted to a date or time; stored text may say 'today'.",
    "volatile_function": "A volatile function may answer differently each time, or have effects.",
    "stable_function": "A stable function reads state that is neither a table nor a setting in the key.",
    "user_function": "A user function's body is not visible; declare it with BEGIN ATOMIC.",
    "unknown_function": "No function of that name takes that number of arguments.",
    "unknown_relation": "No relation of that name is found in the session's schemas.",
    "unknown_type": "No type of that name is found in the session's schemas.",
    "user_operator": "An operator that may be meant here runs a function that may not be cached.",
    "user_cast": "A user-defined cast that may apply here runs a function that may not be cached.",
    "user_type": "A type involved here runs a function that may not be cached.",
    "reg_type": "Names converted to object identifiers (regclass and its kin) are looked up in the catalogue.",
    "system_column": "System columns such as ctid and xmin change without the row's values changing.",
    "other_database": "The name carries a database.",
    "catalog_relation": "System catalogues are not part of the change stream.",
    "temporary_relation": "Temporary relations, functions and types are one session's own; no stream tells of them.",
    "unlogged_relation": "Unlogged tables are not part of the change stream.",
    "foreign_table": "A foreign table changes without our seeing it.",
    "sequence": "Sequences are not part of the change stream.",
    "materialized_view": "A refresh is not in the change stream unless `distribcache setup` was run in this database.",
    "no_replica_identity": "With pgoutput, updates of a table without a replica identity are not in the change stream.",
    "table_access_method": "A table with an access method other than heap may not be part of the change stream.",
    "row_security": "A row security policy depends on something that is not in the key.",
    "encoding": "Names outside ASCII cannot be folded as a server without UTF-8 folds them.",
    "analysis_failed": "The catalogue could not be asked; the query goes to the server until it can.",
}
