"""PostgreSQL's own regression suite, run by pg_regress against a server or a proxy that is already there.

What it needs: the sources of the installed major version (tests, expected output, data), ``pg_regress`` and the server
headers (Debian: postgresql-server-dev-NN) and a C compiler for the suite's ``regress.so``.

The suite reads and writes files on the server's side too (COPY, lo_export, LOAD), so everything it touches is copied
to a folder that the server's user owns, and pg_regress runs as that user. pg_regress sets PGOPTIONS, PGTZ and others
itself and appends to a PGOPTIONS that it finds: that is how a pass switches the cache off.

What each test printed is compared byte for byte between passes, apart from what differs by itself in two direct runs
(``_NOISE``: object ids in error texts and the like).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers import SERVER_USER, which
from tests.suites.fetch import BUILD, Unavailable, debian_source
from tests.suites.outcomes import Outcome, Run

__all__ = ["NAME", "OPTIONS", "UNSTABLE", "prepare", "run"]

NAME = "postgres"
# Settings that pg_regress gives a server of its own.
OPTIONS = {
    "max_prepared_transactions": "2", "log_min_messages": "warning", "shared_buffers": "128MB", "lc_messages": "C",
    "max_connections": "200",
}
# Tests that two direct runs do not repeat, each with the reason.
UNSTABLE: dict[str, str] = {}
_NOISE: list[tuple[re.Pattern[bytes], bytes]] = []
# The first test fills and vacuums the tables that all others read, and they expect plans that need these all-visible. A
# snapshot that anybody holds in that moment prevents it, and whoever reads the catalogue holds one. So in every pass,
# before the second test begins, the database is vacuumed once more, directly and after a rest.
_LAUNCHER = """#!/bin/sh
if mkdir {work}/first 2>/dev/null; then :
elif mkdir {work}/second 2>/dev/null; then
  sleep 2
  PGOPTIONS= {psql} -X -q -h 127.0.0.1 -p {port} -U postgres -d regression -c VACUUM >/dev/null 2>&1
  : > {work}/go
else
  while [ ! -e {work}/go ]; do sleep 0.05; done
fi
exec "$@"
"""
_LINE = re.compile(r"^(?:test |     )?\s*(\w+)\s+\.\.\.\s+(ok|FAILED|failed \(ignored\))", re.M)


def prepare(bin_dir: Path) -> Path:
    """A folder with input, libraries and pg_regress, ready to be copied. Raises Unavailable."""
    config = which("pg_config") if not (bin_dir / "pg_config").exists() else str(bin_dir / "pg_config")
    if config is None:
        raise Unavailable("pg_config is not installed")


    def ask(what: str) -> str:
        return subprocess.run([config, what], capture_output=True, text=True, check=True).stdout.strip()

    driver = Path(ask("--pgxs")).parent.parent / "test" / "regress" / "pg_regress"
    if not driver.exists():
        raise Unavailable("pg_regress is not installed (Debian: postgresql-server-dev-NN)")
    version = ask("--version").split()[1]
    major = version.split(".")[0]
    source = debian_source(f"postgresql-{major}") / "src" / "test" / "regress"
    target = BUILD / f"regress-{major}"
    if (target / ".complete").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target / "input")
    library = target / "lib"
    library.mkdir()
    compiler = which("cc")
    if compiler is None:
        raise Unavailable("no C compiler for regress.so")
    flags = ["-O1", "-fPIC", "-shared", "-w", "-I", ask("--includedir-server"), "-I", str(source)]
    subprocess.run([compiler, *flags, "-o", library / "regress.so", source / "regress.c"], check=True)
    for module in ("autoinc.so", "refint.so"):
        shutil.copy(Path(ask("--pkglibdir")) / module, library / module)
    shutil.copy(driver, target / "pg_regress")
    (target / ".complete").write_text(version)
    return target


def run(
    prepared: Path, bin_dir: Path, port: int, work: Path, kept: Path, *,
    server_port: int, env: Mapping[str, str], tests: Sequence[str] = (),
) -> Run:
    """One run through ``port`` of loopback. ``work`` is a fresh folder for it, ``kept`` gets diffs and outputs."""
    shutil.copytree(prepared, work, dirs_exist_ok=True)
    out = work / "out"
    out.mkdir()
    how: dict[str, Any] = {}
    if os.geteuid() == 0:
        account = pwd.getpwnam(SERVER_USER)
        how = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        for folder, _, files in os.walk(work):
            for name in (".", *files):
                os.chown(Path(folder) / name, account.pw_uid, account.pw_gid)
    launcher = work / "launch"
    launcher.write_text(_LAUNCHER.format(work=work, psql=bin_dir / "psql", port=server_port))
    launcher.chmod(0o755)
    argv: list[str | Path] = [
        work / "pg_regress", "--inputdir", work / "input", "--outputdir", out, "--bindir", bin_dir, "--dlpath",
        work / "lib", "--host", "127.0.0.1", "--port", str(port), "--user", "postgres", "--dbname", "regression",
        "--max-concurrent-tests", "20", "--launcher", launcher,
    ]
    argv += ["test_setup", *[t for t in tests if t != "test_setup"]] if tests else [
        "--schedule", work / "input" / "parallel_schedule"
    ]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=out, env={**clean, "PGSSLMODE": "disable", **env}, capture_output=True, text=True, check=False,
        errors="replace", stdin=subprocess.DEVNULL, **how,
    )
    seconds = time.monotonic() - began
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "log.txt").write_text(done.stdout + done.stderr)
    if (out / "regression.diffs").exists():
        shutil.copy(out / "regression.diffs", kept / "regression.diffs")
    outcomes: dict[str, Outcome] = {}
    for name, status in _LINE.findall(done.stdout):
        result = out / "results" / f"{name}.out"
        text = result.read_bytes() if result.exists() else b""
        (kept / "results").mkdir(exist_ok=True)
        (kept / "results" / f"{name}.out").write_bytes(text)
        outcomes[name] = Outcome("passed" if status == "ok" else "failed", digest(text))
    return Run(outcomes, seconds, log=(done.stdout + done.stderr)[-2000:])


def digest(text: bytes) -> str:
    """Digest of what a test printed, without what two direct runs do not repeat."""
    for pattern, instead in _NOISE:
        text = pattern.sub(instead, text)
    return hashlib.sha256(text).hexdigest()[:16]
