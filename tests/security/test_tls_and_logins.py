"""Logins through the relay: SCRAM, MD5 and cleartext, with TLS on none, either or both legs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from barewire import SSL_REQUEST, bare, startup
from fix_postgres import QUIET
from fix_proxy import MakeInnerProxy, ProxyProcess, last, proxies
from muted import kept_and_muted
from people import SCRAM_HBA, add_users
from wait import until

from distribcache.cli.postgres import Postgres
from distribcache.proxy.login import Login


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key, readable by the server's user."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    made = Path(tempfile.mkdtemp(prefix="distribcache-tls-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def ours(folder: Path) -> tuple[Path, Path]:
    return certificate(folder, "proxy")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Path, Path]:
    return certificate(folder, "server")


@pytest.fixture(scope="module")
def tls_server(theirs: tuple[Path, Path], debian_bin: Path) -> Iterator[Postgres]:
    server = Postgres(bin_dir=debian_bin, hba=SCRAM_HBA, options=QUIET)
    with server:
        for path, name in zip(theirs, ("server.crt", "server.key"), strict=True):
            copy = server.data_dir / name
            shutil.copy(path, copy)
            owner = server.data_dir.stat()
            shutil.chown(copy, owner.st_uid, owner.st_gid)
            copy.chmod(0o600)
        server.restart(options={"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"})
        add_users(server)
        yield server


Legs = Callable[[bool, bool], ProxyProcess]


@pytest.fixture(scope="module")
def legs(tls_server: Postgres, ours: tuple[Path, Path]) -> Iterator[Legs]:
    """A proxy with TLS (towards clients, towards the server)."""
    with proxies() as make:
        running: dict[tuple[bool, bool], ProxyProcess] = {}

        def get(client: bool, server: bool) -> ProxyProcess:
            if (client, server) not in running:
                settings = {"listen.tls_cert": str(ours[0]), "listen.tls_key": str(ours[1])} if client else {}
                url = f"{tls_server.url()}?sslmode={'require' if server else 'disable'}"
                running[client, server] = make(url, settings)
                running[client, server].database = "postgres"
            return running[client, server]

        yield get
        for proxy in running.values():
            assert "Traceback" not in "".join(proxy.log)
            assert "secret of" not in "".join(proxy.log)


BOTH = [(client, server) for client in (False, True) for server in (False, True)]


@pytest.mark.parametrize(("client", "server"), BOTH)
@pytest.mark.parametrize("user", ["alice", "cleo", "mido"])
def test_every_way_to_log_in_over_every_pair_of_legs(legs: Legs, user: str, client: bool, server: bool) -> None:
    proxy = legs(client, server)
    mode = "require" if client else "disable"
    more = {"channel_binding": "disable"} if client and server else {}
    text = proxy.conninfo(user, sslmode=mode, password=f"secret of {user}", **more)
    with psycopg.connect(text) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (user,)
        seen = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
        assert seen == (server,)
        assert connection.pgconn.ssl_in_use is client


@pytest.mark.parametrize(("client", "server"), BOTH)
def test_channel_binding_require_fails_loudly(legs: Legs, client: bool, server: bool) -> None:
    """Proxy trap 2. Security row 10."""
    proxy = legs(client, server)
    mode = "require" if client else "disable"
    text = proxy.conninfo("alice", sslmode=mode, password="secret of alice", channel_binding="require")
    with pytest.raises(psycopg.OperationalError, match="channel binding"):
        psycopg.connect(text)


def test_two_tls_legs_say_what_to_do_about_channel_binding(legs: Legs) -> None:
    """Proxy trap 2. Security row 10. libpq prefers channel binding, sees TLS and no -PLUS, and says so in SCRAM: the
    server takes it for an attack.
    """
    proxy = legs(True, True)
    with pytest.raises(psycopg.OperationalError, match="channel_binding=disable"):
        psycopg.connect(proxy.conninfo("alice", sslmode="require", password="secret of alice"))


@kept_and_muted
def test_trap_2_two_tls_legs_name_the_remedy(
    tls_server: Postgres, ours: tuple[Path, Path], make_inner_proxy: MakeInnerProxy, monkeypatch: pytest.MonkeyPatch,
    muted: bool,
) -> None:  # fmt: skip
    """Proxy trap 2. Muted: the client is told the server's words alone, which name no way out.

    With ``sslmode=prefer`` libpq tries again in clear, and says nothing.
    """
    if muted:
        monkeypatch.setattr(Login, "_explain", lambda self, message: message)
    proxy = make_inner_proxy(
        f"{tls_server.url()}?sslmode=require", {"listen.tls_cert": str(ours[0]), "listen.tls_key": str(ours[1])}
    )
    with pytest.raises(psycopg.OperationalError, match="channel binding") as refused:
        psycopg.connect(proxy.conninfo("alice", sslmode="require", password="secret of alice"))
    assert ("channel_binding=disable" in str(refused.value)) is not muted
    with psycopg.connect(proxy.conninfo("alice", sslmode="prefer", password="secret of alice")) as connection:
        assert connection.pgconn.ssl_in_use is False


def test_plus_passes_when_our_certificate_is_the_servers_own(tls_server: Postgres, theirs: tuple[Path, Path]) -> None:
    """Proxy trap 2. Security row 10."""
    with proxies() as make:
        settings = {"listen.tls_cert": str(theirs[0]), "listen.tls_key": str(theirs[1])}
        proxy = make(f"{tls_server.url()}?sslmode=require", settings)
        proxy.database = "postgres"
        text = proxy.conninfo("alice", sslmode="require", password="secret of alice", channel_binding="require")
        with psycopg.connect(text) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("alice",)


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("alice", "wrong"),
        ("cleo", "wrong"),
        ("mido", "wrong"),
        ("expired", "secret of expired"),
        ("mallory", ""),
        ("nobody_of_that_name", ""),
    ],
)
def test_cve_2025_2291_the_server_decides_every_login(
    scram_proxy: ProxyProcess, scram_server: Postgres, user: str, password: str
) -> None:
    """Security row 9. Expired passwords, unknown users and wrong passwords: the very words of the server."""
    words = []
    for where in (scram_proxy.conninfo(user, dbname="postgres"), scram_server.conninfo("postgres", user)):
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(where, password=password)
        words.append("FATAL" + str(refused.value).partition("FATAL")[2].splitlines()[0])
    assert words[0] == words[1]
    assert len(words[0]) > 10
    assert "wrong" not in "".join(scram_proxy.log)


def test_cve_2025_12819_search_path_in_the_startup_message(scram_proxy: ProxyProcess, scram_server: Postgres) -> None:
    """Security row 9. What a client sets before its login changes nothing of what the cache asks for itself."""
    with psycopg.connect(scram_server.conninfo(), autocommit=True) as admin:
        admin.execute("CREATE SCHEMA IF NOT EXISTS trap")
        admin.execute("CREATE OR REPLACE FUNCTION trap.current_setting(text, boolean) RETURNS text LANGUAGE sql AS "
                      "$$ SELECT 'trapped' $$")  # fmt: skip
        admin.execute("CREATE OR REPLACE FUNCTION trap.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        admin.execute("CREATE OR REPLACE VIEW trap.pg_database AS SELECT 1::oid AS oid, current_database() AS datname")
        admin.execute("CREATE OR REPLACE FUNCTION trap.equal(name, name) RETURNS bool LANGUAGE sql AS 'SELECT false'")
        admin.execute("DROP OPERATOR IF EXISTS trap.= (name, name)")
        admin.execute("CREATE OPERATOR trap.= (leftarg = name, rightarg = name, function = trap.equal)")
        admin.execute("CREATE TABLE IF NOT EXISTS trap.t AS SELECT 1 AS a")
    options = "-c search_path=trap,pg_catalog"
    with psycopg.connect(scram_proxy.conninfo(dbname="postgres", options=options), autocommit=True) as connection:

        def served() -> bool:
            assert connection.execute("SELECT a FROM t").fetchone() == (1,)
            return bool(last(connection)["status"] == "hit")

        until(served, lambda: str(last(connection)))


def test_cve_2021_23214_with_tls_offered(legs: Legs) -> None:
    """Security row 5."""
    proxy = legs(True, False)
    with bare(proxy.host, proxy.port) as client:
        client.send(SSL_REQUEST + startup("alice"))
        first = client.socket.recv(1)
        assert first == b"E", "nothing that came before the handshake may be believed"
    with bare(proxy.host, proxy.port) as client:  # after the answer, before the handshake
        client.send(SSL_REQUEST)
        assert client.take(1) == b"S"
        client.send(startup("alice"))
        try:
            seen = client.socket.recv(1000)
        except ConnectionError:
            seen = b""
        assert b"R\0\0\0" not in seen, "a login in clear after S"
    with psycopg.connect(proxy.conninfo("alice", sslmode="require", password="secret of alice")):
        pass


def test_upstream_certificate_is_verified(
    tls_server: Postgres, theirs: tuple[Path, Path], ours: tuple[Path, Path]
) -> None:
    """Security row 10."""
    with proxies() as make:
        good = make(f"{tls_server.url()}?sslmode=verify-full&sslrootcert={theirs[0]}")
        good.database = "postgres"
        with good.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        bad = make(f"{tls_server.url()}?sslmode=verify-full&sslrootcert={ours[0]}", serving=False)
        bad.database = "postgres"
        with pytest.raises(psycopg.OperationalError, match="TLS failed"):
            bad.connect()
        assert "Traceback" not in "".join(bad.log)
