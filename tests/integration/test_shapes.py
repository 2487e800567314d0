"""Every shape in which drivers speak, byte for byte as PostgreSQL answers it, and from memory where it can be.

Each shape is played on a direct connection and, several times, through the proxy: misses and hits have to be the same
bytes. ``hits`` is how many of its statements must come from memory in each play once the cache is warm.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fix_world import World
from shapes import CS, DP, DS, B, E, H, P, Q, S, Step, kinds, play, step
from wait import until

from distribcache.wire.messages import close

INT, TEXT = 23, 25
SQL = b"SELECT name, price FROM item WHERE id = $1"
SEVEN = b"\0\0\0\7"
ALL = b"SELECT id, name FROM item WHERE id < 6 ORDER BY id"


def same(world: World, shape: Sequence[Step], hits: int, first: Sequence[Step] = (), *, steady: bool = True) -> None:
    """``first`` is played once per connection; ``shape`` again and again, until it brings ``hits`` hits, then thrice.

    ``steady``: each of these three times brings them again (not so where a statement unknown to the proxy is an alarm).
    """
    with world.direct() as direct, world.through() as through:
        assert play(through, first) == play(direct, first)
        wanted = play(direct, shape)
        assert play(direct, shape) == wanted, "the shape itself is not repeatable"

        def warm() -> bool:
            until(world.proxy.serving)  # the play before may have been an alarm
            before = world.hits()
            got = play(through, shape)
            assert got == wanted, explain(got, wanted)
            return world.hits() - before == hits

        until(warm, lambda: f"never {hits} hits")
        for _ in range(3):
            assert warm() or not steady
        assert play(direct, shape) == wanted


def explain(got: Sequence[bytes], wanted: Sequence[bytes]) -> str:
    lines = [f"{kinds(g)}   instead of   {kinds(w)}" for g, w in zip(got, wanted, strict=True) if g != w]
    return "\n".join(lines)


# ---- the drivers' table ---------------------------------------------------------------------------------------------

BEGIN, COMMIT = step(Q(b"BEGIN")), step(Q(b"COMMIT"))
UNNAMED = (P(b"", SQL, [INT]), B(b"", b"", [1], [SEVEN]), DP(), E(b""), S)
NAMED = (B(b"", b"s1", [1], [SEVEN]), DP(), E(b""), S)
PREPARE = [step(P(b"s1", SQL, [INT]), S), step(P(b"s2", ALL), S)]
CONTROL = [step(P(b"begin", b"BEGIN"), B(b"", b"begin"), E(b""), P(b"commit", b"COMMIT"), B(b"", b"commit"), E(b""), S)]
REBIND = step(B(b"", b"", [1], [SEVEN]), E(b""), S)
ROLLBACK = step(Q(b"ROLLBACK"))
BINARY = B(b"", b"s1", [1], [SEVEN], [1, 1])

TABLE: dict[str, tuple[list[Step], int, list[Step]]] = {
    "psql, psycopg2": ([step(Q(b"SELECT name FROM item WHERE id = 7"))], 1, []),
    "psql in a transaction": ([BEGIN, step(Q(b"SELECT name FROM item WHERE id = 7")), COMMIT], 1, []),
    "django atomic": (
        [
            BEGIN, step(Q(b'SAVEPOINT "s1"')), step(Q(b"SELECT name FROM item WHERE id = 7")),
            step(Q(b'RELEASE SAVEPOINT "s1"')), step(Q(b"SELECT name FROM item WHERE id = 8")), COMMIT,
        ], 2, [],
    ),
    "pgbench extended": ([step(P(b"", ALL), B(b"", b""), DP(), E(b""), S)], 1, []),
    "pgbench prepared": ([step(B(b"", b"s2"), DP(), E(b""), S)], 1, PREPARE),
    "psycopg unnamed": ([step(*UNNAMED)], 1, []),
    "psycopg prepared": ([step(*NAMED)], 1, PREPARE),
    "psycopg in a transaction": ([BEGIN, step(*UNNAMED), step(*NAMED), COMMIT], 2, PREPARE),
    "psycopg pipeline, sync at the end": (
        [step(*UNNAMED[:-1], P(b"", ALL), B(b"", b""), DP(), E(b""), *NAMED[:-1], S)], 3, PREPARE,
    ),
    "psycopg pipeline, flush": (
        [step(*NAMED[:-1], H, ends=b"C"), step(*UNNAMED[:-1], H, ends=b"C"), step(S)], 2, PREPARE,
    ),
    "asyncpg fetch": ([step(BINARY, E(b""), S)], 1, [step(P(b"s1", SQL), DS(b"s1"), H, ends=b"T"), step(S)]),
    "asyncpg in a transaction": ([step(Q(b"BEGIN;")), step(BINARY, E(b""), S), step(Q(b"COMMIT;"))], 1, PREPARE),
    "sqlalchemy": (
        [step(Q(b";")), BEGIN, step(*UNNAMED), ROLLBACK, BEGIN, step(*UNNAMED), ROLLBACK], 2, [],
    ),
    "node-postgres": ([step(P(b"", SQL), B(b"", b"", [], [b"7"]), DP(), E(b""), S)], 1, []),
    "node-postgres named": ([step(B(b"", b"q1", [], [b"7"]), DP(), E(b""), S)], 1, [step(P(b"q1", SQL), S)]),
    "postgres.js pipelined": (
        [step(B(b"", b"s1", [1], [SEVEN]), E(b""), S, B(b"", b"s2"), E(b""), S, *NAMED, count=3)], 3,
        [step(P(b"s1", SQL, [INT]), DS(b"s1"), H, ends=b"T"), step(P(b"s2", ALL), DS(b"s2"), H, ends=b"T"), step(S)],
    ),
    "postgres.js in a transaction": (
        [step(Q(b"begin")), step(B(b"", b"s2"), E(b""), S, B(b"", b"s2"), E(b""), S, count=2), step(Q(b"commit"))],
        2, PREPARE,
    ),
    "pgjdbc unnamed in a transaction": (
        [
            step(P(b"", b"BEGIN"), B(b"", b""), E(b""), *UNNAMED), step(*UNNAMED),
            step(P(b"", b"COMMIT"), B(b"", b""), E(b""), S),
        ], 2, [],
    ),
    "pgjdbc, BEGIN and the read under one Sync": (
        [
            step(B(b"", b"begin"), E(b""), BINARY, DP(), E(b""), S), step(BINARY, E(b""), S),
            step(B(b"", b"commit"), E(b""), S),
        ], 2, [*PREPARE, *CONTROL],
    ),
    "pgjdbc, maxRows": ([step(B(b"", b"s2"), DP(), E(b"", 2), S)], 1, PREPARE),
    "asyncpg fetchrow": ([step(B(b"", b"s1", [1], [SEVEN], [1]), E(b"", 1), S)], 1, PREPARE),
    "pgx": ([step(B(b"", b"s1", [1], [SEVEN], [1]), DP(), E(b""), S)], 1, [step(P(b"s1", SQL), DS(b"s1"), S)]),
    "lib/pq, describe first": (
        [step(P(b"", SQL), DS(), S), step(B(b"", b"", [], [b"7"]), E(b""), S)], 1, [],
    ),
    "npgsql, BEGIN without waiting": (
        [step(Q(b"BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED"), *UNNAMED, count=2), COMMIT], 1, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_driver_table(world: World, name: str) -> None:
    shape, hits, first = TABLE[name]
    same(world, shape, hits, first)


def test_first_use_of_a_named_begin_together_with_a_read(world: World) -> None:
    """pgjdbc's very first transaction: the Parse of BEGIN goes up, so everything behind it does."""
    first = [
        step(
            P(b"S_2", b"BEGIN"), B(b"", b"S_2"), E(b""), P(b"S_1", SQL, [INT]), B(b"", b"S_1", [1], [SEVEN]), E(b""), S
        ),
        step(B(b"", b"S_1", [1], [SEVEN]), E(b""), S),
        step(P(b"S_3", b"COMMIT"), B(b"", b"S_3"), E(b""), S),
    ]
    again = [
        step(B(b"", b"S_2"), E(b""), B(b"", b"S_1", [1], [SEVEN]), E(b""), S),
        step(B(b"", b"S_3"), E(b""), S),
    ]
    same(world, again, 1, first)


