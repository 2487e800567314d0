"""The reads of PostgreSQL's regression suite, played again and again in the database that the suite leaves behind.

The suite itself is full of DDL, which stops hits, and asks everything once. So its texts are taken out of its files.
Those that our reader takes for reads of relations, and that the database answers, are played several times each and
compared byte for byte: as a simple query, as an unnamed statement, and prepared before, with answers in binary. They
are played once more under settings that shape answers otherwise, and under the first again. Then a third of the rows of
every table is deleted, through the same way in, and all is played once more, the prepared ones as they are: whoever
answers from memory what was read before, or what is another's, is found out.

Answers that two direct runs do not repeat (random(), ``xmin`` …) are left out. How each text was answered at its last
play, and why, is in ``reasons.tsv``: the list of what could be cached and is not.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
from tests.rawclient import RawClient
from tests.suites.outcomes import Outcome, Run

from distribcache.wire.messages import SYNC, bind, describe, execute, parse, query

__all__ = ["NAME", "OPTIONS", "TIDY", "answered", "run"]

NAME = "reads"
PLAYS = 2
_SHAPED = (
    b"SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kolkata'; SET IntervalStyle = iso_8601;"
    b" SET xmloption = document; SET extra_float_digits = -3; SET bytea_output = escape"
)
_AS_BEFORE = b"RESET ALL"
# One test makes operators < and = of its own types, by functions that it calls internal: as long as these can be found,
# no comparison in the database is known to be the server's own.
TIDY = ("DROP TYPE int8alias1, int8alias2 CASCADE", "VACUUM ANALYZE")
# A change of statistics in the middle of a run changes plans, and with them the order of rows that nobody ordered.
OPTIONS = {"autovacuum": "off", "synchronize_seqscans": "off", "max_parallel_workers_per_gather": "0"}
_LIMITS = "-c statement_timeout=5s -c lock_timeout=1s"
_TABLES = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY c.oid
"""


def answered(texts: dict[str, bytes], port: int, dbname: str) -> dict[str, bytes]:
    """Those that are no error in the database: most of the others read what the suite has dropped."""
    player = _Player(port, dbname, _LIMITS, cached=False)
    outcomes = player.play(texts, 1, "")
    player.client.socket.close()
    return {name: text for name, text in texts.items() if outcomes[name].status == "passed"}


def run(
    port: int, direct: str, dbname: str, texts: dict[str, bytes], kept: Path, *,
    options: str = "", cached: bool = False,
) -> Run:
    """Play ``texts`` through ``port``, delete rows through it, play them again. ``direct`` is the server's conninfo."""
    began = time.monotonic()
    if cached:
        _await_serving(port, dbname)
    player = _Player(port, dbname, f"{_LIMITS} {options}".strip(), cached)
    outcomes = player.play(texts, PLAYS, "")
    for settings, suffix in ((_SHAPED, " shaped"), (_AS_BEFORE, " as before")):
        player.shape(settings)
        outcomes |= player.play(texts, 1, suffix)
    with psycopg.connect(direct, autocommit=True) as connection:
        tables = [str(row[0]) for row in connection.execute(_TABLES)]
    with RawClient("127.0.0.1", port, dbname, options="-c session_replication_role=replica") as writer:
        for table in tables:
            rows = f"SELECT ctid FROM ONLY {table} ORDER BY ctid LIMIT (SELECT 1 + count(*) / 3 FROM ONLY {table})"
            writer.exchange(query(f"DELETE FROM ONLY {table} WHERE ctid = ANY (ARRAY({rows}))".encode()))
    outcomes |= player.play(texts, 2, " after")
    player.client.socket.close()
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "replies.txt").write_text("\n".join(player.said) + "\n")
    if cached:
        (kept / "reasons.tsv").write_text("\n".join("\t".join(line) for line in player.reasons) + "\n")
        counted = Counter(line[0] for line in player.reasons).most_common()
        (kept / "reasons.txt").write_text("".join(f"{number:6} {why}\n" for why, number in counted))
    return Run(outcomes, time.monotonic() - began)


def _await_serving(port: int, dbname: str) -> None:
    deadline = time.monotonic() + 60.0
    with RawClient("127.0.0.1", port, dbname) as client:
        while [b"serving", b"True"] not in client.rows(query(b"SHOW distribcache.freshness")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{dbname} is not served from memory after a minute")
            time.sleep(0.1)


class _Player:
    def __init__(self, port: int, dbname: str, options: str, cached: bool) -> None:
        self.port, self.dbname, self.options, self.cached = port, dbname, options, cached
        self.client = self._connect()
        self.prepared: set[str] = set()
        self.shaped = _AS_BEFORE
        self.said: list[str] = []
        self.reasons: list[tuple[str, ...]] = []

    def _connect(self) -> RawClient:
        return RawClient("127.0.0.1", self.port, self.dbname, seconds=30.0, options=self.options)

    def shape(self, settings: bytes) -> None:
        self.shaped = settings
        self.client.exchange(query(self.shaped))

    def play(self, texts: dict[str, bytes], times: int, suffix: str) -> dict[str, Outcome]:
        outcomes = {}
        for name, text in texts.items():
            replies = [self._ask(asked) for asked in self._ways(name, text, times)]
            joined = [b"".join(reply) for reply in replies]
            failed = any(message[:1] in b"EX" for message in replies[0])
            digest = hashlib.sha256(b"\0".join(joined)).hexdigest()[:16]
            outcomes[name + suffix] = Outcome("failed" if failed else "passed", digest)
            self.said.append(f"{name}{suffix}\t{digest}\t{text[:300]!r}\t{[reply[:400] for reply in joined]!r}")
            if self.cached and not suffix:
                last = [(value or b"").decode() for value in self.client.rows(query(b"SHOW distribcache.last"))[0]]
                why = " ".join(part for part in (last[0], last[2].split(":")[0]) if part)
                self.reasons.append((why, last[2], name, text.decode(errors="replace").replace("\n", " ")[:300]))
        return outcomes

    def _ways(self, name: str, text: bytes, times: int) -> Iterator[bytes]:
        whole = describe(b"P", b"") + execute(b"") + SYNC
        for _ in range(times):
            yield query(text)
        for _ in range(times):
            yield parse(b"", text) + bind(b"", b"") + whole
        if name not in self.prepared:
            self.prepared.add(name)
            yield parse(name.encode(), text) + SYNC
        for _ in range(times):
            yield bind(b"", name.encode(), result_formats=(1,)) + whole

    def _ask(self, asked: bytes) -> list[bytes]:
        try:
            return self.client.exchange(asked)
        except (EOFError, OSError) as error:
            self.client.socket.close()
            self.client, self.prepared = self._connect(), set()
            self.client.exchange(query(self.shaped))
            return [f"X {type(error).__name__}".encode()]
