"""`distribcache audit` of a running node: what it prints, its exit status, and who may start one."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_cli import Cli
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess

from distribcache.cli.audit import summary

READ = "SELECT value FROM stock WHERE id = 1"
SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s"}
ROUNDS = 20
"""A busy machine may need several for a few audits."""


@pytest.fixture
def node(database: Database, make_proxy: MakeProxy) -> ProxyProcess:
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1)")
    return make_proxy(database.url(), SETTINGS)


@contextmanager
def load(node: ProxyProcess, database: Database) -> Iterator[None]:
    """Reads through the node, writes around it."""
    stop = threading.Event()

    def read() -> None:
        with node.connect(cursor_factory=psycopg.ClientCursor) as connection:
            while not stop.is_set():
                connection.execute(READ)

    def write() -> None:
        with database.connect() as connection:
            while not stop.wait(0.2):
                connection.execute("UPDATE stock SET value = value + 1")

    threads = [threading.Thread(target=each) for each in (read, read, write)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def at(node: ProxyProcess) -> str:
    return node.admin.removeprefix("http://")


def test_a_node_that_is_right(cli: Cli, node: ProxyProcess, database: Database) -> None:
    with load(node, database):
        for _ in range(ROUNDS):
            outcome = cli("audit", "--seconds", "3", "--least", "3", "--admin", at(node), "--json")
            facts = outcome.json
            if facts["same"] >= 3 or facts["stale"]:
                break
        assert outcome.status == 0, facts
        assert facts["stale"] == 0 and facts["same"] >= 3 and facts["hits"] >= facts["same"]
        assert facts["stale_rate"] == 0 and 0 < facts["stale_rate_at_most"] < 1
        for _ in range(ROUNDS):
            text = cli("audit", "--seconds", "0.5", "--admin", at(node)).out
            if "nothing was audited" not in text:
                break
    for part in ("stale rate", "superseded", "95 %"):
        assert part in text
    assert node.statistics()["audits_total"] >= facts["audits"]


@pytest.mark.sabotage
def test_a_node_that_serves_stale_answers(
    cli: Cli, database: Database, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    database.execute("CREATE TABLE stock (id int PRIMARY KEY, value int)", "INSERT INTO stock VALUES (1, 1)")
    node = make_proxy(database.url(), SETTINGS, module="suites.muted_serve")
    with load(node, database):
        for _ in range(ROUNDS):
            outcome = cli("audit", "--seconds", "3", "--admin", at(node), "--json")
            if outcome.json["stale"] and outcome.json["causes"].get("dead"):
                break
    assert outcome.status == 1, outcome.json
    assert outcome.json["stale"] > 0 and outcome.json["causes"]["dead"] > 0
    assert node.statistics()["stale_audits_total"] >= outcome.json["stale"]


def test_nothing_to_audit_is_not_enough_for_a_gate(cli: Cli, node: ProxyProcess) -> None:
    outcome = cli("audit", "--seconds", "0.2", "--admin", at(node))
    assert outcome.status == 0 and "nothing was audited" in outcome.out
    assert cli("audit", "--seconds", "0.2", "--least", "1", "--admin", at(node)).status == 1


def test_wrong_words_and_nobody_there(cli: Cli) -> None:
    assert cli("audit", "--max-cost", "5").status == 2
    assert cli("audit", "--seconds", "0.2", "--admin", "127.0.0.1:1").status == 3


def post(node: ProxyProcess, body: bytes, **headers: str) -> int:
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    request = urllib.request.Request(f"{node.admin}/api/audit", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_who_may_start_one(node: ProxyProcess) -> None:
    good = json.dumps({"seconds": 60}).encode()
    assert post(node, good, Origin="https://evil.example") == 403
    assert post(node, good, Content_Type="text/plain") == 403
    assert post(node, good, Host="evil.example") == 400
    for bad in (b"", b"[]", b"{}", b'{"seconds": "x"}', b'{"seconds": -1}', b'{"seconds": 1e9}', b'{"seconds": NaN}'):
        assert post(node, bad) == 400, bad
    assert post(node, good) == 200
    assert post(node, good) == 409
    assert post(node, b'{"seconds": 0}') == 200
    assert post(node, good) == 200


def test_the_summary_has_a_stable_shape() -> None:
    found = {
        "hits": 10, "audits": 8, "same": 6, "superseded": 2, "stale": 0, "undecided": 1, "pending": 0, "skipped": 1,
        "causes": {}, "modes": {"shop": "wal"}, "oldest_superseded_ms": 3.5, "running": False, "seconds_left": 0.0,
    }  # fmt: skip
    assert set(summary(found)) == {
        "hits", "audits", "same", "superseded", "stale", "undecided", "pending", "skipped", "stale_rate",
        "stale_rate_at_most", "oldest_superseded_ms", "causes", "modes",
    }  # fmt: skip
    assert summary({**found, "audits": 0})["stale_rate"] is None
