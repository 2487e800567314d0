"""The processes of the checker: writers, a changer of the catalogue, readers with pipelines of raw messages.

What was acknowledged is kept in memory that all processes share: one word per row, a number that only grows, once for
everybody and once for writes through the proxy. A reader copies these words *before* it sends, so that whatever they
say had been acknowledged by then; its answers may be newer and never older:

strict    nothing is older than what anybody was told
session   nothing is older than what anybody was told through the proxy, and than the bound
eventual  nothing is older than the bound

Who a reader is, its time zone and its search path shape some answers; the latter two it sets anew now and then.
DDL around the proxy is seen within the polls of coherence rule R6: it binds nobody earlier than ``_POLLS_S``.
"""

from __future__ import annotations

import mmap
import random
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psycopg
from benchmarks.checked import FAMILIES, KINDS, LAST, PATHS, PEOPLE, ROWS, SCHEMA, ZONES, Kind, writes
from tests.rawclient import RawClient

from distribcache.wire.messages import SYNC, bind, execute, parse, query

__all__ = ["CONSISTENCIES", "Found", "Place", "Truth", "change_catalogue", "final", "read", "write"]

CONSISTENCIES = ("strict", "session", "eventual")
_POLLS_S = 3.0
_BATCH = {"strict": 25, "session": 100, "eventual": 100}
_WORDS = len(FAMILIES) * ROWS
_PHASE_S = 0.5
"""All write through the proxy for so long, then around it: then nothing raises the floors of coherence rule R4."""
_CHANGES = 0.02
"""How often a reader changes its settings, per pipeline."""
_LAST = query(b"SHOW distribcache.last")
_MOST_LINES = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where the proxy and the server are, and how old an answer may be, in seconds."""

    host: str
    proxy: int
    server: int
    database: str
    bound: float

    def conninfo(self, *, through: bool, user: str = "postgres", options: str = "") -> str:
        port = self.proxy if through else self.server
        return (
            f"host={self.host} port={port} dbname={self.database} user={user} sslmode=disable connect_timeout=20"
            f" options='{options}'"
        )


class Truth:
    """Words that all processes share: acknowledged to anybody, and through the proxy; stop; something is wrong."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * (2 * _WORDS + 2))).cast("Q")
        self.everywhere = self._words[:_WORDS]
        self.here = self._words[_WORDS : 2 * _WORDS]

    @property
    def stopped(self) -> bool:
        return bool(self._words[2 * _WORDS])

    def stop(self) -> None:
        self._words[2 * _WORDS] = 1

    @property
    def harmed(self) -> bool:
        """Was anything wrong yet?"""
        return bool(self._words[2 * _WORDS + 1])

    def note(self, found: Found) -> None:
        if found.wrong:
            self._words[2 * _WORDS + 1] = 1

    def acknowledge(self, family: int, row: int, value: int, *, through: bool) -> None:
        """Each row has one writer, so no other store is lost."""
        at = family * ROWS + row
        if through:
            self.here[at] = value
        self.everywhere[at] = value


@dataclass(slots=True)
class Found:
    """What one process counted."""

    reads: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    """How a sample of the reads was answered: (consistency, status)."""
    wrong: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    writes: int = 0
    ddl: int = 0

    def add(self, other: Found) -> None:
        self.reads += other.reads
        self.asked += other.asked
        self.wrong += other.wrong
        self.lines += other.lines
        self.writes += other.writes
        self.ddl += other.ddl

    def blame(self, what: str, line: str) -> None:
        self.wrong[what] += 1
        if self.wrong[what] <= _MOST_LINES:
            self.lines.append(f"{what}: {line}")


def least(kind: Kind, row: int, words: Any) -> int:
    """The oldest number that ``kind`` may show of ``row`` where ``words`` are bound to be seen."""
    start = kind.family * ROWS
    if kind.every:
        return int(sum(words[start : start + ROWS]))
    more = int(words[start + kind.also]) if kind.also >= 0 else 0
    return more + int(words[start if kind.one else start + row])


# -- writers


