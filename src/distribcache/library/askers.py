"""Who asks, found out before anything is looked up: believed of a pool, or asked on the very connection.

What is asked, and what may be believed, is said in ``scope``.

Rules:
1. A single connection is asked before each use. A pool is, unless it is ``uniform`` and its ``Standing`` holds a scope.
2. A question that fails is a reason to pass by, never an error: if the connection is broken, the statement will say so.
3. A setting that a policy was seen to read is part of every scope from then on.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.library.drivers.base import Session, named_once
from distribcache.library.keeper import Keeper
from distribcache.library.scope import Known, Proof, Scopes, Standing
from distribcache.library.steps import Steps

__all__ = ["Askers"]

_MOST_POOLS: Final = 256
_MOST_EXTRA: Final = 64


class Askers:
    """See the module; one per cache object."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._scopes = Scopes()
        self._pools: OrderedDict[str, Standing] = OrderedDict()
        self._proofs: weakref.WeakKeyDictionary[Any, Proof] = weakref.WeakKeyDictionary()
        self._extra: tuple[str, ...] = ()

    def passed_by(self) -> dict[str, str]:
        """Pools that are passed by, and why."""
        return {name: "pool_differs" for name, standing in self._pools.items() if standing.differs}

    def tell_by(self, settings: Iterable[str]) -> None:
        """Tell those who ask apart by these settings too."""
        self._extra = tuple(sorted({*self._extra, *settings}))[:_MOST_EXTRA]

    def known(self, session: Session) -> Steps[tuple[Known | str, bool]]:
        """The scope, or a reason; and whether the very connection was asked that will be used."""
        if session.pool is None:
            return (yield from self.ask(session)), True
        standing = self._standing(session.pool)
        if standing.differs:
            return "pool_differs", False
        coherence = self._keeper.coherence
        longest = int(self._keeper.settings.freshness.max_staleness * 1e9)
        believed = standing.believed(self._extra, coherence.words, longest) if session.uniform else None
        if believed is not None:
            return believed, False
        return (yield from self.ask(session)), True

    def ask(self, session: Session, *, filling: bool = False) -> Steps[Known | str]:
        """Ask the connection that will be used. ``filling``: find out on the way how arguments are sent."""
        coherence, extra = self._keeper.coherence, self._extra
        session.sent = True
        yield session.open()
        session.sent = False
        why = session.why_not()
        if why:
            return why
        asked_under = (coherence.words[EPOCH], coherence.words[SCHEMA])
        try:
            proof = self._proofs.get(session.body)
            answer = yield session.ask(self._scopes.question(extra, prove=proof is None), probe=filling)
        except Exception as error:  # noqa: BLE001 - rule 2
            self._keeper.failed(error)
            return "scope_query_failed"
        why = session.why_not()
        if why:
            return why
        known = self._scopes.read(answer, session.pid, coherence, extra, asked_under, proof)
        if isinstance(known, Known):
            self._proofs[session.body] = known.proof
        else:
            self._proofs.pop(session.body, None)
        if not session.passes and isinstance(known, Known) and not known.scope.read_committed:
            return "isolation"  # the statements around this one are to see what it sees
        if session.pool is not None and session.uniform:
            standing = self._standing(session.pool)
            if isinstance(known, str):
                standing.refuse(known)
            elif not standing.learn(known, extra):
                return "pool_differs"
        return known

    def _standing(self, pool: Any) -> Standing:
        name = named_once(pool)
        standing = self._pools.get(name)
        if standing is None:
            standing = self._pools[name] = Standing()
            if len(self._pools) > _MOST_POOLS:
                self._pools.popitem(last=False)
        return standing
