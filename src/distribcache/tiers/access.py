"""What is needed to be let in by the servers of L3: secrets from settings or files, and what verifies certificates.

A setting that can never work is an error at the start, with its name. No message holds a secret.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from distribcache.config.tiers import DistributedTier
from distribcache.errors import ConfigError

__all__ = ["check_access", "read_secret", "tls_context"]


def check_access(settings: DistributedTier) -> None:
    """Raises ConfigError for what can never work."""
    read_secret("secret", settings.secret, settings.secret_file)
    read_secret("password", settings.password, settings.password_file)
    tls_context(settings)


def read_secret(name: str, value: str, path: Path | None) -> str:
    """A secret from a setting or a file."""
    if path is None:
        return value
    where = f"l3.{name}_file"
    if value:
        raise ConfigError(f"l3.{name} is set as well", where=where, hint="keep one of the two")
    try:
        found = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {_why(error)}", where=where, hint="name a text file that this user can read"
        ) from None
    if not found:
        raise ConfigError("the file is empty", where=where, hint=f"write the {name} into it, in one line")
    return found


def tls_context(settings: DistributedTier) -> ssl.SSLContext | None:
    """What verifies the servers; None without TLS."""
    if not settings.tls:
        for name in ("tls_ca", "tls_cert", "tls_key"):
            if getattr(settings, name) is not None:
                raise ConfigError("it is of no use without l3.tls", where=f"l3.{name}", hint="set l3.tls = true")
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.tls_ca} cannot be read: {_why(error)}", where="l3.tls_ca",
            hint="name a file of certificates in PEM",
        ) from None
    if settings.tls_key is not None and settings.tls_cert is None:
        raise ConfigError("l3.tls_cert is missing", where="l3.tls_key", hint="name the certificate of that key")
    if settings.tls_cert is not None:
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot be used: {_why(error)}",
                where="l3.tls_cert, l3.tls_key",
                hint="name a certificate and its unencrypted key, both in PEM",
            ) from None
    return context


def _why(error: Exception) -> str:
    """The system's words, or the kind of the failure: what a parser says could quote a secret."""
    return (None if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)) or type(error).__name__
