"""``distribcache serve`` and the command line itself, given what cannot work: one line, the remedy, the exit status."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import Database
from wait import until

ANYWHERE = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
PEERS = '[l3]\npeers = "127.0.0.1:1"\n'
NOBODY = "postgresql://app:geheim@127.0.0.1:1/shop"


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def refused(cli: Cli, *arguments: str) -> tuple[str, str]:
    """What is said, and the remedy."""
    outcome = cli("serve", *arguments)
    assert outcome.status == 2 and outcome.out == "", outcome
    said, hint = outcome.err.strip().split("\n")
    assert said.startswith("distribcache: ") and hint.startswith("  hint: ")
    assert "geheim" not in outcome.err
    return said, hint


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        ([], "upstream.url: no PostgreSQL server", "--upstream"),
        (["--upstream", "mysql://x/y"], "not a PostgreSQL URL", "postgresql://"),
        (["--upstream", "postgresql://a@h:abc/d"], "not a port: 'abc'", "65535"),
        (["--upstream", "postgresql://a@h/d?sslmode=bogus"], "sslmode 'bogus'", "verify-full"),
        (["--upstream", NOBODY, "--listen", "foo"], "listen.address: 'foo'", "127.0.0.1:6432"),
        (["--upstream", NOBODY, "--workers", "0"], "listen.workers: 0", "greater"),
        (["--upstream", NOBODY, "--l3", "nonsense"], "l3.peers: 'nonsense'", "embedded"),
        (["--upstream", NOBODY, "--config", "/nowhere.toml"], "No such file", "--config"),
    ],
)
def test_wrong_settings(cli: Cli, arguments: list[str], said: str, hint: str) -> None:
    line, remedy = refused(cli, *arguments)
    assert said in line and hint in remedy


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("which", ["listen", "admin"])
def test_addresses_that_cannot_be_had(cli: Cli, taken: str, which: str, workers: str) -> None:
    other = "admin" if which == "listen" else "listen"
    rest = ("--upstream", NOBODY, f"--{other}", "127.0.0.1:0", "--workers", workers)
    line, remedy = refused(cli, *rest, f"--{which}", taken)
    assert f"{which}.address {taken}: cannot listen: Address already in use" in line
    assert "another program" in remedy and f"--{which}" in remedy
    for absent in ("203.0.113.5:6432", "no-such-host.invalid:6432"):
        line, remedy = refused(cli, *rest, f"--{which}", absent)
        assert absent in line and "no such address" in remedy and f"--{which}" in remedy


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("written", "said", "hint"),
    [
        (f'{PEERS}password_file = "/nowhere"', "l3.password_file: /nowhere cannot be read: No such", "text"),
        (f'{PEERS}tls = true\ntls_ca = "/nowhere"', "l3.tls_ca: /nowhere cannot be read: No such", "PEM"),
        ('[listen]\ntls_cert = "/nowhere"\ntls_key = "/nowhere"', "listen.tls_cert", "PEM"),
        ('[l2]\npath = "/etc/passwd"', "l2.path = /etc/passwd: not a directory", "directory"),
    ],
)
def test_files_that_cannot_be_used(
    cli: Cli, tmp_path: Path, written: str, said: str, hint: str, workers: str
) -> None:
    """One process says it as several do, and none of them tries it again and again."""
    file = tmp_path / "some.toml"
    file.write_text(written)
    line, remedy = refused(cli, "--upstream", NOBODY, *ANYWHERE, "--workers", workers, "--config", str(file))
    assert said in line and hint in remedy


def test_the_admin_endpoint_may_have_an_ipv6_address(cli: Cli) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        address = f"[::1]:{sock.getsockname()[1]}"
        line, _ = refused(cli, "--upstream", NOBODY, "--listen", "127.0.0.1:0", "--admin", address)
    assert "cannot listen: Address already in use" in line


def test_a_directory_of_l2_that_cannot_be_used_is_said(database: Database, tmp_path: Path) -> None:
    (tmp_path / "l2").mkdir(mode=0o777)
    (tmp_path / "l2").chmod(0o777)
    with subprocess.Popen(
        [sys.executable, "-m", "distribcache", "serve", "--upstream", database.server.url(database.name), *ANYWHERE,
         "--l2", str(tmp_path / "l2")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as served:  # fmt: skip
        assert served.stdout is not None and served.stderr is not None
        try:
            assert "distribcache 0." in served.stdout.readline()
            lines = iter(served.stderr.readline, "")
            (line,) = [next(line for line in lines if "L2 off" in line)]
        finally:
            served.terminate()
        assert "unsafe_directory" in line and str(tmp_path / "l2") in line
        assert served.wait(60) == 0


def test_what_is_no_command(cli: Cli) -> None:
    assert cli("serf").status == 2
    assert cli("serve", "--bogus").status == 2
    assert cli("serve", "--workers", "many").status == 2


def test_help_says_what_to_expect(cli: Cli) -> None:
    whole = cli("--help")
    assert whole.status == 0 and "Exit status" in whole.out
    served = cli("serve", "--help")
    assert served.status == 0 and "DISTRIBCACHE_SECTION_KEY" in served.out
    assert cli("--version").out == cli("version").out != ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_log_on_a_full_disk_stops_nothing(database: Database, workers: int) -> None:
    command = [sys.executable, "-m", "distribcache", "serve", "--upstream", database.url(), "--admin", "127.0.0.1:0"]
    command += ["--workers", f"{workers}"]
    said = ""

    def start() -> None:
        nonlocal process, conninfo
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"], stdout=full, stderr=full)
        conninfo = psycopg.conninfo.make_conninfo(database.conninfo(), host="127.0.0.1", port=port)

    def serves() -> bool:
        nonlocal said
        if process.poll() == 2:  # somebody else took the port meanwhile
            start()
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(conninfo, autocommit=True) as connection:
            said = str(connection.execute("SHOW distribcache.freshness").fetchall())
            return "('serving', 'True')" in said
        return False

    with Path("/dev/full").open("w") as full:
        process: subprocess.Popen[bytes]
        conninfo = ""
        start()
        try:
            until(serves, lambda: said)
        finally:
            process.terminate()
            process.wait(60)
