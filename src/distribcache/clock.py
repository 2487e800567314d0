"""Time, in one place, so that everything else can be given it.

* ``now_ns``: the clock of probes and floors, nanoseconds. CLOCK_BOOTTIME where there is one: it goes on during suspend,
  so an entry cannot look fresh because the machine slept. CLOCK_MONOTONIC elsewhere.
* ``CoarseClock``: seconds, updated by the event loop a few times a second; for TTLs only, where a call per look-up
  would
  double the cost of a hit and being 100 ms late does no harm. Never for freshness: it stands still while the process is
  stopped.
"""

from __future__ import annotations

import time

__all__ = ["CoarseClock", "now_ns", "wall_time"]

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_ns() -> int:
    """Nanoseconds of a clock that never goes back and does not stop during suspend."""
    return time.clock_gettime_ns(_CLOCK)


def wall_time() -> float:
    """Seconds since the Unix epoch: for people, and for what other processes compare. It may go back."""
    return time.time()


class CoarseClock:
    """Seconds as of the last ``tick``; read the attribute ``now`` directly on hot paths."""

    __slots__ = ("now",)

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def tick(self) -> None:
        self.now = now_ns() / 1e9
