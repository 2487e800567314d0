"""The clients of the demo: threads that read, look at dashboards and write, until they are told to stop.

Rules:
1. Every read through the cache has its like that asks PostgreSQL, at the same time, on the same machine, by the same
   driver. Which of a pair goes first alternates.
2. The outside writer has a connection to PostgreSQL only. The cache can learn of its commits from the WAL alone.
3. Every answer is checked: rows that nobody changes against PostgreSQL's, rows that change against the commits.
   An answer that was on its way while a commit was pending proves nothing and is left out.
4. Clients pause between reads, as people and programs do; a demo that takes the whole machine measures itself.

The checks see a cache that never invalidates: its answers grow older than the bound and are counted as stale.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import LiteralString

import psycopg

from distribcache.cli.demonstration.client import Client, Rows
from distribcache.cli.demonstration.dataset import ORDERS
from distribcache.cli.demonstration.figures import Answers, Commits, Durations, Latency, Panel, Report, Story, Writes
from distribcache.cli.demonstration.questions import (
    BUYER,
    COUNT_STOCK,
    LATEST_ORDER,
    PANELS,
    POINTS,
    STOCK,
    WATCHED,
)
from distribcache.clock import now_ns

__all__ = ["Stories"]

_POINT_PAUSE_S = 0.002
_PANEL_PAUSE_S = 0.3
# So many people have the dashboard open through the cache, each at the pace of the one who asks PostgreSQL.
_VIEWERS = 4
_WRITE_PAUSE_S = 0.2
# Every so many outside writes one is an order, which takes the dashboard with it; the rest are counts of stock.
_WRITES_PER_ORDER = 40
_FIRST_ORDER = 12
# How long beyond the bound to go on asking for a commit before it counts as not shown.
_PATIENCE_NS = 2_000_000_000


class _Tally:
    """One story's reads."""

    def __init__(self) -> None:
        self.direct = Durations()
        self.cached = Durations()
        self.hits = 0

    def story(self) -> Story:
        return Story(Latency.of(self.direct), Latency.of(self.cached), self.hits)


