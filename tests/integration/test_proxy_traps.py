"""The traps of the proxy, each by its number, and what is long or opaque on the wire, byte for byte."""

from __future__ import annotations

import psycopg
import pytest
from fix_world import World
from shapes import CS, DP, DS, B, E, H, P, Q, S, kinds, play, step
from wait import until

from distribcache.wire.messages import close, copy_data, copy_done, copy_fail, read_backend_key_data

INT = 23
ONE = b"SELECT name FROM item WHERE id = $1"
OTHER = b"SELECT price FROM item WHERE id = $1"
SEVEN = b"\0\0\0\7"
RUN = (B(b"", b"s1", [1], [SEVEN], [1]), DP(), E(b""), S)


def warm_up(world: World, client: object, *shape: bytes) -> bytes:
    """Play one exchange until it is a hit; returns its answer."""
    answers: list[bytes] = []

    def hit() -> bool:
        before = world.hits()
        answers.extend(play(client, [step(*shape)]))  # type: ignore[arg-type]
        return world.hits() > before

    until(hit, "never a hit")
    assert len(set(answers)) == 1, [kinds(each) for each in answers]
    return answers[0]


# ---- trap 1: names never key anything -------------------------------------------------------------------------------


def test_trap_1_same_name_and_same_bytes_with_other_sql_on_two_connections(world: World) -> None:
    """Proxy trap 1."""
    with world.through() as one, world.through() as two, world.direct() as direct:
        for client, sql in ((one, ONE), (two, OTHER)):
            play(client, [step(P(b"s1", sql, [INT]), S)])
        wanted = []
        for sql in (ONE, OTHER):
            wanted += play(direct, [step(P(b"s1", sql, [INT]), S), step(*RUN), step(CS(b"s1"), S)])[1:2]
        assert wanted[0] != wanted[1]
        for _ in range(3):
            assert [warm_up(world, one, *RUN), warm_up(world, two, *RUN)] == wanted


def test_trap_1_same_name_with_other_parameter_types(world: World) -> None:
    """Proxy trap 1. The bytes of the two Binds are equal and so is the text: only the types given at Parse differ."""
    sql = b"SELECT id, $1::text FROM item WHERE id = 7"
    run = (B(b"", b"s1", [1], [b"\0\0\0\x37"]), E(b""), S)
    with world.through() as integer, world.through() as textual, world.direct() as direct:
        wanted = []
        for client, oid in ((integer, INT), (textual, 25)):
            play(client, [step(P(b"s1", sql.replace(b"$1::text", b"$1"), [oid]), S)])
            wanted += play(direct, [step(P(b"s1", sql.replace(b"$1::text", b"$1"), [oid]), S), step(*run)])[1:]
            play(direct, [step(CS(b"s1"), S)])
        assert wanted[0] != wanted[1]
        for _ in range(3):
            assert [play(integer, [step(*run)]), play(textual, [step(*run)])] == [wanted[:1], wanted[1:]]


@pytest.mark.parametrize("how", ["Close", "DEALLOCATE", "DEALLOCATE ALL", "DISCARD ALL", "failed Parse"])
def test_trap_1_a_name_prepared_again_with_other_sql(world: World, how: str) -> None:
    """Proxy trap 1."""
    end = {
        "Close": step(CS(b"s1"), S),
        "failed Parse": step(P(b"s1", OTHER, [INT]), CS(b"s1"), S, CS(b"s1"), S, count=2),
    }
    again = [end.get(how) or step(Q(how.encode() + b" s1" * (how == "DEALLOCATE"))), step(P(b"s1", OTHER, [INT]), S)]
    with world.through() as client, world.direct() as direct:
        for each in (client, direct):
            play(each, [step(P(b"s1", ONE, [INT]), S)])
        first = warm_up(world, client, *RUN)
        assert [first] == play(direct, [step(*RUN)])
        assert play(client, [*again, step(*RUN)]) == play(direct, [*again, step(*RUN)])
        assert warm_up(world, client, *RUN) != first


# ---- trap 4: row limits ---------------------------------------------------------------------------------------------


def test_trap_4_a_row_limit_is_part_of_the_key(world: World) -> None:
    """Proxy trap 4."""
    sql = b"SELECT id FROM item WHERE id < 6 ORDER BY id"
    shapes = [(B(b"", b"s1"), DP(), E(b"", limit), S) for limit in (1, 2, 0, 5, 6)]
    with world.through() as client, world.direct() as direct:
        for each in (client, direct):
            play(each, [step(P(b"s1", sql), S)])
        answers = [warm_up(world, client, *shape) for shape in shapes]
        assert answers == play(direct, [step(*shape) for shape in shapes])
        assert [kinds(answer).split()[-2] for answer in answers] == ["s", "s", "C", "s", "C"]


