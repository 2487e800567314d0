"""A small TCP fault injector: a threaded relay in front of a server, whose faults are switched on by the test.

Only connections whose first bytes contain ``only`` are harmed, so a test can spare the cache's own ones. ``mangle``
gets whole server messages, once ``armed``, and returns the bytes that the client gets instead (None: cut).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

Mangle = Callable[[int, bytes], bytes | None]


class Relay:
    """``delay`` in seconds per piece, ``slice_bytes`` per write, ``thawed.clear()`` holds all, ``refusing`` new."""

    def __init__(self, port: int, only: bytes = b"") -> None:
        self.target = port
        self.only = only
        self.delay = 0.0
        self.slice_bytes = 0
        self.refusing = False
        self.thawed = threading.Event()
        self.thawed.set()
        self.armed = threading.Event()
        self.mangle: Mangle | None = None
        self.relayed = 0
        self.divert: tuple[bytes, int] | None = None
        """Connections whose first packet contains these bytes go to another port."""
        self._count = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closing = threading.Lock()
        """Held to close sockets, and to harm them: a thread that has only read a number may mean the next socket."""
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.thawed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(everything=True)

    def arm(self, mangle: Mangle) -> None:
        """Mangle server messages from now on; the first that comes has number 0."""
        self.mangle, self._count = mangle, 0
        self.armed.set()

    def disarm(self) -> None:
        self.armed.clear()

    def cut(self, *, everything: bool = False) -> None:
        """End the harmed connections, or all."""
        with self._closing:
            for pair in self._pairs:
                _shut(*pair)
            if everything:
                self._pairs.clear()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            first = client.recv(16384)
            server = socket.create_connection(("127.0.0.1", self.target))
            if len(first) == 8:  # an encryption request: the start-up packet follows the answer
                server.sendall(first)
                client.sendall(server.recv(1))
                first = client.recv(16384)
            harmed = self.only in first
            if self.divert is not None and self.divert[0] in first:
                server.close()
                server = socket.create_connection(("127.0.0.1", self.divert[1]))
            if harmed:
                self._pairs.append((client, server))
            server.sendall(first)
        except OSError:
            client.close()
            if server is not None:
                server.close()
            return
        upward = threading.Thread(target=self._pump, args=(client, server, harmed, False), daemon=True)
        upward.start()
        self._pump(server, client, harmed, True)
        upward.join()
        with self._closing:
            if (client, server) in self._pairs:
                self._pairs.remove((client, server))
            client.close()
            server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, harmed: bool, downward: bool) -> None:
        kept = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if harmed:
                    self.thawed.wait()
                    if self.delay:
                        time.sleep(self.delay)
                    if downward and (self.armed.is_set() or kept) and self.mangle is not None:
                        kept += data
                        changed, kept = self._mangled(kept)
                        if changed is None:
                            break
                        data = changed
                step = self.slice_bytes if harmed and self.slice_bytes else len(data)
                for at in range(0, len(data), step or 1):
                    sink.sendall(data[at : at + step])
                self.relayed += len(data)
        _shut(source, sink)

    def _mangled(self, data: bytes) -> tuple[bytes | None, bytes]:
        assert self.mangle is not None
        out = b""
        while len(data) >= 5:
            end = 1 + int.from_bytes(data[1:5], "big")
            if len(data) < end:
                break
            one, data = data[:end], data[end:]
            changed = self.mangle(self._count, one)
            self._count += 1
            if changed is None:
                return None, b""
            out += changed
        return out, data


def _shut(*sockets: socket.socket) -> None:
    """Whoever waits on them is told; they are closed when nobody does."""
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
