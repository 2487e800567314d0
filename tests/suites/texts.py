"""The reads in somebody's scripts for psql: its own commands and the rows of COPY taken out, and each text once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import postgast

from distribcache.sql.cacheability import Kind
from distribcache.sql.parse import read

__all__ = ["texts_of"]

_COPY = re.compile(r"^copy\b[^;]*from\s+stdin[^;]*;.*?^\\\.$", re.I | re.M | re.S)
_COMMAND = re.compile(r"^\\.*$", re.M)
_ENDING = re.compile(r"\\(?:gset|gexec|gdesc|gx|g|crosstabview|;).*$", re.M)
# They end the session, wait, do something to the server, or count who is connected: a cache's own connections too. Or
# they list prepared statements in the order of a hash table, which another one that came and went has changed.
_NEVER = re.compile(
    rb"pg_(?:sleep|terminate|cancel|reload|rotate|switch|promote|drop|create|copy|stat_|locks|replication|prepared_st)"
    rb"|lo_|advisory",
    re.I,
)


def texts_of(folder: Path, tests: Sequence[str] = ()) -> dict[str, bytes]:
    """The reads in the files of ``folder``, each once, by file and number."""
    found: dict[bytes, str] = {}
    for path in sorted(folder.glob("*.sql")):
        if tests and path.stem not in tests:
            continue
        text = path.read_text(errors="replace")
        text = _ENDING.sub(";", _COMMAND.sub("", _COPY.sub("", text)))
        with contextlib.suppress(postgast.PgQueryError):  # three files test the lexer itself
            for number, part in enumerate(postgast.split(text, method="scanner")):
                asked = part.strip().encode()
                if _NEVER.search(asked) is None and _reads_relations(asked):
                    found.setdefault(asked, f"{path.stem}#{number}")
    return {name: asked for asked, name in found.items()}


def _reads_relations(asked: bytes) -> bool:
    parsed = read(asked)
    if parsed.error or len(parsed.statements) != 1 or parsed.statements[0].kind is not Kind.READ:
        return False
    return bool(parsed.statements[0].names.relations)
