"""Programs that a measurement or a foreign test suite needs for a while: the proxy, its rivals, a canned responder.

Rules:
1. Each listens on loopback, on a port that was free a moment ago, with its configuration in a folder of its own.
2. A program is a direct child. It is stopped by its own process id, always, and it is an error when it does not answer.
3. PgBouncer and pgpool-II refuse to run as root: then they run as the user ``postgres``.
4. What is not installed is ``None`` in ``found``; nothing is installed behind anybody's back.

The PostgreSQL server itself comes from ``distribcache.cli.postgres``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

__all__ = [
    "HERE", "Program", "canned", "compiled_package", "distribcache", "free_port", "pg_bin", "pgbouncer", "pgpool",
    "spawn", "stats", "wait_serving", "which",
]  # fmt: skip

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
SERVER_USER = "postgres"


def free_port() -> int:
    """A TCP port of loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def which(name: str) -> str | None:
    """Path of a program, looked for in the folders of servers too; None when it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    return shutil.which(name, path=path)


def pg_bin() -> Path | None:
    """Folder of the newest PostgreSQL that this machine has installed; PG_BIN wins. None when there is none."""
    if given := os.environ.get("PG_BIN"):
        return Path(given)
    debian = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "postgres").exists()]
    if debian:
        return max(debian, key=lambda p: float(p.parent.name))
    found = which("postgres")
    return Path(found).resolve().parent if found else None


class Program:
    """A child process that listens on ``port`` of loopback. A context manager; also ``start`` and ``stop``."""

    def __init__(
        self, name: str, argv: Sequence[str | Path], port: int, work: Path, *,
        as_server_user: bool = False, env: Mapping[str, str] | None = None, ready_s: float = 30.0,
    ) -> None:
        self.name = name
        self.argv = [str(part) for part in argv]
        self.port = port
        self.log_path = work / f"{name}.log"
        self._work = work
        self._env = {**os.environ, **(env or {})}
        self._ready_s = ready_s
        self._process: subprocess.Popen[bytes] | None = None
        self._how: dict[str, Any] = {}
        if as_server_user and os.geteuid() == 0:
            account = pwd.getpwnam(SERVER_USER)
            self._how = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            _give(work, account.pw_uid)

    @property
    def pid(self) -> int:
        """Process id, 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def conninfo(self, dbname: str = "postgres", user: str = "postgres") -> str:
        return f"host={HOST} port={self.port} dbname={dbname} user={user} sslmode=disable"

    def log(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def start(self) -> Self:
        """Return when the port accepts connections. Raises RuntimeError with the end of its log otherwise."""
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._work, env=self._env,
                start_new_session=True, **self._how,
            )
        deadline = time.monotonic() + self._ready_s
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start: " + " | ".join(self.log().strip().splitlines()[-8:]))
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Stop it by its process id: SIGINT, then SIGTERM, then SIGKILL to its own process group."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        # It was started as the leader of a session of its own: nobody else's process is in this group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5.0)

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
        return True
    return False


def _give(folder: Path, uid: int) -> None:
    """Let another user work in ``folder``, also when a parent of it is private to us."""
    os.chown(folder, uid, -1)
    for path in folder.rglob("*"):
        os.chown(path, uid, -1)


def _folder(work: Path, name: str) -> Path:
    folder = work / name
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


def distribcache(
    upstream_url: str, work: Path, *, arguments: Sequence[str] = (), command: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None, name: str = "distribcache",
) -> Program:
    """``distribcache serve`` of this interpreter; ``command`` replaces the words before the options."""
    port, admin = free_port(), free_port()
    script = Path(sys.executable).with_name("distribcache")
    words = list(command) or ([script, "serve"] if script.exists() else [sys.executable, "-m", "distribcache", "serve"])
    argv = [*words, "--upstream", upstream_url, "--listen", f"{HOST}:{port}", "--admin", f"{HOST}:{admin}", *arguments]
    return Program(name, argv, port, _folder(work, name), env=env)


