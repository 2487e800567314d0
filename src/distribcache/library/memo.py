"""``cached``: what a function returned, until time, a commit or a hand ends it.

Rules:
1. The key is the function and its arguments (``arguments``).
2. One run per key at a time, whoever calls: tasks of any loop, threads. Those who waited look again.
3. With ``tables=`` and a database that is followed, F is read before the function runs, and a commit that touches one
   of the tables ends the value. ``stale=`` bridges the end of a TTL only: what a commit ended is never served again.
4. What is given back is built anew from bytes each time: nobody can change what others will get. A value that cannot be
   written as bytes is given back and not kept (``unknown_type`` in the statistics).
5. A failure of the cache is a call of the function.

A function must read in a transaction that begins inside it. One that reads in a transaction of its caller's may see an
older snapshot than F claims.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar, overload

from distribcache.clock import now_ns
from distribcache.entry import AT_NS, COST_NS, PAYLOAD, TABLES, Entry, make_entry
from distribcache.errors import ConfigError, SerializationError
from distribcache.library.arguments import Arguments
from distribcache.library.dependence import Dependence, depend
from distribcache.library.flights import Flight
from distribcache.library.keeper import TIMELESS
from distribcache.library.memos import Memos
from distribcache.library.outcome import Outcome, last
from distribcache.library.steps import Steps, Wait, block, go
from distribcache.library.terms import Terms
from distribcache.library.values import pack, unpack
from distribcache.query import WorkloadType
from distribcache.tiers.base import Key

__all__ = ["Cached", "Memo"]

_VALUE, _NONE, _FAILURE = range(3)
_TRIES: Final = 4
_NS: Final = 1e9

P = ParamSpec("P")
R = TypeVar("R")


class Cached(Protocol[P, R]):
    """What takes the place of a cached function. As a method it is bound to its object like any function."""

    uncached: Callable[P, R]
    """The function itself."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Drop the value for these arguments, and what is being made of it."""
        ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: Any = None) -> Callable[..., R]: ...


