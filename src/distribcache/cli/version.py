"""`distribcache version`: which release this is."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Annotated

import typer

__all__ = ["version"]


def version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print the version."""
    facts = {"distribcache": metadata.version("distribcache"), "python": platform.python_version()}
    print(json.dumps(facts) if as_json else f"distribcache {facts['distribcache']} (Python {facts['python']})")
