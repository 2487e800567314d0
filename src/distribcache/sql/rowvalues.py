"""Values as the change stream prints them: recognised, never converted.

A row tag is a hash of the text that the stream prints for a column's value. What a client sends is taken for that text
only when it already is that text (coherence trap 6): ``01``, `` 1``, ``1.0``, ``T``, an upper-case uuid equal a value
and print otherwise, so they are not recognised, and the answer depends on the whole relation.

A family is a set of types among which values are equal exactly when their printed forms are. Binary values have one
form each, so these are printed here. An array is recognised if it is plain and all its elements are. Text means
``text`` and ``varchar`` under a deterministic collation, in a server of encoding UTF8 and for a client that speaks
UTF-8; all that is for the caller to know.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable
from datetime import date, timedelta
from uuid import UUID

__all__ = ["CASTS", "FAMILY", "Family", "recognise", "recognise_array", "recognise_constant"]


class Family(enum.Enum):
    INT = "int"
    TEXT = "text"
    UUID = "uuid"
    BOOL = "bool"
    DATE = "date"


FAMILY: dict[int, Family] = {
    20: Family.INT,
    21: Family.INT,
    23: Family.INT,
    25: Family.TEXT,
    1043: Family.TEXT,
    2950: Family.UUID,
    16: Family.BOOL,
    1082: Family.DATE,
}
"""By type oid; every other type has none."""

_ELEMENTS = {1005: 21, 1007: 23, 1016: 20, 1009: 25, 1015: 1043, 2951: 2950, 1000: 16, 1182: 1082}
"""Of each type of arrays, the type of its elements."""
_MOST_ELEMENTS = 32

CASTS: dict[str, Family] = {
    "int2": Family.INT,
    "int4": Family.INT,
    "int8": Family.INT,
    "text": Family.TEXT,
    "varchar": Family.TEXT,
    "uuid": Family.UUID,
    "bool": Family.BOOL,
    "date": Family.DATE,
}
"""By the name in ``Value.cast``. A cast within the column's family leaves a recognised value as it is."""

# "Not given", and "unknown": the server gives the parameter the type of what it is compared with.
_OPEN = frozenset({0, 705})
_WIDTHS = {21: 2, 23: 4, 20: 8}
_BASE = date(2000, 1, 1).toordinal()
_LAST = date.max.toordinal()

# No int8 has more than 19 digits.
_INT = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BOOL = re.compile(rb"true|false")
# Nothing in it is escaped, nor white space outside of quotes.
_ARRAY = re.compile(rb'\{(?:"[^"\\]*+"|[^\s",{}\\]++)(?:,(?:"[^"\\]*+"|[^\s",{}\\]++))*+\}')
_ELEMENT = re.compile(rb'"[^"]*"|[^",{}]+')
_LONGEST_ARRAY = 8 * 1024
_HEADER = struct.Struct("!iiIii")
_DATE = re.compile(rb"(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])")


def recognise(family: Family, declared: int, value: bytes | None, binary: bool, column_type: int) -> bytes | None:
    """The bound ``value`` as the stream prints it, without quotes; None when it is not certain.

    ``declared``: the parameter's type oid from Parse; 0 is good only if nothing but columns of this family gives the
    parameter its type. ``column_type``: the type oid of the column.
    """
    if value is None or FAMILY.get(column_type) is not family:
        return None
    if declared not in _OPEN and FAMILY.get(declared) is not family:
        return None
    if not binary:
        return _TEXTS[family](value)
    if family is Family.INT and len(value) != _WIDTHS.get(declared, len(value)):
        return None
    return _BINARIES[family](value)


def recognise_array(
    family: Family, declared: int, value: bytes | None, binary: bool, column_type: int
) -> list[bytes] | None:
    """The elements of a bound array, or of a string that stands for one, as the stream prints them; None when that is
    not certain of one of them.
    """
    if declared not in _OPEN and FAMILY.get(_ELEMENTS.get(declared, 0)) is not family:
        return None
    kind, elements = _binary_elements(value or b"") if binary else (0, _text_elements(value or b""))
    if not 0 < len(elements) <= _MOST_ELEMENTS:
        return None
    found = [recognise(family, kind, each, binary, column_type) for each in elements]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else None


def _text_elements(value: bytes) -> list[bytes]:
    if len(value) > _LONGEST_ARRAY or _ARRAY.fullmatch(value) is None:
        return []
    elements = _ELEMENT.findall(value)
    plain = not any(each.upper() == b"NULL" for each in elements)
    return [each.strip(b'"') for each in elements] if plain else []


def _binary_elements(value: bytes) -> tuple[int, list[bytes]]:
    """The type of the elements, and these; none of an array that is not plain: of one dimension and without NULL."""
    if not _HEADER.size <= len(value) <= _LONGEST_ARRAY:
        return 0, []
    dimensions, nulls, kind, count, _ = _HEADER.unpack_from(value)
    if dimensions != 1 or nulls or not 0 < count <= _MOST_ELEMENTS or FAMILY.get(kind) is None:
        return 0, []
    elements, at = [], _HEADER.size
    for _ in range(count):
        size = int.from_bytes(value[at : at + 4], signed=True)
        at += 4 + size
        if size < 0 or at > len(value):
            return 0, []
        elements.append(value[at - size : at])
    return (kind, elements) if at == len(value) else (0, [])


def recognise_constant(family: Family, text: bytes, *, quoted: bool) -> bytes | None:
    """The constant ``text`` as the stream prints it; None when it is not certain.

    ``quoted``: it is a string literal, so it takes the type of the column. A bare constant has a type of its own.
    """
    if not quoted and family not in (Family.INT, Family.BOOL):
        return None
    return _TEXTS[family](text)


def _form(pattern: re.Pattern[bytes]) -> Callable[[bytes], bytes | None]:
    return lambda value: value if pattern.fullmatch(value) is not None else None


def _text(value: bytes) -> bytes | None:
    if b"\0" in value:
        return None
    try:
        value.decode()
    except UnicodeDecodeError:
        return None
    return value


def _binary_int(value: bytes) -> bytes | None:
    return b"%d" % int.from_bytes(value, signed=True) if len(value) in (2, 4, 8) else None


def _binary_uuid(value: bytes) -> bytes | None:
    return str(UUID(bytes=value)).encode() if len(value) == 16 else None


def _binary_bool(value: bytes) -> bytes | None:
    return {b"\0": b"false", b"\1": b"true"}.get(value)


def _binary_date(value: bytes) -> bytes | None:
    """Days since 2000-01-01, of the years 1 to 9999."""
    if len(value) != 4:
        return None
    day = _BASE + int.from_bytes(value, signed=True)
    return (date.min + timedelta(day - 1)).isoformat().encode() if 0 < day <= _LAST else None


_TEXTS: dict[Family, Callable[[bytes], bytes | None]] = {
    Family.INT: _form(_INT),
    Family.TEXT: _text,
    Family.UUID: _form(_UUID),
    Family.BOOL: _form(_BOOL),
    Family.DATE: _form(_DATE),
}
_BINARIES: dict[Family, Callable[[bytes], bytes | None]] = {
    Family.INT: _binary_int,
    Family.TEXT: _text,
    Family.UUID: _binary_uuid,
    Family.BOOL: _binary_bool,
    Family.DATE: _binary_date,
}
