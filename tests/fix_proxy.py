"""The proxy as its users run it: ``distribcache serve`` in a process of its own.

``make_proxy``   ``make_proxy(url, {"l1.policy": "lru"})``; ended with the test. Waits until clients are accepted, and by
                 default until hits are served.
``proxy``        one in front of the test's ``database``, serving
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fix_postgres import Database
from wait import until

_FACTS = re.compile(r"distribcache \S+ on ([\d.]+):(\d+) .* admin http://([\d.]+):(\d+)/")


@dataclass
class ProxyProcess:
    """A running ``distribcache serve``."""

    process: subprocess.Popen[str]
    database: str
    host: str = ""
    port: int = 0
    admin: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def conninfo(self, user: str = "postgres", dbname: str | None = None, **more: object) -> str:
        parts = {"host": self.host, "port": self.port, "user": user, "dbname": dbname or self.database, **more}
        return " ".join(f"{key}='{value}'" for key, value in parts.items())

    def url(self, user: str = "postgres", dbname: str | None = None, driver: str = "postgresql") -> str:
        return f"{driver}://{user}@{self.host}:{self.port}/{dbname or self.database}"

    def connect(self, user: str = "postgres", *, autocommit: bool = True, **more: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(user), autocommit=autocommit, **more)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin}/api/status", timeout=5) as reply:
            status: dict[str, Any] = json.load(reply)
            return status

    def statistics(self) -> dict[str, float]:
        return dict(self.status()["statistics"])

    def serving(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.admin}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except urllib.error.HTTPError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


def last(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """``SHOW distribcache.last`` as a dict."""
    cursor = connection.execute("SHOW distribcache.last")
    row = cursor.fetchone()
    assert row is not None and cursor.description is not None
    return dict(zip((column.name for column in cursor.description), row, strict=True))


MakeProxy = Callable[..., ProxyProcess]


@pytest.fixture
def make_proxy() -> Iterator[MakeProxy]:
    running: list[ProxyProcess] = []

    def make(
        url: str, settings: Mapping[str, str] | None = None, *, serving: bool = True, module: str = "distribcache"
    ) -> ProxyProcess:
        environment = dict(os.environ)
        for name, value in (settings or {}).items():
            environment["DISTRIBCACHE_" + name.upper().replace(".", "_")] = value
        command = [sys.executable, "-m", module, "serve", "--upstream", url, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        proxy = ProxyProcess(process, url.rpartition("/")[2].partition("?")[0])
        running.append(proxy)
        assert process.stdout is not None and process.stderr is not None
        threading.Thread(target=lambda: proxy.log.extend(process.stderr or ()), daemon=True).start()
        facts = _FACTS.match(process.stdout.readline())
        assert facts is not None, "".join(proxy.log)
        proxy.host, proxy.port = facts[1], int(facts[2])
        proxy.admin = f"http://{facts[3]}:{facts[4]}"
        if serving:
            until(proxy.serving, lambda: f"never serving: {proxy.status()['databases']} {''.join(proxy.log)}")
        return proxy

    yield make
    for proxy in running:
        proxy.stop()


@pytest.fixture
def proxy(database: Database, make_proxy: MakeProxy) -> ProxyProcess:
    return make_proxy(database.url())
