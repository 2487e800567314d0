"""Texts that differ in plain literals only share one analysis: drivers and people write values into the text.

``fold`` replaces unsigned integers, and quoted strings made of digits and date punctuation, by one of their kind. What
the analysis says of a text does not depend on them: names, operators and the kind of each operand are the same; no such
string holds a time word or a name. Only the limit in ``Shape`` may differ, which is a hint for statistics.

Never a cache key: answers differ, only analyses are shared. Deny by default: any construct in which digits or quotes
could mean something else (dollars, backslashes, comments) leaves the text as it is, and so does every statement that
is not a plain read or write: the value of a SET is a fact.
"""

from __future__ import annotations

import re

__all__ = ["fold"]

_PLAIN = re.compile(rb"\s*(?:select|with|values|table|insert|update|delete)\b", re.IGNORECASE)
_SPECIAL = re.compile(rb"[$\\]|--|/\*")
_LITERAL = re.compile(rb"\"[^\"]*\"|'[^']*'|(?<![\w.\x80-\xff])[0-9]+(?![\w.\x80-\xff])")
_HARMLESS = re.compile(rb"'[0-9 \-:+./,]*'")


def _folded(match: re.Match[bytes]) -> bytes:
    literal = match[0]
    if literal[0] == 0x22:
        return literal
    if literal[0] == 0x27:
        return b"'0'" if _HARMLESS.fullmatch(literal) else literal
    return b"0"


def fold(text: bytes) -> bytes | None:
    """The form that ``text`` shares with all texts of the same analysis; None when it may share with none."""
    if _PLAIN.match(text) is None or _SPECIAL.search(text) is not None:
        return None
    return _LITERAL.sub(_folded, text)
