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


@contextmanager
def pgbouncer(database: Database) -> Iterator[int]:
    """Its port; skips the test where PgBouncer is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="distribcache-pooler-"))
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={database.server.port}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\n"
        "pool_mode=transaction\nignore_startup_parameters=extra_float_digits,options\nmax_client_conn=200\n"
        "* = \n".replace("* = \n", "")
    )
    user: dict[str, object] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        (folder / "ini").chmod(0o644)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    text = (folder / "ini").read_text().replace("* = host", f"{database.name} = user=postgres host")
    (folder / "ini").write_text(text)
    process = subprocess.Popen(
        [program, str(folder / "ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,  # type: ignore[call-overload]
    )

    def listens() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    try:
        until(listens)
        yield port
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)
