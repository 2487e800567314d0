"""Entries in an LMDB environment: bounded in bytes, first in first out, exact for any number of processes.

Three trees, changed together in one write transaction, so that they agree whoever is killed when:

* ``entries``: digest → sequence number (8 bytes), encoded record;
* ``order``: sequence number → digest, charge: who came first;
* ``about``: the format, and the totals: next sequence number, entries, bytes charged.

Rules:
1. The bytes charged never exceed ``size`` after a commit. An entry is charged what it takes in the file: whole pages of
   its own if it is large, twice its length otherwise (where old ones leave, a page of a B-tree is half full).
2. The map is half as large again as ``size``. Pages that a transaction frees, and every page that it changes, serve
   again only in the next but one; a large entry needs them in a row. So an entry is charged at most an eighth of
   ``size``, a batch half of that, and a batch has at most ``at_once`` entries, which may change three pages each.
3. When the map is full in spite of that, readers that were killed are forgotten (they pin pages), the oldest tenth is
   dropped, and the batch is tried again; then entry by entry; what still does not fit is dropped and counted. When
   not even dropping is possible the file is of no use, and begun anew.
4. Reading never waits for writing. A read transaction lasts for one look-up and ends before anything of it is returned.
5. Nothing is synced: see ``place`` for what that means after a loss of power.

Reading is for any thread, and keeps the environment from being closed, as a closed one must not be touched. Writing and
closing are for one and the same thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import Final

import lmdb

from distribcache.errors import CacheError
from distribcache.tiers.base import Cause, Digest, Record
from distribcache.tiers.codec import decode
from distribcache.tiers.outcomes import BrokenError, Drop, Large, Totals, UnreadableError, Written, off
from distribcache.tiers.place import OffError

__all__ = ["MAX_SHARE", "Shelf"]

MAX_SHARE: Final = 8
"""An entry may take at most one in so many of the bytes of the tier."""
_FORMAT: Final = b"distribcache warm tier 1"
_SEQUENCE = Struct(">Q")
_ROW = Struct("<16sQ")
_TOTALS = Struct("<QQQ")
_AT_ONCE: Final = 512
_PER_ENTRY: Final = 3 * 4096 * 16
_TRIES: Final = 3
_SLACK_PAGES: Final = 256
_NODE: Final = 68
"""Bytes of a small entry besides its value: two nodes, two keys and a row of ``order``."""


class Shelf:
    """``size``: bytes that may be charged."""

    __slots__ = (
        "_about", "_entries", "_env", "_idle", "_lock", "_order", "_page", "_readers", "at_once", "max_payload",
        "size",
    )  # fmt: skip

    def __init__(self, size: int, max_payload: int) -> None:
        self.size = size
        self.max_payload = max_payload
        self.at_once = max(4, min(_AT_ONCE, size // _PER_ENTRY))
        self._env: lmdb.Environment | None = None
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._readers = 0
        self._page = 4096

    def open(self, path: Path) -> None:
        """Open the environment in a directory, or make it. Raises ``BrokenError``."""
        env = None
        try:
            env = lmdb.open(
                str(path), map_size=self.file_size, mode=0o600, max_dbs=3, sync=False,
                metasync=False, writemap=False, readahead=False, max_spare_txns=1,
            )  # fmt: skip
            env.reader_check()
            self._page = env.stat()["psize"]
            with env.begin(write=True, buffers=True) as txn:
                self._entries, self._order, self._about = [
                    env.open_db(name, txn=txn) for name in (b"entries", b"order", b"about")
                ]
                self._agree(txn)
        except lmdb.Error as error:
            if env is not None:
                env.close()
            raise off(error) from error
        except BrokenError:
            if env is not None:
                env.close()
            raise
        self._env = env

    def _agree(self, txn: lmdb.Transaction[memoryview]) -> None:
        """Begin with an empty environment, or see that the trees agree."""
        found = txn.get(b"format", db=self._about)
        totals = txn.get(b"totals", db=self._about)
        counts = [txn.stat(tree)["entries"] for tree in (self._entries, self._order)]
        if found is None and totals is None and counts == [0, 0]:
            txn.put(b"format", _FORMAT, db=self._about)
            self._keep(txn, Totals())
        elif found is None or bytes(found) != _FORMAT or totals is None or len(totals) != _TOTALS.size:
            raise BrokenError("damaged_file", "the file is of another format", anew=True)
        elif counts != [Totals(*_TOTALS.unpack(totals)).entries] * 2:
            raise BrokenError("damaged_file", "the trees of the file do not agree", anew=True)

    @property
    def file_size(self) -> int:
        """Bytes that the file may take."""
        return self.size * 3 // 2 + _SLACK_PAGES * 4096

    @property
    def is_open(self) -> bool:
        return self._env is not None

    def get(self, digest: Digest, most: int | None = None) -> tuple[bytes, Record] | Large | None:
        """The sequence number of an entry, and its record; ``LARGE`` when more than ``most`` bytes are stored.

        Raises ``UnreadableError`` and ``BrokenError``.
        """
        env = self._begin_reading()
        try:
            if env is None:
                return None
            with env.begin(self._entries, buffers=True) as txn:
                found = txn.get(digest)
                if found is None:
                    return None
                if most is not None and len(found) > most:
                    return Large.LARGE
                sequence = bytes(found[:8])
                try:
                    return sequence, decode(digest, found[8:], max_payload=self.max_payload)
                except CacheError as verdict:
                    raise UnreadableError(sequence, verdict) from verdict
        except lmdb.Error as error:
            raise off(error) from error
        finally:
            self._end_reading()

    def has(self, digest: Digest) -> bool:
        """Raises ``BrokenError``."""
        env = self._begin_reading()
        try:
            if env is None:
                return False
            with env.begin(self._entries, buffers=True) as txn:
                return txn.get(digest) is not None
        except lmdb.Error as error:
            raise off(error) from error
        finally:
            self._end_reading()

    def totals(self) -> Totals:
        """Of all processes. Raises ``BrokenError``."""
        env = self._begin_reading()
        try:
            if env is None:
                return Totals()
            with env.begin(buffers=True) as txn:
                return self._totals(txn)
        except lmdb.Error as error:
            raise off(error) from error
        finally:
            self._end_reading()

    def _begin_reading(self) -> lmdb.Environment | None:
        """The environment, which is not closed before ``_end_reading``; None when it is closed already."""
        with self._lock:
            self._readers += 1
            return self._env

    def _end_reading(self) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and self._env is None:
                self._idle.notify_all()

    def charge(self, length: int) -> int:
        """Bytes that an encoded record of this length is charged with: rule 1."""
        length += 8
        if length + 24 <= self._page // 2 - 16:
            return 2 * (length + _NODE)
        return -(-(length + 16) // self._page) * self._page + 2 * _NODE

    def write(self, batch: Mapping[Digest, bytes | Drop]) -> Written:
        """Put and drop in one transaction, and make room. Raises ``BrokenError``; then nothing of it is done."""
        done = Written()
        for _ in range(_TRIES):
            try:
                done.add(self._write(batch))
                return done
            except lmdb.MapFullError:
                self._make_room(done)
            except lmdb.Error as error:
                raise off(error) from error
        if len(batch) == 1:
            done.unfit += 1
            return done
        for digest, item in batch.items():
            done.add(self.write({digest: item}))
        return done

    def _write(self, batch: Mapping[Digest, bytes | Drop]) -> Written:
        done = Written()
        with self._writing() as txn:
            totals = self._totals(txn)
            sequence, entries, charged = totals.next, totals.entries, totals.charged
            for digest, item in batch.items():
                old = txn.get(digest, db=self._entries)
                known = b"" if old is None else bytes(old[:8])
                if isinstance(item, Drop) and (old is None or item.sequence not in (b"", known)):
                    continue
                if old is not None:
                    entries, charged = entries - 1, charged - self.charge(len(old) - 8)
                    txn.delete(known, db=self._order)
                if isinstance(item, Drop):
                    txn.delete(digest, db=self._entries)
                    done.left[item.cause] += 1
                    continue
                done.left[Cause.REPLACED] += known != b""
                number, charge = _SEQUENCE.pack(sequence), self.charge(len(item))
                txn.put(digest, number + item, db=self._entries)
                txn.put(number, _ROW.pack(digest, charge), append=True, db=self._order)
                sequence, entries, charged = sequence + 1, entries + 1, charged + charge
                done.puts += 1
            totals = self._evict(txn, Totals(sequence, entries, charged), self.size, done)
            self._keep(txn, totals)
        return done

    def trim(self) -> Written:
        """Drop the oldest while more is charged than ``size``. Raises ``BrokenError``."""
        done = Written()
        try:
            self._drop_to(self.size, done)
        except lmdb.Error as error:
            raise off(error) from error
        return done

    def forget_killed_readers(self) -> int:
        """How many readers were killed within a transaction, and pinned pages since. Raises ``BrokenError``."""
        try:
            return self._opened.reader_check()
        except lmdb.Error as error:
            raise off(error) from error

    def _make_room(self, done: Written) -> None:
        """Rule 3."""
        self.forget_killed_readers()
        try:
            self._drop_to(max(0, self.totals().charged - self.size // 10), done)
            for _ in range(2):  # pages that were freed last serve from the third transaction on
                with self._writing() as txn:
                    self._keep(txn, self._totals(txn))
        except lmdb.MapFullError as error:
            raise BrokenError("map_full", str(error), anew=True) from error
        except lmdb.Error as error:
            raise off(error) from error

    def _drop_to(self, limit: int, done: Written) -> None:
        """Drop the oldest until no more than ``limit`` bytes are charged, a slice per transaction."""
        while self.totals().charged > limit:
            with self._writing() as txn:
                self._keep(txn, self._evict(txn, self._totals(txn), limit, done, self.at_once))

    def _evict(
        self, txn: lmdb.Transaction[memoryview], totals: Totals, limit: int, done: Written, most: int = 1 << 30
    ) -> Totals:
        entries, charged = totals.entries, totals.charged
        with txn.cursor(self._order) as oldest:
            while charged > limit and most > 0 and oldest.first():
                digest, charge = _ROW.unpack(oldest.value())
                txn.delete(digest, db=self._entries)
                oldest.delete()
                entries, charged, most = entries - 1, charged - charge, most - 1
                done.left[Cause.CAPACITY] += 1
        return Totals(totals.next, entries, charged)

    def clear(self) -> int:
        """Drop everything; the number of entries dropped. Raises ``BrokenError``."""
        try:
            with self._writing() as txn:
                totals = self._totals(txn)
                txn.drop(self._entries, delete=False)
                txn.drop(self._order, delete=False)
                self._keep(txn, Totals(totals.next))
        except lmdb.Error as error:
            raise off(error) from error
        return totals.entries

    def close(self, *, sync: bool = False) -> None:
        """Waits for look-ups that are under way, then ends all others. Raises ``BrokenError`` when syncing fails."""
        env = self._env
        if env is None:
            return
        try:
            if sync:
                env.sync(True)
        except lmdb.Error as error:
            raise off(error) from error
        finally:
            with self._lock:
                self._env = None
                self._idle.wait_for(lambda: not self._readers)
                env.close()

    @property
    def _opened(self) -> lmdb.Environment:
        if self._env is None:
            raise OffError("closed", "the shelf is closed", where="l2")
        return self._env

    def _writing(self) -> lmdb.Transaction[memoryview]:
        return self._opened.begin(write=True, buffers=True)

    def _totals(self, txn: lmdb.Transaction[memoryview]) -> Totals:
        found = txn.get(b"totals", db=self._about)
        if found is None or len(found) != _TOTALS.size:
            raise BrokenError("damaged_file", "the totals of the file are gone", anew=True)
        return Totals(*_TOTALS.unpack(found))

    def _keep(self, txn: lmdb.Transaction[memoryview], totals: Totals) -> None:
        txn.put(b"totals", _TOTALS.pack(totals.next, totals.entries, totals.charged), db=self._about)
