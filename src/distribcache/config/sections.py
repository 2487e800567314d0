"""What can be set: one frozen class per section, defaults, bounds, and the text of the reference for each key.

Rules:
1. The unit is in the value: ``"64MB"``, ``"250ms"``. In Python a size is an int in bytes, a duration a float in
   seconds.
2. A validator's message says after a semicolon what to write instead; ``loading`` turns that into the error's hint.
3. Passwords stand in ``upstream.url`` only. They never appear in a ``repr``, in ``show`` or in an error.
4. Every key has a default, except that serving needs ``upstream.url``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr
from pydantic import model_validator as check
from pydantic.fields import FieldInfo

from distribcache.config.kinds import Bound, Count, Duration, Section, Share, Size, Socket, at_least, setting
from distribcache.config.tiers import SECRETS, DistributedTier, HotTier, WarmTier
from distribcache.config.units import Address, duration_text, parse_address, parse_size, size_text
from distribcache.errors import ConfigError
from distribcache.query import Consistency, WorkloadType

__all__ = [
    "Admin", "Audit", "Auth", "Cache", "Freshness", "Listen", "Settings", "Staleness", "Ttl", "Upstream", "fields",
    "mask", "value_text",
]

ENV_PREFIX = "DISTRIBCACHE_"
_URL_REMEDY = 'write a URL such as "postgresql://user@db.example.com:5432/shop"'


def mask(text: str) -> str:
    """The text with the passwords of every URL or connection string in it replaced by asterisks."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", text, flags=re.IGNORECASE)


def _url(value: str) -> str:
    if value and not re.match(r"postgres(ql)?://", value):
        raise ValueError(f"not a PostgreSQL URL; {_URL_REMEDY}")
    if any(character.isspace() or ord(character) < 32 for character in value):
        raise ValueError(f"a URL holds no spaces; {_URL_REMEDY}, with %20 for a space")
    return value


