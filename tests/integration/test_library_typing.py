"""What a program that uses the library looks like to a type checker: what the pages show passes, mistakes do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="a part of the lint group")

PROGRAM = """
from collections.abc import Callable
from distribcache import CacheEntry, DistribCache, DistribCacheConfig, QueryFingerprint, Row

cache = DistribCache(DistribCacheConfig(l1_size="64MB"))

@cache.cached(ttl="10min", tables=["item"], tags=["page:{number}"])
async def page(number: int) -> list[str]:
    return []

@cache.cached
def twice(number: int) -> int:
    return 2 * number

class Shop:
    @cache.cached(key=lambda self, item: item)
    def price(self, item: int) -> float:
        return 1.0

async def main() -> None:
    found: list[str] = await page(1)
    page.invalidate(1)
    number: int = twice(4) + twice.uncached(4)
    plain: Callable[[int], int] = twice
    price: float = Shop().price(5)
    rows: list[Row] = await cache.fetch(object(), "SELECT 1 AS one", consistency="strict", ttl="5s")
    print(rows[0].one, rows[0]["one"], cache.last.status, cache.stats().tiers["L1"].hits, found, number, plain, price)
    query = QueryFingerprint.from_query("SELECT 1").with_params(5)
    entry = await cache.get(query)
    if entry is None:
        await cache.insert(query, CacheEntry(b"the answer", ttl="1min"))
    async with cache.writing():
        cache.wrote()
"""

MISTAKES = [
    ("page.invalidate('x')", "arg-type"),
    ("twice('x')", "arg-type"),
    ("cache.cached(tt=5)", "call-overload"),
    ("CacheEntry('text')", "arg-type"),
    ("cache.last.stat", "attr-defined"),
]


def checked(folder: Path, program: str) -> tuple[int, str]:
    file = folder / "program.py"
    file.write_text(program, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", f"--cache-dir={folder / 'cache'}", file],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_what_a_type_checker_says(tmp_path: Path) -> None:
    assert checked(tmp_path, PROGRAM) == (0, "Success: no issues found in 1 source file\n")
    status, said = checked(tmp_path, PROGRAM + "\n".join(mistake for mistake, _ in MISTAKES))
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert status == 1
    first = PROGRAM.count("\n") + 1
    for place, (mistake, code) in enumerate(MISTAKES):
        assert any(f"program.py:{first + place}:" in line and f"[{code}]" in line for line in lines), (mistake, said)
