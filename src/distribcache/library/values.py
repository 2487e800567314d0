"""Values as bytes, and back: equal in type and value, or not at all.

MessagePack with types of our own beside it. Nothing that is read can run code, and nothing is changed silently: a value
of a class that is not listed (an enum, a subclass of str, a bytearray) raises ``SerializationError``, and whoever has
it keeps it to himself. Containers are rebuilt at every reading, so nobody can change what others will see.

``pack`` and ``unpack`` are for values at rest; ``key_of`` makes canonical bytes of arguments: equal exactly for equal
types and values, whatever the order of a dict or a set. Keys are never read back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import NoneType
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
from psycopg.types.range import Range

from distribcache.errors import SerializationError
from distribcache.library.rows import Columns, Row, row_class

__all__ = ["key_of", "pack", "pack_rows", "register", "unpack", "unpack_rows"]

_ATOMS: Final = frozenset({NoneType, bool, float, str, bytes})
_DEEPEST: Final = 64
_TUPLE, _BIG, _ROW = 1, 2, 3
_DICT, _SET, _FROZENSET, _ENUM = 100, 101, 102, 103
"""In keys only."""

Write = Callable[[Any], Any]
Read = Callable[[Any], Any]


def _zone_out(zone: Any) -> Any:
    kind = type(zone)
    if zone is None:
        return None
    if kind is timezone:
        offset, *name = zone.__getinitargs__()
        return [offset.days, offset.seconds, offset.microseconds, *name]
    if kind is ZoneInfo and zone.key is not None:
        return zone.key
    raise _unknown(kind)


def _zone_in(zone: Any) -> Any:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    offset = timedelta(*zone[:3])
    return timezone(offset, *zone[3:]) if offset or zone[3:] else UTC


def _datetime_out(value: datetime) -> list[Any]:
    return [
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond,
        _zone_out(value.tzinfo), value.fold,
    ]


def _datetime_in(value: list[Any]) -> datetime:
    found = datetime(*value[:7])  # noqa: DTZ001 - its zone comes next
    return found.replace(tzinfo=_zone_in(value[7]), fold=value[8])


def _time_out(value: time) -> list[Any]:
    return [value.hour, value.minute, value.second, value.microsecond, _zone_out(value.tzinfo), value.fold]


def _time_in(value: list[Any]) -> time:
    return time(*value[:4]).replace(tzinfo=_zone_in(value[4]), fold=value[5])


def _range_out(value: Range[Any]) -> list[Any]:
    return [value.lower, value.upper, None if value.isempty else value.bounds]


def _range_in(value: list[Any]) -> Range[Any]:
    return Range(empty=True) if value[2] is None else Range(value[0], value[1], value[2])


_writers: dict[type, tuple[int, Write]] = {}
_readers: dict[int, Read] = {}


def register(code: int, kind: type, write: Write, read: Read) -> None:
    """Let values of exactly this class be kept: ``write`` makes one of known classes of it. Codes 40 to 99 are free."""
    _writers[kind] = code, write
    _readers[code] = read


register(10, Decimal, str, Decimal)
register(11, date, lambda value: [value.year, value.month, value.day], lambda value: date(*value))
register(12, time, _time_out, _time_in)
register(13, datetime, _datetime_out, _datetime_in)
register(14, timedelta, lambda value: [value.days, value.seconds, value.microseconds], lambda value: timedelta(*value))
register(15, UUID, lambda value: value.bytes, lambda value: UUID(bytes=value))
register(16, IPv4Address, str, IPv4Address)
register(17, IPv4Interface, str, IPv4Interface)
register(18, IPv4Network, str, IPv4Network)
register(19, IPv6Address, str, IPv6Address)
register(20, IPv6Interface, str, IPv6Interface)
register(21, IPv6Network, str, IPv6Network)
register(22, Range, _range_out, _range_in)


def _unknown(kind: type) -> SerializationError:
    return SerializationError(
        f"values of {kind.__module__}.{kind.__qualname__} are not kept", where="values",
        hint="return plain values: numbers, texts, dates, lists, dicts", sqlstate="0A000",
    )


def _plain(value: Any, depth: int) -> Any:
    """``value`` in MessagePack's own types. Raises SerializationError."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else _big(value)
    if depth > _DEEPEST:
        raise SerializationError("nested too deeply", where="values", hint="keep flatter values")
    if kind is list:
        return [_plain(each, depth + 1) for each in value]
    if kind is dict:
        return {_plain(key, depth + 1): _plain(each, depth + 1) for key, each in value.items()}
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, _bytes([_plain(each, depth + 1) for each in value]))
    known = _writers.get(kind)
    if known is not None:
        return msgpack.ExtType(known[0], _bytes(_plain(known[1](value), depth + 1)))
    if isinstance(value, Row):
        return msgpack.ExtType(_ROW, _bytes([list(value.keys()), [_plain(each, depth + 1) for each in value]]))
    raise _unknown(kind)


def _big(value: int) -> Any:
    return msgpack.ExtType(_BIG, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _bytes(plain: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(plain, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError) as error:  # a lone surrogate, a length beyond 32 bits
        raise SerializationError(
            f"a value cannot be kept: {type(error).__name__}", where="values", hint="return plain values"
        ) from error
    return packed


def pack(value: Any) -> bytes:
    """Bytes of a value. Raises SerializationError for what would not come back equal."""
    return _bytes(_plain(value, 0))


def unpack(data: bytes) -> Any:
    """The value again. Raises SerializationError for bytes that are none."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=_read)
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(
            f"not the bytes of a value: {type(error).__name__}", where="values", hint="the entry is dropped"
        ) from error


def _read(code: int, data: bytes) -> Any:
    if code == _BIG:
        return int.from_bytes(data, "big", signed=True)
    value = unpack(data)
    if code == _TUPLE:
        return tuple(value)
    if code == _ROW:
        return row_class(tuple(value[0]))(value[1])
    return _readers[code](value)


def pack_rows(columns: Columns, rows: Iterable[Sequence[Any]]) -> bytes:
    """Bytes of a result. Raises SerializationError."""
    atoms = _ATOMS
    plain = [[each if type(each) in atoms else _plain(each, 2) for each in row] for row in rows]
    return _bytes([list(columns), plain])


def unpack_rows(data: bytes) -> list[Row]:
    """The rows again. Raises SerializationError."""
    columns, rows = unpack(data)
    return list(map(row_class(tuple(columns)), rows))


def key_of(value: Any) -> bytes:
    """Canonical bytes of what a call was given. Raises SerializationError for what has none."""
    return _bytes(_canonical(value, 0))


def _canonical(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ATOMS or kind is int:
        return _plain(value, depth)
    if depth > _DEEPEST:
        raise SerializationError("nested too deeply", where="values", hint="give key=")
    if kind is list:
        return [_canonical(each, depth + 1) for each in value]
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, _bytes([_canonical(each, depth + 1) for each in value]))
    if kind is dict:
        pairs = sorted(
            (_bytes(_canonical(key, depth + 1)), _bytes(_canonical(each, depth + 1))) for key, each in value.items()
        )
        return msgpack.ExtType(_DICT, _bytes([part for pair in pairs for part in pair]))
    if kind in (set, frozenset):
        code = _SET if kind is set else _FROZENSET
        return msgpack.ExtType(code, _bytes(sorted(_bytes(_canonical(each, depth + 1)) for each in value)))
    if isinstance(value, enum.Enum):
        return msgpack.ExtType(_ENUM, _bytes([kind.__module__, kind.__qualname__, value.name]))
    return _plain(value, depth)
