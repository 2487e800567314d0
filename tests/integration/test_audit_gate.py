"""The gate: mixed reads through a node, writes around it, every hit asked again. No stale answer, and enough audits.

It is what ``distribcache audit --least N`` is for in anybody's own tests: exit status 1 for a stale answer, and for too
few audits to say anything. The same load with a rule muted must not pass.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import Cli, Outcome
from fix_postgres import Database
from fix_proxy import MakeProxy, ProxyProcess, last

LEAST = 300
ROUNDS_S = (4, 4, 8, 16, 32, 64)
"""A slow machine takes longer for so many audits; each round counts for itself."""
READERS = 4
SETTINGS = {"freshness.hit_wait": "2s", "freshness.max_staleness": "10s", "freshness.schema_poll": "500ms"}

READS = {
    "by key": "SELECT value FROM stock WHERE id = %s",
    "by a foreign key": "SELECT number, amount FROM part WHERE stock = %s ORDER BY number",
    "some keys": "SELECT id, value FROM stock WHERE id IN (%s, 7) ORDER BY id",
    "joined": "SELECT s.value, sum(p.amount) FROM stock s JOIN part p ON p.stock = s.id WHERE s.id = %s GROUP BY 1",
    "aggregated": "SELECT kind, count(*), sum(value) FROM stock GROUP BY kind HAVING kind <> %s ORDER BY kind",
    "through a view": "SELECT id, value, made FROM shown WHERE id = %s",
    "of a partition's root": "SELECT value FROM divided WHERE id = %s",
    "of the same text": "SELECT note FROM calm WHERE id = %s",
}
WRITES = (
    "UPDATE stock SET value = value + 1 WHERE id = 1",
    "UPDATE stock SET kind = (kind + 1) % 3 WHERE id IN (2, 3)",
    "UPDATE part SET amount = amount + 1 WHERE stock = 2 AND number = 1",
    "DELETE FROM part WHERE stock = 3; INSERT INTO part VALUES (3, 1, 1), (3, 2, 5)",
    "UPDATE divided SET value = value + 1 WHERE id IN (1, 6)",
    "UPDATE stock SET id = 8 WHERE id = 4; UPDATE stock SET value = value + 1 WHERE id = 8",
    "UPDATE stock SET id = 4 WHERE id = 8; UPDATE divided SET id = id",
)


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "CREATE TABLE stock (id int PRIMARY KEY, value int, kind int)",
        "INSERT INTO stock SELECT i, 0, i % 3 FROM generate_series(1, 7) i",
        "CREATE TABLE part (stock int, number int, amount int, PRIMARY KEY (stock, number))",
        "INSERT INTO part SELECT i, j, j FROM generate_series(1, 7) i, generate_series(1, 3) j",
        "CREATE TABLE divided (id int PRIMARY KEY, value int) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF divided FOR VALUES FROM (0) TO (4)",
        "CREATE TABLE high PARTITION OF divided FOR VALUES FROM (4) TO (100)",
        "INSERT INTO divided SELECT i, 0 FROM generate_series(1, 7) i",
        "CREATE TABLE calm (id int PRIMARY KEY, note text)",
        "INSERT INTO calm SELECT i, 'note ' || i FROM generate_series(1, 7) i",
        "CREATE VIEW shown AS SELECT id, value, 0 AS made FROM stock",
    )
    return database


@dataclass
class Load:
    """Reads through the node and writes around it, until ``stop``."""

    node: ProxyProcess
    database: Database
    stop: threading.Event = field(default_factory=threading.Event)
    hits: Counter[str] = field(default_factory=Counter)
    """Of a sample of the reads, by kind."""

    def read(self, number: int) -> None:
        how: dict[str, Any] = {"prepare_threshold": 2} if number % 2 else {"cursor_factory": psycopg.ClientCursor}
        consistency = ("strict", "session", "eventual")[number % 3]
        with self.node.connect(options=f"-c distribcache.consistency={consistency}", **how) as connection:
            for turn, (row, kind) in enumerate(itertools.cycle(itertools.product(range(1, 6), READS))):
                if self.stop.is_set():
                    return
                connection.execute(READS[kind], (row,))  # type: ignore[arg-type]
                if turn % 5 == 0 and last(connection)["status"] == "hit":
                    self.hits[kind] += 1

    def write(self) -> None:
        with self.database.connect() as connection:
            for turn, text in enumerate(itertools.cycle(WRITES)):
                if self.stop.wait(0.1):
                    return
                connection.execute(text)  # type: ignore[arg-type]
                if turn % 20 == 10:
                    made = f"CREATE OR REPLACE VIEW shown AS SELECT id, value, {turn} AS made FROM stock"
                    connection.execute(made)  # type: ignore[arg-type]


@contextmanager
def load(node: ProxyProcess, database: Database) -> Iterator[Load]:
    """Raises what a reader or the writer raised."""
    playing, failed = Load(node, database), list[BaseException]()

    def run(work: Any, *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(playing.read, number)) for number in range(READERS)]
    threads.append(threading.Thread(target=run, args=(playing.write,)))
    for thread in threads:
        thread.start()
    try:
        yield playing
    finally:
        playing.stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed


def gate(cli: Cli, node: ProxyProcess, enough: Callable[[Outcome], bool]) -> Outcome:
    """Audit all hits until there were enough, or one was stale."""
    for seconds in ROUNDS_S:
        outcome = cli(
            "audit", "--seconds", str(seconds), "--least", str(LEAST), "--json",
            "--admin", node.admin.removeprefix("http://"),
        )  # fmt: skip
        if outcome.json["stale"] or enough(outcome):
            break
    return outcome


def test_gate_every_hit_audited_under_outside_writes_and_none_is_stale(
    cli: Cli, shop: Database, make_proxy: MakeProxy
) -> None:
    node = make_proxy(shop.url(), SETTINGS)
    began = time.monotonic()
    with load(node, shop) as playing:
        # Where reads are rare, what is written all the time is seldom asked for twice in between.
        outcome = gate(cli, node, lambda each: each.json["audits"] >= LEAST and set(playing.hits) == set(READS))
    facts, counted = outcome.json, node.statistics()
    print(f"{time.monotonic() - began:.0f} s: {facts}, {dict(playing.hits)}")
    assert counted["stale_audits_total"] == 0, (facts, node.log)
    assert outcome.status == 0, facts
    assert counted["audits_total"] >= facts["audits"] >= LEAST
    assert facts["audits"] + facts["skipped"] > 0.95 * facts["hits"], facts
    assert facts["undecided"] < facts["audits"] // 10, facts
    assert set(playing.hits) == set(READS), playing.hits


@pytest.mark.sabotage
@pytest.mark.parametrize("muted", ["validity", "rows", "schema"])
def test_gate_does_not_open_for_a_muted_rule(
    cli: Cli, shop: Database, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch, muted: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
    node = make_proxy(shop.url(), SETTINGS, module=f"mutes {muted}")
    with load(node, shop):
        outcome = gate(cli, node, lambda _: False)  # the harm may be done in a later round
    print(outcome.json)
    assert outcome.status == 1, outcome.json
    assert node.statistics()["stale_audits_total"] >= outcome.json["stale"] > 0
