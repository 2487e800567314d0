"""The overview: a few sentences that say how the cache is doing, and the figures behind them.

Plain HTML that reloads itself; no script, everything escaped, so nothing that a client sent can run in a browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["STYLE", "page", "sentences"]

STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --poor: #9a6700; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
ul { list-style: none; padding: 0; } li { padding: .4rem .8rem; margin: .3rem 0; border-left: .3rem solid var(--good); }
li.poor { border-color: var(--poor); }
code { font-size: .9em; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.figure { text-align: right; font-variant-numeric: tabular-nums; }
"""


def sentences(figures: Mapping[str, float], databases: Sequence[Mapping[str, Any]]) -> list[tuple[bool, str]]:
    """(is it well, what to say), most important first."""
    said = []
    audits, stale = figures.get("audits_total", 0), figures.get("stale_audits_total", 0)
    if stale:
        said.append((False, f"{stale:,.0f} of {audits:,.0f} audited answers were stale: the log tells which."))
    hits, misses = figures["hits_total"], figures["misses_total"]
    others = figures["bypasses_total"] + figures["refusals_total"]
    if hits + misses:
        share = 100 * hits / (hits + misses)
        said.append((share >= 50, f"{share:.0f} % of {hits + misses:,.0f} cacheable reads came from memory."))
    else:
        said.append((True, "Nothing cacheable was read yet."))
    if hits:
        said.append((True, f"That saved {figures['seconds_saved_total']:,.1f} s of waiting for PostgreSQL."))
        said.append((True, f"The oldest answer was at most {figures['oldest_answer_ms']:,.1f} ms old."))
    if others:
        said.append((True, f"{others:,.0f} statements went straight through: SHOW distribcache.refusals tells why."))
    for database in databases:
        if database["serving"]:
            said.append((True, f"Database {database['name']} is served; invalidation by {database['mode']}."))
        else:
            reason = f"Database {database['name']} is passed through: {database['reason']}. {database['detail'] or ''}"
            said.append((False, f"{reason} {database['hint'] or ''}".strip()))
    return said


def page(figures: Mapping[str, float], databases: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    lines = "".join(
        f"<li{'' if well else ' class=poor'}>{escape(text)}</li>" for well, text in sentences(figures, databases)
    )
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=figure>{value:,.3f}</td></tr>"
        if value % 1
        else f"<tr><td>{escape(name)}</td><td class=figure>{value:,.0f}</td></tr>"
        for name, value in figures.items()
    )
    facts = "".join(
        f"<h2>Database {escape(str(database['name']))}</h2><table>"
        + "".join(
            f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>"
            for name, value in database.items()
            if name != "name" and value not in (None, "")
        )
        + "</table>"
        for database in databases
    )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>distribcache</title>"
        '<meta http-equiv=refresh content=5><link rel=stylesheet href="/style.css"></head><body><h1>distribcache</h1>'
        f"<ul>{lines}</ul><h2>Counters</h2><table>{rows}</table>{facts}</body></html>"
    )
