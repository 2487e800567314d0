"""One attempt to follow a database: its three connections, opened in order, checked, and closed together.

Whatever is missing ends the attempt with ``NotServing``: a stable reason and the statement that mends it. Order:

1. The probe's connection tells what the server is: role, version, wal_level, template or not, free slots.
2. The others go to the address that was reached, and must find the same server there: a URL may name several (R9).
3. The slot is created with a deadline: PostgreSQL waits for every transaction that was open, a forgotten prepared one
   for ever (coherence trap 22). Meanwhile the blocking process is named.
4. With ``pgoutput`` the publications and the event triggers must be there before the slot is: a missing publication
   ends the stream of an older server and leaves that of a newer one silent. Tables that were made since are added to
   them now, because the slot waits for every transaction that would be decoded without their changes.
5. Where the last run can be gone on from (``keeping``), its slot is taken instead of a new one.
6. The stream starts; feedback only after the server's own list shows that we do not count as a synchronous standby
   (coherence trap 3). The names in ``synchronous_standby_names`` are read too: details of that list are hidden from
   ordinary roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from distribcache.catalog.announcing import announces
from distribcache.catalog.generation import CatalogueView
from distribcache.catalog.publications import ENROL_SQL, STATE_SQL, TRIGGERS, WAITING_SQL
from distribcache.coherence.catalogue import LOCK_MS, STATEMENT_MS, Catalogue
from distribcache.coherence.connections import APPLICATION_NAME, Connection, close, connect
from distribcache.coherence.lsn import parse_lsn
from distribcache.coherence.options import Options
from distribcache.coherence.reasons import REASONS, NotServing, from_connect_error
from distribcache.errors import UpstreamError

if TYPE_CHECKING:
    from distribcache.coherence.keeping import Keeping
    from distribcache.coherence.kept import Kept

__all__ = ["IDENTITY", "Link", "ServerIdentity", "counts_as_synchronous"]

_FREE = 2
_PUBLICATIONS = 2
_SOME = 50  # tables that are locked together while they are added
_TERMINATE_TRIES = 40
IDENTITY = (
    "SELECT (SELECT system_identifier FROM pg_control_system())::text, "
    "extract(epoch FROM pg_postmaster_start_time())::text, pg_is_in_recovery()"
)
_FACTS = (
    "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), d.datistemplate, d.oid::int8, "
    "current_setting('max_replication_slots')::int "
    "- (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'distribcache_' || d.oid || '_{own}')::int, "
    "current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_get_wal_senders())::int, "
    "current_user::text, pg_size_bytes(current_setting('wal_segment_size')), "
    "current_setting('synchronous_standby_names') "
    "FROM pg_database d WHERE d.datname = current_database()"
)
_BLOCKERS = (
    "SELECT b.pid, coalesce(a.application_name, ''), a.xact_start::text FROM unnest(pg_blocking_pids({pid})) AS b(pid) "
    "LEFT JOIN pg_stat_activity a ON a.pid = b.pid"
)
_PREPARED = "SELECT gid FROM pg_prepared_xacts ORDER BY prepared LIMIT 1"
_MANNERS = (
    "SELECT coalesce((SELECT sync_priority FROM pg_stat_replication WHERE pid = {pid}), 0), "
    "current_setting('synchronous_standby_names'), "
    "coalesce((SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::int8 FROM pg_replication_slots "
    "WHERE slot_name = '{slot}'), 0), pg_current_wal_insert_lsn()"
)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What tells one running server from another (R9); ``postmaster_start`` is seconds since the Unix epoch as text."""

    system_identifier: str
    postmaster_start: str
    in_recovery: bool
    timeline: int = 0
    database_oid: int = 0


def counts_as_synchronous(names: str, application: str = APPLICATION_NAME) -> bool:
    """Does ``synchronous_standby_names`` include a standby of this name? Compared as the server does, without case."""
    for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^\s,()"]+)', names):
        name = quoted.replace('""', '"') if quoted else plain
        if name == "*" or name.lower() == application.lower():
            return True
    return False