class Memo:
    """One cached function."""

    def __init__(self, memos: Memos, function: Any, terms: Terms) -> None:
        """Raises ConfigError for what cannot be cached, and for a tag that names no argument."""
        hint = "decorate a function that returns its result, or awaits it"
        if not callable(function):
            raise ConfigError(f"{function!r} is no function", where="cached", hint=hint)
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigError(f"{function.__qualname__} is a generator", where="cached", hint=hint)
        self._memos = memos
        self._keeper = memos.keeper
        self._function = function
        self._terms = terms
        self.label = f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
        self.key = Arguments(function, self.label, terms, memos.generation).key
        self.blocking = not inspect.iscoroutinefunction(function)

    # -- calls

    def recall(self, key: Key) -> Entry | None:
        """What is in memory and needs no second thought; None means the long way (``call``)."""
        try:
            return self._recall(key)
        except Exception as error:  # noqa: BLE001 - as above
            self._keeper.failed(error)
            return None

    def _recall(self, key: Key) -> Entry | None:
        keeper, terms = self._keeper, self._terms
        if not keeper.running or not keeper.settings.cache.enabled:
            return None
        if terms.tables and keeper.follows and not keeper.fresh(keeper.floor(None, now_ns())):
            return None
        entry = keeper.find(key)
        if entry is None or now_ns() - entry[AT_NS] > self._fresh_ns(entry) - int(terms.refresh_ahead * _NS):
            return None
        return entry

    def answer(self, key: Key, entry: Entry) -> Any:
        """The value of a hit. Raises the failure that was kept."""
        keeper, tally = self._keeper, self._memos.tally
        keeper.reads += 1
        try:
            keeper.touch(key, entry)
        except Exception as error:  # noqa: BLE001 - a failure of the cache is a call of the function, or less
            keeper.failed(error)
        tally.hits += 1
        tally.saved_ns += entry[COST_NS]
        self._memos.heat.note((entry, key, self.label))
        last.set(Outcome("hit", "L1", "", (now_ns() - entry[AT_NS]) / 1e6, entry[TABLES], WorkloadType.MIXED.value))
        kind, _, value = unpack(entry[PAYLOAD])
        if kind == _FAILURE:
            raise self._terms.failures[value[0]](*value[1])
        return value

    def _fresh_ns(self, entry: Entry) -> int:
        """How long it is as good as new; it stays some time longer where a stale one may be served."""
        negative = self._terms.negative_ttl
        seconds = self._terms.ttl
        if negative is not None and entry[PAYLOAD][1] != _VALUE:
            seconds = negative
        return int(seconds * _NS)

    def call(self, key: Key, run: Callable[[], Any]) -> Steps[Any]:
        """The value, by whatever way it takes."""
        keeper, memos = self._keeper, self._memos
        if not keeper.running or not keeper.settings.cache.enabled:
            memos.tally.count(Outcome("bypass", reason=keeper.why_not()))
            return (yield run())
        keeper.reads += 1
        try:
            entry, flight, failure = yield from self._look(key)
            if entry is not None:
                self._refresh_soon(key, entry, run)
        except Exception as error:  # noqa: BLE001 - a failure of the cache is a call of the function
            keeper.failed(error)
            entry = flight = failure = None
        if failure is not None:
            raise failure
        if entry is not None:
            return self.answer(key, entry)
        return (yield from self._make(key, flight, run))

    def _look(self, key: Key) -> Steps[tuple[Entry | None, Flight | None, BaseException | None]]:
        """An entry; or what somebody's run has failed with, that this call waited for; or a flight to lead, or none."""
        keeper, terms = self._keeper, self._terms
        followed = bool(terms.tables) and keeper.follows
        waited = False
        for _ in range(_TRIES):
            floor = keeper.floor(None, now_ns())
            fresh = not followed or keeper.fresh(floor)
            entry = keeper.find(key)
            if entry is not None and fresh:
                return entry, None, None
            if entry is not None and not waited:
                waited = True
                yield from keeper.wait_fresh(floor)
                continue
            under_way = keeper.flights.join(key)
            if under_way is not None:
                ended = under_way.landing  # its failure came before this call
                yield Wait(under_way.done, keeper.settings.cache.single_flight_wait)
                if under_way.failure is not None and not ended:
                    return None, None, under_way.failure
                continue
            return None, keeper.flights.lead(key), None
        return None, None, None

    def _refresh_soon(self, key: Key, entry: Entry, run: Callable[[], Any]) -> None:
        age = now_ns() - entry[AT_NS]
        if age <= self._fresh_ns(entry) - int(self._terms.refresh_ahead * _NS):
            return
        flight = self._keeper.flights.lead(key)
        if flight is not None:
            self._memos.behind(self._make(key, flight, run), blocking=self.blocking)

    def _make(self, key: Key, flight: Flight | None, run: Callable[[], Any]) -> Steps[Any]:
        """Run the function and keep what it returns."""
        keeper, terms, memos = self._keeper, self._terms, self._memos
        failure: Exception | None = None
        try:
            base = Dependence(tables=",".join(terms.tables))
            if terms.tables and keeper.follows:
                base = yield from keeper.ask(depend(keeper, terms.tables), Dependence("internal_error"))
            memos.tally.count(Outcome("miss", "", base.reason, None, base.tables, WorkloadType.MIXED.value))
            memos.heat.note((None, base.tables, self.label, WorkloadType.MIXED.value))
            began = now_ns()
            try:
                value = yield run()
            except Exception as error:
                failure = error
                self._keep(key, base, began, _FAILURE, error)
                raise
            self._keep(key, base, began, _NONE if value is None else _VALUE, value)
            return value
        finally:
            if flight is not None:
                keeper.land(key, flight, failure)

    def _keep(self, key: Key, base: Dependence, began: int, kind: int, value: Any) -> None:
        try:
            self._store(key, base, began, kind, value)
        except Exception as error:  # noqa: BLE001 - as above
            self._keeper.failed(error)

    def _store(self, key: Key, base: Dependence, began: int, kind: int, value: Any) -> None:
        keeper, terms, tally = self._keeper, self._terms, self._memos.tally
        if base.reason:
            tally.fills[base.reason] += 1
            return
        ttl = terms.ttl
        if kind == _FAILURE:
            if terms.negative_ttl is None or type(value) not in terms.failures:
                return
            if not _comes_back(value):
                tally.fills["unknown_type"] += 1
                return
            value = [terms.failures.index(type(value)), list(value.args)]
        if kind != _VALUE and terms.negative_ttl is not None:
            ttl = terms.negative_ttl
        try:
            payload = pack([kind, self.label, value])
        except SerializationError:
            tally.fills["unknown_type"] += 1
            return
        now = now_ns()
        stale = terms.stale if kind == _VALUE else 0.0
        dated = base.epoch != TIMELESS
        entry = make_entry(
            payload, fill=base.fill, analysis=base.analysis if dated else 0, slots=base.slots, epoch=base.epoch,
            expires=keeper.clock.now + ttl + stale, cost_ns=now - began, at_ns=now, tables=base.tables,
            workload=WorkloadType.MIXED.value,
        )  # fmt: skip
        keeper.soon(self._put, key, entry, began)

    def _put(self, key: Key, entry: Entry, began: int) -> None:
        self._memos.tally.fills[self._keeper.put(key, entry, began_ns=began)] += 1

    # -- for the application

    def wrap(self) -> Callable[..., Any]:
        """The function that takes the other's place: see ``Cached``."""
        function = self._function
        wrapper: Any
        if self.blocking:

            @functools.wraps(function)
            def blocking(*args: Any, **kwargs: Any) -> Any:
                key = self.key(args, kwargs)
                entry = self.recall(key)
                if entry is not None:
                    return self.answer(key, entry)
                return block(self.call(key, lambda: function(*args, **kwargs)))

            wrapper = blocking
        else:

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                key = self.key(args, kwargs)
                entry = self.recall(key)
                if entry is not None:
                    return self.answer(key, entry)
                run: Callable[[], Awaitable[Any]] = lambda: function(*args, **kwargs)
                return await go(self.call(key, run))

            wrapper = awaited

        def invalidate(*args: Any, **kwargs: Any) -> None:
            block(self._keeper.ask(self._keeper.forget(self.key(args, kwargs)), False))

        wrapper.invalidate = invalidate
        wrapper.uncached = function
        found: Callable[..., Any] = wrapper
        return found


def _comes_back(failure: Exception) -> bool:
    """Does its class make the same of its arguments? Not if it takes others, or if something was added afterwards."""
    try:
        again = type(failure)(*failure.args)
        return (again.args, str(again), vars(again)) == (failure.args, str(failure), vars(failure))
    except Exception:  # noqa: BLE001 - whatever it is, it is not kept
        return False