class Upstream(Section):
    """The PostgreSQL server behind the cache."""

    url: Annotated[str, AfterValidator(_url)] = setting(
        "", "Where PostgreSQL is, as a libpq URL. Its user and password are those of the cache's own "
        "connections (catalogue questions, WAL); clients log in as themselves.",
    )
    connect_timeout: Annotated[Duration, at_least(0.1, "100ms")] = setting(
        "10s", "How long one attempt to reach PostgreSQL may take."
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, mask(value) if name == "url" else value


class Listen(Section):
    """Where clients connect."""

    address: Socket = setting("127.0.0.1:6432", "Where PostgreSQL clients connect; port 0 takes a free one.")
    tls_cert: Path | None = setting(None, "Certificate chain (PEM) shown to clients; none means no TLS.")
    tls_key: Path | None = setting(None, "Private key (PEM) of that certificate.")
    workers: Annotated[int, Field(ge=1, le=64)] = setting(
        1, "Processes that serve clients, where one core is not enough. Each has a memory tier (l1.size) and limits of "
        "clients of its own."
    )
    max_clients: Count = setting(2000, "Clients at once; more are refused with SQLSTATE 53300.")
    login_timeout: Annotated[Duration, at_least(0.1, "100ms")] = setting(
        "15s", "A client that has not logged in by then is disconnected."
    )
    max_unauthenticated: Count = setting(256, "Clients at once that have not logged in yet.")

    @check(mode="after")
    def _pair(self) -> Listen:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ValueError(f"{missing} is missing; tls_cert and tls_key go together, set both or neither")
        return self

    @property
    def endpoint(self) -> Address:
        return parse_address(self.address)


class Admin(Section):
    """The HTTP server for people and for Prometheus."""

    address: Socket = setting(
        "127.0.0.1:6433", "Dashboard, /metrics, /healthz and /api; port 0 takes a free one."
    )

    @property
    def endpoint(self) -> Address:
        return parse_address(self.address)


class Cache(Section):
    """The cache as a whole."""

    enabled: bool = setting(True, "Off: a transparent proxy, nothing is stored or answered from memory.")
    single_flight_wait: Duration = setting(
        "5s", "How long a read waits for the same read of another client before it goes upstream itself."
    )


class Ttl(Section):
    """How long an entry lives by class of workload, if no write ends it before."""

    oltp: Duration = setting("60s", "Point reads and small writes.")
    olap: Duration = setting("30min", "Scans and aggregates.")
    vector: Duration = setting("5min", "Similarity searches.")
    ai_agent: Duration = setting("10min", "Context, tools and conversation of agents.")
    rag: Duration = setting("15min", "Retrieval for generation.")
    default: Duration = setting("5min", "Everything else.")

    def of(self, workload: WorkloadType) -> float:
        """Seconds for that class."""
        seconds: float = self.default if workload is WorkloadType.MIXED else getattr(self, workload.value)
        return seconds


class Freshness(Section):
    """How fresh answers are, and how the cache learns of writes."""

    consistency: Consistency = setting(
        Consistency.SESSION, "eventual: at most max_staleness old. session: also at least as fresh as every write "
        "acknowledged through this node. strict: as fresh as PostgreSQL at the request's arrival.",
    )
    max_staleness: Annotated[Duration, at_least(0.01, "10ms")] = setting(
        "1s", "No answer is older than this; beyond it reads go to PostgreSQL."
    )
    invalidation: Literal["wal", "ttl"] = setting(
        "wal", "wal: logical decoding tells what died; without it nothing is cached. "
        "ttl: only time ends an entry, in all tiers; answers may be as old as their TTL.",
    )
    plugin: Literal["auto", "test_decoding", "pgoutput"] = setting(
        "auto", "The server's output plugin that tells of commits. auto takes test_decoding if the server has it. "
        "pgoutput is part of every server, needs what `distribcache setup` makes, and does not show updates of tables "
        "without a replica identity: those are not cached.",
    )
    max_wal_lag: Annotated[Size, at_least(1 << 20, "1MB")] = setting(
        "256MB", "Further behind than this, the cache drops its slot and starts empty, so that it never "
        "fills the server's disk.",
    )
    schema_poll: Annotated[Duration | None, Field(validate_default=False)] = setting(
        None, "How often the catalogue is compared as a whole; default and maximum: max_staleness."
    )
    slot: Literal["temporary", "persistent"] = setting(
        "temporary", "temporary: replication slots vanish with their connection, and L2 begins empty. persistent: the "
        "server keeps the change stream while distribcache is restarted, so that what lies in L2 stays valid; needs "
        "l2.path and, on the server, max_slot_wal_keep_size.",
    )
    max_databases: Count = setting(16, "Databases with a WAL reader at once; more are passed through.")
    hit_wait: Duration = setting(
        "5ms", "How long a hit may wait for proof of its freshness before it goes upstream."
    )
    database_linger: Duration = setting(
        "30s", "How long a database stays warm after its last client has left."
    )

    @check(mode="after")
    def _polls_often_enough(self) -> Freshness:
        if self.schema_poll is not None and not 0.01 <= self.schema_poll <= self.max_staleness:
            given, most = duration_text(self.schema_poll), duration_text(self.max_staleness)
            raise ValueError(f"schema_poll {given} is out of range; it lies between 10ms and max_staleness ({most})")
        return self

    @property
    def schema_poll_s(self) -> float:
        """Seconds, with the default filled in."""
        return self.max_staleness if self.schema_poll is None else self.schema_poll


class Staleness(Section):
    """How old answers of one class of statements may be, where that is less than freshness.max_staleness."""

    oltp: Bound = setting(None, "Point reads and small writes.")
    olap: Bound = setting(None, "Scans and aggregates.")
    vector: Bound = setting(None, "Similarity searches.")
    ai_agent: Bound = setting(None, "Context, tools and conversation of agents.")
    rag: Bound = setting(None, "Retrieval for generation.")
    default: Bound = setting(None, "Everything else.")

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds by the name of the class, of those that have a bound of their own."""
        names = {each.value: "default" if each is WorkloadType.MIXED else each.value for each in WorkloadType}
        return {name: seconds for name, key in names.items() if (seconds := getattr(self, key)) is not None}


class Audit(Section):
    """Hits that are asked again, to measure that they were right."""

    sample: Share = setting(
        "0.0001", "The share of hits that PostgreSQL is asked again behind the answer, on the client's own idle "
        "connection; 0 turns it off, 1 means all.",
    )
    max_cost: Duration = setting("50ms", "A statement that took longer than this when its answer was stored is not "
        "asked again.",
    )


class Auth(Section):
    """Logins. They are decided by PostgreSQL; the cache only relays them."""

    allow_trust: bool = setting(
        False, "Let clients from other machines in when PostgreSQL asks them nothing: its pg_hba.conf sees "
        "the cache's address, not theirs.",
    )


class Settings(Section):
    """Everything that can be set, by section. Made by ``load``; frozen."""

    upstream: Upstream = Field(default_factory=Upstream)
    listen: Listen = Field(default_factory=Listen)
    admin: Admin = Field(default_factory=Admin)
    cache: Cache = Field(default_factory=Cache)
    l1: HotTier = Field(default_factory=HotTier)
    l2: WarmTier = Field(default_factory=WarmTier)
    l3: DistributedTier = Field(default_factory=DistributedTier)
    ttl: Ttl = Field(default_factory=Ttl)
    freshness: Freshness = Field(default_factory=Freshness)
    staleness: Staleness = Field(default_factory=Staleness)
    audit: Audit = Field(default_factory=Audit)
    auth: Auth = Field(default_factory=Auth)

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @check(mode="after")
    def _only_tighter(self) -> Settings:
        most = self.freshness.max_staleness
        for key, _ in self.staleness:
            seconds = getattr(self.staleness, key)
            if seconds is not None and seconds > most:
                raise ValueError(
                    f"staleness.{key}: {duration_text(seconds)} is longer than freshness.max_staleness "
                    f"({duration_text(most)}); raise that one, and give the other classes a bound of their own"
                )
        return self

    @check(mode="after")
    def _somewhere_to_keep(self) -> Settings:
        if self.freshness.slot == "persistent" and self.l2.path is None:
            raise ValueError(
                "freshness.slot: persistent needs a directory for what is kept over a restart; "
                "set l2.path to one of its own on a local disk, or leave the slot temporary"
            )
        return self

    @property
    def sources(self) -> Mapping[str, str]:
        """``section.key`` → ``flag``, ``environment NAME``, ``file PATH`` or ``default``."""
        return {name: self._sources.get(name, "default") for name, _ in self._values()}

    def show(self) -> list[tuple[str, str, str]]:
        """Rows (key, value as one would write it, source), secrets masked."""
        sources = self.sources
        return [(name, value_text(name, value), sources[name]) for name, value in self._values()]

    def upstream_url(self) -> str:
        """``upstream.url``; raises ConfigError when it is not set."""
        if not self.upstream.url:
            raise ConfigError(
                "no PostgreSQL server given", where="upstream.url",
                hint=f"--upstream postgresql://user@host:5432/dbname, or set {ENV_PREFIX}UPSTREAM_URL",
            )
        return self.upstream.url

    def _values(self) -> Iterator[tuple[str, Any]]:
        for section in type(self).model_fields:
            for key, value in getattr(self, section):
                yield f"{section}.{key}", value


def value_text(name: str, value: Any) -> str:
    """A setting's value as one would write it in the file; the empty text when it is not set."""
    section, _, key = name.partition(".")
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Consistency):
        return value.value
    if name in SECRETS:
        return "***" if value else ""
    if name == "upstream.url":
        return mask(str(value))
    units = [item for item in fields(section)[key].metadata if isinstance(item, BeforeValidator)]
    if units and units[0].func is parse_size:
        return size_text(value)
    if name == "audit.sample":
        return f"{value:g}"
    return duration_text(value) if isinstance(value, float) else str(value)


def fields(section: str) -> dict[str, FieldInfo]:
    """The keys of a section."""
    kind: Any = Settings.model_fields[section].annotation
    fields: dict[str, FieldInfo] = kind.model_fields
    return fields
