"""Warm restart (coherence rule R8): a coverage goes on in another process, or provably does not.

With a persistent slot the server keeps the stream for us while we are away. The ledger is kept in a file (``kept``,
``keptfile``). Both together have no hole if, and only if, the slot's confirmed position is not beyond the W of the
file: everything up to W is in the ledger, everything behind the confirmed position is delivered, again where need be.

Rules:
1. *Saving.* W is read first, between two callbacks, when every commit up to it is in the slots; the slots are copied
   afterwards, in pieces, by a thread. So a slot in the file is as new as W or newer, which only costs misses.
2. *Confirming.* The server is told of no position as flushed but the W of the state that is on disk. If there is no
   state, or none can be written while the server would have to keep much for us, the state goes and the server may
   forget: its disk is worth more than our warmth.
3. *One catalogue.* A state is of the catalogue that its fingerprint shows. Before anything is filled under another one
   it is removed: no answer that a later state of the catalogue has ended can come back under an earlier one, even if
   both look alike. It is not saved while an alarm or a second look is pending.
4. *Going on* (``resuming``) needs: the state reads well; the same run of the same server (timeline and database too);
   the slot is there, ours, whole, nobody's, and confirmed no further than W; the server's log reaches W. Then the
   catalogue is looked at *before* the stream begins: fingerprint and settings equal those of the state, so names meant
   the same for all that will be delivered. When the stream has begun and nobody else can move the slot, its position
   is looked at again.
5. In every other case there is a new nonce and a new slot, the state is removed, and one line of the log says why.
6. Never within one process: where a link was lost, the next begins anew.
7. Answers in L2 are settled, so a crash of the server takes back nothing that they show, and no position of the state:
   the stream carries only what was flushed.

A persistent slot needs a bound on what it may keep: without ``max_slot_wal_keep_size`` the slot is a temporary one.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from distribcache.clock import now_ns
from distribcache.coherence import resuming
from distribcache.coherence.connections import close, connect
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.kept import PIECE, Kept, encode, pack
from distribcache.coherence.keptfile import KeptFile, LockedError, UnusableError
from distribcache.coherence.ledger import SCHEMA, Ledger, W
from distribcache.coherence.lsn import format_lsn
from distribcache.coherence.reader import Reader
from distribcache.coherence.reasons import NotServing
from distribcache.coherence.resuming import BEGUN_ANEW, AnewError
from distribcache.errors import UpstreamError

if TYPE_CHECKING:
    from distribcache.coherence.link import Link, ServerIdentity

__all__ = ["KEEP_S", "Keeping"]

KEEP_S: Final = 10.0
_SHARE: Final = 20
"""Pauses between two saves, in the time that the last one took."""
_HURRY_NS: Final = 250_000_000
_DROP_S: Final = 5.0
_LAST_S: Final = 5.0
_TRIES: Final = 3
_DENSE_AT_ONCE: Final = 2000
_PIECES_AT_ONCE: Final = 8
_REST_S: Final = 0.0005

_DROP = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active"


class Keeping:
    """Of one database. ``log`` takes lines; ``wanted``: is the slot to be persistent?"""

    def __init__(
        self, directory: Path, coverage: Coverage, log: Callable[[str], None], *, wanted: bool, most_behind: int,
        every_s: float = KEEP_S,
    ) -> None:  # fmt: skip
        self.slot = ""
        """The persistent slot of the present link; empty when it has a temporary one."""
        self.why = ""
        """Why the present coverage was begun anew; empty when it goes on."""
        self.saves = 0
        self._file = KeptFile(directory)
        self._coverage = coverage
        coverage.on_changed = self.forget
        self._log = log
        self._wanted = wanted
        self._most_behind = most_behind
        self._every_ns = int(every_s * 1e9)
        self._spent = False
        self._used: tuple[Link, Reader] | None = None
        self._saved: tuple[int, ...] = ()
        self._due = 0
        self._hurried = False
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    # -- at the beginning of a link

    @property
    def name(self) -> str:
        """What the slots of this directory have in their names; empty when it has nothing."""
        try:
            return self._file.name(make=self._wanted)
        except UnusableError:
            return ""

    def slot_name(self, oid: int) -> str:
        """The slot of this directory and a database; empty when the directory has no name."""
        name = self.name
        return name and f"distribcache_{oid}_{name}"

    async def find(self, link: Link) -> Kept | None:
        """The state that this link goes on from; None: begin anew, with ``slot`` if that is not empty.

        Raises psycopg.Error and UpstreamError.
        """
        assert link.identity is not None
        first, self.slot, self.why = not self._spent, "", ""
        try:
            kept = await self._find(link, link.identity, first=first)
        except AnewError as refusal:
            self.why = refusal.code
            link.catalogue.forget()
            await self._begin_anew(link, link.identity)
            self._spent = True
            if self.why != "temporary_slot" or (first and (self._file.directory / "data.mdb").exists()):
                said = "what earlier runs left in L2 is not used" if first else "L2 begins anew"
                self._log(f"warm restart: {said} ({self.why}): {BEGUN_ANEW[self.why]}")
            return None
        self._spent = True
        self._log(
            f"warm restart: L2 goes on (resumed) from {format_lsn(kept.applied)}, "
            f"{len(kept.dense)} tables and column sets are known"
        )
        return kept

    async def _find(self, link: Link, identity: ServerIdentity, *, first: bool) -> Kept:
        name = self.slot_name(identity.database_oid)
        if not self._wanted:
            raise AnewError("temporary_slot")
        if link.plugin == "pgoutput":
            raise AnewError("pgoutput")
        try:
            self._file.lock(identity.system_identifier, identity.database_oid)
        except LockedError:
            raise AnewError("locked") from None
        except UnusableError:
            raise AnewError("unusable_directory") from None
        if not name:
            raise AnewError("unusable_directory")
        if not await resuming.is_bounded(link):
            raise AnewError("unlimited_wal")
        rows = await resuming.slot_when_free(link, name)
        self.slot = name
        if not first:
            raise AnewError("link_lost")
        return await resuming.find(link, self._file, self._coverage.ledger, name, rows)

    async def _begin_anew(self, link: Link, identity: ServerIdentity) -> None:
        """Remove what is not used, in this order: without a state, no slot can be mistaken for its own."""
        name = self.slot_name(identity.database_oid)
        if not name or self.why == "locked":
            return  # there is nothing, or it is somebody else's
        if self.why == "temporary_slot":  # it was persistent once
            try:
                self._file.lock(identity.system_identifier, identity.database_oid)
            except (LockedError, UnusableError):
                return
        self._file.remove()
        if self.why != "slot_in_use":
            await link.catalogue.ask(_DROP, (name,))

    async def holds(self, link: Link) -> bool:
        """The stream has begun: is it as complete as the look at the slot has promised?"""
        try:
            return link.kept is None or await resuming.stands(link, link.kept, self.slot)
        except (UpstreamError, psycopg.Error):
            return False

    # -- while it is up

    def begin(self, link: Link, reader: Reader) -> None:
        """The stream is about to begin: what is confirmed is ours to say."""
        self._saved, self._due, self._hurried = (), now_ns() + min(self._every_ns, 1_000_000_000), False
        if self.slot:
            self._used = link, reader
            reader.durable = link.start
            reader.on_asked = self.hurry

    def end(self, *, hole: bool) -> None:
        """The link has ended, or is about to; to be called before the ledger is renewed."""
        self._used = None
        if hole:
            self.forget()
        else:
            self._file.cease()

    def forget(self) -> None:
        """There may be a hole, or the catalogue is another one: nothing goes on from what is on disk."""
        self._file.remove()
        self._saved = ()
        self._due = min(self._due, now_ns() + self._every_ns // 4)

    def hurry(self) -> None:
        """The server waits until we have confirmed what it has sent."""
        self._hurried = True

    def tick(self, now: int) -> None:
        """Save if that is due."""
        if self._used is None or self._task is not None:
            return
        coverage, (_, reader) = self._coverage, self._used
        hurried = self._hurried and reader.durable is not None and reader.durable < reader.received
        if now < self._due - (self._every_ns - _HURRY_NS if hurried else 0):
            return
        self._hurried = False
        if not _is_savable(coverage):
            if reader.durable is not None and reader.received - reader.durable > self._most_behind:
                self._give_up(reader)
        elif self._mark(coverage) != self._saved:
            self._task = asyncio.get_running_loop().create_task(self._save())

    async def finish(self) -> None:
        """The last state of this process; not for longer than a few seconds.

        A look at the catalogue may be pending: workers that end raise an alarm.
        """
        until, tries = now_ns() + int(_LAST_S * 1e9), 0
        while self._used is not None and now_ns() < until:
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=_LAST_S)
            elif not _is_savable(self._coverage):
                await asyncio.sleep(0.02)
            elif self._mark(self._coverage) == self._saved or tries == _TRIES:
                return
            else:
                tries += 1
                self._task = asyncio.get_running_loop().create_task(self._save())

    async def drop(self, conninfo: str) -> None:
        """Slots are scarce, and hold log back: nobody is to go on from here. To be called when the link is closed."""
        slot, self.slot = self.slot, ""
        if not slot:
            return
        self._file.remove()
        try:
            connection = await connect(conninfo, timeout_s=_DROP_S)
        except (psycopg.Error, OSError, TimeoutError, NotServing):
            return  # the next one drops it
        try:
            await connection.execute(_DROP.encode(), (slot,))
        except psycopg.Error:
            pass
        finally:
            await close(connection)

    def close(self) -> None:
        """The database is left: others may have it; and whoever comes back may go on."""
        self._spent = False
        self._file.unlock()

    def _mark(self, coverage: Coverage) -> tuple[int, ...]:
        return (coverage.epoch, coverage.applied, *coverage.ledger.sizes())

    def _uses(self, reader: Reader) -> bool:
        return self._used is not None and self._used[1] is reader

    def _give_up(self, reader: Reader) -> None:
        """Rule 2: without a state, nothing is lost by letting the server forget."""
        self.forget()
        reader.confirm(reader.received)

    async def _save(self) -> None:
        assert self._used is not None
        coverage, (link, reader) = self._coverage, self._used
        began, turn, mark = now_ns(), self._file.turn, self._mark(coverage)
        kept, slots = _capture(link, coverage, self.slot)
        try:
            done = await asyncio.to_thread(self._write, coverage.ledger, kept, slots, turn)
        except (OSError, struct.error) as error:
            if not self._failing:
                self._log(f"warm restart: the state cannot be written: {error}")
            self._failing, done = True, False
            if self._uses(reader):
                self._give_up(reader)
        finally:
            self._task = None
        ended = now_ns()
        self._due = ended + max(self._every_ns, _SHARE * (ended - began))
        if done and turn == self._file.turn:
            self.saves += 1
            self._saved, self._failing = mark, False
            if self._uses(reader):
                reader.confirm(kept.applied)

    def _write(self, ledger: Ledger, kept: Kept, slots: list[tuple[bytes, int]], turn: int) -> bool:
        return self._file.write(encode(_copied(ledger, kept, slots)), turn)


def _is_savable(coverage: Coverage) -> bool:
    return coverage.serving and not coverage.alarms and not coverage.settle_at


def _capture(link: Link, coverage: Coverage, slot: str) -> tuple[Kept, list[tuple[bytes, int]]]:
    """Rule 1, in the event loop: W, whatever only changes there, and which slots there are."""
    identity, ledger = link.identity, coverage.ledger
    assert identity is not None
    kept = Kept(
        system_identifier=identity.system_identifier, postmaster_start=identity.postmaster_start,
        timeline=identity.timeline, database_oid=identity.database_oid, slot=slot, nonce=coverage.nonce,
        applied=ledger.words[W], schema=ledger.words[SCHEMA], overflow=ledger.overflow, target=coverage.target,
        lost_at=coverage.lost_at, row_slots=ledger.row_slots, tables=ledger.tables,
        fingerprint=coverage.fingerprint, quick=coverage.quick, dense=(), rows=(),
    )  # fmt: skip
    return kept, ledger.dense()


def _copied(ledger: Ledger, kept: Kept, slots: list[tuple[bytes, int]]) -> Kept:
    """Rule 1, in a thread: the words, in pieces, with rests in which others get the interpreter."""
    words, rest = ledger.words, threading.Event()
    dense: list[tuple[bytes, int]] = []
    for at in range(0, len(slots), _DENSE_AT_ONCE):
        dense += [(tag, words[slot]) for tag, slot in slots[at : at + _DENSE_AT_ONCE]]
        rest.wait(_REST_S)
    rows = []
    for number, at in enumerate(range(ledger.rows_at, len(words), PIECE // 8)):
        packed = pack(words[at : at + PIECE // 8].tobytes())
        if packed:
            rows.append((number, packed))
        if not number % _PIECES_AT_ONCE:
            rest.wait(_REST_S)
    # What is shared by all that found no room is copied last, as it may have been raised meanwhile.
    return replace(kept, dense=dense, rows=rows, overflow=max(kept.overflow, ledger.overflow), schema=words[SCHEMA])