class Stories:
    """All clients. ``direct`` and ``cached`` are connection strings, ``bound_ns`` is max_staleness."""

    def __init__(self, direct: str, cached: str, bound_ns: int) -> None:
        self._direct = direct
        self._cached = cached
        self._bound_ns = bound_ns
        self.ended = threading.Event()
        self.error = ""
        self._threads: list[threading.Thread] = []
        self._clients: list[Client] = []
        self._began_ns = 0
        self._first_hit_ns = 0
        self._point, self._dashboard, self._outside = _Tally(), _Tally(), _Tally()
        self._answers = Answers()
        self._not_cached: Counter[str] = Counter()
        self._stock = {product: Commits() for product in WATCHED}
        self._orders = Commits()
        self._month = 0
        # Panel → version of the orders → PostgreSQL's answer.
        self._truth: dict[str, dict[int, Rows]] = {panel.title: {} for panel in PANELS}
        self._panels = {panel.title: Panel(panel.title) for panel in PANELS}
        self._written, self._shown, self._at_once = 0, 0, 0
        self._after, self._strict_after = Durations(), Durations()
        self._strict_written, self._strict_at_once = 0, 0
        self._last, self._last_after_ns = "", 0

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. Raises psycopg.Error when PostgreSQL cannot be reached."""
        self._month = self._connect(self._direct).ask(PANELS[0].sql)[0][0]
        self._began_ns = now_ns()
        stories = (self._point_reads, self._dashboard_direct, self._dashboard_cached, self._shoppers, self._writer)
        for story in stories:
            thread = threading.Thread(target=self._guarded, args=(story,), name=story.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End all clients, each after its present question, and wait for them."""
        self.ended.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def report(self, *, final: bool = False) -> Report:
        """What was measured until now."""
        return Report(
            elapsed_s=round((now_ns() - self._began_ns) / 1e9, 2),
            final=final,
            error=self.error,
            point=self._point.story(),
            dashboard=self._dashboard.story(),
            outside=self._outside.story(),
            panels=tuple(self._panels[panel.title] for panel in PANELS),
            writes=Writes(
                committed=self._written,
                shown=self._shown,
                at_once=self._at_once,
                after_p50_ms=self._after.percentile_ms(50),
                after_p99_ms=self._after.percentile_ms(99),
                after_most_ms=self._after.most_ms(),
                strict_committed=self._strict_written,
                strict_at_once=self._strict_at_once,
                strict_p50_ms=self._strict_after.percentile_ms(50),
                last=self._last,
                last_after_ms=round(self._last_after_ns / 1e6, 3) if self._last else None,
            ),
            compared=self._answers.compared,
            different=self._answers.different,
            old_answers=self._answers.old,
            stale_answers=self._answers.stale,
            oldest_answer_ms=round(self._answers.oldest_ns / 1e6, 3),
            not_cached=tuple(f"{reason} ({count})" for reason, count in self._not_cached.copy().most_common(5)),
            first_hit_ns=self._first_hit_ns,
        )

    def _guarded(self, story: Callable[[], None]) -> None:
        try:
            story()
        except psycopg.Error as error:
            if not self.ended.is_set():
                self.error = self.error or f"{story.__name__.strip('_')}: {str(error).strip()}"
                self.ended.set()

    # -- stories -------------------------------------------------------------------------------------------------

    def _point_reads(self) -> None:
        direct, cached = self._connect(self._direct), self._connect(self._cached)
        for number in itertools.count():
            point = POINTS[number % len(POINTS)]
            parameters = (point.key(number // len(POINTS)),)
            mine = self._through(self._point, cached, point.sql, parameters) if number % 2 else None
            truth = direct.ask(point.sql, parameters)
            self._point.direct.add(direct.ended_ns - direct.began_ns)
            mine = self._through(self._point, cached, point.sql, parameters) if mine is None else mine
            self._answers.same(mine == truth)
            if self.ended.wait(_POINT_PAUSE_S):
                return

    def _dashboard_direct(self) -> None:
        client = self._connect(self._direct)
        for panel in itertools.cycle(PANELS):
            version, settled = self._orders.number, not self._orders.pending
            rows = client.ask(panel.sql)
            took_ns = client.ended_ns - client.began_ns
            if settled and not self._orders.pending and self._orders.number == version:
                self._truth[panel.title] = {version: rows}
            self._dashboard.direct.add(took_ns)
            self._show(panel.title, panel.say(rows), direct_ms=took_ns / 1e6)
            if self.ended.wait(_PANEL_PAUSE_S):
                return

    def _dashboard_cached(self) -> None:
        client = self._connect(self._cached)
        for number in itertools.count():
            panel = PANELS[number // _VIEWERS % len(PANELS)]
            version, settled = self._orders.number, not self._orders.pending
            hits = self._dashboard.hits
            rows = self._through(self._dashboard, client, panel.sql)
            began_ns, took_ns = client.began_ns, client.ended_ns - client.began_ns
            settled = settled and not self._orders.pending and self._orders.number == version
            if panel is PANELS[0]:
                self._answers.aged(self._orders.age_ns(rows[0][0] - self._month, began_ns), self._bound_ns)
            elif settled and (truth := self._truth[panel.title].get(version)) is not None:
                if rows == truth:
                    self._answers.aged(0, self._bound_ns)
                elif version:
                    self._answers.aged(self._orders.age_ns(version - 1, began_ns), self._bound_ns)
                else:
                    self._answers.same(False)
            self._show(panel.title, panel.say(rows), cached_ms=took_ns / 1e6, hit=self._dashboard.hits > hits)
            if self.ended.wait(_PANEL_PAUSE_S / _VIEWERS):
                return

    def _shoppers(self) -> None:
        """Customers who look at the very products that the warehouse is counting."""
        direct, cached = self._connect(self._direct), self._connect(self._cached)
        for number in itertools.count():
            product = WATCHED[number // 2 % len(WATCHED)]
            commits = self._stock[product]
            if number % 2:
                rows = direct.ask(STOCK, (product,))
                self._outside.direct.add(direct.ended_ns - direct.began_ns)
                # PostgreSQL is never late; if it were, it would be our bookkeeping.
                self._answers.same(commits.age_ns(rows[0][2], direct.began_ns) == 0)
            else:
                rows = self._through(self._outside, cached, STOCK, (product,))
                self._answers.aged(commits.age_ns(rows[0][2], cached.began_ns), self._bound_ns)
            if self.ended.wait(_POINT_PAUSE_S):
                return

    def _writer(self) -> None:
        writer = self._connect(self._direct)
        reader = self._connect(self._cached)
        strict = self._connect(self._cached, setting="SET distribcache.consistency = 'strict'")
        for number in itertools.count():
            if self.ended.wait(_WRITE_PAUSE_S):
                return
            product = WATCHED[number % len(WATCHED)]
            ordering = number % _WRITES_PER_ORDER == _FIRST_ORDER
            commits = self._orders if ordering else self._stock[product]
            # The connections under test have read it before, as a customer would have.
            question: tuple[LiteralString, tuple[object, ...]]
            question = (LATEST_ORDER, (BUYER,)) if ordering else (STOCK, (product,))
            version_of = _latest_order if ordering else _counted
            who = strict if number % 2 else reader
            who.ask(*question)
            before = reader.ask(*question)
            commits.pending = True
            if ordering:
                what = f"order {writer.order(number, list(WATCHED[:3])):,}"
            else:
                left = writer.ask(COUNT_STOCK, (product,))[0][0]
                what = f"{before[0][0]}, in stock {before[0][1]} → {left}"
            commits.acknowledge(now_ns())
            self._follow(who, question, version_of, commits, what, strict=who is strict)

    def _follow(
        self, reader: Client, question: tuple[LiteralString, tuple[object, ...]], version_of: Callable[[Rows], int],
        commits: Commits, what: str, *, strict: bool,
    ) -> None:
        """Ask until the commit just acknowledged is shown."""
        version, acknowledged_ns = commits.number, now_ns()
        bound_ns = 0 if strict else self._bound_ns
        first = True
        while True:
            seen = version_of(reader.ask(*question))
            self._answers.aged(commits.age_ns(seen, reader.began_ns), bound_ns)
            after_ns = reader.ended_ns - acknowledged_ns
            if seen >= version:
                break
            first = False
            if self.ended.is_set():
                return
            if after_ns > self._bound_ns + _PATIENCE_NS:
                self._written += 1
                return
        self._written += 1
        self._shown += 1
        self._strict_written += strict
        if strict:
            self._strict_at_once += first
            self._strict_after.add(after_ns)
        else:
            self._at_once += first
            self._after.add(after_ns)
        self._last, self._last_after_ns = what, after_ns

    # -- how -----------------------------------------------------------------------------------------------------

    def _connect(self, conninfo: str, *, setting: LiteralString | None = None) -> Client:
        client = Client(conninfo, setting=setting)
        self._clients.append(client)
        return client

    def _through(
        self, tally: _Tally, client: Client, sql: LiteralString, parameters: Sequence[object] | None = None
    ) -> Rows:
        rows = client.ask(sql, parameters)
        tally.cached.add(client.ended_ns - client.began_ns)
        status, reason = client.outcome()
        if status == "hit":
            tally.hits += 1
            self._first_hit_ns = self._first_hit_ns or client.ended_ns
        elif status != "miss":
            self._not_cached[f"{status} {reason}".strip()] += 1
        return rows

    def _show(
        self, title: str, finding: str, *, direct_ms: float | None = None, cached_ms: float | None = None,
        hit: bool = False,
    ) -> None:
        was = self._panels[title]
        self._panels[title] = Panel(
            title,
            finding,
            was.direct_ms if direct_ms is None else round(direct_ms, 3),
            was.cached_ms if cached_ms is None else round(cached_ms, 3),
            was.hit if cached_ms is None else hit,
        )


def _counted(rows: Rows) -> int:
    return int(rows[0][2])


def _latest_order(rows: Rows) -> int:
    # Before the first outside order the buyer's latest is one of those that came with the shop.
    return max(0, int(rows[0][0]) - ORDERS)
