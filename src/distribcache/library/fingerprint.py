"""``QueryFingerprint``: one query, by what it looks like and by what exactly it is.

The *template* groups: queries that differ in literals share it, and statistics and prediction go by it. It is never a
key, and neither is the fingerprint of libpg_query, which is equal for different tables. The key is the template and
``param_hash``, a digest of the exact text and of the parameters with their types: two different queries never share it.

>>> one, other = QueryFingerprint.from_query("SELECT 1 FROM t"), QueryFingerprint.from_query("SELECT 2 FROM t")
>>> one.template == other.template, one == other
(True, False)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from distribcache.errors import SerializationError
from distribcache.library.values import key_of
from distribcache.query import WorkloadType
from distribcache.sql.fingerprint import template
from distribcache.sql.parse import read
from distribcache.workload.classifier import classify

__all__ = ["QueryFingerprint"]


def _digest(*parts: bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.digest()[:16]


@dataclass(frozen=True, slots=True)
class QueryFingerprint:
    """``tables`` as the text names them; ``key`` is what tells this query from all others."""

    template: str
    tables: tuple[str, ...] = ()
    param_hash: bytes = b""
    workload: WorkloadType = field(default=WorkloadType.MIXED, compare=False)
    key: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tables", tuple(self.tables))
        object.__setattr__(
            self, "key", _digest(self.template.encode(), self.param_hash, *(table.encode() for table in self.tables))
        )

    @classmethod
    def from_query(cls, sql: str) -> QueryFingerprint:
        """Of one text, with the literals in it. A text that is not understood has no tables, and a key all the same."""
        parsed = read(sql.encode())
        names = sorted({str(name) for statement in parsed.statements for name in statement.relations})
        one = parsed.statements[0] if len(parsed.statements) == 1 else None
        return cls(
            template(sql), tuple(names), _digest(sql.encode()),
            WorkloadType.MIXED if one is None else classify(one.shape),
        )  # fmt: skip

    def with_params(self, *params: Any, **named: Any) -> QueryFingerprint:
        """The same query with these parameters: ``1``, ``True``, ``1.0`` and ``"1"`` are four different ones.

        Raises TypeError for a value that has no canonical bytes.
        """
        try:
            given = key_of([list(params), named])
        except SerializationError as error:
            raise TypeError(f"{error.message}; give plain values") from None
        return QueryFingerprint(self.template, self.tables, _digest(self.param_hash, given), self.workload)
