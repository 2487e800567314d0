"""May a statement change the catalogue through code of a user's: a function, a trigger, a DO block?

Such a change is in no text that we read. Nor does the change stream show it where the same transaction changes rows, as
an empty transaction alone is a sign of one. So what runs code that may define something counts as DDL: an alarm before
its end is acknowledged (coherence rule R6), and whoever wrote reads what was written.

Rules:
1. Code may define if its source has a word of DDL, or runs text that it makes (EXECUTE) and that is no read or write on
   sight, is in a language that is not looked into, or names code that may. A function in C may not, but for dblink.
2. Who calls it names it, fires it by a trigger, or reaches it by a view, a default, an operator and the like. Names are
   compared as words, whatever schema and arguments they have. Where triggers define, so may code that writes rows.
3. Until that is known for the present catalogue, anything may. What cannot be told apart may too. It is asked while
   alarms are pending as well: else every statement that comes meanwhile would raise the next one.
   For the same reason a read that could not be analysed, as none can while an alarm is pending, has to call such code
   by name; so has one that was prepared then, and is not taken for its text ever since. What it reaches unnamed,
   through a view, is seen by the poll that it asks for where there is such code (``hidden``).
4. Where the event trigger announces every change (``announcing``), only DO is looked at: it may change roles.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from distribcache.catalog.announcing import SCHEMA, announces
from distribcache.catalog.resolve import Ask
from distribcache.sql.cacheability import Kind, Parsed, Statement
from distribcache.sql.effects import Effects
from distribcache.sql.grammar import AGGREGATES

__all__ = ["DEFINERS", "SUSPECTS", "WORDS", "Definers", "told_apart"]

WORDS = "create|alter|drop|grant|revoke|reassign|import|refresh|execute"
_DEFINES = re.compile(rb"\b(?:" + WORDS.encode() + rb")\b", re.IGNORECASE)
_WRITES = "insert|update|delete|merge"
_PLAIN = f"{_WRITES}|select|with|values"
"""Text that is made, begins so on sight and defines nothing by itself."""
_MADE_PLAIN = re.compile(
    rb"\bexecute\s+(?:format\s*\(\s*)?(?:e?'|\$\w*\$)\s*(?:" + _PLAIN.encode() + rb")\b", re.IGNORECASE
)
_NAMES = re.compile(rb"[a-z0-9_$]+")
_ESCAPED = b'u&"'
_LONGEST = 64 * 1024
_MOST = 500
_NEVER = 2**64 - 1
"""The schema slot before the stream has begun."""
_READS = frozenset({Kind.READ, Kind.LOCKING_READ})
_BY_NAME = frozenset({Kind.EXECUTE, Kind.FETCH, Kind.CLOSE})
"""What they run was said elsewhere."""

_CODE = rf"""
WITH RECURSIVE
code AS MATERIALIZED (
  SELECT f.oid, lower(f.proname) AS name, lower(f.prosrc) AS source, f.prosqlbody IS NOT NULL AS visible,
    CASE WHEN l.lanname NOT IN ('sql', 'plpgsql', 'internal') THEN l.lanname::text
      ELSE substring(regexp_replace(lower(f.prosrc),
        '\mexecute\s+(format\s*\(\s*)?(e?''|\$\w*\$)\s*({_PLAIN})\M', ' ', 'g') FROM '\m({WORDS})\M') END AS why
  FROM pg_proc f JOIN pg_language l ON l.oid = f.prolang
  WHERE f.oid >= 16384 AND f.prorettype <> 'event_trigger'::regtype
    AND (l.lanname NOT IN ('c', 'internal') OR f.prokind = 'a' OR f.proname LIKE 'dblink%')
),
direct(oid, name) AS (
  SELECT oid, name FROM code WHERE why IS NOT NULL
  UNION
  SELECT c.oid, c.name FROM direct d JOIN code c ON strpos(c.source, d.name) > 0 OR EXISTS (SELECT FROM pg_depend p
    WHERE p.classid = 'pg_proc'::regclass AND p.objid = c.oid AND p.refclassid = 'pg_proc'::regclass
      AND p.refobjid = d.oid)
)"""
DEFINERS = rf"""{_CODE},
fired(yes) AS MATERIALIZED (SELECT EXISTS (SELECT FROM pg_trigger t JOIN direct d ON d.oid = t.tgfoid)),
found(oid, name) AS (
  SELECT oid, name FROM direct
  UNION
  SELECT c.oid, c.name FROM code c, fired WHERE yes
    AND (CASE WHEN visible THEN lower(pg_get_function_sqlbody(c.oid)) ELSE source END)
      ~ '\m({_WRITES}|copy)\M'
  UNION
  SELECT c.oid, c.name FROM found d JOIN code c ON strpos(c.source, d.name) > 0 OR EXISTS (SELECT FROM pg_depend p
    WHERE p.classid = 'pg_proc'::regclass AND p.objid = c.oid AND p.refclassid = 'pg_proc'::regclass
      AND p.refobjid = d.oid)
)
SELECT (SELECT coalesce(array_agg(DISTINCT name), '{{}}') FROM found), yes, EXISTS (
  SELECT FROM found d JOIN pg_depend p ON p.refclassid = 'pg_proc'::regclass AND p.refobjid = d.oid
  WHERE p.classid NOT IN ('pg_proc'::regclass, 'pg_trigger'::regclass, 'pg_event_trigger'::regclass,
                          'pg_language'::regclass, 'pg_foreign_data_wrapper'::regclass))
