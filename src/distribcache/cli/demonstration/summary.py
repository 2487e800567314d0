"""What is said at the end, and the one JSON object; and whether the demo showed what it claims to show."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distribcache.cli.demonstration.figures import Latency, Report, Story
from distribcache.cli.demonstration.view import CACHED, DIRECT, Scene, faster, milliseconds, percent

__all__ = ["Outcome", "as_json", "complaints", "print_next", "print_summary"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a show. ``oldest_possible_ms``: how long ago any hit had been proved fresh at most, says the cache."""

    scene: Scene
    report: Report
    oldest_possible_ms: float
    interrupted: bool

    @property
    def first_hit_s(self) -> float | None:
        """Seconds from the command to the first answer from memory."""
        if not self.report.first_hit_ns:
            return None
        return round((self.report.first_hit_ns - self.scene.began_ns) / 1e9, 2)


def complaints(report: Report) -> list[str]:
    """What did not go as it should; nothing when all is well."""
    writes = report.writes
    wrong = [report.error] if report.error else []
    for name, story in _stories(report):
        if not story.hits:
            wrong.append(f"{name}: nothing was answered from memory")
    if not writes.committed:
        wrong.append("there were no outside writes")
    if writes.shown < writes.committed:
        wrong.append(f"{writes.committed - writes.shown} outside writes were never shown")
    if writes.strict_at_once < writes.strict_committed:
        wrong.append(f"{writes.strict_committed - writes.strict_at_once} strict reads did not show the last write")
    if report.stale_answers:
        wrong.append(f"{report.stale_answers} answers were older than allowed")
    if report.different:
        wrong.append(f"{report.different} answers differed from PostgreSQL's")
    return wrong


def as_json(outcome: Outcome) -> str:
    """One object; times in milliseconds, null where nothing was measured."""
    report, writes = outcome.report, outcome.report.writes
    stories = (("point", report.point), ("dashboard", report.dashboard), ("outside", report.outside))
    wrong = complaints(report)
    facts: dict[str, Any] = {
        "ok": not wrong,
        "direct": {key: value for name, story in stories for key, value in _latency(name, story.direct).items()},
        "cached": {key: value for name, story in stories for key, value in _latency(name, story.cached).items()},
        "hit_ratio": _rounded(report.hit_ratio),
        "hit_ratios": {name: _rounded(story.hit_ratio) for name, story in stories},
        "reads": {name: story.cached.reads for name, story in stories},
        "outside_writes": writes.committed,
        "outside_writes_shown": writes.shown,
        "shown_by_the_next_read": writes.at_once,
        "shown_after_p50_ms": writes.after_p50_ms,
        "shown_after_p99_ms": writes.after_p99_ms,
        "shown_after_max_ms": writes.after_most_ms,
        "strict_writes": writes.strict_committed,
        "strict_shown_by_the_next_read": writes.strict_at_once,
        "strict_p50_ms": writes.strict_p50_ms,
        "compared": report.compared,
        "different": report.different,
        "old_answers": report.old_answers,
        "stale_answers": report.stale_answers,
        "oldest_answer_ms": report.oldest_answer_ms,
        "oldest_possible_ms": round(outcome.oldest_possible_ms, 3),
        "max_staleness_ms": outcome.scene.bound_ms,
        "first_hit_s": outcome.first_hit_s,
        "duration_s": report.elapsed_s,
        "interrupted": outcome.interrupted,
        "postgresql": outcome.scene.size.version,
        "order_lines": outcome.scene.size.order_lines,
        "not_cached": list(report.not_cached),
        "complaints": wrong,
    }
    return json.dumps(facts)


def print_summary(out: Console, outcome: Outcome) -> None:
    """For people."""
    scene, report, writes = outcome.scene, outcome.report, outcome.report.writes
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    table.add_column(f"{report.elapsed_s:.0f} s", no_wrap=True)
    for name, style in (("direct p50", DIRECT), ("p99", DIRECT), ("cached p50", CACHED), ("p99", CACHED)):
        table.add_column(name, justify="right", style=style, no_wrap=True)
    table.add_column("hits", justify="right", no_wrap=True)
    table.add_column("median", justify="right", style="bold", no_wrap=True)
    for name, story in _stories(report):
        table.add_row(name, *_pair(story), percent(story.hit_ratio), faster(story))
    out.print()
    out.print(table)
    out.print()
    lines = {
        "Outside writes": f"{writes.committed} committed straight to PostgreSQL, {writes.shown} shown by the cache: "
        f"p50 {milliseconds(writes.after_p50_ms)}, p99 {milliseconds(writes.after_p99_ms)} after the commit, "
        f"{writes.at_once} of {writes.committed - writes.strict_committed} by the very next read; "
        f"in strict sessions {writes.strict_at_once} of {writes.strict_committed} by the very next read.",
        "Freshness": f"{report.stale_answers} stale answers of {report.compared:,} checked. The oldest answer served "
        f"was {milliseconds(report.oldest_answer_ms)} out of date; allowed are {milliseconds(scene.bound_ms)}.",
        "Hits": f"{percent(report.hit_ratio)} of all reads."
        + (f" The first came {outcome.first_hit_s:.1f} s after the command." if outcome.first_hit_s else ""),
    }
    if report.not_cached:
        lines["Not cached"] = ", ".join(report.not_cached)
    for head, text in lines.items():
        # Logs are wrapped by whoever reads them.
        out.print(Text.assemble((f"{head}: ", "bold"), text), soft_wrap=not out.is_terminal)
    wrong = complaints(report)
    if wrong and not outcome.interrupted:
        out.print(Text("\n".join(f"Not as it should be: {text}" for text in wrong), style="bold red"))


def print_next(out: Console, cache: str, direct: str, *, psql: str, kept: bool) -> None:
    """What to try now. ``psql`` names that program, ``cache`` and ``direct`` are its arguments."""
    own = "distribcache" if shutil.which("distribcache") else sys.argv[0]
    again = 'make demo ARGS="--keep"' if "MAKELEVEL" in os.environ else f"{own} demo --keep"
    out.print()
    if kept:
        lines = [
            ("through the cache", f"{psql} {cache}"),
            ("in it, twice", "SELECT count(*), sum(quantity * unit_price) FROM order_lines; SHOW distribcache.last;"),
            ("an outside write", f"{psql} {direct} -c 'UPDATE order_lines SET quantity = 9 WHERE order_id = 1'"),
        ]
        out.print(Text("The servers keep running until Ctrl-C. Try:", style="bold"))
    else:
        lines = [
            ("keep it running", f"{again}   then: {psql} {cache}"),
            ("your own server", f"{own} doctor --upstream postgresql://you@host/db"),
            ("", f"{own} serve --upstream postgresql://you@host/db   then: psql -p 6432 -h 127.0.0.1"),
        ]
        out.print(Text("Next:", style="bold"))
    for what, command in lines:
        out.print(Text.assemble((f"  {what:<18}", "dim"), command), soft_wrap=True)


def _stories(report: Report) -> tuple[tuple[str, Story], ...]:
    return ("point reads", report.point), ("dashboard", report.dashboard), ("during writes", report.outside)


def _latency(name: str, latency: Latency) -> dict[str, float | None]:
    return {f"{name}_p50_ms": latency.p50_ms, f"{name}_p99_ms": latency.p99_ms}


def _pair(story: Story) -> tuple[str, ...]:
    return tuple(
        milliseconds(value)
        for latency in (story.direct, story.cached)
        for value in (latency.p50_ms, latency.p99_ms)
    )  # fmt: skip


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
