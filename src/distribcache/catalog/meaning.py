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
5. Not so collations and text search configurations (*fixed* names): PostgreSQL does not look again when one goes, is
   renamed or made. So what may have been found at any time since the Parse counts, not only what is there now. One
   answer is sure: the very row that is found now, in the first schema of all that are searched (``pg_catalog`` as a
   rule, or the one that is named), was there before the Parse. A row has not been touched while its ``xmin`` and its
   schema's stand; and while it was there nothing else was found. All else is *vague*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["NO_NAMES", "Candidate", "Meaning", "meaning_of"]

Candidate = tuple[str, int, int]
"""Kind, which of the names of that kind, oid (and versions)."""


class Meaning(NamedTuple):
    """``found``: users' candidates; ``doubtful``: those of them that are not the only one of their name.

    ``fixed``: what rule 5 wants to have been there. ``vague``: other names are looked up too, and nobody has followed
    them.
    """

    found: frozenset[Candidate] = frozenset()
    doubtful: frozenset[Candidate] = frozenset()
    fixed: frozenset[Candidate] = frozenset()
    vague: bool = False

    @property
    def sure(self) -> bool:
        """Does it need nothing to be known of before?"""
        return not self.doubtful and not self.fixed and not self.vague

    def stands_since(self, before: Meaning | None) -> bool:
        """Was all that is in doubt there when a statement was parsed? ``before``: what was found by then, if known."""
        return not self.doubtful or (before is not None and self.doubtful <= before.found)

    def is_fixed_since(self, before: Meaning | None) -> bool:
        """And so for all other names, which PostgreSQL does not look up again (rule 5)?"""
        return not self.vague and (not self.fixed or (before is not None and self.fixed <= before.fixed))


NO_NAMES = Meaning()


def meaning_of(
    candidates: Iterable[Candidate],
    alike: Iterable[tuple[int, int]],
    fixed: Iterable[tuple[str, int]] = (),
    *,
    builtin: int,
    vague: bool,
) -> Meaning:
    """``alike``: (which function, which type) of calls that may be casts; ``fixed``: the names of rule 5, whose
    candidates have their versions beside the oid; ``builtin``: the first oid of a user's.
    """
    types = {kind: function for function, kind in alike}
    by_name: dict[tuple[str, int], set[Candidate]] = {}
    for one in candidates:
        what, number, _ = one
        if what == "type" and number in types:
            what, number = "function", types[number]
        by_name.setdefault((what, number), set()).add(one)
    rows = [by_name.pop(name, set()) for name in fixed]
    found = frozenset(one for all_of in by_name.values() for one in all_of if one[2] >= builtin)
    doubtful = {
        one for (what, _), all_of in by_name.items() for one in all_of
        if one[2] >= builtin and (len(all_of) > 1 or what == "cast")
    }  # fmt: skip
    vague = vague or any(len(each) != 1 for each in rows)
    return Meaning(found, frozenset(doubtful), frozenset().union(*rows), vague)
