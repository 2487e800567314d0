"""Where settings come from, and how it is said that one is wrong.

Rules:
1. A flag wins over the environment (``DISTRIBCACHE_SECTION_KEY``), that over ``distribcache.toml``, that over the
   default. ``Settings.sources`` remembers which it was, for ``SHOW distribcache.config``.
2. A wrong setting is a ``ConfigError`` that names the key, the value, where it was set and what to write instead. An
   unknown key or section is wrong too: a setting with a typing mistake must not be silently without effect.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from distribcache.config.sections import ENV_PREFIX, Settings, fields, mask
from distribcache.errors import ConfigError

__all__ = ["load", "restore"]

FILE_NAME = "distribcache.toml"


def load(
    config_path: Path | str | None = None, overrides: Mapping[str, Any] | None = None, *,
    given: str = "flag", look_around: bool = True,
) -> Settings:  # fmt: skip
    """Join all sources. ``overrides`` maps ``section.key`` to a value; None there means "flag not given".

    Without ``config_path`` the file ``distribcache.toml`` of the current directory is read if there is one, unless
    ``look_around`` is off. ``given`` is what the overrides are called. Raises ConfigError naming key, value, place and
    remedy.
    """
    values: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}

    def add(section: str, key: str, value: Any, source: str) -> None:
        values.setdefault(section, {})[key] = value
        sources[f"{section}.{key}"] = source

    path, content = _read_file(config_path) if config_path is not None or look_around else (Path(), {})
    for section, keys in content.items():
        source = f"file {path}"
        for key, value in _keys(section, keys, source).items():
            add(section, key, value, source)
    for name, value in sorted(os.environ.items()):
        if name.startswith(ENV_PREFIX):
            section, underscore, key = name.removeprefix(ENV_PREFIX).lower().partition("_")
            source = f"environment {name}"
            _keys(section, {} if underscore else value, source)
            add(section, key, value, source)
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        _keys(section, {}, given)
        if value is not None:
            add(section, key, value, given)
    for name, source in sources.items():
        section, _, key = name.partition(".")
        _known(key, list(fields(section)), f"key {name}", source)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise _explain(error, sources) from None
    settings._sources.update(sources)
    return settings


def restore(values: Mapping[str, Any], sources: Mapping[str, str]) -> Settings:
    """The settings of another process of ours, as it has written them."""
    settings = Settings.model_validate(values)
    settings._sources.update(sources)
    return settings


def _keys(section: str, keys: Any, source: str) -> dict[str, Any]:
    _known(section, list(Settings.model_fields), f"section {section}", source)
    if not isinstance(keys, dict):
        first = next(iter(fields(section)))
        variable = f"{ENV_PREFIX}{section}_{first}".upper()
        raise ConfigError(
            f"{section} is a section, not a key", where=source,
            hint=f"name a key of it: {first} below [{section}] in the file, {variable} in the environment",
        )
    return keys


def _read_file(config_path: Path | str | None) -> tuple[Path, dict[str, Any]]:
    path = Path(config_path) if config_path is not None else Path(FILE_NAME)
    if config_path is None and not path.exists():
        return path, {}
    try:
        return path, tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the file: {error.strerror}", where=f"file {path}", hint="check the path given with --config"
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"not TOML: {error}", where=f"file {path}", hint='texts need quotes: size = "64MB"'
        ) from None


def _known(name: str, names: list[str], what: str, source: str) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}"
    raise ConfigError(f"there is no {what}", where=source, hint=hint)


def _explain(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """The first thing that pydantic found wrong, in our words."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"][:2])
    message, _, remedy = first["msg"].removeprefix("Value error, ").partition("; ")
    if first["type"].startswith("bool"):
        message, remedy = "neither yes nor no", "write true or false"
    elif message.startswith("Input should be "):
        message, remedy = "not accepted", "it should be " + message.removeprefix("Input should be ")
    if not name:  # a rule about several sections says itself which key is wrong
        name, _, message = message.partition(": ")
        return ConfigError(f"{name}: {message}", where=sources.get(name, ""), hint=remedy)
    given = first["input"]
    if isinstance(given, dict | BaseModel):
        # A rule about several keys: the place is that of the first key of the section that was set at all.
        place = next((source for key, source in sources.items() if key.startswith(f"{name}.")), "")
        return ConfigError(f"{name}: {message}", where=place, hint=remedy)
    return ConfigError(f"{name}: {mask(repr(given))}: {message}", where=sources.get(name, ""), hint=remedy)
