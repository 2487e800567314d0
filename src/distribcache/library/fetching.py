"""A read of rows through memory: what the proxy does for a session, done for a connection or pool of a driver.

Rules (the numbers are those of the coherence page):
1. Deny by default. Where the analysis refuses, a connection is in a transaction, or a scope is not known, the statement
   goes to PostgreSQL exactly as the driver would send it, with a reason in ``cache.last``.
2. The scope is known before anything is looked up (``scope``), and is part of the key by content.
3. A hit: freshness first (R4), then validity (R1). The floor of a ``strict`` read is its arrival.
4. A fill: slots, then F, then the statement (R2). It is stored if the epoch is the same, the connection is in no
   transaction, and, where others could have used it meanwhile, its scope is the same when it is asked again.
5. Whoever waited for another's fill looks again (coherence trap 10).
6. What is not a proven pure read raises the floor before its result is given back; what may be DDL is an alarm.
"""

from __future__ import annotations

from typing import Any, Final

from distribcache.clock import now_ns
from distribcache.coherence.ledger import FRESH_AT
from distribcache.entry import AT_NS, COST_NS, PAYLOAD, TABLES, WORKLOAD, Entry, make_entry
from distribcache.errors import ClientError, SerializationError
from distribcache.library.askers import Askers
from distribcache.library.bounds import Bounds
from distribcache.library.drivers.base import PassedByError, Question, Result, Session
from distribcache.library.heat import Heat
from distribcache.library.keeper import Keeper
from distribcache.library.outcome import Outcome, Tally, last
from distribcache.library.plan import Plan, Wish, may_be_read, request_of, rows_of, ttl_of, workload_of
from distribcache.library.planning import Planning
from distribcache.library.rows import Row
from distribcache.library.scope import Known, told_apart
from distribcache.library.steps import Steps, Wait
from distribcache.library.values import pack, unpack
from distribcache.library.writing import wrote
from distribcache.query import WorkloadType
from distribcache.store import Place
from distribcache.tiers.base import Key

__all__ = ["Fetching"]

_KIND: Final = "rows"
_TRIES: Final = 4


