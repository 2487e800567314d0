"""Processes that the demo starts and always ends.

Rules:
1. A child's standard input is a pipe that only we hold (see ``tether``): when we die, it ends.
2. A child has a session of its own: Ctrl-C in the terminal reaches the demo alone, which ends its children in order.
3. Nothing of the environment changes what is measured: PG* variables, DISTRIBCACHE_* variables and a
   ``distribcache.toml`` of the current directory do not reach a child.
4. What a child says on standard error is kept, its last lines, to be told when it fails.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

__all__ = ["Child"]

_STOP_S = 10.0


class Child:
    """``python -m module arguments``; a context manager that ends it."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISTRIBCACHE_"))}
        self.process = subprocess.Popen(
            # -P: a module of the current directory must not stand in for one of ours.
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace", env=kept, start_new_session=True,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=20)
        self._readers = [
            threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._read_errors, daemon=True)
        ]
        for reader in self._readers:
            reader.start()

    def line(self, timeout_s: float) -> str | None:
        """The next line of its standard output; empty when it ended, None when there was none in time."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def complaint(self) -> str:
        """The last lines of its standard error."""
        return "\n".join(self._errors)

    def stop(self) -> None:
        """End it and wait for it. May be called twice."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(1)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line.rstrip("\n"))
