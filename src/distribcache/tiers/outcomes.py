"""What the warm tier's shelf is asked to do and what becomes of it: facts and errors, and what LMDB's errors mean."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

import lmdb

from distribcache.errors import CacheError
from distribcache.tiers.base import Cause
from distribcache.tiers.place import code_of

__all__ = ["BrokenError", "Drop", "Large", "Totals", "UnreadableError", "Written", "off"]


class BrokenError(CacheError):
    """The environment cannot be used as it is; ``code`` is a stable word, ``anew`` whether the file must go."""

    def __init__(self, code: str, message: str, *, anew: bool) -> None:
        super().__init__(message, where="l2", hint="the tier opens again by itself")
        self.code = code
        self.anew = anew


class UnreadableError(CacheError):
    """The entry under a digest is not what was written; ``sequence`` tells it from one that replaces it."""

    def __init__(self, sequence: bytes, verdict: CacheError) -> None:
        super().__init__(verdict.message, where="l2", hint="it is dropped, and a miss")
        self.sequence = sequence
        self.verdict = verdict


class Large(enum.Enum):
    """An entry is there, and larger than was asked for."""

    LARGE = "large"


@dataclass(frozen=True, slots=True)
class Drop:
    """Take away what is under a digest; with ``sequence`` only if it is still that one."""

    cause: Cause
    sequence: bytes = b""


@dataclass(frozen=True, slots=True)
class Totals:
    next: int = 0
    entries: int = 0
    charged: int = 0


@dataclass(slots=True)
class Written:
    """What a batch did."""

    puts: int = 0
    left: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    unfit: int = 0

    def add(self, other: Written) -> None:
        self.puts += other.puts
        self.unfit += other.unfit
        for cause, count in other.left.items():
            self.left[cause] += count


# What is wrong with the file itself; everything else goes away by opening it again.
_DAMAGE: Final = (
    lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.IncompatibleError,
    lmdb.CursorFullError, lmdb.PageFullError, lmdb.NotFoundError, lmdb.KeyExistsError, lmdb.DbsFullError,
)  # fmt: skip


def off(error: lmdb.Error) -> BrokenError:
    """What an error of LMDB means for the tier."""
    if isinstance(error, _DAMAGE):
        return BrokenError("damaged_file", str(error), anew=True)
    if isinstance(error, lmdb.MapFullError):
        return BrokenError("map_full", str(error), anew=False)
    number = getattr(error, "code", 0)
    return BrokenError(code_of(number) if number > 0 else "io_error", str(error), anew=False)
