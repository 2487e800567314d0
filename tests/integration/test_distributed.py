"""L3 on real servers, one alone and a cluster: what is put is found, by every node, and by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from fix_valkey import GENEROUS, MakeTier, client, digest, filled, hits, on_loops, payload, record, until_true
from muted import kept_and_muted
from wait import until

from distribcache.cli.valkey import Valkey, embedded
from distribcache.clock import wall_time
from distribcache.config.tiers import DistributedTier
from distribcache.errors import ConfigError
from distribcache.tiers import connection as connection_module
from distribcache.tiers import distributed as distributed_module
from distribcache.tiers.base import Record
from distribcache.tiers.codec import encode
from distribcache.tiers.distributed import MAX_OVERHEAD, DistributedCache

both = on_loops("uvloop", "asyncio")


@pytest.fixture(params=["one", "cluster"])
def seed(request: pytest.FixtureRequest) -> Valkey:
    """A server to begin with: alone, or a replica of a cluster, which knows the others."""
    if request.param == "one":
        return request.getfixturevalue("valkey")
    return request.getfixturevalue("valkey_cluster")[-1]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """Of this test alone: servers are shared."""
    return f"t{abs(hash(request.node.nodeid))}"


@both
async def test_what_is_put_is_found_as_it_was(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    tier = await make_tier(seed, namespace=namespace)
    await filled(tier, 200, 4000)
    assert await hits(tier, 200, 4000) == 200
    whole = record(b"\0\xff\r\n$3\r\n" * 40)
    tier.put(digest(1), whole)
    assert await tier.flush(60.0)
    assert await tier.get(digest(1)) == whole
    assert await tier.get(digest(1000)) is None
    other = await make_tier(seed, namespace=namespace)
    assert await other.get(digest(1)) == whole
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.puts, stats.failures) == (201, 1, 201, {})
    assert stats.peers == stats.healthy_peers == (1 if seed.password else 3)
    assert stats.compression_ratio > 2
    assert stats.p50_us is not None
    assert stats.p99_us is not None
    assert 0 < stats.p50_us <= stats.p99_us
    assert stats.reason == ""
    assert tier.stats().note == ""


@both
async def test_every_size_up_to_the_bound(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    """Large ones are packed in a thread; what cannot be compressed must fit all the same."""
    tier = await make_tier(seed, namespace=namespace, max_entry=1 << 20)
    sizes = [0, 1, 255, 4096, 65535, 65536, 200_000, 1 << 20]
    for number, size in enumerate(sizes):
        assert tier.put(digest(number), record(os.urandom(size)))
    assert await tier.flush(60.0)
    for number, size in enumerate(sizes):
        got = await tier.get(digest(number))
        assert got is not None, size
        assert len(got.payload) == size
    assert not tier.put(digest(99), record(bytes((1 << 20) + 1)))
    assert tier.stats().refusals == {"large": 1}
    assert tier.stats().failures == {}


@both
async def test_a_discarded_record_is_gone_wherever_it_was(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    tier = await make_tier(seed, namespace=namespace)
    await filled(tier, 3)
    await tier.discard(digest(0))
    assert await tier.get(digest(0)) is None
    tier.put(digest(1), record(b"new"))
    await tier.discard(digest(1))  # it still waits
    large = record(os.urandom(900_000))
    tier.put(digest(2), large)
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is being packed
    await tier.discard(digest(2))
    assert await tier.flush(60.0)
    assert await tier.get(digest(1)) is None
    assert await tier.get(digest(2)) is None
    assert await tier.discard(digest(1000)) is None


@both
async def test_records_leave_when_their_time_is_over(make_tier: MakeTier, valkey: Valkey, namespace: str) -> None:
    tier = await make_tier(valkey, namespace=namespace)
    assert not tier.put(digest(0), record(seconds=-1.0))
    tier.put(digest(1), record(seconds=3600.0))
    assert await tier.flush(60.0)
    key = f"dc:{namespace}:{digest(1).hex()}"
    with client(valkey) as admin:
        left = admin.pttl(key)
        assert 3_500_000 < left <= 3_600_000, "the server drops it when its time is over"
        # A clock that differs, or a server that is late: an expired record is a miss whoever still has it.
        admin.set(f"dc:{namespace}:{digest(2).hex()}", encode(digest(2), record(seconds=-1.0), "zstd"))
    assert await tier.get(digest(2)) is None
    assert tier.stats().failures == {}


@both
async def test_keys_are_plain_and_their_slots_are_the_servers(
    make_tier: MakeTier, valkey_cluster: list[Valkey], namespace: str
) -> None:
    tier = await make_tier(valkey_cluster[0], namespace=namespace)
    await filled(tier, 60)
    seen: dict[str, int] = {}
    for server in valkey_cluster[:3]:
        with client(server) as admin:
            for key in admin.scan_iter(f"dc:{namespace}:*", count=10_000):
                seen[key.decode()] = seen.get(key.decode(), 0) + 1
    assert sorted(seen) == sorted(f"dc:{namespace}:{digest(number).hex()}" for number in range(60))
    assert not any("{" in key for key in seen)
    with client(valkey_cluster[0]) as admin:
        for key in seen:
            slot = admin.execute_command("CLUSTER KEYSLOT", key)
            assert distributed_module.slot_of(key.encode()) == slot == redis.crc.key_slot(key.encode())


@both
async def test_namespaces_do_not_see_each_other(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    one = await make_tier(seed, namespace=namespace)
    two = await make_tier(seed, namespace=namespace + "x")
    await filled(one, 5)
    assert await hits(two, 5) == 0


@both
async def test_one_node_gets_the_lease(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    one, two = [await make_tier(seed, namespace=namespace) for _ in range(2)]
    assert await one.lease(digest(1), 60.0)
    assert not await two.lease(digest(1), 60.0)
    assert not await one.lease(digest(1), 60.0)
    assert await two.lease(digest(2), 60.0)
    await two.unlease(digest(1))  # not its own
    assert not await two.lease(digest(1), 60.0)
    await one.unlease(digest(1))
    assert await two.lease(digest(1), 60.0)
    await one.unlease(digest(1))  # no longer its own
    assert not await one.lease(digest(1), 60.0)
    assert one.stats().failures == two.stats().failures == {}


@both
async def test_a_lease_ends_by_itself(make_tier: MakeTier, valkey: Valkey, namespace: str) -> None:
    one, two = [await make_tier(valkey, namespace=namespace) for _ in range(2)]
    assert await one.lease(digest(1), 0.2)
    await until_true(lambda: two.lease(digest(1), 60.0), "the lease does not end")
    await one.unlease(digest(1))  # its token is not the one that is there
    assert not await one.lease(digest(1), 60.0)
    # A token that was exchanged behind our back is somebody else's.
    assert await one.lease(digest(2), 60.0)
    with client(valkey) as admin:
        admin.set(f"dc:{namespace}:lease:{digest(2).hex()}", b"f" * 32)
        await one.unlease(digest(2))
        assert admin.exists(f"dc:{namespace}:lease:{digest(2).hex()}")


@both
async def test_without_a_cluster_everybody_gets_the_lease(make_tier: MakeTier) -> None:
    tier = await make_tier("127.0.0.1:1", connect_timeout=0.2)
    assert await tier.lease(digest(1), 60.0)
    assert await tier.lease(digest(1), 60.0)
    await tier.unlease(digest(1))


@both
async def test_a_full_queue_refuses(
    make_tier: MakeTier, valkey: Valkey, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed_module, "QUEUE_BYTES", 100_000)
    tier = await make_tier(valkey, namespace=namespace)
    taken = [tier.put(digest(number), record(bytes(9000))) for number in range(20)]  # nothing is written meanwhile
    assert 5 < sum(taken) < 12
    assert taken == sorted(taken, reverse=True)
    assert tier.put(digest(0), record(bytes(9000))), "it takes the place of the one that waits"
    assert tier.stats().refusals == {"queue_full": 20 - sum(taken)}
    assert 0 < tier.stats().queued_bytes < 100_000
    assert await tier.flush(60.0)
    assert all([(await tier.get(digest(number)) is not None) is taken[number] for number in range(20)])
    assert tier.put(digest(30), record(bytes(9000))), "there is room again"


@both
async def test_the_latest_of_two_records_stays(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    tier = await make_tier(seed, namespace=namespace)
    for number in range(30):
        tier.put(digest(1), record(payload(number)))
        if number % 7 == 0:
            await asyncio.sleep(0.001)
    assert await tier.flush(60.0)
    got = await tier.get(digest(1))
    assert got is not None
    assert got.payload == payload(29)


@both
async def test_many_at_once_get_each_his_own(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    tier = await make_tier(seed, namespace=namespace)
    await filled(tier, 300)

    async def some(first: int) -> int:
        return sum([await one(number) for number in range(first, 300, 7)])

    async def one(number: int) -> bool:
        got = await tier.get(digest(number))
        assert got is None or got.payload == payload(number)
        return got is not None

    assert sum(await asyncio.gather(*(some(first % 7) for first in range(70)))) == 3000


@kept_and_muted
@both
async def test_a_cancelled_look_up_leaves_its_place(
    make_tier: MakeTier, valkey: Valkey, namespace: str, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muted, a question that was given up leaves the row of those that wait: all later answers are others'."""
    tier = await make_tier(valkey, namespace=namespace)
    await filled(tier, 50)
    if muted:
        ask = connection_module.Connection.ask

        def forgetful(self: Any, request: bytes, kinds: Any) -> Any:
            future = ask(self, request, kinds)
            future.add_done_callback(
                lambda done: done.cancelled() and self._waiting.remove(next(w for w in self._waiting if w[0] is done))
            )
            return future

        monkeypatch.setattr(connection_module.Connection, "ask", forgetful)
    tasks = [asyncio.ensure_future(tier.get(digest(number))) for number in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    right = [each.payload == payload(number) for number, each in enumerate(got) if isinstance(each, Record)]
    assert (len(right) == 50 - len(tasks[::3]) and all(right)) is not muted
    assert (await hits(tier) == 50) is not muted


@kept_and_muted
@both
async def test_a_loop_that_was_held_up_reads_before_it_gives_up(
    make_tier: MakeTier, valkey: Valkey, namespace: str, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = await make_tier(valkey, namespace=namespace, deadline=1.0)
    await filled(tier, 5)
    if muted:
        monkeypatch.setattr(connection_module, "_HELD_UP_NS", 1 << 60)
    task = asyncio.ensure_future(tier.get(digest(1)))
    await asyncio.sleep(0)
    time.sleep(1.1)  # it is asked, and not sent yet
    assert (await task is not None) is not muted


@both
async def test_a_wrong_seed_among_right_ones_does_no_harm(make_tier: MakeTier, valkey: Valkey, namespace: str) -> None:
    lines: list[str] = []
    tier = await make_tier("127.0.0.1:1", valkey, "no-such-host.invalid:6379", log=lines, namespace=namespace)
    await filled(tier, 5)
    assert await hits(tier, 5) == 5
    await tier.stop()
    assert lines == ["L3 on"]


@both
async def test_fewer_copies_than_wanted_are_said_once(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    lines: list[str] = []
    tier = await make_tier(seed, log=lines, namespace=namespace, replication_factor=3)
    await filled(tier, 5)
    assert await hits(tier, 5) == 5
    copies = 1 if seed.password else 2
    assert tier.stats().note == f"l3.replication_factor is 3, but some keys have {copies} copies"
    assert tier.stats().reason == ""
    assert [line for line in lines if "replication_factor" in line] == [f"L3 {tier.stats().note}"]
    assert (await make_tier(seed, replication_factor=copies)).stats().note == ""


@both
async def test_a_replica_alone_can_be_read(make_tier: MakeTier, make_valkey: Any, namespace: str) -> None:
    primary = make_valkey()
    replica = make_valkey(
        options={
            "replicaof": f"127.0.0.1 {primary.port}", "masterauth": primary.password, "requirepass": primary.password,
        }
    )  # fmt: skip
    first = await make_tier(primary, namespace=namespace)
    await filled(first, 5)

    def synced() -> bool:
        with client(replica) as admin:
            return admin.dbsize() == 5

    await until_true(synced, "no copy")
    tier = await make_tier(replica, namespace=namespace, breaker_failures=100)
    assert await hits(tier, 5) == 5
    assert "the server is a replica" in tier.stats().note
    tier.put(digest(7), record())
    await tier.flush(60.0)
    assert tier.stats().failures == {"put_read_only": 1}
    # With both named, the primary is found, whoever comes first.
    tier = await make_tier(replica, primary, namespace=namespace, replication_factor=2)
    await filled(tier, 9)
    assert await hits(tier, 9) == 9
    assert tier.stats().note == ""


@both
async def test_an_unreachable_cluster_is_no_error(make_tier: MakeTier) -> None:
    lines: list[str] = []
    began = time.monotonic()
    tier = await make_tier("127.0.0.1:1", log=lines, connect_timeout=0.3)
    assert time.monotonic() - began < 20
    assert await tier.get(digest(1)) is None
    assert not tier.put(digest(1), record())
    await tier.discard(digest(1))
    assert await tier.flush(60.0)
    stats = tier.stats()
    assert (stats.peers, stats.healthy_peers, stats.hits, stats.misses, stats.refused) == (1, 0, 0, 1, 1)
    assert stats.failures == {"off": 1}
    assert (stats.reason, stats.refusals) == ("unreachable", {"off": 1})
    assert stats.detail == "127.0.0.1:1: not reached: Connection refused"
    assert lines == [f"L3 off: {stats.detail}"]


@both
async def test_without_peers_it_is_off(make_tier: MakeTier) -> None:
    tier = await make_tier()
    assert await tier.get(digest(1)) is None
    assert not tier.put(digest(1), record())
    assert tier.stats().reason == "no_peers"
    assert await tier.lease(digest(1), 1.0)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("no such file", {"password_file": Path("/nowhere")}, "l3.password_file"),
    ("an empty file", {"password_file": "empty"}, "l3.password_file"),
    ("not a text", {"secret_file": "binary"}, "l3.secret_file"),
    ("both", {"password": "hunter2", "password_file": "good"}, "l3.password_file"),
    ("no such CA", {"tls": True, "tls_ca": Path("/nowhere")}, "l3.tls_ca"),
    ("no CA", {"tls": True, "tls_ca": "good"}, "l3.tls_ca"),
    ("a CA without TLS", {"tls_ca": "good"}, "l3.tls_ca"),
    ("a key without certificate", {"tls": True, "tls_key": "good"}, "l3.tls_key"),
    ("no certificate", {"tls": True, "tls_cert": "good"}, "l3.tls_cert"),
    ("not started", {"peers": "embedded"}, "l3.peers"),
]


@pytest.mark.parametrize(("settings", "where"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_settings_that_can_never_work_are_errors(settings: dict[str, Any], where: str, tmp_path: Path) -> None:
    for name, data in (("empty", b"\n"), ("binary", b"\xff\xfe\xff"), ("good", b"hunter2\n")):
        (tmp_path / name).write_bytes(data)
    settings = {k: tmp_path / v if isinstance(v, str) and k.endswith(("file", "ca", "key", "cert")) else v
                for k, v in settings.items()}  # fmt: skip
    tier = DistributedCache(DistributedTier(**{"peers": "127.0.0.1:1", **settings}), wall_time, lambda line: None)
    with pytest.raises(ConfigError) as error:
        asyncio.run(tier.start())
    assert where in error.value.where
    assert error.value.hint
    assert "hunter2" not in str(error.value)


@both
async def test_a_password_from_a_file(make_tier: MakeTier, valkey: Valkey, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(valkey.password + "\n")
    tier = await make_tier(valkey.address, namespace=namespace, password_file=tmp_path / "password")
    await filled(tier, 3)
    assert await hits(tier, 3) == 3


@both
async def test_it_can_be_stopped_at_any_time(make_tier: MakeTier, seed: Valkey, namespace: str) -> None:
    tier = await make_tier(seed, namespace=namespace)
    for number in range(100):
        tier.put(digest(number), record(bytes(50_000)))
    waiting = [asyncio.ensure_future(tier.get(digest(number))) for number in range(100)]
    await asyncio.sleep(0)
    await tier.stop()
    await asyncio.gather(*waiting)
    assert await tier.get(digest(1)) is None
    assert not tier.put(digest(1), record())
    assert await tier.flush(60.0)
    await tier.stop()
    again = DistributedCache(DistributedTier(peers=seed.address, **GENEROUS), wall_time, lambda line: None)
    starting = asyncio.ensure_future(again.start())
    await asyncio.sleep(0)
    await again.stop()
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc")
def test_a_server_of_our_own_has_a_password_and_no_arguments() -> None:
    server, settings = embedded(DistributedTier(peers="embedded"))
    with server:
        assert settings.peers == server.address
        assert settings.password == server.password != ""
        assert settings.password not in repr(settings)
        assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        with redis.Redis(server.host, server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with client(server) as admin:
            assert admin.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
            assert admin.config_get("save") == {"save": ""}
            assert admin.config_get("bind") == {"bind": "127.0.0.1"}
    assert server.pid == 0


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks into /proc")
def test_a_server_of_our_own_dies_with_us() -> None:
    code = "from distribcache.cli.valkey import Valkey as V\n"
    code += "v = V(); v.start(); print(v.pid, v._root, flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        pid, root = process.stdout.readline().split()
        os.kill(int(pid), 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the server outlives us")
        until(lambda: not Path(root).exists(), "its directory is left")


def test_what_an_entry_may_be_larger_by_is_enough_for_its_tags() -> None:
    tags = tuple(os.urandom(24) for _ in range(1000))
    whole = Record(b"", 1, 1, tags, b"e" * 16, 1.0, 2.0, 1, 1, "t," * 4000, "oltp")
    assert len(encode(digest(1), whole, "zstd")) < MAX_OVERHEAD
