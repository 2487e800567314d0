"""A test that fails tells what the caches before it have seen: what became of the reads, and what was an alarm.

Whoever reads of a miss where a hit was due finds its reason here, in the log of the one run in which it happened.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakSet

import pytest

__all__ = ["Witness", "witnesses"]


class Witness:
    """Whatever has something to tell while it lives."""

    def tell(self) -> str:
        raise NotImplementedError


witnesses: WeakSet[Witness] = WeakSet()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when != "teardown":
        for witness in list(witnesses):
            report.sections.append((type(witness).__name__, _told(witness.tell)))


def _told(tell: Callable[[], str]) -> str:
    """What it says of a failure must not become one."""
    try:
        return tell()
    except Exception as error:
        return f"nothing: {error!r}"
