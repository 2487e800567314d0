"""Deferred BEGIN: a transaction that upstream need not know of until something has to go there.

Drivers wrap every read in a transaction. A BEGIN that only says what is known to be the default (read committed, read
only or read write) is answered here; it and the savepoints still open are sent, in the client's order and form, before
the first statement that has to go up. COMMIT or ROLLBACK before that ends it without a trace.

Facts only, no IO: the session asks ``control`` what a statement would do and applies the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from distribcache.sql.cacheability import Kind, Statement

__all__ = ["Transaction", "control"]

_LONGEST = 63
"""Bytes of a name. The server cuts what is longer, and says so; our parser cuts it and says nothing."""


@dataclass(slots=True)
class Transaction:
    """``deferred``: (savepoint name or "" for BEGIN, bytes of a complete exchange); empty when none is open here."""

    deferred: list[tuple[str, bytes]] = field(default_factory=list)
    impure: bool = False
    """The transaction did something other than proven pure reads: no hit and no fill until it ends."""
    ddl: bool = False
    cause: str = "ddl"
    """What the alarm at its end is counted as: ``ddl``, or ``code`` where no text said so."""
    everywhere: bool = False
    poll: bool = False
    read: bool = False
    """A read was answered from memory since the transaction began, or since a query went up in its place."""
    hits: int = -1
    """How many hits the session had had at that moment; -1: no transaction is open."""
    bypass: str = ""
    """Why a transaction begun upstream is not served; empty when it is."""

    @property
    def local(self) -> bool:
        return bool(self.deferred)

    def ended(self) -> None:
        """Upstream says that no transaction is open."""
        self.impure = self.ddl = self.everywhere = self.poll = self.read = False
        self.hits = -1
        self.bypass = ""


def control(
    statement: Statement, text: bytes, exchange: bytes, deferred: list[tuple[str, bytes]], *, may_begin: bool
) -> tuple[bytes, list[tuple[str, bytes]]] | None:
    """Answer transaction control here: (command tag, what is deferred afterwards), or None when it must go upstream.

    ``may_begin``: nothing is open upstream and the session's isolation is known to be read committed.
    """
    kind = statement.kind
    if kind is Kind.BEGIN:
        plain = statement.isolation in (None, "read committed") and statement.deferrable is None
        if deferred or not may_begin or not plain:
            return None
        word = text.lstrip()[:5].lower()
        tag = {b"begin": b"BEGIN", b"start": b"START TRANSACTION"}.get(word)
        return None if tag is None else (tag, [("", exchange)])
    if not deferred:
        return None
    if kind is Kind.COMMIT and not statement.chain:
        return b"COMMIT", []
    if kind is Kind.ROLLBACK and not statement.chain:
        return b"ROLLBACK", []
    if kind is Kind.SAVEPOINT and 0 < len(statement.name.encode()) < _LONGEST:
        return b"SAVEPOINT", [*deferred, (statement.name, exchange)]
    if kind in (Kind.RELEASE, Kind.ROLLBACK_TO):
        at = max((i for i, (name, _) in enumerate(deferred) if i and name == statement.name), default=0)
        if not at:
            return None
        return (b"RELEASE", deferred[:at]) if kind is Kind.RELEASE else (b"ROLLBACK", deferred[: at + 1])
    return None
