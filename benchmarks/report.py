"""Figures for people: tables in Markdown, the machine they come from, and the sections of RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from benchmarks.servers import HERE, which

__all__ = ["machine", "tables", "write_section"]

ORDER = ("direct", "distribcache", "distribcache-compiled", "pgbouncer", "pgpool", "canned")


class CellLike(Protocol):
    """What a table needs of one measured cell."""

    why: str

    @property
    def tps(self) -> float: ...
    @property
    def latency_ms(self) -> float: ...
    @property
    def hit_ratio(self) -> float | None: ...


class ServerLike(Protocol):
    """What the facts need of the server."""

    options: dict[str, str]

    def binary(self, name: str) -> Path: ...


def _first_line(*argv: str | Path) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def machine(server: ServerLike, rows: int, asked: argparse.Namespace, argv: Sequence[str]) -> str:
    """Lines that say what was measured, where, with which versions and by which command."""
    cpu = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = found[1] if found else ""
    versions = [_first_line(server.binary("postgres"), "--version"), f"Python {platform.python_version()}"]
    for name, flag in (("pgbouncer", "--version"), ("pgpool", "--version")):
        if program := which(name):
            versions.append(_first_line(program, flag))
    options = ", ".join(f"{k}={server.options[k]}" for k in ("wal_level", "shared_buffers", "fsync", "autovacuum"))
    load = "/".join(f"{part:.1f}" for part in os.getloadavg())
    command = shlex.join([Path(argv[0]).parent.name + "/" + Path(argv[0]).name, *argv[1:]])
    return "\n".join([
        f"* {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {os.cpu_count()} × {cpu or platform.machine()} · load {load}",
        f"* {' · '.join(versions)}",
        f"* server: {options}; scale {asked.scale}; the aggregate reads {rows:,} rows",
        f"* median of {asked.rounds} interleaved rounds of {asked.seconds:g} s; command: `python {command}`",
    ])


def tables(results: Mapping[tuple[str, int], Mapping[str, CellLike]], rounds: int) -> str:
    """One table: a row per workload and number of clients, tps of direct, then ratios to it."""
    present = [name for name in ORDER if any(name in cells for cells in results.values())]
    others = [name for name in present if name != "direct"]
    head = ["workload", "clients", "direct tps", "direct ms", *(f"{n} ÷ direct" for n in others)]
    if "distribcache" in present:
        head += ["hit ratio", "added latency", "÷ pgpool", "÷ canned"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    notes: list[str] = []
    for (name, clients), cells in results.items():
        direct = cells.get("direct")
        base = direct.tps if direct else 0.0
        notes += [f"* {name}, {clients} clients, {who}: {cell.why}" for who, cell in cells.items() if cell.why]
        row = [name, str(clients), f"{base:,.0f}" if base else "–", f"{direct.latency_ms:.3f}" if direct else "–"]
        for other in others:
            cell = cells.get(other)
            row.append(f"{cell.tps / base:.2f}×" if cell and base and cell.tps else "–")
        if "distribcache" in present:
            ours = cells.get("distribcache")
            row.append(f"{ours.hit_ratio:.4f}" if ours and ours.hit_ratio is not None else "–")
            slower = ours.latency_ms / direct.latency_ms if ours and direct and direct.latency_ms else 0.0
            row.append(f"{slower:.2f}× of direct" if slower > 1 else "–")
            for rival in ("pgpool", "canned"):
                cell = cells.get(rival)
                row.append(f"{ours.tps / cell.tps:.2f}×" if ours and cell and cell.tps else "–")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def write_section(title: str, text: str, path: Path = HERE / "RESULTS.md") -> None:
    """Replace the section ``title`` of RESULTS.md, or add it; the other sections stay as they are."""
    before = path.read_text() if path.exists() else "# Results\n\nRatios mean something inside one table only.\n"
    section = f"## {title}\n\n{text.strip()}\n"
    found = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    if found.search(before):
        after = found.sub(lambda _: section + "\n", before)
    else:
        after = before.rstrip() + "\n\n" + section
    path.write_text(after.rstrip() + "\n")
