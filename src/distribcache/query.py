"""What is known about who asks: workload classes and the context of a query."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

__all__ = ["Consistency", "QueryContext", "SessionId", "WorkloadType"]


class WorkloadType(enum.Enum):
    """Classes of workload; the value is the name that users write and see."""

    OLTP = "oltp"
    OLAP = "olap"
    VECTOR = "vector"
    AI_AGENT = "ai_agent"
    RAG = "rag"
    MIXED = "mixed"


class Consistency(enum.Enum):
    """How fresh a hit must be (coherence rule R4)."""

    EVENTUAL = "eventual"
    SESSION = "session"
    STRICT = "strict"


class SessionId(str):
    """Who asks, across queries: any text that the application knows its sessions by."""

    __slots__ = ()

    @classmethod
    def new(cls) -> SessionId:
        """One that nobody else has."""
        return cls(os.urandom(8).hex())


@dataclass(frozen=True, slots=True)
class QueryContext:
    """Under which circumstances a query is asked.

    ``branch`` and ``as_of`` are part of the key: answers of one never serve another. ``workload_hint`` takes the place
    of the class that the text is of: it decides how long an answer may live, and to which tiers it goes. ``session``,
    ``is_prepared`` and ``timestamp`` (seconds since the Unix epoch) are the application's own notes; nothing here goes
    by them.
    """

    session: SessionId | None = None
    workload_hint: WorkloadType | None = None
    branch: str | None = None
    as_of: str | None = None
    is_prepared: bool = False
    timestamp: float | None = None
