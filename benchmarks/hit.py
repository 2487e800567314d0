"""Nanoseconds per hit, without sockets: the session and the hit path over a canned cache.

``python benchmarks/hit.py`` prints, for each shape of request, the time from client bytes to reply bytes, beside the
floor of the same loop with nothing but a dict look-up of the same bytes. Each figure is the least of several rounds of
processor time. Compare ratios, not absolute times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from distribcache.clock import CoarseClock, now_ns
from distribcache.coherence.ledger import EPOCH, FRESH_AT, SCHEMA, W
from distribcache.entry import make_entry
from distribcache.proxy.hit import Hot, serve
from distribcache.wire.messages import SYNC, bind, describe, execute, parse, query

_ROUNDS = 40
_EACH = 5_000


def _time(call: Callable[[], object]) -> float:
    """Least nanoseconds per call over rounds."""
    times = []
    for _ in range(_ROUNDS):
        began = time.process_time_ns()
        for _ in range(_EACH):
            call()
        times.append((time.process_time_ns() - began) / _EACH)
    return min(times)


def main() -> None:
    """Print the table."""
    words = memoryview(bytearray(8 * 4096)).cast("Q")
    entries: dict[tuple[int, bytes], object] = {}
    hot = Hot(entries, None, CoarseClock(1.0), lambda data: None)  # type: ignore[arg-type]
    hot.words = hot.head = words
    hot.ident = 1
    hot.epoch = words[EPOCH] = 1
    hot.schema = words[SCHEMA] = 0
    words[W] = 100
    words[FRESH_AT] = now_ns() + 10**15
    hot.max_staleness = 10**9
    hot.names[b"P_0"] = (2, 0)
    entry = make_entry(
        b"x" * 100,
        fill=50,
        analysis=50,
        slots=(100,),
        epoch=1,
        expires=1e9,
        cost_ns=1,
        at_ns=1,
        tables="t",
        workload="oltp",
    )
    simple = query(b"SELECT abalance FROM pgbench_accounts WHERE aid = 12345;")
    unnamed = (
        parse(b"", b"SELECT abalance FROM pgbench_accounts WHERE aid = $1", (23,))
        + bind(b"", b"", (), (b"12345",))
        + describe(b"P", b"")
        + execute(b"")
        + SYNC
    )
    named_bind = bind(b"", b"P_0", (), (b"12345",))
    named = named_bind + describe(b"P", b"") + execute(b"") + SYNC
    entries[(1, simple)] = entry
    entries[(1, unnamed[:-5])] = entry
    entries[(2, named[named.index(b"P_0\0") + 4 : -5])] = entry
    for name, data in (("simple", simple), ("extended, unnamed", unnamed), ("prepared", named)):
        assert serve(data, 0, hot) == len(data), name
        fresh = bytearray(data)  # no cached hash, as from a socket
        floor = _time(lambda data=fresh: entries.get((1, bytes(bytearray(data)))))
        hit = _time(lambda data=fresh: serve(bytes(bytearray(data)), 0, hot))
        print(f"{name:20} {hit:8.0f} ns   {hit / floor:5.1f} x look-up of the same bytes ({floor:.0f} ns)")


if __name__ == "__main__":
    main()
