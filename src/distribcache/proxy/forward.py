"""The items of a group that go upstream: what they may do, which replies are filled, and the sending itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from distribcache.coherence.ledger import SCHEMA
from distribcache.coherence.tags import Bound
from distribcache.proxy.fill import Fill
from distribcache.proxy.group import Loose, Message, Run, parse_message, read_values
from distribcache.proxy.hit import AS_UPSTREAM
from distribcache.proxy.local import State, consider_run, key_of, statement_of, unnamed
from distribcache.proxy.lookup import WAIT, Wait, consider, is_ping, miss, only, start_fill
from distribcache.proxy.node import Outcome
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.replies import Op
from distribcache.proxy.simple import begin_meaning
from distribcache.proxy.unnamed import refused
from distribcache.sql.cacheability import Kind, Parsed, dangerous_parameter
from distribcache.sql.effects import CONTROL, NEUTRAL, UNKNOWN, Effects, effects
from distribcache.wire.messages import Back, Front, close

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["Plan", "make_plan", "names_a_moment", "resend", "send"]

Done = Callable[[int, bytes], None]

_TIME_WITH_ZONE = frozenset({1266, 1270})
"""Type oids of timetz and its array."""
_TIME = 1083
_NO_PLAN = (*CONTROL, Kind.SET, Kind.RESET, Kind.SHOW)
"""Statements that are no read, whatever the catalogue says."""


@dataclass(slots=True)
class Plan:
    """What is known of the items that go upstream."""

    effects: list[tuple[Effects, Kind | None, bool]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    """For each item, how many of the effects are of items before it."""
    parses: dict[int, Prepared] = field(default_factory=dict)
    """What each Parse will have prepared, by where it starts."""
    begin: str | None = None
    fills: dict[int, Fill] = field(default_factory=dict)
    outcome: Outcome | None = None


def make_plan(
    s: Session, data: bytes, going: list[Run | Loose], state: State, ended: int, *, alone: bool
) -> Plan | Wait:
    """Find out what the items that go upstream may do, and which of their replies may be kept."""
    plan = Plan()
    names = dict(s.parsing)
    portals: set[bytes] = set()
    for at, item in enumerate(going):
        plan.before.append(len(plan.effects))
        for message in item.messages:
            if message.kind == Front.PARSE:
                if _understood(s, item, message.sql) is WAIT:
                    return WAIT
                lost = s.opaque or (plan.effects and any(each.opaque for each, _, _ in plan.effects))
                names[message.name] = plan.parses[message.start] = (
                    Prepared(message.sql, message.oids, s.node.idents.unique())
                    if lost
                    else s.prepared(message.sql, message.oids)
                )
            elif message.kind == Front.CLOSE and message.target == b"S":
                names[message.name] = None
            elif message.kind == Front.BIND:
                portals.add(message.portal)
                name = message.name
                statement = names[name] if name in names else statement_of(s, state, name)
                run = item if isinstance(item, Run) else None
                last = ended == Front.SYNC and at == len(going) - 1
                if _judge(s, data, plan, at, run, statement, last=last, alone=alone and at == 0) is WAIT:
                    return WAIT
            elif message.kind == Front.EXECUTE and message.name not in portals and message.name not in s.portals:
                plan.effects.append((UNKNOWN, None, False))
    databases: tuple[str, ...] = ()
    for effect, _, _ in plan.effects:
        databases += effect.databases
    if databases and "left" not in s.tried:
        s.leave(databases)
        return WAIT
    return plan


def _understood(s: Session, item: Run | Loose, sql: bytes) -> Wait | None:
    """Let it be known what a read means before it is parsed upstream."""
    parsed = s.parsed(sql)
    if not any(each.kind is Kind.READ for each in parsed.statements):
        return None
    considered = consider_run(s, item, sql, parsed) if isinstance(item, Run) else consider(s, sql, parsed)
    return WAIT if considered is WAIT else None


def _judge(
    s: Session,
    data: bytes,
    plan: Plan,
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
    one = only(parsed)
    kind = None if one is None else one.kind
    if one is not None and kind in _NO_PLAN:
        plan.effects.append((s.effects_of(sql, parsed, pure=False, analysed=False), kind, one.chain))
        if kind is Kind.BEGIN:
            plan.begin = plan.begin or begin_meaning(s, one)
        return None
    considered = consider(s, sql, parsed) if run is None else consider_run(s, run, sql, parsed)
    if considered is WAIT:
        return WAIT
    analysis, outcome = considered
    schema = s.coherence.words[SCHEMA]
    pure = analysis is not None and analysis.pure and statement.runs_as_written(analysis.meaning, schema)
    # Of a statement that may mean something else than its text the analysis says nothing.
    analysed = analysis is not None and (pure or not analysis.pure)
    effect = s.effects_of(sql, parsed, pure=pure, analysed=analysed, prepared=statement)
    plan.effects.append((effect, kind, False))
    if not is_ping(sql):
        plan.outcome = outcome
    if outcome.status or analysis is None or run is None:
        return None
    if not statement.reads_as_written(analysis.meaning, schema):
        plan.outcome = Outcome("bypass", reason="prepared_before", tables=outcome.tables, workload=outcome.workload)
        return None
    limited = run.execute.limit > 0
    if limited and (not last or s.replies.status != b"I" or s.txn.deferred):
        plan.outcome = Outcome("bypass", reason="row_limit", tables=outcome.tables, workload=outcome.workload)
        return None
    values = read_values(data, run.bind)
    if values is None:
        plan.outcome = Outcome("bypass", reason="malformed")
        return None
    if names_a_moment(statement, parsed, values[0]):
        plan.outcome = Outcome("refused", reason="time_parameter", tables=outcome.tables, workload=outcome.workload)
        return None
    bound = Bound(statement.oids, values[1], values[0])
    fill = start_fill(s, key_of(s, data, run, statement), analysis, sql, bound, alone=alone)
    if fill is WAIT:
        return WAIT
    if fill is not None:
        fill.limited = limited
        plan.fills[at] = fill
    plan.outcome = miss(s, fill, outcome)
    return None


def names_a_moment(statement: Prepared, parsed: Parsed, params: list[bytes | None]) -> bool:
    """May a parameter mean another moment each time? Text of time with time zone depends on today's date though it
    names no day.
    """
    for oid in statement.oids:
        if oid in _TIME_WITH_ZONE:
            return True
    for each in parsed.statements:
        for name in each.types:
            if name.name == "timetz":
                return True
        if each.names.zoned and _TIME in statement.oids:
            return True
    for value in params:
        if value is not None and dangerous_parameter(value):
            return True
    return False


def send(s: Session, data: bytes, going: list[Run | Loose], plan: Plan, ended: int) -> None:
    parts: list[bytes] = []
    start = going[0].start if going else len(data) - 5
    calm = not s.txn.ddl and not s.txn.poll
    for effect, statement, chain in plan.effects:
        s.apply(effect, statement, chain=chain)
    s.begin = (s.begin or plan.begin) if plan.begin is not None else s.begin
    if plan.outcome is not None:
        s.report(plan.outcome)
    hot, replies = s.hot, s.replies
    schema = s.coherence.words[SCHEMA]
    kept = hot.kept
    if kept and replies.status != b"E" and _changes_meaning(going, plan):
        parts.append(resend(s, kept))
        hot.kept = None
        s.unsettled = kept
    passed = 0
    for at, item in enumerate(going):
        fill = plan.fills.get(at)
        if fill is not None:
            s.fills.append(fill)
        for effect, _, _ in plan.effects[passed : plan.before[at]]:
            calm = calm and not effect.ddl and not effect.poll
        passed = plan.before[at]
        pure = isinstance(item, Run) and plan.effects[passed][0] is NEUTRAL
        for message in item.messages:
            if hot.kept is not None or hot.portal:
                before = _mend(s, message)
                if before:
                    parts += (data[start : message.start], before)
                    start = message.start
            kind = message.kind
            done: Done | None = None
            if kind == Front.PARSE:
                prepared = plan.parses[message.start]
                s.parsing[message.name] = prepared
                done = _when_parsed(s, message.name, prepared, schema, calm)
            elif kind == Front.BIND:
                done = _when_bound(s, message, schema, calm)
            elif kind == Front.EXECUTE and not pure:
                done = _when_executed(s, message.name)
            elif kind == Front.CLOSE and message.target == b"S":
                s.parsing[message.name] = None
                done = _when_closed(s, message.name)
            replies.expect(Op(kind or data[message.start], fill=fill, done=done))
    if ended == Front.SYNC:
        replies.expect(Op(Front.SYNC))
    s.sent(awaiting=ended == Front.SYNC, synced=ended == Front.SYNC)
    parts.append(data[start:])
    s.wires.to_upstream(parts[0] if len(parts) == 1 else b"".join(parts))


def _changes_meaning(going: list[Run | Loose], plan: Plan) -> bool:
    """May the session change before the unnamed statement is replaced? A text is read under the settings of its Parse:
    what was answered here must be parsed upstream before that. (Not in a failed transaction: there the server would
    refuse that Parse, and with it the rest of the group.)
    """
    for at, item in enumerate(going):
        if any(message.kind == Front.PARSE and not message.name for message in item.messages):
            return False
        end = plan.before[at + 1] if at + 1 < len(going) else None
        if any(effect.opaque for effect, _, _ in plan.effects[plan.before[at] : end]):
            return True
    return False


def _mend(s: Session, message: Message) -> bytes:
    """What has to go before ``message``, so that upstream's unnamed statement and portal are what the client thinks."""
    hot = s.hot
    kind, unnamed = message.kind, not message.name
    out = b""
    if hot.kept is not None and unnamed and (kind in (Front.PARSE, Front.BIND) or message.target == b"S"):
        if kind == Front.BIND or kind == Front.DESCRIBE:
            out = resend(s, hot.kept)
        s.unsettled = hot.kept
        hot.kept = None
    if hot.portal and kind == Front.BIND and not message.portal:
        hot.portal, s.unsettled_portal = AS_UPSTREAM, hot.portal
    elif hot.portal and unnamed and (kind == Front.EXECUTE or message.target == b"P"):
        hot.portal, s.unsettled_portal = AS_UPSTREAM, hot.portal

        def closed(reply: int, _: bytes) -> None:
            s.unsettled_portal = AS_UPSTREAM

        s.replies.expect(Op(Front.CLOSE, ours=True, done=closed))
        out += close(b"P", b"")
    return out


