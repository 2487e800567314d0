"""A simple Query: the whole unit is one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from distribcache.catalog.statement import Analysis
from distribcache.proxy.answer import READY, describe_rows, rows
from distribcache.proxy.lookup import WAIT, consider, find, is_ping, miss, only, serve_entry, start_fill
from distribcache.proxy.node import Outcome
from distribcache.proxy.replies import Op
from distribcache.proxy.shows import gathered, own_table
from distribcache.proxy.transaction import control
from distribcache.proxy.unnamed import refused
from distribcache.sql.cacheability import Kind, Parsed, Statement
from distribcache.sql.effects import CONTROL, UNKNOWN
from distribcache.wire.messages import EMPTY_QUERY, Back, Front, command_complete

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["begin_meaning", "may_begin", "must_query", "query"]


_FOLLOW = frozenset({Kind.READ, Kind.LOCKING_READ, Kind.WRITE})
"""What may be sent together with the BEGIN in front of it."""


def may_begin(s: Session) -> bool | None:
    """May a BEGIN be deferred now? None: the session's scope is being asked for."""
    if s.replies.status != b"I" or s.awaiting or s.open:
        return False
    why = s.why_not()
    if (why == "scope_unknown" and s.questions.learn_scope()) or s.questions.learn_early():
        return None
    return not why and s.scope is not None and s.scope.read_committed and not s.scope.listens


def begin_meaning(s: Session, statement: Statement) -> str:
    """What a BEGIN that goes upstream means for serving inside its transaction: "" served, else why not."""
    if statement.isolation not in (None, "read committed"):
        return "isolation"
    if statement.isolation is None and (s.scope is None or not s.scope.read_committed):
        return "isolation_unknown" if s.scope is None else "isolation"
    return ""


def must_query(s: Session, texts: Iterable[Parsed], *, answered: bool = False) -> bool:
    """Would the server refuse one of these, had it seen what was answered from memory in the transaction that is open
    there? ``answered``: so are reads in front of them.
    """
    if s.replies.status != b"T" or s.open or "query" in s.tried or not (answered or s.has_read()):
        return False
    return any(_comes_first(each) for parsed in texts for each in parsed.statements)


def _comes_first(statement: Statement) -> bool:
    """May it set what may only be set before the first query of a transaction?"""
    if statement.kind in (Kind.SET, Kind.RESET):
        return statement.name.startswith("transaction_")
    return statement.kind in (Kind.BEGIN, Kind.SET_TRANSACTION)


def deallocates_own(s: Session, statement: Statement) -> bool:
    """Does it deallocate a prepared ``SHOW distribcache.*``, which upstream has never seen?"""
    if statement.kind is not Kind.DEALLOCATE or not statement.name or s.replies.status == b"E":
        return False
    prepared = s.statements.get(statement.name.encode())
    return prepared is not None and prepared.own


