"""Other people's test suites, fetched once into build/ and never committed.

PostgreSQL's own suite comes from Debian's source package of the installed major version, through apt with lists and
cache of our own (the system's configuration is neither read for sources nor changed). The drivers' suites come from
their source distributions on PyPI; psycopg 3 leaves its tests out of that, so they come from Debian's source package.

``Unavailable`` says that a suite cannot be had here, and why; the runner reports it and goes on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.servers import which

__all__ = ["BUILD", "ROOT", "Unavailable", "debian_source", "pip_target", "sdist"]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "suites"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unavailable(Exception):
    """A suite that this machine cannot get or run; the text says why."""


def _run(argv: list[str], cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [line for line in (done.stdout + done.stderr).strip().splitlines() if line][-3:]
        raise Unavailable(f"{argv[0]}: " + " | ".join(last))
    return done.stdout


def _codename() -> str:
    text = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    found = re.search(r"^VERSION_CODENAME=(\w+)", text, re.M)
    if found is None or which("apt-get") is None:
        raise Unavailable("no Debian apt here")
    return found[1]


def _apt(folder: Path, suites: Iterable[str]) -> list[str]:
    """Options that give apt sources, lists and a cache under ``folder`` and nothing of the system's."""
    for name in ("parts", "lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    code = _codename()
    signed = f"Signed-By: {KEYRING}\n" if Path(KEYRING).exists() else ""
    (folder / "parts" / "src.sources").write_text(
        f"Types: deb-src\nURIs: http://deb.debian.org/debian\nSuites: {' '.join(suites)}\nComponents: main\n{signed}\n"
        "Types: deb-src\nURIs: http://deb.debian.org/debian-security\n"
        f"Suites: {code}-security\nComponents: main\n{signed}"
    )
    pairs = {
        "Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": folder / "parts",
        "Dir::State::Lists": folder / "lists", "Dir::Cache": folder / "cache", "APT::Sandbox::User": "root",
    }
    return [part for key, value in pairs.items() for part in ("-o", f"{key}={value}")]


def debian_source(package: str, *, prefer: str = "", suites: Iterable[str] = ()) -> Path:
    """Unpacked upstream source of a Debian source package (its .orig tarball). ``prefer`` is a version to try first.

    Versions are tried newest first, because mirrors forget superseded ones. Raises Unavailable.
    """
    target = BUILD / "src" / package
    if (target / ".complete").exists():
        return Path((target / ".complete").read_text())
    target.mkdir(parents=True, exist_ok=True)
    options = _apt(BUILD / "apt", suites or (_codename(), _codename() + "-updates"))
    _run(["apt-get", *options, "-q", "update"], target)
    shown = _run(["apt-cache", *options, "showsrc", "--only-source", package], target)
    versions = sorted(set(re.findall(r"^Version: (\S+)", shown, re.M)), key=_version_key, reverse=True)
    versions.sort(key=lambda v: v != prefer)
    why = "no such source package"
    for version in versions:
        try:
            _run(["apt-get", *options, "-q", "source", "--download-only", f"{package}={version}"], target)
            archive = next(target.glob(f"*_{version.split('-')[0]}.orig.tar.*"))
        except (Unavailable, StopIteration) as error:
            why = str(error)
            continue
        folder = _unpack(archive, target)
        (target / ".complete").write_text(str(folder))
        return folder
    raise Unavailable(f"Debian's source of {package}: {why}")


def _version_key(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _unpack(archive: Path, target: Path) -> Path:
    with tarfile.open(archive) as bundle:
        top = bundle.getnames()[0].split("/")[0]
        bundle.extractall(target, filter="data")
    return target / top


def sdist(requirement: str) -> Path:
    """Unpacked source distribution of a PyPI package, fetched by pip. Raises Unavailable."""
    target = BUILD / "src" / requirement.replace("==", "-")
    if (target / ".complete").exists():
        return Path((target / ".complete").read_text())
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps", requirement]
    _run(pip, target)
    folder = _unpack(next(target.glob("*.tar.gz")), target)
    (target / ".complete").write_text(str(folder))
    return folder


def pip_target(name: str, *requirements: str) -> Path:
    """A folder for PYTHONPATH into which pip has installed ``requirements``, apart from our own environment."""
    target = BUILD / "lib" / name
    if not (target / ".complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        _run([sys.executable, "-m", "pip", "install", "-q", "--target", str(target), *requirements], target)
        (target / ".complete").write_text("")
    return target
