"""A node as people see it, be it one process or several: what the admin endpoint shows and changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from distribcache.coherence.database import Coherence
from distribcache.config import Settings
from distribcache.proxy.figures import Figures, figures_of
from distribcache.proxy.node import Node
from distribcache.proxy.workers import Workers

__all__ = ["Many", "One", "Whole"]


class Whole(Protocol):
    """``audit``: all hits for so many seconds, 0 ends it; ``audited``: what that has found, empty before the first."""

    @property
    def settings(self) -> Settings: ...
    @property
    def databases(self) -> Iterable[Coherence]: ...
    async def figures(self) -> Figures: ...
    async def audited(self) -> dict[str, Any]: ...
    def audit(self, seconds: float, max_cost_s: float) -> None: ...


class One:
    """A node of one process."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.settings = node.settings
        self.databases = node.databases

    async def figures(self) -> Figures:
        return figures_of(self._node)

    async def audited(self) -> dict[str, Any]:
        campaign = self._node.audits.campaign
        return {} if campaign is None else campaign.report()

    def audit(self, seconds: float, max_cost_s: float) -> None:
        if seconds:
            self._node.audits.begin(self._node, seconds, max_cost_s)
        else:
            self._node.audits.end(self._node)


class Many:
    """A node of several processes."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.settings = workers.settings
        self.databases = workers.databases

    async def figures(self) -> Figures:
        return (await self._workers.figures())[0]

    async def audited(self) -> dict[str, Any]:
        return _added((await self._workers.figures())[1])

    def audit(self, seconds: float, max_cost_s: float) -> None:
        self._workers.audit(seconds, max_cost_s)


def _added(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The reports of several workers on the same audits as one."""
    whole: dict[str, Any] = {}
    for report in reports:
        for name, value in report.items():
            known = whole.get(name)
            if known is None:
                whole[name] = value
            elif isinstance(value, dict):
                whole[name] = dict(Counter(known) + Counter(value))
            elif isinstance(value, bool) or name in ("seconds_left", "oldest_superseded_ms"):
                whole[name] = max(known, value)
            else:
                whole[name] = known + value
    return whole
