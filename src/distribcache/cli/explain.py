"""`distribcache explain`: would this statement be cached, and if not, why not?

The same analysis as in the proxy, asked of the same server, without a proxy running. It runs as the role of the URL,
with that role's search_path: for another role, name it in the URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import psycopg
import typer
from psycopg.rows import tuple_row
from rich.console import Console
from rich.text import Text

from distribcache.catalog.statement import Analysis, Analyst
from distribcache.cli.link import Config, Connection, Database, Json, Upstream, connect, settings_for
from distribcache.cli.objects import publishes
from distribcache.cli.report import print_json
from distribcache.config import mask
from distribcache.errors import UpstreamError
from distribcache.proxy.remedies import REMEDIES
from distribcache.sql.cacheability import REFUSALS
from distribcache.workload.classifier import classify

__all__ = ["explain"]


def explain(
    statement: Annotated[str, typer.Argument(metavar="SQL", help="The statement, as one argument.")],
    upstream: Upstream = None,
    db: Database = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Say whether a statement would be cached, the reason if not, and the tables whose changes end it.

    The statement is analysed, not run. Exit status 1: it would not be cached.
    """
    settings = settings_for(upstream, config)
    with connect(settings, db) as connection:
        schemas = _schemas(connection)
        published = publishes(connection, settings.freshness.plugin)
        analysis = analyse(connection, statement, schemas, published=published)
        role = connection.info.user
    facts = verdict(analysis)
    if as_json:
        print_json({**facts, "role": role, "search_path": list(schemas)})
    else:
        _show(facts, role, schemas)
    raise typer.Exit(0 if facts["cacheable"] else 1)


def analyse(
    connection: Connection, statement: str, schemas: Sequence[str], *, published: bool = False
) -> Analysis:
    """The proxy's analysis over this connection; ``published``: as where the stream shows what publications name.

    Raises UpstreamError when the server cannot be asked.
    """
    failure: list[psycopg.Error] = []

    async def ask(question: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            with connection.cursor(row_factory=tuple_row) as cursor:
                return cursor.execute(question.encode(), parameters or None).fetchall()
        except psycopg.Error as error:
            failure.append(error)
            raise

    analyst = Analyst(
        ask, slot_of=lambda oid: oid, visible=lambda: 0, schema_lsn=lambda: 0, classify=classify,
        published=lambda: published,
    )  # fmt: skip
    analysis = asyncio.run(analyst.analyse(statement.encode(), tuple(schemas)))
    if failure:
        words = " ".join(str(failure[0]).split())
        raise UpstreamError(f"the catalogue could not be asked: {mask(words)}", hint="is this a PostgreSQL server?")
    return analysis


def verdict(analysis: Analysis) -> dict[str, Any]:
    """The analysis as a stable shape: ``cacheable``, ``reason``, ``detail``, ``explanation``, ``tables`` …"""
    refusal = analysis.refusal
    return {
        "cacheable": refusal is None,
        "reason": refusal.code if refusal else None,
        "detail": (refusal.detail or None) if refusal else None,
        "explanation": REFUSALS.get(refusal.code) if refusal else None,
        "remedy": REMEDIES.get(refusal.code) if refusal else None,
        "kinds": [statement.kind.value for statement in analysis.parsed.statements],
        "pure_read": analysis.pure,
        "tables": list(analysis.tables),
        "workload": analysis.workload.value,
    }


def _schemas(connection: Connection) -> tuple[str, ...]:
    """The effective schemas that a new session of this role has; ours are pinned to pg_catalog."""
    with connection.transaction(force_rollback=True):
        connection.execute("RESET search_path")
        row = connection.execute("SELECT current_schemas(true)::text[] AS schemas").fetchone()
    assert row is not None
    return tuple(row["schemas"])


def _show(facts: dict[str, Any], role: str, schemas: Sequence[str]) -> None:
    out = Console(highlight=False, soft_wrap=True, markup=False)
    if facts["cacheable"]:
        out.print(Text("cacheable", style="green"))
    else:
        out.print(Text(f"not cached: {facts['reason']}", style="yellow"))
        out.print(f"  {facts['explanation']}" + (f" ({facts['detail']})" if facts["detail"] else ""))
        out.print(f"  {facts['remedy']}")
    if not facts["cacheable"]:
        effect = "it does not end serving" if facts["pure_read"] else "it ends serving for the rest of its transaction"
        out.print(f"  inside a transaction  {effect}")
    out.print(f"  tables                {', '.join(facts['tables']) or 'none'}")
    if facts["cacheable"]:
        out.print(f"  workload              {facts['workload']}")
    out.print(f"  analysed as           {role}, schemas {', '.join(schemas)}")
