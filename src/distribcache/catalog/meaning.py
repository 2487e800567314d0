"""What the names of a text stood for when they were looked up, so that it can be told later whether they still do.

Why that matters: PostgreSQL looks the names of a prepared statement up at its Parse, and again only when one of the
*objects that it found* has changed. A table that is made later in an earlier schema of the search path, a function that
would fit better, a cast: these change what the same text means to whoever parses it now, and nothing for those who
parsed it before. So texts that are equal may read different tables, and a prepared statement is taken for its text only
while its names still stand for the same objects.

Equal meanings suffice, though something may have come and gone between them: a statement that had found that was looked
up again when it went.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

__all__ = ["NO_NAMES", "Meaning", "meaning_of"]


class Meaning(NamedTuple):
    """``found`` stands for all objects found; ``vague``: other names are looked up too, which nobody has followed."""

    found: bytes
    vague: bool = False


NO_NAMES = Meaning(b"")


def meaning_of(found: frozenset[tuple[str, int, int]], *, vague: bool) -> Meaning:
    """Of (kind, which of the names of that kind, oid)."""
    return Meaning(blake2b(repr(sorted(found)).encode(), digest_size=16).digest(), vague)
