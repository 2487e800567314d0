"""The test suites of PostgreSQL drivers, run by pytest in a process of their own against a server or a proxy.

psycopg    psycopg 3. Its tests are in none of its PyPI archives: PSYCOPG_TESTS names a checkout, else Debian's source
           package or the project's release archive is asked for the installed version.
psycopg2   simple protocol, client-side parameters, replication connections, cancels
asyncpg    extended protocol in binary, Flush, prepared statements, its pool and its introspection queries
sqlalchemy the PostgreSQL dialect's tests over psycopg 3: every read in a transaction, prepared statements, reflection

Each suite runs from a copy of its tests alone, so that the installed driver is what is tested, and with no settings of
ours (no conftest, no pytest.ini). Statuses are compared per test id.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.suites.fetch import BUILD, Unavailable, debian_source, pip_target, sdist
from tests.suites.outcomes import Outcome, Run

__all__ = ["DRIVERS", "Driver", "run"]

_RANK = {"passed": 0, "skipped": 1, "failed": 2, "error": 3}


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver's suite.

    ``source()`` returns the folder of which ``copies`` are copied; ``libraries()`` go first on PYTHONPATH; ``ini`` is a
    copied file with pytest's settings, empty for none; ``setup`` are statements for the fresh database.
    """

    name: str
    source: Callable[[], Path]
    environment: Callable[[int, str], dict[str, str]] = lambda port, dbname: {}
    arguments: Callable[[int, str], list[str]] = lambda port, dbname: []
    libraries: Callable[[], list[Path]] = list
    copies: tuple[str, ...] = ("tests",)
    paths: tuple[str, ...] = ("tests",)
    ini: str = ""
    setup: tuple[str, ...] = ("CREATE EXTENSION IF NOT EXISTS hstore", "CREATE EXTENSION IF NOT EXISTS citext")
    unstable: Mapping[str, str] = field(default_factory=dict)


def _dsn(port: int, dbname: str) -> str:
    return f"host=127.0.0.1 port={port} dbname={dbname} user=postgres"


def _psycopg_tests() -> Path:
    if given := os.environ.get("PSYCOPG_TESTS"):
        return Path(given).resolve().parent
    version = importlib.metadata.version("psycopg")
    reasons: list[str] = []
    for source in (_psycopg_debian, _psycopg_release):
        try:
            return source(version)
        except Unavailable as error:
            reasons.append(str(error))
    raise Unavailable("; ".join(reasons) + "; PSYCOPG_TESTS=<tests folder of a checkout> would do")


def _psycopg_debian(version: str) -> Path:
    folder = debian_source("psycopg3", prefer=version, suites=("sid",))
    series = version.rsplit(".", 1)[0]
    if f"-{series}." not in folder.name + ".":
        raise Unavailable(f"Debian has {folder.name}, installed is {version}")
    return folder


def _psycopg_release(version: str) -> Path:
    target = BUILD / "src" / f"psycopg-release-{version}"
    folder = target / f"psycopg-{version}"
    if not (folder / "tests").exists():
        address = f"https://github.com/psycopg/psycopg/archive/refs/tags/{version}.tar.gz"
        try:
            with urllib.request.urlopen(address, timeout=30) as reply:
                packed = reply.read()
        except (urllib.error.URLError, OSError) as error:
            raise Unavailable(f"release archive: {error}") from error
        with tarfile.open(fileobj=io.BytesIO(packed)) as bundle:
            bundle.extractall(target, filter="data")
    return folder


_PSYCOPG2 = "2.9.13"
_installed = importlib.metadata.version

