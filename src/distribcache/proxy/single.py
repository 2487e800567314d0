"""One read by itself, in the shape in which drivers send it: a few comparisons instead of a walk over its messages.

Theory. The commonest unit that goes upstream is ``[Parse] Bind [Describe] Execute Sync`` about the unnamed portal, of a
text that is proved to be a pure read, in a session that has nothing open. What ``extended`` and ``forward`` find out
about such a unit is the same each time; new are its key, its parameters and its fill.

Rules:
1. Nothing is decided here that they would decide otherwise. Whatever has another shape, is not known at once, or is or
   may be in memory is left to them, before anything was changed.
2. ``hot.ident`` stands for what it stands for on the hit path: the scope is known, nothing is outstanding, deferred or
   open, and the transaction is clean. Outside a transaction a portal lives no longer than its unit.
3. The reply of the whole unit belongs to one ``Op``, up to ReadyForQuery.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.coherence.tags import Bound
from distribcache.proxy.forward import names_a_moment
from distribcache.proxy.group import Message, parse_message, read_values
from distribcache.proxy.lookup import WAIT, miss, only, start_fill
from distribcache.proxy.node import Outcome
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.replies import BARE, DESCRIBED, PARSED_BARE, PARSED_DESCRIBED, Op
from distribcache.proxy.unnamed import refused
from distribcache.sql.cacheability import Kind
from distribcache.wire.messages import PARSE_COMPLETE, SYNC, Back, Front, describe, execute

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["NOT_HERE", "single"]

NOT_HERE = -1

_length = Struct("!I").unpack_from
_PARSED = PARSE_COMPLETE[0]
_BARE = execute(b"") + SYNC
_DESCRIBED = describe(b"P", b"") + _BARE


def single(s: Session, data: bytes) -> int:
    """Send the unit that ``data`` begins with upstream; returns its size, 0 when it has to wait, or ``NOT_HERE``."""
    hot, scope, words = s.hot, s.scope, s.coherence.words
    if not hot.ident or hot.in_txn or scope is None or s.tried or s.failure is not None:
        return NOT_HERE
    if words[EPOCH] != hot.epoch or words[SCHEMA] != hot.schema or s.node.store.stack or not s.coherence.serving:
        return NOT_HERE
    size = len(data)
    start = last = 0
    parse: Message | None = None
    if data[0] == Front.PARSE:
        start = 1 + _length(data, 1)[0]
        if start + 7 > size or data[5] or data[start] != Front.BIND:
            return NOT_HERE
        parse = parse_message(data, 0, start)
        if not parse.kind:
            return NOT_HERE
    elif size < 7 or data[0] != Front.BIND:
        return NOT_HERE
    end: int = start + 1 + _length(data, start + 1)[0]
    if data.startswith(_DESCRIBED, end):
        kind, last = (DESCRIBED if parse is None else PARSED_DESCRIBED), end + len(_DESCRIBED)
    elif data.startswith(_BARE, end):
        kind, last = (BARE if parse is None else PARSED_BARE), end + len(_BARE)
    else:
        return NOT_HERE
    bind = parse_message(data, start, end)
    if not bind.kind or bind.portal:
        return NOT_HERE
    if parse is not None:
        if bind.name:
            return NOT_HERE
        statement = Prepared(parse.sql, parse.oids, scope.ident, lsn=s.coherence.visible())
    else:
        known = s.statements.get(bind.name)
        if known is None or known.own or known.proved != words[SCHEMA] or (not bind.name and hot.kept is not None):
            return NOT_HERE
        statement = known
    sql = statement.sql
    analyst = s.database.analyst
    parsed = analyst.parsed(sql)
    one = only(parsed)
    if one is None or one.kind is not Kind.READ:
        return NOT_HERE
    analysis = analyst.recall(sql, scope.schemas)
    if analysis is None or analysis.refusal is not None or not analysis.pure or not analysis.settings <= scope.settings:
        return NOT_HERE
    if parse is not None:
        statement.meaning = analysis.meaning
        key = scope.ident, data[: last - 5]
    elif not statement.reads_as_written(analysis.meaning, words[SCHEMA]):
        return NOT_HERE
    else:
        ident = s.node.idents.prepared(sql, statement.oids, statement.scope, scope.ident)
        key = ident, data[bind.tail : last - 5]
    if key in hot.entries or key in s.node.flights:
        return NOT_HERE
    values = read_values(data, bind)
    if values is None or names_a_moment(statement, parsed, values[0]):
        return NOT_HERE
    fill = start_fill(s, key, analysis, sql, Bound(statement.oids, values[1], values[0]), alone=True)
    if fill is WAIT:
        return 0
    workload = (scope.workload or analysis.workload).value
    s.report(miss(s, fill, Outcome(tables=",".join(analysis.tables), workload=workload)))
    op = Op(kind, fill=fill)
    if parse is not None:
        s.unsettled, hot.kept = hot.kept, None
        op.done = _when_parsed(s, statement, words[SCHEMA])
    if fill is not None:
        s.fills.append(fill)
    s.replies.expect(op)
    s.sent(awaiting=True)
    s.wires.to_upstream(data if last == size else data[:last])
    return last


def _when_parsed(s: Session, prepared: Prepared, schema: int) -> Callable[[int, bytes], None]:
    def parsed(kind: int, message: bytes) -> None:
        if kind == _PARSED:
            s.unsettled = None
            prepared.proved = schema
            s.statements[b""] = prepared
        elif kind == Back.ERROR and prepared.proved != schema:
            refused(s, prepared.sql, message, s.unsettled, ran=False)

    return parsed