# ---- portals and limits ---------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[list[Step], int]] = {
    "suspended, then the rest": ([step(B(b"", b"s2"), E(b"", 2), E(b"", 2), E(b"", 2), S)], 0),
    "suspended in a transaction": ([BEGIN, step(B(b"", b"s2"), E(b"", 2), S), step(E(b"", 9), S), COMMIT], 0),
    "limit on the last run only": ([step(B(b"", b"s2"), E(b""), B(b"", b"s2"), E(b"", 2), S)], 2),
    "a failed transaction, after an unnamed read": (
        [
            BEGIN, step(*UNNAMED), step(P(b"y", b"SELEC"), S),
            step(CS(b"x"), P(b"x", b"DELETE FROM note WHERE false"), B(b"", b"x"), E(b""), S), ROLLBACK,
        ], 1,
    ),
    "named portal": ([BEGIN, step(B(b"p", b"s2"), E(b"p", 2), S), step(E(b"p", 2), CS(b"x"), S), COMMIT], 0),
    "second Execute of a finished portal": ([step(B(b"", b"s2"), E(b""), E(b""), S)], 1),
    "second Execute after Flush": ([step(B(b"", b"s2"), E(b""), H, ends=b"C"), step(E(b""), S)], 1),
    "second Execute in a transaction": ([BEGIN, step(B(b"", b"s2"), E(b""), S), step(E(b""), S), COMMIT], 1),
    "Execute of a portal that Sync has ended": ([step(B(b"", b"s2"), E(b""), S), step(E(b""), S)], 1),
    "Execute of a portal that COMMIT has ended": (
        [BEGIN, step(B(b"", b"s2"), E(b""), S), COMMIT, step(E(b""), S)], 1,
    ),
    "Describe of a portal that was run": ([step(B(b"", b"s2"), E(b""), DP(), S)], 0),
    "Close of a portal that was run": ([step(B(b"", b"s2"), E(b""), close(b"P", b""), S)], 1),
    "error in a group": ([step(*NAMED[:-1], P(b"", b"SELECT 1/0 FROM item"), B(b"", b""), E(b""), *NAMED)], 1),
    "error in the first statement": ([step(P(b"", b"SELECT nothing"), B(b"", b""), E(b""), *NAMED), step(*NAMED)], 1),
    "error before Flush": ([step(P(b"", b"SELEC"), H, ends=b"E"), step(*NAMED[:-1], H, S), step(*NAMED)], 1),
    "unknown statement": ([step(B(b"", b"nobody"), DP(), E(b""), S), step(*NAMED)], 1),
    "unknown portal": ([step(E(b"nobody"), S), step(DP(b"nobody"), S)], 0),
    "duplicate name": ([step(P(b"s1", SQL, [INT]), S), step(*NAMED)], 1),
    "wrong parameter": ([step(B(b"", b"s1", [0], [b"seven"]), E(b""), S), step(*NAMED)], 1),
    "too few parameters": ([step(B(b"", b"s1"), E(b""), S), step(*NAMED)], 1),
    "failed transaction": ([BEGIN, step(Q(b"SELECT 1/0")), step(*NAMED), step(Q(b"SELECT 1")), ROLLBACK], 0),
    "COMMIT of a failed transaction": ([BEGIN, step(Q(b"SELECT nothing")), COMMIT, step(*NAMED)], 1),
    "two BEGINs": ([BEGIN, BEGIN, step(*NAMED), COMMIT, COMMIT], 1),
    "Close and prepare again": ([step(CS(b"s1"), S), step(*NAMED), step(P(b"s1", SQL, [INT]), S), step(*NAMED)], 1),
    "Close and prepare again in one group": ([step(CS(b"s1"), P(b"s1", SQL, [INT]), *NAMED), step(*NAMED)], 1),
    "a Query destroys the unnamed statement": (
        [step(*UNNAMED), REBIND, step(Q(ALL)), REBIND],
        2,
    ),
    "a pure miss destroys the unnamed statement": (
        [step(*UNNAMED), step(Q(b"SELECT 1")), REBIND], 1,
    ),
    "BEGIN destroys the unnamed statement": ([step(*UNNAMED), BEGIN, REBIND, COMMIT], 1),
    "an empty Query destroys the unnamed statement": (
        [BEGIN, step(*UNNAMED), step(Q(b"")), step(DS(), S), COMMIT], 1,
    ),
    "Describe of the unnamed statement": ([step(*UNNAMED), step(DS(), S), REBIND], 2),
    "Close of the unnamed statement": ([step(*UNNAMED), step(CS(), S), REBIND], 1),
    "the unnamed statement in a transaction of ours": (
        [BEGIN, step(*UNNAMED), step(B(b"", b"", [1], [b"\0\0\0\x2a"]), E(b""), S), step(DS(), S), COMMIT], 1,
    ),
    "a new unnamed Parse is skipped": (
        [
            step(*UNNAMED), step(E(b"nobody"), P(b"", b"SELECT 2"), S), REBIND, step(Q(ALL)),
            step(E(b"nobody"), *UNNAMED), REBIND,
        ], 2,
    ),
    "a new unnamed Parse fails after a hit": ([step(*UNNAMED), REBIND, step(P(b"", b"SELEC"), S), REBIND], 1),
    "a new unnamed Parse fails": ([step(*UNNAMED), step(P(b"", b"SELEC"), S), step(DS(), S)], 1),
    "DEALLOCATE": (
        [step(Q(b"DEALLOCATE s1")), step(*NAMED), step(Q(b"DEALLOCATE s1")), *PREPARE[:1], step(*NAMED)], 1,
    ),
    "DEALLOCATE ALL": ([step(Q(b"DEALLOCATE ALL")), step(*NAMED), *PREPARE, step(*NAMED)], 1),
    "DISCARD ALL": ([step(Q(b"DISCARD ALL")), step(*NAMED), *PREPARE, step(*NAMED)], 1),
    "empty statements": ([step(Q(b"")), step(Q(b";")), step(P(b"", b""), B(b"", b""), DP(), E(b""), S)], 0),
    "empty statements in a transaction": ([BEGIN, step(Q(b";")), step(P(b"", b""), B(b"", b""), E(b""), S), COMMIT], 0),
    "several statements": ([step(Q(b"SELECT 1; SELECT name FROM item WHERE id = 7; SELECT nothing")), step(*NAMED)], 1),
    "Parse of several statements": ([step(P(b"", b"SELECT 1; SELECT 2"), S), step(*NAMED)], 1),
    "only Sync": ([step(S), step(S, S, count=2)], 0),
    "only Flush": ([step(H, *NAMED)], 1),
    "a write in the middle of a group": (
        [step(*NAMED[:-1], P(b"", b"INSERT INTO note DEFAULT VALUES"), B(b"", b""), E(b""), *NAMED[:-1], S)], 1,
    ),
    "an isolation level behind a read": (
        [step(*NAMED[:-1], P(b"", b"BEGIN ISOLATION LEVEL SERIALIZABLE"), B(b"", b""), E(b""), S), step(*NAMED)], 1,
    ),
    "LOCK TABLE behind a read": ([step(*NAMED[:-1], P(b"", b"LOCK note"), B(b"", b""), E(b""), S), step(*NAMED)], 1),
    "VACUUM behind a read": ([step(*NAMED[:-1], P(b"", b"VACUUM note"), B(b"", b""), E(b""), S)], 0),
    "a parameter too many for COMMIT": (
        [BEGIN, step(P(b"", b"COMMIT"), B(b"", b"", [], [b"7"]), E(b""), S), step(*NAMED), ROLLBACK], 0,
    ),
    "COMMIT outside a transaction": ([COMMIT, ROLLBACK, step(*NAMED)], 1),
    "SAVEPOINT outside a transaction": ([step(Q(b"SAVEPOINT a")), step(*NAMED)], 1),
    "savepoints": (
        [
            BEGIN, step(Q(b"SAVEPOINT a")), step(Q(b"SAVEPOINT b")), step(Q(b"ROLLBACK TO a")), step(Q(b"RELEASE b")),
            step(Q(b"ROLLBACK TO SAVEPOINT a")), step(*NAMED), step(Q(b"RELEASE a")), step(*NAMED), COMMIT,
            step(*NAMED),
        ], 3,
    ),
    "nested savepoints": (
        [
            BEGIN, step(Q(b"SAVEPOINT a")), step(Q(b"SAVEPOINT a")), step(*NAMED), step(Q(b"RELEASE a")),
            step(Q(b"ROLLBACK TO a")), step(Q(b"RELEASE a")), step(Q(b"RELEASE a")), ROLLBACK,
        ], 1,
    ),
    "tags of transaction control": (
        [
            step(Q(b"START TRANSACTION READ ONLY")), step(*NAMED), step(Q(b"END")), step(Q(b"begin work")),
            step(Q(b"ABORT")), step(Q(b" /* c */ begin")), step(*NAMED), step(Q(b"commit and chain")), step(Q(b"end")),
        ], 2,
    ),
    "described transaction control": (
        [
            step(P(b"", b"BEGIN"), B(b"", b""), DP(), E(b""), S), step(*NAMED),
            step(P(b"", b"COMMIT"), DS(), B(b"", b""), DP(), E(b""), S), step(*NAMED),
        ], 2,
    ),
    "repeatable read": ([step(Q(b"BEGIN ISOLATION LEVEL REPEATABLE READ")), step(*NAMED), COMMIT, step(*NAMED)], 1),
    "SET TRANSACTION": (
        [BEGIN, step(Q(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")), step(*NAMED), COMMIT, step(*NAMED)], 1,
    ),
    "read only refuses a write": (
        [step(Q(b"BEGIN READ ONLY")), step(*NAMED), step(Q(b"DELETE FROM note")), COMMIT, step(*NAMED)], 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_corners(world: World, name: str) -> None:
    shape, hits = ERRORS[name]
    same(world, shape, hits, PREPARE, steady=False)
