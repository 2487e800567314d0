"""The items of a group that memory can answer: reads that are there, transaction control, and our own SHOWs.

Nothing is written or changed here: every answer goes into a ``State``, which ``apply`` makes true once the whole group
is decided. So a group can be looked at again after something was awaited.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distribcache.coherence.ledger import SCHEMA
from distribcache.entry import PAYLOAD, Entry
from distribcache.errors import ProtocolError
from distribcache.proxy.answer import Table, describe_rows, rows
from distribcache.proxy.effects import CONTROL
from distribcache.proxy.group import Message, Run, parse_message
from distribcache.proxy.hit import AS_UPSTREAM, FINISHED, GONE
from distribcache.proxy.lookup import WAIT, Wait, consider, find, serve_entry
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.shows import own_table
from distribcache.proxy.simple import deallocates_own, may_begin
from distribcache.proxy.transaction import control
from distribcache.sql.cacheability import Kind
from distribcache.wire.messages import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    NO_DATA,
    PARSE_COMPLETE,
    SYNC,
    Front,
    command_complete,
    parameter_description,
    read_bind,
)  # fmt: skip

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["State", "answer_loose", "answer_run", "apply", "key_of", "statement_of", "unnamed"]

_FINISHED = command_complete(b"SELECT 0")


@dataclass(slots=True)
class State:
    """What a walk over a group's items would change; nothing of it is applied before everything is decided."""

    deferred: list[tuple[str, bytes]]
    statements: dict[bytes, Prepared | None]
    portals: dict[bytes, Prepared | None]
    kept: bytes | None
    portal: int
    out: list[bytes] = field(default_factory=list)
    hits: list[tuple[tuple[int, bytes], Entry]] = field(default_factory=list)

    def copy(self) -> State:
        return State(
            self.deferred,
            dict(self.statements),
            dict(self.portals),
            self.kept,
            self.portal,
            list(self.out),
            list(self.hits),
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
    return Prepared(message.sql, message.oids, s.node.idents.unique() if s.scope is None else s.scope.ident)


def _own(s: Session, sql: bytes) -> Table | None:
    parsed = s.parsed(sql)
    if len(parsed.statements) == 1 and not parsed.error:
        one = parsed.statements[0]
        if one.kind is Kind.SHOW and one.name.startswith("distribcache."):
            return own_table(s, one.name)
    return None


def _formats(data: bytes, bind: Message) -> tuple[int, ...]:
    try:
        return read_bind(memoryview(data)[bind.start + 5 : bind.end]).result_formats
    except ProtocolError:
        return ()


def _bare(data: bytes, message: Message) -> bool:
    """Is this Bind one of a statement without parameters and columns? Otherwise the server has something to say."""
    try:
        bind = read_bind(memoryview(data)[message.start + 5 : message.end])
    except ProtocolError:
        return False
    return not bind.params and not bind.param_formats and len(bind.result_formats) <= 1


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
    one = parsed.statements[0] if len(parsed.statements) == 1 and not parsed.error else None
    table = _own(s, sql) if parse is not None or statement.own else None
    if table is not None:
        described = describe_rows(table[0], _formats(data, run.bind)) if run.describe else b""
        state.out.append(head + described + rows(table))
    elif one is not None and one.kind in CONTROL:
        if not _bare(data, run.bind):
            return False
        allowed = one.kind is not Kind.BEGIN or may_begin(s)
        if allowed is None:
            return WAIT
        done = control(one, sql, data[run.start : run.end] + SYNC, state.deferred, may_begin=allowed)
        if done is None:
            return False
        tag, state.deferred = done
        state.out.append(head + (NO_DATA if run.describe else b"") + command_complete(tag))
    elif one is not None and parse is not None and deallocates_own(s, one):
        state.statements[one.name.encode()] = None
        state.out.append(head + (NO_DATA if run.describe else b"") + command_complete(b"DEALLOCATE"))
    else:
        hit = _read(s, data, run, statement, state, last)
        if hit is not True:
            return hit
    if parse is not None:
        state.kept = None if table is not None else data[parse.start : parse.end]
        state.statements[b""] = Prepared(sql, parse.oids, scope, own=table is not None)
    state.portals[b""] = None
    state.portal = GONE if one is not None and one.kind in CONTROL else FINISHED
    return True


def _read(s: Session, data: bytes, run: Run, statement: Prepared, state: State, last: bool) -> bool | Wait:
    parsed = s.parsed(statement.sql)
    considered = consider(s, statement.sql, parsed)
    if considered is WAIT:
        return WAIT
    analysis, outcome = considered
    if outcome.status or analysis is None:
        return False
    if run.execute.limit > 0 and (not last or state.deferred or s.replies.status != b"I"):
        return False
    if run.parse is None and statement.proved != s.coherence.words[SCHEMA]:
        return False
    key = key_of(s, data, run, statement)
    entry = find(s, key)
    if entry is WAIT:
        return WAIT
    if entry is None:
        return False
    if run.parse is None and run.bind.name:
        s.hot.names[run.bind.name] = (key[0], statement.proved)
    state.hits.append((key, entry))
    state.out.append(entry[PAYLOAD])
    return True


def key_of(s: Session, data: bytes, run: Run, statement: Prepared) -> tuple[int, bytes]:
    """Names are no part of a key: (scope, all bytes) of a whole unnamed run, else (statement in scope, bytes after
    names).
    """
    scope = 0 if s.scope is None else s.scope.ident
    if run.parse is not None:
        return scope, data[run.start : run.end]
    return s.node.idents.of((statement.sql, statement.oids, statement.scope, scope)), data[run.bind.tail : run.end]


def answer_loose(s: Session, message: Message, state: State) -> bool | Wait:
    """Answer a message that belongs to no run, which is possible only about our own SHOWs; False when it goes
    upstream.
    """
    kind, name = message.kind, message.name
    if kind == Front.PARSE:
        if _own(s, message.sql) is None:
            parsed = s.parsed(message.sql)
            if any(each.kind is Kind.READ for each in parsed.statements) and consider(s, message.sql, parsed) is WAIT:
                return WAIT
            return False
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
            table = _own(s, statement.sql)
            state.out.append(parameter_description(()) + (describe_rows(table[0]) if table else NO_DATA))
        else:
            state.statements[name] = None
            state.out.append(CLOSE_COMPLETE)
        return True
    portal = state.portals[name] if name in state.portals else s.portals.get(name)
    if portal is None or not portal.own:
        if kind == Front.EXECUTE and not name and state.portal == FINISHED:
            state.out.append(_FINISHED)
            return True
        return False
    table = _own(s, portal.sql)
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
    for key, entry in state.hits:
        serve_entry(s, key, entry)
    s.refresh()
