"""Quiet writes: does an INSERT, UPDATE, DELETE or MERGE run nothing that could change the session?

A trigger, a rule, a default, a constraint, an index or a policy may call ``set_config`` or SET ROLE and report
nothing (coherence trap 12), so a write leaves the session's scope unknown. Unless the catalogue shows that no code of
a user's can run: then the scope stays what it was. Strict: only what is known to be harmless passes (``writes_sql``):
constraints and foreign keys of the server's own, and expressions of built-in functions that are proven pure, or
listed here.

Why a trigger made elsewhere is not missed, though the verdict was formed before it:

1. A verdict has a position like every analysis (V, read before the first question: coherence rule R2) and is not used
   once the schema slot is beyond it.
2. A write that ran the trigger began after the trigger's commit, so that commit lies below any insert position asked
   after the write. The write is no pure read: it raises the freshness floor before its end is relayed. So no hit
   follows, in this session or another, until W has reached a position asked after that end (R3, R4). W cannot pass
   the trigger's commit: it raised a catalogue alarm, which holds W until the catalogue was read again (R6). The
   re-read finds another fingerprint (all that is looked at here is part of it), so the schema slot moves, and a session
   whose scope was learned under another value of the slot learns it anew before it is served. It is the *hit's* look
   at the slot that counts, not the write's.
3. What such a session stored in between was analysed before the new schema slot: R1 refuses it everywhere.

As always with R6, a change that gives no alarm is seen by the next poll: one made around the proxy in a transaction
that also changes rows, where the event trigger is not installed. For that time (at most ``schema_poll``) the session
is taken for what it was, as is one that reads through a view which was changed so. In ``eventual`` mode, where a
write raises no floor, the bound is ``max_staleness``. Without a stream (``ttl``) nothing of this holds and no write
is quiet.

The analysis is made behind the write that lacked it, which counts as unknown; no write waits for one.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence

from distribcache.catalog import bodies
from distribcache.catalog.bodies import Body
from distribcache.catalog.facts import BUILTIN, Answer, Function
from distribcache.catalog.judgement import judge_function
from distribcache.catalog.meaning import Meaning
from distribcache.catalog.resolve import Ask, closure, names_found
from distribcache.catalog.writes_sql import WRITES
from distribcache.sql.cacheability import Names, Parsed, Refusal, Statement

__all__ = ["Writes", "why_loud"]

_HARMLESS = frozenset(
    "nextval currval lastval setval random random_normal clock_timestamp timeofday gen_random_uuid uuidv4 uuidv7 "
    "txid_current pg_current_xact_id".split()
)
"""Volatile, or taking a transaction id, and yet of no consequence for what a session is."""
_MOST = 4096
_AT_ONCE = 4

Schemas = tuple[str, ...]
Key = tuple[Schemas, Names]


async def why_loud(ask: Ask, schemas: Sequence[str], names: Names) -> tuple[Refusal | None, Meaning]:
    """Why a write with these names may run code of a user's; None when it is quiet. And what the names mean.

    Raises what ``ask`` raises.
    """
    path = [*schemas, "pg_catalog"] if "pg_catalog" not in schemas else list(schemas)
    answer = Answer()
    meaning = answer.meaning(await closure(ask, path, names, answer))
    return await _why_loud(ask, path, names, answer), meaning


async def _why_loud(ask: Ask, path: list[str], names: Names, answer: Answer) -> Refusal | None:
    missing = next((reason for reason, _ in names_found(names, answer) if reason is not None), None)
    if missing is not None:
        return missing
    targets = {
        "relations": list(answer.relation_of.values()),
        "types": [oid for oid in answer.types if oid >= BUILTIN],
    }
    texts: list[Body] = []
    for kind, oid, text in await ask(WRITES, (json.dumps(targets),)):
        if kind != "text":
            return Refusal("fires", json.loads(text))
        texts.append(bodies.expression(json.loads(text) or "-", f"expression {oid}"))
    for body in texts:
        if body.effects or body.foreign or body.names.relations or body.names.attributes:
            return Refusal("fires", body.where)
    asked = Names(functions=tuple(dict.fromkeys(call for body in texts for call in body.asked.functions)))
    if asked.functions:
        await closure(ask, path, asked, answer)
        missing = next((reason for reason, _ in names_found(asked, answer) if reason is not None), None)
        if missing is not None:
            return missing
    loud = next((function for function in answer.functions.values() if not _is_harmless(function)), None)
    return None if loud is None else Refusal("fires", loud.signature)


def _is_harmless(function: Function) -> bool:
    reason, pure = judge_function(function)
    if function.builtin:
        return pure or function.name in _HARMLESS
    # A candidate by name only, such as the operators of an extension in ``public``.
    return function.extension and function.language == "c" and reason is None


class Writes:
    """What is known of the writes of one database; bounded, the longest unused goes first."""

    def __init__(self, ask: Ask, visible: Callable[[], int], schema_lsn: Callable[[], int]) -> None:
        self._ask = ask
        self._visible = visible
        self._schema_lsn = schema_lsn
        self._known: OrderedDict[Key, tuple[int, Refusal | None, Meaning]] = OrderedDict()
        self._asking: dict[Key, asyncio.Task[None]] = {}

    def are_quiet(self, parsed: Parsed, schemas: Schemas) -> bool:
        """Is ``parsed`` one write that is known to be quiet? Never waits; what is not known is asked behind it."""
        if len(parsed.statements) != 1 or parsed.error or not parsed.statements[0].is_write_candidate:
            return False
        key = (schemas, parsed.statements[0].names)
        known = self._known.get(key)
        if known is not None and known[0] >= self._schema_lsn():
            self._known.move_to_end(key)
            return known[1] is None
        if key not in self._asking and len(self._asking) < _AT_ONCE:
            self._asking[key] = asyncio.get_running_loop().create_task(self._learn(key))
        return False

    def meaning(self, statement: Statement, schemas: Schemas) -> Meaning | None:
        """What the names of a write were last found to mean; None if that was never asked."""
        known = self._known.get((schemas, statement.names)) if statement.is_write_candidate else None
        return None if known is None else known[2]

    def forget(self) -> None:
        """Drop everything, such as when the database is another one now."""
        self._known.clear()

    async def _learn(self, key: Key) -> None:
        try:
            lsn = self._visible()  # before the first question
            if not lsn:
                return
            self._known[key] = lsn, *await why_loud(self._ask, *key)
            while len(self._known) > _MOST:
                self._known.popitem(last=False)
        except Exception:  # noqa: BLE001, S110 - what cannot be asked stays unknown
            pass
        finally:
            self._asking.pop(key, None)
