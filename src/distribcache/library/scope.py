"""Who asks: the scope of a connection, and what is believed of a pool.

A connection is asked on that very connection before each use: anybody who holds it may have said SET ROLE meanwhile. A
pool is asked on one of its connections with every miss, and at least every ``max_staleness``; in between it is believed
that its connections are alike. The first answer that differs ends that belief for good: from then on the pool's reads
go to PostgreSQL, with the reason ``pool_differs``. Answers are compared within one state of the catalogue only: where
that has moved, all connections may have changed alike. A pool that runs something at each check-out is believed
nothing: there a connection is checked out and asked for each read.

A scope counts for one server only (coherence rule R9), and for the database whose change stream is followed.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any, Final

from distribcache.clock import now_ns
from distribcache.coherence.database import Coherence
from distribcache.coherence.epoch import digest
from distribcache.coherence.ledger import EPOCH, SCHEMA
from distribcache.coherence.scope import Idents, Scope, read_scope
from distribcache.errors import ProtocolError
from distribcache.library.forks import concerns
from distribcache.sql.settings import SCOPE_COLUMNS, scope_query

__all__ = ["Known", "Proof", "Scopes", "Standing", "told_apart"]

_MOST: Final = 1024
_PASSING: Final = ("wrong_server", "scope_query_failed")
_STARTED: Final = SCOPE_COLUMNS.index("postmaster_start")
_SYSTEM: Final = SCOPE_COLUMNS.index("system_identifier")
_NAMES: Final = [f"c{place}" for place in range(len(SCOPE_COLUMNS) + 1)]


Proof = tuple[int, str, str | None]
"""Of a connection: its process, the start of the server as text, its system identifier."""
Parsed = tuple[Scope, int, bytes, str]
"""The scope, its server, both as bytes that mean them in every process, and the database."""


@dataclass(frozen=True, slots=True)
class Known:
    """A scope that may be served. ``identity``: the same as bytes that mean it in every process."""

    scope: Scope
    server: int
    database: str
    identity: bytes
    asked_under: tuple[int, int]

    @property
    def proof(self) -> Proof:
        server = self.scope.server
        return server.backend_pid, server.postmaster_start, server.system_identifier


class Standing:
    """What is believed of a pool."""

    __slots__ = ("at_ns", "differs", "extra", "known")

    def __init__(self) -> None:
        self.known: Known | None = None
        self.extra: tuple[str, ...] = ()
        self.at_ns = 0
        self.differs = False

    def believed(self, extra: tuple[str, ...], words: memoryview, longest_ns: int) -> Known | None:
        """The scope of its connections; None when it has to be asked."""
        known = self.known
        if known is None or self.extra != extra or now_ns() - self.at_ns > longest_ns:
            return None
        return known if known.asked_under == (words[EPOCH], words[SCHEMA]) else None

    def learn(self, known: Known, extra: tuple[str, ...]) -> bool:
        """One of its connections has answered. False: it is not like another one."""
        before = self.known
        if before is not None and self.extra == extra and before.asked_under == known.asked_under:
            self.differs = self.differs or told_apart(before, known)
        self.known, self.extra, self.at_ns = known, extra, now_ns()
        return not self.differs

    def refuse(self, reason: str) -> None:
        """One of its connections may not be served at all. Is it another server now, or unlike the others?"""
        self.differs = self.differs or (self.known is not None and reason not in _PASSING)
        self.known = None


def told_apart(one: Known, other: Known) -> bool:
    """Is what one of them may see perhaps not what the other may?"""
    return (one.scope.ident, one.server) != (other.scope.ident, other.server)


class Scopes:
    """Reads answers about scopes; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idents = Idents()
        self._memo: dict[tuple[str, int, tuple[str, ...], Proof | None], Parsed] = {}
        concerns(self)

    def forked(self) -> None:
        """Whoever holds the lock is the parent's."""
        self._lock = threading.Lock()

    @staticmethod
    def question(extra: tuple[str, ...], *, prove: bool = True) -> str:
        """A SELECT of one text, whatever the driver makes of types. ``prove``: which server it is, too."""
        asked = scope_query(extra, prove_server=prove, statements=False)
        names = ", ".join(_NAMES)
        return f"SELECT pg_catalog.row_to_json(asked)::pg_catalog.text FROM ({asked}) AS asked({names})"

    def read(
        self, answer: str, pid: int, coherence: Coherence, extra: tuple[str, ...], asked_under: tuple[int, int],
        proof: Proof | None = None,
    ) -> Known | str:  # fmt: skip
        """The scope, or the reason why nothing of it may be cached.

        ``proof``: what this connection was found to lead to before. It does still if its process and the server's start
        are the same ones.
        """
        try:
            scope, server, identity, database = self._parsed(answer, pid, extra, proof)
        except (ProtocolError, ValueError, TypeError, KeyError, AttributeError):
            return "scope_query_failed"
        reason = _wrong_server(scope, pid, coherence) or scope.refusal
        if not reason and coherence.name and database != coherence.name:
            reason = "another_database"
        return reason or Known(scope, server, database, identity, asked_under)

    def _parsed(self, answer: str, pid: int, extra: tuple[str, ...], proof: Proof | None) -> Parsed:
        """What an answer says; a connection that has not changed gives the same one each time."""
        key = (answer, pid, extra, proof)
        with self._lock:
            found = self._memo.get(key)
            if found is None:
                if len(self._memo) >= _MOST:
                    self._memo.clear()
                found = self._memo[key] = self._parse(*key)
        return found

    def _parse(self, answer: str, pid: int, extra: tuple[str, ...], proof: Proof | None) -> Parsed:
        fields: dict[str, Any] = json.loads(answer, parse_int=str, parse_float=str)
        *fixed, settings = [fields[name] for name in _NAMES]
        if proof is not None and proof[:2] == (pid, fixed[_STARTED]):
            fixed[_SYSTEM] = proof[2]
        scope = read_scope([_text(each) for each in [*fixed, *settings]], self._idents, extra)
        server = self._idents.of((scope.server.system_identifier, scope.server.postmaster_start))
        named = self._idents.digest(scope.ident)
        facts = f"{scope.server.system_identifier} {scope.server.postmaster_start}".encode()
        return scope, server, digest(named, facts) if named else b"", str(fixed[0])


def _text(value: Any) -> bytes | None:
    if value is None or isinstance(value, str):
        return None if value is None else value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return json.dumps(value).encode()


def _wrong_server(scope: Scope, pid: int, coherence: Coherence) -> str:
    """Coherence rule R9: is the connection's server the one whose WAL is read? Empty when it is."""
    if scope.server.backend_pid != pid:
        return "pooler"
    identity = coherence.identity
    if identity is None:
        return "" if coherence.mode == "ttl" else "wrong_server"
    same = (
        scope.server.system_identifier == identity.system_identifier
        and scope.server.postmaster_start == identity.postmaster_start
        and not scope.server.in_recovery
    )
    return "" if same else "wrong_server"
