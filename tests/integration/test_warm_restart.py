"""Warm restart: what lies in L2 is valid again in another process, or provably not (coherence rule R8)."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import QUIET, Database, MakePostgres, create_database, drop_database
from fix_proxy import InnerProxy, MakeInnerProxy, MakeProxy, ProxyProcess, last
from inside import coherence_of, keeping_of, prove, warm_of
from muted import kept_and_muted
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.coherence import catalogue as catalogue_module
from distribcache.coherence import keeping as keeping_module
from distribcache.coherence import resuming
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.keeping import Keeping
from distribcache.coherence.kept import Kept, decode, encode
from distribcache.coherence.keptfile import KeptFile
from distribcache.coherence.ledger import Ledger
from distribcache.coherence.lsn import format_lsn
from distribcache.coherence.reader import Reader
from distribcache.coherence.resuming import BEGUN_ANEW

ENTRIES = 300
READ = "SELECT id, value, repeat('x', 1200) AS pad FROM stock WHERE id = %s"
SETTINGS = {
    "freshness.hit_wait": "2s",
    "freshness.max_staleness": "5s",
    "freshness.slot": "persistent",
    "audit.sample": "0",
    "ttl.oltp": "30min",
}

Connection = psycopg.Connection[Any]
MakeNode = Callable[..., InnerProxy]


@pytest.fixture(scope="module")
def server() -> Any:
    with Postgres(options={**QUIET, "max_slot_wal_keep_size": "1GB"}) as found:
        yield found


@pytest.fixture
def stock(server: Postgres) -> Any:
    made = create_database(server)
    made.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        f"INSERT INTO stock SELECT i, 1 FROM generate_series(1, {ENTRIES}) i",
    )
    yield made
    if server.pid:
        drop_database(made)


@pytest.fixture
def make_node(stock: Database, tmp_path: Path, make_inner_proxy: MakeInnerProxy) -> MakeNode:
    """A node in front of the test's database, with a directory of its own."""
    return lambda **more: make_inner_proxy(stock.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2"), **more})


def read(connection: Connection, number: int) -> int:
    row = connection.execute(READ, (number,)).fetchone()
    assert row is not None
    return int(row[1])


def fill(proxy: InnerProxy, entries: int = ENTRIES) -> None:
    """Read until all of it lies on the disk: as many puts as entries, whoever asked for them first."""
    with proxy.connect() as connection:

        def stored() -> bool:
            for number in range(1, entries + 1):
                read(connection, number)
            prove(proxy)
            stats = warm_of(proxy).stats()
            return stats.puts >= entries <= stats.entries

        until(stored, lambda: f"never written: {warm_of(proxy).stats()}")


def fill_process(proxy: ProxyProcess, entries: int) -> None:
    with proxy.connect() as connection, proxy.connect(options="-c distribcache.consistency=strict") as strict:

        def stored() -> bool:
            for number in range(1, entries + 1):
                read(connection, number)
            read(strict, 1)  # its proof settles what is to go down
            tiers = {row[0]: row for row in connection.execute("SHOW distribcache.tiers").fetchall()}
            return int(tiers["L2"][3]) >= entries

        until(stored, lambda: f"never written: {connection.execute('SHOW distribcache.tiers').fetchall()}")


def outcomes(proxy: InnerProxy | ProxyProcess, expected: dict[int, int], entries: int = ENTRIES) -> tuple[int, int]:
    """Read everything once: how many came from L2, and how many were not what the table holds."""
    hits = stale = 0
    with proxy.connect() as connection:
        for number in range(1, entries + 1):
            stale += read(connection, number) != expected.get(number, 1)
            hits += last(connection)["tier"] == "L2"
    return hits, stale


def why(proxy: InnerProxy) -> str:
    return keeping_of(proxy).why


def slots(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT slot_name, temporary, active FROM pg_replication_slots WHERE database = current_database()"
    )


def test_a_restart_goes_on_from_what_was_kept(make_node: MakeNode, stock: Database) -> None:
    first = make_node()
    fill(first)
    first.stop()
    assert [row[1:] for row in slots(stock)] == [(False, False)]
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 20", "DELETE FROM stock WHERE id = 30",
                  "INSERT INTO stock VALUES (30, 7)")  # fmt: skip
    expected = {**dict.fromkeys(range(1, 21), 2), 30: 7}
    for _ in range(2):  # and once more
        second = make_node()
        hits, stale = outcomes(second, expected)
        assert stale == 0
        assert why(second) == "", second.log
        assert hits >= 0.9 * (ENTRIES - len(expected)), (hits, second.log)
        second.stop()