@pytest.mark.parametrize("begin", [b"BEGIN", b"BEGIN ISOLATION LEVEL READ COMMITTED"])
def test_trap_4_a_suspended_portal_goes_on_in_its_transaction(world: World, begin: bytes) -> None:
    """Proxy trap 4."""
    sql = b"SELECT id FROM item WHERE id < 6 ORDER BY id"
    limited = (B(b"", b"s1"), E(b"", 2), S)
    shape = [
        step(Q(begin)),
        step(*limited),
        step(E(b"", 2), S),
        step(E(b"", 2), S),
        step(E(b"", 2), S),
        step(Q(b"END")),
    ]
    with world.through() as client, world.direct() as direct:
        for each in (client, direct):
            play(each, [step(P(b"s1", sql), S)])
        warm_up(world, client, *limited)
        for _ in range(3):
            assert play(client, shape) == play(direct, shape)


# ---- trap 5: a backend that has begun is not left waiting -----------------------------------------------------------


def test_trap_5_no_lock_is_left_behind_by_an_answer_from_memory(world: World) -> None:
    """Proxy trap 5."""
    with world.through() as client, world.database.connect() as watch:
        play(client, [step(P(b"s1", ONE, [INT]), S)])
        warm_up(world, client, *RUN)
        pid = read_backend_key_data(next(m for m in client.greeting if m[:1] == b"K")[5:]).pid
        begun = [step(P(b"s2", ONE, [INT]), DS(b"s2"), H, ends=b"T")]
        play(client, begun)
        held = watch.execute("SELECT count(*) FROM pg_locks WHERE pid = %s AND relation = 'item'::regclass", [pid])
        assert held.fetchone() == (1,), "the trap itself is gone: Parse and Flush leave the backend with its lock"
        play(client, [step(B(b"", b"s2", [1], [SEVEN], [1]), DP(), E(b""), S)])
        state = watch.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        assert state == ("idle",)
        watch.execute("SET lock_timeout = '2s'")
        with watch.transaction():
            watch.execute("LOCK TABLE item IN ACCESS EXCLUSIVE MODE")


# ---- trap 6: named statements exist upstream ------------------------------------------------------------------------


def test_trap_6_deallocate_execute_and_duplicates_find_what_upstream_knows(world: World) -> None:
    """Proxy trap 6."""
    shape = [
        step(P(b"s6", ONE, [INT]), S), step(B(b"", b"s6", [1], [SEVEN]), E(b""), S), step(P(b"s6", ONE, [INT]), S),
        step(Q(b"EXECUTE s6(7)")), step(Q(b"SELECT count(*) FROM pg_prepared_statements WHERE name = 's6'")),
        step(Q(b"DEALLOCATE s6")), step(Q(b"DEALLOCATE s6")), step(Q(b"EXECUTE s6(7)")),
        step(Q(b"PREPARE s6(int) AS SELECT name FROM item WHERE id = $1")),
        step(B(b"", b"s6", [1], [SEVEN]), E(b""), S),
        step(Q(b"PREPARE s6 AS SELECT 1")), step(CS(b"s6"), S), step(CS(b"s6"), S), step(close(b"P", b"none"), S),
    ]  # fmt: skip
    with world.through() as client, world.direct() as direct:
        wanted = play(direct, shape)
        for _ in range(5):
            got = play(client, shape)
            assert got == wanted, [(kinds(g), kinds(w)) for g, w in zip(got, wanted, strict=True) if g != w]


# ---- trap 8: pool resets and pings ----------------------------------------------------------------------------------

RESETS = {
    "asyncpg": b"SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
    "RESET ALL": b"RESET ALL",
    "DISCARD SEQUENCES": b"DISCARD SEQUENCES",
    "ping": b"SELECT 1",
    "ping;": b";",
    "empty": b"",
}


@pytest.mark.parametrize("reset", RESETS)
def test_trap_8_resets_and_pings_cost_no_hit(world: World, reset: str) -> None:
    """Proxy trap 8."""
    with world.through() as client, world.direct() as direct, world.proxy.connect() as watch:
        for each in (client, direct):
            play(each, [step(P(b"s1", ONE, [INT]), S)])
        warm_up(world, client, *RUN)
        shape = [step(Q(RESETS[reset])), step(*RUN)]
        wanted = play(direct, shape)

        def calm() -> bool:
            """Five in a row; an alarm that an earlier test raised may still be looked into when this one begins."""
            alarms = dict(watch.execute("SHOW distribcache.freshness").fetchall())["alarms"]
            hits = world.hits()
            assert [play(client, shape) for _ in range(5)] == [wanted] * 5
            after = dict(watch.execute("SHOW distribcache.freshness").fetchall())["alarms"]
            return world.hits() == hits + 5 and after == alarms

        until(calm, "never five hits in a row")


