"""A group of the extended protocol: decided as a whole, answered from its beginning, forwarded from the first miss on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distribcache.coherence.ledger import SCHEMA
from distribcache.entry import PAYLOAD, Entry
from distribcache.errors import ProtocolError
from distribcache.proxy.answer import Table, describe_rows, rows
from distribcache.proxy.effects import CONTROL, UNKNOWN, Effects, effects
from distribcache.proxy.fill import Fill
from distribcache.proxy.group import Loose, Message, Run, cut, parse_message
from distribcache.proxy.lookup import WAIT, Wait, consider, find, is_ping, serve_entry, start_fill
from distribcache.proxy.node import Outcome
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.replies import Op
from distribcache.proxy.shows import own_table
from distribcache.proxy.simple import begin_meaning, may_begin
from distribcache.proxy.transaction import control
from distribcache.sql.cacheability import Kind, dangerous_parameter
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

__all__ = ["group", "parse_message"]

_FINISHED = command_complete(b"SELECT 0")


@dataclass(slots=True)
class _State:
    """What a walk over a group's items would change; nothing of it is applied before everything is decided."""

    deferred: list[tuple[str, bytes]]
    statements: dict[bytes, Prepared | None]
    portals: dict[bytes, Prepared | None]
    kept: bytes | None
    finished: bool
    out: list[bytes] = field(default_factory=list)
    hits: list[tuple[tuple[int, bytes], Entry]] = field(default_factory=list)

    def copy(self) -> _State:
        return _State(
            self.deferred,
            dict(self.statements),
            dict(self.portals),
            self.kept,
            self.finished,
            list(self.out),
            list(self.hits),
        )


@dataclass(slots=True)
class _Plan:
    """What is known of the items that go upstream."""

    effects: list[tuple[Effects, Kind | None, bool]] = field(default_factory=list)
    begin: str | None = None
    fills: dict[int, Fill] = field(default_factory=dict)
    outcome: Outcome | None = None


def group(s: Session, data: bytes, messages: list[Message], ended: int) -> bool:
    """Decide ``messages`` (in ``data``), which ended with Sync, Flush or (0) too much; False: look at them again."""
    if s.failure is not None:
        s.wires.to_client(s.failure)
        s.failure = None
        s.discarding = True
    if s.discarding:
        if ended == Front.SYNC:
            s.discarding = False
            s.refresh()
            s.wires.to_client(s.hot.ready)
        return True
    items = cut(messages)
    state = _State(s.txn.deferred, {}, {}, s.hot.kept, s.finished_portal)
    first, at_first = 0, state
    if not s.open:
        begun: tuple[int, _State] | None = None
        for at, item in enumerate(items):
            before = state.copy()
            last = ended == Front.SYNC and at == len(items) - 1
            local = _run(s, data, item, state, last) if isinstance(item, Run) else _loose(s, item.message, state)
            if local is WAIT:
                return False
            if not local:
                first, at_first = (at, before) if begun is None else begun
                break
            if state.deferred is not before.deferred:
                begun = (begun or (at, before)) if state.deferred else None
        else:
            _apply(s, state)
            if ended == Front.SYNC:
                state.out.append(s.hot.ready)
            if state.out:
                s.wires.to_client(b"".join(state.out))
            return True
    if at_first.deferred:
        s.questions.open_transaction()
        return False
    going = items[first:]
    plan = _plan(s, data, going, at_first, ended, alone=len(items) == 1)
    if plan is WAIT:
        return False
    _apply(s, at_first)
    if at_first.out:
        s.wires.to_client(b"".join(at_first.out))
    _send(s, data, going, plan, ended)
    return True


# ---- answered here ------------------------------------------------------------------------------------------------------


def _statement(s: Session, state: _State, name: bytes) -> Prepared | None:
    if name in state.statements:
        return state.statements[name]
    if not name and state.kept is not None:
        return _unnamed(s, state.kept)
    return s.statements.get(name)


def _unnamed(s: Session, kept: bytes) -> Prepared:
    end = 1 + int.from_bytes(kept[1:5], "big")
    message = parse_message(kept, 0, end)
    return Prepared(message.sql, message.oids, s.hot.ident)


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


