"""``distribcache serve``: the proxy and its admin endpoint in one process."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from distribcache import __version__
from distribcache.coherence.database import Databases
from distribcache.coherence.options import Options
from distribcache.config import Settings, load, mask
from distribcache.config.units import size_text
from distribcache.errors import internal_error
from distribcache.proxy.listener import Listener
from distribcache.proxy.node import Node
from distribcache.proxy.upstream import read_target
from distribcache.proxy.whole import One
from distribcache.web.app import Admin

__all__ = ["Proxy", "serve"]


def say(text: str) -> None:
    """One line for the log, on stderr: names and errors of others cannot begin a line of their own or colour it."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in " ".join(text.split()))
    print(f"distribcache: {line}", file=sys.stderr, flush=True)


class Proxy:
    """Everything that ``serve`` runs, to be started and stopped inside an event loop."""

    def __init__(self, settings: Settings, log: Any = say) -> None:
        self.settings = settings
        url = settings.upstream_url()
        self.target = read_target(url, settings.upstream.connect_timeout)
        options = Options.from_settings(
            settings.freshness,
            connect_timeout_s=settings.upstream.connect_timeout,
            tightest_s=min(settings.staleness.bounds.values(), default=None),
        )
        self.databases = Databases(url, options, log)
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

    def facts(self) -> str:
        """One line of resolved facts."""
        settings = self.settings
        return (
            f"distribcache {__version__} on {self.address[0]}:{self.address[1]}"
            f" -> {mask(str(self.target))}, L1 {size_text(settings.l1.size)} {settings.l1.policy},"
            f" {settings.freshness.consistency.value} consistency, invalidation {settings.freshness.invalidation},"
            f" admin http://{self.admin_address[0]}:{self.admin_address[1]}/"
        )


def _unforeseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line for what nobody caught; a traceback could show data."""
    error = context.get("exception")
    say(internal_error(error).message if isinstance(error, BaseException) else str(context.get("message")))


async def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    proxy = Proxy(settings)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unforeseen)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await proxy.start()
    gc.collect()
    gc.freeze()
    print(proxy.facts(), flush=True)
    await ended.wait()
    await proxy.stop()


def serve(
    upstream: Annotated[str | None, typer.Option(help="PostgreSQL, as postgresql://user:password@host:5432/db")] = None,
    listen: Annotated[str | None, typer.Option(help="Where clients connect [127.0.0.1:6432]")] = None,
    admin: Annotated[str | None, typer.Option(help="Admin HTTP endpoint [127.0.0.1:6433]")] = None,
    config: Annotated[Path | None, typer.Option(help="A distribcache.toml")] = None,
) -> None:
    """Serve PostgreSQL through the cache."""
    overrides = {"upstream.url": upstream, "listen.address": listen, "admin.address": admin}
    settings = load(config, {name: value for name, value in overrides.items() if value is not None})
    uvloop.run(run(settings))
