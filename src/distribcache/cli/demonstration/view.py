"""The live view: three stories, each with PostgreSQL's bar above the cache's; and a line where there is no terminal.

It fits 100 columns and 30 lines; in fewer lines the dashboard's findings are left out, in fewer columns they are cut.
Colours only repeat what words say: everything can be read without them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from distribcache.cli.demonstration.dataset import Size
from distribcache.cli.demonstration.figures import Latency, Report, Story

__all__ = ["CACHED", "DIRECT", "Scene", "faster", "line", "milliseconds", "percent", "picture"]

DIRECT = "yellow"
CACHED = "cyan"
_WIDEST = 110
_LINES_WITH_FINDINGS = 28
_WHOLE_SENTENCES = 100


@dataclass(frozen=True, slots=True)
class Scene:
    """What stays the same during the show. Times are readings of ``clock.now_ns``; ``bound_ms`` is max_staleness."""

    size: Size
    cache: str
    duration_s: float
    bound_ms: float
    began_ns: int


def picture(scene: Scene, report: Report, console: Console) -> RenderableType:
    """One frame."""
    width = min(console.width, _WIDEST)
    roomy = console.height >= _LINES_WITH_FINDINGS
    dashboard: list[RenderableType] = [_bars(report.dashboard, width)]
    if roomy:
        dashboard.append(_findings(report))
    return Group(
        _header(scene, report, width),
        _box("Point reads: products, customers and orders by key", [_bars(report.point, width)], width),
        _box("A dashboard of seven aggregates", dashboard, width),
        _box(
            "Reads while another program writes straight to PostgreSQL",
            [_bars(report.outside, width), *_writes(scene, report, width)], width,
        ),
        Text(" Ctrl-C ends the show and prints the summary.", style="dim"),
    )  # fmt: skip


def line(scene: Scene, report: Report) -> str:
    """One line of progress, for logs."""
    point, dashboard, writes = report.point, report.dashboard, report.writes
    return (
        f"{report.elapsed_s:4.0f} of {scene.duration_s:.0f} s: "
        f"point reads {milliseconds(point.direct.p50_ms)} direct, {milliseconds(point.cached.p50_ms)} cached; "
        f"dashboard {milliseconds(dashboard.direct.p50_ms)} direct, {milliseconds(dashboard.cached.p50_ms)} cached; "
        f"{percent(report.hit_ratio)} hits; {writes.shown} outside writes shown, {report.stale_answers} stale answers"
    )


def milliseconds(value: float | None) -> str:
    """Two or three figures and the unit; a dash when it was not measured."""
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def percent(ratio: float | None) -> str:
    """A ratio in whole percent, never rounded up to all of it; a dash when there was nothing to divide."""
    if ratio is None:
        return "–"
    return f"{100 if ratio == 1 else min(99, round(100 * ratio))} %"


def faster(story: Story) -> str:
    """How the medians compare, in words."""
    ratio = story.times_faster
    if ratio is None:
        return ""
    times, word = (ratio, "faster") if ratio >= 1 else (1 / ratio, "slower")
    return f"{times:,.0f}× {word}" if times >= 10 else f"{times:.1f}× {word}"


def _header(scene: Scene, report: Report, width: int) -> RenderableType:
    server = f"PostgreSQL {scene.size.version}"
    left = Text.assemble((" distribcache", f"bold {CACHED}"), (" in front of ", "dim"), (server, DIRECT))
    done = min(1.0, report.elapsed_s / scene.duration_s)
    right = Text(f"{min(report.elapsed_s, scene.duration_s):.0f} of {scene.duration_s:.0f} s ")
    if width >= _WHOLE_SENTENCES:
        left.append(f", a shop with {scene.size.order_lines:,} order lines", style="dim")
        right = Text.assemble((_blocks(done, 10).ljust(10, "·"), CACHED), " ") + right
    header = Table.grid(expand=True)
    header.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    header.add_column(justify="right", no_wrap=True)
    header.add_row(left, right)
    header.width = width
    return header


def _box(title: str, content: list[RenderableType], width: int) -> RenderableType:
    return Box(
        Group(*content), title=Text(title, style="bold"), title_align="left", width=width, box=box.ROUNDED,
        border_style="dim", padding=(0, 1),
    )  # fmt: skip


def _bars(story: Story, width: int) -> RenderableType:
    verdict = ""
    if story.cached.reads:
        verdict = f"{faster(story)}, {percent(story.hit_ratio)} hits" if faster(story) else ""
    # What the other columns, their gaps and the box leave.
    room = max(4, width - 50 - len(verdict))
    most = max(story.direct.p50_ms or 0.0, story.cached.p50_ms or 0.0)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=12, no_wrap=True)
    for width in (8, 8, 7):
        table.add_column(width=width, justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row("", *(Text(name, style="dim") for name in ("p50", "p99", "reads")), "")
    for name, latency, style, note in (
        ("PostgreSQL", story.direct, DIRECT, ""), ("distribcache", story.cached, CACHED, verdict)
    ):  # fmt: skip
        bar = Text(_blocks((latency.p50_ms or 0.0) / most if most else 0.0, room), style=style)
        if note:
            bar.append(f" {note}", style="bold")
        table.add_row(Text(name, style=style), *_figures(latency), bar)
    return table


def _figures(latency: Latency) -> tuple[str, str, str]:
    return milliseconds(latency.p50_ms), milliseconds(latency.p99_ms), f"{latency.reads:,}"


def _findings(report: Report) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=19, no_wrap=True, style="dim")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(width=9, justify="right", style=DIRECT, no_wrap=True)
    table.add_column(width=9, justify="right", no_wrap=True)
    for panel in report.panels:
        cached = Text(milliseconds(panel.cached_ms), style=CACHED if panel.hit else "dim")
        table.add_row(panel.title, panel.finding, milliseconds(panel.direct_ms), cached)
    return table


def _writes(scene: Scene, report: Report, width: int) -> list[RenderableType]:
    writes = report.writes
    last = Text("outside write committed: ", style="dim")
    if writes.last:
        last = Text.assemble(
            ("outside write committed: ", "dim"), (writes.last, "bold"),
            (" → the cache showed it ", "dim"), (f"{milliseconds(writes.last_after_ms)} later", "bold green"),
        )  # fmt: skip
    shown = Text.assemble((f"{writes.shown} of {writes.committed} writes shown", "bold"))
    shown.append(f", p50 {milliseconds(writes.after_p50_ms)}, p99 {milliseconds(writes.after_p99_ms)} later")
    if writes.strict_committed:
        shown.append(f"; strict sessions: {writes.strict_at_once} of {writes.strict_committed} at once")
    colour = "red" if report.stale_answers else "green"
    stale = Text.assemble((f"{report.stale_answers} stale answers", f"bold {colour}"))
    stale.append(
        f" of {report.compared:,} checked; the oldest was {milliseconds(report.oldest_answer_ms)} out of date"
        f" (allowed: {milliseconds(scene.bound_ms)})"
    )
    sentences = [last, shown, stale]
    for sentence in sentences:
        # One line each where there is room for most of it: a view that changes its height flickers.
        sentence.no_wrap, sentence.overflow = width >= _WHOLE_SENTENCES, "ellipsis"
    return [*sentences]


def _blocks(share: float, room: int) -> str:
    """A bar of eighths; what is more than nothing shows."""
    eighths = max(1, round(share * room * 8)) if share > 0 else 0
    return "█" * (eighths // 8) + ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8]
