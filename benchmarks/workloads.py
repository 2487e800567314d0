"""What is measured: pgbench scripts, and how a line of its report is read.

point        one row of pgbench_accounts by key, few distinct keys: every read can come from memory
aggregate    a query of about 100 ms over all of pgbench_accounts, always the same
tpcb         pgbench's own read-write transaction
miss-keys    point reads whose keys repeat so rarely that nothing is found in memory, prepared: same text, new parameter
miss-texts   the same with a literal that never repeats, simple: every text is new
off          point reads with the cache switched off for the session

The point script has no pgbench variable for the table's size, so that the canned responder can answer it too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["COMPILED", "WORKERS", "WORKLOADS", "Measured", "Workload", "read_report"]

_POINT = "\\set aid random(1, 1000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
_MISS_KEYS = "\\set aid random(1, 100000 * {scale})\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
_MISS_TEXTS = (
    "\\set aid random(1, 1000)\n\\set never random(1, 2000000000)\n"
    "SELECT abalance, :never FROM pgbench_accounts WHERE aid = :aid;\n"
)
_AGGREGATE = "SELECT count(*), sum(abalance), avg(aid), stddev(abalance) FROM pgbench_accounts WHERE aid <= {rows};\n"


@dataclass(frozen=True, slots=True)
class Workload:
    """``script`` is a pgbench script (empty: the built-in TPC-B), ``protocol`` its -M, ``targets`` who takes part."""

    name: str
    script: str
    protocol: str
    clients: tuple[int, ...]
    targets: tuple[str, ...]
    options: str = ""
    warm: bool = False
    seconds: float = 1.0
    """Length of a run in units of the asked length."""


COMPILED = "distribcache-compiled"
WORKERS = "distribcache-workers"
"""With two processes that serve clients."""
ALL = ("direct", "distribcache", COMPILED, WORKERS, "pgbouncer", "pgpool", "canned")
PROXIES = ("direct", "distribcache", COMPILED, WORKERS, "pgbouncer", "pgpool")
OURS = ("direct", "distribcache", COMPILED, WORKERS, "pgbouncer")

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload("point", _POINT, "simple", (1, 8, 64, 1000), ALL, warm=True),
        Workload("point-prepared", _POINT, "prepared", (1, 8, 64), ALL, warm=True),
        Workload("aggregate", _AGGREGATE, "simple", (1, 8), PROXIES, warm=True, seconds=1.5),
        Workload("tpcb", "", "simple", (8,), PROXIES, seconds=2.0),
        Workload("miss-keys", _MISS_KEYS, "prepared", (1, 8), OURS),
        Workload("miss-texts", _MISS_TEXTS, "simple", (1, 8), OURS),
        Workload("off", _POINT, "simple", (1, 8), OURS, options="-c distribcache.cache=off"),
    )
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of pgbench: transactions per second without connecting, mean latency in ms, failed transactions."""

    tps: float
    latency_ms: float
    failed: int


def read_report(text: str) -> Measured:
    """Read pgbench's report. Raises ValueError when it holds no figures."""
    tps = re.search(r"^tps = ([\d.]+)", text, re.M)
    latency = re.search(r"^latency average = ([\d.]+) ms", text, re.M)
    if tps is None or latency is None:
        raise ValueError("pgbench gave no figures: " + " | ".join(text.strip().splitlines()[-4:]))
    failed = re.search(r"^number of failed transactions: (\d+)", text, re.M)
    return Measured(float(tps[1]), float(latency[1]), int(failed[1]) if failed else 0)
