"""What is known about who asks: workload classes and the context of a query."""

from __future__ import annotations

import enum

__all__ = ["Consistency", "WorkloadType"]


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
