"""Texts that differ in plain literals only share one analysis: drivers and people write values into the text.

``fold`` replaces unsigned integers, and quoted strings made of digits and date punctuation, by one of their kind. What
the analysis says of a text does not depend on them: names, operators and the kind of each operand are the same; no such
string holds a time word or a name. Only the limit in ``Shape`` may differ, which is a hint for statistics.
Where a fact is about a literal's value, it says which one it is (``places``), and the value comes from the text at hand
(``literals``).

Never a cache key: answers differ, only analyses are shared. Deny by default: any construct in which digits or quotes
could mean something else (dollars, backslashes, comments) leaves the text as it is, and so does every statement that
is not a plain read or write: the value of a SET is a fact.
"""

from __future__ import annotations

import re

__all__ = ["fold", "literals", "places"]

_PLAIN = re.compile(rb"\s*(?:select|with|values|table|insert|update|delete)\b", re.IGNORECASE)
_SPECIAL = (b"$", b"\\", b"--", b"/*")
# A quoted name, a string, a whole number. All begin with one set of bytes: the search runs from one to the next.
_LITERAL = re.compile(
    rb"[\"'0-9](?:(?<=\")[^\"]*\"|(?<=')[^']*'"
    rb"|(?<=[0-9])(?<![\w.\x80-\xff][0-9])[0-9]*(?![\w.\x80-\xff]))"
)
_HARMLESS = re.compile(rb"'[0-9 \-:+./,]*'")
# A doubled quote, or a literal that goes on in the next one.
_GOES_ON = re.compile(rb"[ \t\n\r\f\v]*'")


def _folded(match: re.Match[bytes]) -> bytes:
    literal = match[0]
    if not _is_replaced(literal):
        return literal
    return b"'0'" if literal[0] == 0x27 else b"0"


def fold(text: bytes) -> bytes | None:
    """The form that ``text`` shares with all texts of the same analysis; None when it may share with none."""
    return _LITERAL.sub(_folded, text) if _folds(text) else None


def literals(text: bytes) -> list[bytes]:
    """What ``fold`` replaces in ``text``, in its order, without quotes."""
    if not _folds(text):
        return []
    return [literal.strip(b"'") for literal in _LITERAL.findall(text) if _is_replaced(literal)]


def places(text: bytes) -> dict[int, int] | None:
    """Where whole literals begin: byte offset to index in ``literals``, -1 for a string that is left as it is.

    A literal that is only part of a constant is not in there. None when ``text`` does not fold.
    """
    if not _folds(text):
        return None
    found: dict[int, int] = {}
    replaced = 0
    for match in _LITERAL.finditer(text):
        literal = match[0]
        place = -1
        if _is_replaced(literal):
            place = replaced
            replaced += 1
        if literal[0] != 0x22 and (literal[0] != 0x27 or _GOES_ON.match(text, match.end()) is None):
            found[match.start()] = place
    return found


def _folds(text: bytes) -> bool:
    return _PLAIN.match(text) is not None and not any(special in text for special in _SPECIAL)


def _is_replaced(literal: bytes) -> bool:
    return literal[0] not in b"\"'" or _HARMLESS.fullmatch(literal) is not None
