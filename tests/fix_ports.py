"""Ports of test servers that are nobody else's, also while a server is stopped and is to come back on its own.

A free port that the system gives out may be the next connection's, or the next listener's: a server that is started
again then finds it taken, and whoever expects that nobody answers there is answered by somebody. So they are chosen
below those that the system gives out by itself, by each worker of a run from a share of its own.
"""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from distribcache.cli import embedded, valkey

_FIRST = 10_240
_SHARES = 16
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LAST = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 32_768
_system_gives = embedded.free_port


def free_port() -> int:
    """A port of loopback that nobody listens on, and that nobody gets by chance."""
    share = (_LAST - _FIRST) // _SHARES
    if share < 1000:
        return _system_gives()
    first = _FIRST + share * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _SHARES)
    while True:
        port = random.randrange(first, first + share)
        with socket.socket() as probe:
            try:
                probe.bind((embedded.HOST, port))
            except OSError:
                continue
        return port


embedded.free_port = valkey.free_port = free_port
