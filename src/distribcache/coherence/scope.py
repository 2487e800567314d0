"""Session scope: everything about a session that can change what a SELECT answers, as one interned identity.

Learned by one question on the client's own connection (``sql.settings.scope_query``), never guessed from the SETs that
pass by: a function, a trigger or a rollback can change a setting and report nothing (coherence trap 12). Two sessions
with the same content share one ``ident``; idents are never reused, so an entry of a forgotten scope can only be missed.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

from distribcache.coherence.epoch import digest
from distribcache.errors import ProtocolError
from distribcache.query import Consistency, WorkloadType
from distribcache.sql.settings import KEYED, OWN, SCOPE_COLUMNS, UNLOADED

__all__ = ["Idents", "Scope", "ServerFacts", "read_scope"]

_FIXED = len(SCOPE_COLUMNS)
_ALWAYS = frozenset(name.lower() for name in KEYED)
_PATH = KEYED.index("search_path")
_NAMES = re.compile(r'"((?:[^"]|"")+)"|([^\s",]+)')


Content = str | int | tuple["Content", ...] | None


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Who answered: what coherence rule R9 compares with the server of the WAL reader."""

    backend_pid: int
    in_recovery: bool
    postmaster_start: str
    system_identifier: str | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a session is. ``refusal`` is a stable code when nothing of it may be cached, else empty."""

    ident: int
    schemas: tuple[str, ...]
    read_committed: bool
    statement_timeout_ms: int
    refusal: str
    consistency: Consistency | None
    max_staleness_ns: int | None
    workload: WorkloadType | None
    own: tuple[str | None, ...]
    server: ServerFacts
    prepared: frozenset[bytes] | None = None
    """Names of prepared statements that are what a Parse said; None when that was not asked."""
    settings: frozenset[str] = frozenset()
    """The settings that are part of the content, lower-case."""
    idle_ms: int = 0
    """The shortest time after which the server ends a session or a transaction that it takes for idle; 0: none."""
    listens: bool = False
    """Notifications come to it, each between two transactions."""


class Idents:
    """Hands out integers for contents; the oldest are forgotten beyond ``cap`` and their integers never come again.

    Other processes have other integers: to them an integer is told by its ``digest``, which is that of the content.
    """

    def __init__(self, cap: int = 65536) -> None:
        self._cap = cap
        self._known: OrderedDict[object, int] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self._next = count(1)

    def unique(self) -> int:
        """An integer that stands for nothing else, now or later."""
        return next(self._next)

    def of(self, content: Content) -> int:
        """The integer that stands for ``content``."""
        return self._known_or(content) or self._new(content, digest(b"scope", _canonical(content)))

    def prepared(self, sql: bytes, oids: tuple[int, ...], parsed_in: int, scope: int) -> int:
        """The integer for a prepared statement: its text, declared types, and the scopes at its Parse and now."""
        content = (sql, oids, parsed_in, scope)
        known = self._known_or(content)
        if known:
            return known
        scopes = self.digest(parsed_in), self.digest(scope)
        named = all(scopes)
        return self._new(content, digest(b"prepared", sql, _canonical(oids), *scopes) if named else b"")

    def digest(self, ident: int) -> bytes:
        """16 bytes that are equal in every process for equal contents; empty when the integer stands for none."""
        return self._digests.get(ident, b"")

    def _known_or(self, content: object) -> int:
        ident = self._known.get(content, 0)
        if ident:
            self._known.move_to_end(content)
        return ident

    def _new(self, content: object, named: bytes) -> int:
        ident = self._known[content] = next(self._next)
        if named:
            self._digests[ident] = named
        if len(self._known) > self._cap:
            self._digests.pop(self._known.popitem(last=False)[1], None)
        return ident


def _canonical(content: Content) -> bytes:
    """Bytes of nested tuples, texts, numbers and None that no other such value has."""
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def milliseconds(text: str) -> int | None:
    """``250``, ``250ms``, ``2s``, ``1min``, ``1d`` → milliseconds; None when it is none of these."""
    text = text.strip().lower()
    for unit, factor in (("ms", 1), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("s", 1000), ("", 1)):
        if text.endswith(unit):
            number = text[: len(text) - len(unit)].strip()
            try:
                value = float(number)
            except ValueError:
                return None
            return int(value * factor) if value >= 0 else None
    return None


def _named(path: str | None, user: str | None) -> tuple[str, ...]:
    """What a search path names, but the temporary schema, which is not there; perhaps more than the session may see."""
    names = [quoted.replace('""', '"') or bare.lower() for quoted, bare in _NAMES.findall(path or "")]
    found = [user or "" if name == "$user" else name for name in names if name != "pg_temp"]
    return tuple(found if "pg_catalog" in found else ["pg_catalog", *found])


def read_scope(row: list[bytes | None], idents: Idents, extra: tuple[str, ...] = ()) -> Scope:
    """One row of ``scope_query(extra)`` → Scope. Raises ProtocolError when it has another shape.

    The names in ``extra`` are part of the content: equal values of two different settings are not the same scope.
    """
    if len(row) != _FIXED + len(OWN) + len(KEYED) + len(extra):
        raise ProtocolError("the answer to the question about the session has another number of columns")
    text = [None if value is None else value.decode("utf-8", "surrogateescape") for value in row]
    (
        database,
        session_user,
        current_user,
        schemas,
        temporary,
        isolation,
        timeout,
        pid,
        recovery,
        started,
        system,
        prepared,
        idle,
        listens,
    ) = text[:_FIXED]
    own = tuple(text[_FIXED : _FIXED + len(OWN)])
    given = zip(text[_FIXED + len(OWN) :], (*KEYED, *extra), strict=True)
    settings = tuple([UNLOADED.get(name) if value is None else value for value, name in given])
    cache, consistency, staleness, workload, branch, as_of = own
    refusal = ""
    names = json.loads(schemas or "[]")
    if temporary == "f":  # an empty schema hides nothing
        names = [name for name in names if not name.startswith("pg_temp_")]
    if temporary != "f" or schemas is None:
        refusal = "temporary_schema"
    elif cache not in (None, "", "on", "true", "1", "yes"):
        refusal = "cache_off" if cache in ("off", "false", "0", "no") else "bad_setting"
    elif (settings[KEYED.index("client_encoding")] or "").upper() not in ("UTF8", "SQL_ASCII"):
        refusal = "client_encoding"
    elif settings[KEYED.index("standard_conforming_strings")] != "on":
        refusal = "standard_conforming_strings"  # the server lexes another text than the analysis does
    elif isolation == "serializable":
        refusal = "isolation"  # the server watches what is read, to let a writer fail: it has to see each read
    chosen: Consistency | None = None
    bound: int | None = None
    hint: WorkloadType | None = None
    try:
        chosen = Consistency(consistency) if consistency else None
        hint = WorkloadType(workload) if workload else None
    except ValueError:
        refusal = refusal or "bad_setting"
    if staleness:
        bound_ms = milliseconds(staleness)
        if bound_ms is None:
            refusal = refusal or "bad_setting"
        else:
            bound = bound_ms * 1_000_000
    _, in_protocol = json.loads(prepared or "[null, null]")
    # What was prepared beside temporary objects may mean one of them, and nobody else has those.
    found = (*names, *([] if temporary == "f" else [pid])) if schemas else None
    content = (database, session_user, current_user, found, isolation, branch, as_of, workload, settings, extra)
    return Scope(
        ident=idents.of(content),
        schemas=_named(settings[_PATH], current_user) if schemas is None else tuple(names),
        read_committed=isolation == "read committed",
        statement_timeout_ms=milliseconds(timeout or "0") or 0,
        refusal=refusal,
        consistency=chosen,
        max_staleness_ns=bound,
        workload=hint,
        own=own,
        server=ServerFacts(int(pid or 0), recovery == "t", started or "", system),
        prepared=frozenset(name.encode("utf-8", "surrogateescape") for name in in_protocol or ()),
        settings=frozenset(extra) | _ALWAYS,
        idle_ms=min(filter(None, map(milliseconds, (idle or "").split())), default=0),
        listens=listens == "t",
    )
