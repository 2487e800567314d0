"""CancelRequest: relayed to the server as it is, because the pid and secret that clients hold are the server's own.

The server decides whether the secret is right. What waits for another client's fill, here or in another worker, is also
taken out of its wait. At most ``_AT_ONCE`` requests are relayed at a time; more are dropped, as an overloaded server
would.
"""

from __future__ import annotations

import asyncio

from distribcache.errors import UpstreamError
from distribcache.proxy.node import Node
from distribcache.proxy.upstream import Target, connect
from distribcache.wire.startup import CancelRequest

__all__ = ["relay_cancel"]

_AT_ONCE = 64
_PATIENCE = 10.0
_running = 0


async def relay_cancel(node: Node, target: Target, request: CancelRequest) -> None:
    """Relay one request and wait, at most ten seconds, until the server has closed: then the signal was sent."""
    global _running
    if _running >= _AT_ONCE:
        return
    _running += 1
    try:
        node.totals.cancels += 1
        session = node.sessions.get((request.pid, request.secret))
        if session is not None:
            if session.cancelled():
                return
        elif node.peers is not None and await node.peers.cancelled(request.pid, request.secret):
            return
        transport, peer, _ = await connect(target)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        peer.on_lost = lambda: None if gone.done() else gone.set_result(None)
        transport.write(request.raw)
        await asyncio.wait([gone], timeout=_PATIENCE)
        transport.abort()
    except UpstreamError:
        pass  # a cancel has no answer
    finally:
        _running -= 1
