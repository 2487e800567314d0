"""`distribcache status`: what a running node says about itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer
from rich.console import Console

from distribcache.cli.link import Config, Json
from distribcache.cli.report import print_json
from distribcache.config import load
from distribcache.errors import UpstreamError

__all__ = ["fetch", "status"]

_TIMEOUT_S = 5.0
_MOST_BYTES = 16 << 20


def status(
    admin: Annotated[str | None, typer.Option("--admin", metavar="HOST:PORT", help="The node's admin address.")] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show hits, freshness and tiers of a running node. Exit status 3: no node answers."""
    facts = fetch(load(config, {"admin.address": admin}).admin.address)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def fetch(address: str, path: str = "/api/status", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node's admin endpoint says; with a body it is told something. Raises UpstreamError when nothing of ours
    answers there.
    """
    # No proxy from the environment: the admin address is this machine's or a neighbour's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    hint = "is `distribcache serve` running, and is this its --admin address?"
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as reply:
            facts = json.loads(reply.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            words = error.read(1000).decode("utf-8", "replace").strip() if error.code in (400, 403, 409) else ""
        raise UpstreamError(f"no: {words or error.reason}", where=f"admin {address}", hint=hint) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UpstreamError(f"no answer: {reason}", where=f"admin {address}", hint=hint) from None
    except ValueError:
        raise UpstreamError("the answer is not a status", where=f"admin {address}", hint=hint) from None
    if not isinstance(facts, dict):
        raise UpstreamError("the answer is not a status", where=f"admin {address}", hint=hint)
    return facts


def _show(facts: dict[str, Any]) -> None:
    """Scalars first, then one block per group, whatever the node reports."""
    out = Console(highlight=False, soft_wrap=True, markup=False)
    for name, value in facts.items():
        if not isinstance(value, dict | list):
            out.print(f"{name:<24} {_text(value)}")
    for name, value in facts.items():
        rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if rows:
            out.print(f"\n{name}", style="bold")
        for key, item in rows:
            shown = ", ".join(f"{k} {_text(v)}" for k, v in item.items()) if isinstance(item, dict) else _text(item)
            out.print(f"  {key!s:<22} {shown}" if isinstance(value, dict) else f"  {shown}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
