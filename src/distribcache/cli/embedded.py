"""A server of our own: a child process on loopback, in a directory of its own, of which nothing stays behind.

``cli.postgres`` and ``cli.valkey`` say what is started and how one sees that it is ready; the life is the same.

Rules:
1. The server is a direct child process, in a session of its own: Ctrl-C in the terminal reaches us, and we stop it.
2. A watchdog process holds one end of a pipe. When we die, however we die, the pipe closes, the watchdog ends the
   server and removes its directory. (Linux's parent-death signal would not do: it is tied to the thread that started
   the server, and macOS has none.)
3. It listens on loopback only. A port that was not asked for is a free one, tried again when somebody was quicker; once
   it has started it keeps its port, because whoever asks it knows it.
4. What did not start says so with the end of its own log.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from distribcache.clock import now_ns
from distribcache.errors import UpstreamError

__all__ = ["EmbeddedServer", "free_port"]

HOST = "127.0.0.1"
_PORT_TRIES = 5
_LAST_LINES = 5

# Standard input is the pipe whose other end only we hold.
_WATCHDOG = """
cat >/dev/null
{farewell}
rm -rf -- "$2"
"""


class EmbeddedServer(ABC):
    """See the module; a context manager that starts the server and finally removes it. ``port`` 0 picks a free one."""

    title: ClassVar[str]
    """Its name in messages."""
    prefix: ClassVar[str]
    """What the names of its directories begin with."""
    patience_s: ClassVar[float]
    """How long it may take to start."""
    farewell: ClassVar[str]
    """A shell command that ends it when we have died; ``$1`` is its pid."""
    folder: ClassVar[Path | None] = None
    """Where its directory is made; None: where temporary files go."""

    def __init__(self, port: int = 0) -> None:
        self.host = HOST
        self.port = port
        self._port_is_known = port != 0
        self._root: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    # -- what each of them says

    def _prepare(self, root: Path) -> None:  # noqa: B027 - there may be nothing
        """What comes before the first start."""

    @abstractmethod
    def _command(self, root: Path) -> Sequence[Path | str]:
        """The program and its arguments; the port is chosen."""

    def _how(self) -> dict[str, Any]:
        """Further arguments of ``subprocess.Popen``."""
        return {"cwd": self._root, "umask": 0o077}

    @abstractmethod
    def _ready(self) -> bool:
        """Does it answer yet?"""

    @abstractmethod
    def stop(self) -> None:
        """End the process and keep its directory."""

    # -- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it and return when it answers. Raises UpstreamError with the end of its log when it does not."""
        if self._process is not None:
            return
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix=self.prefix, dir=self.folder))
                self._prepare(self._root)
            self._launch(self._root)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it and remove everything it left. May be called twice."""
        self._abandon()
        root, self._root = self._root, None
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)

    # -- facts

    @property
    def pid(self) -> int:
        """The server's process id; 0 when it is stopped."""
        return self._process.pid if self._process is not None else 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def log(self) -> str:
        """What the server has written since it was started."""
        if self._root is None:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return (self._root / "server.log").read_text(errors="replace")
        return ""

    # -- how

    def _launch(self, root: Path) -> None:
        for attempt in range(_PORT_TRIES):
            if not self._port_is_known:
                self.port = free_port()
            try:
                self._launch_once(root)
            except UpstreamError:
                taken = "Address already in use" in self.log()
                if self._port_is_known or not taken or attempt + 1 == _PORT_TRIES:
                    raise
            else:
                self._port_is_known = True
                return

    def _launch_once(self, root: Path) -> None:
        command, how = self._command(root), self._how()
        with (root / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **how
            )
        script = _WATCHDOG.format(farewell=self.farewell)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", script, "distribcache-watchdog", str(self._process.pid), str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **how,
        )  # fmt: skip
        deadline = now_ns() + int(self.patience_s * 1e9)
        while not self._ready():
            ended = True
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                ended = now_ns() > deadline
            if ended:
                last = " | ".join(self.log().strip().splitlines()[-_LAST_LINES:])
                self._abandon()
                raise UpstreamError(
                    f"{self.title} did not start: {last}", where=self.address,
                    hint="look at the server's own words above; a fixed port may be taken",
                )  # fmt: skip

    def _abandon(self) -> None:
        """End it at once: nothing of it is kept."""
        self.stop()

    def _end_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.kill()
            watchdog.wait()
            assert watchdog.stdin is not None
            watchdog.stdin.close()


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
