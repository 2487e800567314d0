"""The launcher of throw-away servers: it starts, restarts, tells what went wrong and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from wait import until

from distribcache.cli.binaries import embedded_bin_dir
from distribcache.cli.postgres import Postgres
from distribcache.errors import UpstreamError


def ask(server: Postgres, question: str) -> str:
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return str(row[0])


def test_server_is_ready_for_logical_decoding_on_loopback_only(postgres: Postgres) -> None:
    assert ask(postgres, "SHOW wal_level") == "logical"
    assert ask(postgres, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(postgres, "SHOW server_encoding") == "UTF8"
    assert ask(postgres, "SHOW server_version_num").startswith("18")


def test_options_win_over_the_defaults(make_postgres) -> None:
    server = make_postgres(options={"wal_level": "replica"})
    assert ask(server, "SHOW wal_level") == "replica"
    assert make_postgres(options={"wal_level": "replica"}) is server


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_and_data(make_postgres, mode: str) -> None:
    server = make_postgres(fresh=True)
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    port = server.port
    server.restart(mode, options={"work_mem": "7MB"})
    assert server.port == port
    assert ask(server, "SELECT n FROM kept") == "42"
    assert ask(server, "SHOW work_mem") == "7MB"


def test_hba_lines_come_first(make_postgres) -> None:
    server = make_postgres(hba=["host all refused 127.0.0.1/32 reject"])
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS refused")
        connection.execute("CREATE ROLE refused LOGIN")
    with pytest.raises(psycopg.OperationalError, match="rejects connection"):
        psycopg.connect(server.conninfo(user="refused"))


def test_close_leaves_nothing_behind() -> None:
    server = Postgres()
    server.start()
    root, pid = server.data_dir.parent, server.pid
    server.close()
    server.close()
    assert not root.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_busy_port_is_said_in_the_servers_own_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Postgres(port=taken.getsockname()[1])
        with pytest.raises(UpstreamError, match="Address already in use"):
            server.start()
    assert not server.data_dir.parent.exists()


def test_server_dies_with_a_killed_parent() -> None:
    program = (
        "from distribcache.cli.postgres import Postgres\n"
        "server = Postgres(); server.start()\n"
        "print(server.data_dir.parent, server.pid, flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    folder, pid = parent.stdout.readline().rsplit(" ", 1)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    until(lambda: not Path(folder).exists(), "the watchdog did not clean up")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_unreadable_binaries_are_copied(tmp_path: Path) -> None:
    """A virtual environment below a home directory of mode 0700, used by root."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    package = embedded_bin_dir().parent.parent
    hidden = tmp_path / "home"
    hidden.mkdir(mode=0o700)
    for folder in (package, package.with_name(package.name + ".libs")):
        if folder.is_dir():
            shutil.copytree(folder, hidden / folder.name, symlinks=True)
    with Postgres(bin_dir=hidden / package.name / "pginstall" / "bin") as server:
        assert ask(server, "SELECT 1") == "1"
        assert server.bin_dir.is_relative_to(server.data_dir.parent)


def test_another_versions_binaries(make_postgres, debian_bin: Path) -> None:
    server = make_postgres(bin_dir=debian_bin)
    assert ask(server, "SHOW wal_level") == "logical"


def test_standby_follows(make_postgres) -> None:
    primary = make_postgres(fresh=True)
    standby = make_postgres(standby_of=primary, fresh=True)
    assert ask(standby, "SELECT pg_is_in_recovery()") == "True"
