"""The test suites of PostgreSQL drivers, run by pytest in a process of their own against a server or a proxy.

psycopg    psycopg 3. Its tests are in none of its PyPI archives: PSYCOPG_TESTS names a checkout, else Debian's source
           package or the project's release archive is asked for the installed version.
psycopg2   simple protocol, client-side parameters, replication connections, cancels
asyncpg    extended protocol in binary, Flush, prepared statements, its pool and its introspection queries

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
    """A driver's suite: ``tests()`` returns the folder to copy, ``libraries()`` what goes first on PYTHONPATH."""

    name: str
    tests: Callable[[], Path]
    libraries: Callable[[], list[Path]]
    environment: Callable[[int, str], dict[str, str]]
    arguments: Callable[[int, str], list[str]]
    unstable: Mapping[str, str] = field(default_factory=dict)


def _dsn(port: int, dbname: str) -> str:
    return f"host=127.0.0.1 port={port} dbname={dbname} user=postgres"


def _psycopg_tests() -> Path:
    if given := os.environ.get("PSYCOPG_TESTS"):
        return Path(given)
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
    return folder / "tests"


def _psycopg_release(version: str) -> Path:
    target = BUILD / "src" / f"psycopg-release-{version}"
    tests = target / f"psycopg-{version}" / "tests"
    if not tests.exists():
        address = f"https://github.com/psycopg/psycopg/archive/refs/tags/{version}.tar.gz"
        try:
            with urllib.request.urlopen(address, timeout=30) as reply:
                packed = reply.read()
        except (urllib.error.URLError, OSError) as error:
            raise Unavailable(f"release archive: {error}") from error
        with tarfile.open(fileobj=io.BytesIO(packed)) as bundle:
            bundle.extractall(target, filter="data")
    return tests


def _psycopg2_version() -> str:
    return "2.9.13"


DRIVERS: dict[str, Driver] = {
    "psycopg": Driver(
        "psycopg", _psycopg_tests,
        lambda: [pip_target("psycopg", "anyio", "dnspython")],
        lambda port, dbname: {},
        lambda port, dbname: ["--test-dsn", _dsn(port, dbname), "-m", "not slow and not timing and not mypy"],
    ),
    "psycopg2": Driver(
        "psycopg2", lambda: sdist(f"psycopg2=={_psycopg2_version()}") / "tests",
        lambda: [pip_target("psycopg2", f"psycopg2-binary=={_psycopg2_version()}")],
        lambda port, dbname: {
            "PSYCOPG2_TESTDB": dbname, "PSYCOPG2_TESTDB_HOST": "127.0.0.1", "PSYCOPG2_TESTDB_PORT": str(port),
            "PSYCOPG2_TESTDB_USER": "postgres", "PSYCOPG2_TEST_REPL_DSN": _dsn(port, dbname),
        },
        lambda port, dbname: [],
    ),
    "asyncpg": Driver(
        "asyncpg", lambda: sdist(f"asyncpg=={importlib.metadata.version('asyncpg')}") / "tests",
        lambda: [pip_target("asyncpg", "distro")],
        lambda port, dbname: {
            "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": dbname,
        },
        lambda port, dbname: [],
    ),
}


def run(
    driver: Driver, port: int, dbname: str, work: Path, kept: Path, *,
    env: Mapping[str, str], tests: Sequence[str] = (), limit_s: float = 1200.0,
) -> Run:
    """One run. ``tests`` are names that pytest's -k understands. Raises Unavailable."""
    work.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copytree(driver.tests(), work / "tests", dirs_exist_ok=True)
    # Its own settings only: an ini file stops pytest from looking upwards and finding ours.
    (work / "pytest.ini").write_text("[pytest]\n")
    report = kept / "report.xml"
    report.unlink(missing_ok=True)
    argv = [
        sys.executable, "-m", "pytest", "-c", work / "pytest.ini", "--rootdir", work, "tests", "-q", "-ra",
        "--tb=short", f"--junitxml={report}", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout",
        *driver.arguments(port, dbname),
    ]
    if tests:
        argv += ["-k", " or ".join(tests)]
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
