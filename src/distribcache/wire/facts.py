"""What single messages say, as frozen facts.

Names and SQL stay bytes: their encoding is the session's affair. What is secret (passwords, SASL exchanges, cancel
keys, bound values, rows) does not show in ``repr``, so it cannot get into a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "MAX_SASL", "MAX_SECRET", "Authentication", "BackendKeyData", "Bind", "Close", "Column", "DataRow", "Describe",
    "ErrorFields", "Execute", "NegotiateVersion", "NotificationResponse", "ParameterStatus", "Parse", "Password",
    "RowDescription", "SaslInitial",
]  # fmt: skip

MAX_SECRET = 256
"""Longest cancel key in bytes (protocol 3.2; 4 in 3.0)."""

MAX_SASL = 8192
"""Longest PasswordMessage or SASL message taken, in bytes: a long server nonce fits, a flood does not."""


@dataclass(frozen=True, slots=True)
class Parse:
    """Prepare ``sql`` as statement ``name`` (empty: unnamed); oid 0 leaves the type to the server."""

    name: bytes
    sql: bytes
    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bind:
    """Make ``portal`` from ``statement``. Formats: none = all text, one = for all, else one each."""

    portal: bytes
    statement: bytes
    param_formats: tuple[int, ...]
    params: tuple[bytes | None, ...] = field(repr=False)
    result_formats: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Describe:
    """``kind`` is ``b"S"`` (statement) or ``b"P"`` (portal)."""

    kind: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """``kind`` is ``b"S"`` (statement) or ``b"P"`` (portal)."""

    kind: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Execute:
    """Run ``portal`` for at most ``max_rows`` rows; 0 or less is no limit."""

    portal: bytes
    max_rows: int


@dataclass(frozen=True, slots=True)
class Password:
    """PasswordMessage, SASLInitialResponse, SASLResponse or GSSResponse: only the exchange tells which."""

    data: bytes

    def __repr__(self) -> str:
        return "Password(<secret>)"


@dataclass(frozen=True, slots=True)
class SaslInitial:
    """The client's choice of mechanism and its first data (None: not sent)."""

    mechanism: bytes
    data: bytes | None

    def __repr__(self) -> str:
        return f"SaslInitial(mechanism={self.mechanism!r}, data=<secret>)"


@dataclass(frozen=True, slots=True)
class Authentication:
    """``code`` is one of ``Auth``; ``data`` what follows it (salt, mechanisms, SASL data)."""

    code: int
    data: bytes

    def __repr__(self) -> str:
        return f"Authentication(code={self.code}, data={'<secret>' if self.data else 'empty'})"


@dataclass(frozen=True, slots=True)
class BackendKeyData:
    """What a CancelRequest has to repeat: 4 bytes of secret in protocol 3.0, up to 256 in 3.2."""

    pid: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ParameterStatus:
    """The server reports the value of a setting."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ErrorFields:
    """Fields of an ErrorResponse or NoticeResponse by their one-letter code; a server may leave out any of them."""

    fields: Mapping[str, str]

    @property
    def severity(self) -> str:
        """Not translated where the server sends that (9.6 and later)."""
        return self.fields.get("V") or self.fields.get("S", "")

    @property
    def sqlstate(self) -> str:
        """Empty when the server sent none."""
        return self.fields.get("C", "")

    @property
    def text(self) -> str:
        return self.fields.get("M", "")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a RowDescription; ``table`` and ``attribute`` are 0 for an expression."""

    name: bytes
    table: int
    attribute: int
    type_oid: int
    size: int
    modifier: int
    form: int


@dataclass(frozen=True, slots=True)
class RowDescription:
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class DataRow:
    values: tuple[bytes | None, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotificationResponse:
    """A NOTIFY of backend ``pid``."""

    pid: int
    channel: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class NegotiateVersion:
    """The server speaks protocol 3.``newest_minor`` and does not know these ``_pq_.`` options."""

    newest_minor: int
    unknown: tuple[bytes, ...]
