"""Strings that mean another moment each time they are read.

PostgreSQL's date and time input takes ``now``, ``today``, ``tomorrow`` and ``yesterday``; a cached answer over such a
string goes wrong without any write. ``names_a_moment`` says whether a string may be one. Rules:

1. It may say yes to a harmless string (that costs a miss), never no to a harmful one.
2. A word is a run of ASCII letters, as in the server: digits and punctuation separate (``today10:00``, ``(NOW)``).
3. Arrays, ranges and rows are looked at piece by piece, because each element is read on its own.
4. A date has few words: one of ours, month, weekday, am/pm and at most one time zone. A piece with more unknown words,
   or longer than what the server's date parser accepts, is prose ("what is the weather like today") and harmless.
"""

from __future__ import annotations

import re

__all__ = ["dangerous_parameter", "names_a_moment"]

_MOMENT = re.compile(r"(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z])", re.IGNORECASE)
_MOMENT_BYTES = re.compile(_MOMENT.pattern.encode(), re.IGNORECASE)
_PIECES = re.compile(r'[{}\[\](),"\x00-\x08\x0e-\x1f]+')
# A zone name such as America/Argentina/Buenos_Aires or GB-Eire is one word here.
_WORDS = re.compile(r"[a-z]+(?:[/_+-][a-z]+)*", re.IGNORECASE)
_KNOWN = frozenset(
    "now today tomorrow yesterday epoch infinity allballs at on am pm ad bc t z utc gmt dst j jd julian "
    "jan january feb february mar march apr april may jun june jul july aug august sep sept september oct october "
    "nov november dec december sun sunday mon monday tue tues tuesday wed weds wednesday thu thur thurs thursday "
    "fri friday sat saturday d h m s y mm yd".split()
)
# The server allows one zone; one more is margin.
_UNKNOWN_WORDS = 2
# The server's parser works in 128 + 25 bytes, white space not counted.
_LONGEST = 200


def names_a_moment(text: str) -> bool:
    """Whether ``text`` could be read as a date or time that depends on when it is read."""
    if _MOMENT.search(text) is None:
        return False
    for piece in _PIECES.split(text):
        if _MOMENT.search(piece) is None or len("".join(piece.split())) > _LONGEST:
            continue
        unknown = 0
        for word in _WORDS.findall(piece):
            parts = re.split("[/_+-]", word.lower())
            # "today-x" is not one zone name: the words of a moment count for themselves.
            if any(part in _KNOWN for part in parts):
                unknown += sum(part not in _KNOWN for part in parts)
            else:
                unknown += 1
        if unknown <= _UNKNOWN_WORDS:
            return True
    return False


def dangerous_parameter(value: bytes) -> bool:
    """Whether a bound parameter, in text or binary format, could be read as a moment such as ``today``."""
    if _MOMENT_BYTES.search(value) is None:
        return False
    return names_a_moment(value.decode("latin-1"))
