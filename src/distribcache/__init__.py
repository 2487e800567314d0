"""distribcache: a coherent cache in front of PostgreSQL."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distribcache.cache import CacheEntry, DistribCache, DistribCacheConfig, QueryContext, QueryFingerprint, Row

__all__ = [
    "CacheEntry", "DistribCache", "DistribCacheConfig", "QueryContext", "QueryFingerprint", "Row", "__version__",
]  # fmt: skip

__version__ = version("distribcache")


def __getattr__(name: str) -> Any:
    """The library is imported when it is first asked for: the command line does without it."""
    if name in __all__:
        from distribcache import cache

        return getattr(cache, name)
    raise AttributeError(f"module 'distribcache' has no attribute {name!r}")
