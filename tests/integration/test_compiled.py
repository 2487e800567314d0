"""The compiled modules do what their source does: the tests of the source, run again with them in its place."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
HEADERS = Path(sysconfig.get_paths()["include"], "Python.h")

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.timeout(600),
    pytest.mark.skipif(COMPILER is None or not HEADERS.exists(), reason="no C compiler, or no headers of Python"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("mypyc", "setuptools")), reason="no mypyc"
    ),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, some of its modules compiled (quickly, not to be quick)."""
    folder = tmp_path_factory.mktemp("compiled")
    subprocess.run([sys.executable, ROOT / "hatch_build.py", folder, "0"], check=True)
    return folder


def run(compiled: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(compiled)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_compiled_modules_are_the_ones_that_run(compiled: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        import hatch_build
    finally:
        sys.path.remove(str(ROOT))
    names = ["distribcache." + module.replace("/", ".") for module in hatch_build.MODULES]
    assert "distribcache.proxy.hit" in names
    found = run(compiled, "-c", "import importlib, sys\nfor name in sys.argv[1:]:\n"
                "    print(importlib.import_module(name).__file__)", *names)  # fmt: skip
    ending = sysconfig.get_config_var("EXT_SUFFIX")
    assert [Path(path).name.endswith(ending) for path in found.split()] == [True] * len(names)


@pytest.mark.parametrize(
    "tests",
    [
        "tests/unit/test_hit.py tests/unit/test_group.py tests/unit/test_replies.py tests/unit/test_transaction.py",
        "tests/property/test_group_reading.py",
        "tests/integration/test_shapes.py",
        "tests/integration/test_proxy_traps.py",
    ],
)
def test_the_tests_of_the_source_pass(compiled: Path, tests: str) -> None:
    summary = run(compiled, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests.split())
    assert " passed" in summary


def test_nothing_is_left_beside_the_source(compiled: Path) -> None:
    assert not [*(ROOT / "src").rglob("*.so"), *(ROOT / "src").rglob("*.pyd")]
