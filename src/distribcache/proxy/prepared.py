"""A prepared statement as the client knows it."""

from __future__ import annotations

from dataclasses import dataclass

from distribcache.catalog.meaning import Meaning

__all__ = ["Prepared"]


@dataclass(slots=True)
class Prepared:
    """``scope`` is the session's identity at Parse; ``proved`` the schema slot when upstream last accepted it, -1
    never.

    ``meaning`` is what its names were known to mean before its Parse was sent, ``lsn`` a position of the log before
    that: its Parse is an analysis, and dated like one.
    ``own``: a ``SHOW distribcache.*``, which upstream has never seen.
    """

    sql: bytes
    oids: tuple[int, ...] = ()
    scope: int = 0
    proved: int = -1
    own: bool = False
    meaning: Meaning | None = None
    lsn: int = 0

    def runs_as_written(self, meaning: Meaning | None, schema: int) -> bool:
        """Do its names stand for the relations, functions and types that a Parse would find now, so ``meaning``?
        ``schema``: the schema slot.
        """
        if self.lsn >= schema:
            return True
        return meaning is not None and meaning.stands_since(self.meaning)

    def reads_as_written(self, meaning: Meaning, schema: int) -> bool:
        """And so for all other names: may its answer be taken for that of its text?"""
        return self.lsn >= schema or (meaning.stands_since(self.meaning) and meaning.is_fixed_since(self.meaning))
