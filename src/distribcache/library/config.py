"""``DistribCacheConfig``: the settings of the configuration file, given as keyword arguments.

>>> DistribCacheConfig(upstream_url="postgresql://app@db/shop", l1_size="64MB", ttl_olap="10min").settings.l1.size
67108864

A keyword is ``section_key``, as in the environment (``DISTRIBCACHE_L1_SIZE``), or a section with a mapping:
``l1={"size": "64MB"}``. Keywords win over the environment, that over the file, that over the default. What is wrong
raises ``ConfigError``, which names the key, where it was set, and what to write instead. No file is read unless
``from_toml`` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distribcache.config import Settings, load
from distribcache.config.units import parse_duration
from distribcache.errors import ConfigError

__all__ = ["DistribCacheConfig", "seconds_of"]

_GIVEN = "keyword argument"


class DistribCacheConfig:
    """See the module; ``settings`` holds what was found, checked and frozen."""

    __slots__ = ("settings",)

    def __init__(self, **settings: Any) -> None:
        self.settings: Settings = load(None, _named(settings), given=_GIVEN, look_around=False)

    @classmethod
    def from_toml(cls, path: Path | str, **settings: Any) -> DistribCacheConfig:
        """From a ``distribcache.toml``; keywords win over it."""
        config = cls.__new__(cls)
        config.settings = load(path, _named(settings), given=_GIVEN)
        return config

    @classmethod
    def of(cls, settings: Settings) -> DistribCacheConfig:
        """From settings that were loaded already."""
        config = cls.__new__(cls)
        config.settings = settings
        return config

    def __repr__(self) -> str:
        sources = self.settings.sources
        given = [f"{name}={value}" for name, value, _ in self.settings.show() if sources[name] != "default"]
        return f"DistribCacheConfig({', '.join(given)})"


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``section_key`` and ``section={key: …}`` as ``section.key``."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            named.update({f"{name}.{key}": each for key, each in value.items()})
        else:
            section, _, key = name.partition("_")
            if not key and section in Settings.model_fields:
                raise ConfigError(
                    f"{section} is a section, not a key", where=_GIVEN, hint=f'write {section}={{"KEY": VALUE}}'
                )
            named[f"{section}.{key}"] = value
    return named


def seconds_of(where: str, duration: float | str) -> float:
    """A duration that was given at ``where``. Raises ConfigError."""
    try:
        return parse_duration(duration)
    except ValueError as error:
        message, _, remedy = str(error).partition("; ")
        raise ConfigError(f"{duration!r}: {message}", where=where, hint=remedy) from None
