"""The admin endpoint: health, readiness, counters, audits. On loopback by default; it shows no SQL.

``Host`` is checked, so a page elsewhere cannot read it through a rebound name (DNS rebinding). The one thing that it
changes is how many hits are audited; that takes a request from this machine itself, and one that no page can make a
browser send: with a content type that would have to be asked for first, and without an ``Origin``.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from typing import Any

import uvicorn
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from distribcache.proxy.listener import address_of, bind
from distribcache.proxy.whole import Whole
from distribcache.web.metrics import registry_of
from distribcache.web.overview import STYLE, page

__all__ = ["Admin", "build"]

_LONGEST_S = 86_400.0
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'self'", "X-Content-Type-Options": "nosniff"}


def build(whole: Whole) -> Starlette:
    """The ASGI application for one node."""

    def databases() -> list[dict[str, Any]]:
        return [
            {
                "name": each.name,
                "serving": each.serving,
                "reason": each.reason,
                "detail": each.detail,
                "hint": each.hint,
                **each.report(),
            }
            for each in whole.databases
        ]

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        good = any(each.serving for each in whole.databases)
        return PlainTextResponse("ready\n" if good else "pass-through\n", status_code=200 if good else 503)

    async def metrics(request: Request) -> Response:
        registry = registry_of(await whole.figures(), whole.databases)
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    async def status(request: Request) -> Response:
        figures = await whole.figures()
        return JSONResponse({"statistics": figures.statistics, "databases": databases()})

    async def audits(request: Request) -> Response:
        audited = await whole.audited()
        if request.method == "POST":
            if not _may_change(request):
                return PlainTextResponse("only for programs on this machine\n", status_code=403)
            seconds, max_cost = _audit_wanted(await request.body())
            if seconds is None or max_cost is None:
                return PlainTextResponse("it takes seconds and max_cost_s\n", status_code=400)
            if seconds and audited.get("running"):
                return PlainTextResponse("hits are being audited already\n", status_code=409)
            whole.audit(seconds, max_cost)
            audited = await whole.audited()
        modes = {each.name: each.mode for each in whole.databases}
        return JSONResponse({**audited, "modes": modes})

    async def overview(request: Request) -> Response:
        return HTMLResponse(page((await whole.figures()).statistics, databases()), headers=_HEADERS)

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css", headers=_HEADERS)

    endpoint = whole.settings.admin.endpoint
    hosts = ["localhost", "127.0.0.1", "[::1]", "::1", endpoint.host]
    return Starlette(
        routes=[
            Route("/", overview),
            Route("/style.css", style),
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/api/status", status),
            Route("/api/audit", audits, methods=["GET", "POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
    )


def _may_change(request: Request) -> bool:
    """See the module."""
    try:
        here = request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        here = False
    return here and request.headers.get("content-type") == "application/json" and "origin" not in request.headers


def _audit_wanted(body: bytes) -> tuple[float | None, float | None]:
    """Seconds (0: end it) and the costliest statement, in seconds; None for what is not possible."""
    try:
        wanted = json.loads(body)
        seconds, max_cost = float(wanted["seconds"]), float(wanted.get("max_cost_s", 1.0))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None, None
    return seconds if 0 <= seconds <= _LONGEST_S else None, max_cost if 0 <= max_cost <= _LONGEST_S else None


class Admin:
    """The HTTP server in the proxy's own event loop."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> tuple[str, int]:
        """Listen; returns the address. Raises ConfigError when that is not possible."""
        endpoint = self._whole.settings.admin.endpoint
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(build(self._whole), log_level="warning", access_log=False, lifespan="off", ws="none")
        sockets = bind("admin", endpoint)
        self._server = _Server(config)
        self._task = loop.create_task(self._server.serve(sockets))
        return address_of(sockets)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Signals belong to the proxy, not to its HTTP server."""
        yield
