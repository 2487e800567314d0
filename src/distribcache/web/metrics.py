"""What Prometheus reads: prefix ``distribcache_``, base units, counters ending in ``_total``.

Every label has few values: names of databases, and causes and reasons that the code names. No statement and no table is
a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from distribcache.coherence.database import Coherence
from distribcache.proxy.figures import Figures

__all__ = ["registry_of"]

_PLAIN = {
    "commits": "Commits that the change stream brought",
    "rows": "Changed rows that the change stream brought",
    "probes": "Questions by which freshness is proved",
    "fences": "Moves of the moment up to which the ledger is known to be complete",
    "flushes": "Times that the server was made to flush its log",
    "pings": "Questions to the stream where it is",
    "rereads": "Looks at the whole catalogue",
    "polls": "Looks at the catalogue that nothing but time asked for",
    "catalogue_changes": "Looks that found the catalogue changed",
    "reconnects": "Times that the change stream was opened again",
}
_BY = {
    "alarms": ("cause", "Times that hits stopped because the catalogue may have changed"),
    "epoch_changes": ("cause", "Times that everything cached was gone, because the stream may have a hole"),
    "invalidations": ("kind", "Stores into the ledger, by what they end: row, wildcard, table, schema"),
}


def registry_of(figures: Figures, databases: Iterable[Coherence]) -> CollectorRegistry:
    """The metrics of one node, as of now."""
    registry = CollectorRegistry()
    registry.register(_Metrics(figures, list(databases)))
    return registry


class _Metrics(Collector):
    def __init__(self, figures: Figures, databases: list[Coherence]) -> None:
        self._figures = figures
        self._databases = databases

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        for name, value in figures.statistics.items():
            if name.endswith("_total"):
                yield CounterMetricFamily(f"distribcache_{name.removesuffix('_total')}", name, value=value)
            elif name.endswith("_ms"):
                yield GaugeMetricFamily(f"distribcache_{name.removesuffix('_ms')}_seconds", name, value=value / 1000)
            else:
                yield GaugeMetricFamily(f"distribcache_{name}", name, value=value)
        yield _counted("refused_reads", "Reads that cannot be cached, by reason", "reason", figures.refusals)
        yield _counted("bypassed_reads", "Reads that were not cached then, by reason", "reason", figures.bypasses)
        yield _counted("audit_findings", "Audits that were stale or undecided, by cause", "cause", figures.causes)
        yield from _freshness(self._databases)


def _counted(name: str, text: str, label: str, counter: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"distribcache_{name}", text, labels=[label])
    for value, count in counter.items():
        family.add_metric([value], count)
    return family


def _freshness(databases: list[Coherence]) -> Iterator[Metric]:
    """How the changes of each database reach the cache."""
    serving = GaugeMetricFamily(
        "distribcache_database_serving", "1 while hits are served", labels=["database", "reason"]
    )
    gauges = {
        "lag_bytes": ("lag_bytes", "Log that is written and did not arrive yet", 1.0),
        "lag_seconds": ("lag_seconds", "How long the stream has not reached a position that it should", 1.0),
        "staleness_ms": ("staleness_seconds", "How old a hit would be now, at most", 1000.0),
        "column_sets": ("column_sets", "Column sets by which rows are told apart", 1.0),
        "unproved_commits": ("unproved_commits", "Commits that are not proved visible yet", 1.0),
    }
    families = {
        key: GaugeMetricFamily(f"distribcache_{name}", text, labels=["database"])
        for key, (name, text, _) in gauges.items()
    }
    plain = {
        name: CounterMetricFamily(f"distribcache_{name}", text, labels=["database"]) for name, text in _PLAIN.items()
    }
    by = {
        name: CounterMetricFamily(f"distribcache_{name}", text, labels=["database", label])
        for name, (label, text) in _BY.items()
    }
    waits = CounterMetricFamily(
        "distribcache_freshness_waits", "Hits that waited for proof of their freshness", labels=["database", "outcome"]
    )
    waited = CounterMetricFamily("distribcache_freshness_wait_seconds", "Time that they waited", labels=["database"])
    for database in databases:
        name, counters, facts = database.name, database.counters, database.report()
        serving.add_metric([name, database.reason], float(database.serving))
        for key, (_, _, unit) in gauges.items():
            value = facts.get(key)
            if isinstance(value, int | float):
                families[key].add_metric([name], value / unit)
        for key, family in plain.items():
            family.add_metric([name], getattr(counters, key))
        for key, family in by.items():
            for cause, count in getattr(counters, f"{key}_by").items():
                family.add_metric([name, cause], count)
        waits.add_metric([name, "fresh"], counters.waits - counters.waits_late)
        waits.add_metric([name, "late"], counters.waits_late)
        waited.add_metric([name], counters.wait_ns / 1e9)
    yield serving
    yield from families.values()
    yield from plain.values()
    yield from by.values()
    yield waits
    yield waited
