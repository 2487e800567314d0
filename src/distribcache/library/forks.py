"""What a child of this process finds after a fork: its parent's memory, and none of its parent's threads.

So nobody would ever answer there, a lock may be held by a thread that does not exist, and connections are the
parent's. Servers that load an application and fork their workers afterwards do that to every cache in it. Whoever has
such things says so (``concerns``), and is told in the child (``forked``), in the order in which they said it.

What is the parent's is left behind and kept (``left_behind``): whatever closed it here would let go of it there.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

__all__ = ["concerns", "left_behind"]


class _Forked(Protocol):
    def forked(self) -> None: ...


_concerned: list[weakref.ref[_Forked]] = []
_left_behind: list[Any] = []


def concerns(one: _Forked) -> None:
    """``one.forked()`` is called in every child that begins while it lives."""
    _concerned.append(weakref.ref(one, _concerned.remove))


def left_behind(*things: Any) -> None:
    """Keep what belongs to the parent, untouched."""
    _left_behind.extend(things)


def _after_fork() -> None:
    for each in _concerned[:]:
        one = each()
        if one is not None:
            one.forked()


os.register_at_fork(after_in_child=_after_fork)
