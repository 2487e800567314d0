"""Which functions and triggers make the cache look at the catalogue again each time they run, and what spares that?

Code that may change the schema counts as DDL wherever nothing tells that it did not (``catalog.definers``): each call
stops hits until the catalogue was read again. That is right and slow, and no statement's text shows it.

Rules:
1. Judged as the proxy judges: the same questions, the same trust in the event trigger (``catalog.announcing``).
2. Some are named, what triggers fire first; all are counted.
"""

from __future__ import annotations

from psycopg.rows import tuple_row

from distribcache.catalog.announcing import ANNOUNCES, ORDERED
from distribcache.catalog.definers import DEFINERS, SUSPECTS, WORDS, told_apart
from distribcache.cli.link import Connection

__all__ = ["defining_code"]

_SOME = 5
_FEW = 2
_SETUP = "-- run as superuser: distribcache setup"
_PLAINLY = "-- or let the text of each EXECUTE begin with its command: EXECUTE format('INSERT INTO %I …', …)"


def defining_code(connection: Connection) -> tuple[str, str, tuple[str, ...]]:
    """Status, finding and remedy of a check."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        found = cursor.execute(SUSPECTS.encode()).fetchall()
        announced = cursor.execute(ANNOUNCES.encode(), ORDERED).fetchone()
        known = cursor.execute(DEFINERS.encode()).fetchone()
    assert announced is not None
    assert known is not None
    if not found:
        return "ok", "no function or trigger may change the schema", ()
    more = f" and {len(found) - _SOME} more" if len(found) > _SOME else ""
    listed = "; ".join(_named(*one) for one in found[:_SOME]) + more
    if announced[0]:
        return "ok", f"the event trigger tells when one of these changes the schema: {listed}", ()
    detail = f"these may change the schema, so {_behind(*known)} stops hits until the catalogue was read: {listed}"
    made = any(why == "execute" for _, why, _ in found)
    return "advice", detail, (_SETUP, _PLAINLY) if made else (_SETUP,)


def _behind(names: list[str], fired: bool, reached: bool) -> str:
    """Which statements count, as ``Definers.may`` tells them apart."""
    if told_apart(names) is None:
        return "each statement that may run code of yours (their names cannot be told apart)"
    if reached:
        return "each statement that may run code of yours (a view, a default or the like calls one)"
    return "each call, and each write that may fire a trigger," if fired else "each call"


def _named(name: str, why: str | None, triggers: list[str]) -> str:
    if why is None:
        said = "calls another"
    elif why == "execute":
        said = "EXECUTE of text that is not plainly a read or a write"
    else:
        said = why.upper() if why in WORDS.split("|") else f"in {why}, which is not looked into"
    if triggers:
        said += f"; trigger {', '.join(triggers[:_FEW])}"
        said += f" and {len(triggers) - _FEW} more" if len(triggers) > _FEW else ""
    return f"{name} ({said})"
