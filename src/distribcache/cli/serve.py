"""``distribcache serve``: the proxy and its admin endpoint in one process, or with several that serve clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from distribcache import __version__
from distribcache.cli.link import Config, Upstream
from distribcache.coherence.database import Databases
from distribcache.coherence.options import Options
from distribcache.coherence.sharing import SharedDatabases
from distribcache.config import Settings, load, mask
from distribcache.config.tiers import EMBEDDED
from distribcache.config.units import size_text
from distribcache.errors import internal_error
from distribcache.proxy.listener import Listener, address_of, bind, client_tls
from distribcache.proxy.node import Node
from distribcache.proxy.upstream import read_target
from distribcache.proxy.whole import Many, One
from distribcache.proxy.workers import Workers
from distribcache.tiers.stack import check
from distribcache.web.app import Admin

__all__ = ["Crew", "Proxy", "say", "serve", "unforeseen"]


def say(text: str) -> None:
    """One line for the log, on stderr: names and errors of others cannot begin a line of their own or colour it."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))
    with contextlib.suppress(OSError, ValueError):  # a full disk, or nobody who reads, is no reason to stop
        print(f"distribcache: {line}", file=sys.stderr, flush=True)


class Proxy:
    """Everything that ``serve`` runs, to be started and stopped inside an event loop."""

    def __init__(self, settings: Settings, log: Any = say) -> None:
        self.settings = settings
        url = settings.upstream_url()
        self.target = read_target(url, settings.upstream.connect_timeout)
        self.databases = Databases(url, Options.from_settings(settings), log)
        self.node = Node(settings, self.databases, log)
        self.listener = Listener(self.node, self.target, log)
        self.admin = Admin(One(self.node))
        self.address = ("", 0)
        self.admin_address = ("", 0)

    async def start(self) -> None:
        """Accept clients. Raises ConfigError when an address cannot be had; an unreachable server is tried again and
        again.
        """
        self.address = await self.listener.start()
        try:
            self.admin_address = await self.admin.start()
        except BaseException:
            await self.listener.stop()
            raise
        self.databases.acquire(self.target.database)  # followed from the start, for as long as we serve

    async def stop(self) -> None:
        """Let go of everything, the slot on the server included."""
        await self.listener.stop()
        await self.databases.stop()
        await self.admin.stop()


class Crew:
    """The same with several workers: this process follows the databases, they serve the clients."""

    def __init__(self, settings: Settings, log: Any = say) -> None:
        self.settings = settings
        url = settings.upstream_url()
        self.target = read_target(url, settings.upstream.connect_timeout)
        # What is wrong with these is said here, once; each worker would say it again and again.
        client_tls(settings.listen.tls_cert, settings.listen.tls_key)
        check(settings.l2, settings.l3)
        self.databases = SharedDatabases(url, Options.from_settings(settings), log, workers=settings.listen.workers)
        self.sockets = bind("listen", settings.listen.endpoint)
        self.workers = Workers(settings, self.databases, self.sockets, log)
        self.admin = Admin(Many(self.workers))
        self.address = address_of(self.sockets)
        self.admin_address = ("", 0)

    async def start(self) -> None:
        """Returns when every worker lets clients in. Raises ConfigError as ``Proxy.start``."""
        try:
            self.admin_address = await self.admin.start()
        except BaseException:
            for sock in self.sockets:
                sock.close()
            await self.databases.stop()
            raise
        self.databases.acquire(self.target.database)
        await self.workers.start()

    async def stop(self) -> None:
        """Let go of everything, the slot on the server included."""
        for sock in self.sockets:
            sock.close()
        await self.workers.stop()
        await self.databases.stop()
        await self.admin.stop()


def facts(proxy: Proxy | Crew) -> str:
    """One line of resolved facts."""
    settings = proxy.settings
    l2, l3 = settings.l2, settings.l3
    below = f" L2 {size_text(l2.size)} {l2.path}," if l2.path is not None else ""
    below += f" L3 {l3.peers}," if l3.peers else ""
    workers = f"{settings.listen.workers} workers, " if settings.listen.workers > 1 else ""
    return (
        f"distribcache {__version__} on {proxy.address[0]}:{proxy.address[1]}"
        f" -> {mask(str(proxy.target))}, {workers}L1 {size_text(settings.l1.size)} {settings.l1.policy},{below}"
        f" {settings.freshness.consistency.value} consistency, invalidation {settings.freshness.invalidation},"
        f" admin http://{proxy.admin_address[0]}:{proxy.admin_address[1]}/"
    )


def unforeseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line for what nobody caught; a traceback could show data."""
    error = context.get("exception")
    say(internal_error(error).message if isinstance(error, BaseException) else str(context.get("message")))


@contextlib.contextmanager
def with_embedded(settings: Settings) -> Iterator[Settings]:
    """Settings that can be served; where L3 shall be a server of our own, it runs as long as the context."""
    if settings.l3.peers != EMBEDDED:
        yield settings
        return
    from distribcache.cli.valkey import embedded

    server, l3 = embedded(settings.l3)
    with contextlib.closing(server):
        yield settings.model_copy(update={"l3": l3})


async def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    proxy = Proxy(settings) if settings.listen.workers == 1 else Crew(settings)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(unforeseen)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    starting, ending = asyncio.ensure_future(proxy.start()), asyncio.ensure_future(ended.wait())
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
    else:  # asked to end before all workers let clients in
        starting.cancel()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, ValueError):  # as in ``say``
        print(facts(proxy), flush=True)
    await ended.wait()
    await proxy.stop()


def serve(
    upstream: Upstream = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients connect [127.0.0.1:6432]")
    ] = None,
    admin: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Admin HTTP endpoint [127.0.0.1:6433]")
    ] = None,
    workers: Annotated[int | None, typer.Option(metavar="N", help="Processes that serve clients [1]")] = None,
    l2: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Where the SSD tier lies; it writes rows to disk")
    ] = None,
    l3: Annotated[
        str | None, typer.Option(metavar="PEERS", help="Valkey or Redis, as host:port,host:port; or embedded")
    ] = None,
    config: Config = None,
) -> None:
    """Serve PostgreSQL through the cache until SIGINT or SIGTERM.

    These and all other settings can be given in the file, or as DISTRIBCACHE_SECTION_KEY. Exit status 2: a setting is
    wrong, or an address cannot be had. An unreachable or unprepared server is tried again and again, and said.
    """
    overrides = {
        "upstream.url": upstream, "listen.address": listen, "admin.address": admin, "listen.workers": workers,
        "l2.path": l2, "l3.peers": l3,
    }  # fmt: skip
    settings = load(config, {name: value for name, value in overrides.items() if value is not None})
    with with_embedded(settings) as resolved:
        uvloop.run(run(resolved))
