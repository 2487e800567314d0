"""The error tree, split by whose fault it is.

Rules:
1. Every error names the place (``where``) and the remedy (``hint``); an error without a remedy is half an error.
2. Every error carries the SQLSTATE under which a PostgreSQL client sees it.
3. Nothing foreign crosses a layer: an ``OSError`` becomes one of these where the IO happens.

Messages never contain passwords, bound values or query text; a fingerprint stands in for a query.
"""

from __future__ import annotations

__all__ = [
    "CacheConnectionError", "CacheError", "ClientError", "CompressionError", "ConfigError", "ConfigurationError",
    "DistribCacheError", "ExpiredError", "InvalidationError", "MissError", "NetworkError", "PeerNotFoundError",
    "ProtocolError", "SerializationError", "StorageError", "TierUnavailableError", "TooLargeError", "UpstreamError",
    "internal_error",
]  # fmt: skip


class DistribCacheError(Exception):
    """Base of all errors of this package.

    ``sqlstate`` is the five-character code sent to a PostgreSQL client, ``where`` names the place (a file, a setting,
    an address), ``hint`` says what to do about it.
    """

    sqlstate = "XX000"

    def __init__(self, message: str, *, where: str = "", hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint
        if sqlstate is not None:
            self.sqlstate = sqlstate

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ConfigError(DistribCacheError):
    """A setting, flag or URL is wrong. The CLI exits with status 2."""

    sqlstate = "F0000"


class ClientError(DistribCacheError):
    """The client broke the protocol or a limit; its connection ends with this as a FATAL error."""

    sqlstate = "08P01"


class UpstreamError(DistribCacheError):
    """PostgreSQL cannot be reached, or did not speak as PostgreSQL does. The CLI exits with status 3."""

    sqlstate = "08006"


class CacheError(DistribCacheError):
    """A tier failed. Never shown to a client: it is a miss and a counter."""

    sqlstate = "58030"


class MissError(CacheError):
    """There is no such entry, and the caller asked for one (``get_or_raise``)."""

    sqlstate = "02000"


class ExpiredError(MissError):
    """There was one, and its time was over."""


class TooLargeError(CacheError):
    """An entry is larger than its tier takes."""

    sqlstate = "54000"

    def __init__(self, size: int, maximum: int, *, where: str = "l1.max_entry") -> None:
        super().__init__(
            f"an entry of {size} bytes; at most {maximum} are taken", where=where,
            hint=f"raise {where}, or keep less in one entry",
        )
        self.size = size
        self.maximum = maximum


class TierUnavailableError(CacheError):
    """A tier is off, or cannot be reached."""

    sqlstate = "57P03"


class PeerNotFoundError(TierUnavailableError):
    """No server of the distributed tier holds that part of the keys, or none of that name is known."""


class StorageError(TierUnavailableError):
    """The disk below L2 cannot be read or written."""


class NetworkError(TierUnavailableError):
    """The way to the servers of L3 is broken."""

    sqlstate = "08006"


class SerializationError(CacheError):
    """A value that cannot be written as bytes and read back equal, or bytes that no entry was ever written as."""

    sqlstate = "22000"


class CompressionError(SerializationError):
    """Stored bytes that do not unpack into what was stored."""


class InvalidationError(CacheError):
    """What was to be invalidated cannot be found out."""

    sqlstate = "42P01"


class ProtocolError(DistribCacheError):
    """Bytes that are not the PostgreSQL protocol. The layer that reads them says whose they were (see rule 3)."""

    sqlstate = "08P01"


ConfigurationError = ConfigError
CacheConnectionError = UpstreamError


def internal_error(error: BaseException) -> DistribCacheError:
    """What to say of an exception that no rule foresaw: its kind and place, never its text, which may hold data."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return DistribCacheError(
        f"internal error {type(error).__name__} at {place}",
        where="distribcache",
        hint="connect again; please report this with the version and what the client did",
    )