def test_trap_8_pings_are_not_the_last_statement(world: World) -> None:
    """Proxy trap 8."""
    with world.proxy.connect(cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SELECT name FROM item WHERE id = 7")
        before = connection.execute("SHOW distribcache.last").fetchone()
        for ping in ("", ";", "SELECT 1", "select 1;"):
            connection.execute(ping)
            now = connection.execute("SHOW distribcache.last").fetchone()
            assert now is not None
            assert before is not None
            assert (now[0], now[4]) == (before[0], before[4])


MISTYPED = {
    "unknown statement": (B(b"", b"nobody"), E(b""), S),
    "syntax error": (P(b"", b"SELEC 1"), B(b"", b""), E(b""), S),
    "unknown column": (P(b"", b"SELECT nothing FROM item"), B(b"", b""), E(b""), S),
}


@pytest.mark.parametrize("mistake", MISTYPED)
def test_a_mistyped_statement_is_no_alarm(world: World, mistake: str) -> None:
    def alarms() -> int:
        with world.proxy.connect() as watch:
            return int(dict(watch.execute("SHOW distribcache.freshness").fetchall())["alarms"])

    with world.through() as client:
        before = world.quiet()  # an earlier test's alarm may come once more with the stream
        assert b"E" in [each[:1] for each in client.exchange(b"".join(MISTYPED[mistake]))]
        assert alarms() == before
        # The same mistake behind something that is one, in the same transaction and not rolled back by it.
        play(client, [step(Q(b"BEGIN")), step(Q(b"CREATE TABLE alarming (id int)")), step(Q(b"SAVEPOINT a"))])
        play(client, [step(*MISTYPED[mistake]), step(Q(b"ROLLBACK TO a")), step(Q(b"COMMIT"))])
        assert alarms() > before
        play(client, [step(Q(b"DROP TABLE alarming"))])


# ---- long messages, COPY in the extended protocol, function calls ---------------------------------------------------

LONG = b"SELECT count(*) FROM item WHERE name <> $1"
PADDING = b"x" * 100_000


def test_long_messages_are_forwarded_in_order(world: World) -> None:
    short = (P(b"", ONE, [INT]), B(b"", b"", [1], [SEVEN]), E(b""), S)
    text = b"SELECT name /* " + PADDING + b" */ FROM item WHERE id = $1"
    shape = [
        step(P(b"", LONG, [25]), B(b"", b"", [0], [b"x"]), E(b""), S),  # a hit: its Parse is kept here
        step(B(b"", b"", [0], [PADDING]), E(b""), S),  # too long to be held, and needs that Parse
        step(*short),
        step(P(b"", text, [INT]), S),  # replaces the unnamed statement unseen
        step(B(b"", b"", [1], [SEVEN]), E(b""), S),
        step(P(b"s9", text, [INT]), B(b"", b"s9", [1], [SEVEN]), DP(), E(b""), CS(b"s9"), S),
        step(Q(b"BEGIN")), step(Q(b"SELECT length('" + PADDING + b"')")), step(*short), step(Q(b"ROLLBACK")),
        step(P(b"", b"SELECT length($1)", [25]), B(b"", b"", [0], [PADDING]), E(b""), *short, count=1),
    ]  # fmt: skip
    with world.through() as client, world.direct() as direct:
        wanted = play(direct, shape)
        for _ in range(8):
            got = play(client, shape)
            assert got == wanted, [(kinds(g), kinds(w)) for g, w in zip(got, wanted, strict=True) if g != w]


def test_copy_in_the_extended_protocol(world: World) -> None:
    rows = copy_data(b"first\nsecond\n")
    start = (P(b"", b"COPY note (body) FROM STDIN"), B(b"", b""), DP(), E(b""), S)
    shape = [
        step(Q(b"BEGIN")),
        step(*start, ends=b"G"), step(rows, copy_done(), S),  # the first Sync is ignored by a server that copies
        step(*start[:-1], H, ends=b"G"), step(copy_data(b"x" * 200_000), copy_done(), S),
        step(*start, rows, copy_done(), S),
        step(P(b"", b"COPY (SELECT body FROM note ORDER BY length(body)) TO STDOUT"), B(b"", b""), DP(), E(b""), S),
        step(*start, ends=b"G"), step(copy_fail(b"no more"), S),
        step(Q(b"ROLLBACK")),
        step(P(b"", ONE, [INT]), B(b"", b"", [1], [SEVEN]), E(b""), S),
    ]  # fmt: skip
    with world.through() as client, world.direct() as direct:
        wanted = play(direct, shape)
        for _ in range(3):
            got = play(client, shape)
            assert got == wanted, [(kinds(g), kinds(w)) for g, w in zip(got, wanted, strict=True) if g != w]


def test_function_call(world: World) -> None:
    """The fast path of old: opaque, so it is forwarded and ends serving for its transaction."""
    body = (
        (1397).to_bytes(4, "big") + b"\0\1\0\1\0\1" + (4).to_bytes(4, "big") + b"\0\0\0\7" + b"\0\1"
    )  # int4abs(7), binary
    call = b"F" + (len(body) + 4).to_bytes(4, "big") + body
    shape = [
        step(call),
        step(Q(b"BEGIN")),
        step(call),
        step(Q(b"COMMIT")),
        step(Q(b"SELECT name FROM item WHERE id = 7")),
    ]
    with world.through() as client, world.direct() as direct:
        assert play(client, shape) == play(direct, shape)
