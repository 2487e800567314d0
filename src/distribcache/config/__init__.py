"""Settings of distribcache: ``load`` joins flags, environment, file and defaults into one frozen ``Settings``."""

from __future__ import annotations

from distribcache.config.loading import load, restore
from distribcache.config.sections import (
    Admin,
    Auth,
    Cache,
    Freshness,
    Listen,
    Settings,
    Ttl,
    Upstream,
    mask,
)
from distribcache.config.tiers import DistributedTier, HotTier, WarmTier

__all__ = [
    "Admin", "Auth", "Cache", "DistributedTier", "Freshness", "HotTier", "Listen", "Settings", "Ttl", "Upstream",
    "WarmTier", "load", "mask", "restore",
]
