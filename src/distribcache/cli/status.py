"""`distribcache status`: what a running node says about itself."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from distribcache.cli.admin import Admin, fetch
from distribcache.cli.link import Config, Json
from distribcache.cli.report import print_json
from distribcache.config import load

__all__ = ["status"]


def status(admin: Admin = None, config: Config = None, as_json: Json = False) -> None:
    """Show hits, freshness and tiers of a running node. Exit status 3: no node answers."""
    facts = fetch(load(config, {"admin.address": admin}).admin.address)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    """Scalars first, then one block per group, whatever the node reports."""
    out = Console(highlight=False, soft_wrap=True, markup=False)
    for name, value in facts.items():
        if not isinstance(value, dict | list):
            out.print(f"{name:<24} {_text(value)}")
    for name, value in facts.items():
        rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if rows:
            out.print(f"\n{name}", style="bold")
        for key, item in rows:
            shown = ", ".join(f"{k} {_text(v)}" for k, v in item.items()) if isinstance(item, dict) else _text(item)
            out.print(f"  {key!s:<22} {shown}" if isinstance(value, dict) else f"  {shown}")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
