"""A circuit breaker: whether a server is worth a question, from how the last ones went.

States:

* *closed*: questions are asked. ``failures`` in a row open it; any answer in time ends the row.
* *open*: nothing is asked for ``pause``.
* *half-open*: one trial. If it works the breaker closes; if not it opens again for twice as long, at most ``longest``.

The breaker knows neither time nor sockets: whoever owns it waits as long as ``rest`` says and makes the trial. The
pause begins anew only when a question was answered after the trial: a server that greets and then says nothing is left
alone for longer and longer.
"""

from __future__ import annotations

import enum

__all__ = ["Breaker", "State"]


class State(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """It begins open, with no pause before the first trial: nobody knows the server yet."""

    __slots__ = ("_failures", "_longest", "_pause", "_row", "_wait", "state")

    def __init__(self, failures: int, pause: float, longest: float) -> None:
        self._failures = failures
        self._pause = pause
        self._longest = longest
        self._wait = pause
        self._row = 0
        self.state = State.OPEN

    def failed(self) -> bool:
        """A question failed, or the trial did; True when that opened the breaker."""
        if self.state is State.OPEN:
            return False
        self._row += 1
        if self.state is State.CLOSED and self._row < self._failures:
            return False
        self.state = State.OPEN
        return True

    def lost(self) -> None:
        """The connection ended: whatever the row was, there is nobody to ask."""
        self.state = State.OPEN

    def worked(self) -> None:
        """A question was answered in time."""
        if self.state is State.CLOSED:
            self._row = 0
            self._wait = self._pause

    def calm(self) -> None:
        """It was well for long: the next pause is the first again."""
        self._wait = self._pause

    def rest(self) -> float:
        """How long to wait before the next trial; the time after that is twice as long."""
        wait = self._wait
        self._wait = min(wait * 2, self._longest)
        return wait

    def try_again(self) -> None:
        """The pause is over: one trial."""
        self.state = State.HALF_OPEN
        self._row = 0

    def close(self) -> None:
        """The trial worked."""
        self.state = State.CLOSED
        self._row = 0