def query(s: Session, message: bytes) -> bool:
    """Answer or forward; False when the unit has to be looked at again."""
    if s.failure is not None:
        s.wires.to_client(s.failure + READY[s.replies.status])
        s.failure = None
        return True
    hot = s.hot
    if message.find(0, 5) != len(message) - 1:
        return _forward(s, message, None, Outcome("bypass", reason="malformed"))
    sql = message[5:-1]
    parsed = s.parsed(sql)
    one = only(parsed)
    if s.open:  # behind messages without a Sync, whose replies come first
        return _forward(s, message, parsed, Outcome("bypass", reason="unfinished_group"))
    if one is not None and one.kind in CONTROL:
        allowed = one.kind is not Kind.BEGIN or may_begin(s)
        if allowed is None:
            return False
        done = control(one, sql, message, s.txn.deferred, may_begin=allowed)
        if done is None:
            return _forward(s, message, parsed, None)
        tag, s.txn.deferred = done
        s.forget_unnamed(answered_here=True)
        s.refresh()
        s.wires.to_client(command_complete(tag) + hot.ready)
        return True
    if one is not None and one.kind is Kind.SHOW and one.name.startswith("distribcache."):
        if not gathered(s, one.name):
            return False
        table = own_table(s, one.name)
        if table is not None:
            s.forget_unnamed(answered_here=True)
            s.wires.to_client(describe_rows(table[0]) + rows(table) + hot.ready)
            return True
    if one is not None and deallocates_own(s, one):
        s.statements.pop(one.name.encode(), None)
        s.forget_unnamed(answered_here=True)
        s.wires.to_client(command_complete(b"DEALLOCATE") + hot.ready)
        return True
    if not parsed.statements and not parsed.error and s.txn.local:
        s.forget_unnamed(answered_here=True)
        s.wires.to_client(EMPTY_QUERY + hot.ready)
        return True
    if one is not None and one.kind in (Kind.SET, Kind.RESET, Kind.SHOW):
        return _forward(s, message, parsed, None)
    considered = consider(s, sql, parsed)
    if considered is WAIT:
        return False
    analysis, outcome = considered
    if outcome.status or analysis is None or s.scope is None:
        return _forward(s, message, parsed, None if is_ping(sql) else outcome, analysis)
    key = (s.scope.ident, message)
    entry = find(s, key, analysis)
    if entry is WAIT:
        return False
    if entry is not None:
        s.forget_unnamed(answered_here=True)
        s.wires.to_client(serve_entry(s, key, entry, message) + hot.ready)
        return True
    if s.txn.local and not s.questions.may_begin():
        s.questions.open_transaction()
        return False
    fill = start_fill(s, key, analysis, sql, alone=True)
    if fill is WAIT:
        return False
    missed = miss(s, fill, outcome)
    before = s.questions.begin() if s.txn.local else b""
    when_refused = _when_refused(s, sql)
    s.forget_unnamed()
    if fill is not None:
        s.fills.append(fill)
    s.report(missed)
    s.replies.expect(Op(Front.QUERY, fill=fill, done=when_refused))
    s.sent(awaiting=True)
    s.wires.to_upstream(before + message)
    return True


def _when_refused(s: Session, sql: bytes, *, mistyped: bool = False) -> Callable[[int, bytes], None] | None:
    """``mistyped``: a text that the server does not understand either was never run, so it is no alarm. None: it is
    understood, and holds no character that a database may not have.
    """
    if not mistyped and sql.isascii():
        return None
    kept = s.hot.kept

    def answered(kind: int, message: bytes) -> None:
        if kind != Back.ERROR:
            return
        if mistyped and b"\0C42601\0" in message:
            s.txn.ddl = s.txn.everywhere = s.txn.poll = False
        refused(s, sql, message, kept, ran=True)

    return answered


def _forward(
    s: Session, message: bytes, parsed: Parsed | None, outcome: Outcome | None, analysis: Analysis | None = None
) -> bool:
    """Send the message as it is; ``parsed`` None: it is malformed. ``outcome`` None leaves ``SHOW distribcache.last``
    alone.
    """
    one = None if parsed is None else only(parsed)
    if s.txn.local and (one is None or one.kind not in _FOLLOW or not s.questions.may_begin()):
        s.questions.open_transaction()
        return False
    if parsed is not None and must_query(s, (parsed,)):
        s.questions.query()
        return False
    pure = analysis is not None and analysis.pure
    effect = UNKNOWN
    if parsed is not None:
        effect = s.effects_of(message[5:-1], parsed, pure=pure, analysed=analysis is not None)
    if effect.databases and "left" not in s.tried:
        s.leave(effect.databases)
        return False
    before = s.questions.begin() if s.txn.local else b""
    calm = not s.txn.ddl and not s.txn.poll
    mistyped = calm and parsed is not None and bool(parsed.error)
    done = _when_refused(s, message[5:-1], mistyped=mistyped)
    s.forget_unnamed()
    s.apply(effect, None if one is None else one.kind, chain=one is not None and one.chain)
    if one is not None and one.kind is Kind.BEGIN:
        s.begin = begin_meaning(s, one)
    elif one is None and parsed is not None and any(each.kind is Kind.BEGIN for each in parsed.statements):
        s.begin = "transaction_unknown"
    if outcome is not None:
        s.report(outcome)
    s.replies.expect(Op(Front.QUERY, done=done))
    ends = one is not None and one.kind in (Kind.COMMIT, Kind.ROLLBACK) and not one.chain and not s.open
    s.sent(awaiting=True)
    if ends and s.questions.will_ask():
        s.questions.scope(behind=message)
    else:
        s.wires.to_upstream(before + message)
    return True
