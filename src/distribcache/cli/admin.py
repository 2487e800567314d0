"""Questions to the admin endpoint of a running node, and what is said when nothing of ours answers there."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from distribcache.errors import UpstreamError

__all__ = ["Admin", "fetch"]

Admin = Annotated[str | None, typer.Option("--admin", metavar="HOST:PORT", help="The node's admin address.")]

_TIMEOUT_S = 5.0
_MOST_BYTES = 16 << 20
_HINT = "is `distribcache serve` running, and is this its --admin address?"


def fetch(address: str, path: str = "/api/status", body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the node's admin endpoint says; with a body it is told something. Raises UpstreamError when nothing of ours
    answers there.
    """
    # No proxy from the environment: the admin address is this machine's or a neighbour's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    where = f"admin {address}"
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as reply:
            facts = json.loads(reply.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            words = error.read(1000).decode("utf-8", "replace").strip() if error.code in (400, 403, 409) else ""
        raise UpstreamError(f"no: {words or error.reason}", where=where, hint=_HINT) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UpstreamError(f"no answer: {_plainly(reason)}", where=where, hint=_HINT) from None
    except ValueError:
        raise UpstreamError("the answer is not a status", where=where, hint=_HINT) from None
    if not isinstance(facts, dict):
        raise UpstreamError("the answer is not a status", where=where, hint=_HINT)
    return facts


def _plainly(reason: object) -> str:
    if isinstance(reason, OSError) and not isinstance(reason, socket.gaierror) and reason.errno:
        return os.strerror(reason.errno)
    return (reason.strerror if isinstance(reason, socket.gaierror) else None) or str(reason)
