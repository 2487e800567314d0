"""``SHOW distribcache.*``: what a session can ask the proxy, as small tables of text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distribcache.clock import now_ns
from distribcache.coherence.freshness import Watched
from distribcache.entry import AT_NS, TABLES, WORKLOAD
from distribcache.proxy.answer import Table
from distribcache.proxy.figures import joined, number
from distribcache.proxy.remedies import remedy
from distribcache.sql.settings import OWN
from distribcache.tiers.base import Cause

if TYPE_CHECKING:
    from distribcache.proxy.node import Node
    from distribcache.proxy.peers import Peers
    from distribcache.proxy.session import Session

__all__ = ["SHOWS", "Others", "gathered", "own_table", "part_of"]


def _last(s: Session) -> Table:
    """One row about the last statement that was neither transaction control, SET/SHOW nor a ping."""
    columns = ("status", "tier", "reason", "age_ms", "tables", "workload")
    entry = s.hot.last
    if entry is not None:
        tier = s.risen[0] if s.risen[1] == s.hot.hits else "L1"
        age_ns = s.hot.age_ns if s.coherence.mode == "wal" else now_ns() - entry[AT_NS]
        return columns, [("hit", tier, None, f"{age_ns / 1e6:.3f}", entry[TABLES] or None, entry[WORKLOAD] or None)]
    last = s.outcome
    age = None if last.age_ms is None else f"{last.age_ms:.3f}"
    return columns, [
        (last.status or None, last.tier or None, last.reason or None, age, last.tables or None, last.workload or None)
    ]


def _stats(s: Session) -> Table:
    """Counters of this node, and which of its workers answers: rows (name, value)."""
    columns, lines = _shared(s, "stats")
    worker = s.node.peers
    return columns, lines if worker is None else [*lines, ("worker", str(worker.index))]


def _counted(node: Node) -> Table:
    return ("name", "value"), [(name, number(value)) for name, value in node.statistics().items()]


def _tiers(s: Session) -> Table:
    """One row per tier: bytes, entries, hits, misses, evictions, latency of look-ups, compression, peers."""
    return _shared(s, "tiers")


def _levels(node: Node) -> Table:
    columns = (
        "tier", "bytes", "capacity_bytes", "entries", "hits", "misses", "evictions", "refused", "failures", "p50_us",
        "p99_us", "compression_ratio", "peers", "healthy_peers", "reason",
    )  # fmt: skip
    return columns, [
        (
            name, str(stats.bytes_used), str(stats.capacity_bytes), str(stats.entries), str(stats.hits),
            str(stats.misses), str(stats.evictions.get(Cause.CAPACITY, 0)), str(stats.refused),
            str(sum(stats.failures.values())), *map(_micros, (stats.p50_us, stats.p99_us)),
            f"{stats.compression_ratio:.2f}", str(stats.peers), str(stats.healthy_peers), stats.reason or None,
        )
        for name, stats in node.tiers().items()
    ]  # fmt: skip


def _micros(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _refusals(s: Session) -> Table:
    """How often which reason kept a statement from being cached, and what to do about it."""
    columns, lines = _shared(s, "refusals")
    return (*columns, "remedy"), [(*line, remedy(line[1] or "") or None) for line in lines]


def _reasons(node: Node) -> Table:
    totals = node.totals
    lines: list[tuple[str | None, ...]] = []
    for status, counter in (("refused", totals.refusals), ("bypass", totals.bypasses)):
        lines += [(status, reason or None, str(count)) for reason, count in counter.most_common()]
    return ("status", "reason", "count"), lines


def _freshness(s: Session) -> Table:
    """How the database's changes reach the cache, and how far behind it may be: rows (name, value)."""
    report = s.others["freshness"].report if "freshness" in s.others else {}
    return ("name", "value"), [
        (name, None if value is None else str(value)) for name, value in (report or s.coherence.report()).items()
    ]


def _tables(s: Session) -> Table:
    """Tables that entries in L1 depend on: entries and bytes. Where rows are told apart: by which columns, how many
    transactions ended all entries that are pinned by them because they did not show the values, and what would help.
    """
    counts = {str(name): (int(entries or 0), int(size or 0)) for name, entries, size in _shared(s, "tables")[1]}
    watched: dict[str, list[Watched]] = {}
    for each in s.others["tables"].watched if "tables" in s.others else s.coherence.watched():
        watched.setdefault(each.table, []).append(each)
        counts.setdefault(each.table, (0, 0))
    lines: list[tuple[str | None, ...]] = []
    for name, (entries, size) in sorted(counts.items(), key=lambda item: -item[1][0]):
        sets = watched.get(name, [])
        columns = "; ".join(",".join(each.columns) for each in sets) or None
        advice = next((each.advice for each in sets if each.advice), None)
        lines.append((name, str(entries), str(size), columns, str(sum(each.touches for each in sets)), advice))
    return ("table", "entries", "bytes", "column_sets", "wildcard_touches", "advice"), lines


