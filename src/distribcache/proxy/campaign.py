"""All hits audited for a while, because somebody asked for it: what was found so far."""

from __future__ import annotations

from dataclasses import dataclass

from distribcache.clock import now_ns
from distribcache.coherence.auditor import Tally, Verdict

__all__ = ["Campaign"]


@dataclass(slots=True)
class Campaign:
    """Ends at ``until_ns``. ``before``: hits until it began; ``pending``: different answers that are not judged yet."""

    until_ns: int
    max_cost_ns: int
    before: int
    tally: Tally
    running: bool = True
    hits: int = 0
    skipped: int = 0
    pending: int = 0

    def report(self) -> dict[str, object]:
        """Names and values for the admin endpoint."""
        tally = self.tally
        return {
            "running": self.running,
            "seconds_left": max(0.0, (self.until_ns - now_ns()) / 1e9) if self.running else 0.0,
            "hits": self.hits,
            "audits": tally.decided,
            **{verdict.value: tally.verdicts[verdict] for verdict in Verdict},
            "skipped": self.skipped,
            "pending": self.pending,
            "causes": {cause.value: count for cause, count in tally.causes.items()},
            "oldest_superseded_ms": tally.oldest_ns / 1e6,
        }
