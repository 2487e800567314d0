"""`distribcache status` shows what a node reports, whatever that is, and says when there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from fix_cli import Cli


@pytest.fixture
def node() -> Iterator[HTTPServer]:
    class Answer(BaseHTTPRequestHandler):
        body = b"{}"

        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/status" else 404)
            self.end_headers()
            self.wfile.write(type(self).body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def answer(node: HTTPServer, body: object) -> str:
    node.RequestHandlerClass.body = json.dumps(body).encode() if not isinstance(body, bytes) else body  # type: ignore[attr-defined]
    return f"127.0.0.1:{node.server_port}"


def test_status_of_a_node(cli: Cli, node: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    facts = {
        "version": "1",
        "statistics": {"hits_total": 12, "hit_ratio": 0.5},
        "databases": [{"name": "shop", "serving": True, "reason": ""}],
    }
    address = answer(node, facts)
    assert cli("status", "--admin", address, "--json").json == facts
    text = cli("status", "--admin", address).out
    for part in ("hits_total", "12", "0.5", "shop", "serving yes"):
        assert part in text


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff"])
def test_something_else_answers(cli: Cli, node: HTTPServer, body: bytes) -> None:
    outcome = cli("status", "--admin", answer(node, body))
    assert outcome.status == 3
    assert "hint:" in outcome.err


def test_nobody_answers(cli: Cli) -> None:
    outcome = cli("status", "--admin", "127.0.0.1:1")
    assert outcome.status == 3
    assert "distribcache serve" in outcome.err


def test_wrong_address(cli: Cli) -> None:
    assert cli("status", "--admin", "nonsense").status == 2