DRIVERS: dict[str, Driver] = {
    "psycopg": Driver(
        "psycopg", _psycopg_tests,
        arguments=lambda port, dbname: ["--test-dsn", _dsn(port, dbname), "-m", "not slow and not timing and not mypy"],
        libraries=lambda: [pip_target("psycopg", "anyio", "dnspython")],
    ),
    "psycopg2": Driver(
        "psycopg2", lambda: sdist(f"psycopg2=={_PSYCOPG2}"),
        environment=lambda port, dbname: {
            "PSYCOPG2_TESTDB": dbname, "PSYCOPG2_TESTDB_HOST": "127.0.0.1", "PSYCOPG2_TESTDB_PORT": str(port),
            "PSYCOPG2_TESTDB_USER": "postgres", "PSYCOPG2_TEST_REPL_DSN": _dsn(port, dbname),
        },
        libraries=lambda: [pip_target("psycopg2", f"psycopg2-binary=={_PSYCOPG2}")],
    ),
    "asyncpg": Driver(
        "asyncpg", lambda: sdist(f"asyncpg=={_installed('asyncpg')}"),
        environment=lambda port, dbname: {
            "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": dbname,
        },
        # Left out: its own lint, and tests that start servers with initdb (which refuses root).
        arguments=lambda port, dbname: ["--deselect", "tests/test__sourcecode.py", "-k", "not standby and not target"],
        libraries=lambda: [pip_target("asyncpg", "distro")],
        unstable={
            "tests.test_execute.TestExecuteMany::test_executemany_server_failure_during_writes":
                "counts batches written before the error is read: half of the runs through a bare relay fail it too",
        },
    ),
    "sqlalchemy": Driver(
        "sqlalchemy", lambda: sdist(f"sqlalchemy=={_installed('sqlalchemy')}"),
        arguments=lambda port, dbname: [
            "--dburi", f"postgresql+psycopg://postgres@127.0.0.1:{port}/{dbname}",
            "--ignore", "test/dialect/postgresql/test_compiler.py", "--maxfail", "100000",
        ],
        copies=("test", "lib/sqlalchemy/testing/plugin", "setup.cfg", "pyproject.toml"),
        paths=("test/dialect/test_suite.py", "test/dialect/postgresql"),
        ini="pyproject.toml",
        setup=(
            "CREATE EXTENSION IF NOT EXISTS hstore", "CREATE EXTENSION IF NOT EXISTS citext",
            "CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2",
        ),
    ),
}


def run(
    driver: Driver, port: int, dbname: str, work: Path, kept: Path, *,
    env: Mapping[str, str], tests: Sequence[str] = (), limit_s: float = 1200.0,
) -> Run:
    """One run. ``tests`` are names that pytest's -k understands. Raises Unavailable."""
    work.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    source = driver.source()
    for name in driver.copies:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, work / name)
        else:
            shutil.copy(source / name, work / name)
    # A file named on the command line stops pytest from looking upwards and finding ours.
    ini = work / (driver.ini or "pytest.ini")
    if not driver.ini:
        ini.write_text("[pytest]\n")
    report = kept / "report.xml"
    report.unlink(missing_ok=True)
    argv: list[str | Path] = [
        sys.executable, "-s", "-m", "pytest", "-c", ini, "--rootdir", work, *driver.paths, "-q", "-ra", "--tb=short",
        f"--junitxml={report}", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout",
        *driver.arguments(port, dbname),
    ]
    if tests:
        argv += ["-k", " or ".join(tests)]  # the last -k wins
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PYTEST", "COV"))}
    clean["PYTHONPATH"] = os.pathsep.join(str(p) for p in driver.libraries())
    began = time.monotonic()
    with (kept / "log.txt").open("wb") as log:
        try:
            subprocess.run(
                argv, cwd=work, env={**clean, "PGSSLMODE": "prefer", **driver.environment(port, dbname), **env},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit_s:.0f} s\n".encode())
    seconds = time.monotonic() - began
    text = (kept / "log.txt").read_text(errors="replace")
    return Run(read_report(report), seconds, log=text[-2000:])


def read_report(report: Path) -> dict[str, Outcome]:
    """Statuses by test id out of a JUnit file. An id that occurs twice (test and its teardown) keeps the worse one."""
    outcomes: dict[str, Outcome] = {}
    if not report.exists():
        return outcomes
    for case in ET.parse(report).getroot().iter("testcase"):
        status = "passed"
        for child in case:
            found = {"failure": "failed", "error": "error", "skipped": "skipped"}.get(child.tag)
            if found and _RANK[found] > _RANK[status]:
                status = found
        name = f"{case.get('classname')}::{case.get('name')}"
        before = outcomes.get(name)
        if before is None or _RANK[before.status] < _RANK[status]:
            outcomes[name] = Outcome(status)
    return outcomes
