"""Rules of coherence and identity, muted one at a time: whoever looks for stale answers must find them then.

Each takes a function like ``setattr``, so that a test can take the mute back and a process of its own need not.
``python tests/mutes.py NAME serve …`` is ``distribcache serve`` with one of them muted, or several with commas between
them. It lives among the tests, so that no installed command and no setting can ever do this.

``late`` mutes nothing: the stream of changes rests for half of the time, as on a bad network. Only then do the floors
of coherence rule R4 matter much; where they hold, nothing shows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

from distribcache.cli import main
from distribcache.clock import now_ns
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.mirror import Mirror
from distribcache.coherence.reader import Reader
from distribcache.coherence.scope import Idents
from distribcache.coherence.visibility import Visibility
from distribcache.proxy import hit, lookup, workers
from distribcache.proxy.standing import Standing
from distribcache.sql.effects import Effects
from distribcache.sql.settings import KEYED
from distribcache.store import Store

__all__ = ["MUTES"]

Set = Callable[[object, str, object], None]

_GUST_NS = 200_000_000
_USER, _ROLE, _SETTINGS, _EXTRA = 1, 2, 8, 9
_CONTENT = 10
"""The fields of a scope's content, and how many there are."""


def validity(put: Set) -> None:
    """R1: an entry is valid whatever the ledger says."""
    for module in (hit, lookup):
        put(module, "valid", lambda entry, words, now, head=None: True)


def late(put: Set) -> None:
    """The stream comes in gusts."""
    take = Reader._slice

    def rest(self: Reader, until: int) -> bool:
        if now_ns() // _GUST_NS % 2:
            time.sleep(0.001)  # the socket stays readable: without it, the loop would spin
            return False
        return take(self, until)

    put(Reader, "_slice", rest)


def rows(put: Set) -> None:
    """R1: the ledger hears of relations, never of rows."""
    bump = Ledger.bump
    put(Ledger, "bump", lambda self, slot, lsn: None if slot >= self.rows_at else bump(self, slot, lsn))


def visibility(put: Set) -> None:
    """R3: a commit counts as visible as soon as it is received."""
    put(Visibility, "visible", lambda self, applied: applied)


def own_writes(put: Set) -> None:
    """R4: a write through this node raises no floor."""
    for face in (DatabaseCoherence, Mirror):
        put(face, "raise_floor", lambda self, now: None)


def arrival(put: Set) -> None:
    """R4: a strict session is served as any other."""
    know = Standing.know_scope

    def lax(self: Standing, *known: object, **how: object) -> None:
        know(self, *known, **how)  # type: ignore[arg-type]
        self.strict = self.careful = False
        self.refresh()

    put(Standing, "know_scope", lax)


def schema(put: Set) -> None:
    """R6: a changed catalogue outdates nothing."""
    put(Ledger, "bump_all", lambda self, lsn: None)


def _scope(change: Callable[[list[object]], None]) -> Callable[[Set], None]:
    of = Idents.of

    def mute(put: Set) -> None:
        def forgetful(self: Idents, content: object) -> int:
            if isinstance(content, tuple) and len(content) == _CONTENT:
                fields = list(content)
                change(fields)
                content = tuple(fields)
            return of(self, content)

        put(Idents, "of", forgetful)

    return mute


def _no_settings(fields: list[object]) -> None:
    fields[_SETTINGS] = fields[_EXTRA] = ()


def _no_people(fields: list[object]) -> None:
    fields[_USER] = fields[_ROLE] = fields[_EXTRA] = None
    fields[_SETTINGS] = fields[_SETTINGS][: len(KEYED)]  # type: ignore[index]


settings = _scope(_no_settings)
people = _scope(_no_people)


def _effects(**fewer: bool) -> Callable[[Set], None]:
    known = Standing.effects_of

    def mute(put: Set) -> None:
        def harmless(self: Standing, *what: object, **how: object) -> Effects:
            return replace(known(self, *what, **how), **fewer)  # type: ignore[arg-type]

        put(Standing, "effects_of", harmless)

    return mute


opaque = _effects(opaque=False)
impure = _effects(impure=False)
unseen = _effects(impure=False, opaque=False)
ddl = _effects(ddl=False, everywhere=False, poll=False)

def turns(put: Set) -> None:
    """Each worker asks PostgreSQL for itself."""
    dear = Store.dear
    put(Store, "dear", lambda self, key, place: dear(self, key, place) and not place.turn)


MUTES: dict[str, Callable[[Set], None]] = {
    "late": late,
    "validity": validity,
    "rows": rows,
    "visibility": visibility,
    "own_writes": own_writes,
    "arrival": arrival,
    "schema": schema,
    "settings": settings,
    "people": people,
    "opaque": opaque,
    "impure": impure,
    "unseen": unseen,
    "ddl": ddl,
    "turns": turns,
}

if __name__ == "__main__":
    names = sys.argv.pop(1)
    for name in names.split(","):
        MUTES[name](setattr)
    workers.COMMAND[1:] = [__file__, names, "worker"]
    print(f"{names}: this proxy is made to fail on purpose", file=sys.stderr, flush=True)
    main()
