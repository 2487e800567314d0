"""What a statement that goes upstream does to what we know: to the data, to the session, to the catalogues.

* ``impure``: it is not a proven pure read. It ends serving for the rest of its transaction and raises the freshness
  floor at its end, whether it failed or not: lock-then-read must read (coherence trap 11).
* ``opaque``: it may have changed the session's scope unseen, so the scope must be learned again. A *quiet* write, of
  which the catalogue shows that it runs no code of a user's, is none (see ``catalog.writes``).
* ``ddl``: it may have changed a catalogue (a catalogue alarm at the end of its transaction).
* ``code``: that is known of code which it runs, not of its text.
* ``everywhere``: that catalogue is one that all databases of the server share: roles, memberships, their settings.
* ``poll``: what it ran is unknown and could have been DDL (DO, CALL, functions): the catalogue is looked at soon. What
  may indeed have been, counts as DDL (see ``catalog.definers``).
* ``forgets``: prepared statements of the session that are gone afterwards (``None`` = all of them).

Deny by default: only the kinds and texts named here have fewer effects than all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from distribcache.sql.cacheability import Kind, Parsed, Statement

__all__ = ["CONTROL", "NEUTRAL", "UNKNOWN", "Effects", "effects"]


@dataclass(frozen=True, slots=True)
class Effects:
    """See the module. ``databases``: names that DATABASE statements concern; ours must leave them first."""

    impure: bool = False
    opaque: bool = False
    ddl: bool = False
    code: bool = False
    everywhere: bool = False
    poll: bool = False
    forgets: frozenset[bytes] | None = frozenset()
    databases: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


NEUTRAL = Effects()
UNKNOWN = Effects(impure=True, opaque=True, ddl=True, poll=True)
_WRITE = Effects(impure=True, opaque=True)
_CALLS = Effects(impure=True, opaque=True, poll=True)
_SESSION = Effects(opaque=True)
_LOCKS = Effects(impure=True)
_QUIET = _LOCKS

CONTROL = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK, Kind.SAVEPOINT, Kind.RELEASE, Kind.ROLLBACK_TO})
"""Transaction control: no effect of its own; what the transaction did is remembered by its statements."""

_BY_KIND: dict[Kind, Effects] = {
    **dict.fromkeys(CONTROL, NEUTRAL),
    Kind.EMPTY: NEUTRAL,
    Kind.SHOW: NEUTRAL,
    Kind.CLOSE: NEUTRAL,
    Kind.SET_TRANSACTION: _SESSION,
    Kind.SET: _SESSION,
    Kind.RESET: _SESSION,
    Kind.UNLISTEN: _SESSION,
    Kind.READ: _CALLS,
    Kind.WRITE: _WRITE,
    Kind.LOCKING_READ: _CALLS,
    Kind.COPY: _WRITE,
    Kind.DO: _CALLS,
    Kind.CALL: _CALLS,
    Kind.EXECUTE: _CALLS,
    Kind.EXPLAIN: _CALLS,
    Kind.DECLARE: _CALLS,
    Kind.FETCH: _CALLS,
    Kind.LOCK: _LOCKS,
    Kind.LISTEN: Effects(impure=True, opaque=True),
    Kind.NOTIFY: _LOCKS,
    Kind.PREPARE: Effects(impure=True),
    Kind.DDL: Effects(impure=True, opaque=True, ddl=True),
    Kind.PREPARE_TRANSACTION: _WRITE,
    Kind.TWO_PHASE_END: Effects(impure=True, opaque=True, ddl=True),
}

_ROLES = re.compile(rb"\b(?:role|user|group|database|system|owned)\b")
_GRANT = re.compile(rb"\b(?:grant|revoke)\b")
_ON = re.compile(rb"\bon\b")

_KNOWN_TEXTS: dict[bytes, Effects] = {
    # asyncpg's pool at each release: gives locks back and resets the session, reads and writes no table.
    b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;": _SESSION,
    b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\n\nUNLISTEN *;\nRESET ALL;": _SESSION,
}


def _one(statement: Statement) -> Effects:
    kind = statement.kind
    if kind in (Kind.SET, Kind.RESET):
        return Effects(opaque=True, settings=(statement.name,) if statement.name else ())
    if kind is Kind.DEALLOCATE:
        return Effects(forgets=frozenset({statement.name.encode()}) if statement.name else None)
    if kind is Kind.DISCARD:
        return Effects(opaque=True, forgets=frozenset() if statement.name else None)
    if kind in (Kind.READ, Kind.LOCKING_READ) and not statement.functions and not statement.outline:
        return _WRITE  # not proved pure, but it names no function that could run DDL
    if kind is Kind.DATABASE:
        return Effects(impure=True, opaque=True, ddl=True, databases=statement.databases)
    return _BY_KIND.get(kind, UNKNOWN)


def _shared(text: bytes) -> bool:
    """Does DDL concern what all databases share? Over-approximated: a word too many only costs a look."""
    words = text.lower()
    return _ROLES.search(words) is not None or (_GRANT.search(words) is not None and _ON.search(words) is None)


def effects(text: bytes, parsed: Parsed, *, pure: bool, quiet: Callable[[], bool] = lambda: False) -> Effects:
    """What ``text`` may do; ``pure``: the catalogue has proved every statement of it a pure read; ``quiet``: asked
    about a write, whether it is one that leaves the session what it is.
    """
    if pure:
        return NEUTRAL
    known = _KNOWN_TEXTS.get(text.strip())
    if known is not None:
        return known
    if parsed.error:
        return UNKNOWN
    if len(parsed.statements) == 1:
        effect = _one(parsed.statements[0])
        if effect is _WRITE and quiet():
            return _QUIET
        return replace(effect, everywhere=True) if effect.ddl and _shared(text) else effect
    all_of_them = [_one(statement) for statement in parsed.statements]
    if not all_of_them:
        return NEUTRAL
    forgets = [each.forgets for each in all_of_them]
    return Effects(
        impure=any(each.impure for each in all_of_them),
        opaque=any(each.opaque for each in all_of_them),
        ddl=any(each.ddl for each in all_of_them),
        everywhere=any(each.ddl for each in all_of_them) and _shared(text),
        poll=any(each.poll for each in all_of_them),
        forgets=None if None in forgets else frozenset().union(*(each for each in forgets if each is not None)),
        databases=tuple(name for each in all_of_them for name in each.databases),
        settings=tuple(name for each in all_of_them for name in each.settings),
    )
