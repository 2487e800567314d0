"""Asking again what was answered from memory: a sample of hits, on the client's own idle upstream connection.

Theory. The hit path knows nothing of this. From time to time the node counts the hits that its sessions had and *arms*
some sessions; the next hit of an armed session is remembered as it was served (``coherence.auditor``) and asked again
behind its answer. A different answer is judged later, when the ledger is complete up to the moment at which it came;
the client does not wait for that.

Rules of the road, which ``again`` keeps (as for all work of ours on a client's connection, coherence trap 15):
1. Only when upstream is idle, nothing is outstanding and the client has sent nothing more; in the extended protocol
   under reserved names. The client's next message waits for our ReadyForQuery.
2. The question cannot make the client wait for long: it may wait 50 ms for a lock, and run a few times as long as its
   fill took; both are set for its own transaction only. A statement whose fill took longer than ``audit.max_cost`` is
   not asked again. A cancel that the client sends meanwhile ends the client's waiting message too (``Session``).
3. The second answer takes no more memory than the first.
4. What is logged names tables and the fingerprint of the statement's template, never a literal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64_hexdigest

from distribcache.clock import now_ns
from distribcache.coherence.auditor import Cause, Finding, Sampler, Served, Tally, Verdict, judge
from distribcache.coherence.ledger import W
from distribcache.coherence.lsn import format_lsn
from distribcache.entry import COST_NS, FILL, TABLES, Entry
from distribcache.proxy.again import Hit, ask, last_unit, messages_of
from distribcache.proxy.campaign import Campaign
from distribcache.proxy.compare import Answer, compare
from distribcache.proxy.group import Run, cut
from distribcache.sql.fingerprint import template
from distribcache.wire.messages import Front

if TYPE_CHECKING:
    from distribcache.coherence.database import Coherence
    from distribcache.proxy.node import Node
    from distribcache.proxy.session import Session
    from distribcache.tiers.hot import HotCache

__all__ = ["ALWAYS", "Audits"]

ALWAYS: Final = 1 << 60
"""How many hits of a session are audited while somebody has asked for all of them."""

_MOST_JUDGED = 1000
"""Different answers that wait for their verdict at a time."""
_PATIENCE_S = 10.0
_GLANCE_S = 0.05


class Audits:
    """Sampling, asking and judging of one node."""

    def __init__(self, share: float, max_cost_s: float, log: Callable[[str], None] = lambda _: None) -> None:
        self.tally = Tally()
        self.skipped = 0
        """Hits that were due and took too long to be asked again."""
        self.pending = 0
        """Different answers that are not judged yet."""
        self.campaign: Campaign | None = None
        self._max_cost_ns = int(max_cost_s * 1e9)
        self._log = log
        self._sampler = Sampler(share)
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- which hits -------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> Campaign | None:
        return self.campaign if self.campaign is not None and self.campaign.running else None

    @property
    def arming(self) -> int:
        """For a session that begins."""
        return 0 if self._all is None else ALWAYS

    def begin(self, node: Node, seconds: float, max_cost_s: float) -> Campaign:
        """Audit all hits for a while, instead of a share of them."""
        until_ns = now_ns() + int(seconds * 1e9)
        self.campaign = Campaign(until_ns, int(max_cost_s * 1e9), node.hits(), Tally())
        for session in node.live:
            session.armed = ALWAYS
        return self.campaign

    def end(self, node: Node) -> None:
        """End what ``begin`` began, before its time."""
        if self._all is not None:
            self._all.until_ns = 0
            self.look(node)

    def look(self, node: Node) -> None:
        """From time to time: end what was asked for when its time is over."""
        campaign = self._all
        if campaign is None:
            return
        campaign.hits = node.hits() - campaign.before
        if now_ns() >= campaign.until_ns:
            campaign.running = False
            for session in node.live:
                session.armed = 0

    def count(self, s: Session, hits: int) -> None:
        """A session had so many hits since the last look."""
        due = self._sampler.due(hits)
        if due and s.armed < ALWAYS:
            s.armed = min(s.armed + due, hits)

    def hit(self, s: Session, unit: bytes) -> None:
        """The hit path has just answered all of ``unit``, or units: ask the last one again, if that is possible now."""
        entry = s.hot.last
        if entry is None or not s.idle:
            return
        try:
            unit = last_unit(unit)
            kind = unit[0]
            key = (s.hot.ident, unit if kind == Front.QUERY else unit[:-5])
            if kind == Front.BIND:
                start = unit.find(0, 6) + 1
                key = (s.hot.names[unit[6 : start - 1]][0], unit[start:-5])
            hit = self._hit(s, key, entry, unit if kind == Front.QUERY else unit[:-5])
            if hit is not None:
                ask(s, hit, self._comparing(s, hit))
        except Exception as error:  # noqa: BLE001 - the client has its answer: an audit is never an error of its own
            s.armed = 0
            s.node.failed(error)

    def answered(self, s: Session, key: tuple[int, bytes], entry: Entry, asked: bytes) -> None:
        """The slower path is about to answer ``asked`` (a Query, or a run): remember it for ``behind``."""
        try:
            s.audited = self._hit(s, key, entry, asked)
        except Exception as error:  # noqa: BLE001 - see above
            s.armed = 0
            s.node.failed(error)

    def behind(self, s: Session) -> None:
        """The slower path is through with what the client has sent."""
        hit, s.audited = s.audited, None
        if hit is not None and s.idle:
            ask(s, hit, self._comparing(s, hit))

    def _hit(self, s: Session, key: tuple[int, bytes], entry: Entry, asked: bytes) -> Hit | None:
        """None when it is not a statement by itself, or took too long."""
        campaign = self._all
        oids: tuple[int, ...] = ()
        name, bound, limit = b"", b"\0\0\0\0\0\0", 0
        if asked[0] == Front.QUERY:
            sql = asked[5:-1]
        else:
            items = cut(messages_of(asked))
            run = items[0]
            if len(items) != 1 or not isinstance(run, Run):
                return None
            name, bound, limit = run.bind.name, asked[run.bind.tail : run.bind.end], run.execute.limit
            if run.parse is not None:
                sql, oids = run.parse.sql, run.parse.oids
            elif name in s.statements and name:
                sql = s.statements[name].sql
            else:
                return None
        if entry[COST_NS] > (self._max_cost_ns if campaign is None else campaign.max_cost_ns):
            self.skipped += 1
            if campaign is None:
                s.armed -= 1
            else:
                campaign.skipped += 1
            return None
        hot = s.hot
        floor = s.floor()
        served = Served.now(
            entry, hot.words, hot.head, at_ns=now_ns(), age_ns=hot.age_ns, bound_ns=s.staleness_of(entry),
            floor_ns=max(floor, s.arrival) if s.strict else floor, ttl=s.coherence.mode == "ttl",
        )  # fmt: skip
        return Hit(key, served, name, sql, oids, bound, limit, campaign)

    # ---- judging ----------------------------------------------------------------------------------------------------

    def _comparing(self, s: Session, hit: Hit) -> Callable[[Answer, Answer], None]:
        def answered(first: Answer, second: Answer) -> None:
            try:
                self._compare(s, hit, first, second)
            except Exception as error:  # noqa: BLE001 - see above
                s.node.failed(error)

        return answered

    def _compare(self, s: Session, hit: Hit, first: Answer, second: Answer) -> None:
        age = hit.served.age_ns
        if second.says_nothing:
            self._found(hit, Finding(Verdict.UNDECIDED, Cause.FAILED, age))
            return
        comparison = compare(hit.sql, first, second)
        if comparison.same:
            self._found(hit, Finding(Verdict.SAME, age_ns=age))
            return
        if self.pending >= _MOST_JUDGED:
            self._found(hit, Finding(Verdict.UNDECIDED, Cause.TOO_MANY, age))
            return
        work = self._judge(s.coherence, s.node.l1, hit, now_ns(), determined=comparison.determined)
        self._later(hit, work)

    async def _judge(self, coherence: Coherence, l1: HotCache, hit: Hit, answered_at: int, *, determined: bool) -> None:
        """The verdict on an answer that differs from a later one; see ``coherence.auditor``."""
        served, words, head = hit.served, coherence.words, coherence.head
        finding: Finding | None = Finding(Verdict.UNDECIDED, Cause.NOT_FRESH, served.age_ns)
        if await coherence.wait_fresh(answered_at, _PATIENCE_S):
            finding = judge(served, words)
        if finding is None and not determined:
            finding = Finding(Verdict.UNDECIDED, Cause.NOT_DETERMINED, served.age_ns)
        if finding is None:  # valid by the ledger; is it a change of the catalogue that nobody has seen yet?
            finding = Finding(Verdict.UNDECIDED, Cause.NOT_FRESH, served.age_ns)
            coherence.schedule_poll()
            deadline = now_ns() + int(_PATIENCE_S * 1e9)
            while coherence.looked_at <= answered_at and now_ns() < deadline:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(_GLANCE_S)
            if coherence.looked_at > answered_at and await coherence.wait_fresh(now_ns(), _PATIENCE_S):
                finding = judge(served, words) or Finding(Verdict.STALE, Cause.MISSED, served.age_ns)
        if l1.entries.get(hit.key) is served.entry:
            l1.discard(hit.key)
        self._found(hit, finding)
        if finding.verdict is Verdict.STALE:
            self._accuse(hit, finding, head[W])

    def _found(self, hit: Hit, finding: Finding) -> None:
        self.tally.add(finding)
        if hit.campaign is not None:
            hit.campaign.tally.add(finding)

    def _accuse(self, hit: Hit, finding: Finding, applied: int) -> None:
        served, entry = hit.served, hit.served.entry
        name = xxh3_64_hexdigest(template(hit.sql.decode("utf-8", "replace")).encode())
        self._log(
            f"stale answer ({finding.cause.value}) to statement {name} of {entry[TABLES]}: filled at "
            f"{format_lsn(entry[FILL])}, served at {format_lsn(served.watermark)} as at most "
            f"{finding.age_ns / 1e6:.1f} ms old, found out at {format_lsn(applied)}"
        )

    def _later(self, hit: Hit, work: Coroutine[Any, Any, None]) -> None:
        def judged(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self.pending -= 1
            if hit.campaign is not None:
                hit.campaign.pending -= 1
            if task.cancelled() or task.exception() is not None:
                self._found(hit, Finding(Verdict.UNDECIDED, Cause.FAILED, hit.served.age_ns))

        self.pending += 1
        if hit.campaign is not None:
            hit.campaign.pending += 1
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(judged)
