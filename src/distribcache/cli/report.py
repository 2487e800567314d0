"""How commands print: one line per fact for people, one JSON object for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from distribcache.cli.objects import Deed
from distribcache.cli.prerequisites import Check

__all__ = ["print_checks", "print_deeds", "print_json"]

_COLOURS = {
    "ok": "green", "advice": "yellow", "problem": "red", "skipped": "dim",
    "created": "green", "replaced": "green", "removed": "green", "released": "green",
    "present": "dim", "absent": "dim", "refused": "red",
}


def print_json(facts: dict[str, Any]) -> None:
    """One object on one line; dates and paths as text."""
    print(json.dumps(facts, default=str))


def print_checks(checks: Iterable[Check]) -> None:
    """Status, name and finding; the statements that mend it below."""
    out = Console(highlight=False, soft_wrap=True)
    for check in checks:
        out.print(_line(check.status, check.name, check.detail))
        for statement in check.fix:
            out.print(Text(f"           {statement}", style="dim" if statement.startswith("--") else "bold"))


def print_deeds(deeds: Iterable[Deed]) -> None:
    """What was done to which object, and why not."""
    out = Console(highlight=False, soft_wrap=True)
    for deed in deeds:
        out.print(_line(deed.outcome, deed.thing, deed.why))
        if deed.fix:
            out.print(Text(f"           {deed.fix}", style="bold"))


def as_dicts(facts: Iterable[Check | Deed]) -> list[dict[str, Any]]:
    """The same facts for JSON."""
    return [asdict(fact) for fact in facts]


def _line(status: str, name: str, detail: str) -> Text:
    line = Text(f"{status:<9}", style=_COLOURS.get(status, ""))
    line.append(f"  {name:<23}" if detail else f"  {name}", style="default")
    return line.append(f" {detail}" if detail else "", style="default")
