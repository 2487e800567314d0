"""What the proxy itself asks on a client's connection, and the transaction that it opens there on the client's behalf.

Only while upstream has nothing to do, in the extended protocol under reserved names (a simple query of ours would
destroy the client's unnamed statement, coherence trap 15), and its replies never reach the client.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from distribcache.clock import now_ns
from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.coherence.scope import Scope, ServerFacts, read_scope
from distribcache.errors import ProtocolError, UpstreamError
from distribcache.proxy.answer import READY
from distribcache.proxy.group import parse_message
from distribcache.proxy.replies import Op
from distribcache.query import Consistency
from distribcache.sql.settings import KEYED, scope_query
from distribcache.wire.messages import SYNC, Front, bind, close, execute, parse, read_data_row

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["Questions"]

_NAME = b"distribcache scope"
_CLOSE = close(b"P", _NAME) + close(b"S", _NAME)
"""Both: in a transaction that is open, a portal stays."""
_QUERY = parse(_NAME, b"SELECT 1") + bind(_NAME, _NAME) + execute(_NAME) + _CLOSE + SYNC
_COMPLETE, _ERROR, _READY = b"CEZ"
_CANCELLED = b"\0C57014\0"
_ISOLATION = re.compile(rb"transaction|isolation", re.IGNORECASE)
"""In any text that could set what may only be set before the first query of a transaction."""
_SOON = frozenset({
    "starting", "catching_up", "catalogue_alarm", "reader_lost", "upstream_down", "unreachable", "wal_lag",
    "log_went_back", "publication_changed",
})  # fmt: skip
"""Reasons not to serve that pass by themselves."""
_LEAST_MS = 1000
"""The shortest ``statement_timeout`` under which a transaction is asked: one that a question of ours never meets."""
_KEYED = frozenset(name.lower() for name in KEYED)


class Questions:
    """See the module; one per session."""

    __slots__ = ("_left", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._left = False
        """A question was cancelled before its statement was closed."""

    def will_ask(self) -> bool:
        """Will the scope have to be asked for when the transaction that ends now has ended?"""
        s = self._session
        lost = s.scope is None or s.opaque
        return lost and bool(s.backend_pid) and s.node.settings.cache.enabled and s.coherence.serving

    def introduce(self) -> None:
        """Ask for the scope of a session that has begun and is idle, before its client needs it."""
        s = self._session
        if s.scope is None and s.idle and self.will_ask():
            self.scope()

    def learn_scope(self) -> bool:
        """Ask for the session's scope if that is possible now; True when an answer is being waited for."""
        return self._learn("scope")

    def learn_early(self) -> bool:
        """The same while nothing is served yet: what is prepared meanwhile is looked for in all tiers once it is."""
        s = self._session
        if s.scope is not None or s.early_known or s.coherence.reason not in _SOON:
            return False
        if not s.early_left or not s.node.settings.cache.enabled or not self._learn("early"):
            return False
        s.early_left -= 1
        return True

    def _learn(self, when: str) -> bool:
        s = self._session
        if when in s.tried or not (s.at_rest() or (when == "scope" and self._may_ask_inside())):
            return False
        s.wait(when, self.scope(early=when == "early"))
        return True

    def _may_ask_inside(self) -> bool:
        """May a question be asked in the transaction that is open, in front of the read at hand? To the server it is a
        query like that one. So nothing may come in front of both that is refused behind a query, and no timeout may be
        so short that it could end the question and not the read. Nor may the catalogue have changed since the
        transaction began: it may go on to see what was there, rights included.
        """
        s = self._session
        if not s.at_rest(b"T") or s.txn.impure or s.txn.bypass or 0 < s.timeout_ms < _LEAST_MS:
            return False
        words = s.coherence.words
        return s.outside == (words[EPOCH], words[SCHEMA]) and not s.unit_matches(_ISOLATION)

    def scope(self, behind: bytes = b"", *, early: bool = False) -> asyncio.Future[None]:
        """Ask for the session's scope; the session knows it before the future is done.

        ``early``: nothing is served yet, and which server is followed need not be known; the answer says only what the
        session is while a statement is parsed.
        ``behind`` is a message of the client's after which no transaction is open, whose reply is already expected: the
        question is sent right behind it, so that its answer is there when the client comes back.
        A question that fails leaves a scope that refuses, except one that was cancelled (the client's cancel or its
        timeout hit our question): it is asked again later.
        """
        s = self._session
        rows: list[bytes] = []
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        good = cancelled = False
        inside = s.replies.status == b"T" and not behind
        # A change of the catalogue or of the server while the question is on its way makes its answer an old one.
        asked_under = (s.coherence.words[EPOCH], s.coherence.words[SCHEMA])
        asked_at = now_ns()
        extra = tuple(
            sorted(name for name in s.touched if name.lower() not in _KEYED and not name.startswith("distribcache."))
        )

        def step(kind: int, message: bytes) -> None:
            nonlocal good, cancelled
            good = kind == _COMPLETE
            if kind == _ERROR:
                cancelled = _CANCELLED in message
                self._left = True
                if inside:  # it has failed the client's transaction, as its own read would have
                    s.failure = message

        def done(kind: int, message: bytes) -> None:
            if not cancelled:
                scope = self._read(rows, extra, early=early) if good else _refused("scope_query_failed")
                if early:
                    s.early = (0 if scope.refusal else scope.ident), asked_at
                else:
                    s.know_scope(scope, asked_under, inside=inside)
                    s.presence.expected(scope.idle_ms)
            if not answered.done():
                answered.set_result(None)

        if self._left:
            self._left = False
            s.replies.expect(Op(Front.CLOSE, ours=True))
            behind += close(b"S", _NAME)
        for op in (
            Op(Front.PARSE, ours=True, done=step),
            Op(Front.BIND, ours=True, done=step),
            Op(Front.EXECUTE, ours=True, rows=rows, done=step),
            *[Op(Front.CLOSE, ours=True) for _ in range(1 + inside)],
            Op(Front.SYNC, ours=True, done=done),
        ):
            s.replies.expect(op)
        s.awaiting = True
        question = parse(_NAME, scope_query(extra).encode()) + bind(_NAME, _NAME) + execute(_NAME)
        s.wires.to_upstream(behind + question + (_CLOSE if inside else close(b"S", _NAME)) + SYNC)
        return answered

    def _read(self, rows: list[bytes], extra: tuple[str, ...], *, early: bool) -> Scope:
        try:
            values = read_data_row(memoryview(rows[0])[5:]).values if len(rows) == 1 else ()
            settings = [None if each is None else str(each).encode() for each in json.loads(values[-1] or b"")]
            scope = read_scope([*values[:-1], *settings], self._session.node.idents, extra)
        except (ProtocolError, ValueError, TypeError, IndexError):
            return _refused("scope_query_failed")
        reason = self._wrong_server(scope)
        if early and reason == "wrong_server":  # the connection stays, and proves it before it is served or stored
            reason = ""
        return _refused(reason) if reason else scope

    def _wrong_server(self, scope: Scope) -> str:
        """Coherence rule R9: is the client's server the one whose WAL is read? Empty when it is."""
        s = self._session
        identity = s.coherence.identity
        if scope.server.backend_pid != s.backend_pid:
            return "pooler"
        if identity is None:
            return "" if s.coherence.mode == "ttl" else "wrong_server"
        same = (
            scope.server.system_identifier == identity.system_identifier
            and scope.server.postmaster_start == identity.postmaster_start
            and not scope.server.in_recovery
        )
        return "" if same else "wrong_server"

    def sync(self) -> None:
        """Send a Sync by itself, while upstream owes nothing."""
        s = self._session
        s.replies.expect(Op(Front.SYNC, ours=True))
        s.awaiting = True
        s.hot.ident = 0
        s.wires.to_upstream(SYNC)

    def may_begin(self) -> bool:
        """May the transaction that is deferred be opened by messages in front of the Query at hand, in one write? Not
        when reads were answered from memory behind it: then the Query may be one that is refused behind a query.
        """
        s = self._session
        deferred = s.txn.deferred
        return len(deferred) == 1 and deferred[0][1][0] == Front.QUERY and not s.has_read() and not s.open

    def begin(self) -> bytes:
        """Messages that open the transaction that is deferred; their replies are expected from now on. A Query follows
        them at once, which destroys the unnamed statement anyway. There is no Sync between: when they fail, since a
        cancel has hit them, the server skips the Query, so nothing is ever committed by itself.
        """
        s = self._session
        sql = s.txn.deferred[0][1][5:-1]

        def opened(kind: int, message: bytes) -> None:
            if kind == _ERROR:
                self._not_opened(message)

        for kind in (Front.PARSE, Front.BIND, Front.EXECUTE):
            s.replies.expect(Op(kind, ours=True, done=opened))
        s.txn.deferred = []
        s.txn.ended()
        s.hot.in_txn = True
        return parse(b"", sql) + bind(b"", b"") + execute(b"")

    def _not_opened(self, error: bytes) -> None:
        s = self._session
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        s.replies.expect(Op(Front.SYNC, ours=True, done=lambda *_: synced.set_result(None)))
        s.wires.to_upstream(SYNC)
        s.wait("begin", self._answer_failure(error, synced))

    async def _answer_failure(self, error: bytes, synced: asyncio.Future[None]) -> None:
        """The Query sent behind ``begin`` was not run: this is its answer, in a transaction that has failed."""
        s = self._session
        await synced
        if s.replies.status == b"I":
            await self._fail()
        s.drop_fills()
        s.txn.bypass = "transaction_unknown"
        s.forget_unnamed(answered_here=True)
        s.wires.to_client(error + READY[s.replies.status])
        s.refresh()

    def open_transaction(self) -> None:
        """Send what was deferred; the unit at hand is looked at again when the server has answered."""
        s = self._session
        s.wait("transaction", self._open())

    async def _open(self) -> None:
        """Send BEGIN and savepoints. If a read was answered from memory behind them, and the unit at hand may be one
        that is refused behind a query, a query goes up as well: the server then refuses by itself.
        """
        s = self._session
        deferred = [exchange for _, exchange in s.txn.deferred]
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        errors: list[bytes] = []
        left = 0

        def step(kind: int, message: bytes) -> None:
            nonlocal left
            if kind == _ERROR:
                errors.append(message)
            elif kind == _READY:
                left -= 1
                if not left and not finished.done():
                    finished.set_result(None)

        has_read = s.has_read()
        if has_read and s.unit_matches(_ISOLATION):
            deferred.append(_QUERY)
            has_read = False
        left = len(deferred)
        for exchange in deferred:
            at = 0
            while at < len(exchange):
                end = at + 1 + int.from_bytes(exchange[at + 1 : at + 5], "big")
                s.replies.expect(Op(parse_message(exchange, at, end).kind, ours=True, done=step))
                at = end
        s.awaiting = True
        s.wires.to_upstream(b"".join(deferred))
        s.txn.deferred = []
        s.txn.ended()
        s.txn.read = has_read
        await finished
        if s.replies.status == b"I":  # a cancel has hit the BEGIN itself
            await self._fail()
        if s.replies.status != b"T" and not errors:
            errors.append(b"")
        if errors:
            s.failure = errors[0] or None
            s.txn.bypass = "transaction_unknown"
        s.refresh()

    def query(self) -> None:
        """Send a query in place of those that were answered from memory in this transaction, since the unit at hand is
        one that the server refuses behind a query; the unit is looked at again when it is answered.
        """
        s = self._session
        s.wait("query", self._query())

    async def _query(self) -> None:
        s = self._session
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def step(kind: int, message: bytes) -> None:
            if kind == _ERROR:
                s.failure = message
                self._left = True
            elif kind == _READY and not finished.done():
                finished.set_result(None)

        for kind in (Front.PARSE, Front.BIND, Front.EXECUTE, Front.CLOSE, Front.CLOSE, Front.SYNC):
            s.replies.expect(Op(kind, ours=True, done=step))
        s.awaiting = True
        s.wires.to_upstream(_QUERY)
        await finished
        s.txn.read, s.txn.hits = False, -1
        s.refresh()

    async def _fail(self) -> None:
        """Open a transaction that has failed: what the client sends next must not be committed by itself."""
        s = self._session
        question = parse(_NAME, b"BEGIN") + bind(_NAME, _NAME) + execute(_NAME) + close(b"S", _NAME) + SYNC
        for _ in range(3):
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            for kind in (Front.PARSE, Front.BIND, Front.EXECUTE, Front.CLOSE, Front.SYNC, Front.PARSE):
                s.replies.expect(Op(kind, ours=True))
            s.replies.expect(Op(Front.SYNC, ours=True, done=lambda *_, failed=failed: failed.set_result(None)))
            s.awaiting = True
            s.wires.to_upstream(question + parse(_NAME, b"!") + SYNC)
            await failed
            if s.replies.status == b"E":
                return
        s.wires.fail(
            UpstreamError("the transaction cannot be begun", where="upstream", hint="connect again", sqlstate="57014")
        )


def _refused(reason: str) -> Scope:
    """A scope under which nothing is served or stored, until something makes the session ask again."""
    return Scope(
        ident=0, schemas=(), read_committed=False, statement_timeout_ms=0, refusal=reason,
        consistency=Consistency.SESSION, max_staleness_ns=None, workload=None, own=(), server=ServerFacts(0, False, "",
        None),
    )  # fmt: skip