def compiled_package(work: Path) -> Path:
    """A folder with distribcache in it, its hot path compiled now. Raises RuntimeError where that cannot be done."""
    folder = work / "compiled"
    done = subprocess.run(
        [sys.executable, HERE.parent / "hatch_build.py", folder], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError("not compiled: " + " ".join(done.stderr.split()[-40:]))
    return folder


def pgbouncer(upstream_port: int, work: Path, *, clients: int = 1200) -> Program:
    """PgBouncer in session mode, trusting loopback."""
    program = which("pgbouncer")
    assert program, "pgbouncer is not installed"
    port, folder = free_port(), _folder(work, "pgbouncer")
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
* = host={HOST} port={upstream_port}
[pgbouncer]
listen_addr = {HOST}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = session
max_client_conn = {clients + 50}
default_pool_size = {clients}
server_idle_timeout = 5
server_reset_query =
ignore_startup_parameters = extra_float_digits,options
log_connections = 0
log_disconnections = 0
"""
    )
    return Program("pgbouncer", [program, folder / "pgbouncer.ini"], port, folder, as_server_user=True)


def pgpool(upstream_port: int, work: Path, *, clients: int = 70) -> Program:
    """pgpool-II before one server, with its query cache in shared memory and automatic invalidation."""
    program = which("pgpool")
    assert program, "pgpool is not installed"
    port, pcp, folder = free_port(), free_port(), _folder(work, "pgpool")
    (folder / "oid").mkdir(exist_ok=True)
    for empty in ("pcp.conf", "pool_hba.conf", "key"):
        (folder / empty).write_text("")
    (folder / "pgpool.conf").write_text(
        f"""listen_addresses = '{HOST}'
port = {port}
pcp_listen_addresses = '{HOST}'
pcp_port = {pcp}
socket_dir = '{folder}'
unix_socket_directories = '{folder}'
pcp_socket_dir = '{folder}'
pid_file_name = '{folder}/pgpool.pid'
logdir = '{folder}'
work_dir = '{folder}'
backend_clustering_mode = 'raw'
backend_hostname0 = '{HOST}'
backend_port0 = {upstream_port}
backend_weight0 = 1
backend_flag0 = 'DISALLOW_TO_FAILOVER'
enable_pool_hba = off
pool_passwd = ''
num_init_children = {clients}
max_pool = 1
child_life_time = 0
load_balance_mode = off
sr_check_period = 0
health_check_period = 0
use_watchdog = off
memory_cache_enabled = on
memqcache_method = 'shmem'
memqcache_total_size = 128MB
memqcache_max_num_cache = 200000
memqcache_expire = 0
memqcache_auto_cache_invalidation = on
memqcache_maxcache = 400kB
memqcache_cache_block_size = 1MB
memqcache_oiddir = '{folder}/oid'
"""
    )
    files = {"-f": "pgpool.conf", "-a": "pool_hba.conf", "-F": "pcp.conf", "-k": "key"}
    argv = [program, "-n", *(part for flag, name in files.items() for part in (flag, folder / name))]
    return Program("pgpool", argv, port, folder, as_server_user=True)


def canned(work: Path) -> Program | None:
    """The responder of canned.c, compiled now; None without a C compiler or without epoll."""
    compiler = which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    port, folder = free_port(), _folder(work, "canned")
    binary = folder / "canned"
    subprocess.run([compiler, "-O2", "-Wall", "-o", binary, HERE / "canned.c"], check=True)
    return Program("canned", [binary, str(port)], port, folder)


def stats(proxy: Program | str) -> dict[str, float]:
    """The counters of a running distribcache: the rows of ``SHOW distribcache.stats``. ``proxy`` may be a conninfo."""
    conninfo = proxy if isinstance(proxy, str) else proxy.conninfo()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        rows = connection.execute("SHOW distribcache.stats").fetchall()
    numbers: dict[str, float] = {}
    for name, value in rows:
        with contextlib.suppress(TypeError, ValueError):
            numbers[str(name)] = float(value)
    return numbers


def wait_serving(proxy: Program, seconds: float = 30.0) -> None:
    """Return when hits are served. Raises RuntimeError with the end of its log otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        with psycopg.connect(proxy.conninfo(), autocommit=True) as connection:
            if ("serving", "True") in connection.execute("SHOW distribcache.freshness").fetchall():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{proxy.name} does not serve: {proxy.log()[-500:]}")
        time.sleep(0.1)


def spawn(results: Any, blamed: Callable[[str], object], work: Callable[..., object], *arguments: object) -> Any:
    """A process that puts what ``work`` returns into ``results``; of one that ended by an error, ``blamed`` of it.

    Ctrl-C is for its parent.
    """

    def body() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            results.put(work(*arguments))
        except BaseException as error:
            results.put(blamed(f"{work.__name__}: {type(error).__name__}: {error}"[:300]))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    return process