def write(place: Place, truth: Truth, number: int, count: int, pause: float) -> Found:
    """Increment the rows that are ours, on either side; then read them on both of our connections to the proxy."""
    found, draw = Found(), random.Random(number)
    families = [family for family in range(len(FAMILIES)) if family != SCHEMA]
    rows = [(family, row) for family in families for row in range(number, ROWS, count)]
    values = dict.fromkeys(rows, 0)
    with (
        psycopg.connect(place.conninfo(through=True), autocommit=True, cursor_factory=psycopg.ClientCursor) as through,
        psycopg.connect(place.conninfo(through=False), autocommit=True) as direct,
        psycopg.connect(place.conninfo(through=True), autocommit=True, prepare_threshold=0) as other,
    ):
        while not truth.stopped:
            family, row = draw.choice(rows)
            value = values[family, row] = values[family, row] + 1
            here = int(time.monotonic() / _PHASE_S) % 2 == 0
            connection = through if here else direct
            texts = writes(family, row, value)
            if len(texts) == 1 and draw.random() < 0.5:
                connection.execute(texts[0])  # type: ignore[arg-type]
            else:
                with connection.transaction():
                    for text in texts:
                        connection.execute(text)  # type: ignore[arg-type]
            truth.acknowledge(family, row, value, through=here)
            found.writes += 1
            if here:
                kind = draw.choice([each for each in KINDS if each.family == family and each.single])
                for reader in (through, other):
                    told = reader.execute(kind.text(row)).fetchone()  # type: ignore[arg-type]
                    found.reads["own"] += 1
                    if told is None or told[0] // kind.scale < value:
                        found.blame("own write not read", f"{kind.name} row {row}: {told} < {value}")
            truth.note(found)
            time.sleep(pause)
    return found


def change_catalogue(place: Place, truth: Truth, pause: float) -> Found:
    """Make the view anew and swap the tables, on either side."""
    found, draw, value = Found(), random.Random(7), 0
    with (
        psycopg.connect(place.conninfo(through=True), autocommit=True) as through,
        psycopg.connect(place.conninfo(through=False), autocommit=True) as direct,
    ):
        while not truth.stopped:
            value += 1
            here = draw.random() < 0.6
            connection = through if here else direct
            with connection.transaction():
                for text in writes(SCHEMA, 0, value):
                    connection.execute(text)  # type: ignore[arg-type]
            truth.acknowledge(SCHEMA, 0, value, through=here)
            found.ddl += 1
            end = time.monotonic() + pause
            while time.monotonic() < end and not truth.stopped:
                time.sleep(0.05)
    return found


# -- readers


