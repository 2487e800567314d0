"""Real Valkey servers, and tiers on them.

``valkey``          one server for the whole session, which no test may harm
``valkey_cluster``  3 primaries and 3 replicas for the whole session, which no test may harm
``make_valkey``     servers of a test's own, ended with it
``on_loops``        decorates async tests, which get ``make_tier``
``Script``          a server that answers as the test says, for what no real one does
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import pytest
import redis
import uvloop

from distribcache.cli.valkey import Valkey, form_cluster
from distribcache.clock import wall_time
from distribcache.config.tiers import DistributedTier
from distribcache.tiers.base import Digest, Record
from distribcache.tiers.distributed import DistributedCache


def digest(number: int) -> Digest:
    return (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).to_bytes(16, "big")


def record(payload: bytes = b"an answer", seconds: float = 900.0) -> Record:
    now = wall_time()
    return Record(payload, 100, 90, (b"tag one", b"tag two"), b"e" * 16, now, now + seconds, 5_000_000, 1, "t", "oltp")


def payload(number: int, size: int = 200) -> bytes:
    """Distinct for every number, and not all the same byte."""
    return (b"%d-" % number) * (size // len(b"%d-" % number) + 1)


def client(server: Valkey) -> redis.Redis:
    """As the server's administrator; use ``with``."""
    return redis.Redis(server.host, server.port, password=server.password or None, socket_timeout=60.0)


async def until_true(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = 60.0) -> None:
    """Poll a condition, which may be a coroutine function, until it holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return
        assert loop.time() < end, what if isinstance(what, str) else what()
        await asyncio.sleep(0.01)


class MakeTier(Protocol):
    async def __call__(
        self, *servers: Valkey | str, log: list[str] | None = None, **settings: Any
    ) -> DistributedCache: ...


GENEROUS = {"deadline": 5.0, "connect_timeout": 10.0, "replication_factor": 1}
"""For tests that are not about time: a busy machine must not turn a hit into a miss."""


TEST_SECONDS = 250.0


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@contextlib.contextmanager
def cluster_of(primaries: int = 3, replicas: int = 1, **more: Any) -> Iterator[list[Valkey]]:
    servers = [Valkey(clustered=True, **more) for _ in range(primaries * (1 + replicas))]
    try:
        for server in servers:
            server.start()
        form_cluster(servers, replicas, 120.0)
        yield servers
    finally:
        for server in servers:
            server.close()


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[list[Valkey]]:
    with cluster_of(options={"cluster-node-timeout": "60000"}) as servers:  # nobody here goes away
        yield servers


@pytest.fixture
def make_valkey() -> Iterator[Callable[..., Valkey]]:
    made: list[Valkey] = []

    def make(**more: Any) -> Valkey:
        server = Valkey(**more)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.close()


def sockets() -> int:
    """How many are open in this process; 0 where nobody can say."""
    count = 0
    for each in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ():
        with contextlib.suppress(OSError):
            count += str(each.readlink()).startswith("socket:")
    return count


@contextlib.asynccontextmanager
async def tiers() -> AsyncIterator[MakeTier]:
    made: list[DistributedCache] = []
    loop = asyncio.get_running_loop()
    unhandled: list[str] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(repr(context)))
    own = asyncio.all_tasks()
    before = sockets()

    async def make(*servers: Valkey | str, log: list[str] | None = None, **settings: Any) -> DistributedCache:
        known = [server for server in servers if isinstance(server, Valkey)]
        if known and "password" not in settings and "user" not in settings:
            settings["password"] = known[0].password
        peers = ", ".join(server if isinstance(server, str) else server.address for server in servers)
        lines = [] if log is None else log
        tier = DistributedCache(DistributedTier(peers=peers, **{**GENEROUS, **settings}), wall_time, lines.append)
        made.append(tier)
        await tier.start()
        return tier

    yield make
    for tier in made:
        await tier.stop()
    await until_true(lambda: not asyncio.all_tasks() - own, f"tasks are left: {asyncio.all_tasks() - own}")
    await until_true(lambda: sockets() <= before, "connections are left")
    gc.collect()  # so that futures whose exceptions nobody took say so
    await asyncio.sleep(0)
    assert not unhandled, unhandled


def on_loops(*names: str) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Run an async test on each of these event loops. Its parameter ``make_tier`` makes tiers, which are stopped after
    it; then no task, descriptor or unhandled exception of theirs may be left.
    """

    def decorate(test: Callable[..., Any]) -> Callable[..., None]:
        def play(loop_name: str, **fixtures: Any) -> None:
            more = {"loop_name": loop_name} if "loop_name" in signature.parameters else {}

            async def story() -> None:
                # The timer of pytest raises inside a callback of the loop, where nobody hears it.
                async with asyncio.timeout(TEST_SECONDS), tiers() as make:
                    await test(make_tier=make, **more, **fixtures)

            (uvloop.run if loop_name == "uvloop" else asyncio.run)(story())

        signature = inspect.signature(test)
        kept = [each for each in signature.parameters.values() if each.name not in ("make_tier", "loop_name")]
        first = inspect.Parameter("loop_name", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        functools.update_wrapper(play, test)
        play.__signature__ = inspect.Signature([first, *kept])  # type: ignore[attr-defined]
        del play.__wrapped__  # type: ignore[attr-defined]
        return pytest.mark.parametrize("loop_name", names)(play)

    return decorate


async def filled(tier: DistributedCache, count: int = 50, size: int = 200) -> None:
    """Put records 0 to count - 1, each with a payload of its own."""
    for number in range(count):
        assert tier.put(digest(number), record(payload(number, size)))
    assert await tier.flush(60.0), tier.stats()


async def hits(tier: DistributedCache, count: int = 50, size: int = 200) -> int:
    """How many of the records are found; none may have the payload of another."""
    found = 0
    for number in range(count):
        got = await tier.get(digest(number))
        if got is not None:
            assert got.payload == payload(number, size)
            found += 1
    return found


Answer = Callable[[Sequence[bytes]], bytes | None]


class Script:
    """A server whose ``answer(words)`` gives the bytes to send, or None to close the connection.

    Logins, names and the questions about a cluster are answered well unless ``answer`` is asked to do ``everything``.
    """

    def __init__(self, answer: Answer, everything: bool = False) -> None:
        self.answer = answer
        self.everything = everything
        self.port = 0
        self.connections = 0
        self.commands: list[list[bytes]] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        await until_true(lambda: not self._writers, "a connection of the script does not end")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _plain(self, words: list[bytes]) -> bytes | None:
        match words[0]:
            case b"AUTH" | b"CLIENT":
                return b"+OK\r\n"
            case b"CLUSTER":
                return b"-ERR This instance has cluster support disabled\r\n"
            case b"ROLE":
                return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
            case b"GETRANGE" if words[1].endswith(b":hello"):
                return b"$0\r\n\r\n"
        return self.answer(words)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = []
                for _ in range(count):
                    length = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                self.commands.append(words)
                reply = self.answer(words) if self.everything else self._plain(words)
                if reply is None:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
