"""What processes have counted, as plain values that can be sent, and how those of several become one.

Rules:
1. What is counted is added. What is a greatest (``_ms``, ``uptime_seconds``) stays one.
2. Of a process that is gone, totals and greatest values are kept: a counter never goes back.
3. Tables are joined row by row: equal names are one row, counts are added, averages are weighted by ``entries``. Of
   latencies and ratios the greatest is shown; servers of a tier that all workers share are not counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from distribcache.proxy.answer import Table

if TYPE_CHECKING:
    from distribcache.proxy.node import Node

__all__ = ["JOINED", "Figures", "figures_of", "join", "joined", "left_behind"]

_OWN: Final = frozenset({"worker"})
"""Not of interest beyond the process that says it."""
_NOT_ADDED: Final = ("_ms", "_us", "_ratio", "peers")
_SHARED: Final = frozenset({"uptime_seconds", "l2_entries", "l2_bytes", "l3_peers", "l3_healthy_peers"})
"""What all processes say of one and the same thing."""
_KEYS: Final = {"stats": 1, "tiers": 1, "refusals": 2, "queries": 1, "tables": 1}
"""How many columns name a row."""
JOINED: Final = frozenset(_KEYS)
"""The tables of ``SHOW distribcache.*`` that all workers answer together."""


@dataclass(slots=True)
class Figures:
    """``statistics`` by name; refusals and bypasses by reason; findings of audits by cause."""

    statistics: dict[str, float] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    bypasses: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, dict[str, float]]:
        """For a message."""
        return {
            "statistics": self.statistics, "refusals": dict(self.refusals), "bypasses": dict(self.bypasses),
            "causes": dict(self.causes),
        }  # fmt: skip

    @classmethod
    def read(cls, plain: Mapping[str, Mapping[str, Any]]) -> Figures:
        """What ``plain`` has written."""
        counters = (Counter(plain[name]) for name in ("refusals", "bypasses", "causes"))
        return cls(dict(plain["statistics"]), *counters)


def figures_of(node: Node) -> Figures:
    """Those of this process."""
    totals = node.totals
    causes = Counter({cause.value: count for cause, count in node.audits.tally.causes.items()})
    return Figures(node.statistics(), Counter(totals.refusals), Counter(totals.bypasses), causes)


def _greatest(name: str) -> bool:
    return name.endswith("_ms") or name in _SHARED


def join(all_of_them: Iterable[Figures]) -> Figures:
    """One for all."""
    whole = Figures()
    for each in all_of_them:
        for name, value in each.statistics.items():
            known = whole.statistics.get(name, 0)
            whole.statistics[name] = max(known, value) if _greatest(name) else known + value
        whole.refusals.update(each.refusals)
        whole.bypasses.update(each.bypasses)
        whole.causes.update(each.causes)
    return whole


def left_behind(figures: Figures) -> Figures:
    """What stays of a process that is gone (rule 2)."""
    kept = {
        name: value
        for name, value in figures.statistics.items()
        if name.endswith("_total") or name.startswith("oldest_")
    }
    return Figures(kept, figures.refusals, figures.bypasses, figures.causes)


def figures_as_table(show: str, figures: Figures) -> Table | None:
    """What is left of a process, in the form of what a session is shown."""
    if show == "stats":
        return ("name", "value"), [(name, number(value)) for name, value in figures.statistics.items()]
    if show == "refusals":
        lines: list[tuple[str | None, ...]] = []
        for status, counter in (("refused", figures.refusals), ("bypass", figures.bypasses)):
            lines += [(status, reason or None, str(count)) for reason, count in counter.most_common()]
        return ("status", "reason", "count"), lines
    return None


def number(value: float) -> str:
    """Whole numbers without a point."""
    return f"{value:g}" if value % 1 else f"{value:.0f}"


def joined(show: str, tables: Sequence[Table]) -> Table:
    """The tables of several processes as one; the first is that of the process that is asked."""
    columns = tables[0][0]
    width = _KEYS[show]
    lines: dict[tuple[str | None, ...], list[str | None]] = {}
    weight_at = columns.index("entries") if "entries" in columns else -1
    for place, (names, rows) in enumerate(tables):
        if names != columns:
            continue  # a process of another version
        for row in rows:
            key = tuple(row[:width])
            if show == "stats" and key[0] in _OWN and place:
                continue
            known = lines.get(key)
            if known is None:
                lines[key] = list(row)
                continue
            weights = (_float(known[weight_at]), _float(row[weight_at])) if weight_at >= 0 else (1.0, 1.0)
            for at in range(width, len(columns)):
                known[at] = _one(show, str(key[0]), columns[at], known[at], row[at], weights)
    return columns, [tuple(line) for line in lines.values()]


def _one(
    show: str, name: str, column: str, first: str | None, second: str | None, weights: tuple[float, float]
) -> str | None:
    if first is None or second is None:
        return first if second is None else second
    try:
        one, other = float(first), float(second)
    except ValueError:
        return first
    if column.startswith("average_"):
        total = sum(weights)
        return f"{(one * weights[0] + other * weights[1]) / total:.3f}" if total else first
    shared = show == "tiers" and name != "L1" and column in ("bytes", "capacity_bytes", "entries")
    if shared or (show == "stats" and _greatest(name)) or column.endswith(_NOT_ADDED):
        return first if one >= other else second
    return number(one + other)


def _float(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