def resend(s: Session, kept: bytes) -> bytes:
    """Bytes that make upstream's unnamed statement what the client believes it to be; the reply is not the client's."""
    if not kept:

        def closed(reply: int, _: bytes) -> None:
            s.unsettled = None
            s.statements.pop(b"", None)

        s.replies.expect(Op(Front.CLOSE, ours=True, done=closed))
        return close(b"S", b"")
    end = 1 + int.from_bytes(kept[1:5], "big")
    name = parse_message(kept, 0, end).name
    done = _when_parsed(s, name, unnamed(s, kept), s.coherence.words[SCHEMA], False)
    s.replies.expect(Op(Front.PARSE, ours=True, relay_error=True, done=done))
    return kept[:end]


# What becomes known when upstream has accepted a message. ``calm``: nothing before it could have changed a catalogue.
# When its Parse or Bind has failed, neither it nor what follows was run, so there is no alarm: else any mistyped
# statement would stop the hits of a whole database.


def _when_parsed(s: Session, name: bytes, prepared: Prepared, schema: int, calm: bool) -> Done:
    def parsed(reply: int, message: bytes) -> None:
        if reply == Back.PARSE_COMPLETE:
            if not name:
                s.unsettled = None
            prepared.proved = schema
            s.statements[name] = prepared
            s.hot.names.pop(name, None)
            return
        if not name:
            refused(s, prepared.sql, message, s.unsettled, ran=False)
        if calm:
            s.txn.ddl = s.txn.poll = False

    return parsed


def _when_bound(s: Session, message: Message, schema: int, calm: bool) -> Done:
    def bound(reply: int, _: bytes) -> None:
        if reply == Back.BIND_COMPLETE:
            statement = s.statements.get(message.name)
            if not message.portal:
                s.hot.portal = s.unsettled_portal = AS_UPSTREAM
            if statement is not None:
                statement.proved = schema  # not the greatest: before the stream has begun the slot says "never"
                s.portals[message.portal] = statement
        elif calm and reply == Back.ERROR:
            s.txn.ddl = s.txn.poll = False

    return bound


def _when_closed(s: Session, name: bytes) -> Done:
    def closed(reply: int, _: bytes) -> None:
        if reply == Back.CLOSE_COMPLETE:
            if not name:
                s.unsettled = None
            s.statements.pop(name, None)
            s.hot.names.pop(name, None)

    return closed


def _when_executed(s: Session, portal: bytes) -> Done:
    def executed(reply: int, _: bytes) -> None:
        ran = s.portals.get(portal)
        if reply == Back.COMMAND_COMPLETE and ran is not None:  # what was parsed in front of it may be gone
            s.forget_statements(effects(ran.sql, s.parsed(ran.sql), pure=False).forgets)

    return executed
