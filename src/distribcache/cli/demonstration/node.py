"""The cache of the demo: ``distribcache serve`` with its defaults, as anybody would run it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from types import TracebackType
from typing import Any, Self

from distribcache.cli.admin import fetch
from distribcache.cli.demonstration.children import Child
from distribcache.clock import now_ns
from distribcache.errors import ConfigError, UpstreamError

__all__ = ["Node", "check_port"]

_FACTS = re.compile(r"distribcache \S+ on ([\d.]+):(\d+) .* admin http://([\d.]+:\d+)/")
_HOST = "127.0.0.1"
_USUAL_PORT = 6432
_START_S = 30.0
_SERVING_NS = 30_000_000_000
_ASK_AGAIN_S = 0.05


class Node:
    """A running one; a context manager that ends it. ``port`` 0: the usual one if it is free.

    ``module`` is what runs it, by default as a process that ends with its parent.
    """

    def __init__(self, url: str, port: int, *, module: str = "distribcache.cli.demonstration.tether") -> None:
        try:
            self._begin(url, port or _free(_USUAL_PORT), module)
        except ConfigError as error:
            if port or "cannot listen" not in error.message:
                raise
            self._begin(url, 0, module)  # somebody else has taken it meanwhile

    def _begin(self, url: str, port: int, module: str) -> None:
        addresses = ["--listen", f"{_HOST}:{port}", "--admin", f"{_HOST}:0"]
        self._child = Child(module, ["serve", "--upstream", url, *addresses, "--config", os.devnull])
        try:
            said = self._child.line(_START_S)
            facts = _FACTS.match(said or "")
            if facts is None:
                self._child.stop()
                complaint = self._child.complaint().removeprefix("distribcache: ")
                raise ConfigError(complaint or f"distribcache serve said {said!r}", where="demo")
        except BaseException:
            self._child.stop()
            raise
        self.host, self.port, self._admin = facts[1], int(facts[2]), facts[3]

    def wait_until_serving(self) -> None:
        """Until hits are served. Raises UpstreamError, with the cache's own reason, when that does not come."""
        deadline = now_ns() + _SERVING_NS
        while not (database := self._database()).get("serving"):
            if now_ns() > deadline:
                raise UpstreamError(
                    f"the cache does not serve: {database.get('reason')} {database.get('detail') or ''}".strip(),
                    where=f"{self.host}:{self.port}", hint=str(database.get("hint") or self._child.complaint()),
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.process.wait(_ASK_AGAIN_S)
                raise UpstreamError("distribcache serve ended", where=self._admin, hint=self._child.complaint())

    def oldest_possible_ms(self) -> float:
        """For how long, at most, the freshness of a hit had not been proved again, by the cache's own count."""
        return float(fetch(self._admin)["statistics"]["oldest_answer_ms"])

    def wait(self) -> None:
        """Until it ends."""
        self._child.process.wait()

    def _database(self) -> dict[str, Any]:
        found: dict[str, Any] = next(iter(fetch(self._admin)["databases"]), {})
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()


def check_port(port: int) -> None:
    """Raises ConfigError when something listens there already: better before a shop is made than after."""
    if port and not _free(port):
        raise ConfigError("something listens there already", where=f"--port {port}", hint="choose another, or none")


def _free(port: int) -> int:
    """The port if nothing listens there, else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return 0
    return port
