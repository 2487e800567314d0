"""What is known of one session, and what its messages that went upstream may have changed.

Two questions are answered here, without IO. *May this session be served now?* (``why_not``; ``hot.ident`` is the short
answer for the hit path.) *What follows from the end of an exchange?* (``_on_ready``: floors and alarms are raised and
fills are stored before ReadyForQuery is relayed.)

Rules:
1. The scope is forgotten whenever it could have changed; while it is unknown nothing is served or stored.
2. A fill is kept only when its exchange ended well and everything since the transaction began was a proven pure read.
3. What may have been written raises the floor at the end of its transaction; what may have been DDL is an alarm there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from distribcache.catalog.facts import BUILTIN
from distribcache.clock import now_ns
from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.coherence.scope import Scope
from distribcache.entry import WORKLOAD, Entry, make_entry
from distribcache.proxy.answer import READY, rows_in
from distribcache.proxy.fill import Budget, Fill
from distribcache.proxy.hit import AS_UPSTREAM, GONE, Hot
from distribcache.proxy.node import Database, Node, Outcome
from distribcache.proxy.prepared import Prepared
from distribcache.proxy.replies import Replies
from distribcache.proxy.transaction import Transaction
from distribcache.query import Consistency
from distribcache.sql.cacheability import Kind, Parsed
from distribcache.sql.effects import CONTROL, UNKNOWN, Effects, effects

if TYPE_CHECKING:
    from distribcache.proxy.again import Hit

__all__ = ["Standing"]

_EARLY = 64
"""How often a session asks what it is while nothing is served: that may last."""
_ENDS = CONTROL - {Kind.SAVEPOINT, Kind.RELEASE}
"""What may take back that something was set in a transaction."""
_HELD = 8
"""Largest entries that the fills of one exchange may hold together."""


class Standing:
    """See the module; ``Session`` adds the bytes."""

    def __init__(self, node: Node, database: Database, write: Callable[[bytes], None]) -> None:
        self.node = node
        self.database = database
        self.coherence = database.coherence
        self.hot = Hot(node.l1.entries, node.l1.touch, node.clock, write)
        self.find_ledger()
        self.replies = Replies(self._on_ready, self._on_parameter, self._on_notification)
        self.replies.on_commit = self._on_commit
        self.txn = Transaction()
        self.scope: Scope | None = None
        self.early = (0, 0)
        """The identity that was learned before anything is served (0: it does not count), and when it was asked for."""
        self.early_left = _EARLY
        self.statements: dict[bytes, Prepared] = {}
        self.portals: dict[bytes, Prepared] = {}
        self.parsing: dict[bytes, Prepared | None] = {}
        """What names will mean when the replies that upstream owes have come; None: nothing that is known."""
        self.unsettled: bytes | None = None
        """What ``hot.kept`` was before messages that replace it went upstream, until they are known to be there."""
        self.unsettled_portal = AS_UPSTREAM
        """The same of ``hot.portal``."""
        self.strict = False
        self.careful = False
        """Hits are decided one by one: ``strict``, or a bound of the session's own where only time ends an entry."""
        self.outcome = Outcome()
        self.touched: dict[str, None] = {}
        """Settings that this session was seen to set and that are not keyed anyway."""
        self.backend_pid = 0
        self.seen_hits = 0
        self.open = False
        """Messages of an unfinished group went upstream."""
        self.unsynced = False
        """Messages went up behind such a group without a Sync: a transaction that is open may be one that it ends."""
        self.awaiting = False
        """Upstream owes a ReadyForQuery."""
        self.discarding = False
        """A group failed here: its messages are ignored up to its Sync, as the server would."""
        self.begin: str | None = None
        """What a BEGIN in this exchange means for serving: "" served, else the reason why not; None no BEGIN."""
        self.ends_transaction = False
        self.fills: list[Fill] = []
        self.budget = Budget(_HELD * node.settings.l1.max_entry)
        self.opaque = False
        self.inside = False
        """The scope was learned in a transaction that is open, and ends with it."""
        self.outside = (0, 0)
        """Epoch and schema slot when no transaction was open last."""
        self.timeout_ms = 0
        """The session's ``statement_timeout``, as far as it was seen; 0: none."""
        self.max_staleness = 0
        """The bound of this session, before that of a class of statements."""
        self.armed = node.audits.arming
        """How many of the hits to come are to be audited."""
        self.audited: Hit | None = None
        """A hit of the slower path that is to be audited once it is answered."""
        self.asked = False
        """Upstream owes the answer to an audit."""
        self._databases: tuple[str, ...] = ()
        self._leaving: tuple[asyncio.Future[None], tuple[str, ...]] | None = None
        """What is being left for a statement that is not sent yet."""

    # ---- what is known ----------------------------------------------------------------------------------------------

    def find_ledger(self) -> None:
        """Let the hit path look where the ledger is: in a worker, that may become another one."""
        hot, coherence = self.hot, self.coherence
        hot.words, hot.head = coherence.words, coherence.head
        hot.floors = coherence.alarmed if hot.eventual else coherence.floors

    def floor(self) -> int:
        """The moment that a hit of this session has to be complete up to, apart from its bound on age (rule R4)."""
        hot = self.hot
        if hot.eventual:
            return 0 if hot.floors is None else max(hot.floors)
        return max(self.coherence.floor_ns, hot.notified)

    def parsed(self, sql: bytes) -> Parsed:
        """Facts of a text, memoised."""
        return self.database.analyst.parsed(sql)

    def why_not(self) -> str:
        """Why nothing may be served or stored now, as a stable code; empty when it may."""
        coherence = self.coherence
        if not self.node.settings.cache.enabled:
            return "disabled"
        if not coherence.serving:
            return coherence.reason or "not_ready"
        if self.replies.status == b"E":
            return "failed_transaction"
        if self.txn.impure:
            return "transaction_wrote"
        if self.txn.bypass:
            return self.txn.bypass
        words = coherence.words
        if self.scope is not None and (self.hot.epoch, self.hot.schema) != (words[EPOCH], words[SCHEMA]):
            self.forget_scope()
        if self.scope is None:
            return "scope_unknown"
        return self.scope.refusal

    def know_scope(self, scope: Scope, asked_under: tuple[int, int], *, inside: bool) -> None:
        """The answer to the question about the session, and the epoch and schema slot when it was asked; ``inside``: of
        a transaction. What was set in that is over when it ends, or is rolled back to a savepoint.
        """
        self.scope = scope
        self.inside = inside
        self.timeout_ms = scope.statement_timeout_ms
        self.early_left = _EARLY
        self.hot.epoch, self.hot.schema = asked_under
        staleness = scope.max_staleness_ns
        bound = self.coherence.max_staleness_ns
        self.max_staleness = bound if staleness is None else min(bound, staleness)
        self.hot.max_staleness = min(self.max_staleness, self.node.tightest)
        consistency = scope.consistency or self.node.settings.freshness.consistency
        self.hot.eventual = consistency is Consistency.EVENTUAL
        self.find_ledger()
        self.strict = consistency is Consistency.STRICT
        bounded = staleness is not None or bool(self.node.staleness)
        self.careful = self.strict or (self.coherence.mode == "ttl" and bounded)
        if scope.prepared is not None:
            kept = scope.prepared
            gone = {name for name, each in self.statements.items() if name and not each.own and name[:63] not in kept}
            self.forget_statements(frozenset(gone))
        self.refresh()

    def staleness_of(self, entry: Entry) -> int:
        """How old an answer of this class may be in this session, nanoseconds."""
        classes = self.node.staleness
        if not classes:
            return self.max_staleness
        hint = None if self.scope is None else self.scope.workload
        return min(self.max_staleness, classes.get(entry[WORKLOAD] if hint is None else hint.value, self.max_staleness))

    @property
    def early_known(self) -> bool:
        """Does what was learned early still count? Not for long: nothing tells of a reload of settings meanwhile."""
        return bool(self.early[1]) and now_ns() - self.early[1] <= self.coherence.max_staleness_ns

    def parse_ident(self) -> int:
        """What stands for the session as a statement that is parsed now sees it; something unique while that is
        unknown.
        """
        known = self.scope.ident if self.scope is not None else self.early[0] if self.early_known else 0
        return known or self.node.idents.unique()

    def prepared(self, sql: bytes, oids: tuple[int, ...]) -> Prepared:
        """What a Parse that is sent now prepares."""
        scope = self.scope
        meaning = None if scope is None else self.database.analyst.meaning(sql, scope.schemas)
        return Prepared(sql, oids, self.parse_ident(), meaning=meaning, lsn=self.coherence.visible())

    def forget_scope(self) -> None:
        """Something could have changed the session: nothing is served or stored until it is asked again."""
        self.scope = None
        self.inside = False
        self.early = (0, 0)
        self.hot.ident = 0
        self.hot.names.clear()

    def forget_unnamed(self, *, answered_here: bool = False) -> None:
        """A simple Query destroys the unnamed statement and portal, also where upstream does not hear of it."""
        self.hot.kept = b"" if answered_here else None
        if answered_here or self.hot.portal:  # also when upstream fails before it replaces its own
            self.hot.portal = GONE
        self.unsettled = None
        self.unsettled_portal = AS_UPSTREAM
        self.statements.pop(b"", None)
        self.parsing.pop(b"", None)

    def refresh(self) -> None:
        """Recompute whether the hit path may serve this session at all."""
        hot = self.hot
        txn = self.txn
        status = b"T" if txn.local else self.replies.status
        if status == b"I":
            txn.read, txn.hits = False, -1
        elif txn.hits < 0:
            txn.hits = hot.hits
        hot.ready = READY[status]
        hot.in_txn = status != b"I"
        scope = self.scope
        clean = scope is not None and not scope.refusal and not self.careful and not self.open and not self.awaiting
        clean = clean and not self.discarding and status != b"E" and not self.txn.impure and not self.txn.bypass
        hot.ident = scope.ident if clean and scope is not None and self.node.settings.cache.enabled else 0

    def report(self, outcome: Outcome) -> None:
        """Remember what became of a statement, for ``SHOW distribcache.last`` and the counters."""
        self.outcome = outcome
        self.hot.last = None
        totals = self.node.totals
        if outcome.status == "miss":
            totals.misses[outcome.reason or "absent"] += 1
        elif outcome.status == "refused":
            totals.refusals[outcome.reason] += 1
        else:
            totals.bypasses[outcome.reason] += 1

    def effects_of(
        self, sql: bytes, parsed: Parsed, *, pure: bool, analysed: bool, prepared: Prepared | None = None
    ) -> Effects:
        """What a text that goes upstream may do; ``prepared``: as that. ``analysed``: else ``pure`` says nothing."""
        found = effects(sql, parsed, pure=pure, quiet=lambda: self._is_quiet(parsed, prepared))
        if self.inside and any(each.kind in _ENDS for each in parsed.statements):
            found = replace(found, opaque=True)
        definers = self.database.analyst.definers
        if self.coherence.mode != "wal":
            return found
        if definers.may(sql, parsed, found, analysed=analysed):
            return replace(found, ddl=True, code=True)
        unread = not analysed and found.impure and found.opaque
        return replace(found, poll=True) if unread and definers.hidden else found

    def _is_quiet(self, parsed: Parsed, prepared: Prepared | None) -> bool:
        """Is it a write that leaves the session what it is (``catalog.writes``)? A value of a user's type may run code
        when it is bound; the names mean what they mean to a session that is known.
        """
        scope, coherence = self.scope, self.coherence
        if scope is None or scope.refusal or self.opaque or coherence.mode != "wal" or not coherence.serving:
            return False
        writes = self.database.analyst.writes
        if not writes.are_quiet(parsed, scope.schemas):
            return False
        if prepared is None:
            return True
        meaning = writes.meaning(parsed.statements[0], scope.schemas)
        same = prepared.runs_as_written(meaning, self.coherence.words[SCHEMA])
        return same and all(oid < BUILTIN for oid in prepared.oids)

    # ---- what went upstream -----------------------------------------------------------------------------------------

    def apply(self, effects: Effects, kind: Kind | None = None, *, chain: bool = False) -> None:
        """Remember what a statement that goes upstream may do."""
        txn = self.txn
        txn.impure = txn.impure or effects.impure
        if effects.ddl and (not effects.code or not txn.ddl):
            txn.ddl, txn.cause = True, "code" if effects.code else "ddl"
        txn.everywhere = txn.everywhere or effects.everywhere
        txn.poll = txn.poll or effects.poll
        self.opaque = self.opaque or effects.opaque
        if chain or kind is None or effects is UNKNOWN:
            self.ends_transaction = True
        if kind is Kind.SET_TRANSACTION or "transaction_isolation" in effects.settings:
            txn.bypass = "isolation"
        if effects.databases:
            self._databases += effects.databases
            self._leaving = None
        if self.replies.status == b"E":  # a DEALLOCATE fails there, unless it comes behind the end
            self.doubt_statements(effects.forgets)
        else:
            self.forget_statements(effects.forgets)
        for setting in effects.settings:
            self.touched[setting] = None
            if setting == "statement_timeout":
                self.timeout_ms = 1

    def doubt_statements(self, names: frozenset[bytes] | None) -> None:
        """Prepared statements that may be gone: the server says so at their next use. None for all."""
        for name in list(self.statements) if names is None else names:
            if name in self.statements:
                self.statements[name].proved = -1
            self.hot.names.pop(name, None)

    def forget_statements(self, names: frozenset[bytes] | None) -> None:
        """Prepared statements that are gone; None for all."""
        for name in list(self.statements) if names is None else names:
            self.statements.pop(name, None)
            self.hot.names.pop(name, None)

    def sent(self, *, awaiting: bool, synced: bool = False) -> None:
        """Messages of the client went upstream; ``awaiting`` if they end an exchange, ``synced`` if by a Sync.

        They do not behind an error, where the server skips everything up to a Sync, nor does a Sync in the midst of a
        copy.
        """
        self.unsynced = (self.unsynced or self.open) and not synced
        awaiting = awaiting and self.replies.ends
        self.open = not awaiting
        self.awaiting = awaiting
        self.hot.ident = 0

    def _on_ready(self, status: bytes, ours: bool) -> None:
        self.awaiting = bool(self.replies.pending)  # a question of ours may have been sent right behind
        self.unsynced = self.unsynced and status == b"T"
        self.open = self.unsynced
        if status == b"I":
            words = self.coherence.words
            self.outside = words[EPOCH], words[SCHEMA]
        if ours:
            self.refresh()
            return
        txn = self.txn
        keep = not txn.impure and not txn.bypass and not self.begin and status != b"E" and not self.opaque
        if status == b"I" or self.ends_transaction:
            if txn.impure:
                self.coherence.raise_floor(now_ns())
            if txn.everywhere:
                self.node.databases.catalogue_alarm("ddl")
            elif txn.ddl:
                self.coherence.catalogue_alarm(txn.cause)
            elif txn.poll:
                self.coherence.schedule_poll()
        if self.ends_transaction or self.begin is not None:  # maybe another transaction: nothing was read in that
            txn.read, txn.hits = False, -1
        if status == b"I":
            txn.ended()
            self.portals.clear()
        elif self.begin is not None:  # maybe behind the end of another transaction
            txn.bypass = txn.bypass or self.begin
        elif not self.hot.in_txn:
            txn.bypass = txn.bypass or "transaction_unknown"
        if status == b"I":
            self.hot.portal = AS_UPSTREAM
        if self.unsettled is not None:  # an error came before it
            self.hot.kept = self.unsettled
            self.unsettled = None
        if self.unsettled_portal and status != b"I":
            self.hot.portal = self.unsettled_portal
        self.unsettled_portal = AS_UPSTREAM
        self.parsing.clear()
        self.begin = None
        self.ends_transaction = False
        for fill in self.fills:
            if keep:
                self._store(fill)
            self.node.landed(fill)
        self.fills.clear()
        self.budget.left = _HELD * self.node.settings.l1.max_entry
        if self.opaque or (self.inside and status == b"I"):
            self.opaque = False
            self.forget_scope()
        if self._databases:
            self.node.databases.reopen(self._databases)
            self._databases = ()
        self.refresh()

    def drop_fills(self) -> None:
        """End what was to be filled: its replies do not come."""
        for fill in self.fills:
            self.node.landed(fill)
        self.fills.clear()

    def _on_commit(self) -> None:
        """A completion that is relayed before ReadyForQuery acknowledges what was done so far."""
        if self.txn.impure:
            self.coherence.raise_floor(now_ns())
        if self.txn.ddl:
            self.coherence.catalogue_alarm(self.txn.cause)

    def _store(self, fill: Fill) -> None:
        scope = self.scope
        words = self.coherence.words
        if fill.spoiled or not fill.whole or scope is None or fill.epoch != words[EPOCH] or fill.scope != scope.ident:
            return
        now = now_ns()
        analysis = fill.analysis
        payload = fill.payload()
        entry = make_entry(
            payload,
            fill=fill.fill_lsn,
            analysis=min(analysis.analysis_lsn, fill.fill_lsn),
            slots=fill.slots,
            epoch=fill.epoch,
            expires=self.node.clock.now + fill.ttl,
            cost_ns=now - fill.began_ns,
            at_ns=now,
            tables=",".join(analysis.tables),
            workload=analysis.workload.value,
        )
        self.node.keep(fill, entry, self.coherence, rows_in(payload) if fill.place else 0)

    def _on_parameter(self, message: bytes) -> None:
        self.opaque = True  # a reload may have changed more than what is reported
        if not self.awaiting and not self.open:
            self.opaque = False
            self.forget_scope()

    def _on_notification(self) -> None:
        self.hot.notified = now_ns()  # before it is relayed: who hears of a commit must see it
