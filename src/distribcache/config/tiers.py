"""Settings of the three tiers: memory, local SSD, a Valkey or Redis cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic import model_validator as check

from distribcache.config.kinds import Count, Duration, Section, Size, at_least, setting
from distribcache.config.units import Address, parse_address, size_text

__all__ = ["EMBEDDED", "SECRETS", "DistributedTier", "HotTier", "WarmTier"]

SECRETS = frozenset({"l3.password", "l3.secret"})
"""Settings that are shown as asterisks."""
EMBEDDED = "embedded"
"""As ``l3.peers``: a Valkey server of our own, for trying it."""
_PEERS_REMEDY = 'write addresses, such as "10.0.0.1:6379, 10.0.0.2:6379", or "embedded" to try it'


def _peers(value: object) -> object:
    """A list, or a text with commas, as one text."""
    return ", ".join(str(each).strip() for each in value) if isinstance(value, list | tuple) else value


def _addresses(value: str) -> str:
    if value and value != EMBEDDED:
        for each in value.split(","):
            try:
                parse_address(each)
            except ValueError:
                raise ValueError(f"not a list of addresses; {_PEERS_REMEDY}") from None
    return value


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", value):
        raise ValueError("not a namespace; write 1 to 64 letters, digits, dots, dashes or underscores")
    return value


class HotTier(Section):
    """Tier L1: the memory of the process."""

    size: Annotated[Size, at_least(1 << 16, "64kB")] = setting(
        "256MB", "Bytes that keys, payloads and their overhead may take."
    )
    max_entry: Annotated[Size, at_least(1, "1B")] = setting(
        "1MB", "A larger result is relayed and not stored."
    )
    policy: Literal["adaptive", "lru", "lfu", "fifo"] = setting(
        "adaptive", "Who leaves when the tier is full; adaptive is S3-FIFO."
    )

    @check(mode="after")
    def _fits(self) -> HotTier:
        if self.max_entry > self.size:
            raise ValueError(
                f"max_entry {size_text(self.max_entry)} is larger than size {size_text(self.size)}; "
                f"an entry must fit: lower max_entry or raise size"
            )
        return self


class WarmTier(Section):
    """Tier L2: local SSD. It writes rows of the database to disk, in a directory that only its owner can read."""

    path: Path | None = setting(None, "Directory of the tier; none turns it off.")
    size: Annotated[Size, at_least(1 << 20, "1MB")] = setting(
        "5GB", "Bytes that stored entries may take; the file may become half as large again."
    )
    max_entry: Annotated[Size, at_least(1, "1B")] = setting("64MB", "A larger result is not stored here.")
    min_entry: Size = setting("1kB", "Smaller results stay in memory only.")
    min_ttl: Duration = setting("60s", "Results that may live no longer than this stay in memory only.")
    compression: Literal["lz4", "zstd", "none"] = setting("lz4", "How payloads are compressed.")
    write_queue: Annotated[Size, at_least(1 << 16, "64kB")] = setting(
        "64MB", "Bytes that may wait to be written; what comes beyond is not stored here."
    )


class DistributedTier(Section):
    """Tier L3: a Valkey or Redis cluster, or a single server, that several nodes share."""

    peers: Annotated[str, BeforeValidator(_peers), AfterValidator(_addresses)] = setting(
        "", 'Seed nodes, as host:port with commas between; none turns the tier off, "embedded" starts a server of our '
        "own for trying it.",
    )
    replication_factor: Annotated[int, at_least(1, "1")] = setting(
        2, "Copies that every key should have in the cluster; fewer is said at start, and never an error."
    )
    user: str = setting("", "ACL user; none means the default user.")
    password: str = setting("", "Its password; better in the environment or in password_file than in a file here.")
    password_file: Path | None = setting(None, "A file with the password.")
    tls: bool = setting(False, "Speak TLS; the server's certificate is verified.")
    tls_ca: Path | None = setting(None, "Certificates (PEM) to trust instead of the system's.")
    tls_cert: Path | None = setting(None, "Client certificate (PEM), if the cluster asks for one.")
    tls_key: Path | None = setting(None, "Private key (PEM) of that certificate.")
    namespace: Annotated[str, AfterValidator(_namespace)] = setting(
        "default", "Keys begin with dc:NAMESPACE: so that several installations can share a cluster."
    )
    secret: str = setting(
        "", "Keys and entries are authenticated with it; all nodes need the same. Set it where others can write to the "
        "cluster.",
    )
    secret_file: Path | None = setting(None, "A file with the secret.")
    deadline: Annotated[Duration, at_least(0.001, "1ms")] = setting(
        "20ms", "How long one question may take; then it is a miss."
    )
    connect_timeout: Annotated[Duration, at_least(0.01, "10ms")] = setting("1s", "How long connecting may take.")
    breaker_failures: Count = setting(5, "Failures in a row after which a server is left alone for a while.")
    breaker_pause: Annotated[Duration, at_least(0.05, "50ms")] = setting("1s", "How long it is left alone.")
    max_entry: Annotated[Size, at_least(1, "1B")] = setting("1MB", "A larger result is not stored here.")
    lease_cost: Duration = setting(
        "20ms", "A miss that took longer than this before is asked by one node of the cluster, for all."
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, "***" if name in ("password", "secret") and value else value

    @property
    def endpoints(self) -> tuple[Address, ...]:
        """The seed nodes; empty when the tier is off or embedded."""
        if not self.peers or self.peers == EMBEDDED:
            return ()
        return tuple(parse_address(each) for each in self.peers.split(","))
