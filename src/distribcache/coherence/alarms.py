"""Catalogue alarms: what may have changed the catalogue, and how far W may go until somebody has looked (rule R6).

An alarm comes from the stream (an empty transaction, the event trigger's message, a name that is not on the map),
from the proxy (DDL or GRANT passed through it), from a changed poll, or from the start itself. While one is pending
there are no hits and no fills, and W stays below it. One re-read of the catalogue answers every alarm that it could
see:

* an alarm with an xid is answered by a re-read whose *own* snapshot shows that transaction; it starts only once the
  transaction is proved visible, but may also answer one that was received meanwhile;
* an alarm without one (proxy, poll) is answered by a re-read begun after it was raised: its change was acknowledged,
  or seen, before.
* a re-read that sees a change which nobody announced raises one itself, and answers it;
* the alarm of the start is answered by a re-read begun after V is defined: a transaction of before the start that is
  not visible yet would never raise another.
"""

from __future__ import annotations

from dataclasses import dataclass

from distribcache.coherence.visibility import Snapshot, Visibility

__all__ = ["Alarm", "Alarms"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """``hold`` is the position that W must not pass; ``xid`` is -1 when no transaction is known."""

    number: int
    reason: str
    hold: int
    xid: int = -1


class Alarms:
    """The pending alarms of one stream, in the order in which they were raised."""

    __slots__ = ("_next", "pending", "raised")

    def __init__(self) -> None:
        self._next = 1
        self.pending: list[Alarm] = []
        self.raised = 0

    def __bool__(self) -> bool:
        return bool(self.pending)

    def raise_(self, reason: str, hold: int, xid: int = -1) -> int:
        """Its number."""
        self.pending.append(Alarm(self._next, reason, hold, xid))
        self._next += 1
        self.raised += 1
        return self._next - 1

    @property
    def mark(self) -> int:
        """Number of the next alarm: one below it was raised before now."""
        return self._next

    def limit(self) -> int | None:
        """The position that W must not pass now; None when nothing is pending."""
        return min(alarm.hold for alarm in self.pending) if self.pending else None

    def ready(self, visibility: Visibility) -> bool:
        """Is there one that a re-read begun now would answer?"""
        if not visibility.defined:
            return False
        return any(alarm.xid == -1 or not visibility.is_unproved(alarm.xid) for alarm in self.pending)

    def answer(self, snapshot: Snapshot, mark: int, own: int = 0) -> list[Alarm]:
        """Take out and return those answered by a re-read with this snapshot, begun when ``mark`` was read.

        ``own``: the number of the alarm that this re-read itself raised when it saw a change.
        """
        done = [
            a for a in self.pending if (a.number < mark or a.number == own if a.xid == -1 else snapshot.sees(a.xid))
        ]
        self.pending = [a for a in self.pending if a not in done]
        return done
