"""``distribcache demo`` with its last 40,000 orders: for tests of how it ends, where a million rows prove nothing."""

from __future__ import annotations

from dataclasses import replace

from distribcache.cli import main
from distribcache.cli.demonstration import dataset
from distribcache.cli.demonstration.dataset import ORDERS, Step

__all__ = ["STAGES"]

_ALL, _LAST = f"generate_series(1, {ORDERS})", f"generate_series({ORDERS - 39_999}, {ORDERS})"


def _small(step: Step) -> Step:
    return replace(step, statements=tuple(text.replace(_ALL, _LAST) for text in step.statements))


STAGES = tuple(tuple(tuple(map(_small, steps)) for steps in lanes) for lanes in dataset._STAGES)
assert STAGES != dataset._STAGES

if __name__ == "__main__":
    dataset._STAGES = STAGES
    main()
