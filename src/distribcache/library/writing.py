"""What was written, and what has to be known of it: every read that begins after it sees it.

A write through the library, or one that it is told of, raises the floor: what is known up to now is too old for
``session`` reads. What may have changed the catalogue is an alarm, and is looked for before the next fill.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

from distribcache.clock import now_ns
from distribcache.library.keeper import Keeper
from distribcache.library.steps import Steps, block, go
from distribcache.sql.effects import UNKNOWN, effects

__all__ = ["Writing", "wrote"]

_PATIENCE_NS: Final = 1_000_000_000
_LOOK_S: Final = 0.01


def wrote(keeper: Keeper, text: str = "", *, analysed: bool = False) -> Steps[None]:
    """A statement that may have written has ended; without its text it is one that changed rows only.

    ``analysed``: if it is a read, it is known to be one that may have effects.
    """
    keeper.raise_floor()
    if text and keeper.running and keeper.coherence.name:
        yield from keeper.ask(_conclude(keeper, text.encode(), analysed=analysed), None)


async def _conclude(keeper: Keeper, text: bytes, *, analysed: bool) -> None:
    await keeper.analyst.read_long(text)
    parsed = keeper.analyst.parsed(text)
    effect = UNKNOWN if parsed.error else effects(text, parsed, pure=False)
    if not effect.ddl and effect.impure and effect.opaque:
        await _code_is_known(keeper)
    if effect.ddl or effect.everywhere:
        keeper.coherence.catalogue_alarm("ddl")
    elif keeper.analyst.definers.may(text, parsed, effect, analysed=analysed):
        keeper.coherence.catalogue_alarm("code")
    elif effect.poll or (not analysed and keeper.analyst.definers.hidden):
        keeper.coherence.schedule_poll()


async def _code_is_known(keeper: Keeper) -> None:
    """Wait a moment until it is: what is not known counts as DDL, and whoever reads again and again while an alarm
    stands would raise the next one each time, so that none ever ended.
    """
    definers, until = keeper.analyst.definers, now_ns() + _PATIENCE_NS
    while not definers.known and now_ns() < until:
        definers.learn()
        await asyncio.sleep(_LOOK_S)


class Writing:
    """Whatever is committed inside is seen by every read that begins after it; see ``DistribCache.writing``."""

    __slots__ = ("_ddl", "_keeper")

    def __init__(self, keeper: Keeper, *, ddl: bool) -> None:
        self._keeper = keeper
        self._ddl = ddl

    def _ended(self) -> Steps[None]:
        keeper = self._keeper
        keeper.raise_floor()
        if keeper.running:
            yield from keeper.ask(self._tell(), None)

    async def _tell(self) -> None:
        coherence = self._keeper.coherence
        if self._ddl:
            coherence.catalogue_alarm("ddl")
        elif coherence.name:
            coherence.schedule_poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        block(self._ended())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await go(self._ended())
