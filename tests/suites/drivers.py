"""The test suites of PostgreSQL drivers, each in a process of its own against a server or a proxy.

psycopg    psycopg 3. Its tests are in none of its PyPI archives: PSYCOPG_TESTS names a checkout, else Debian's source
           packages and the project's release archive are asked, newest first; the library of the same version is used.
psycopg2   simple protocol, client-side parameters, replication connections, cancels
asyncpg    extended protocol in binary, Flush, prepared statements, its pool and its introspection queries
sqlalchemy the PostgreSQL dialect's tests over psycopg 3: every read in a transaction, prepared statements, reflection
django     what Django's tests do to a database, over psycopg 3 with parameters bound by the server: savepoints, server
           cursors, COPY, DDL in transactions, databases that are made, cloned and dropped through the proxy

Each suite runs from a copy of its tests alone, so that the installed driver is what is tested, and with no settings of
ours (no conftest, no pytest.ini). All but Django's are run by pytest. Statuses are compared per test id.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.suites.fetch import BUILD, Unavailable, debian_source, pip_target, sdist
from tests.suites.outcomes import Run, read_report

__all__ = ["DRIVERS", "Driver", "run"]


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver's suite.

    ``source()`` returns the folder of which ``copies`` are copied; ``libraries()`` go first on PYTHONPATH; ``ini`` is a
    copied file with pytest's settings, empty for none; ``setup`` are statements for the fresh database. ``program``
    replaces pytest: the folder, the tests asked for and the report become the command.
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
    program: Callable[[Path, Sequence[str]], list[str | Path]] | None = None


def _dsn(port: int, dbname: str) -> str:
    return f"host=127.0.0.1 port={port} dbname={dbname} user=postgres"


def _psycopg_tests() -> Path:
    if given := os.environ.get("PSYCOPG_TESTS"):
        return Path(given).resolve().parent
    version = importlib.metadata.version("psycopg")
    reasons: list[str] = []
    for source in (lambda: debian_source("psycopg3", suites=("sid", "trixie", "bookworm")),
                   lambda: _psycopg_release(version)):
        try:
            return source()
        except Unavailable as error:
            reasons.append(str(error))
    raise Unavailable("; ".join(reasons) + "; PSYCOPG_TESTS=<tests folder of a checkout> would do")


def _psycopg_library() -> Path:
    """The psycopg of the tests' own version, and what its tests import."""
    root = _psycopg_tests() / "psycopg"
    for name in ("pyproject.toml", "setup.cfg", "psycopg/version.py"):
        text = (root / name).read_text() if (root / name).exists() else ""
        if found := re.search(r"""^(?:__)?version(?:__)? *(?::\s*str\s*)?= *["']?(\d[\w.]*)""", text, re.M):
            return pip_target(f"psycopg-{found[1]}", f"psycopg[binary,pool]=={found[1]}", "anyio", "dnspython")
    raise Unavailable(f"no version of psycopg in {root}")


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


# Django's tests are mostly about other things than the database: these are those that ask it something new.
_DJANGO = (
    "aggregation annotations backends basic bulk_create custom_lookups datatypes db_functions delete expressions "
    "expressions_window get_or_create lookup many_to_many multiple_database ordering postgres_tests prefetch_related "
    "queries raw_query select_for_update select_related timezones transaction_hooks transactions update"
).split()


def _django(work: Path, tests: Sequence[str]) -> list[str | Path]:
    shutil.copy(Path(__file__).with_name("django_settings.py"), work / "tests")
    patterns = [part for test in tests for part in ("-k", test)]
    return [
        sys.executable, work / "tests" / "runtests.py", *_DJANGO, "--settings=django_settings", "--parallel=1",
        "--noinput", *patterns,
    ]


_PSYCOPG2 = "2.9.13"
_installed = importlib.metadata.version

DRIVERS: dict[str, Driver] = {
    "psycopg": Driver(
        "psycopg", _psycopg_tests,
        arguments=lambda port, dbname: ["--test-dsn", _dsn(port, dbname), "-m", "not slow and not timing and not mypy"],
        libraries=lambda: [_psycopg_library()],
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
        # Its tests of pools name this database, and meet what the other tests' connection has made only there.
        environment=lambda port, dbname: {
            "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": "postgres",
        },
        # Left out: its own lint, and tests that start servers with initdb (which refuses root).
        arguments=lambda port, dbname: ["--deselect", "tests/test__sourcecode.py", "-k", "not standby and not target"],
        libraries=lambda: [pip_target("asyncpg", "distro")],
        setup=(),  # they make their extensions themselves, and fail where they are there
        unstable={
            "tests.test_execute.TestExecuteMany::test_executemany_server_failure_during_writes":
                "counts batches written before the error is read: half of the runs through a bare relay fail it too",
            "tests.test_pool.TestPool::test_pool_config_persistence":
                "the pool's end cancels a connection that is being opened; when that falls between the end of TCP's "
                "handshake and the first await of its TLS protocol, a future dies unread, whoever listens",
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
    "django": Driver(
        "django", lambda: sdist(f"django=={_installed('django')}"),
        environment=lambda port, dbname: {"FOREIGN_PORT": str(port), "FOREIGN_DATABASE": dbname},
        libraries=lambda: [pip_target("django", "psycopg-pool", "jinja2", "tblib", "tzdata")],
        program=_django,
    ),
}


def run(
    driver: Driver, port: int, dbname: str, work: Path, kept: Path, *,
    env: Mapping[str, str], tests: Sequence[str] = (), limit_s: float = 1800.0,
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
    report = kept / "report.xml"
    report.unlink(missing_ok=True)
    if driver.program is not None:
        argv = driver.program(work, tests)
    else:
        argv = [*_pytest(driver, work, report), *driver.arguments(port, dbname)]
        argv += ["-k", " or ".join(tests)] if tests else []  # the last -k wins
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PYTEST", "COV"))}
    clean["FOREIGN_REPORT"] = str(report)
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


def _pytest(driver: Driver, work: Path, report: Path) -> list[str | Path]:
    # A file named on the command line stops pytest from looking upwards and finding ours.
    ini = work / (driver.ini or "pytest.ini")
    if not driver.ini:
        ini.write_text("[pytest]\n")
    return [
        sys.executable, "-s", "-m", "pytest", "-c", ini, "--rootdir", work, *driver.paths, "-q", "-ra", "--tb=short",
        f"--junitxml={report}", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout",
    ]
