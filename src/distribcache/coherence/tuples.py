"""One changed row as ``test_decoding`` prints it → the old and the new values of the columns that somebody watches.

What follows the relation's name is one of

    : INSERT: a[integer]:1 b[text]:'it''s' c[text]:null
    : UPDATE: a[integer]:1 b[text]:unchanged-toast-datum
    : UPDATE: old-key: a[integer]:1 new-tuple: a[integer]:2 …
    : DELETE: a[integer]:1
    : DELETE: (no-tuple-data)
    : TRUNCATE: (no-flags)

Rules:
1. Only what is printed is known. A column that is missing, or whose long value was not written again, is absent from
   the result; NULL is a value of its own (coherence trap 8).
2. Numbers and booleans stand bare, bit strings as ``B'…'``, everything else in quotes, where a quote is doubled. Names
   of columns and types are quoted as ``quote_identifier`` does; a type's name may hold anything inside its quotes.
3. The new row is read only up to the last column that is wanted, and no row further than a megabyte: what lies behind
   is not known. What is read is read strictly: a text in another form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from distribcache.errors import ProtocolError

__all__ = ["Change", "Values", "read_change", "strange"]

Values = dict[bytes, bytes | None]
"""Column → its value as printed, without quotes; None for NULL. What is not known is absent."""


class Change(NamedTuple):
    """``old`` is None for INSERT, ``new`` for DELETE. ``kept``: an UPDATE that shows no old values at all."""

    old: Values | None
    new: Values | None
    kept: bool = False


_LONGEST: Final = 1 << 20
_NO_DATA: Final = b" (no-tuple-data)"
_OLD: Final = b" old-key:"
_NEW: Final = b" new-tuple:"
_COLUMN: Final = re.compile(
    rb' (?:([a-z_][a-z0-9_]*+)|"((?:[^"]|"")++)")'
    rb'\[(?:[^]["]|\[\]|"(?:[^"]|"")++")++\]:'
    rb"(?:([-+.0-9A-Za-z]++)|'([^']*+(?:''[^']*+)*+)'|B'([01]*+)')(?![^ ])"
)
_BARE, _QUOTED = 3, 4


def read_change(data: bytes | memoryview, at: int, wanted: AbstractSet[bytes]) -> Change | None:
    """The row whose kind begins at ``at``, behind the relation's name; None for TRUNCATE. Raises ProtocolError."""
    kind = bytes(data[at : at + 9])
    at += 9
    if kind == b": UPDATE:":
        if data[at : at + 9] != _OLD:
            return Change(None, _tuple(data, at, wanted)[0], kept=True)
        old, at = _tuple(data, at + 9, wanted, whole=True)
        if data[at : at + 11] == _NEW:
            return Change(old, _tuple(data, at + 11, wanted)[0])
        if at >= _LONGEST:
            return Change(old, {})
        raise strange("an old key without a new row")
    if kind == b": INSERT:":
        return Change(None, _tuple(data, at, wanted)[0])
    if kind == b": DELETE:":
        return Change(_tuple(data, at, wanted)[0], None)
    if kind == b": TRUNCAT":
        return None
    raise strange("an unknown kind of change")


def _tuple(
    data: bytes | memoryview, at: int, wanted: AbstractSet[bytes], *, whole: bool = False
) -> tuple[Values, int]:
    """The wanted values of the columns that begin at ``at``, and where reading ended; ``whole``: reads all of them."""
    values: Values = {}
    missing = -1 if whole else len(wanted)
    end = min(len(data), _LONGEST)
    match = _COLUMN.match
    while missing:
        found = match(data, at, end)
        if found is None or (found.end() == end and end < len(data)):
            if end < len(data):
                return values, end
            if at < end and data[at:] != _NO_DATA and not (whole and data[at : at + 11] == _NEW):
                raise strange("a row in an unknown form")
            break
        at = found.end()
        name = found[1] or found[2].replace(b'""', b'"')
        if name not in wanted:
            continue
        missing -= 1
        how = found.lastindex or _BARE
        value: bytes = found[how]
        if how == _QUOTED:
            values[name] = value.replace(b"''", b"'")
        elif how != _BARE or value != b"unchanged-toast-datum":
            values[name] = None if how == _BARE and value == b"null" else value
    return values, at


def strange(what: str) -> ProtocolError:
    """Something that the output plugin does not send."""
    return ProtocolError(
        f"the change stream sent {what}",
        where="output plugin",
        hint="check that the upstream's test_decoding or pgoutput is PostgreSQL's own; the stream starts anew",
    )
