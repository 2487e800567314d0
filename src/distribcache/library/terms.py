"""The terms of one cached function, from what people write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from distribcache.errors import ConfigError
from distribcache.library.config import seconds_of
from distribcache.library.dependence import qualified

__all__ = ["Terms"]

Duration = float | str


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. ``negative_ttl``: of None and of ``failures``; None keeps None as any value, and no failure."""

    ttl: float
    stale: float = 0.0
    refresh_ahead: float = 0.0
    negative_ttl: float | None = None
    failures: tuple[type[Exception], ...] = ()
    tables: tuple[str, ...] = ()
    tags: Callable[..., Iterable[str]] | tuple[str, ...] = ()
    key: Callable[..., Any] | None = None

    @classmethod
    def of(
        cls, *, ttl: Duration, tables: Iterable[str], key: Callable[..., Any] | None, stale: Duration,
        refresh_ahead: Duration, negative_ttl: Duration | None, negative: type[Exception] | Iterable[type[Exception]],
        tags: Callable[..., Iterable[str]] | Iterable[str],
    ) -> Terms:  # fmt: skip
        """Raises ConfigError for what is no duration, and InvalidationError for what is no name of a table."""
        for name, given in (("tables", tables), ("tags", tags)):
            if isinstance(given, str):
                hint = f"write {name}=[{given!r}]"
                raise ConfigError("a text where a list is wanted", where=f"cached: {name}", hint=hint)
        return cls(
            ttl=seconds_of("cached: ttl", ttl),
            stale=seconds_of("cached: stale", stale),
            refresh_ahead=seconds_of("cached: refresh_ahead", refresh_ahead),
            negative_ttl=None if negative_ttl is None else seconds_of("cached: negative_ttl", negative_ttl),
            failures=(negative,) if isinstance(negative, type) else tuple(negative),
            tables=tuple(".".join(qualified(table)) for table in tables),
            tags=tags if callable(tags) else tuple(tags),
            key=key,
        )
