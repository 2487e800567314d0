"""A replication connection: relayed as it is, and yet what it writes counts.

A client that follows a database (``replication=database``) may also run SQL, which nobody here reads. So whatever the
server says to it may acknowledge a write, or a change of the catalogue: the floor is raised before it is relayed, and
where a transaction may have ended there is an alarm (coherence rules R4 and R6).

It may be saying so a thousand times a second while it streams. Then all that the client sends are pieces of a copy: the
last thing that it sent tells the two apart, and a doubt is taken for a statement.
"""

from __future__ import annotations

from distribcache.clock import now_ns
from distribcache.proxy.node import Node

__all__ = ["Unread"]

_COPY_DATA = b"d"
_COPY_DONE = b"c\0\0\0\4"
_IDLE = b"Z\0\0\0\5I"


class Unread:
    """What one such connection may have done to ``database``, which is entered as long as it lasts."""

    def __init__(self, node: Node, database: str) -> None:
        self._node = node
        self._name = database
        self._coherence = node.enter(database).coherence
        self._states = False
        self._tail = b""

    def from_client(self, data: bytes) -> None:
        """These bytes are about to be relayed to the server."""
        self._states = not data.startswith(_COPY_DATA) or data.endswith(_COPY_DONE)

    def from_upstream(self, data: bytes) -> None:
        """These bytes are about to be relayed to the client."""
        if self._states:
            self._tail = (self._tail + data[-len(_IDLE) :])[-len(_IDLE) :]
            self._happened(ended=self._tail == _IDLE)

    def close(self) -> None:
        """The connection is lost: what it was doing may have been done."""
        if self._states:
            self._happened(ended=self._tail != _IDLE)
        self._node.leave(self._name)

    def _happened(self, *, ended: bool) -> None:
        self._coherence.raise_floor(now_ns())
        if ended:
            self._node.databases.catalogue_alarm("ddl")
