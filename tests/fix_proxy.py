"""The proxy as its users run it: ``distribcache serve`` in a process of its own.

``make_proxy``   ``make_proxy(url, {"l1.policy": "lru"})``; ended with the test. Waits until clients are accepted, and
                 by default until hits are served.
``make_inner_proxy``  the same inside the test's process, for tests that mute a rule
``proxy``        one in front of the test's ``database``, serving
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import psycopg
import pytest
from fix_postgres import Database
from fix_telling import Witness, witnesses
from wait import until

from distribcache.cli.serve import Proxy
from distribcache.clock import now_ns
from distribcache.coherence.live import DatabaseCoherence
from distribcache.coherence.looking import Looking
from distribcache.coherence.reader import Reader
from distribcache.config import load
from distribcache.proxy import lookup

lookup._PATIENCE = 30.0
"""In this process: a busy machine may need more than a second for an analysis."""

_BY_ITSELF = 5
"""psycopg's own default."""
_NEVER = 1 << 30

_FACTS = re.compile(r"distribcache \S+ on ([\d.]+):(\d+) .* admin http://([\d.]+):(\d+)/")


@dataclass(eq=False)
class ProxyProcess(Witness):
    """A running ``distribcache serve``."""

    process: subprocess.Popen[str]
    database: str
    host: str = ""
    port: int = 0
    admin: str = ""
    log: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

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

    def connect_at_last(self) -> psycopg.Connection[Any]:
        """As ``connect``: again, where a busy machine took longer for a login than the proxy allows."""
        found: list[psycopg.Connection[Any]] = []

        def let_in() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                found.append(self.connect())
            return bool(found)

        until(let_in, "never let in")
        return found[0]

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.admin}/api/status", timeout=30) as reply:
            status: dict[str, Any] = json.load(reply)
            return status

    def statistics(self) -> dict[str, float]:
        return dict(self.status()["statistics"])

    def serving(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.admin}/readyz", timeout=30) as reply:
                return bool(reply.status == 200)
        except urllib.error.HTTPError:
            return False

    def tell(self) -> str:
        if self.process.poll() is not None:
            return f"has ended: {self.process.returncode}\n" + "".join(self.log[-20:])
        with urllib.request.urlopen(f"{self.admin}/api/status", timeout=5) as reply:
            status = json.load(reply)
        seen = {name: value for name, value in status["statistics"].items() if value}
        return "\n".join([str(seen), *map(str, status["databases"]), *self.log[-20:]])

    def accepts(self) -> bool:
        """Does somebody new get in?"""
        try:
            with self.connect():
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        if self.reader is not None:
            self.reader.join(30)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def last(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """``SHOW distribcache.last`` as a dict."""
    cursor = connection.execute("SHOW distribcache.last")
    row = cursor.fetchone()
    assert row is not None and cursor.description is not None
    return dict(zip((column.name for column in cursor.description), row, strict=True))


def until_hit(connection: psycopg.Connection[Any], sql: str, params: Sequence[object] | None = None) -> list[Any]:
    """Repeat a read until it is answered from memory: the first may come before anything can be filled.

    From then on psycopg prepares only what it is told to: by itself it would after five times, so once more the same
    read would go upstream where a busy machine took so many.
    """
    rows: list[Any] = []
    if connection.prepare_threshold == _BY_ITSELF:
        connection.prepare_threshold = _NEVER

    def hit() -> bool:
        rows[:] = connection.execute(sql, params).fetchall()
        return bool(last(connection)["status"] == "hit")

    until(hit, lambda: f"never a hit: {last(connection)}")
    return rows


def _gather(stream: IO[str], log: list[str]) -> None:
    for line in stream:
        log.append(line)


MakeProxy = Callable[..., ProxyProcess]


@contextlib.contextmanager
def proxies() -> Iterator[MakeProxy]:
    """Start proxies that live as long as the context: for fixtures of any scope."""
    running: list[ProxyProcess] = []

    def make(
        url: str, settings: Mapping[str, str] | None = None, *, serving: bool = True, module: str = "distribcache"
    ) -> ProxyProcess:
        environment = dict(os.environ)
        for name, value in (settings or {}).items():
            environment["DISTRIBCACHE_" + name.upper().replace(".", "_")] = value
        command = [
            sys.executable,
            "-m",
            *module.split(),
            "serve",
            "--upstream",
            url,
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        proxy = ProxyProcess(process, url.rpartition("/")[2].partition("?")[0])
        running.append(proxy)
        witnesses.add(proxy)
        assert process.stdout is not None and process.stderr is not None
        reader = threading.Thread(target=_gather, args=(process.stderr, proxy.log), daemon=True)
        reader.start()
        proxy.reader = reader
        facts = _FACTS.match(process.stdout.readline())
        assert facts is not None, "".join(proxy.log)
        proxy.host, proxy.port = facts[1], int(facts[2])
        proxy.admin = f"http://{facts[3]}:{facts[4]}"
        if serving:
            until(proxy.serving, lambda: f"never serving: {proxy.status()['databases']} {''.join(proxy.log)}")
        return proxy

    try:
        yield make
    finally:
        for proxy in running:
            proxy.stop()


@pytest.fixture
def make_proxy() -> Iterator[MakeProxy]:
    with proxies() as make:
        yield make


@pytest.fixture
def proxy(database: Database, make_proxy: MakeProxy) -> ProxyProcess:
    return make_proxy(database.url())


class InnerProxy(Witness):
    """The proxy in a thread of the test's own process, so that a test can look inside, mute a rule or hold the
    stream.
    """

    def __init__(self, url: str, settings: Mapping[str, str]) -> None:
        self.database = url.rpartition("/")[2].partition("?")[0]
        self.log: list[str] = []
        self._settings = load(
            None, {"upstream.url": url, "listen.address": "127.0.0.1:0", "admin.address": "127.0.0.1:0", **settings}
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.proxy = Proxy(self._settings, self.log.append)
        self.call(self.proxy.start())
        self.host, self.port = self.proxy.address
        witnesses.add(self)
        self.call(self._enter())
        until(self.settled, lambda: f"never serving and settled: {self.log}")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _enter(self) -> None:
        """As the first client would: from here on it can be known what code there is, and ``settled`` waits for it."""
        self.proxy.node.enter(self.database)
        self.proxy.node.leave(self.database)

    def call(self, work: Coroutine[Any, Any, Any], seconds: float = 60.0) -> Any:
        """Run a coroutine on the proxy's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def conninfo(self, user: str = "postgres", **more: object) -> str:
        parts = {"host": self.host, "port": self.port, "user": user, "dbname": self.database, **more}
        return " ".join(f"{key}='{value}'" for key, value in parts.items())

    def connect(self, user: str = "postgres", *, autocommit: bool = True, **more: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo(user), autocommit=autocommit, **more)

    def settled(self) -> bool:
        """Hits are served, the second look after the last change of the catalogue is over, and what code there is in it
        is known: until then a write may be an alarm.
        """
        for known in list(self.proxy.node._known.values()):
            followed_now = isinstance(known.coherence, DatabaseCoherence) and known.coherence.serving
            if followed_now and not known.analyst.definers.known:
                self._loop.call_soon_threadsafe(known.analyst.definers.learn)
                return False
        followed = [each for each in self.proxy.databases if isinstance(each, DatabaseCoherence)]
        return any(each.serving and not each.coverage.settle_at for each in followed)

    def hold_stream(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on nothing of the change stream arrives, as if it were late: after the next commit W is behind.

        Nor does the clock bring a look at the catalogue: one that sees what the server has counted late would be an
        alarm, which would not end before the stream goes on.
        """
        look = Looking._look

        async def when_asked(looking: Looking) -> bool:
            asked = looking._poll_wanted or looking.coverage.wants_reread(now_ns())
            return asked and await look(looking)

        monkeypatch.setattr(Looking, "_look", when_asked)
        monkeypatch.setattr(Reader, "_slice", lambda *_: False)
        self.call(asyncio.sleep(0))  # a slice that had begun is over

    def tell(self) -> str:
        totals = self.proxy.node.totals
        lines = [f"misses {dict(totals.misses)}, bypasses {dict(totals.bypasses)}, refusals {dict(totals.refusals)}"]
        lines += [f"hits {session.hot.hits}, last {session.outcome}" for session in list(self.proxy.node.live)]
        for each in list(self.proxy.databases):
            seen = {name: value for name, value in each.report().items() if value}
            lines.append(f"{each.name}: {seen}")
        return "\n".join([*lines, *self.log[-20:]])

    def stop(self) -> None:
        """May be called twice."""
        if self._loop.is_closed():
            return
        self.call(self.proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


MakeInnerProxy = Callable[..., InnerProxy]


@pytest.fixture
def make_inner_proxy() -> Iterator[MakeInnerProxy]:
    running: list[InnerProxy] = []

    def make(url: str, settings: Mapping[str, str] | None = None) -> InnerProxy:
        proxy = InnerProxy(url, settings or {})
        running.append(proxy)
        return proxy

    yield make
    for proxy in running:
        proxy.stop()
