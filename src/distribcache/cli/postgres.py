"""A throw-away PostgreSQL server, started from a folder of binaries.

The demo and the tests need a real server that starts in half a second, listens on loopback only, and leaves nothing
behind. This module launches it itself; whose binaries these are is said in ``binaries``.

Rules:
1. The server is a direct child process, in a session of its own: Ctrl-C in the terminal reaches us, and we stop it.
2. PostgreSQL refuses to run as root, so as root we become another user. Binaries that this user cannot read are copied
   beside the data; modes elsewhere are never changed.
3. A watchdog process holds one end of a pipe. When we die, however we die, the pipe closes, the watchdog stops the
   server and removes its directory. (Linux's parent-death signal would not do: it is tied to the thread that started
   the server, and macOS has none.)
4. Durability is off (``fsync = off``): the data never outlives the process.
5. Nothing is trusted to the environment: PG* variables do not reach the server.

Not for production data; it refuses to keep any.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from psycopg.conninfo import make_conninfo

from distribcache.cli.binaries import can_run, copy_into, embedded_bin_dir, unprivileged_user
from distribcache.clock import now_ns
from distribcache.errors import UpstreamError

__all__ = ["OPTIONS", "Postgres"]

HOST = "127.0.0.1"

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
_READY_SECONDS = 60.0
_PORT_TRIES = 5

# $1: pid of the server, $2: its directory. Standard input is the pipe whose other end only we hold.
_WATCHDOG = """
cat >/dev/null
kill -QUIT "$1" 2>/dev/null
n=0
while kill -0 "$1" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
rm -rf -- "$2"
"""


class Postgres:
    """One server with its data directory; a context manager that starts and finally removes it.

    ``bin_dir`` holds ``initdb`` and ``postgres`` (default: the embedded wheel), ``options`` are server settings,
    ``hba`` are pg_hba.conf lines that come before the one that trusts loopback, ``port`` 0 picks a free one,
    ``standby_of`` makes a physical standby of another running server instead of a new cluster.
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
        self.bin_dir = Path(bin_dir) if bin_dir is not None else embedded_bin_dir()
        self.options: dict[str, str] = {**OPTIONS, **(options or {})}
        self.hba = tuple(hba)
        self.host = HOST
        self.port = port
        self.data_dir = Path()
        self._standby_of = standby_of
        self._fixed_port = port != 0
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        self._env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
        self._env |= {"LC_ALL": "C", "TZ": "UTC"}

    # -- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._root is None:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Make the data directory if there is none yet, start the server and return when it accepts connections.

        Raises UpstreamError with the end of the server's log when it does not come up.
        """
        if self._process is not None:
            return
        try:
            if self._root is None:
                self._initialise()
            self._launch()
        except BaseException:
            self.close()
            raise

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

    def close(self) -> None:
        """Stop the server and remove everything it left. May be called twice."""
        self.stop("immediate")
        root, self._root = self._root, None
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The postmaster's process id; 0 when the server is stopped."""
        return self._process.pid if self._process is not None else 0

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

    def log(self) -> str:
        """What the server has written so far."""
        if self._root is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return (self._root / "server.log").read_text(errors="replace")
        return ""

    # -- how -----------------------------------------------------------------------------------------------------

    def _initialise(self) -> None:
        if os.geteuid() == 0:
            self._user = unprivileged_user()
        self._root = Path(tempfile.mkdtemp(prefix="distribcache-pg-"))
        if self._user is not None:
            os.chown(self._root, pwd.getpwnam(self._user).pw_uid, -1)
        if not can_run(self.bin_dir, self._user, self._as_user()):
            self.bin_dir = copy_into(self._root / "binaries", self.bin_dir, self._user)
        self.data_dir = self._root / "data"
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

    def _launch(self) -> None:
        for attempt in range(_PORT_TRIES):
            if not self.port:
                self.port = _free_port()
            try:
                self._launch_once()
            except UpstreamError as error:
                taken = "could not bind" in str(error) and not self._fixed_port and attempt + 1 < _PORT_TRIES
                if not taken:
                    raise
                self.port = 0
            else:
                # A restart keeps the port: clients and proxies know it.
                self._fixed_port = True
                return

    def _launch_once(self) -> None:
        assert self._root is not None
        settings = {**self.options, "listen_addresses": self.host, "port": str(self.port)}
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self._root / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [self.binary("postgres"), "-D", self.data_dir, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as_user(),
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "distribcache-watchdog", str(self._process.pid), str(self._root)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            **self._as_user(),
        )
        deadline = now_ns() + int(_READY_SECONDS * 1e9)
        while not self._ready():
            ended = True
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                ended = now_ns() > deadline
            if ended:
                last = self.log().strip().splitlines()[-5:]
                self.stop("immediate")
                raise UpstreamError(
                    "PostgreSQL did not start: " + " | ".join(last), where=f"{self.host}:{self.port}",
                    hint="look at the server's own words above; a fixed port may be taken",
                )

    def _ready(self) -> bool:
        """The eighth line of postmaster.pid says so; asking by a connection would leave a session behind."""
        with contextlib.suppress(OSError):
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"
        return False

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.kill()
            watchdog.wait()
            assert watchdog.stdin is not None
            watchdog.stdin.close()

    def _as_user(self) -> dict[str, Any]:
        how: dict[str, Any] = {"env": self._env, "cwd": self._root, "umask": 0o077}
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            how |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return how

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.binary(program), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            **self._as_user(),
        )
        if done.returncode != 0:
            raise UpstreamError(
                f"{program} failed: " + " | ".join(done.stderr.strip().splitlines()[-5:]), where=str(self.bin_dir),
                hint="the message is PostgreSQL's own; check disk space and shared memory",
            )


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
