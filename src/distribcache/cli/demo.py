"""``distribcache demo``: a PostgreSQL of its own, a shop in it, the cache in front, and three stories to watch.

PostgreSQL, the cache (``distribcache serve``, nothing else) and the clients are processes of their own; this one only
starts them, shows what the clients measured, and ends them all, however it ends itself. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import make_conninfo
from pydantic import TypeAdapter
from rich.console import Console
from rich.live import Live

from distribcache.cli.demonstration import dataset
from distribcache.cli.demonstration.children import Child
from distribcache.cli.demonstration.figures import Report
from distribcache.cli.demonstration.node import Node, check_port
from distribcache.cli.demonstration.stages import Stages
from distribcache.cli.demonstration.summary import Outcome, as_json, complaints, print_next, print_summary
from distribcache.cli.demonstration.view import Scene, line, picture
from distribcache.cli.link import Json
from distribcache.cli.postgres import Postgres
from distribcache.clock import now_ns
from distribcache.config import Settings
from distribcache.errors import DistribCacheError, UpstreamError

__all__ = ["demo"]

_LOAD = "distribcache.cli.demonstration.load"
_REPORT = TypeAdapter(Report)
_QUIET_S = 30.0
_LINE_EVERY_S = 2.0


class Stopped(BaseException):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def demo(
    duration: Annotated[float, typer.Option(metavar="SECONDS", min=1, max=86400, help="How long to show it.")] = 30.0,
    as_object: Json = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; so does NO_COLOR.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running until Ctrl-C.")] = False,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT", min=0, max=65535, show_default=False, help="Where the cache listens [6432 if it is free]"
        ),
    ] = 0,
) -> None:
    """Watch queries answered from memory, with a PostgreSQL of its own. Needs nothing but itself."""
    began_ns = now_ns()
    check_port(port)
    server = Postgres(options=dataset.SERVER_OPTIONS)
    # Whoever has PGSSLMODE or PGOPTIONS set means other servers than this one.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    out = Console(no_color=no_color or None, highlight=False)
    told = Console(stderr=True, no_color=no_color or None, highlight=False) if as_object else out
    try:
        with _signals():
            wrong = _play(server, out, told, began_ns, duration, as_object=as_object, keep=keep, port=port)
    except Stopped as stopped:
        if not as_object:
            told.print("Stopped.", style="dim")
        raise typer.Exit(128 + stopped.number) from None
    raise typer.Exit(wrong)


def _play(
    server: Postgres, out: Console, told: Console, began_ns: int, duration_s: float, *, as_object: bool, keep: bool,
    port: int,
) -> int:
    """Everything, and the exit status. What was started has ended when this returns or raises."""
    stages = Stages(told)
    with contextlib.ExitStack() as running:
        with stages.stage("starting PostgreSQL") as stage:
            running.enter_context(server)
            stage.done = f"PostgreSQL on {server.host}:{server.port}"
        with stages.stage("making a shop") as stage:
            try:
                for titles in dataset.create(server):
                    stage.doing("making " + " and ".join(titles))
                with psycopg.connect(server.conninfo(dataset.DATABASE)) as connection:
                    size = dataset.size(connection)
            except psycopg.Error as error:
                raise UpstreamError(f"the shop could not be made: {error}", hint="is there room on the disk?") from None
            stage.done = f"a shop with {size.order_lines:,} order lines, {size.disk_bytes >> 20} MB"
        with stages.stage("starting distribcache") as stage:
            node = running.enter_context(Node(server.url(dataset.DATABASE), port))
            node.wait_until_serving()
            stage.done = f"distribcache on {node.host}:{node.port}"
        scene = Scene(size, f"{node.host}:{node.port}", duration_s, Settings().freshness.max_staleness * 1000, began_ns)
        cached = make_conninfo(host=node.host, port=str(node.port), user="postgres", dbname=dataset.DATABASE)
        direct = server.conninfo(dataset.DATABASE)
        report, interrupted = _show(scene, told, direct, cached)
        outcome = Outcome(scene, report, node.oldest_possible_ms(), interrupted)
        if as_object:
            print(as_json(outcome), flush=True)
        else:
            print_summary(out, outcome)
        if not as_object or keep:
            psql = "psql" if shutil.which("psql") else str(server.binary("psql"))
            arguments = [f"-h 127.0.0.1 -p {one} -U postgres {dataset.DATABASE}" for one in (node.port, server.port)]
            print_next(told, *arguments, psql=psql, kept=keep)
        if keep and not interrupted:
            _wait(node)
    if interrupted:
        return 128 + signal.SIGINT
    return 1 if complaints(report) else 0


def _show(scene: Scene, told: Console, direct: str, cached: str) -> tuple[Report, bool]:
    """The show: the final report, and whether Ctrl-C ended it early."""
    bound_ns = str(int(scene.bound_ms * 1e6))
    live = told.is_terminal and not told.is_dumb_terminal
    with Child(_LOAD, [direct, cached, str(scene.duration_s), bound_ns]) as load:
        try:
            if not live:
                return _follow(load, scene, told, None), False
            with Live(console=told, auto_refresh=False, transient=True) as screen:
                return _follow(load, scene, told, screen), False
        except Stopped as stopped:
            if stopped.number != signal.SIGINT:
                raise
            load.process.terminate()
            return _follow(load, scene, None, None), True


def _follow(load: Child, scene: Scene, told: Console | None, screen: Live | None) -> Report:
    """Reports until the final one, shown as they come."""
    next_line_s = _LINE_EVERY_S
    while True:
        text = load.line(_QUIET_S)
        if not text:
            raise DistribCacheError(
                "the clients of the demo " + ("say nothing" if text is None else "ended early"), where=_LOAD,
                hint=load.complaint() or "is the machine overloaded?",
            )
        report = _REPORT.validate_json(text)
        if report.final:
            return report
        if screen is not None and told is not None:
            screen.update(picture(scene, report, told), refresh=True)
        elif told is not None and report.elapsed_s >= next_line_s:
            next_line_s += _LINE_EVERY_S
            told.print(line(scene, report), soft_wrap=True)


def _wait(node: Node) -> None:
    """Until Ctrl-C, or until the cache ends by itself."""
    try:
        node.wait()
    except Stopped as stopped:
        if stopped.number != signal.SIGINT:
            raise


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Stopped, once: while we clean up, nothing interrupts."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