def _run(s: Session, data: bytes, run: Run, state: _State, last: bool) -> bool | Wait:
    """Answer a run into ``state``; False when it has to go upstream."""
    parse = run.parse
    scope = 0 if s.scope is None else s.scope.ident
    statement = _statement(s, state, run.bind.name) if parse is None else Prepared(parse.sql, parse.oids, scope)
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
        allowed = one.kind is not Kind.BEGIN or may_begin(s)
        if allowed is None:
            return WAIT
        done = control(one, sql, data[run.start : run.end] + SYNC, state.deferred, may_begin=allowed)
        if done is None:
            return False
        tag, state.deferred = done
        state.out.append(head + (NO_DATA if run.describe else b"") + command_complete(tag))
    else:
        hit = _read(s, data, run, statement, state, last)
        if hit is not True:
            return hit
    if parse is not None:
        state.kept = None if table is not None else data[parse.start : parse.end]
        state.statements[b""] = Prepared(sql, parse.oids, scope, own=table is not None)
    state.portals[b""] = None
    state.finished = True
    return True


def _read(s: Session, data: bytes, run: Run, statement: Prepared, state: _State, last: bool) -> bool | Wait:
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
    key = _key(s, data, run, statement)
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


def _key(s: Session, data: bytes, run: Run, statement: Prepared) -> tuple[int, bytes]:
    """Names are no part of a key: (scope, all bytes) of a whole unnamed run, else (statement in scope, bytes after names)."""
    scope = 0 if s.scope is None else s.scope.ident
    if run.parse is not None:
        return scope, data[run.start : run.end]
    return s.node.idents.of((statement.sql, statement.oids, statement.scope, scope)), data[run.bind.tail : run.end]


def _loose(s: Session, message: Message, state: _State) -> bool | Wait:
    """Answer a message that belongs to no run, which is possible only about our own SHOWs; False when it goes upstream."""
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
        statement = _statement(s, state, name)
        if statement is None or not statement.own:
            return False
        if kind == Front.BIND:
            state.portals[message.portal] = statement
            state.finished = state.finished and bool(message.portal)
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
        if kind == Front.EXECUTE and not name and state.finished:
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


def _apply(s: Session, state: _State) -> None:
    """Make what was answered here true."""
    s.txn.deferred = state.deferred
    s.hot.kept = state.kept
    s.finished_portal = state.finished
    for mine, changes in ((s.statements, state.statements), (s.portals, state.portals)):
        for name, prepared in changes.items():
            if prepared is None:
                mine.pop(name, None)
            else:
                mine[name] = prepared
    for key, entry in state.hits:
        serve_entry(s, key, entry)
    s.refresh()


# ---- sent upstream ------------------------------------------------------------------------------------------------------


def _plan(s: Session, data: bytes, going: list[Run | Loose], state: _State, ended: int, *, alone: bool) -> _Plan | Wait:
    """Find out what the items that go upstream may do, and which of their replies may be kept."""
    plan = _Plan()
    parses: dict[bytes, Prepared] = {}
    portals: set[bytes] = set()
    scope = 0 if s.scope is None else s.scope.ident
    for at, item in enumerate(going):
        for message in item.messages:
            if message.kind == Front.PARSE:
                parses[message.name] = Prepared(message.sql, message.oids, scope)
            elif message.kind == Front.BIND:
                portals.add(message.portal)
                statement = parses.get(message.name) or _statement(s, state, message.name)
                run = item if isinstance(item, Run) else None
                last = ended == Front.SYNC and at == len(going) - 1
                if _judge(s, data, plan, at, run, statement, last=last, alone=alone and at == 0) is WAIT:
                    return WAIT
            elif message.kind == Front.EXECUTE and message.name not in portals and message.name not in s.portals:
                plan.effects.append((UNKNOWN, None, False))
    databases = tuple(name for effect, _, _ in plan.effects for name in effect.databases)
    if databases and "left" not in s.tried:
        s.wait("left", s.node.databases.close_for_ddl(databases))
        return WAIT
    return plan


