"""What a value depends on that the application itself has made of tables: their slots in the ledger.

The tables are analysed as ``TABLE name`` would be, so a view stands for what it reads, a partition for its ancestors,
and what the change stream does not show (unlogged and foreign tables, system catalogues) is refused with a reason. A
name without a schema means ``public``. F is read behind all that, and before the value is made (coherence rule R2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from distribcache.catalog.statement import FOREVER
from distribcache.errors import InvalidationError
from distribcache.library.keeper import Keeper

__all__ = ["Dependence", "depend", "qualified", "relations"]

_SCHEMAS: Final = ("pg_catalog", "public")
_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\s".]+))\s*')


class Dependence(NamedTuple):
    """``reason``: why such a value cannot be kept; else everything an entry needs, F included."""

    reason: str = ""
    slots: tuple[int, ...] = ()
    analysis: int = FOREVER
    fill: int = 0
    epoch: int = 0
    tables: str = ""


def qualified(name: str) -> tuple[str, str]:
    """Schema and name, folded as the server folds them. Raises InvalidationError for what is no name."""
    parts, at = [], 0
    while at <= len(name):
        match = _PART.match(name, at)
        if match is None or match.end() == at:
            break
        parts.append(match[1].replace('""', '"') if match[1] is not None else match[2].lower())
        at = match.end() + 1
        if match.end() == len(name):
            if 1 <= len(parts) <= 2:
                return ("public", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
            break
        if name[match.end()] != ".":
            break
    raise InvalidationError(f"{name!r} is no name of a table", where="tables", hint='write "orders" or "sales.orders"')


def _text(name: str) -> bytes:
    quoted = ['"' + part.replace('"', '""') + '"' for part in qualified(name)]
    return f"TABLE {'.'.join(quoted)}".encode()


async def relations(keeper: Keeper, names: Iterable[str]) -> Dependence:
    """On the keeper's loop: what these names stand for; nothing is dated yet."""
    slots: set[int] = set()
    tables: dict[str, None] = {}
    lsn = FOREVER
    for name in names:
        analysis = await keeper.analyst.analyse(_text(name), _SCHEMAS)
        if analysis.refusal is not None:
            return Dependence(analysis.refusal.code)
        slots.update(analysis.slots)
        slots.update(row.slot for row in analysis.rows)
        tables.update(dict.fromkeys(analysis.tables))
        lsn = min(lsn, analysis.analysis_lsn)
    return Dependence("", tuple(sorted(slots)), lsn, tables=",".join(tables))


async def depend(keeper: Keeper, names: Iterable[str]) -> Dependence:
    """On the keeper's loop, before the value is made."""
    found = await relations(keeper, names)
    if found.reason:
        return found
    point = keeper.coherence.fill_point()
    if point is None:
        return Dependence(keeper.coherence.reason or "no_fill_point")
    return found._replace(fill=point, epoch=keeper.coherence.epoch, analysis=min(found.analysis, point))
