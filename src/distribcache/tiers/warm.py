"""L2: records on a local SSD, which outlive the process and are shared by the processes of one machine.

A look-up is answered at once, by the calling thread; writing is for a thread of this tier's own (``keeper``). ``shelf``
keeps the entries, ``place`` the directory, ``queue`` what waits to be written. This module decides what comes in and
what is found.

Rules:
1. No call raises (``open`` does, for a setting that can never work), and none waits for the disk to be written. What
   goes wrong is a miss or a refusal, and a counter. Reading does wait: about 0.1 ms for each page of an entry (4 kB)
   that is not in the page cache, so a third of a second for 16 MB. An event loop asks with ``find``, which leaves
   entries larger than ``INLINE`` alone and says so, and then with ``get`` in another thread.
2. ``put`` takes a record into a queue, bounded in bytes. From then on look-ups of this process find it; other
   processes do once it is written. ``discard`` and ``clear`` hold at once in this process, and are not lost while the
   tier is off.
3. An expired record is a miss, and leaves. So is one from the future: the clock was set back, and its expiry is void.
4. When the tier is nearly full an answer comes in only if it was wanted before (``ghost``), or stands there already.
5. The tier is off, with a ``reason``, while it cannot be used, and comes back by itself.
6. After a fork the child's tier stays off: open it in the process that uses it.

Whoever writes into ``data.mdb`` or cuts it off while it is open can end this process, as LMDB maps it. Only this user
can.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Final

from distribcache.clock import now_ns
from distribcache.config.tiers import WarmTier
from distribcache.errors import ConfigError
from distribcache.tiers.base import Cause, Digest, Record, TierStats
from distribcache.tiers.codec import DIGEST_BYTES, ForeignError
from distribcache.tiers.ghost import Ghost
from distribcache.tiers.keeper import Keeper
from distribcache.tiers.latency import Latency
from distribcache.tiers.outcomes import BrokenError, Drop, Large, Totals, UnreadableError
from distribcache.tiers.queue import weight
from distribcache.tiers.shelf import MAX_SHARE

__all__ = ["INLINE", "PRESSED_FROM", "Large", "WarmCache"]

INLINE: Final = 1 << 18
"""Stored bytes that an event loop may read itself: 5 to 10 ms when none of it is in the page cache."""
PRESSED_FROM: Final = 0.8
"""From this share of the size on, rule 4 holds."""
_OPENING: Final = 2.0
_LEAVING: Final = 10.0
_PER_WANTED: Final = 16384
_LEAST_WANTED: Final = 1 << 12
_MOST_WANTED: Final = 1 << 17

_all: weakref.WeakSet[WarmCache] = weakref.WeakSet()


class WarmCache:
    """``now``: seconds since the Unix epoch; ``timer``: nanoseconds, for the latency of look-ups.

    ``get`` is for any thread, everything else for one.
    """

    def __init__(
        self, settings: WarmTier, now: Callable[[], float], timer: Callable[[], int] = now_ns,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """Raises ``ConfigError`` when there is no path."""
        if settings.path is None:
            raise ConfigError("no directory", where="l2.path", hint="name a directory of its own, on a local disk")
        self._settings = settings
        self._now = now
        self._timer = timer
        self._keeper = Keeper(settings, settings.path, now, log)
        self._queue = self._keeper.queue
        self._pressed_from = int(settings.size * PRESSED_FROM)
        self._ghost = Ghost(min(_MOST_WANTED, max(_LEAST_WANTED, settings.size // _PER_WANTED)))
        self._latency = Latency()
        self._hits = self._misses = 0
        self._refusals: dict[str, int] = {}
        _all.add(self)

    def open(self) -> None:
        """Begin. Raises ``ConfigError`` for a path that can never be a directory; whatever else is wrong may pass.

        Waits until the files are open, two seconds at most: when they have to be walked first, the tier is off
        meanwhile.
        """
        self._keeper.start(_OPENING)

    def close(self, timeout: float = _LEAVING) -> None:
        """Write what is queued, as far as ``timeout`` seconds allow, and let go of the files."""
        self._keeper.stop(timeout)

    @property
    def reason(self) -> str:
        """Why the tier is off, in one stable word; empty when it is on."""
        return self._keeper.reason

    def get(self, digest: Digest) -> Record | None:
        """The record under a digest, if there is one that has not expired."""
        found = self._look_up(digest, None)
        return None if isinstance(found, Large) else found

    def find(self, digest: Digest) -> Record | Large | None:
        """The same, but ``LARGE`` for a record that should be got in another thread."""
        return self._look_up(digest, INLINE)

    def _look_up(self, digest: Digest, most: int | None) -> Record | Large | None:
        if self._keeper.reason or len(digest) != DIGEST_BYTES:
            self._keeper.wake_if_due()
            self._misses += 1
            return None
        began = self._timer()
        record = self._find(digest, most)
        if record is None:
            self._misses += 1
            self._ghost.missed(digest)
        elif isinstance(record, Large):
            return record  # the second look-up counts
        else:
            self._hits += 1
        self._latency.add(self._timer() - began)
        return record

    def put(self, digest: Digest, record: Record) -> bool:
        """Queue a record. False: it was refused. What is older and stands under its digest then goes, if it can."""
        refusal = self._refusal(digest, record)
        if not refusal and not self._queue.put(digest, record):
            refusal = "queue_full"
        if not refusal:
            return True
        self._refusals[refusal] = self._refusals.get(refusal, 0) + 1
        if refusal in ("too_large", "queue_full"):
            self._queue.drop(digest, Drop(Cause.REPLACED))
        return False

    def discard(self, digest: Digest) -> None:
        """Drop what is under a digest."""
        if len(digest) != DIGEST_BYTES or not self._keeper.is_running:
            return
        self._ghost.refused(digest)  # it was in, so it may come back in
        if not self._queue.drop(digest, Drop(Cause.DISCARDED)):
            self._queue.clear()  # it must not come back, so rather none does

    def clear(self) -> None:
        """Drop everything, of all processes."""
        self._queue.clear()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait, ``timeout`` seconds at most, until all that is queued is written. False: it is not; or it is off."""
        return self._queue.wait_empty(timeout, lambda: bool(self.reason)) and not self.reason

    def stats(self) -> TierStats:
        keeper, kept, totals = self._keeper, self._keeper.kept, Totals()
        if not keeper.reason:
            try:
                totals = keeper.shelf.totals()
            except BrokenError as error:
                keeper.give_up(error)
        with kept.lock:
            evictions, failures = dict(kept.left), dict(kept.failures)
        return TierStats(
            entries=totals.entries,
            bytes_used=totals.charged,
            capacity_bytes=self._settings.size,
            puts=kept.puts,
            refused=sum(self._refusals.values()),
            evictions=evictions,
            hits=self._hits,
            misses=self._misses,
            failures=failures,
            raw_bytes=kept.raw_bytes,
            stored_bytes=kept.stored_bytes,
            p50_us=self._latency.quantile_us(0.5),
            p99_us=self._latency.quantile_us(0.99),
            reason=keeper.reason,
            detail=keeper.detail,
            refusals=dict(self._refusals),
            queued_bytes=self._queue.bytes_used,
        )

    def _find(self, digest: Digest, most: int | None) -> Record | Large | None:
        sequence = b""
        record = self._queue.find(digest)
        if isinstance(record, Drop) or (record is None and self._queue.is_clearing):
            return None
        if record is None:
            try:
                found = self._keeper.shelf.get(digest, most)
            except UnreadableError as error:
                foreign = isinstance(error.verdict, ForeignError)
                self._keeper.kept.failed("foreign_entry" if foreign else "damaged_entry")
                self._queue.drop(digest, Drop(Cause.DISCARDED, error.sequence))
                return None
            except BrokenError as error:
                self._keeper.give_up(error)
                return None
            if found is None or isinstance(found, Large):
                return found
            sequence, record = found
        if self._is_live(record):
            return record
        self._queue.drop(digest, Drop(Cause.EXPIRED, sequence))
        return None

    def _is_live(self, record: Record) -> bool:
        now = self._now()
        return record.expires_at > now and not record.is_ahead(now)

    def _refusal(self, digest: Digest, record: Record) -> str:
        if self._keeper.reason:
            self._keeper.wake_if_due()
            return "off"
        if len(digest) != DIGEST_BYTES:
            return "no_digest"
        if not self._is_live(record):
            return "expired"
        if len(record.payload) > self._settings.max_entry or weight(record) > self._settings.size // MAX_SHARE:
            return "too_large"
        if self._keeper.used + self._queue.bytes_used >= self._pressed_from and not self._may_enter(digest):
            self._ghost.refused(digest)
            return "not_wanted"
        return ""

    def _may_enter(self, digest: Digest) -> bool:
        """Rule 4."""
        if self._ghost.is_wanted(digest) or self._queue.find(digest) is not None:
            return True
        try:
            return self._keeper.shelf.has(digest)
        except BrokenError as error:
            self._keeper.give_up(error)
            return False


def _after_fork() -> None:
    for each in list(_all):
        each._keeper.abandon()


os.register_at_fork(after_in_child=_after_fork)
