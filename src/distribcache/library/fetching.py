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

import asyncio
import weakref
from collections import OrderedDict
from typing import Any, Final

from distribcache.catalog.statement import Analysis
from distribcache.clock import now_ns
from distribcache.coherence.epoch import digest
from distribcache.coherence.ledger import EPOCH, FRESH_AT, SCHEMA
from distribcache.coherence.tags import slots_of
from distribcache.entry import AT_NS, COST_NS, PAYLOAD, TABLES, WORKLOAD, Entry, make_entry
from distribcache.errors import SerializationError
from distribcache.library.drivers.base import PassedByError, Question, Result, Session, named_once
from distribcache.library.examine import Examiner
from distribcache.library.heat import Heat
from distribcache.library.keeper import Keeper
from distribcache.library.outcome import Outcome, Tally, last
from distribcache.library.plan import Plan, Wish, may_be_read, request_of, rows_of, told_apart, workload_of
from distribcache.library.rows import Row
from distribcache.library.scope import Known, Proof, Scopes, Standing
from distribcache.library.steps import Steps, Wait
from distribcache.library.values import pack, unpack
from distribcache.query import Consistency, WorkloadType
from distribcache.sql.effects import UNKNOWN, effects
from distribcache.store import Place
from distribcache.tiers.base import Key
from distribcache.tiers.outcomes import Large

__all__ = ["Fetching"]

_KIND: Final = "rows"
_MOST_POOLS: Final = 256
_MOST_EXTRA: Final = 64
_TRIES: Final = 4
_PATIENCE_S: Final = 1.0


