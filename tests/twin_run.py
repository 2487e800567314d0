"""Runs of twin sessions: drawn from a seed, and shortened where the twins differ.

A run is about one topic, each in its turn. Most of what happens is a change between the same few reads, by the one who
makes it and by others; around that transactions begin and end, and now and then something from the whole vocabulary is
said.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twin_play import OUTSIDE, Difference, Step, Twins, told
from twin_reads import READS
from twin_words import BEGINNINGS, CONTROL, DDL, SESSION, SETTINGS, TABLES, TOPICS, WRITES

from distribcache.clock import now_ns
from distribcache.coherence.reader import Reader
from distribcache.wire.messages import SYNC, bind, close, copy_data, copy_done, describe, execute, parse, query

__all__ = ["Run", "Tally", "gusts", "play", "shorten"]

_GUST_NS = 12_000_000


@dataclass(slots=True)
class Tally:
    """What runs proved: without hits they prove nothing."""

    steps: int = 0
    reads: int = 0
    hits: int = 0
    hit_texts: set[str] = field(default_factory=set)


def _literal(value: str) -> str:
    return value if value.isdigit() and not value.startswith("0") else f"'{value}'"


def _holds(text: str, words: Sequence[str]) -> bool:
    return any(word in text for word in words)


@dataclass(frozen=True, slots=True)
class _Read:
    """A text, the values of its parameters, and the name under which it is prepared."""

    sql: str
    values: tuple[str, ...]
    name: bytes

    def whole(self) -> str:
        return self.sql.replace("$1", _literal(self.values[0])) if self.values else self.sql

    def bound(self, statement: bytes, form: int, limit: int) -> bytes:
        values = [value.encode() for value in self.values]
        return bind(b"", statement, [], values, [form]) + describe(b"P", b"") + execute(b"", limit)


class Run:
    """Draws steps from a seed; what it draws depends on what has happened."""

    def __init__(self, twins: Twins, seed: int) -> None:
        self.twins = twins
        self.draw = random.Random(seed)
        draw = self.draw
        self.people = [
            ("postgres", "strict"),
            (draw.choice(["postgres", "alice"]), draw.choice(["session", "strict"])),
            (draw.choice(["alice", "bob"]), draw.choice(["eventual", "strict", "session"])),
        ]
        self.topic = TOPICS[seed % len(TOPICS)]
        self.words = self.topic.words or tuple(draw.sample(TABLES, 2))
        chosen = [at for at, (sql, _) in enumerate(READS) if _holds(sql, self.words)]
        self.reads = [self._read(at) for at in draw.sample(chosen, min(4, len(chosen)))]
        self.reads += [self._read(draw.randrange(len(READS)))]
        self.forms = [self._drawn_form() for _ in self.reads]
        self.due: list[tuple[int, int] | Step] = []
        """From its end: reads (who, which), a change, and the same reads again."""
        self.hand = {
            "write": self._groups(WRITES, 3, self.words),
            "ddl": self._groups(DDL, 3, self.words),
            "session": self._groups(SETTINGS, 3, self.topic.settings or ("",)) + list(draw.choice(SESSION)),
        }
        self.late = draw.random() < 0.4
        self.whole = {
            "write": [text for group in WRITES for text in group],
            "ddl": [text for group in DDL for text in group],
            "session": [text for group in SETTINGS + SESSION for text in group],
        }

    def _groups(self, groups: Sequence[tuple[str, ...]], count: int, words: Sequence[str]) -> list[str]:
        fitting = [group for group in groups if _holds(" ".join(group), words)]
        return [text for group in self.draw.sample(fitting, min(count, len(fitting))) for text in group]

    def _read(self, at: int) -> _Read:
        sql, choices = READS[at]
        return _Read(sql, (self.draw.choice(choices),) if choices else (), b"s%d" % (at % 7))

    def step(self) -> Step:
        draw, pairs = self.draw, self.twins.pairs
        if self.due:
            due = self.due.pop()
            return due if isinstance(due, Step) else self._asked(due[0], self.reads[due[1]], *self.forms[due[1]])
        who = draw.randrange(len(self.people))
        for at, pair in enumerate(pairs):
            if pair.locked or (pair.wrote and draw.random() < 0.7):
                who = at
        pair = pairs[who]
        if pair.status == b"E" and draw.random() < 0.85:
            return Step(who, "control", query(b"ROLLBACK"), "ROLLBACK")
        if draw.random() < (self.topic.control if pair.status == b"I" else 0.4 if pair.wrote or pair.locked else 0.2):
            return self._control(who)
        if draw.random() < 0.1:
            return self._asked(who, self._read(draw.randrange(len(READS))), *self._drawn_form())
        change = self._change(who)
        looks = [
            (who if draw.random() < 0.5 else draw.randrange(len(pairs)), draw.randrange(len(self.reads)))
            for _ in range(draw.choice([1, 3, 4]))
        ]
        self.due = [*looks, change, *reversed(looks)]
        return self.step()

    def _change(self, who: int) -> Step:
        draw = self.draw
        kind = draw.choices(["write", "ddl", "session"], self.topic.weights)[0]
        text = draw.choice(self.hand[kind] if draw.random() < 0.85 else self.whole[kind])
        if kind == "session":
            if draw.random() < 0.05:
                return Step(who, "reconnect", b"", "reconnect")
        elif draw.random() < 0.3:
            who = OUTSIDE
        return Step(who, kind, self._form(text), text)

    def _control(self, who: int) -> Step:
        text = self.draw.choice(BEGINNINGS if self.twins.pairs[who].status == b"I" else CONTROL)
        return Step(who, "control", self._form(text), text)

    def _form(self, text: str) -> bytes:
        """One statement may also come in the extended protocol."""
        if text.endswith("FROM STDIN"):
            return query(text.encode()) + copy_data(b"7\tcopied\n") + copy_done()
        if ";" in text or text.startswith("COPY") or self.draw.random() < 0.7:
            return query(text.encode())
        return parse(b"", text.encode()) + bind(b"", b"") + describe(b"P", b"") + execute(b"") + SYNC

    def _drawn_form(self) -> tuple[str, int, int]:
        draw = self.draw
        how = draw.choice(["simple", "simple", "unnamed", "named", "twice"])
        return how, draw.choice([0, 0, 1]), draw.choice([0, 0, 0, 0, 0, 0, 1])

    def _asked(self, who: int, read: _Read, how: str, form: int, limit: int) -> Step:
        sql = read.sql.encode()
        if how == "simple":
            return Step(who, "read", query(read.whole().encode()), read.whole())
        text = f"{how} {read.sql} {list(read.values)} as {form}, limit {limit}"
        if how == "unnamed":
            return Step(who, "read", parse(b"", sql) + read.bound(b"", form, limit) + SYNC, text)
        names = self.twins.pairs[who].names
        if names.get(read.name) != read.sql or self.draw.random() < 0.05:
            names[read.name] = read.sql
            head = close(b"S", read.name) + parse(read.name, sql) + describe(b"S", read.name)
            return Step(who, "read", head + SYNC, f"prepare {read.name.decode()}: {read.sql}")
        data = read.bound(read.name, form, limit)
        return Step(who, "read", (2 * data if how == "twice" else data) + SYNC, f"{read.name.decode()}: {text}")


def play(twins: Twins, seed: int, steps: int, tally: Tally) -> None:
    """One run. Raises Difference."""
    run = Run(twins, seed)
    twins.reset(run.people)
    twins.late = run.late
    done: list[Step] = []
    while len(done) < steps:
        step = run.step()
        if not twins.allowed(step):
            continue
        done.append(step)
        _one(twins, step, done, tally)
        if step.kind == "ddl" and run.draw.random() < 0.8:
            twins.catch_up()


def _one(twins: Twins, step: Step, done: Sequence[Step], tally: Tally) -> None:
    before = twins.hits()
    difference = twins.play(step)
    tally.steps += 1
    if difference is not None:
        raise Difference(step, told(difference[0]), told(difference[1]), done)
    if step.kind == "read":
        tally.reads += 1
        if twins.hits() > before:
            tally.hits += 1
            tally.hit_texts.add(step.text)


def gusts(twins: Twins, put: Callable[[object, str, object], None]) -> None:
    """Where ``late`` is set, the stream rests for half of the time."""
    take = Reader._slice

    def rest(self: Reader, until: int) -> bool:
        if twins.late and now_ns() // _GUST_NS % 2:
            time.sleep(0.0002)  # the socket stays readable: without it, the loop would spin
            return False
        return take(self, until)

    put(Reader, "_slice", rest)


def shorten(twins: Twins, seed: int, found: Difference, seconds: float = 40.0) -> Difference:
    """The same difference by fewer steps, as far as it comes again within the time."""
    people = Run(twins, seed).people  # ``late`` stays what it was
    end = time.monotonic() + seconds
    best = found
    size = max(1, len(found.steps) // 2)
    while time.monotonic() < end:
        steps, shorter = best.steps, None
        for at in range(0, len(steps) - 1, size):
            if time.monotonic() < end:
                shorter = _again(twins, people, steps[:at] + steps[at + size :])
                if shorter is not None:
                    best = shorter
                    break
        if shorter is None:
            if size == 1:
                break
            size = max(1, size // 2)
    return best


def _again(twins: Twins, people: Sequence[tuple[str, str]], steps: Sequence[Step]) -> Difference | None:
    twins.reset(people)
    done: list[Step] = []
    try:
        for step in steps:
            if twins.allowed(step):
                done.append(step)
                _one(twins, step, done, Tally())
                if step.kind == "ddl":
                    twins.catch_up()
    except Difference as found:
        return found
    return None
