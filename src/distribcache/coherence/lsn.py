"""Log positions (LSNs) as integers, and the one place where PostgreSQL prints the same position in two ways.

The *end* of a record that finishes exactly at the end of a page is the page boundary itself: so say commit records,
keepalives and the flush position. ``pg_current_wal_insert_lsn()`` instead names the byte after the header of the next
page. A wait for that number on an idle server would last for ever, so it is normalised.

Only the exact positions ``boundary + 24`` (ordinary page) and ``segment start + 40`` (first page of a segment) are
normalised. A range would be wrong: a record may end 8 or 16 bytes into the data of a page, at offset 32 or 40, and
rounding *that* down would let a wait end before the commit which ends there has arrived.
"""

from __future__ import annotations

__all__ = ["DEFAULT_SEGMENT", "format_lsn", "normalise", "parse_lsn"]

_PAGE = 8192
_SHORT_HEADER = 24
_LONG_HEADER = 40
DEFAULT_SEGMENT = 16 * 1024 * 1024


def parse_lsn(text: bytes | str) -> int:
    """``0/1A2B`` as an integer. Raises ValueError for anything else."""
    if isinstance(text, bytes):
        text = text.decode("ascii")
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError("not a log position")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """An integer position as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def normalise(lsn: int, segment: int = DEFAULT_SEGMENT, page: int = _PAGE) -> int:
    """The end-of-record form of an insert position; ``segment`` and ``page`` are the server's sizes in bytes."""
    in_segment = lsn % segment
    if in_segment == _LONG_HEADER:
        return lsn - _LONG_HEADER
    if in_segment > page and in_segment % page == _SHORT_HEADER:
        return lsn - _SHORT_HEADER
    return lsn
