"""Asking again what was answered from memory: a sample of hits, on the client's own idle upstream connection.

Theory. The hit path knows nothing of this. From time to time the node counts the hits that its sessions had and *arms*
some sessions; the next hit of an armed session is remembered as it was served (``coherence.auditor``) and asked again
behind its answer. A different answer is judged later, when the ledger is complete up to the moment at which it came;
the client does not wait for that.

Rules of the road (as for all work of ours on a client's connection, coherence trap 15):
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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_64_hexdigest

from distribcache.clock import now_ns
from distribcache.coherence.auditor import Cause, Finding, Sampler, Served, Tally, Verdict, judge
from distribcache.coherence.ledger import W
from distribcache.coherence.lsn import format_lsn
from distribcache.entry import COST_NS, FILL, PAYLOAD, TABLES, Entry
from distribcache.proxy.campaign import Campaign
from distribcache.proxy.compare import Answer, compare, read_answer
from distribcache.proxy.group import Message, Run, cut, parse_message
from distribcache.proxy.replies import Op
from distribcache.sql.fingerprint import template
from distribcache.wire.messages import SYNC, Front, bind, close, describe, execute, message, parse

if TYPE_CHECKING:
    from distribcache.coherence.database import Coherence
    from distribcache.proxy.node import Node
    from distribcache.proxy.session import Session
    from distribcache.tiers.hot import HotCache

__all__ = ["ALWAYS", "Audits", "Hit"]

ALWAYS: Final = 1 << 60
"""How many hits of a session are audited while somebody has asked for all of them."""

_BOUNDS = b"distribcache bounds"
_AGAIN = b"distribcache audit"
_LOCK_MS = 50
_LEAST_MS = 100
_TIMES = 4
_MOST_JUDGED = 1000
"""Different answers that wait for their verdict at a time."""
_PATIENCE_S = 10.0
_GLANCE_S = 0.05
_ERROR = ord("E")


@dataclass(frozen=True, slots=True)
class Hit:
    """One hit to be asked again. ``limit``: of the client's Execute; ``bound``: the Bind behind its two names.

    ``name``: the client's own prepared statement; none: ``sql`` is prepared again.
    """

    key: tuple[int, bytes]
    served: Served
    name: bytes
    sql: bytes
    oids: tuple[int, ...]
    bound: bytes
    limit: int
    campaign: Campaign | None


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
            unit = _last_unit(unit)
            kind = unit[0]
            key = (s.hot.ident, unit if kind == Front.QUERY else unit[:-5])
            if kind == Front.BIND:
                start = unit.find(0, 6) + 1
                key = (s.hot.names[unit[6 : start - 1]][0], unit[start:-5])
            hit = self._hit(s, key, entry, unit if kind == Front.QUERY else unit[:-5])
            if hit is not None:
                self._ask(s, hit)
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
            self._ask(s, hit)

    def _hit(self, s: Session, key: tuple[int, bytes], entry: Entry, asked: bytes) -> Hit | None:
        """None when it is not a statement by itself, or took too long."""
        campaign = self._all
        oids: tuple[int, ...] = ()
        name, bound, limit = b"", b"\0\0\0\0\0\0", 0
        if asked[0] == Front.QUERY:
            sql = asked[5:-1]
        else:
            items = cut(_messages(asked))
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

    # ---- asking -----------------------------------------------------------------------------------------------------

    def _ask(self, s: Session, hit: Hit) -> None:
        entry = hit.served.entry
        first = read_answer(entry[PAYLOAD])
        second = Answer()

        def noted(kind: int, message: bytes) -> None:
            if kind == _ERROR:
                second.error = _sqlstate(message)

        def described(kind: int, message: bytes) -> None:
            second.description = message
            noted(kind, message)

        def executed(kind: int, message: bytes) -> None:
            second.end = message
            noted(kind, message)

        def done(kind: int, message: bytes) -> None:
            s.asked = False
            try:
                self._compare(s, hit, first, second)
            except Exception as error:  # noqa: BLE001 - see above
                s.node.failed(error)

        statement = hit.name or _AGAIN
        closing = close(b"S", _BOUNDS) + close(b"S", _AGAIN)  # first, because a question may have failed before its end
        question = (
            closing
            + parse(_BOUNDS, _bounds(s, entry)) + bind(_BOUNDS, _BOUNDS) + execute(_BOUNDS)
            + (b"" if hit.name else parse(_AGAIN, hit.sql, hit.oids))
            + message(Front.BIND, _AGAIN, b"\0", statement, b"\0", hit.bound)
            + describe(b"P", _AGAIN)
            + execute(_AGAIN, hit.limit or len(first.rows) + 1)
            + closing
            + SYNC
        )  # fmt: skip
        for each in _messages(question):
            if each.kind == Front.DESCRIBE:
                op = Op(each.kind, ours=True, done=described)
            elif each.kind == Front.EXECUTE and each.name == _AGAIN:
                op = Op(each.kind, ours=True, rows=second.rows, room=len(entry[PAYLOAD]), done=executed)
            else:
                op = Op(each.kind, ours=True, done=done if each.kind == Front.SYNC else noted)
            s.replies.expect(op)
        if hit.campaign is None:
            s.armed -= 1
        s.ask(question)

    # ---- judging ----------------------------------------------------------------------------------------------------

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


def _messages(data: bytes) -> list[Message]:
    messages, at = [], 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        messages.append(parse_message(data, at, end))
        at = end
    return messages


def _last_unit(data: bytes) -> bytes:
    """The last of whole units: a Query, or messages up to Sync."""
    start = at = 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        if end < len(data) and data[at] in (Front.QUERY, Front.SYNC):
            start = end
        at = end
    return data[start:]


def _bounds(s: Session, entry: Entry) -> bytes:
    """Rule 2, as a statement: for the implicit transaction of the question only."""
    most = max(_LEAST_MS, _TIMES * entry[COST_NS] // 1_000_000)
    own = s.scope.statement_timeout_ms if s.scope is not None else 0
    most = min(most, own) if own else most
    return (
        f"SELECT pg_catalog.set_config('lock_timeout', '{_LOCK_MS}', true), "
        f"pg_catalog.set_config('statement_timeout', '{most}', true)"
    ).encode()


def _sqlstate(error: bytes) -> bytes:
    at = error.find(b"\0C", 5) + 2
    return error[at : at + 5]
