"""PgBouncer in transaction mode in front of a test's database."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_postgres import Database
from wait import until

_TRIES = 5
"""Ports that are tried: between our choice and PgBouncer's bind another program may have taken one."""


@contextmanager
def pgbouncer(database: Database) -> Iterator[int]:
    """Its port; skips the test where PgBouncer is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    folder = Path(tempfile.mkdtemp(prefix="distribcache-pooler-"))
    try:
        for _ in range(_TRIES):
            port = _write(folder, database)
            process = _start(program, folder)
            try:
                until(lambda log=folder / "log", p=process: p.poll() is not None or "process up" in log.read_text())
                if process.poll() is None:
                    yield port
                    return
            finally:
                process.terminate()
                process.wait(60)
        raise AssertionError((folder / "log").read_text())
    finally:
        shutil.rmtree(folder)


def _write(folder: Path, database: Database) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    (folder / "ini").write_text(
        f"[databases]\n{database.name} = user=postgres host=127.0.0.1 port={database.server.port}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        "pool_mode=transaction\nignore_startup_parameters=extra_float_digits,options\nmax_client_conn=200\n"
    )
    return port


def _start(program: str, folder: Path) -> subprocess.Popen[bytes]:
    """It refuses to run as root."""
    with (folder / "log").open("ab") as log:
        if os.geteuid() != 0:
            return subprocess.Popen([program, str(folder / "ini")], stdout=log, stderr=log)
        account = pwd.getpwnam("nobody")
        os.chown(folder, account.pw_uid, account.pw_gid)
        (folder / "ini").chmod(0o644)
        return subprocess.Popen(
            [program, str(folder / "ini")],
            stdout=log, stderr=log, user=account.pw_uid, group=account.pw_gid, extra_groups=[],
        )  # fmt: skip
