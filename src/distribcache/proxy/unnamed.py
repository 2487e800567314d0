"""What is left of the unnamed statement when upstream has refused a text.

A Parse without a name and a simple Query drop it before they parse their text, whether that succeeds or not. But first
the text is converted to the encoding of the database, and behind one that cannot be, the statement is what it was. Both
kinds of error have the same codes: an escape in a text, or a function that it runs, may name such a character as well.

Who is told that there is none, though there was one, prepares it again; another one in its place would be wrong.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distribcache.proxy.session import Session

__all__ = ["refused"]

_ENCODING = re.compile(rb"\0C(?:22021|22P05)\0")
"""The error: bytes that are no character, or a character that the database has not."""
_ESCAPES = re.compile(rb"\\|uescape", re.IGNORECASE)


def refused(s: Session, text: bytes | None, error: bytes, kept: bytes | None, *, ran: bool) -> None:
    """Upstream answers a Parse without a name with an error, or a Query (``ran``: the error may be that of its run).

    ``text`` None: it was not seen as a whole. ``kept`` is what ``hot.kept`` was before it was sent.
    """
    s.unsettled = None
    if _ENCODING.search(error) is None:
        s.statements.pop(b"", None)
    elif text is not None and (_is_no_text(text) if ran else not text.isascii() and not _ESCAPES.search(text)):
        s.hot.kept = kept
    else:
        s.statements.pop(b"", None)
        s.hot.kept = b""


def _is_no_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False
