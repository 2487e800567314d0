"""``cli``: run a command of distribcache in this process, as the console script would."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from distribcache.cli import main


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that was printed."""
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["distribcache", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
                raise SystemExit(0)
        captured = capsys.readouterr()
        code = ended.value.code
        assert "Traceback" not in captured.err
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
