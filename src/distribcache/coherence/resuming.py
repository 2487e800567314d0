"""Warm restart: may this process go on from what the last one has kept? The conditions are rule 4 of ``keeping``.

``find`` answers with a state, or says by an ``AnewError`` why not. Nothing is changed here, neither on the server nor
on the disk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from distribcache.clock import now_ns
from distribcache.coherence.catalogue import Look
from distribcache.coherence.kept import Kept, decode
from distribcache.coherence.keptfile import KeptFile, UnusableError
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.lsn import normalise, parse_lsn
from distribcache.tiers.codec import DamagedError, ForeignError

if TYPE_CHECKING:
    from distribcache.coherence.link import Link, ServerIdentity

__all__ = ["BEGUN_ANEW", "AnewError", "find", "is_bounded", "judge", "slot_when_free", "stands"]

_BUSY_S: Final = 5.0
BEGUN_ANEW: Final[dict[str, str]] = {
    "temporary_slot": "freshness.slot = persistent would keep it over a restart",
    "pgoutput": "a stream of pgoutput is always begun anew",
    "unlimited_wal": "a slot that outlives us needs a bound: "
    "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; SELECT pg_reload_conf();",
    "locked": "another process follows this database from the same l2.path; give each a directory of its own",
    "unusable_directory": "the directory l2.path cannot be used for it",
    "slot_in_use": "somebody streams from the slot that belongs to l2.path",
    "no_state": "nothing was kept",
    "damaged_state": "the file of the last run is not what was written",
    "other_format": "the file of the last run is of another version",
    "other_server": "the last run followed another server, timeline or database",
    "server_restarted": "PostgreSQL was started anew meanwhile",
    "slot_missing": "the slot of the last run is gone",
    "slot_lost": "PostgreSQL gave the slot up, because it held back more than max_slot_wal_keep_size",
    "slot_changed": "the slot of that name is not as we made it",
    "slot_ahead": "the slot was moved beyond what the file of the last run has seen",
    "log_went_back": "PostgreSQL's log ends before what the last run has seen",
    "catalogue_changed": "the catalogue, roles or settings were changed meanwhile, "
    "or PostgreSQL recovered from a crash, which resets its counters of them",
    "link_lost": "the change stream was interrupted",
}
"""Why nothing of an earlier coverage is used: stable codes, and a sentence."""

_SLOT = (
    "SELECT slot_type = 'logical' AND NOT temporary AND NOT two_phase AND database = current_database() "
    "AND plugin = %s, coalesce(active_pid, 0), "
    "coalesce(wal_status, 'lost') = 'lost' OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL, "
    "coalesce(confirmed_flush_lsn::text, 'FFFFFFFF/FFFFFFFF') FROM pg_replication_slots s WHERE slot_name = %s"
)
_BOUND = "SELECT current_setting('max_slot_wal_keep_size')"


class AnewError(Exception):
    """``code`` is one of ``BEGUN_ANEW``."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


async def is_bounded(link: Link) -> bool:
    """Is there an end to what a slot may hold back?"""
    return bool((await link.catalogue.ask(_BOUND))[0][0] != "-1")


async def slot_when_free(link: Link, name: str) -> list[tuple[Any, ...]]:
    """What the server knows of the slot, as ``judge`` reads it; no row when there is none. Raises AnewError."""
    until = now_ns() + int(_BUSY_S * 1e9)
    while (rows := await link.catalogue.ask(_SLOT, (link.plugin, name))) and rows[0][1]:
        # The server has not noticed yet that the process before us is gone.
        if now_ns() > until:
            raise AnewError("slot_in_use")
        await asyncio.sleep(0.05)
    return rows


async def find(link: Link, file: KeptFile, ledger: Ledger, slot: str, rows: list[tuple[Any, ...]]) -> Kept:
    """The state to go on from, whose catalogue is that of now; the look is ``link.view``. Raises AnewError."""
    assert link.identity is not None
    kept = await _read(file, link.identity, ledger, slot)
    judge(kept, rows)
    await link.catalogue.prepare()
    look = await link.catalogue.look(lambda _: True)
    assert isinstance(look, Look)
    if normalise(look.insert, link.segment) < kept.applied:
        raise AnewError("log_went_back")
    if (look.view.fingerprint, look.view.quick) != (kept.fingerprint, kept.quick) or look.view.relations is None:
        raise AnewError("catalogue_changed")
    link.view = look.view
    return kept


async def stands(link: Link, kept: Kept, slot: str) -> bool:
    """Now that the slot is ours and nobody else can move it: is it where it was?"""
    rows = await link.catalogue.ask(_SLOT, (link.plugin, slot))
    try:
        judge(kept, rows)
    except AnewError:
        return False
    return bool(rows[0][1] == link.stream.pgconn.backend_pid)


def judge(kept: Kept, rows: list[tuple[Any, ...]]) -> None:
    """Is the slot of the server the one that goes with this state? Raises AnewError."""
    if not rows:
        raise AnewError("slot_missing")
    ours, _, lost, confirmed = rows[0]
    if lost:
        raise AnewError("slot_lost")
    if not ours:
        raise AnewError("slot_changed")
    if parse_lsn(str(confirmed)) > kept.applied:
        raise AnewError("slot_ahead")


async def _read(file: KeptFile, identity: ServerIdentity, ledger: Ledger, slot: str) -> Kept:
    try:
        data = await asyncio.to_thread(file.read)
        if not data:
            raise AnewError("no_state")
        kept = await asyncio.to_thread(decode, data)
    except UnusableError:
        raise AnewError("unusable_directory") from None
    except DamagedError:
        raise AnewError("damaged_state") from None
    except ForeignError:
        raise AnewError("other_format") from None
    if (kept.row_slots, kept.tables) != (ledger.row_slots, ledger.tables):
        raise AnewError("other_format")
    if (kept.system_identifier, kept.timeline, kept.database_oid, kept.slot) != (
        identity.system_identifier, identity.timeline, identity.database_oid, slot,
    ):  # fmt: skip
        raise AnewError("other_server")
    if kept.postmaster_start != identity.postmaster_start:
        raise AnewError("server_restarted")
    return kept
