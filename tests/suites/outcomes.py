"""What a run of a foreign suite gave, and what each pass must give. Pure; the runner does the work.

A  direct                    the baseline: whatever fails here fails without us
B  through, cache off        identical to A
C  through, hot, run twice   both runs identical to A, and hits > 0
D  through, invalidation muted   must differ from A: a suite that cannot go red proves nothing

*Identical* is: the same set of tests, each with the same status, and where the suite leaves the bytes that each test
printed, the same bytes. A test whose result is not the same in two direct runs cannot be compared; its name goes into
the suite's list ``unstable``, with the reason, and is shown as such.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PASSES", "Outcome", "Run", "Verdict", "differences", "judge", "read_report"]

PASSES = ("A", "B", "C", "D")
_RANK = {"passed": 0, "skipped": 1, "failed": 2, "error": 3}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test: ``status`` is passed, failed, error or skipped; ``output`` a digest of what it printed, or empty."""

    status: str
    output: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite. ``hits`` and ``lookups`` are what the proxy counted during it."""

    outcomes: Mapping[str, Outcome]
    seconds: float
    hits: int = 0
    misses: int = 0
    log: str = ""

    @property
    def failed(self) -> list[str]:
        return sorted(test for test, o in self.outcomes.items() if o.status in ("failed", "error"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """``ok`` says whether the pass gave what it must; ``words`` say it to people."""

    ok: bool
    words: str
    changed: list[str] = field(default_factory=list)


def differences(base: Run, other: Run, unstable: Collection[str]) -> list[str]:
    """Tests whose outcome is not that of ``base``, sorted; those that only one run has are among them."""
    names = set(base.outcomes) | set(other.outcomes)
    return sorted(n for n in names if n not in unstable and base.outcomes.get(n) != other.outcomes.get(n))


def judge(which: str, base: Run | None, runs: list[Run], unstable: Collection[str]) -> Verdict:
    """The verdict on the runs of pass ``which``, given the direct run ``base`` (None when it was not asked for)."""
    if not all(run.outcomes for run in runs):
        return Verdict(False, "no test ran")
    if which == "A":
        again = runs[0]
        changed = sorted({name for run in runs[1:] for name in differences(again, run, unstable)})
        return Verdict(not changed, "baseline" if not changed else "not the same when repeated", changed)
    if base is None:
        return Verdict(False, "nothing to compare with: run pass A too")
    changed = sorted({name for run in runs for name in differences(base, run, unstable)})
    if which == "D":
        return Verdict(bool(changed), "red, as it must be" if changed else "stays green: it proves nothing", changed)
    if changed:
        return Verdict(False, "differs from A", changed)
    if which == "B" and any(run.hits or run.misses for run in runs):
        return Verdict(False, "identical to A, but the cache was not off")
    if which == "C" and not all(run.hits > 0 for run in runs):
        return Verdict(False, "identical to A, but nothing was served from memory")
    return Verdict(True, "identical to A")


def read_report(report: Path) -> dict[str, Outcome]:
    """Statuses by test id out of a JUnit file. An id that occurs twice (test and its teardown) keeps the worse one."""
    outcomes: dict[str, Outcome] = {}
    if not report.exists():
        return outcomes
    for case in ET.parse(report).getroot().iter("testcase"):
        status = "passed"
        for child in case:
            found = {"failure": "failed", "error": "error", "skipped": "skipped"}.get(child.tag)
            if found and _RANK[found] > _RANK[status]:
                status = found
        name = f"{case.get('classname')}::{case.get('name')}"
        before = outcomes.get(name)
        if before is None or _RANK[before.status] < _RANK[status]:
            outcomes[name] = Outcome(status)
    return outcomes