def test_an_older_server_can_be_gone_on_from_too(
    make_postgres: MakePostgres, debian_bin: Path, tmp_path: Path, make_inner_proxy: MakeInnerProxy
) -> None:
    server = make_postgres(bin_dir=debian_bin, options={"max_slot_wal_keep_size": "1GB"})
    database = create_database(server)
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int)",
        "INSERT INTO stock SELECT i, 1 FROM generate_series(1, 30) i",
    )
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2")}
    first = make_inner_proxy(database.url(), settings)
    fill(first, 30)
    first.stop()
    database.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    second = make_inner_proxy(database.url(), settings)
    assert why(second) == "", second.log
    hits, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 30)
    assert (hits >= 20, stale) == (True, 0)
    second.stop()
    database.execute(f"SELECT pg_drop_replication_slot('{slot_of(database)}')", "ALTER TABLE stock ADD note text")
    third = make_inner_proxy(database.url(), settings)
    assert why(third) == "slot_missing", third.log
    assert outcomes(third, dict.fromkeys(range(1, 6), 2), 30) == (0, 0)
    third.stop()
    drop_database(database)


def kill(proxy: InnerProxy) -> None:
    """End it as if it had been killed: nothing of the warm restart is done any more."""

    async def nothing(self: Keeping) -> None:
        pass

    keeping_of(proxy).finish = nothing.__get__(keeping_of(proxy))  # type: ignore[method-assign]
    proxy.stop()


def state_of(directory: Path) -> Path:
    (found,) = (directory / "l2").glob("follow-*.state")
    return found


def has_state(directory: Path) -> bool:
    return bool(list((directory / "l2").glob("follow-*.state")))


def saved(proxy: InnerProxy, saves: int = 1) -> None:
    """Wait until all that was applied is on the disk, and the server was told."""
    keeping, coverage = keeping_of(proxy), coherence_of(proxy).coverage
    keeping._due = 0
    until(
        lambda: (keeping._saved and keeping._saved == keeping._mark(coverage)) or setattr(keeping, "_due", 0),
        lambda: f"never saved: {keeping._saved} {coverage.applied} {proxy.log}",
    )


def applied(proxy: InnerProxy, database: Database, *statements: str) -> None:
    """Run statements around the proxy, and wait until the ledger has them."""
    coherence = coherence_of(proxy)
    before = coherence.counters.commits
    database.execute(*statements)
    until(lambda: coherence.counters.commits > before, "never heard of it")


def slot_of(database: Database) -> str:
    (name,) = [str(row[0]) for row in slots(database) if not row[1]]
    return name


KILLED = pytest.mark.parametrize("how", ["terminated", "killed"])


@KILLED
def test_a_process_goes_on_whatever_ended_it(
    stock: Database, tmp_path: Path, make_proxy: MakeProxy, how: str
) -> None:
    """The proxy as people run it, under outside writes before, meanwhile and after."""
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2")}
    first = make_proxy(stock.url(), settings)
    fill_process(first, ENTRIES)
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 10")
    if how == "killed":
        seen = state_of(tmp_path).stat().st_mtime_ns if has_state(tmp_path) else 0
        until(
            lambda: has_state(tmp_path) and state_of(tmp_path).stat().st_mtime_ns > seen,
            lambda: f"never saved: {first.log}",
        )
        os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
    else:
        first.stop()
    stock.execute("UPDATE stock SET value = 3 WHERE id BETWEEN 11 AND 20")
    expected = {**dict.fromkeys(range(1, 11), 2), **dict.fromkeys(range(11, 21), 3)}
    second = make_proxy(stock.url(), settings)
    stock.execute("UPDATE stock SET value = 4 WHERE id = 300")
    hits, stale = outcomes(second, {**expected, 300: 4})
    assert stale == 0
    assert any("(resumed)" in line for line in second.log), second.log
    assert hits >= 0.9 * (ENTRIES - 21), (hits, second.log)


