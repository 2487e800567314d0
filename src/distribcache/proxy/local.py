"""The items of a group that memory can answer: reads that are there, transaction control, and our own SHOWs.

Nothing is written or changed here: every answer goes into a ``State``, which ``apply`` makes true once the whole group
is decided. So a group can be looked at again after something was awaited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING

from distribcache.coherence.ledger import SCHEMA
from distribcache.entry import PAYLOAD, Entry
from distribcache.proxy.answer import Table, describe_rows, rows
from distribcache.proxy.group import Message, Run, parse_message, read_values
from distribcache.proxy.hit import AS_UPSTREAM, FINISHED, GONE
from distribcache.proxy.lookup import WAIT, Considered, Wait, consider, find, only, serve_entry
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.shows import gathered, own_table
from distribcache.proxy.simple import deallocates_own, may_begin
from distribcache.proxy.transaction import control
from distribcache.sql.cacheability import Kind, Parsed, Statement
from distribcache.sql.effects import CONTROL
from distribcache.wire.messages import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    NO_DATA,
    PARSE_COMPLETE,
    SYNC,
    Front,
    command_complete,
    parameter_description,
)  # fmt: skip

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["State", "answer_loose", "answer_run", "apply", "consider_run", "key_of", "statement_of", "unnamed"]

_FINISHED = command_complete(b"SELECT 0")
_length = Struct("!I").unpack_from
_PORTALS = {Kind.BEGIN: AS_UPSTREAM, Kind.SAVEPOINT: AS_UPSTREAM}
"""What is sent at last leaves upstream the portal that the client knows."""


@dataclass(slots=True)
class State:
    """What a walk over a group's items would change; nothing of it is applied before everything is decided."""

    deferred: list[tuple[str, bytes]]
    statements: dict[bytes, Prepared | None]
    portals: dict[bytes, Prepared | None]
    kept: bytes | None
    portal: int
    out: list[bytes] = field(default_factory=list)
    hits: list[tuple[tuple[int, bytes], Entry, bytes]] = field(default_factory=list)
    """Key, entry, and the bytes of the run."""
    begun: int = -1
    """How many of the hits were in front of the BEGIN that is deferred; -1: it is not of this group."""

    @classmethod
    def of(cls, s: Session) -> State:
        """What is true before the group."""
        return cls(s.txn.deferred, {}, {}, s.hot.kept, s.hot.portal)

    def copy(self) -> State:
        return State(
            self.deferred,
            dict(self.statements),
            dict(self.portals),
            self.kept,
            self.portal,
            list(self.out),
            list(self.hits),
            self.begun,
        )


def statement_of(s: Session, state: State, name: bytes) -> Prepared | None:
    if name in state.statements:
        return state.statements[name]
    if not name and state.kept is not None:
        return unnamed(s, state.kept) if state.kept else None
    return s.statements.get(name)


def unnamed(s: Session, kept: bytes) -> Prepared:
    """What the Parse that ``kept`` starts with prepares, if it is sent now."""
    end = 1 + int.from_bytes(kept[1:5], "big")
    message = parse_message(kept, 0, end)
    return s.prepared(message.sql, message.oids)


def _own(s: Session, one: Statement | None) -> Table | None:
    if one is not None and one.kind is Kind.SHOW and one.name.startswith("distribcache."):
        return own_table(s, one.name)
    return None


def _formats(data: bytes, bind: Message) -> tuple[int, ...]:
    values = read_values(data, bind)
    return () if values is None else values[2]


def _bare(data: bytes, bind: Message) -> bool:
    """Is this Bind one of a statement without parameters and columns? Otherwise the server has something to say."""
    values = read_values(data, bind)
    return values is not None and not values[0] and not values[1] and len(values[2]) <= 1


def answer_run(s: Session, data: bytes, run: Run, state: State, last: bool) -> bool | Wait:
    """Answer a run into ``state``; False when it has to go upstream."""
    parse = run.parse
    scope = 0 if s.scope is None else s.scope.ident
    statement = statement_of(s, state, run.bind.name) if parse is None else Prepared(parse.sql, parse.oids, scope)
    if statement is None:
        return False
    sql = statement.sql
    head = (b"" if parse is None else PARSE_COMPLETE) + BIND_COMPLETE
    parsed = s.parsed(sql)
    one = only(parsed)
    ours = parse is not None or statement.own
    if ours and one is not None and not gathered(s, one.name):
        return WAIT
    table = _own(s, one) if ours else None
    if table is not None:
        described = describe_rows(table[0], _formats(data, run.bind)) if run.describe else b""
        state.out.append(head + described + rows(table))
    elif one is not None and one.kind in CONTROL:
        if statement.oids or not _bare(data, run.bind):
            return False
        allowed = one.kind is not Kind.BEGIN or may_begin(s)
        if allowed is None:
            return WAIT
        done = control(one, sql, data[run.start : run.end] + SYNC, state.deferred, may_begin=allowed)
        if done is None:
            return False
        tag, state.deferred = done
        if one.kind is Kind.BEGIN:
            state.begun = len(state.hits)
        state.out.append(head + (NO_DATA if run.describe else b"") + command_complete(tag))
    elif one is not None and parse is not None and deallocates_own(s, one):
        state.statements[one.name.encode()] = None
        state.out.append(head + (NO_DATA if run.describe else b"") + command_complete(b"DEALLOCATE"))
    else:
        hit = _read(s, data, run, statement, parsed, state, last)
        if hit is not True:
            return hit
    if parse is not None:
        state.kept = None if table is not None else data[parse.start : parse.end]
        state.statements[b""] = Prepared(sql, parse.oids, scope, own=table is not None)
    state.portals[b""] = None
    state.portal = FINISHED if one is None or one.kind not in CONTROL else _PORTALS.get(one.kind, GONE)
    return True


