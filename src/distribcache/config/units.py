"""Sizes, durations and addresses as people write them in settings.

* A size is a number and a unit: ``512kB``, ``64MB``, ``1.5GB``. Units are powers of 1024, as in PostgreSQL's settings.
* A duration is a number and a unit: ``250ms``, ``5s``, ``30min``, ``1h``, ``7d``.
* A text without a unit is refused: nobody should have to guess what ``5`` means. A *number* (from TOML or Python) is
  bytes or seconds.
* An address is ``host:port``; an IPv6 host stands in brackets. Port 0 means any free port.

Everything here raises ``ValueError`` whose text says what would be right.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Address", "duration_text", "parse_address", "parse_duration", "parse_size", "size_text"]

_SIZES = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_SIZE_REMEDY = 'write a number and a unit (B, kB, MB, GB, TB), such as "64MB"'
_DURATION_REMEDY = 'write a number and a unit (us, ms, s, min, h, d), such as "250ms"'
_ADDRESS_REMEDY = 'write host:port, such as "127.0.0.1:6432" or "[::1]:6432"'


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def parse_size(value: object) -> int:
    """Bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        amount = float(value)
    else:
        found = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
        units = {name.lower(): factor for name, factor in _SIZES.items()}
        if found is None or found[2].lower() not in units:
            raise ValueError(f"not a size; {_SIZE_REMEDY}")
        amount = float(found[1]) * units[found[2].lower()]
    if not 0 <= amount < 1 << 62:
        raise ValueError(f"not a possible size; {_SIZE_REMEDY}")
    return int(amount)


def parse_duration(value: object) -> float:
    """Seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        found = _NUMBER_AND_UNIT.fullmatch(value) if isinstance(value, str) else None
        if found is None or found[2].lower() not in _DURATIONS:
            raise ValueError(f"not a duration; {_DURATION_REMEDY}")
        seconds = float(found[1]) * _DURATIONS[found[2].lower()]
    if not 0 <= seconds < 1e9:
        raise ValueError(f"not a possible duration; {_DURATION_REMEDY}")
    return seconds


def parse_address(value: str) -> Address:
    """Host and port; the host is not looked up."""
    host, colon, port = value.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 host needs brackets; {_ADDRESS_REMEDY}")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"not an address; {_ADDRESS_REMEDY}")
    return Address(host, int(port))


def size_text(size: int) -> str:
    """The shortest exact way to write a size: ``65536`` is ``64kB``."""
    for name, factor in reversed(_SIZES.items()):
        if size and size % factor == 0:
            return f"{size // factor}{name}"
    return f"{size}B"


def duration_text(seconds: float) -> str:
    """The shortest exact way to write a duration: ``0.25`` is ``250ms``, ``1800`` is ``30min``."""
    micros = round(seconds * 1e6)
    for name, factor in reversed(_DURATIONS.items()):
        unit = round(factor * 1e6)
        if micros and micros % unit == 0:
            return f"{micros // unit}{name}"
    return "0s"
