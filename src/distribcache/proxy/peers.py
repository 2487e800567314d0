"""A worker's way to the others, over main: what they have counted, whom a cancel request is for, and whose turn it is
to ask for an expensive miss (``turns``).

Whoever asks waits a bounded time and then goes on with what is known: a worker that hangs holds nobody up.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, Final

from distribcache.coherence.channel import Channel
from distribcache.coherence.freshness import Watched
from distribcache.proxy.answer import Table
from distribcache.proxy.figures import figures_of
from distribcache.proxy.node import Node
from distribcache.proxy.shows import Others, part_of
from distribcache.tiers.base import Digest

__all__ = ["Peers"]

_PATIENCE_S: Final = 2.0
_CANCEL_PATIENCE_S: Final = 0.5
_EVERY_S: Final = 1.0


class Peers:
    """See the module."""

    def __init__(self, channel: Channel, node: Node, index: int) -> None:
        self.index = index
        self._channel = channel
        self._node = node
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pushed: dict[str, Any] = {}

    def start(self) -> None:
        """Tell main from time to time what was counted: it keeps that when this process is gone."""
        figures = figures_of(self._node).plain()
        if figures != self._pushed and not self._channel.full:
            self._pushed = figures
            self._channel.send({"kind": "figures", **figures})
        self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self.start)

    def stop(self) -> None:
        """Say it for the last time."""
        if self._timer is not None:
            self._timer.cancel()
        self._channel.send({"kind": "figures", **figures_of(self._node).plain()})

    async def _ask(self, message: dict[str, Any], seconds: float = _PATIENCE_S) -> dict[str, Any]:
        """Main's answer, or nothing when it is late."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._channel.send({**message, "id": number})
        try:
            async with asyncio.timeout(seconds):
                found: dict[str, Any] = await answer
                return found
        except TimeoutError:
            return {}
        finally:
            del self._answers[number]

    async def others(self, show: str, database: str) -> Others:
        """What the others say to ``SHOW distribcache.<show>``, and what main knows of the database."""
        answer = await self._ask({"kind": "show", "show": show, "name": database})
        watched = [Watched(name, tuple(columns), *rest) for name, columns, *rest in answer.get("watched", ())]
        return Others([_table(each) for each in answer.get("tables", ())], answer.get("report", {}), watched)

    async def cancelled(self, pid: int, secret: bytes) -> bool:
        """Has another worker this session, and must upstream not be told? See ``Session.cancelled``."""
        answer = await self._ask({"kind": "cancel", "pid": pid, "secret": secret.hex()}, _CANCEL_PATIENCE_S)
        return bool(answer.get("silent"))

    async def take(self, digest: Digest, seconds: float, patience: float) -> bool:
        """Is it this worker's turn to ask PostgreSQL, for so many seconds? False: another's has just ended."""
        try:
            answer = await self._ask({"kind": "turn", "digest": digest.hex(), "seconds": seconds}, patience)
        except asyncio.CancelledError:
            self.give_back(digest)  # it may be on its way
            raise
        return bool(answer.get("mine", True))

    def give_back(self, digest: Digest) -> None:
        """The turn is over."""
        self._channel.send({"kind": "turn_over", "digest": digest.hex()})

    def hear(self, message: dict[str, Any]) -> None:
        """What main says; what is not for us is ignored."""
        kind = message["kind"]
        if kind == "answered":
            answer = self._answers.get(message["id"])
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif kind == "asked":
            self._channel.send({"kind": "said", "id": message["id"], **self._say(message)})
        elif kind == "wanted":
            self._node.store.wanted(bytes.fromhex(message["digest"]))
        elif kind == "audit":
            audits, node = self._node.audits, self._node
            if message["seconds"]:
                audits.begin(node, message["seconds"], message["max_cost"])
            else:
                audits.end(node)

    def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        node, what = self._node, message["what"]
        if what == "show":
            return {"table": part_of(node, message["show"])}
        if what == "cancel":
            session = node.sessions.get((message["pid"], bytes.fromhex(message["secret"])))
            return {"silent": session is not None and session.cancelled()}
        campaign = node.audits.campaign
        return {**figures_of(node).plain(), "campaign": None if campaign is None else campaign.report()}


def _table(plain: Any) -> Table:
    return tuple(plain[0]), [tuple(row) for row in plain[1]]
