"""Does a statement that was parsed before still mean what its text means to whoever parses it now?

Why that is a question: PostgreSQL looks the names of a prepared statement up at its Parse, and again only when one of
the *objects that it found* has changed or gone. A table that is made later in an earlier schema of the search path, a
function that would fit better, a cast: these change what the same text means to whoever parses it now, and nothing for
those who parsed it before. So texts that are equal may read different tables.

The answer rests on the *candidates*: all objects of a name in the session's schemas, whichever of them is chosen.

1. A statement is bound to a candidate of now, or to one that has gone from its name: then PostgreSQL looks again.
2. So a name with one candidate is no question, and neither is one whose candidates were all there when the statement
   was parsed: the best of more was the best of these. What came with the server was always there.
3. Casts apply without being named: each of a user's was there, or is one too many.
4. Operators are no question: any change of one makes PostgreSQL look all statements up again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["NO_NAMES", "Candidate", "Meaning", "meaning_of"]

Candidate = tuple[str, int, int]
"""Kind, which of the names of that kind, oid."""


class Meaning(NamedTuple):
    """``found``: users' candidates; ``doubtful``: those of them that are not the only one of their name.

    ``vague``: other names are looked up too, which nobody has followed.
    """

    found: frozenset[Candidate] = frozenset()
    doubtful: frozenset[Candidate] = frozenset()
    vague: bool = False

    def stands_since(self, before: Meaning | None) -> bool:
        """Was all that is in doubt there when a statement was parsed? ``before``: what was found by then, if known."""
        return not self.doubtful or (before is not None and self.doubtful <= before.found)


NO_NAMES = Meaning()


def meaning_of(
    candidates: Iterable[Candidate], alike: Iterable[tuple[int, int]], *, builtin: int, vague: bool
) -> Meaning:
    """``alike``: (which function, which type) of calls that may be casts; ``builtin``: the first oid of a user's."""
    types = {kind: function for function, kind in alike}
    by_name: dict[tuple[str, int], set[Candidate]] = {}
    for one in candidates:
        what, number, _ = one
        if what == "type" and number in types:
            what, number = "function", types[number]
        by_name.setdefault((what, number), set()).add(one)
    found = frozenset(one for all_of in by_name.values() for one in all_of if one[2] >= builtin)
    doubtful = {
        one for (what, _), all_of in by_name.items() for one in all_of
        if one[2] >= builtin and (len(all_of) > 1 or what == "cast")
    }  # fmt: skip
    return Meaning(found, frozenset(doubtful), vague)
