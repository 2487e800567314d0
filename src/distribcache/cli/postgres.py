"""A throw-away PostgreSQL server, started from a folder of binaries.

The demo and the tests need a real server that starts in half a second, listens on loopback only, and leaves nothing
behind. How such a server lives and ends is said in ``cli.embedded``, whose binaries these are in ``binaries``.

Rules:
1. PostgreSQL refuses to run as root, so as root we become another user. Binaries that this user cannot read are copied
   beside the data; modes elsewhere are never changed.
2. Durability is off (``fsync = off``): the data never outlives the process.
3. Nothing is trusted to the environment: PG* variables do not reach the server.

Not for production data; it refuses to keep any.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psycopg.conninfo import make_conninfo

from distribcache.cli.binaries import can_run, copy_into, embedded_bin_dir, unprivileged_user
from distribcache.cli.embedded import EmbeddedServer
from distribcache.errors import UpstreamError

__all__ = ["OPTIONS", "Postgres"]

# What every server of ours runs with; `options` of a server come after and win.
OPTIONS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "30",
    "max_replication_slots": "30",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "shared_buffers": "128MB",
    "fsync": "off",
    "full_page_writes": "off",
    "logging_collector": "off",
    "unix_socket_directories": "",
}

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Postgres(EmbeddedServer):
    """One server with its data directory.

    ``bin_dir`` holds ``initdb`` and ``postgres`` (default: the embedded wheel), ``options`` are server settings,
    ``hba`` are pg_hba.conf lines that come before the one that trusts loopback, ``standby_of`` makes a
    physical standby of another running server instead of a new cluster.
    """

    title = "PostgreSQL"
    prefix = "distribcache-pg-"
    patience_s = 60.0
    farewell = """
kill -QUIT "$1" 2>/dev/null
n=0
while kill -0 "$1" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
"""

    def __init__(
        self,
        *,
        bin_dir: Path | str | None = None,
        options: Mapping[str, str] | None = None,
        hba: Sequence[str] = (),
        port: int = 0,
        standby_of: Postgres | None = None,
    ) -> None:
        super().__init__(port)
        self.bin_dir = Path(bin_dir) if bin_dir is not None else embedded_bin_dir()
        self.options: dict[str, str] = {**OPTIONS, **(options or {})}
        self.hba = tuple(hba)
        self.data_dir = Path()
        self._standby_of = standby_of
        self._user: str | None = None
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
        self._env |= {"LC_ALL": "C", "TZ": "UTC"}

    # -- life ----------------------------------------------------------------------------------------------------

    def stop(self, mode: str = "fast", *, timeout_s: float = 30.0) -> None:
        """Stop the server (``smart``, ``fast`` or ``immediate``) and keep its data. One that lingers is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((_SIGNALS[mode], timeout_s), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        self._end_watchdog()

    def restart(self, mode: str = "fast", *, options: Mapping[str, str] | None = None) -> None:
        """Stop and start again on the same port and data, with ``options`` added to those of before."""
        self.stop(mode)
        self.options.update(options or {})
        self.start()

    # -- facts ---------------------------------------------------------------------------------------------------

    def conninfo(self, dbname: str = "postgres", user: str = "postgres", **more: str | int) -> str:
        """A libpq connection string; ``more`` are further libpq parameters (``password``, ``options`` …)."""
        text = {name: str(value) for name, value in more.items()}
        return make_conninfo(host=self.host, port=str(self.port), dbname=dbname, user=user, **text)

    def url(self, dbname: str = "postgres", user: str = "postgres", password: str = "") -> str:
        """The same as a postgresql:// URL."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}" if password else quote(user, safe="")
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    def binary(self, name: str) -> Path:
        """Path of a program of this server's version, such as ``psql`` or ``pgbench``."""
        return self.bin_dir / name

    # -- how -----------------------------------------------------------------------------------------------------

    def _prepare(self, root: Path) -> None:
        if os.geteuid() == 0:
            self._user = unprivileged_user()
            os.chown(root, pwd.getpwnam(self._user).pw_uid, -1)
        if not can_run(self.bin_dir, self._user, self._how()):
            self.bin_dir = copy_into(root / "binaries", self.bin_dir, self._user)
        self.data_dir = root / "data"
        if self._standby_of is None:
            self._run(
                "initdb", "--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8", "--auth=trust",
                "--username=postgres", "--pgdata", str(self.data_dir),
            )
        else:
            self._run(
                "pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--wal-method=stream",
                "--pgdata", str(self.data_dir), "--dbname", self._standby_of.conninfo(),
            )
        rules = [*self.hba, "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
        (self.data_dir / "pg_hba.conf").write_text("\n".join(rules) + "\n")

    def _command(self, root: Path) -> Sequence[Path | str]:
        settings = {**self.options, "listen_addresses": self.host, "port": str(self.port)}
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [self.binary("postgres"), "-D", str(self.data_dir), *arguments]

    def _ready(self) -> bool:
        """The eighth line of postmaster.pid says so; asking by a connection would leave a session behind."""
        with contextlib.suppress(OSError):
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"
        return False

    def _abandon(self) -> None:
        self.stop("immediate")

    def _how(self) -> dict[str, Any]:
        how = {**super()._how(), "env": self._env}
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            how |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return how

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binary(program), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            **self._how(),
        )
        if done.returncode != 0:
            raise UpstreamError(
                f"{program} failed: " + " | ".join(done.stderr.strip().splitlines()[-5:]), where=str(self.bin_dir),
                hint="the message is PostgreSQL's own; check disk space and shared memory",
            )