def test_with_workers_main_keeps_what_is_known(stock: Database, tmp_path: Path, make_proxy: MakeProxy) -> None:
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2"), "listen.workers": "2"}
    first = make_proxy(stock.url(), settings)
    fill_process(first, 50)
    first.stop()
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    second = make_proxy(stock.url(), settings)
    hits, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 50)
    assert (stale, hits >= 40) == (0, True), (hits, second.log)


def test_a_temporary_slot_keeps_nothing_and_says_so(make_node: MakeNode, stock: Database, tmp_path: Path) -> None:
    first = make_node(**{"freshness.slot": "temporary"})
    fill(first, 50)
    first.stop()
    assert slots(stock) == []
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    second = make_node(**{"freshness.slot": "temporary"})
    assert outcomes(second, dict.fromkeys(range(1, 6), 2), 50) == (0, 0)
    assert any("L2 is not used (temporary_slot)" in line for line in second.log), second.log
    assert not has_state(tmp_path)


def test_who_turns_it_off_leaves_no_slot(make_node: MakeNode, stock: Database, tmp_path: Path) -> None:
    first = make_node()
    fill(first, 5)
    first.stop()
    assert len(slots(stock)) == 1
    assert has_state(tmp_path)
    second = make_node(**{"freshness.slot": "temporary"})
    assert [row[1] for row in slots(stock)] == [True]
    assert not has_state(tmp_path)
    second.stop()


def edited(directory: Path, change: Callable[[Kept], Kept]) -> None:
    path = state_of(directory)
    path.write_bytes(b"".join(encode(change(decode(path.read_bytes())))))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_kind(database: Database) -> None:
    name = slot_of(database)
    database.execute(
        f"SELECT pg_drop_replication_slot('{name}')", f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    )


