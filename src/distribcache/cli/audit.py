"""`distribcache audit`: ask PostgreSQL again, for a while, whatever a running node answers from memory.

The node does it, behind each answer, on the connection of the client that asked; this command starts it, waits, and
says what was found. The rate's upper bound is one-sided, at 95 % (Clopper and Pearson): no stale answer in n audits
still leaves a rate of about 3/n possible.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any

import typer
from rich.console import Console

from distribcache.cli.admin import Admin, fetch
from distribcache.cli.link import Config, Json
from distribcache.cli.report import print_json
from distribcache.coherence.auditor import upper_bound
from distribcache.config import load
from distribcache.config.units import parse_duration
from distribcache.errors import ConfigError

__all__ = ["audit", "summary"]

_PATH = "/api/audit"
_GLANCE_S = 0.5
_LATE = 120
"""Looks at verdicts that are still to come."""


def audit(
    seconds: Annotated[float, typer.Option("--seconds", metavar="N", min=0.1, max=86_400, help="How long.")] = 10.0,
    max_cost: Annotated[
        str, typer.Option("--max-cost", metavar="TIME", help="Leave out statements whose fill took longer.")
    ] = "1s",
    least: Annotated[
        int, typer.Option("--least", metavar="N", min=0, help="With fewer audits than this, the exit status is 1.")
    ] = 0,
    admin: Admin = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask PostgreSQL again whatever a running node answers from memory, and compare.

    Meanwhile each hit costs as much as a miss. Exit status 1: a stale answer was found. It must run on the node's
    machine.
    """
    address = load(config, {"admin.address": admin}).admin.address
    try:
        cost = parse_duration(max_cost)
    except ValueError as error:
        message, _, remedy = str(error).partition("; ")
        raise ConfigError(f"{max_cost!r}: {message}", where="--max-cost", hint=remedy) from None
    facts = summary(_run(address, seconds, cost))
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    raise typer.Exit(1 if facts["stale"] or facts["audits"] < least else 0)


def _run(address: str, seconds: float, max_cost_s: float) -> dict[str, Any]:
    """What the node has found when the time is over and every difference is judged."""
    found = fetch(address, _PATH, {"seconds": seconds, "max_cost_s": max_cost_s})
    clock, late = threading.Event(), 0
    try:
        while found["running"] or (found["pending"] and late < _LATE):
            late += not found["running"]
            clock.wait(min(_GLANCE_S, found["seconds_left"] + 0.1))
            found = fetch(address, _PATH)
    except KeyboardInterrupt:
        found = fetch(address, _PATH, {"seconds": 0})
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The node's report with the rates that follow from it, in a stable shape."""
    names = ("hits", "audits", "same", "superseded", "stale", "undecided", "pending", "skipped")
    audits, stale = found["audits"], found["stale"]
    return {
        **{name: found[name] for name in names},
        "stale_rate": stale / audits if audits else None,
        "stale_rate_at_most": upper_bound(stale, audits),
        "oldest_superseded_ms": found["oldest_superseded_ms"],
        "causes": found["causes"],
        "modes": found["modes"],
    }


def _show(facts: dict[str, Any]) -> None:
    out = Console(highlight=False, soft_wrap=True, markup=False)
    audits, stale = facts["audits"], facts["stale"]
    if not audits:
        out.print("nothing was audited: no hit came, or none could be asked again", style="yellow")
    elif stale:
        out.print(f"{stale:,} of {audits:,} answers were stale; the node's log tells which", style="red")
    else:
        out.print(f"no stale answer in {audits:,} audits", style="green")
    if audits:
        rate = f"{100 * facts['stale_rate']:.4f} %"
        out.print(f"  stale rate   {rate}, at most {100 * facts['stale_rate_at_most']:.4f} % (95 %, one-sided)")
    out.print(f"  same         {facts['same']:,} of {facts['hits']:,} hits")
    age = facts["oldest_superseded_ms"]
    out.print(f"  superseded   {facts['superseded']:,}, right when they were served, at most {age:,.1f} ms old")
    causes = ", ".join(f"{cause} {count:,}" for cause, count in facts["causes"].items())
    out.print(f"  undecided    {facts['undecided'] + facts['pending']:,}" + (f" ({causes})" if causes else ""))
    out.print(f"  left out     {facts['skipped']:,} that take longer than --max-cost")
    for name, mode in facts["modes"].items():
        if mode == "ttl":
            out.print(f"  {name}: only time ends an entry there; old answers count as superseded", style="yellow")
