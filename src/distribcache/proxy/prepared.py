"""A prepared statement as the client knows it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Prepared"]


@dataclass(slots=True)
class Prepared:
    """``scope`` is the session's identity at Parse; ``proved`` the schema slot when upstream last accepted it, -1
    never.

    ``own``: a ``SHOW distribcache.*``, which upstream has never seen.
    """

    sql: bytes
    oids: tuple[int, ...] = ()
    scope: int = 0
    proved: int = -1
    own: bool = False