class Reader:
    """One connection with a consistency: pipelines of reads, and what each may show at least."""

    def __init__(self, place: Place, truth: Truth, consistency: str, found: Found, number: int) -> None:
        self.place, self.truth, self.consistency, self.found = place, truth, consistency, found
        self.draw = random.Random(f"{consistency} {number}")
        # Every role in every zone, in different consistencies: neither tells the other.
        self.person = person = PEOPLE[number % len(PEOPLE)]
        zone = list(ZONES)[(number + CONSISTENCIES.index(consistency)) % len(ZONES)]
        path = PATHS[number % len(PATHS)]
        options = f"-c distribcache.consistency={consistency} -c TimeZone={zone} -c search_path={path},public"
        self.client = RawClient(place.host, place.proxy, place.database, person, options=options, seconds=60)
        for at, kind in enumerate(KINDS):
            if "'" not in kind.sql:
                self.client.exchange(parse(b"k%d" % at, kind.sql.encode(), [] if kind.one else [23]) + SYNC)
        self.seconds = [kind.second(person, zone, path) for kind in KINDS]
        self.history: deque[tuple[float, list[int]]] = deque()
        """Copies of what had been acknowledged by then, one every tenth of a second."""
        self.asked: list[tuple[int, int]] = []
        self.bounds: list[int] = []
        self.sampled = self.changed = False

    def _settings(self) -> bytes:
        """Now and then the answers to come shall look otherwise."""
        self.changed = self.draw.random() < _CHANGES
        if not self.changed:
            return b""
        zone, path = self.draw.choice(list(ZONES)), self.draw.choice(PATHS)
        self.seconds = [kind.second(self.person, zone, path) for kind in KINDS]
        return query(f"SET TimeZone = '{zone}'; SET search_path = {path}, public".encode())

    def _message(self, at: int, row: int) -> bytes:
        kind = KINDS[at]
        if "'" in kind.sql or self.draw.random() < 0.5:
            return query(kind.text(row).encode())
        return bind(b"", b"k%d" % at, [], [] if kind.one else [str(row).encode()]) + execute(b"") + SYNC

    def _bounds(self, now: float) -> list[int]:
        """What must be seen by whoever asks from now on."""
        everywhere, here = self.truth.everywhere.tolist(), self.truth.here.tolist()
        history = self.history
        if not history or now - history[-1][0] > 0.1:
            history.append((now, everywhere))
        while len(history) > 1 and history[1][0] <= now - _POLLS_S:
            history.popleft()
        old = [0] * _WORDS
        for at, words in history:
            if at > now - self.place.bound:
                break
            old = words
        polled = history[0][1] if history[0][0] <= now - _POLLS_S else [0] * _WORDS
        words = {"strict": everywhere, "session": [max(pair) for pair in zip(old, here, strict=True)]}.get(
            self.consistency, old
        )
        start = SCHEMA * ROWS
        if self.consistency == "eventual":
            return [*words[:start], *polled[start:]]
        return [*words[:start], *(max(pair) for pair in zip(polled[start:], here[start:], strict=True))]

    def send(self) -> None:
        """A pipeline of reads."""
        draw = self.draw
        self.asked = [self._drawn() for _ in range(_BATCH[self.consistency])]
        data = self._settings() + b"".join(self._message(*one) for one in self.asked)
        self.sampled = draw.random() < 0.1
        self.bounds = self._bounds(time.monotonic())
        self.client.send(data + _LAST if self.sampled else data)

    def _drawn(self) -> tuple[int, int]:
        at = self.draw.randrange(len(KINDS))
        return at, self.draw.randrange(2 if KINDS[at].broad else LAST)

    def judge(self) -> None:
        """What came back."""
        if self.changed:
            self.client.rows_until_ready()
        for at, row in self.asked:
            self._judge(at, row, self.client.rows_until_ready(), self.bounds)
        self.found.reads[self.consistency] += len(self.asked)
        if self.sampled:
            ((status, *_),) = self.client.rows_until_ready()
            self.found.asked[f"{self.consistency} {(status or b'').decode()}"] += 1

    def _judge(self, at: int, row: int, rows: list[list[bytes | None]], bounds: list[int]) -> None:
        kind = KINDS[at]
        if len(rows) != 1 or rows[0][0] is None:
            self.found.blame("no answer", f"{self.consistency} {kind.name} row {row}: {rows}")
            return
        value, bound = int(rows[0][0]) // kind.scale, least(kind, row, bounds)
        if value < bound:
            what = {"strict": "older than an acknowledged commit", "session": "a write through the proxy not seen"}
            self.found.blame(
                what.get(self.consistency, "older than the bound"),
                f"{self.consistency} {kind.name} row {row}: {value} < {bound}",
            )
        wanted = self.seconds[at]
        if wanted is not None and not (rows[0][1] or b"").endswith(wanted):
            self.found.blame("of another session", f"{kind.name}: {rows[0][1]!r} to {self.person}")


def read(place: Place, truth: Truth, number: int) -> Found:
    """Reads of all consistencies until the end."""
    found = Found()
    readers = [Reader(place, truth, each, found, number) for each in CONSISTENCIES]
    while not truth.stopped:
        for reader in readers:
            reader.send()
        for reader in readers:
            reader.judge()
        truth.note(found)
    return found


def final(place: Place, truth: Truth) -> Found:
    """The writers have stopped: who is behind for good? Everything is asked until it is as new as it can be."""
    found = Found()
    words = truth.everywhere.tolist()
    deadline = time.monotonic() + max(3 * place.bound, _POLLS_S) + 2
    for consistency in CONSISTENCIES:
        reader = Reader(place, truth, consistency, found, 0)
        for kind in KINDS:
            for row in range(1 if kind.one else LAST):
                wanted = least(kind, row, words)
                while True:
                    rows = reader.client.rows(query(kind.text(row).encode()))
                    found.reads["final"] += 1
                    told = int(rows[0][0] or 0) // kind.scale if rows else -1
                    if told == wanted or kind.timeless:
                        break
                    if time.monotonic() > deadline:
                        found.blame("for ever", f"{consistency} {kind.name} row {row}: {told} instead of {wanted}")
                        break
                    time.sleep(0.02)
    return found
