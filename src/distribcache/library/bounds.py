"""How old an answer may be for one read: what the read wishes, what its session has set, what the configuration says.

A hit must pass two questions. Is the ledger complete up to the ``floor`` (coherence rule R4)? And is the answer
``young`` enough for the bounds of its class, or, where only time ends entries, for all bounds there are?
"""

from __future__ import annotations

from distribcache.clock import now_ns
from distribcache.entry import AT_NS, COST_NS, WORKLOAD, Entry
from distribcache.library.keeper import Keeper
from distribcache.library.plan import Wish
from distribcache.library.scope import Known
from distribcache.query import Consistency
from distribcache.tiers.base import Key

__all__ = ["Bounds"]


class Bounds:
    """See the module; for any thread."""

    __slots__ = ("_keeper", "_of_classes")

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._of_classes = keeper.settings.staleness.bounds

    def floor(self, known: Known, wish: Wish, arrival: int) -> int:
        """The moment up to which the ledger must be complete."""
        bound = min(_own(known, wish), default=None)
        return self._keeper.floor(wish.consistency or known.scope.consistency, arrival, bound)

    def young(self, key: Key, entry: Entry, known: Known, wish: Wish) -> bool:
        """Is it within its bounds?"""
        keeper = self._keeper
        now = now_ns()
        if wish.ttl is not None and now - entry[AT_NS] > wish.ttl * 1e9:
            return False
        bound = self._of_classes.get(entry[WORKLOAD])
        if keeper.coherence.mode == "ttl":
            consistency = wish.consistency or known.scope.consistency or keeper.settings.freshness.consistency
            if consistency is Consistency.STRICT:
                return False
            own = _own(known, wish) + ([] if bound is None else [int(bound * 1e9)])
            return now - (entry[AT_NS] - entry[COST_NS]) <= min(own, default=1 << 63)
        # Freshness first, then validity, here as well: the ledger moves while this thread looks.
        return bound is None or (keeper.fresh(now - int(bound * 1e9)) and keeper.find(key) is entry)


def _own(known: Known, wish: Wish) -> list[int]:
    return [each for each in (wish.max_staleness_ns, known.scope.max_staleness_ns) if each is not None]