class Fetching:
    """See the module; one per cache object."""

    def __init__(self, keeper: Keeper, tally: Tally, heat: Heat) -> None:
        self._keeper = keeper
        self._tally = tally
        self._heat = heat
        self._bounds = Bounds(keeper)
        self._planning = Planning(keeper, self._bounds)
        self.askers = Askers(keeper)

    # -- the story

    def rows(self, session: Session, sql: str, args: tuple[Any, ...], wish: Wish) -> Steps[list[Row]]:
        """The rows of one statement."""
        return rows_of((yield from self.read(session, sql, args, wish)))

    def read(self, session: Session, sql: str, args: tuple[Any, ...], wish: Wish) -> Steps[Result]:
        """The result of one statement. Raises PassedByError for a session that sends only what can be kept."""
        arrival = now_ns()
        failed = True
        try:
            question = _question(session, sql, args)
            try:
                result = yield from self._read(session, question, wish, arrival)
            except PassedByError:
                raise
            except Exception as error:
                if session.sent:  # it is PostgreSQL's, or the way to it
                    raise
                self._keeper.failed(error)
                result = yield from self._pass(session, question, Outcome("bypass", reason="internal_error"))
            failed = False
        finally:
            yield session.close(failed=failed)
        return result

    def write(self, session: Session, sql: str, args: tuple[Any, ...]) -> Steps[list[Row]]:
        """A statement that may write, as the driver sends it."""
        failed = True
        try:
            question = _question(session, sql, args)
            result = yield from self._pass(session, question, Outcome("bypass", reason="execute"), analysed=True)
            failed = False
        finally:
            yield session.close(failed=failed)
        return rows_of(result)

    def _read(self, session: Session, question: Question, wish: Wish, arrival: int) -> Steps[Result]:
        keeper = self._keeper
        keeper.reads += 1
        request, reason = self._may(session, question)
        if reason:
            return (yield from self._pass(session, question, Outcome("bypass", reason=reason)))
        joined = waited = False
        for _ in range(_TRIES):
            known, asked = yield from self.askers.known(session)
            if isinstance(known, str):
                return (yield from self._pass(session, question, Outcome("bypass", reason=known)))
            key, shared = self._key(session, question, known, request)
            floor = self._bounds.floor(known, wish, arrival)
            fresh = keeper.fresh(floor)
            entry = keeper.find(key)
            if entry is not None and fresh and self._bounds.young(key, entry, known, wish):
                served = self._serve(session, question, key, entry)
                if served is not None:
                    return served
                differ = Outcome("bypass", "", "adapters_differ", None, entry[TABLES], entry[WORKLOAD])
                return (yield from self._pass(session, question, differ, pure=True))
            if entry is not None and not fresh and not waited:
                waited = True
                yield from keeper.wait_fresh(floor)
                continue
            under_way = keeper.flights.join(key)
            if under_way is not None and not joined:
                joined = True
                if session.pool is not None:
                    yield session.close(failed=False)  # whoever leads may need it
                yield Wait(under_way.done, keeper.settings.cache.single_flight_wait)
                continue
            flight = keeper.flights.lead(key)
            try:
                if not asked:
                    now_known = yield from self.askers.ask(session, filling=bool(question.args))
                    if isinstance(now_known, str):
                        return (yield from self._pass(session, question, Outcome("bypass", reason=now_known)))
                    if told_apart(now_known, known):
                        continue  # the catalogue has moved meanwhile, and with it what they all are
                plan = yield from self._planning.plan(session, question, key, known, wish, floor, shared=shared)
                if plan.missing:
                    self.askers.tell_by(plan.missing)
                    continue
                if plan.entry is not None:
                    served = self._serve(session, question, key, plan.entry, plan.tier)
                    if served is not None:
                        return served
                    continue
                if plan.reason:
                    if flight is not None:
                        keeper.land(key, flight)  # nobody has anything to wait for
                    return (yield from self._refuse(session, question, plan, known, wish))
                why = "not_fresh" if waited and entry is not None else ""
                return (yield from self._fill(session, question, key, plan, known, wish, why))
            finally:
                if flight is not None:
                    keeper.land(key, flight)
        return (yield from self._pass(session, question, Outcome("bypass", reason="scope_unsettled")))

    def _may(self, session: Session, question: Question) -> tuple[bytes, str]:
        """The statement as part of a key; or why nothing more needs to be asked about it."""
        keeper = self._keeper
        reason = keeper.why_not() or session.why_not()
        reason = reason or ("" if may_be_read(question.text) else "not_a_read")
        return (b"", reason) if reason else request_of(question)

    def _refuse(
        self, session: Session, question: Question, plan: Plan, known: Known, wish: Wish
    ) -> Steps[Result]:
        analysis = plan.analysis
        if analysis is None:
            return (yield from self._pass(session, question, Outcome("bypass", reason=plan.reason)))
        status = "refused" if plan.refused else "bypass"
        workload = workload_of(analysis, known, wish)
        outcome = Outcome(status, "", plan.reason, None, ",".join(analysis.tables), workload.value)
        pure = analysis.pure and not analysis.meaning.doubtful
        return (yield from self._pass(session, question, outcome, pure=pure, analysed=not analysis.pure))

    def _fill(
        self, session: Session, question: Question, key: Key, plan: Plan, known: Known, wish: Wish, why: str
    ) -> Steps[Result]:
        """Ask PostgreSQL and keep the answer."""
        keeper, analysis = self._keeper, plan.analysis
        assert analysis is not None
        workload = workload_of(analysis, known, wish)
        outcome = Outcome("miss", "", why, None, ",".join(analysis.tables), workload.value)
        self._tally.count(outcome)
        self._heat.note((None, outcome.tables, question.text, outcome.workload))
        began = now_ns()
        session.sent = True
        try:
            # The driver may hold it prepared from a time when its names meant something else.
            anew = not analysis.meaning.sure
            result: Result = yield session.run(question, alone=True, anew=anew)
            try:
                yield from self._store(session, key, result, plan, known, wish, outcome, (began, now_ns()))
            except Exception as error:  # noqa: BLE001 - the answer is there
                keeper.failed(error)
        finally:
            if plan.place is not None:
                keeper.soon(keeper.store.landed, plan.place)
        return result

    def _store(
        self, session: Session, key: Key, result: Result, plan: Plan, known: Known, wish: Wish, outcome: Outcome,
        times: tuple[int, int],
    ) -> Steps[None]:  # fmt: skip
        """Keep an answer, if it may be kept."""
        keeper, analysis = self._keeper, plan.analysis
        assert analysis is not None
        began, ended = times
        same = not session.why_not()
        if same and session.pool is None:  # others may hold this connection too
            after = yield from self.askers.ask(session)
            same = not isinstance(after, str) and not told_apart(after, known)
        if not same:
            self._tally.fills["scope_changed"] += 1
            return
        try:
            rows = [list(row) for row in result.rows]
            payload = pack([list(result.columns), rows, result.marks, list(result.oids)])
        except SerializationError:
            self._tally.fills["unknown_type"] += 1
            last.set(outcome._replace(reason="unknown_type"))
            return
        ttl = ttl_of(keeper.settings, WorkloadType(outcome.workload), wish)
        entry = make_entry(
            payload, fill=plan.fill, analysis=min(analysis.analysis_lsn, plan.fill), slots=plan.slots,
            epoch=plan.epoch, expires=keeper.clock.now + ttl, cost_ns=ended - began, at_ns=ended,
            tables=outcome.tables, workload=outcome.workload,
        )  # fmt: skip
        keeper.soon(self._keep, key, entry, plan.place, began, ttl, len(rows))

    def _keep(self, key: Key, entry: Entry, place: Place | None, began_ns: int, ttl: float, rows: int) -> None:
        self._tally.fills[self._keeper.put(key, entry, place, began_ns=began_ns, ttl=ttl, rows=rows)] += 1

    # -- hits

    def _key(self, session: Session, question: Question, known: Known, request: bytes) -> tuple[Key, bool]:
        representation, shared = session.representation(question.args)
        return (_KIND, known.scope.ident, known.server, representation, request), shared

    def _serve(
        self, session: Session, question: Question, key: Key, entry: Entry, tier: str = "L1"
    ) -> Result | None:
        """What a hit holds; None when this connection reads types in another way."""
        result = Result(*unpack(entry[PAYLOAD]))
        if not session.fits(result.marks):
            return None
        keeper, tally = self._keeper, self._tally
        keeper.touch(key, entry)
        tally.hits += 1
        tally.saved_ns += entry[COST_NS]
        self._heat.note((entry, key, question.text))
        age = now_ns() - (entry[AT_NS] if keeper.coherence.mode == "ttl" else keeper.coherence.head[FRESH_AT])
        last.set(Outcome("hit", tier, "", age / 1e6, entry[TABLES], entry[WORKLOAD]))
        return result

    # -- by the way of PostgreSQL

    def _pass(
        self, session: Session, question: Question, outcome: Outcome, *, pure: bool = False, analysed: bool = False
    ) -> Steps[Result]:
        """As the driver would do it. What is no proven pure read is told of before its result is given back.

        ``analysed``: it is known not to be one.
        """
        self._tally.count(outcome)
        if not session.passes:
            raise PassedByError(pure=pure, analysed=analysed)
        failed = True
        session.sent = True
        try:
            yield session.open()
            result: Result = yield session.run(question, alone=pure and session.pool is not None)
            failed = False
        finally:
            if not pure:
                yield session.close(failed=failed)  # a pool's connection commits here
                yield from wrote(self._keeper, question.text, analysed=analysed)
        return result


def _question(session: Session, sql: object, args: tuple[Any, ...]) -> Question:
    if not isinstance(sql, str):
        raise ClientError(
            f"the text of a statement is a str, not {type(sql).__qualname__}", where="fetch",
            hint="write query.as_string() for what psycopg.sql composes, query.decode() for bytes",
        )  # fmt: skip
    return session.question(sql, args)
