"""Kinds of settings: what a size, a duration, an address or a share may be, and how a key says what it is for.

A validator's message says after a semicolon what to write instead; ``loading`` turns that into the error's hint.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from distribcache.config.units import parse_address, parse_duration, parse_size

__all__ = ["Bound", "Count", "Duration", "Section", "Share", "Size", "Socket", "at_least", "setting"]


def _address(value: str) -> str:
    parse_address(value)
    return value


def at_least(least: float, text: str) -> AfterValidator:
    def bound(value: float) -> float:
        if value < least:
            raise ValueError(f"too small; the least is {text}")
        return value

    return AfterValidator(bound)


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Socket = Annotated[str, AfterValidator(_address)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def setting(default: object, text: str) -> Any:
    """A default as one would write it in the file, and what the reference says about the key."""
    return Field(default, description=text)


def _bound(value: float | None) -> float | None:
    if value is not None and value < 0.01:
        raise ValueError("too small; the least is 10ms")
    return value


Bound = Annotated[Duration | None, Field(validate_default=False), AfterValidator(_bound)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