def _depended_on(node: Node) -> Table:
    counts: dict[str, tuple[int, int]] = {}
    for entry in node.l1.entries.values():
        for table in filter(None, entry[TABLES].split(",")):
            entries, size = counts.get(table, (0, 0))
            counts[table] = (entries + 1, size + len(entry[0]))
    return ("table", "entries", "bytes"), [(name, str(entries), str(size)) for name, (entries, size) in counts.items()]


def _queries(s: Session) -> Table:
    """Entries of this session's scope in L1 by workload: entries, bytes, average cost of a fill in ms."""
    return _shared(s, "queries")


def _classes(node: Node) -> Table:
    counts: dict[str, tuple[int, int, int]] = {}
    for entry in node.l1.entries.values():
        entries, size, cost = counts.get(entry[WORKLOAD], (0, 0, 0))
        counts[entry[WORKLOAD]] = (entries + 1, size + len(entry[0]), cost + entry[7])
    return ("workload", "entries", "bytes", "average_cost_ms"), [
        (name, str(entries), str(size), f"{cost / entries / 1e6:.3f}")
        for name, (entries, size, cost) in sorted(counts.items())
    ]


def _config(s: Session) -> Table:
    """Every setting, its value and where it came from; secrets are masked."""
    return ("name", "value", "source"), [(name, str(value), source) for name, value, source in s.node.settings.show()]


def _help(s: Session) -> Table:
    """This table."""
    lines: list[tuple[str | None, ...]] = [
        (f"SHOW distribcache.{name}", (show.__doc__ or "").strip().splitlines()[0]) for name, show in SHOWS.items()
    ]
    lines += [(f"SET distribcache.{name}", text) for name, text in _SETTINGS.items()]
    return ("command", "meaning"), lines


SHOWS: dict[str, Callable[[Session], Table]] = {
    "last": _last,
    "stats": _stats,
    "tiers": _tiers,
    "refusals": _refusals,
    "freshness": _freshness,
    "tables": _tables,
    "queries": _queries,
    "config": _config,
    "help": _help,
}

_SETTINGS = {
    "cache": "on or off for this session",
    "consistency": "eventual, session or strict",
    "max_staleness": "how old an answer may be at most, for instance 250ms; never more than the node's own bound",
    "workload": "oltp, olap, vector, ai_agent, rag or mixed: the class of this session's reads",
    "branch": "keeps this session's entries apart from those of other branches",
    "as_of": "keeps this session's entries apart from those of other points in time",
}


def _setting(s: Session, name: str) -> str:
    scope = s.scope
    value = scope.own[OWN.index(name)] if scope is not None and scope.own else None
    if value:
        return value
    freshness = s.node.settings.freshness
    defaults = {
        "cache": "on" if s.node.settings.cache.enabled else "off",
        "consistency": freshness.consistency.value,
        "max_staleness": f"{s.coherence.max_staleness_ns // 1_000_000}ms",
    }
    return defaults.get(name, "")


_PARTS: dict[str, Callable[[Node], Table]] = {
    "stats": _counted, "tiers": _levels, "refusals": _reasons, "tables": _depended_on, "queries": _classes,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Others:
    """What the other workers and the main process said: their part of a table, and what main knows of the database."""

    tables: list[Table]
    report: dict[str, object]
    watched: list[Watched]


def part_of(node: Node, show: str) -> Table:
    """What this process has to say to a table that all workers answer together."""
    return _PARTS[show](node)


def _shared(s: Session, show: str) -> Table:
    own = part_of(s.node, show)
    return joined(show, [own, *s.others[show].tables]) if show in s.others else own


def gathered(s: Session, setting: str) -> bool:
    """Can ``SHOW distribcache.<name>`` be answered now? False: the other workers are being asked."""
    name = setting.removeprefix("distribcache.")
    peers = s.node.peers
    if peers is None or name == setting or (name not in _PARTS and name != "freshness") or f"show {name}" in s.tried:
        return True
    s.wait(f"show {name}", _gather(s, peers, name))
    return False


async def _gather(s: Session, peers: Peers, name: str) -> None:
    s.others.pop(name, None)
    s.others[name] = await peers.others(name, s.coherence.name)


def own_table(s: Session, setting: str) -> Table | None:
    """The answer to ``SHOW distribcache.<name>``, or None when PostgreSQL should say that there is no such thing."""
    name = setting.removeprefix("distribcache.")
    show = SHOWS.get(name)
    if show is not None:
        return show(s)
    if name in OWN and s.scope is not None:
        return (f"distribcache.{name}",), [(_setting(s, name),)]
    return None
