"""The thread that keeps the warm tier: opens its files, writes what is queued, and opens them again after a failure.

While something is wrong the tier is off, with a ``reason`` in one word. The next try comes after a pause that grows
from one second to a minute, and is short again once something was written. Files that are damaged are begun anew. After
a full disk nothing is tried before there is room for what failed: a small write may succeed on a full disk, as the file
has pages to spare, and would only begin the same again.

What callers see of it are plain attributes, which only this thread changes; the counters are under a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distribcache.config.tiers import WarmTier
from distribcache.errors import CacheError, internal_error
from distribcache.tiers.base import Cause, Digest, Record
from distribcache.tiers.codec import encode
from distribcache.tiers.outcomes import BrokenError, Drop, Written
from distribcache.tiers.place import OffError, Place, code_of
from distribcache.tiers.queue import Queue
from distribcache.tiers.shelf import MAX_SHARE, Shelf

__all__ = ["Keeper", "Kept"]

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
_TICK: Final = 1.0
_READERS_EVERY: Final = 60
_REST: Final = 0.002
_ROOM: Final = 64 << 10
_BATCH: Final = 8 << 20

# A child after a fork must not close what its parent has open: that would let go of the parent's readers.
_abandoned: list[Shelf] = []


@dataclass(slots=True)
class Kept:
    """What was done since the tier was made."""

    puts: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0
    left: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    failures: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, what: str, times: int = 1) -> None:
        with self.lock:
            self.failures[what] = self.failures.get(what, 0) + times

    def wrote(self, done: Written) -> None:
        with self.lock:
            self.puts += done.puts
            for cause, count in done.left.items():
                self.left[cause] += count
        if done.unfit:
            self.failed("map_full", done.unfit)


class Keeper:
    """``now``: seconds since the Unix epoch."""

    __slots__ = (
        "_broken", "_compression", "_failed_at", "_is_forked", "_log", "_needed", "_now", "_path", "_pause",
        "_said", "_thread", "_tried", "detail", "kept", "place", "queue", "reason", "shelf", "used",
    )  # fmt: skip

    reason: str
    """Why the tier is off; empty when it is on."""
    detail: str
    used: int
    """Bytes charged when this process last looked."""

    def __init__(
        self, settings: WarmTier, path: Path, now: Callable[[], float], log: Callable[[str], None] = lambda _: None
    ) -> None:
        self._path = path
        self._log = log
        self._said = ""
        self._compression = settings.compression
        self._now = now
        self.place = Place(path)
        self.shelf = Shelf(settings.size, settings.max_entry)
        batch = min(_BATCH, settings.size // (2 * MAX_SHARE))
        self.queue = Queue(settings.write_queue, batch, self.shelf.at_once)
        self.kept = Kept()
        self.used = 0
        self._thread: threading.Thread | None = None
        self._tried = threading.Event()
        self._broken: BrokenError | None = None
        self._pause = self._failed_at = 0.0
        self._needed = 0
        self._is_forked = False
        self._set_off("closed", "not opened yet")

    def start(self, patience: float) -> None:
        """Begin; wait up to ``patience`` seconds for the first try. Raises ``ConfigError``: see ``Place.check``."""
        if self._thread is not None or self._is_forked:
            return
        self.place.check()
        self.queue.open()
        self._tried.clear()
        self._pause = 0.0
        self._set_off("opening", "it is being opened")
        self._thread = threading.Thread(target=self._keep, name="distribcache-l2", daemon=True)
        self._thread.start()
        self._tried.wait(patience)

    def stop(self, patience: float) -> None:
        """Write what is queued and let go; wait up to ``patience`` seconds for that."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self.queue.close()
            thread.join(patience)

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def give_up(self, error: BrokenError) -> None:
        """A look-up failed: off at once; the thread does the rest."""
        if self._broken is None:
            self._set_off(error.code, error.message)
            self._broken = error
            self.queue.wake()

    def wake_if_due(self) -> None:
        """Somebody wanted the tier while it was off."""
        if self._is_due():
            self.queue.wake()

    def abandon(self) -> None:
        """In a child after a fork: the thread is gone, and the files are the parent's."""
        if self._thread is not None:
            _abandoned.append(self.shelf)
            self.shelf = Shelf(self.shelf.size, self.shelf.max_payload)
            self.queue.abandon()
            self.kept.lock = threading.Lock()
            self.place.leave()
            self._thread = None
            self._is_forked = True
            self._set_off("forked", "it was opened before a fork; open it afterwards")

    def _is_due(self) -> bool:
        # A clock that was set back must not keep the tier off.
        return not 0 <= self._now() - self._failed_at < self._pause

    def _set_off(self, code: str, detail: str) -> None:
        self.detail = detail
        self.reason = code

    def _say(self, why: str) -> None:
        """Tell people why it is off, or that it is on again; not that it began."""
        before, self._said = self._said, why
        if why != before:
            self._log(f"L2 off: {self._path}: {why}" if why else f"L2 {self._path} is on again")

    def _keep(self) -> None:
        ticks = 0
        while not self.queue.is_closed:
            try:
                self._see_to_files()
                if not self.shelf.is_open:
                    self.queue.rest(_TICK)
                elif self.queue.wait_work(_TICK):
                    self._work()
                else:
                    ticks += 1
                    if not ticks % _READERS_EVERY:
                        self.shelf.forget_killed_readers()
                    self.used = self.shelf.totals().charged
            except Exception as error:  # noqa: BLE001 - whatever it is, the tier goes off, and nothing else does
                self._fail(error)
        self._finish()

    def _see_to_files(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self.shelf.is_open:
            if not self.place.is_there():
                raise BrokenError("gone", "its files were deleted or moved", anew=False)
        elif self._is_due():
            self._enter()

    def _enter(self) -> None:
        """Open, and be on. What is to be dropped waits in the queue, where look-ups see it."""
        self.place.enter(self.shelf.file_size, self._rest)
        if self._needed and (code := self.place.lack_of_room(self._needed)):
            raise OffError(code, "there is still no room for what failed", where=str(self._path))
        try:
            self.shelf.open(self._path)
        except BrokenError as error:
            if not error.anew:
                raise
            self.place.sweep(error.message)
            self.shelf.open(self._path)
        self.place.settle()
        if self.place.anew:
            self.kept.failed("begun_anew")
        self.kept.wrote(self.shelf.trim())
        self.used = self.shelf.totals().charged
        self._set_off("", "")
        self._say("")
        self._tried.set()

    def _rest(self) -> None:
        """Between pages that are walked: let others have the processor, and see whether it is still wanted."""
        self.queue.rest(_REST)
        if self.queue.is_closed:
            raise OffError("closed", "it was closed", where=str(self._path))

    def _work(self) -> None:
        if self.queue.is_clearing:
            self._clear()
        self._write(self.queue.take())

    def _clear(self) -> None:
        until = self.queue.clears
        count = self.shelf.clear()
        self.queue.cleared(until)
        self.kept.wrote(Written(left={Cause.CLEARED: count}))

    def _write(self, taken: dict[Digest, Record | Drop]) -> None:
        batch: dict[Digest, bytes | Drop] = {}
        raw = stored = 0
        for digest, item in taken.items():
            if isinstance(item, Drop):
                batch[digest] = item
                continue
            try:
                batch[digest] = data = encode(digest, item, self._compression)
            except CacheError:
                self.kept.failed("unencodable")
                batch[digest] = Drop(Cause.REPLACED)
            else:
                raw, stored = raw + len(item.payload), stored + len(data)
        if batch:
            self._needed = stored + _ROOM
            done = self.shelf.write(batch)
            self._needed = 0
            if done.puts:
                self._pause = 0.0
            self.kept.wrote(done)
            self.kept.raw_bytes += raw
            self.kept.stored_bytes += stored
        self.used = self.shelf.totals().charged
        self.queue.written()

    def _fail(self, error: Exception) -> None:
        """Off, and until when."""
        if isinstance(error, OSError):
            code, detail = code_of(error.errno), error.strerror or ""
        elif isinstance(error, CacheError):
            code, detail = getattr(error, "code", "io_error"), error.message
        else:
            code, detail = "internal_error", internal_error(error).message
        if code == "io_error" and self._needed:
            # LMDB says so of a write that was cut short, as the first one on a full disk is.
            code = self.place.lack_of_room(self._needed) or code
        self._set_off(code, detail)
        if code != "closed":
            self._say(f"{code}: {detail}")
        self.kept.failed(code)
        self.used = 0
        try:
            self.shelf.close()
            if isinstance(error, BrokenError) and error.anew:
                self.place.begin_anew()
                self.kept.failed("begun_anew")
        except (CacheError, OSError):
            self.kept.failed("io_error")
        self.place.leave()
        self._broken = None
        self.queue.gave_up()
        if code != "disk_full":
            self._needed = 0
        self._failed_at = self._now()
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 0.0 if code == "busy" else 2 * self._pause))
        self._tried.set()

    def _finish(self) -> None:
        """Closing: what is queued is written, and the files are sealed by whoever leaves last."""
        try:
            while self.shelf.is_open and self._broken is None and self.queue.has_work:
                self._work()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
        self._set_off("closed", "it was closed")
        last = False
        try:
            last = self.shelf.is_open and self._broken is None and self.place.is_last()
            self.shelf.close(sync=last)
        except CacheError:
            last = False
        self.place.leave(seal=last)
        self._broken = None
        self.queue.gave_up()
        self._tried.set()
