"""Whose turn it is to ask PostgreSQL for an expensive miss, where several workers share an L2 and no L3.

The main process keeps the list; workers ask it over their channels (``peers``). One asks PostgreSQL, the others wait
until it says that its turn is over, and then look into L2: what they find there they take by all rules of the way up
(coherence rule R1), as everything else. Who finds nothing asks for a turn again.

Rules:
1. A turn ends when its worker says so, when that worker ends, and by its time.
2. Nobody waits for nobody: beyond ``_MOST`` turns everybody gets one. Waiting longer than it likes is the worker's to
   prevent.
3. Whoever has a turn is told as soon as somebody waits: what is too small for L2 is placed there for them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from distribcache.clock import now_ns

__all__ = ["Turns"]

_MOST: Final = 4096


class _Turn:
    __slots__ = ("holder", "until", "waiting")

    def __init__(self, holder: int, until: int) -> None:
        self.holder = holder
        self.until = until
        self.waiting: list[tuple[int, int]] = []
        """Workers, each with the number of its question."""


class Turns:
    """``tell`` sends a message to the worker with that index, if it is still there."""

    def __init__(self, tell: Callable[[int, dict[str, Any]], None]) -> None:
        self._tell = tell
        self._turns: dict[str, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def hear(self, index: int, message: dict[str, Any]) -> None:
        """``turn``: a worker asks for one; ``turn_over``: it has ended its own."""
        if message["kind"] == "turn":
            self._ask(index, message["id"], str(message["digest"]), float(message["seconds"]))
        else:
            self._over(index, str(message["digest"]))

    def _ask(self, index: int, number: int, digest: str, seconds: float) -> None:
        now = now_ns()
        turn = self._turns.get(digest)
        if turn is None or turn.until <= now or turn.holder == index:
            if turn is None and len(self._turns) >= _MOST:
                self._turns = {each: one for each, one in self._turns.items() if one.until > now or one.waiting}
            if turn is not None:
                turn.holder, turn.until = index, now + int(seconds * 1e9)
            elif len(self._turns) < _MOST:
                self._turns[digest] = _Turn(index, now + int(seconds * 1e9))
            self._answer(index, number, mine=True)
            if turn is not None and turn.waiting:
                self._tell(index, {"kind": "wanted", "digest": digest})
            return
        if not turn.waiting:
            self._tell(turn.holder, {"kind": "wanted", "digest": digest})
        turn.waiting.append((index, number))

    def _over(self, index: int, digest: str) -> None:
        turn = self._turns.get(digest)
        if turn is not None and turn.holder == index:
            del self._turns[digest]
            for waiting, number in turn.waiting:
                self._answer(waiting, number, mine=False)

    def gone(self, index: int) -> None:
        """A worker has ended."""
        for digest in [digest for digest, turn in self._turns.items() if turn.holder == index]:
            self._over(index, digest)

    def _answer(self, index: int, number: int, *, mine: bool) -> None:
        self._tell(index, {"kind": "answered", "id": number, "mine": mine})
