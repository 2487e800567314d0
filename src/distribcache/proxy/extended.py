"""A group of the extended protocol: answered from its beginning, forwarded from the first miss on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from distribcache.proxy.forward import make_plan, send
from distribcache.proxy.group import Loose, Message, Run, cut, used_later
from distribcache.proxy.hit import AS_UPSTREAM
from distribcache.proxy.local import State, answer_loose, answer_run, apply, statement_of
from distribcache.proxy.lookup import WAIT
from distribcache.proxy.simple import must_query
from distribcache.sql.cacheability import Kind, Parsed
from distribcache.wire.messages import Front

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["group"]

_PLAIN = frozenset({Kind.READ, Kind.LOCKING_READ, Kind.WRITE, Kind.SHOW, Kind.EMPTY, Kind.COPY})


def _bound(s: Session, going: list[Run | Loose], state: State) -> Iterator[Parsed]:
    """The texts that are bound here."""
    texts: dict[bytes, bytes] = {}
    for message in (each for item in going for each in item.messages):
        if message.kind == Front.PARSE:
            texts[message.name] = message.sql
        elif message.kind == Front.BIND:
            statement = statement_of(s, state, message.name)
            yield s.parsed(texts.get(message.name, b"" if statement is None else statement.sql))


def _plain(texts: Iterable[Parsed]) -> bool:
    """Do these mean the same whether or not reads came before them in their implicit transaction?

    A LOCK TABLE may only come second in it, a VACUUM or an isolation level only first.
    """
    return all(not parsed.error and all(each.kind in _PLAIN for each in parsed.statements) for parsed in texts)


def group(s: Session, data: bytes, messages: list[Message], ended: int) -> bool:
    """Decide ``messages`` (in ``data``), which ended with Sync, Flush or (0) too much; False: look at them again."""
    if s.failure is not None:
        s.wires.to_client(s.failure)
        s.failure = None
        s.discarding = True
        s.refresh()
    if s.discarding:
        if ended == Front.SYNC:
            s.discarding = False
            s.refresh()
            s.wires.to_client(s.hot.ready)
        return True
    items = cut(messages)
    state = State.of(s)
    first, at_first = 0, state
    if not s.open:
        begun: tuple[int, State] | None = None
        for at, item in enumerate(items):
            final = at == len(items) - 1
            before = state if final else state.copy()  # an item that is not answered changes nothing
            last = final and ended == Front.SYNC
            local = (
                not used_later(items, at) and answer_run(s, data, item, state, last)
                if isinstance(item, Run)
                else answer_loose(s, item.message, state)
            )
            if local is WAIT:
                return False
            if not local:
                first, at_first = (at, before) if begun is None else begun
                one_snapshot = s.scope is not None and not s.scope.read_committed
                if first and not s.hot.in_txn and (one_snapshot or not _plain(_bound(s, items[first:], at_first))):
                    first, at_first = 0, State.of(s)
                break
            if state.deferred is not before.deferred:
                begun = (begun or (at, before)) if state.deferred else None
        else:
            apply(s, state)
            if ended == Front.SYNC:
                state.out.append(s.hot.ready)
                if not s.hot.in_txn:
                    s.hot.portal = AS_UPSTREAM
                    s.portals.clear()
            if state.out:
                s.wires.to_client(b"".join(state.out))
            return True
    if at_first.deferred:
        s.questions.open_transaction()
        return False
    going = items[first:]
    if must_query(s, _bound(s, going, at_first), answered=bool(at_first.hits)):
        s.questions.query()
        return False
    alone = len(items) == 1 and ended == Front.SYNC and not s.open  # else its fill may land long after its answer
    plan = make_plan(s, data, going, at_first, ended, alone=alone)
    if plan is WAIT:
        return False
    if first:
        apply(s, at_first)
        if at_first.out:
            s.wires.to_client(b"".join(at_first.out))
    send(s, data, going, plan, ended)
    return True
