"""Clients that nobody wrote: random messages in random order, byte for byte as PostgreSQL answers them.

Each seed is one connection on each side. The vocabulary is small, so that names collide, portals are met again, errors
happen in every place, and the same reads come back often enough to be hits. A seed that fails is the bug report.
"""

from __future__ import annotations

import random

import pytest
from fix_world import World
from rawclient import split
from shapes import CS, DP, DS, B, E, H, P, Q, S, Step, kinds, play, step
from wait import until

from distribcache.wire.messages import close

READS = [
    (b"SELECT name FROM item WHERE id = 7", 0),
    (b"SELECT id, price FROM item WHERE id < 4 ORDER BY id", 0),
    (b"SELECT name FROM item WHERE id = $1", 1),
    (b"SELECT count(*) FROM item", 0),
]
OTHERS = [
    b"BEGIN", b"COMMIT", b"ROLLBACK", b"", b"SELECT 1", b"SELECT nothing", b"SELEC", b"SHOW work_mem", b"SAVEPOINT a",
    b"RELEASE a", b"ROLLBACK TO a", b"SELECT 1/0 FROM item", b"BEGIN READ ONLY",
    b"DELETE FROM note WHERE false", b"UPDATE note SET body = 'x' WHERE id < 0",
]  # fmt: skip
QUERIES = [*OTHERS, b"DEALLOCATE s1", b"DEALLOCATE ALL", b"SELECT 1; SELECT name FROM item WHERE id = 7", b";"]
NAMES = [b"", b"", b"s1", b"s2"]


ALARMING = {b"SELEC", b"DEALLOCATE s1", b"DEALLOCATE ALL"}
"""After these a Query or a Bind is not understood, which stops hits for a while: every other client is spared them."""


class Client:
    """Draws units; each ends with ReadyForQuery, so that the two sides can be kept in step."""

    def __init__(self, seed: int) -> None:
        self.calm = seed % 2 == 1
        self.draw = random.Random(seed)
        self.status = b"I"
        """In a transaction a portal of an earlier unit may have been answered here; all that memory can say of it is
        that it is finished. (In a failed one PostgreSQL 18 itself crashes when it is executed.)"""

    def text(self) -> tuple[bytes, int]:
        return self.draw.choice(READS) if self.draw.random() < 0.75 else (self.draw.choice(OTHERS), 0)

    def run(self) -> list[bytes]:
        draw = self.draw
        name = draw.choice(NAMES)
        sql, parameters = self.text()
        parameter = [draw.choice([b"7", b"8"])] * (parameters if draw.random() < 0.9 else 1)
        portal = draw.choice([b"", b"", b"", b"", b"p"])
        messages = [P(name, sql)] if draw.random() < 0.5 else []
        if name and messages and (self.calm or draw.random() < 0.7):
            messages.insert(0, CS(name))
        messages.append(B(portal, name, [], parameter, draw.choice([[], [1]])))
        if draw.random() < 0.5:
            messages.append(DP(portal))
        messages.append(E(portal, draw.choice([0, 0, 0, 1, 2])))
        return messages

    def stray(self) -> list[bytes]:
        draw = self.draw
        portals = [E(b""), E(b"p"), E(b"", 1), DP()]
        others = [
            DS(draw.choice(NAMES)), DP(b"p"), CS(draw.choice(NAMES)), H, close(b"P", b""), close(b"P", b"p"),
            P(draw.choice(NAMES), self.text()[0]),
        ]  # fmt: skip
        return [draw.choice(portals + others if self.status == b"I" else others)]

    def unit(self) -> Step:
        draw = self.draw
        if draw.random() < 0.3:
            queries = [each for each in QUERIES if not self.calm or each not in ALARMING]
            return step(Q(draw.choice(queries) if draw.random() < 0.5 else draw.choice(READS[:2])[0]))
        messages: list[bytes] = []
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            messages += self.run() if draw.random() < 0.8 else self.stray()
        return step(*messages, S)


def said(data: bytes, failed: bool) -> list[bytes]:
    """The messages. In a failed transaction only their types: a Parse that has to be sent again there is refused before
    the Bind behind it can be found wrong, and the same words come from another line of PostgreSQL's source."""
    return [each[:1] if failed else each for each in split(data)]


@pytest.mark.parametrize("seed", range(40))
def test_random_client(world: World, seed: int) -> None:
    client = Client(seed)
    with world.direct() as direct, world.through() as through:
        for at in range(60):
            unit = client.unit()
            (wanted,), (got,) = play(direct, [unit]), play(through, [unit])
            failed = client.status == b"E"
            assert said(got, failed) == said(wanted, failed), (
                f"unit {at}: {unit.data!r}\n{kinds(got)}   instead of   {kinds(wanted)}"
            )
            client.status = wanted[-1:]


def test_these_clients_get_hits(world: World) -> None:
    """Else the test above would prove nothing."""
    before = world.hits()
    seeds = iter(range(1001, 1100, 2))

    def enough() -> bool:
        test_random_client(world, next(seeds))
        return world.hits() - before > 50

    until(enough, lambda: f"only {world.hits() - before} hits")
