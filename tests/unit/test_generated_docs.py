"""Pages of the reference that are written from the code say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_pages_match_the_code() -> None:
    stale = [name for name, text in generated().items() if (DOCS / name).read_text("utf-8") != text]
    assert not stale, "run `make docs`"


def test_example_file_is_valid_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distribcache.config import load

    monkeypatch.chdir(tmp_path)
    assert load(DOCS / "reference/distribcache.toml").model_dump() == load().model_dump()