class Fetching:
    """See the module; one per cache object."""

    def __init__(self, keeper: Keeper, tally: Tally, heat: Heat) -> None:
        self._keeper = keeper
        self._tally = tally
        self._heat = heat
        self._bounds = keeper.settings.staleness.bounds
        self._scopes = Scopes()
        self._examiner = Examiner()
        self._pools: OrderedDict[str, Standing] = OrderedDict()
        self._proofs: weakref.WeakKeyDictionary[Any, Proof] = weakref.WeakKeyDictionary()
        self._extra: tuple[str, ...] = ()
        """Settings that policies were seen to read: part of every scope from then on."""

    def pools(self) -> dict[str, str]:
        """Pools that are passed by, and why."""
        return {name: "pool_differs" for name, standing in self._pools.items() if standing.differs}

    # -- the story

    def rows(self, session: Session, sql: str, args: tuple[Any, ...], wish: Wish) -> Steps[list[Row]]:
        """The rows of one statement."""
        return rows_of((yield from self.read(session, sql, args, wish)))

    def read(self, session: Session, sql: str, args: tuple[Any, ...], wish: Wish) -> Steps[Result]:
        """The result of one statement. Raises PassedByError for a session that sends only what can be kept."""
        arrival = now_ns()
        failed = True
        try:
            question = session.question(sql, args)
            try:
                result = yield from self._read(session, question, wish, arrival)
            except PassedByError:
                raise
            except Exception as error:
                if session.sent:  # it is PostgreSQL's, or the way to it
                    raise
                self._keeper.failures[type(error).__name__] += 1
                result = yield from self._pass(session, question, Outcome("bypass", reason="internal_error"))
            failed = False
        finally:
            yield session.close(failed=failed)
        return result

    def write(self, session: Session, sql: str, args: tuple[Any, ...]) -> Steps[list[Row]]:
        """A statement that may write, as the driver sends it."""
        failed = True
        try:
            question = session.question(sql, args)
            result = yield from self._pass(session, question, Outcome("bypass", reason="execute"))
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
            known, asked = yield from self._known(session)
            if isinstance(known, str):
                return (yield from self._pass(session, question, Outcome("bypass", reason=known)))
            key, shared = self._key(session, question, known, request)
            floor = self._floor(known, wish, arrival)
            fresh = keeper.fresh(floor)
            entry = keeper.find(key)
            if entry is not None and fresh and self._young(key, entry, known, wish):
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
                    now_known = yield from self._ask(session, filling=bool(question.args))
                    if isinstance(now_known, str):
                        return (yield from self._pass(session, question, Outcome("bypass", reason=now_known)))
                    if told_apart(now_known, known):
                        continue  # the catalogue has moved meanwhile, and with it what they all are
                plan = yield from self._planned(session, question, key, known, wish, floor, shared=shared)
                if plan.missing:
                    self._extra = tuple(sorted({*self._extra, *plan.missing}))[:_MOST_EXTRA]
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

    def _known(self, session: Session) -> Steps[tuple[Known | str, bool]]:
        """The scope, or a reason; and whether the very connection was asked that will be used."""
        if session.pool is None:
            return (yield from self._ask(session)), True
        standing = self._standing(session.pool)
        if standing.differs:
            return "pool_differs", False
        coherence = self._keeper.coherence
        longest = int(self._keeper.settings.freshness.max_staleness * 1e9)
        believed = standing.believed(self._extra, coherence.words, longest) if session.uniform else None
        if believed is not None:
            return believed, False
        return (yield from self._ask(session)), True

    def _ask(self, session: Session, *, filling: bool = False) -> Steps[Known | str]:
        """Ask the connection that will be used."""
        coherence, extra = self._keeper.coherence, self._extra
        session.sent = True
        yield session.open()
        session.sent = False
        why = session.why_not()
        if why:
            return why
        asked_under = (coherence.words[EPOCH], coherence.words[SCHEMA])
        try:
            proof = self._proofs.get(session.body)
            answer = yield session.ask(self._scopes.question(extra, prove=proof is None), probe=filling)
        except Exception as error:  # noqa: BLE001 - if the connection is broken, the statement will say so
            self._keeper.failures[type(error).__name__] += 1
            return "scope_query_failed"
        known = self._scopes.read(answer, session.pid, coherence, extra, asked_under, proof)
        if isinstance(known, Known):
            self._proofs[session.body] = known.proof
        else:
            self._proofs.pop(session.body, None)
        if not session.passes and isinstance(known, Known) and not known.scope.read_committed:
            return "isolation"  # the statements around this one are to see what it sees
        if session.pool is not None and session.uniform:
            standing = self._standing(session.pool)
            if isinstance(known, str):
                standing.refuse(known)
            elif not standing.learn(known, extra):
                return "pool_differs"
        return known

    def _refuse(
        self, session: Session, question: Question, plan: Plan, known: Known, wish: Wish
    ) -> Steps[Result]:
        analysis = plan.analysis
        if analysis is None:
            return (yield from self._pass(session, question, Outcome("bypass", reason=plan.reason)))
        status = "refused" if plan.refused else "bypass"
        workload = workload_of(analysis, known, wish)
        outcome = Outcome(status, "", plan.reason, None, ",".join(analysis.tables), workload.value)
        return (yield from self._pass(session, question, outcome, pure=analysis.pure))

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
            result: Result = yield session.run(question, alone=True)
            try:
                yield from self._store(session, key, result, plan, known, wish, outcome, (began, now_ns()))
            except Exception as error:  # noqa: BLE001 - the answer is there
                keeper.failures[type(error).__name__] += 1
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
            after = yield from self._ask(session)
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
        ttl = self._ttl(WorkloadType(outcome.workload), wish)
        entry = make_entry(
            payload, fill=plan.fill, analysis=min(analysis.analysis_lsn, plan.fill), slots=plan.slots,
            epoch=plan.epoch, expires=keeper.clock.now + ttl, cost_ns=ended - began, at_ns=ended,
            tables=outcome.tables, workload=outcome.workload,
        )  # fmt: skip
        keeper.soon(self._keep, key, entry, plan.place, began, ttl, len(rows))

    def _ttl(self, workload: WorkloadType, wish: Wish) -> float:
        return wish.ttl if wish.ttl is not None else self._keeper.settings.ttl.of(workload)

    def _keep(self, key: Key, entry: Entry, place: Place | None, began_ns: int, ttl: float, rows: int) -> None:
        self._tally.fills[self._keeper.put(key, entry, place, began_ns=began_ns, ttl=ttl, rows=rows)] += 1

    def _planned(
        self, session: Session, question: Question, key: Key, known: Known, wish: Wish, floor: int, *, shared: bool
    ) -> Steps[Plan]:
        keeper = self._keeper
        if question.args:
            yield session.probe()
        examined: Analysis | None = None
        if not keeper.coherence.name:
            examined = yield from self._examiner.examine(session, question.text, known)
        work = self._plan(session, question, key, known, wish, floor, examined, shared=shared)
        return (yield from keeper.ask(work, Plan("internal_error")))

    async def _plan(
        self, session: Session, question: Question, key: Key, known: Known, wish: Wish, floor: int,
        examined: Analysis | None, *, shared: bool,
    ) -> Plan:  # fmt: skip
        """On the keeper's loop. Everything that must come before the statement is sent comes here."""
        keeper = self._keeper
        coherence, analyst, text = keeper.coherence, keeper.analyst, question.text.encode()
        entry = keeper.find(key)  # here, on its loop, the ledger stands still
        if entry is not None and keeper.fresh(floor) and self._young(key, entry, known, wish):
            return Plan(entry=entry)
        analysis = examined
        if analysis is None:
            await analyst.read_long(text)
            try:
                analysis = await asyncio.wait_for(analyst.analyse(text, known.scope.schemas), _PATIENCE_S)
            except TimeoutError:
                return Plan("analysis_unsettled")
        if analysis.refusal is not None:
            return Plan(analysis.refusal.code, refused=True, analysis=analysis)
        if analysis.nocache:
            return Plan("nocache", refused=True, analysis=analysis)
        if not analysis.settings <= known.scope.settings:
            return Plan(missing=analysis.settings)
        place = None
        if shared:
            workload = workload_of(analysis, known, wish)
            identity = digest(_KIND.encode(), known.identity, str(key[3]).encode()) if known.identity else b""
            place = keeper.store.place(
                coherence, identity, key[-1], workload=workload.value, ttl=self._ttl(workload, wish)
            )
            if place is not None:
                near = keeper.store.rise_near(key, place, coherence)
                large = isinstance(near, Large)
                tier, risen = "L2", None if isinstance(near, Large) else keeper.rise(key, near)
                if risen is None:
                    far = await keeper.store.rise_far(key, place, coherence, large=large)
                    tier, risen = "L3", keeper.rise(key, far)
                if risen is None and keeper.store.dear(key, place):
                    seconds = keeper.settings.cache.single_flight_wait
                    risen = keeper.rise(key, await keeper.store.lead(key, place, coherence, seconds))
                if risen is not None and keeper.fresh(floor) and self._young(key, risen, known, wish):
                    return Plan(entry=risen, tier=tier)
        slots = slots_of(coherence, analysis, text, session.bound(question))
        point = coherence.fill_point()
        if point is None:
            if place is not None:
                keeper.store.landed(place)
            return Plan(coherence.reason or "no_fill_point", analysis=analysis)
        return Plan(analysis=analysis, slots=slots, fill=point, epoch=coherence.epoch, place=place)

    # -- hits

    def _key(self, session: Session, question: Question, known: Known, request: bytes) -> tuple[Key, bool]:
        representation, shared = session.representation(question.args)
        return (_KIND, known.scope.ident, known.server, representation, request), shared

    def _floor(self, known: Known, wish: Wish, arrival: int) -> int:
        bounds = [each for each in (wish.max_staleness_ns, known.scope.max_staleness_ns) if each is not None]
        return self._keeper.floor(wish.consistency or known.scope.consistency, arrival, min(bounds, default=None))

    def _young(self, key: Key, entry: Entry, known: Known, wish: Wish) -> bool:
        """Bounds of a class of statements; and, where only time ends entries, all bounds."""
        keeper = self._keeper
        now = now_ns()
        if wish.ttl is not None and now - entry[AT_NS] > wish.ttl * 1e9:
            return False
        own = [each for each in (wish.max_staleness_ns, known.scope.max_staleness_ns) if each is not None]
        bound = self._bounds.get(entry[WORKLOAD])
        if keeper.coherence.mode == "ttl":
            consistency = wish.consistency or known.scope.consistency or keeper.settings.freshness.consistency
            if consistency is Consistency.STRICT:
                return False
            own += [] if bound is None else [int(bound * 1e9)]
            return now - (entry[AT_NS] - entry[COST_NS]) <= min(own, default=1 << 63)
        # Freshness first, then validity, here as well: the ledger moves while this thread looks.
        return bound is None or (keeper.fresh(now - int(bound * 1e9)) and keeper.find(key) is entry)

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
        self, session: Session, question: Question, outcome: Outcome, *, pure: bool = False
    ) -> Steps[Result]:
        """As the driver would do it. What is no proven pure read is told of before its result is given back."""
        self._tally.count(outcome)
        if not session.passes:
            raise PassedByError(pure=pure)
        failed = True
        session.sent = True
        try:
            yield session.open()
            result: Result = yield session.run(question, alone=pure and session.pool is not None)
            failed = False
        finally:
            if not pure:
                yield session.close(failed=failed)  # a pool's connection commits here
                yield from self.wrote(question.text)
        return result

    def wrote(self, text: str = "") -> Steps[None]:
        """A statement that may have written has ended; without its text it is one that changed rows only."""
        keeper = self._keeper
        keeper.raise_floor()
        if text and keeper.running and keeper.coherence.name:
            yield from keeper.ask(self._conclude(text.encode()), None)

    async def _conclude(self, text: bytes) -> None:
        keeper = self._keeper
        await keeper.analyst.read_long(text)
        parsed = keeper.analyst.parsed(text)
        effect = UNKNOWN if parsed.error else effects(text, parsed, pure=False)
        if effect.ddl or effect.everywhere:
            keeper.coherence.catalogue_alarm("ddl")
        elif effect.poll:
            keeper.coherence.schedule_poll()

    def _standing(self, pool: Any) -> Standing:
        name = named_once(pool)
        standing = self._pools.get(name)
        if standing is None:
            standing = self._pools[name] = Standing()
            if len(self._pools) > _MOST_POOLS:
                self._pools.popitem(last=False)
        return standing