def _judge(
    s: Session,
    data: bytes,
    plan: _Plan,
    at: int,
    run: Run | None,
    statement: Prepared | None,
    *,
    last: bool,
    alone: bool,
) -> Wait | None:
    if statement is None:
        plan.effects.append((UNKNOWN, None, False))
        return None
    sql = statement.sql
    parsed = s.parsed(sql)
    one = parsed.statements[0] if len(parsed.statements) == 1 and not parsed.error else None
    kind = None if one is None else one.kind
    if one is not None and kind in (*CONTROL, Kind.SET, Kind.RESET, Kind.SHOW):
        plan.effects.append((effects(sql, parsed, pure=False), kind, one.chain))
        if kind is Kind.BEGIN:
            plan.begin = begin_meaning(s, one)
        return None
    considered = consider(s, sql, parsed)
    if considered is WAIT:
        return WAIT
    analysis, outcome = considered
    pure = analysis is not None and analysis.pure
    plan.effects.append((effects(sql, parsed, pure=pure), kind, False))
    if not is_ping(sql):
        plan.outcome = outcome
    if outcome.status or analysis is None or run is None:
        return None
    limited = run.execute.limit > 0
    if limited and (not last or s.replies.status != b"I" or s.txn.deferred):
        plan.outcome = Outcome("bypass", reason="row_limit", tables=outcome.tables, workload=outcome.workload)
        return None
    try:
        params = read_bind(memoryview(data)[run.bind.start + 5 : run.bind.end]).params
    except ProtocolError:
        plan.outcome = Outcome("bypass", reason="malformed")
        return None
    if any(value is not None and dangerous_parameter(value) for value in params):
        plan.outcome = Outcome("refused", reason="time_parameter", tables=outcome.tables, workload=outcome.workload)
        return None
    fill = start_fill(s, _key(s, data, run, statement), analysis, alone=alone)
    if fill is WAIT:
        return WAIT
    reason = "not_fresh" if "fresh" in s.tried else ""
    if fill is None:
        reason = "no_fill_point"
    else:
        fill.limited = limited
        plan.fills[at] = fill
    plan.outcome = Outcome("miss", reason=reason, tables=outcome.tables, workload=outcome.workload)
    return None


def _send(s: Session, data: bytes, going: list[Run | Loose], plan: _Plan, ended: int) -> None:
    prefix = b""
    kept = s.hot.kept
    if kept is not None:
        for message in (each for item in going for each in item.messages):
            if message.kind == Front.PARSE and not message.name:
                break
            if not message.name and (message.kind == Front.BIND or message.target == b"S"):
                prefix = kept[: 1 + int.from_bytes(kept[1:5], "big")]
                s.statements[b""] = _unnamed(s, kept)
                s.replies.expect(Op(Front.PARSE, ours=True, relay_error=True))
                break
        if prefix or any(m.kind == Front.PARSE and not m.name for item in going for m in item.messages):
            s.hot.kept = None
    for effect, kind, chain in plan.effects:
        s.apply(effect, kind, chain=chain)
    s.begin = plan.begin if plan.begin is not None else s.begin
    if plan.outcome is not None:
        s.report(plan.outcome)
    schema = s.coherence.words[SCHEMA]
    scope = 0 if s.scope is None else s.scope.ident
    for at, item in enumerate(going):
        fill = plan.fills.get(at)
        if fill is not None:
            s.fills.append(fill)
        for message in item.messages:
            s.replies.expect(
                Op(message.kind or data[message.start], fill=fill, done=_registrar(s, message, scope, schema))
            )
    if ended == Front.SYNC:
        s.replies.expect(Op(Front.SYNC))
    s.sent(awaiting=ended == Front.SYNC)
    start = going[0].start if going else len(data) - 5
    s.wires.to_upstream(prefix + data[start:] if prefix else data[start:])


def _registrar(s: Session, message: Message, scope: int, schema: int) -> Callable[[int, bytes], None] | None:
    """What becomes known when upstream has accepted a message."""
    kind, name = message.kind, message.name
    if kind == Front.PARSE:

        def parsed(reply: int, _: bytes) -> None:
            if reply == 0x31:  # ParseComplete
                s.statements[name] = Prepared(message.sql, message.oids, scope, proved=schema)
                s.hot.names.pop(name, None)

        return parsed
    if kind == Front.BIND:

        def bound(reply: int, _: bytes) -> None:
            statement = s.statements.get(name)
            if reply == 0x32:  # BindComplete
                s.finished_portal = s.finished_portal and bool(message.portal)
                if statement is not None:
                    statement.proved = max(statement.proved, schema)
                    s.portals[message.portal] = statement

        return bound
    if kind == Front.CLOSE and message.target == b"S":

        def closed(reply: int, _: bytes) -> None:
            if reply == 0x33:  # CloseComplete
                s.statements.pop(name, None)
                s.hot.names.pop(name, None)

        return closed
    return None
