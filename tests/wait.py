"""Waiting for a condition, with a deadline, in tests that cannot await an event of another process."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(
    condition: Callable[[], object], explain: Callable[[], str] | str = "condition", seconds: float = 60.0
) -> None:
    """Poll ``condition`` until it is true; fails with ``explain`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(explain if isinstance(explain, str) else explain())
        time.sleep(0.01)
