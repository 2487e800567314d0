"""Which call of a cached function it is: the key that its arguments and its tags make.

Rules:
1. Canonical and typed: ``1``, ``True``, ``1.0``, ``"1"`` are four arguments. By name or by place, given or left to its
   default: an argument is the same one.
2. What has no canonical bytes (``self``, a connection) raises TypeError, unless ``key=`` says what to take instead.
3. Functions made in a loop share their names, so a name is no key: each has a number.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from itertools import count
from string import Formatter
from typing import Any, Final

from distribcache.errors import ConfigError, SerializationError
from distribcache.library.terms import Terms
from distribcache.library.values import key_of
from distribcache.tiers.base import Key

__all__ = ["Arguments"]

_KIND: Final = "call"
_numbers = count(1)


class Arguments:
    """Those of one function. ``generation``: of a tag (see ``memos``)."""

    def __init__(
        self, function: Callable[..., Any], label: str, terms: Terms, generation: Callable[[str], int]
    ) -> None:
        """Raises ConfigError for a tag that names no argument."""
        self._label = label
        self._terms = terms
        self._generation = generation
        self._number = next(_numbers)
        self._ways = _Ways(function)
        tags = terms.tags if isinstance(terms.tags, tuple) else ()
        self._signature = inspect.signature(function) if any("{" in tag for tag in tags) else None
        if self._signature is not None:
            _check(tags, self._signature, label)

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        """Raises TypeError for arguments that have no canonical bytes."""
        terms = self._terms
        try:
            if terms.key is not None:
                request = key_of([terms.key(*args, **kwargs)])
            else:
                if kwargs or len(args) < self._ways.enough:
                    args, kwargs = self._ways.one(args, kwargs)
                request = key_of([args, kwargs] if kwargs else [args])
        except SerializationError as error:
            raise TypeError(
                f"{self._label}: {error.message}; give key=lambda …: what tells one call from another"
            ) from None
        if not terms.tags:
            return (_KIND, self._number, 0, request)
        return (_KIND, self._number, tuple(map(self._generation, self._tags(args, kwargs))), request)

    def _tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[str]:
        tags = self._terms.tags
        if not isinstance(tags, tuple):
            return tuple(tags(*args, **kwargs))
        if self._signature is None:
            return tags
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(tag.format(**bound.arguments) for tag in tags)


def _check(tags: Sequence[str], signature: inspect.Signature, label: str) -> None:
    for tag in tags:
        for _, field, _, _ in Formatter().parse(tag):
            name = re.split(r"[.\[]", field or "", maxsplit=1)[0]
            if field is not None and name not in signature.parameters:
                raise ConfigError(
                    f"{tag!r} names no argument of {label}", where="cached: tags",
                    hint=f"there are {', '.join(signature.parameters) or 'none'}",
                )  # fmt: skip


class _Ways:
    """The ways to give a function its arguments. ``enough`` of them by place are all that it has."""

    __slots__ = ("_defaults", "_signature", "enough")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature: inspect.Signature | None = None
        self._defaults: dict[str, Any] = {}
        self.enough = 0
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # one that does not tell
            return
        for place, parameter in enumerate(self._signature.parameters.values(), 1):
            by_place = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if parameter.default is not parameter.empty:
                if not _has_key(parameter.default):
                    continue
                self._defaults[parameter.name] = parameter.default
                self.enough = max(self.enough, place if by_place else sys.maxsize)
            elif by_place:
                self.enough = place

    def one(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The one way that stands for all."""
        if self._signature is None:
            return args, kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:  # the function says what is wrong
            return args, kwargs
        bound.arguments = {**self._defaults, **bound.arguments}
        return bound.args, bound.kwargs


def _has_key(value: Any) -> bool:
    try:
        key_of(value)
    except SerializationError:
        return False
    return True