Meanwhile = Callable[[Database, Path], object]
MEANWHILE: dict[str, tuple[str, Meanwhile]] = {
    "a column more": ("catalogue_changed", lambda d, _: d.execute("ALTER TABLE stock ADD note text")),
    "a right": ("catalogue_changed", lambda d, _: d.execute("GRANT SELECT ON stock TO public")),
    "a right taken back": (
        "catalogue_changed",
        lambda d, _: d.execute("GRANT SELECT ON stock TO public", "REVOKE SELECT ON stock FROM public"),
    ),
    "a setting of the database": (
        "catalogue_changed", lambda d, _: d.execute(f"ALTER DATABASE {d.name} SET extra_float_digits = 0"),
    ),
    "a reload": ("catalogue_changed", lambda d, _: d.execute("SELECT pg_reload_conf()")),
    "a slot dropped": (
        "slot_missing", lambda d, _: d.execute(f"SELECT pg_drop_replication_slot('{slot_of(d)}')"),
    ),
    "a slot moved": (
        "slot_ahead",
        lambda d, _: d.execute(f"SELECT pg_replication_slot_advance('{slot_of(d)}', pg_current_wal_insert_lsn())"),
    ),
    "a slot of another kind": ("slot_changed", lambda d, _: of_another_kind(d)),
    "a file that is torn": (
        "damaged_state", lambda _, at: os.truncate(state_of(at), state_of(at).stat().st_size - 7),
    ),
    "a file with a bit flipped": ("damaged_state", lambda _, at: flipped(state_of(at))),
    "a file of something else": ("other_format", lambda _, at: state_of(at).write_bytes(b"hello")),
    "a file that is gone": ("no_state", lambda _, at: state_of(at).unlink()),
    "a file that others can write": ("unusable_directory", lambda _, at: state_of(at).chmod(0o666)),
    "a file of another version": ("other_format", lambda _, at: edited(at, lambda k: replace(k, version="0"))),
    "a file of another ledger": ("other_format", lambda _, at: edited(at, lambda k: replace(k, tables=7))),
    "a file of another server": (
        "other_server", lambda _, at: edited(at, lambda k: replace(k, system_identifier="1")),
    ),
    "a file of another timeline": ("other_server", lambda _, at: edited(at, lambda k: replace(k, timeline=9))),
    "a file of another slot": ("other_server", lambda _, at: edited(at, lambda k: replace(k, slot="x"))),
    "a file of before a restart": (
        "server_restarted", lambda _, at: edited(at, lambda k: replace(k, postmaster_start="1.5")),
    ),
    "a file from the future": (
        "log_went_back", lambda _, at: edited(at, lambda k: replace(k, applied=k.applied + (1 << 40))),
    ),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_what_may_have_a_hole_is_begun_anew(
    make_node: MakeNode, stock: Database, tmp_path: Path, meanwhile: str
) -> None:
    """Each in its own words, with nothing from L2, and the next restart goes on again."""
    code, change = MEANWHILE[meanwhile]
    first = make_node()
    fill(first, 20)
    first.stop()
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    change(stock, tmp_path)
    second = make_node()
    assert why(second) == code, second.log
    assert outcomes(second, dict.fromkeys(range(1, 6), 2), 20) == (0, 0)
    said = [line for line in second.log if f"({code})" in line]
    assert len(said) == 1
    assert BEGUN_ANEW[code] in said[0]
    fill(second, 20)
    second.stop()
    third = make_node()
    if code != "unusable_directory":
        assert why(third) == "", third.log
        hits, stale = outcomes(third, dict.fromkeys(range(1, 6), 2), 20)
        assert (hits >= 18, stale) == (True, 0)


@kept_and_muted
def test_a_hole_is_a_hole(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 4. Muted: nobody looks where the slot stands."""
    if muted:
        monkeypatch.setattr(resuming, "judge", lambda *_: None)
    first = make_node()
    fill(first, 20)
    first.stop()
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    stock.execute(f"SELECT pg_replication_slot_advance('{slot_of(stock)}', pg_current_wal_insert_lsn())")
    second = make_node()
    _, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert (stale > 0) == muted, second.log


@kept_and_muted
def test_a_slot_that_is_moved_while_it_is_taken(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 4: between the look at the slot and the beginning of the stream. Muted: it is not looked at again."""
    first = make_node()
    fill(first, 20)
    first.stop()
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    name, start = slot_of(stock), Reader.start
    moved = []

    async def late(self: Reader, slot: str, at: int) -> None:
        if slot == name and not moved:
            moved.append(slot)
            stock.execute(f"SELECT pg_replication_slot_advance('{slot}', pg_current_wal_insert_lsn())")
        await start(self, slot, at)

    monkeypatch.setattr(Reader, "start", late)
    if muted:

        async def surely(self: Keeping, link: Any) -> bool:
            return True

        monkeypatch.setattr(Keeping, "holds", surely)
    second = make_node()
    assert moved
    _, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert (stale > 0) == muted, second.log


@kept_and_muted
def test_an_older_copy_of_the_file_is_a_hole(
    make_node: MakeNode, stock: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 4: what was confirmed since is not delivered again. Muted: nobody looks where the slot stands."""
    first = make_node()
    fill(first, 20)
    saved(first)
    copy = state_of(tmp_path).read_bytes()
    applied(first, stock, "UPDATE stock SET value = 2 WHERE id <= 5")
    saved(first)
    wanted = decode(copy).applied
    until(
        lambda: stock.execute(f"SELECT confirmed_flush_lsn - '0/0' > {wanted} FROM pg_replication_slots "
                              f"WHERE slot_name = '{slot_of(stock)}'")[0][0],
        "never confirmed",
    )  # fmt: skip
    kill(first)
    state_of(tmp_path).write_bytes(copy)
    if muted:
        monkeypatch.setattr(resuming, "judge", lambda *_: None)
    second = make_node()
    assert why(second) == ("" if muted else "slot_ahead"), second.log
    _, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert (stale > 0) == muted


@kept_and_muted
def test_only_what_is_on_disk_is_confirmed(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 2. Muted: as with a temporary slot, whatever was received is confirmed; nothing goes on after a kill."""
    if muted:
        monkeypatch.setattr(Reader, "durable", property(lambda self: None, lambda self, value: None), raising=False)
    first = make_node()
    fill(first, 20)
    saved(first)
    applied(first, stock, "UPDATE stock SET value = 2 WHERE id <= 5")
    reader = coherence_of(first)._following.reader  # type: ignore[union-attr]
    keeping_of(first)._due = 1 << 62

    async def feedback() -> None:
        reader.feedback(ask=True)

    first.call(feedback())
    if muted:
        until(
            lambda: stock.execute(
                f"SELECT confirmed_flush_lsn >= '{reader.received >> 32:X}/{reader.received & 0xFFFFFFFF:X}'::pg_lsn "
                f"FROM pg_replication_slots WHERE slot_name = '{slot_of(stock)}'"
            )[0][0],
            "never confirmed",
        )
    kill(first)
    second = make_node()
    hits, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert stale == 0
    assert (hits == 0) == muted, second.log


@kept_and_muted
def test_positions_in_the_file_are_those_of_its_slots(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 1: a commit arrives while the slots are copied, and is confirmed. Muted: W is read behind them."""
    first = make_node()
    fill(first, 20)
    saved(first)
    keeping = keeping_of(first)
    keeping._due = 1 << 62
    until(lambda: keeping._task is None, "never ends")
    coherence, copied = coherence_of(first), keeping_module._copied
    written = []

    def slowly(ledger: Ledger, kept: Kept, found: list[tuple[bytes, int]]) -> Kept:
        done = copied(ledger, kept, found)
        if not written:
            written.append(1)
            before = coherence.counters.commits
            stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
            until(lambda: coherence.counters.commits > before, "never heard of it")
            if muted:
                done = replace(done, applied=coherence.coverage.applied)
        return done

    applied(first, stock, "UPDATE stock SET value = 2 WHERE id = 6")
    monkeypatch.setattr(keeping_module, "_copied", slowly)
    saves = keeping.saves
    keeping._due = 0
    until(lambda: keeping.saves > saves, "never saved")
    keeping._due = 1 << 62
    assert written
    reached = format_lsn(coherence.coverage.applied)
    kill(first)
    stock.execute(f"SELECT pg_replication_slot_advance('{slot_of(stock)}', '{reached}')")
    second = make_node()
    assert why(second) == ("" if muted else "slot_ahead"), second.log
    _, stale = outcomes(second, dict.fromkeys(range(1, 7), 2), 20)
    assert (stale > 0) == muted


@kept_and_muted
def test_rows_that_changed_before_stay_changed(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Muted: the row slots are not restored, and what had ended lives again."""
    first = make_node()
    fill(first, 20)
    applied(first, stock, "UPDATE stock SET value = 2 WHERE id <= 5")
    first.stop()
    if muted:
        resume = Ledger.resume
        monkeypatch.setattr(
            Ledger, "resume", lambda self, lsn, schema, over, rows, size: resume(self, lsn, schema, over, {}, size)
        )
    second = make_node()
    _, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert (stale > 0) == muted


@kept_and_muted
def test_a_name_that_means_another_table(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 4, the catalogue. Muted: the fingerprint does not see the versions of rows."""
    if muted:
        blind, found = re.subn(
            r"\(SELECT coalesce\(bit_xor\(hash_record_extended\(ROW\([^)]*\), 0\)\), 0\) # count\(\*\) ",
            "(SELECT count(*) * 0 ", catalogue_module.PREPARE_SQL,
        )
        assert found > 10, "the fingerprint is asked for in another way"
        monkeypatch.setattr(catalogue_module, "PREPARE_SQL", blind)
    stock.execute("CREATE TABLE other (id int PRIMARY KEY, value int)", "INSERT INTO other SELECT id, 8 FROM stock")
    first = make_node()
    fill(first, 20)
    first.stop()
    stock.execute("ALTER TABLE stock RENAME TO former", "ALTER TABLE other RENAME TO stock")
    second = make_node()
    _, stale = outcomes(second, dict.fromkeys(range(1, 21), 8), 20)
    assert (stale > 0) == muted, second.log


@kept_and_muted
def test_a_state_is_of_one_catalogue(
    make_node: MakeNode, stock: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 3. Muted: the file stays when the catalogue is found to be another one."""
    first = make_node()
    fill(first, 5)
    saved(first)
    keeping, coverage = keeping_of(first), coherence_of(first).coverage
    keeping._due = 1 << 62
    if muted:
        coverage.on_changed = None
    else:
        monkeypatch.setattr(Keeping, "tick", lambda *_: None)
    before = coverage.fingerprint
    stock.execute("ALTER TABLE stock ADD note text")
    until(lambda: coverage.fingerprint != before, "never looked")
    assert has_state(tmp_path) == muted


@kept_and_muted
def test_never_within_one_process(
    make_node: MakeNode, stock: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Rule 6: the server ended the connection. Muted: it goes on as after a restart."""
    if muted:
        monkeypatch.setattr(Keeping, "end", lambda self, *, hole: self.close())
    first = make_node()
    fill(first, 20)
    saved(first)
    coherence = coherence_of(first)
    before, changes = coherence.own_epoch(), coherence.counters.epoch_changes
    stock.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    until(lambda: coherence.counters.epoch_changes > changes and coherence.serving, lambda: first.log)
    assert (coherence.own_epoch() == before) == muted
    assert why(first) == ("" if muted else "link_lost")
    assert len(slots(stock)) == 1


@kept_and_muted
def test_two_processes_with_one_directory(
    make_node: MakeNode, stock: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Muted: there is no lock; the second finds the slot in use, waits, and throws the first one's state away."""
    if muted:
        monkeypatch.setattr(KeptFile, "lock", lambda self, *of: setattr(self, "_locked", "follow-{}-{}".format(*of)))
        monkeypatch.setattr(resuming, "_BUSY_S", 0.3)
    first = make_node()
    fill(first, 20)
    saved(first)
    keeping_of(first)._due = 1 << 62
    until(lambda: keeping_of(first)._task is None, "never ends")
    second = make_node()
    assert why(second) == ("slot_in_use" if muted else "locked"), second.log
    assert sorted(row[1] for row in slots(stock)) == [False, True]
    assert has_state(tmp_path) is not muted
    stock.execute("UPDATE stock SET value = 2 WHERE id <= 5")
    for proxy in (second, first):
        assert outcomes(proxy, dict.fromkeys(range(1, 6), 2), 20)[1] == 0


def test_an_unlimited_server_gets_no_slot_that_outlives_us(
    database: Database, tmp_path: Path, make_inner_proxy: MakeInnerProxy
) -> None:
    node = make_inner_proxy(database.url(), {**SETTINGS, "l2.path": str(tmp_path / "l2")})
    assert why(node) == "unlimited_wal"
    (said,) = [line for line in node.log if "(unlimited_wal)" in line]
    assert "ALTER SYSTEM SET max_slot_wal_keep_size" in said
    assert [row[1] for row in slots(database)] == [True]


def test_a_slot_that_the_server_gave_up(
    make_postgres: MakePostgres, tmp_path: Path, make_inner_proxy: MakeInnerProxy
) -> None:
    server = make_postgres(
        fresh=True, options={"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    )
    database = create_database(server)
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1), (2, 1)")
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2")}
    first = make_inner_proxy(database.url(), settings)
    fill(first, 2)
    first.stop()
    name = slot_of(database)
    database.execute("UPDATE stock SET value = 2 WHERE id = 1")
    for _ in range(4):
        database.execute("SELECT pg_logical_emit_message(true, 'x', 'x')", "SELECT pg_switch_wal()", "CHECKPOINT")
    assert database.execute("SELECT slot_name, wal_status FROM pg_replication_slots") == [(name, "lost")]
    second = make_inner_proxy(database.url(), settings)
    assert why(second) == "slot_lost", second.log
    assert outcomes(second, {1: 2}, 2) == (0, 0)
    assert database.execute("SELECT slot_name, wal_status FROM pg_replication_slots") == [(name, "reserved")]
    second.stop()


def test_a_server_that_was_restarted(
    make_postgres: MakePostgres, tmp_path: Path, make_inner_proxy: MakeInnerProxy
) -> None:
    server = make_postgres(fresh=True, options={"max_slot_wal_keep_size": "1GB"})
    database = create_database(server)
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1), (2, 1)")
    settings = {**SETTINGS, "l2.path": str(tmp_path / "l2")}
    first = make_inner_proxy(database.url(), settings)
    fill(first, 2)
    first.stop()
    server.restart()
    database.execute("UPDATE stock SET value = 2 WHERE id = 1")
    second = make_inner_proxy(database.url(), settings)
    assert why(second) == "server_restarted", second.log
    assert outcomes(second, {1: 2}, 2) == (0, 0)
    second.stop()


def test_the_doctor_knows_them_and_teardown_drops_them(
    make_node: MakeNode, stock: Database, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> dict[str, Any]:
        found = {each["name"]: each for each in cli("doctor", "--upstream", stock.url(), "--json").json["checks"]}
        return found.get("kept_slots", {})

    assert check() == {}
    first = make_node()
    fill(first, 5)
    name = slot_of(stock)
    assert f"{name} (in use, " in check()["detail"]
    first.stop()
    found = check()
    assert (found["status"], f"{name} (waits, " in found["detail"]) == ("advice", True)
    assert "teardown" in found["fix"][0]
    torn = cli("teardown", "--upstream", stock.url(), "--json")
    assert {"thing": f"replication slot {name}", "outcome": "removed", "why": "", "fix": ""} in torn.json["deeds"]
    assert slots(stock) == []
    second = make_node()
    assert why(second) == "slot_missing", second.log
    fill(second, 5)
    saved(second)
    torn = cli("teardown", "--upstream", stock.url(), "--json")  # asks a running one to leave
    assert torn.json["ok"]
    assert slots(stock) == []
    until(lambda: not has_state(tmp_path), "the state outlives its slot")
    monkeypatch.setenv("DISTRIBCACHE_FRESHNESS_SLOT", "persistent")
    monkeypatch.setenv("DISTRIBCACHE_L2_PATH", str(tmp_path / "l2"))
    assert check()["detail"].startswith("none yet")


@kept_and_muted
def test_what_the_first_look_saw_raises_no_alarms(
    make_node: MakeNode, stock: Database, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """Transactions that look like DDL, while nobody was there. Muted: each is an alarm, until the next look."""
    first = make_node()
    fill(first, 20)
    first.stop()
    stock.execute(
        "DO $$ BEGIN FOR i IN 1..300 LOOP CREATE TEMP TABLE t (v int) ON COMMIT DROP; COMMIT; END LOOP; END $$",
        "UPDATE stock SET value = 2 WHERE id <= 5",
    )
    if muted:
        resume = Coverage.resume

        def blindly(self: Coverage, *everything: Any) -> None:
            resume(self, *everything)
            self.seen = None

        monkeypatch.setattr(Coverage, "resume", blindly)
    second = make_node()
    assert why(second) == "", second.log
    hits, stale = outcomes(second, dict.fromkeys(range(1, 6), 2), 20)
    assert (hits >= 12, stale) == (True, 0)
    assert (coherence_of(second).counters.alarms_by["empty_transaction"] > 0) is muted


def test_a_database_that_nobody_uses_any_more_has_no_slot(
    make_node: MakeNode, stock: Database, server: Postgres, tmp_path: Path
) -> None:
    """Slots are scarce: one that waits is for a process that ended, not for clients that left."""
    other = create_database(server)
    node = make_node(**{"freshness.database_linger": "100ms"})
    with psycopg.connect(node.conninfo(dbname=other.name), autocommit=True) as connection:
        connection.execute("SELECT 1")
        until(lambda: [row[1] for row in slots(other)] == [False], lambda: str(node.log))
        until(lambda: len(list((tmp_path / "l2").glob("*.state"))) == 2, lambda: str(node.log))
    until(lambda: slots(other) == [], lambda: str(slots(other)))
    assert [row[1] for row in slots(stock)] == [False], "the one of the URL stays"
    assert len(list((tmp_path / "l2").glob("*.state"))) == 1
    with psycopg.connect(node.conninfo(dbname=other.name), autocommit=True) as connection:
        until(lambda: [row[1:] for row in slots(other)] == [(False, True)], lambda: str(node.log))
    node.stop()
    drop_database(other)