FROM fired
"""
"""One row: names of the functions that may define, in lower case; does a trigger; does anything else reach one?"""

SUSPECTS = f"""{_CODE}
SELECT quote_ident(s.nspname) || '.' || quote_ident(f.proname) AS name, c.why, b.triggers
FROM direct d JOIN code c ON c.oid = d.oid JOIN pg_proc f ON f.oid = d.oid JOIN pg_namespace s ON s.oid = f.pronamespace
CROSS JOIN LATERAL (
  SELECT coalesce(array_agg(quote_ident(t.tgname) || ' on ' || t.tgrelid::regclass
    ORDER BY t.tgrelid::regclass::text, t.tgname), '{{}}') FROM pg_trigger t WHERE t.tgfoid = d.oid AND t.tgparentid = 0
) AS b(triggers)
WHERE (c.why IS NOT NULL OR b.triggers <> '{{}}') AND s.nspname <> '{SCHEMA}'
ORDER BY b.triggers = '{{}}', name
"""
"""For people: each function that may define by itself, with the word or the language that says so, and each that a
trigger fires and that calls one (``why`` is NULL); those with triggers first. What setup made is left out.
"""


def told_apart(names: Iterable[str]) -> frozenset[bytes] | None:
    """The words by which statements are recognised that call such code; None where that cannot be done."""
    known = frozenset(str(name).encode() for name in names)
    return known if len(known) <= _MOST and all(map(_NAMES.fullmatch, known)) else None


def _calls(statement: Statement) -> bool:
    return any(call.name not in AGGREGATES for call in statement.functions)


@dataclass(frozen=True, slots=True)
class _Known:
    """``names`` is None where anything may define."""

    lsn: int
    names: frozenset[bytes] | None
    fired: bool = False
    reached: bool = False

    def may(self, sql: bytes, kinds: set[Kind], *, analysed: bool) -> bool:
        if Kind.DO in kinds and _DEFINES.search(_MADE_PLAIN.sub(b" ", sql)):
            return True
        if not self.names:
            return False
        reached = self.reached and (analysed or not kinds <= _READS)
        if reached or (self.fired and not kinds <= _READS) or not kinds.isdisjoint(_BY_NAME):
            return True
        text = sql.lower()
        return len(sql) > _LONGEST or _ESCAPED in text or not self.names.isdisjoint(_NAMES.findall(text))


class Definers:
    """What is known of the code of one database."""

    def __init__(self, ask: Ask, schema_lsn: Callable[[], int]) -> None:
        self._ask = ask
        self._schema_lsn = schema_lsn
        self._known: _Known | None = None
        self._asking: asyncio.Task[None] | None = None

    def may(self, sql: bytes, parsed: Parsed, effect: Effects, *, analysed: bool = True) -> bool:
        """May this statement, whose effects on sight are ``effect``, change the catalogue unseen? Never waits.

        ``analysed``: so it is no proven pure read; else nobody could say.
        """
        if effect.ddl or not (effect.impure and effect.opaque):
            return False
        kinds = {each.kind for each in parsed.statements}
        known = self._known if self.known else None
        if known is None:
            self.learn()
        if known is None or known.names is None:
            return analysed or not kinds <= _READS or any(map(_calls, parsed.statements))
        return known.may(sql, kinds, analysed=analysed)

    @property
    def hidden(self) -> bool:
        """May something that does not name it reach code that defines?"""
        known = self._known if self.known else None
        return known is not None and (known.names is None or known.reached)

    @property
    def known(self) -> bool:
        """Is it known what code there is in the present catalogue?"""
        return self._known is not None and self._known.lsn >= self._schema_lsn()

    def learn(self) -> None:
        """Ask, unless that is known or being asked."""
        if self._asking is None and not self.known:
            self._asking = asyncio.get_running_loop().create_task(self._learn())

    def forget(self) -> None:
        """Drop everything, such as when the database is another one now."""
        self._known = None

    async def _learn(self) -> None:
        try:
            lsn = self._schema_lsn()  # before the first question; what is not seen by it moves the slot later
            if lsn >= _NEVER:
                return
            if await announces(self._ask):
                self._known = _Known(lsn, frozenset())
                return
            names, fired, reached = (await self._ask(DEFINERS, ()))[0]
            self._known = _Known(lsn, told_apart(names), bool(fired), bool(reached))
        except Exception:  # noqa: BLE001, S110 - what cannot be asked stays unknown
            pass
        finally:
            self._asking = None
