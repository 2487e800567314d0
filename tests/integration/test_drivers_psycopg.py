"""libpq's clients through the proxy: psql, pgbench and psycopg 3 in all its modes get right rows, and hits."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from fix_proxy import last
from fix_world import World, until_hits
from psycopg import errors
from psycopg.rows import namedtuple_row

ONE = "SELECT name FROM item WHERE id = %s"
SOME = "SELECT id, price FROM item WHERE id BETWEEN %s AND %s ORDER BY id"
TWO_ROWS = [(7, Decimal("10.5")), (8, Decimal("12.0"))]


def is_hit(connection: psycopg.Connection[Any]) -> bool:
    shown = last(connection)
    return (shown["status"], shown["tier"], shown["tables"]) == ("hit", "L1", "public.item")


# ---- psql and pgbench -----------------------------------------------------------------------------------------------


def run(world: World, program: str, *arguments: str, text: str = "") -> str:
    proxy = world.proxy
    environment = {**os.environ, "PGHOST": proxy.host, "PGPORT": str(proxy.port), "PGUSER": "postgres"}
    environment |= {"PGDATABASE": proxy.database, "PGCLIENTENCODING": "UTF8", "LC_ALL": "C"}
    command = [str(world.database.server.binary(program)), *arguments]
    done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip() or program == "pgbench", done.stderr
    return done.stdout


def psql(world: World, text: str) -> list[str]:
    return run(world, "psql", "-X", "-A", "-t", "-F", "|", "-v", "ON_ERROR_STOP=1", text=text).splitlines()


def test_psql(world: World) -> None:
    read = "SELECT name, price FROM item WHERE id = 7;\n"

    def reads() -> None:
        lines = psql(world, read * 3 + "SHOW distribcache.last;")
        assert lines[:3] == ["item 7|10.5"] * 3
        assert lines[3].split("|")[:2] in (["hit", "L1"], ["miss", ""])

    until_hits(world, reads, 3)


def test_psql_in_a_transaction_with_copy_and_meta_commands(world: World) -> None:
    lines = psql(
        world,
        "\\d item\nBEGIN;\nSELECT name FROM item WHERE id = 8;\nCOPY note (body) FROM stdin;\nfirst\nsecond\n\\.\n"
        "SELECT count(*) FROM note;\nCOPY (SELECT body FROM note ORDER BY id) TO stdout;\nROLLBACK;\n"
        "SELECT count(*) FROM note;\nSELECT name FROM item WHERE id = $1 \\bind 9 \\g\n",
    )
    assert [line for line in lines if line.startswith("id|integer")]
    expected = ["BEGIN", "item 8", "COPY 2", "2", "first", "second", "ROLLBACK", "0", "item 9"]
    assert lines[-len(expected) :] == expected


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["autocommit", "in transactions"])
def test_pgbench(world: World, tmp_path_factory: pytest.TempPathFactory, mode: str, wrapped: bool) -> None:
    read = "\\set id random(1, 5)\nSELECT name FROM item WHERE id = :id;\n"
    script = tmp_path_factory.mktemp("pgbench") / "read.sql"
    script.write_text(f"BEGIN;\n{read}{read}COMMIT;\n" if wrapped else read)
    count = 200

    def reads() -> None:
        out = run(world, "pgbench", "-n", "-c", "2", "-t", str(count), "-M", mode, "-f", str(script))
        assert f"number of transactions actually processed: {2 * count}/{2 * count}" in out
        assert "number of failed transactions: 0 " in out

    # Five keys, so all but a handful of reads come from memory.
    until_hits(world, reads, 2 * count * (2 if wrapped else 1) * 9 // 10)


# ---- psycopg --------------------------------------------------------------------------------------------------------

MODES = {
    "unnamed": {"prepare_threshold": None},
    "prepared": {"prepare_threshold": 0},
    "prepared after five": {},
    "client-side": {"cursor_factory": psycopg.ClientCursor},
    "raw": {"cursor_factory": psycopg.RawCursor},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("autocommit", [True, False], ids=["autocommit", "in transactions"])
def test_psycopg_reads(world: World, mode: str, autocommit: bool) -> None:
    raw = mode == "raw"
    sql = SOME.replace("%s", "$1", 1).replace("%s", "$2") if raw else SOME
    with world.proxy.connect(autocommit=autocommit, **MODES[mode]) as connection:

        def reads() -> None:
            for _ in range(7):
                assert connection.execute(sql, (7, 8)).fetchall() == TWO_ROWS
            if not autocommit:
                assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
                connection.commit()

        until_hits(world, reads, 7)
        assert is_hit(connection)


def test_psycopg_binary_and_row_factories(world: World) -> None:
    with world.proxy.connect(row_factory=namedtuple_row) as connection:
        cursor = connection.cursor(binary=True)

        def reads() -> None:
            for _ in range(6):
                row = cursor.execute(SOME, (7, 7)).fetchone()
                assert row is not None
                assert (row.id, row.price) == TWO_ROWS[0]

        until_hits(world, reads, 6)


def test_psycopg_pipeline(world: World) -> None:
    with world.proxy.connect(prepare_threshold=2) as connection:

        def reads() -> None:
            with connection.pipeline() as pipeline:
                cursors = [connection.execute(ONE, (number,)) for number in (1, 2, 3)]
                pipeline.sync()
                more = connection.execute(SOME, (7, 8))
            assert [cursor.fetchall() for cursor in cursors] == [[("item 1",)], [("item 2",)], [("item 3",)]]
            assert more.fetchall() == TWO_ROWS

        until_hits(world, reads, 4)


def test_psycopg_pipeline_with_an_error_in_the_middle(world: World) -> None:
    with world.proxy.connect() as connection:
        for _ in range(5):
            with pytest.raises(errors.DivisionByZero), connection.pipeline():
                connection.execute(ONE, (1,))
                connection.execute("SELECT 1 / 0 FROM item")
                connection.execute(ONE, (2,))
            assert connection.execute(ONE, (3,)).fetchall() == [("item 3",)]


def test_psycopg_transactions_and_savepoints(world: World) -> None:
    with world.proxy.connect() as connection:

        def reads() -> None:
            with connection.transaction():
                assert connection.execute(ONE, (1,)).fetchone() == ("item 1",)
                with connection.transaction("inner"):
                    assert connection.execute(ONE, (2,)).fetchone() == ("item 2",)
                with connection.transaction(force_rollback=True):
                    assert connection.execute(ONE, (3,)).fetchone() == ("item 3",)

        until_hits(world, reads, 3)
        with connection.transaction() as outer:
            with pytest.raises(errors.DivisionByZero), connection.transaction():
                connection.execute("INSERT INTO note (body) VALUES ('inner')")
                connection.execute("SELECT 1 / 0")
            connection.execute("INSERT INTO note (body) VALUES ('outer')")
            assert connection.execute("SELECT body FROM note").fetchall() == [("outer",)]
            raise psycopg.Rollback(outer)
        assert connection.execute("SELECT body FROM note").fetchall() == []
        until_hits(world, reads, 3)


def test_psycopg_rollback_forgets_prepared_statements(world: World) -> None:
    """Proxy trap 8: after a ROLLBACK psycopg sends DEALLOCATE ALL."""
    with world.proxy.connect(autocommit=False, prepare_threshold=0) as connection:

        def reads() -> None:
            for number in (1, 2):
                assert connection.execute(ONE, (number,)).fetchone() == (f"item {number}",)
            connection.rollback()

        until_hits(world, reads, 1)


def test_psycopg_evicts_prepared_statements(world: World) -> None:
    """Also one that upstream never saw: our own SHOW."""
    with world.proxy.connect(prepare_threshold=0) as connection:
        connection.prepared_max = 2
        for _ in range(3):
            for number in range(4):
                text = f"SELECT {number}, name FROM item WHERE id = %s"
                assert connection.execute(text, (number + 1,)).fetchone() == (number, f"item {number + 1}")
            assert connection.execute("SHOW distribcache.tiers").fetchone() is not None
            assert connection.execute("SHOW distribcache.last").fetchone() is not None


def test_deallocate_of_our_own_show(world: World) -> None:
    with world.proxy.connect() as connection:
        for simple in (True, False):
            connection.pgconn.prepare(b"ours", b"SHOW distribcache.last")
            assert connection.pgconn.exec_prepared(b"ours", []).ntuples == 1
            deallocate = connection.pgconn.exec_ if simple else lambda text: connection.pgconn.exec_params(text, [])
            assert deallocate(b"DEALLOCATE ours").command_status == b"DEALLOCATE"
            assert b"does not exist" in deallocate(b"DEALLOCATE ours").error_message


def test_psycopg_server_side_cursors(world: World) -> None:
    with world.proxy.connect(autocommit=False) as connection:
        for _ in range(3):
            with connection.cursor("big") as cursor:
                cursor.itersize = 3
                cursor.execute("SELECT id FROM item WHERE id <= %s ORDER BY id", (10,))
                assert [row[0] for row in cursor] == list(range(1, 11))
            with connection.cursor("scrolled", scrollable=True) as cursor:
                cursor.execute("SELECT id FROM item ORDER BY id")
                cursor.scroll(50)
                assert cursor.fetchmany(2) == [(51,), (52,)]
            assert connection.execute(ONE, (1,)).fetchone() == ("item 1",)
            connection.commit()


@pytest.mark.parametrize("rows", [3, 5000])
def test_psycopg_copy_both_ways(world: World, rows: int) -> None:
    with world.proxy.connect() as connection, connection.transaction(force_rollback=True):
        cursor = connection.cursor()
        with cursor.copy("COPY note (body) FROM STDIN") as copy:
            for number in range(rows):
                copy.write_row((f"body {number}",))
        assert cursor.execute("SELECT count(*) FROM note").fetchone() == (rows,)
        with cursor.copy("COPY (SELECT body FROM note WHERE id > %s ORDER BY id) TO STDOUT", (0,)) as copy:
            assert [row[0] for row in copy.rows()] == [f"body {number}" for number in range(rows)]
        with cursor.copy("COPY (SELECT id FROM item ORDER BY id) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4"])
            assert [row[0] for row in copy.rows()] == list(range(1, 101))
        with pytest.raises(ZeroDivisionError), connection.transaction(), cursor.copy("COPY note FROM STDIN") as copy:
            copy.write(b"1\t")
            raise ZeroDivisionError  # CopyFail
        bad = errors.InvalidTextRepresentation
        with pytest.raises(bad), connection.transaction(), cursor.copy("COPY note FROM STDIN") as copy:
            copy.write(b"one\ttwo\n")
        assert cursor.execute(ONE, (1,)).fetchone() == ("item 1",)


def test_psycopg_listen_and_notify(world: World) -> None:
    with world.proxy.connect() as listener, world.proxy.connect() as notifier:
        listener.execute("LISTEN news")
        until_hits(world, lambda: listener.execute(ONE, (1,)).fetchone())
        notifier.execute("SELECT pg_notify('news', 'hello')")
        notification = next(listener.notifies(timeout=60, stop_after=1))
        assert (notification.channel, notification.payload) == ("news", "hello")
        assert notification.pid == notifier.info.backend_pid, "the real pid of the sender"
        listener.execute("UNLISTEN *")


def test_psycopg_cancel(world: World) -> None:
    with world.proxy.connect() as connection:
        until_hits(world, lambda: connection.execute(ONE, (1,)).fetchone())
        over = threading.Event()

        def cancel() -> None:
            while not over.wait(0.3):  # one that comes too early ends nothing
                connection.cancel()

        timer = threading.Thread(target=cancel)
        timer.start()
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(20)")
        over.set()
        timer.join()
        connection.cancel_safe()  # a cancel while nothing runs hits nothing
        for _ in range(5):
            assert connection.execute(ONE, (1,)).fetchone() == ("item 1",)


async def test_psycopg_async(world: World) -> None:
    async with await psycopg.AsyncConnection.connect(world.proxy.conninfo()) as connection:

        async def hits() -> int:
            before = world.hits()
            for _ in range(20):
                row = await (await connection.execute(ONE, (4,))).fetchone()
                assert row == ("item 4",)
                await connection.commit()
            return int(world.hits() - before)

        async with asyncio.timeout(60):
            while await hits() < 15:
                pass
        sleeper = asyncio.create_task(connection.execute("SELECT pg_sleep(20)"))
        while not sleeper.done():
            await asyncio.sleep(0.2)
            await connection.cancel_safe()  # one that comes too early ends nothing
        with pytest.raises(errors.QueryCanceled):
            await sleeper
        await connection.rollback()
        assert (await (await connection.execute(ONE, (4,))).fetchone()) == ("item 4",)


def test_psycopg_two_phase_commit(world: World) -> None:
    with world.proxy.connect(autocommit=False) as connection, world.proxy.connect() as reader:
        for end in (connection.tpc_rollback, connection.tpc_commit):
            connection.tpc_begin("xid")
            assert connection.execute("SELECT count(*) FROM note").fetchone() == (0,)
            connection.execute("INSERT INTO note (body) VALUES ('prepared')")
            connection.tpc_prepare()
            assert reader.execute("SELECT count(*) FROM note").fetchone() == (0,)
            end()
        assert reader.execute("SELECT count(*) FROM note").fetchone() == (1,), "committed elsewhere, read here at once"
        reader.execute("DELETE FROM note")
