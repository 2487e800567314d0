"""Mixed load for minutes through a proxy, while its memory and descriptors are watched: does anything leak?

    python benchmarks/soak.py                                    starts a server and distribcache itself, 5 minutes
    python benchmarks/soak.py --minutes 1 --port 6432 --pid 1234 --url postgresql://postgres@127.0.0.1:5432/postgres

Who takes part, each a few times over, all at once:
  readers     psycopg (prepared after five uses) and asyncpg, the same keys again and again, some in transactions
  writers     psycopg, through the proxy and around it
  visitors    connect, ask twice, leave, politely
  vanishing   plain sockets that log in, send a query that has a large answer or takes long, and are reset at once
  cancellers  a long query, cancelled by a CancelRequest
  half-open   plain sockets that connect and say nothing, or half a start-up packet, and go away
  big         results above the entry limit, and distinct texts that never repeat: fills and evictions

RSS and open descriptors come from /proc/<pid> every second, after a warm-up of a fifth of the time. At the end, when
all clients have left, descriptors must be back at the level of before. Exit 1: memory grew by more than
``--growth`` percent after the warm-up, or descriptors stayed open, or a reader saw a value that was never written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import asyncpg
import psycopg
from benchmarks import servers

from distribcache.cli.postgres import Postgres

KEYS = 500
BIG = "SELECT n, repeat('x', 1000) FROM soak_rows, generate_series(1, 3000) AS n WHERE id = %s"
SLOW = "SELECT pg_sleep(3), count(*) FROM soak_rows"
STARTUP = b"\0\3\0\0user\0postgres\0database\0%s\0\0"


@dataclass(slots=True)
class Load:
    """What every kind of client needs, and what they counted."""

    conninfo: str
    direct: str
    port: int
    dbname: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    written: dict[int, int] = field(default_factory=dict)
    stale: int = 0

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


async def _psycopg_reader(load: Load, rng: random.Random) -> None:
    async with await psycopg.AsyncConnection.connect(load.conninfo, autocommit=rng.random() < 0.5) as connection:
        for _ in range(rng.randrange(50, 400)):
            if load.stop.is_set():
                return
            key = rng.randrange(KEYS)
            least = load.written.get(key, 0)
            cursor = await connection.execute("SELECT version FROM soak_rows WHERE id = %s", [key])
            row = await cursor.fetchone()
            if not connection.autocommit:
                await connection.rollback()
            # A version that was written before we asked must not look unwritten: versions only rise.
            if row is None or row[0] < least:
                load.stale += 1
            load.counts["reads"] += 1
            await asyncio.sleep(0.002)


async def _asyncpg_reader(load: Load, rng: random.Random) -> None:
    connection = await asyncpg.connect(
        host="127.0.0.1", port=load.port, user="postgres", database=load.dbname, ssl=False, timeout=20
    )
    try:
        for _ in range(rng.randrange(50, 400)):
            if load.stop.is_set():
                return
            if rng.random() < 0.2:
                async with connection.transaction():
                    await connection.fetch("SELECT * FROM soak_rows WHERE id = $1", rng.randrange(KEYS))
            else:
                await connection.fetchval("SELECT count(*) FROM soak_rows WHERE id < $1", rng.randrange(20))
            load.counts["reads"] += 1
            await asyncio.sleep(0.002)
    finally:
        await connection.close(timeout=5)


async def _writer(load: Load, rng: random.Random) -> None:
    where = load.conninfo if rng.random() < 0.5 else load.direct
    outside = where == load.direct
    async with await psycopg.AsyncConnection.connect(where, autocommit=True) as connection:
        for _ in range(rng.randrange(20, 200)):
            if load.stop.is_set():
                return
            key = rng.randrange(KEYS)
            cursor = await connection.execute(
                "UPDATE soak_rows SET version = version + 1 WHERE id = %s RETURNING version", [key]
            )
            row = await cursor.fetchone()
            # Outside writes may be seen a little later, so only those through the proxy are held against readers.
            if row is not None and not outside:
                load.written[key] = max(load.written.get(key, 0), row[0])
            load.counts["writes"] += 1
            await asyncio.sleep(0.02)


async def _visitor(load: Load, rng: random.Random) -> None:
    async with await psycopg.AsyncConnection.connect(load.conninfo) as connection:
        for _ in range(2):
            await connection.execute("SELECT sum(version) FROM soak_rows WHERE id < 10")
    load.counts["visits"] += 1
    await load.pause(0.05)


async def _vanishing(load: Load, rng: random.Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
    packet = STARTUP % load.dbname.encode()
    writer.write(struct.pack("!i", len(packet) + 4) + packet)
    data = b""
    while not data.endswith(b"Z\0\0\0\5I"):
        part = await asyncio.wait_for(reader.read(65536), 20)
        if not part:
            raise ConnectionError("closed during login")
        data += part
    text = (BIG.replace("%s", str(rng.randrange(KEYS))) if rng.random() < 0.7 else SLOW.replace("3", "0.3")).encode()
    writer.write(b"Q" + struct.pack("!i", len(text) + 5) + text + b"\0")
    await writer.drain()
    await load.pause(rng.choice((0.0, 0.005, 0.05)))
    # Linger 0 makes the close a reset: no goodbye, data in flight is lost.
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    load.counts["vanished"] += 1
    await load.pause(0.05)


async def _canceller(load: Load, rng: random.Random) -> None:
    async with await psycopg.AsyncConnection.connect(load.conninfo, autocommit=True) as connection:
        running = asyncio.create_task(_expect_cancel(connection, load))
        await load.pause(rng.choice((0.01, 0.1)))
        await connection.cancel_safe(timeout=10)
        await running
        # The connection must be as good as before.
        await connection.execute("SELECT 1")
    await load.pause(0.1)


async def _expect_cancel(connection: psycopg.AsyncConnection[tuple[object, ...]], load: Load) -> None:
    try:
        await connection.execute(SLOW)
        load.counts["cancels too late"] += 1
    except psycopg.errors.QueryCanceled:
        load.counts["cancels"] += 1


async def _half_open(load: Load, rng: random.Random) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", load.port)
    writer.write(rng.choice((b"", b"\0\0\0", b"\0\0\1\0\0\3\0\0user", b"GET / HTTP/1.1\r\n\r\n")))
    await load.pause(0.2)
    writer.transport.abort()
    load.counts["half-open"] += 1


async def _big(load: Load, rng: random.Random) -> None:
    async with await psycopg.AsyncConnection.connect(load.conninfo, autocommit=True) as connection:
        for _ in range(20):
            if load.stop.is_set():
                return
            await connection.execute(BIG, [rng.randrange(KEYS)])
            await connection.execute(f"SELECT id, {rng.randrange(10**9)} FROM soak_rows WHERE id < 50")
            load.counts["big"] += 1
            await load.pause(0.05)


KINDS: dict[str, tuple[Callable[[Load, random.Random], Awaitable[None]], int]] = {
    "psycopg reader": (_psycopg_reader, 6), "asyncpg reader": (_asyncpg_reader, 4), "writer": (_writer, 2),
    "visitor": (_visitor, 2), "vanishing": (_vanishing, 2), "canceller": (_canceller, 2), "half-open": (_half_open, 1),
    "big": (_big, 1),
}


async def _again(name: str, kind: Callable[[Load, random.Random], Awaitable[None]], load: Load, seed: int) -> None:
    """One client after the other until the end; an unexpected error is counted and does not end the soak."""
    rng = random.Random(seed)
    while not load.stop.is_set():
        try:
            await asyncio.wait_for(kind(load, rng), 60)
        except (psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            load.errors[f"{name}: {type(error).__name__}: {str(error).strip()[:100]}"] += 1
            await load.pause(0.2)


@dataclass(slots=True)
class Samples:
    """Memory (bytes) and open descriptors of a process over time (seconds)."""

    at: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def take(self, pid: int) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self.at.append(time.monotonic())
        self.rss.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.fds.append(_descriptors(pid))

    def slope(self, warm_s: float) -> tuple[float, float]:
        """After warm-up: bytes per minute by least squares, and growth in percent from first to last fifth's median."""
        start = self.at[0] + warm_s
        points = [(t - start, r) for t, r in zip(self.at, self.rss, strict=True) if t >= start]
        if len(points) < 10:
            return 0.0, 0.0
        mean_t, mean_r = sum(t for t, _ in points) / len(points), sum(r for _, r in points) / len(points)
        spread = sum((t - mean_t) ** 2 for t, _ in points)
        rate = sum((t - mean_t) * (r - mean_r) for t, r in points) / spread if spread else 0.0
        fifth = max(1, len(points) // 5)
        first, last = (median(r for _, r in part) for part in (points[:fifth], points[-fifth:]))
        return rate * 60, (last / first - 1) * 100


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def _soak(load: Load, pid: int, minutes: float) -> tuple[Samples, int, int]:
    # One client stays all the time: what the proxy keeps per database is there before and after.
    stays = await psycopg.AsyncConnection.connect(load.conninfo, autocommit=True)
    await stays.execute("SELECT version FROM soak_rows WHERE id = 1")
    await asyncio.sleep(2.0)
    before = _descriptors(pid)
    tasks = [
        asyncio.create_task(_again(name, kind, load, 1000 * number + copy))
        for number, (name, (kind, copies)) in enumerate(KINDS.items()) for copy in range(copies)
    ]
    samples, end, said = Samples(), time.monotonic() + minutes * 60, time.monotonic()
    while time.monotonic() < end and Path(f"/proc/{pid}").exists():
        samples.take(pid)
        if time.monotonic() - said > 20:
            said = time.monotonic()
            print(f"  {samples.rss[-1] / 1e6:.1f} MB, {samples.fds[-1]} descriptors, {dict(load.counts)}", flush=True)
        await asyncio.sleep(1.0)
    load.stop.set()
    await asyncio.wait(tasks, timeout=30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Long queries of clients that vanished may take their seconds to end; a leak stays.
    after = before
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        after = _descriptors(pid)
        if after <= before + 2:
            break
        await asyncio.sleep(0.2)
    with contextlib.suppress(psycopg.Error):
        await stays.close()
    return samples, before, after


def _prepare(direct: str) -> None:
    with psycopg.connect(direct, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS soak_rows")
        connection.execute("CREATE TABLE soak_rows (id int PRIMARY KEY, version int NOT NULL DEFAULT 0, note text)")
        connection.execute(
            "INSERT INTO soak_rows SELECT n, 0, repeat('n', 50) FROM generate_series(0, %s) AS n", [KEYS - 1]
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--port", type=int, default=0, help="a proxy that already runs on loopback")
    parser.add_argument("--pid", type=int, default=0, help="its process id")
    parser.add_argument("--url", default="", help="the server behind it")
    parser.add_argument("--growth", type=float, default=10.0, help="percent of memory that may be gained after warm-up")
    parser.add_argument("--serve-args", default="", help="options of distribcache serve")
    asked = parser.parse_args(argv)
    if not Path("/proc/self/statm").exists():
        print("this needs /proc (Linux)")
        return 2
    with contextlib.ExitStack() as stack:
        port, pid, direct = asked.port, asked.pid, asked.url
        if not port:
            server = stack.enter_context(Postgres(bin_dir=servers.pg_bin()))
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distribcache-soak-")))
            try:
                proxy = stack.enter_context(
                    servers.distribcache(
                        server.url(), work, arguments=asked.serve_args.split(), env={"DISTRIBCACHE_L1_SIZE": "32MB"}
                    )
                )
            except RuntimeError as error:
                print(error)
                return 3
            port, pid, direct = proxy.port, proxy.pid, server.url()
        _prepare(direct)
        dbname = psycopg.conninfo.conninfo_to_dict(direct).get("dbname", "postgres")
        conninfo = f"host=127.0.0.1 port={port} user=postgres dbname={dbname} sslmode=disable connect_timeout=20"
        load = Load(conninfo, direct, port, str(dbname))
        samples, before, after = asyncio.run(_soak(load, pid, asked.minutes))
        died = not Path(f"/proc/{pid}").exists()
    rate, growth = samples.slope(asked.minutes * 60 / 5)
    leaked = after > before + 2
    print(f"clients: {dict(load.counts)}")
    for text, count in load.errors.most_common(12):
        print(f"  {count} × {text}")
    print(f"memory: {samples.rss[0] / 1e6:.1f} MB at first, {max(samples.rss) / 1e6:.1f} at most, "
          f"{samples.rss[-1] / 1e6:.1f} at last; slope after warm-up {rate / 1e6:+.2f} MB/min, {growth:+.1f} %")
    print(f"descriptors: {before} before, {max(samples.fds)} at most, {after} after all clients had left")
    print(f"stale answers: {load.stale}")
    failures = [
        text for bad, text in (
            (died, "the proxy died"), (growth > asked.growth, f"memory grew by more than {asked.growth:g} %"),
            (leaked, "descriptors stayed open"), (load.stale > 0, "a write through the proxy was not seen"),
            (not load.counts["reads"], "nothing was read"),
        ) if bad
    ]
    print("FAILED: " + "; ".join(failures) if failures else "ok")
    return 1 if failures else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