class Link:
    """The connections of one attempt. ``report`` is told of a long wait while ``open`` still goes on."""

    def __init__(
        self, conninfo: str, options: Options, report: Callable[[NotServing], None], keeping: Keeping | None = None
    ) -> None:
        self.keeping = keeping
        self.kept: Kept | None = None
        """What is gone on from; with it ``view``, a look at the same catalogue."""
        self.view: CatalogueView | None = None
        self._conninfo = conninfo
        self._options = options
        self._report = report
        self._open: list[Connection] = []
        self.identity: ServerIdentity | None = None
        self.version = 0
        self.segment = 0
        self.slot = ""
        self.start = 0
        self.role = ""
        self.where: dict[str, str] = {}
        """Host, port and address that the first connection has reached."""
        self.plugin = "pgoutput" if options.plugin == "pgoutput" else "test_decoding"
        self.published: tuple[frozenset[int], bytes] = (frozenset(), b"")
        """With pgoutput: what the stream was told when it began, see ``_published``."""
        self.probe: Connection
        self.stream: Connection
        self.catalogue: Catalogue

    async def open(self, *, was_up: bool) -> None:
        """Everything up to the created slot. Raises NotServing."""
        try:
            self.probe = await self._connect(self._conninfo, statement_ms=STATEMENT_MS, lock_ms=LOCK_MS)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise from_connect_error(error, was_up=was_up) from error
        try:
            await self._check()
            await self._connect_others()
            if self.plugin == "pgoutput":
                await self._publish()
            if await self._goes_on():
                return
            try:
                await self._create_slot()
            except psycopg.errors.UndefinedFile as error:
                if self.plugin != "test_decoding" or self._options.plugin != "auto":
                    raise NotServing("no_output_plugin") from error
                await self._fall_back()
        except psycopg.errors.LockNotAvailable as error:
            raise NotServing("unreachable", str(error)) from error
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise from_connect_error(error, was_up=True, role=self.role) from error

    async def close(self) -> None:
        """Close everything; returns when the server's processes have ended."""
        connections, self._open = self._open, []
        pids = [0 if connection.closed else connection.pgconn.backend_pid for connection in connections]
        gone = await asyncio.gather(*map(close, connections))
        stubborn = [pid for pid, ended in zip(pids, gone, strict=True) if not ended]
        if stubborn:
            await self._terminate(stubborn)

    async def manners(self) -> tuple[int, int]:
        """(log that our slot holds back, insert position), bytes. Raises NotServing when we count as synchronous."""
        sql = _MANNERS.format(pid=self.stream.pgconn.backend_pid, slot=self.slot)
        priority, names, kept, insert = await self.catalogue.one(sql)
        if int(priority or 0) != 0 or counts_as_synchronous((names or b"").decode()):
            raise NotServing("synchronous_standby")
        return int(kept or 0), parse_lsn(insert or b"")

    async def look_at_publications(self) -> None:
        """With pgoutput: was anything told to the stream that it was not told at its beginning? Raises NotServing."""
        if self.plugin == "pgoutput":
            members, publications = await self._published()
            if publications != self.published[1] or not members <= self.published[0]:
                raise NotServing("publication_changed")

    async def see_to_publications(self, *, add: bool) -> None:
        """With pgoutput: take tables out whose updates fail, which the guard should have done; and with ``add``, add
        those that were made since the stream began. The look after that ends the stream.
        """
        if self.plugin == "pgoutput":
            waiting, broken = await self.catalogue.one(WAITING_SQL)
            if int(broken or 0) or (add and int(waiting or 0)):
                await self._enrol(_SOME if add else 0)

    async def _enrol(self, most: int) -> None:
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction):
            while int((await self.catalogue.one(ENROL_SQL.format(most=most)))[0] or 0):
                pass

    async def _publish(self) -> None:
        """See 4."""
        await self._published()
        await self._enrol(_SOME)
        self.published = await self._published()
        await self.stream.execute(b"SET client_encoding = 'SQL_ASCII'")  # values as the server has them, unconverted

    async def _published(self) -> tuple[frozenset[int], bytes]:
        """The memberships of tables, and the versions of the publications. Raises NotServing when something is not as
        setup makes it.
        """
        publications, triggers, members, versions = await self.catalogue.one(STATE_SQL)
        if int(publications or 0) != _PUBLICATIONS:
            raise NotServing("no_publication")
        try:
            announced = await announces(self.catalogue.ask)
        except UpstreamError as error:
            raise NotServing("reader_lost", error.message) from error
        if int(triggers or 0) != len(TRIGGERS) or not announced:
            raise NotServing("no_event_trigger")
        return frozenset(map(int, (members or b"").split())), versions or b""

    async def _fall_back(self) -> None:
        """There is no test_decoding: take pgoutput, if this database is prepared for it."""
        self.plugin = "pgoutput"
        if self.keeping is not None:
            self.keeping.slot = ""
        try:
            await self._publish()
        except NotServing as state:
            if state.reason == "no_publication":
                raise NotServing("no_output_plugin") from state
            raise
        await self._create_slot()

    async def _connect(
        self, conninfo: str, *, replication: bool = False, statement_ms: int = 0, lock_ms: int = 0
    ) -> Connection:
        connection = await connect(
            conninfo, replication=replication, timeout_s=self._options.connect_timeout_s,
            statement_ms=statement_ms, lock_ms=lock_ms,
        )
        self._open.append(connection)
        return connection

    async def _check(self) -> None:
        row = await (await self.probe.execute(IDENTITY.encode())).fetchone()
        assert row is not None
        self.identity = ServerIdentity(*row)
        if self.identity.in_recovery:
            raise NotServing("in_recovery")
        own = self.keeping.name if self.keeping is not None else ""
        row = await (await self.probe.execute(_FACTS.format(own=own).encode())).fetchone()
        assert row is not None
        self.version, level, template, oid, slots, senders, self.role, self.segment, names = row
        self.identity = ServerIdentity(*_first(self.identity), database_oid=oid)
        if template:
            raise NotServing("template_database")
        if self.version < 140000:
            raise NotServing("server_too_old")
        if level != "logical":
            raise NotServing("wal_level", f"wal_level is {level}")
        if counts_as_synchronous(names):
            raise NotServing("synchronous_standby", f"synchronous_standby_names is {names!r}")
        if slots <= _FREE or senders <= _FREE:
            raise NotServing("no_free_slot", f"{slots} replication slots and {senders} WAL senders are free")

    async def _connect_others(self) -> None:
        reached = self.probe.pgconn
        where = {"host": reached.host.decode(), "port": reached.port.decode()}
        address = reached.hostaddr.decode()
        if address:
            where["hostaddr"] = address
        self.where = where
        conninfo = make_conninfo(self._conninfo, **where)
        self.catalogue = Catalogue(await self._connect(conninfo, statement_ms=STATEMENT_MS, lock_ms=LOCK_MS))
        try:
            self.stream = await self._connect(conninfo, replication=True)
        except psycopg.Error as error:
            raise from_connect_error(error, was_up=True, role=self.role) from error
        for connection in (self.catalogue.connection, self.stream):
            row = await (await connection.execute(IDENTITY.encode())).fetchone()
            if row is None or self.identity is None or tuple(row) != _first(self.identity):
                raise NotServing("different_servers")
        row = await (await self.stream.execute(b"IDENTIFY_SYSTEM")).fetchone()
        if row is not None and self.identity is not None:
            self.identity = ServerIdentity(
                *_first(self.identity), timeline=int(row[1]), database_oid=self.identity.database_oid
            )

    async def _goes_on(self) -> bool:
        """See 5."""
        if self.keeping is not None:
            try:
                self.kept = await self.keeping.find(self)
            except UpstreamError as error:
                raise NotServing("reader_lost", error.message) from error
            if self.kept is not None:
                self.slot, self.start = self.kept.slot, self.kept.applied
        return self.kept is not None

    async def _create_slot(self) -> None:
        assert self.identity is not None
        own = self.keeping.slot if self.keeping is not None else ""
        self.slot = own or f"distribcache_{self.identity.database_oid}_{os.urandom(5).hex()}"
        how = "" if own else "TEMPORARY "
        command = f'CREATE_REPLICATION_SLOT "{self.slot}" {how}LOGICAL {self.plugin} NOEXPORT_SNAPSHOT'
        creation = asyncio.ensure_future(self.stream.execute(command.encode()))
        try:
            waited = 0.0
            while not creation.done():
                await asyncio.wait({creation}, timeout=min(1.0, self._options.slot_deadline_s))
                if creation.done():
                    break
                waited += min(1.0, self._options.slot_deadline_s)
                reason = await self._blocked()
                self._report(reason)
                if waited >= self._options.slot_deadline_s:
                    raise reason
            row = await (await creation).fetchone()
        except psycopg.errors.ConfigurationLimitExceeded as error:
            raise NotServing("no_free_slot", str(error)) from error
        except psycopg.errors.InsufficientPrivilege as error:
            hint = REASONS["no_replication_privilege"][1].format(role=self.role)
            raise NotServing("no_replication_privilege", str(error), hint) from error
        finally:
            if not creation.done():
                creation.cancel()
                await asyncio.wait({creation}, timeout=6)
        assert row is not None
        self.start = parse_lsn(row[1])

    async def _blocked(self) -> NotServing:
        """Who keeps the slot from being created."""
        rows = await self.catalogue.ask(_BLOCKERS.format(pid=self.stream.pgconn.backend_pid))
        for pid, application, since in rows:
            if pid:
                who = f"process {pid} ({application or 'unnamed'})"
                text = f"creating the slot waits for {who}, in a transaction since {since}"
                return NotServing("slot_waits", text, REASONS["slot_waits"][1].format(pid=pid))
        prepared = await self.catalogue.ask(_PREPARED)
        if rows and prepared:
            gid = prepared[0][0].replace("'", "''")
            text = f"creating the slot waits for the prepared transaction '{gid}'"
            return NotServing("slot_waits", text, f"COMMIT PREPARED '{gid}'; -- or ROLLBACK PREPARED")
        return NotServing("slot_waits", hint="end the oldest transaction of pg_stat_activity")

    async def _terminate(self, pids: list[int]) -> None:
        """Processes that do not notice that we have left, for instance in the middle of a large decode."""
        try:
            connection = await connect(self._conninfo, timeout_s=2)
        except (psycopg.Error, OSError, TimeoutError):
            return
        try:
            await connection.execute("SELECT pg_terminate_backend(p) FROM unnest(%s::int[]) AS p WHERE p <> 0", [pids])
            for _ in range(_TERMINATE_TRIES):
                left = await connection.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s::int[])", [pids])
                if not left.rowcount:
                    return
                await connection.execute("SELECT pg_sleep(0.05)")
        except psycopg.Error:
            pass
        finally:
            await close(connection)


def _first(identity: ServerIdentity) -> tuple[str, str, bool]:
    return (identity.system_identifier, identity.postmaster_start, identity.in_recovery)