def consider_run(s: Session, run: Run, sql: bytes, parsed: Parsed) -> Considered | Wait:
    """``consider``, once while a run is decided."""
    known = run.considered
    if known is None or known[0] is not sql:
        known = run.considered = sql, consider(s, sql, parsed)
    return known[1]


def _read(
    s: Session, data: bytes, run: Run, statement: Prepared, parsed: Parsed, state: State, last: bool
) -> bool | Wait:
    considered = consider_run(s, run, statement.sql, parsed)
    if considered is WAIT:
        return WAIT
    analysis, outcome = considered
    if outcome.status or analysis is None:
        return False
    if run.execute.limit > 0 and (not last or state.deferred or s.replies.status != b"I"):
        return False
    schema = s.coherence.words[SCHEMA]
    if run.parse is None and (statement.proved != schema or not statement.reads_as_written(analysis.meaning, schema)):
        return False
    key = key_of(s, data, run, statement)
    entry = find(s, key, analysis)
    if entry is WAIT:
        return WAIT
    if entry is None:
        return False
    if run.parse is None and run.bind.name:
        s.hot.names[run.bind.name] = (key[0], statement.proved)
    state.hits.append((key, entry, data[run.start : run.end]))
    state.out.append(entry[PAYLOAD])
    return True


def key_of(s: Session, data: bytes, run: Run, statement: Prepared) -> tuple[int, bytes]:
    """Names are no part of a key: (scope, all bytes) of a whole unnamed run, else (statement in scope, bytes after
    names).
    """
    scope = 0 if s.scope is None else s.scope.ident
    if run.parse is not None:
        return scope, data[run.start : run.end]
    return s.node.idents.prepared(statement.sql, statement.oids, statement.scope, scope), data[run.bind.tail : run.end]


def answer_loose(s: Session, message: Message, state: State) -> bool | Wait:
    """Answer a message that belongs to no run, which is possible only about our own SHOWs; False when it goes
    upstream.
    """
    kind, name = message.kind, message.name
    if kind == Front.PARSE:
        parsed = s.parsed(message.sql)
        if _own(s, only(parsed)) is None:
            if not any(each.kind is Kind.READ for each in parsed.statements):
                return False
            return WAIT if consider(s, message.sql, parsed) is WAIT or (name and s.questions.learn_early()) else False
        state.statements[name] = Prepared(message.sql, own=True)
        state.kept = state.kept if name else None
        state.out.append(PARSE_COMPLETE)
        return True
    if kind == Front.BIND or (kind != Front.EXECUTE and message.target == b"S"):
        statement = statement_of(s, state, name)
        if statement is None or not statement.own:
            return False
        if kind == Front.BIND:
            state.portals[message.portal] = statement
            state.portal = state.portal if message.portal else AS_UPSTREAM
            state.out.append(BIND_COMPLETE)
        elif kind == Front.DESCRIBE:
            table = _own(s, only(s.parsed(statement.sql)))
            state.out.append(parameter_description(()) + (describe_rows(table[0]) if table else NO_DATA))
        else:
            state.statements[name] = None
            state.out.append(CLOSE_COMPLETE)
        return True
    portal = state.portals[name] if name in state.portals else s.portals.get(name)
    if portal is None or not portal.own:
        if name or state.portal != FINISHED or s.replies.status == b"E" or kind not in (Front.EXECUTE, Front.DESCRIBE):
            return False
        answer = _FINISHED if kind == Front.EXECUTE else _description(s, state)
        state.out.append(answer)
        return bool(answer)
    one = only(s.parsed(portal.sql))
    if one is not None and kind == Front.EXECUTE and not gathered(s, one.name):
        return WAIT
    table = _own(s, one)
    if table is None:
        return False
    if kind == Front.DESCRIBE:
        state.out.append(describe_rows(table[0]))
    elif kind == Front.EXECUTE:
        state.out.append(rows(table))
    elif kind == Front.CLOSE:
        state.portals[name] = None
        state.out.append(CLOSE_COMPLETE)
    else:
        return False
    return True


def _description(s: Session, state: State) -> bytes:
    """What describes the columns of the last answer from memory; empty where that is not known."""
    entry = state.hits[-1][1] if state.hits else s.hot.last
    payload = b"" if entry is None else entry[PAYLOAD]
    at = payload.startswith(PARSE_COMPLETE) * len(PARSE_COMPLETE) + len(BIND_COMPLETE)
    return payload[at : at + 1 + _length(payload, at + 1)[0]] if payload[at : at + 1] == b"T" else b""


def apply(s: Session, state: State) -> None:
    """Make what was answered here true."""
    s.txn.deferred = state.deferred
    s.hot.kept = state.kept
    s.hot.portal = state.portal
    for mine, changes in ((s.statements, state.statements), (s.portals, state.portals)):
        for name, prepared in changes.items():
            if prepared is None:
                mine.pop(name, None)
            else:
                mine[name] = prepared
    for key, entry, asked in state.hits:
        serve_entry(s, key, entry, asked)
    if state.begun >= 0:
        s.txn.read, s.txn.hits = len(state.hits) > state.begun, s.hot.hits
    s.refresh()
