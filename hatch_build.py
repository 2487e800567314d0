"""Compiled wheels: the modules that a query passes through, as C, made of the same source by mypyc.

Off unless asked for: ``HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel .``. Pure Python is always enough, and an editable
install stays pure. ``python hatch_build.py FOLDER`` puts the package with its compiled modules into FOLDER, to be first
in PYTHONPATH: so tests and benchmarks use it without a wheel. (A second word is the level of optimisation, 0 to 3.)

Rules:
1. Nothing is written into the source folder: a compiled module beside its source would hide every later change of it.
2. A wheel that was asked to be compiled is compiled, or there is none.
3. The C compiler and Python's headers are the machine's; mypyc comes as a requirement of this hook.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:  # run as a program
        BuildHookInterface = object

__all__ = ["MODULES", "CompiledHook", "compile_into", "package_into"]

ROOT = Path(__file__).resolve().parent
MODULES = (
    "clock", "coherence/validity", "entry", "proxy/extended", "proxy/fill", "proxy/forward", "proxy/group", "proxy/hit",
    "proxy/local", "proxy/lookup", "proxy/prepared", "proxy/replies", "proxy/session", "proxy/simple", "proxy/single",
    "proxy/standing", "proxy/transaction",
)  # fmt: skip
"""What a hit, a miss and a write pass through between the sockets. They compile as they are."""

_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

level, *files = sys.argv[1:]
extensions = mypycify(["--config-file", "mypy.ini", *files], opt_level=level, target_dir="c")
setup(name="compiled", packages=[], ext_modules=extensions, script_args=["-q", "build_ext", "--build-lib", "lib"])
"""
# Only our own annotations count: what others publish may be absent where wheels are built.
_MYPY = """[mypy]
mypy_path = {source}
follow_imports = silent
ignore_missing_imports = True
[mypy-postgast.*,psycopg.*,pydantic.*,pydantic_core.*,starlette.*,uvicorn.*,uvloop.*]
follow_imports = skip
"""


def compile_into(folder: Path, *, level: str = "3") -> list[Path]:
    """Compile ``MODULES``; the shared libraries are put into ``folder``, at the paths that they have in the package.

    ``level``: of the C compiler's optimisation. Raises RuntimeError with the compiler's words.
    """
    source = ROOT / "src"
    with tempfile.TemporaryDirectory(prefix="distribcache-compile-") as name:
        work = Path(name)
        (work / "setup.py").write_text(_SETUP)
        (work / "mypy.ini").write_text(_MYPY.format(source=source))
        files = [source / "distribcache" / f"{module}.py" for module in MODULES]
        done = subprocess.run(
            [sys.executable, "setup.py", level, *map(str, files)],
            cwd=work,
            env={**os.environ, "MYPY_CACHE_DIR": str(work / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError("mypyc: " + (done.stdout + done.stderr)[-2000:])
        made = sorted((work / "lib").rglob("*.*"))
        for path in made:
            target = folder / path.relative_to(work / "lib")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        return [folder / path.relative_to(work / "lib") for path in made]


def package_into(folder: Path, *, level: str = "3") -> None:
    """The whole package, compiled where it is worth it, for PYTHONPATH."""
    shutil.copytree(
        ROOT / "src" / "distribcache", folder / "distribcache", ignore=shutil.ignore_patterns("__pycache__")
    )
    compile_into(folder, level=level)


class CompiledHook(BuildHookInterface):
    """Adds the libraries to a wheel; hatchling calls it only when it was asked for."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="distribcache-wheel-")
        folder = Path(self._folder.name)
        for path in compile_into(folder):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()


if __name__ == "__main__":
    package_into(Path(sys.argv[1]), level=sys.argv[2] if sys.argv[2:] else "3")
