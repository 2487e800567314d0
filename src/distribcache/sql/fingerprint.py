"""The template of a text: literals replaced by parameters, for grouping and statistics only.

Never a key. The fingerprint of libpg_query is not used at all: it is equal for different tables, columns and
parameters. Two texts with equal templates may still mean different queries to a key (a literal's type differs, say).
"""

from __future__ import annotations

from distribcache.sql.parse import postgast

__all__ = ["template"]

_LONGEST = 64 * 1024


def template(text: str) -> str:
    """``text`` with its literals replaced by ``$n``; unchanged when it is not understood. Never raises."""
    if len(text) > _LONGEST or "\0" in text:
        return text
    try:
        return str(postgast.normalize(text))
    except Exception:  # noqa: BLE001 - a statistic is never worth an error
        return text
