"""Writes the pages of the reference that say the same as the code, so that they cannot differ from it.

``python docs/generate.py`` writes them, ``--check`` only compares and exits with status 1 on a difference; a test calls
the same function.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from distribcache.coherence.reasons import REASONS
from distribcache.config.sections import Settings, fields, value_text
from distribcache.proxy.remedies import BYPASSES, REMEDIES, remedy
from distribcache.query import Consistency
from distribcache.sql.cacheability import REFUSALS

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run `make docs`. -->\n\n"


def pages() -> dict[str, str]:
    """Path below docs/ → content."""
    return {
        "reference/configuration.md": configuration(),
        "reference/distribcache.toml": "\n".join(_example()) + "\n",
        "reference/commands.md": commands(),
        "reference/refusals.md": refusals(),
        "reference/session.md": session(),
    }


def configuration() -> str:
    lines = [
        NOTE + "# Settings",
        "",
        "A flag wins over the environment (`DISTRIBCACHE_SECTION_KEY`), that over `distribcache.toml` (in the current "
        + "directory, or the file given with `--config`), that over the default. `SHOW distribcache.config` tells each "
        + "value and where it came from.",
        "",
        "Sizes are written with a unit (`512kB`, `64MB`, powers of 1024), durations too (`250ms`, `5s`, `30min`, "
        + "`1h`). An unknown key is an error. A complete file with all defaults: "
        + "[distribcache.toml](distribcache.toml).",
    ]
    defaults = Settings()
    for section in Settings.model_fields:
        lines += ["", f"## [{section}]", "", str(getattr(defaults, section).__doc__), ""]
        lines += ["| key | default | environment | what it does |", "|---|---|---|---|"]
        for key, field in fields(section).items():
            default = value_text(f"{section}.{key}", getattr(getattr(defaults, section), key))
            text = " ".join(str(field.description).split())
            choices = _choices(section, key)
            text += f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
            shown = f"`{default}`" if default else "none"
            lines.append(f"| `{key}` | {shown} | `DISTRIBCACHE_{section.upper()}_{key.upper()}` | {text} |")
    return "\n".join(lines) + "\n"


def _example() -> Iterator[str]:
    yield "# Every setting of distribcache with its default. Written by docs/generate.py."
    defaults = Settings()
    for section in Settings.model_fields:
        yield ""
        yield f"[{section}]  # {getattr(defaults, section).__doc__}"
        for key, field in fields(section).items():
            value = value_text(f"{section}.{key}", getattr(getattr(defaults, section), key))
            bare = value in ("true", "false") or value.isdigit()
            yield from (f"# {line}" for line in _wrapped(str(field.description)))
            yield f"{key} = {value}" if bare else f'# {key} = ""' if not value else f'{key} = "{value}"'


def refusals() -> str:
    lines = [
        NOTE + "# Why a read is not cached",
        "",
        "Every reason has a stable code: `SHOW distribcache.last` and `distribcache explain` name it, "
        + "`SHOW distribcache.refusals` counts it and says what to do, and so do the metrics.",
        "",
        "## Refused: never cached as it is written",
        "",
        "The metric is `distribcache_refused_reads_total`.",
        "",
        "| code | why | what to do |",
        "|---|---|---|",
        *(f'| <a id="{code}"></a>`{code}` | {why} | {REMEDIES[code]} |' for code, why in REFUSALS.items()),
        "",
        "## Passed by: not at that moment, or not in that session",
        "",
        "The metric is `distribcache_bypassed_reads_total`. Writes and commands are counted too, as `not_a_read`.",
        "",
        "| code | why | what to do |",
        "|---|---|---|",
        *(f'| <a id="{code}"></a>`{code}` | {why} | {what} |' for code, (why, what) in BYPASSES.items()),
        "",
        "## Not served: nothing of a database",
        "",
        "Reads are passed by under these codes too. `SHOW distribcache.freshness` and `distribcache status` show the "
        + "present one, and `distribcache doctor` finds most of them before.",
        "",
        "| code | why | what to do |",
        "|---|---|---|",
        *(f'| <a id="{code}"></a>`{code}` | {why} | {_plain(remedy(code))} |' for code, (why, _) in REASONS.items()),
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


def session() -> str:
    """SET and SHOW, as ``SHOW distribcache.help`` tells them."""
    from distribcache.proxy.shows import _SETTINGS, SHOWS

    lines = [
        NOTE + "# In a session",
        "",
        "These are valid PostgreSQL with or without the cache: custom settings that PostgreSQL itself keeps. They can "
        + "be set by `SET`, for a role or a database, or at the start: "
        + '`PGOPTIONS="-c distribcache.consistency=strict"`.',
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| `distribcache.{name}` | {text} |" for name, text in _SETTINGS.items()),
        "",
        "The comment `/* distribcache: nocache */` in a query keeps its answer out of the cache.",
        "",
        "These are answered by the cache, in both protocols:",
        "",
        "| command | what it shows |",
        "|---|---|",
        *(f"| `SHOW distribcache.{name}` | {' '.join((show.__doc__ or '').split())} |" for name, show in SHOWS.items()),
    ]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its arguments and options, from the declarations: rendered help differs by typer's version."""
    import typer.main

    from distribcache.cli import EXIT_STATUS, application

    lines = [
        NOTE + "# Commands",
        "",
        EXIT_STATUS + " Errors go to stderr: one line, and the remedy below it. `--json` prints one object whose shape "
        + "is stable.",
    ]
    commands: dict[str, Any] = getattr(typer.main.get_command(application()), "commands", {})
    for name, command in sorted(commands.items()):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["distribcache", name, *(str(p.metavar or p.name).upper() for p in arguments)])
        lines += ["", f"## {usage}", "", _paragraphs(command.help)]
        if options:
            lines += ["", "| option | what it does |", "|---|---|"]
        for option in options:
            spelled = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
            lines.append(f"| {spelled} | {' '.join(str(option.help or '').split())} |")
    return "\n".join(lines) + "\n"


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n")).strip()


def _choices(section: str, key: str) -> tuple[str, ...]:
    kind = fields(section)[key].annotation
    if kind is Consistency:
        return tuple(choice.value for choice in Consistency)
    return tuple(get_args(kind)) if get_origin(kind) is Literal else ()


def _wrapped(text: str, width: int = 100) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(text.split()), width)


def main() -> int:
    status = 0
    for name, content in pages().items():
        path = HERE / name
        if path.exists() and path.read_text("utf-8") == content:
            continue
        if "--check" in sys.argv:
            print(f"docs/{name} differs from the code; run `make docs`")
            status = 1
        else:
            path.write_text(content, "utf-8")
            print(f"wrote docs/{name}")
    return status


if __name__ == "__main__":
    sys.exit(main())
