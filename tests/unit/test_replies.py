"""The queue of owed replies: what is relayed, what is ours, what a fill gets, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distribcache.errors import ProtocolError
from distribcache.proxy.fill import Fill
from distribcache.proxy.replies import BARE, DESCRIBED, PARSED_BARE, PARSED_DESCRIBED, Op, Replies
from distribcache.wire.messages import (
    BIND_COMPLETE,
    CLOSE_COMPLETE,
    PARSE_COMPLETE,
    Back,
    command_complete,
    data_row,
    error_response,
    message,
    notice_response,
    parameter_status,
    ready_for_query,
    row_description,
)  # fmt: skip

T = row_description([(b"a", 25, -1, 0)])
D = data_row([b"1"])
C = command_complete(b"SELECT 1")
Z = ready_for_query(b"I")
ERROR = error_response("ERROR", "42P01", "no such table")
FATAL = error_response("FATAL", "57P01", "terminating connection")


def make_fill() -> Fill:
    return Fill(
        (1, b""), analysis=None, slots=(), fill_lsn=1, epoch=1, scope=1, began_ns=1, ttl=1.0, cap=10_000,
    )  # type: ignore[arg-type]  # fmt: skip


def replies(*ops: Op) -> tuple[Replies, list[tuple[bytes, bool]]]:
    ready: list[tuple[bytes, bool]] = []
    made = Replies(lambda status, ours: ready.append((status, ours)), lambda _: None, lambda: None)
    for op in ops:
        made.expect(op)
    return made, ready


def whole(made: Replies, data: bytes) -> bytes:
    return made.feed(data)


def byte_by_byte(made: Replies, data: bytes) -> bytes:
    return b"".join(made.feed(data[i : i + 1]) for i in range(len(data)))


FEEDS: list[Callable[[Replies, bytes], bytes]] = [whole, byte_by_byte]


@pytest.mark.parametrize("feed", FEEDS)
def test_simple_query_is_relayed_and_filled_up_to_ready(feed: Callable[[Replies, bytes], bytes]) -> None:
    fill = make_fill()
    made, ready = replies(Op(ord("Q"), fill=fill))
    assert feed(made, T + D + D + C + Z) == T + D + D + C + Z
    assert fill.payload() == T + D + D + C
    assert not fill.spoiled
    assert ready == [(b"I", False)]
    assert not made.pending


@pytest.mark.parametrize("feed", FEEDS)
def test_the_replies_of_one_run_are_gathered_together_and_no_other(
    feed: Callable[[Replies, bytes], bytes],
) -> None:
    first, second = make_fill(), make_fill()
    made, _ = replies(
        Op(ord("D")), *(Op(kind, fill=first) for kind in b"PBDE"), *(Op(kind, fill=second) for kind in b"BE"),
        Op(ord("B"), ours=True), Op(ord("E")), Op(ord("S")),
    )  # fmt: skip
    one, two = PARSE_COMPLETE + BIND_COMPLETE + T + D + C, BIND_COMPLETE + D + D + C
    assert feed(made, T + one + two + BIND_COMPLETE + D + C + Z) == T + one + two + D + C + Z
    assert (first.payload(), second.payload()) == (one, two)
    assert first.whole
    assert second.whole


@pytest.mark.parametrize("feed", FEEDS)
def test_our_own_question_never_reaches_the_client(feed: Callable[[Replies, bytes], bytes]) -> None:
    rows: list[bytes] = []
    ends: list[int] = []
    ours = [
        Op(ord("P"), ours=True), Op(ord("B"), ours=True),
        Op(ord("E"), ours=True, rows=rows, done=lambda kind, _: ends.append(kind)), Op(ord("C"), ours=True),
        Op(ord("S"), ours=True),
    ]  # fmt: skip
    fill = make_fill()
    made, ready = replies(*ours, Op(ord("Q"), fill=fill))
    question = PARSE_COMPLETE + BIND_COMPLETE + D + C + CLOSE_COMPLETE + Z
    changed = parameter_status(b"TimeZone", b"UTC")
    assert feed(made, question[:10] + changed + question[10:] + T + D + C + Z) == changed + T + D + C + Z
    assert rows == [D]
    assert ends == [ord("C")]
    assert ready == [(b"I", True), (b"I", False)]
    assert fill.spoiled  # a setting changed under it


@pytest.mark.parametrize("feed", FEEDS)
def test_an_error_skips_to_sync(feed: Callable[[Replies, bytes], bytes]) -> None:
    made, ready = replies(*(Op(ord(kind)) for kind in "PBDES"))
    assert feed(made, PARSE_COMPLETE + ERROR + Z) == PARSE_COMPLETE + ERROR + Z
    assert not made.pending and ready == [(b"I", False)]


def test_an_error_before_sync_was_sent_skips_what_follows() -> None:
    made, ready = replies(Op(ord("P")), Op(ord("D")))
    made.feed(ERROR)
    for kind in "BES":
        made.expect(Op(ord(kind)))
    assert [chr(op.kind) for op in made.pending] == ["S"]
    assert made.feed(Z) == Z
    assert ready == [(b"I", False)]


@pytest.mark.parametrize("spoiler", [notice_response("NOTICE", "00000", "hm"), parameter_status(b"a", b"b"), ERROR])
def test_anything_unusual_spoils_a_fill(spoiler: bytes) -> None:
    fill = make_fill()
    made, _ = replies(Op(ord("Q"), fill=fill))
    made.feed(T + D + spoiler + (b"" if spoiler == ERROR else C) + Z)
    assert fill.spoiled


@pytest.mark.parametrize("wrong", [T + T + D + C, D + C, T + D + C + C, T + D + C + D, T + D, T + C + T, C])
@pytest.mark.parametrize("feed", FEEDS)
def test_a_gathered_reply_has_one_shape(feed: Callable[[Replies, bytes], bytes], wrong: bytes) -> None:
    made, _ = replies(Op(ord("Q"), fill=make_fill()))
    with pytest.raises(ProtocolError):
        feed(made, wrong + Z)


def test_a_fatal_error_during_our_question_is_the_clients() -> None:
    made, _ = replies(Op(ord("P"), ours=True), Op(ord("S"), ours=True))
    assert made.feed(FATAL) == FATAL


def test_copy_in_swallows_the_sync_that_was_already_sent() -> None:
    made, ready = replies(Op(ord("P")), Op(ord("B")), Op(ord("E")), Op(ord("S")))
    made.feed(PARSE_COMPLETE + BIND_COMPLETE + message(Back.COPY_IN, b"\0\0\1\0\0"))
    assert [chr(op.kind) for op in made.pending] == ["E"]
    made.expect(Op(ord("S")))  # the server ignores it, still copying
    made.feed(command_complete(b"COPY 1"))
    made.expect(Op(ord("S")))
    assert made.feed(Z) == Z and ready == [(b"I", False)]


@pytest.mark.parametrize(
    "bad",
    [C, D, Z, b"K\0\0\0\x0c\0\0\0\1\0\0\0\2", b"D\0\0\0\3", message(ord("?"))],
    ids=["C", "D", "Z", "K", "short", "?"],
)
def test_what_the_server_may_not_say_is_refused(bad: bytes) -> None:
    made, _ = replies(Op(ord("P")))
    with pytest.raises(ProtocolError):
        made.feed(bad)


def test_a_server_that_owes_nothing_may_only_say_asynchronous_things() -> None:
    made, _ = replies()
    assert made.feed(FATAL) == FATAL
    with pytest.raises(ProtocolError):
        made.feed(C)


def test_a_large_row_is_relayed_as_it_comes() -> None:
    made, _ = replies(Op(ord("Q")))
    row = data_row([b"x" * 100_000])
    assert made.feed(row[:1000]) == row[:1000]
    assert made.feed(row[1000:50_000]) == row[1000:50_000]
    assert made.feed(row[50_000:] + C + Z) == row[50_000:] + C + Z
    assert not made.pending


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_row_of_ours_that_is_too_long_is_dropped_as_it_comes(size: int) -> None:
    """A question of ours takes no more memory than it was given, whatever the server answers."""
    seen: list[int] = []
    rows: list[bytes] = []
    asked = Op(ord("E"), ours=True, rows=rows, room=40, done=lambda kind, _: seen.append(kind))
    made, _ = replies(asked, Op(ord("S"), ours=True), Op(ord("E")), Op(ord("S")))
    short, long = data_row([b"a" * 8]), data_row([b"b" * 5000])
    theirs = data_row([b"c" * 3000]) + command_complete(b"SELECT 1") + ready_for_query(b"I")
    data = short + long + short + command_complete(b"SELECT 3") + ready_for_query(b"I") + theirs
    held, relayed = 0, b""
    for at in range(0, len(data), size):
        relayed += made.feed(data[at : at + size])
        held = max(held, len(made._tail))
    assert relayed == theirs
    assert rows == [short] and seen == [ord("C")]
    assert held <= 40 + size


HEADS = {BARE: BIND_COMPLETE, DESCRIBED: BIND_COMPLETE + T, PARSED_BARE: PARSE_COMPLETE + BIND_COMPLETE,
         PARSED_DESCRIBED: PARSE_COMPLETE + BIND_COMPLETE + T, ord("Q"): T}  # fmt: skip


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_unit_is_gathered_as_a_whole(feed: Callable[[Replies, bytes], bytes], kind: int, rows: int) -> None:
    told: list[int] = []
    fill = make_fill()
    made, ready = replies(Op(kind, fill=fill, done=lambda each, _: told.append(each)))
    reply = HEADS[kind] + D * rows + C
    assert feed(made, reply + Z) == reply + Z
    assert (fill.payload(), fill.whole, fill.spoiled) == (reply, True, False)
    assert (ready, made.status, bool(made.pending)) == ([(b"I", False)], b"I", False)
    assert (PARSE_COMPLETE[0] in told) is (kind in (PARSED_BARE, PARSED_DESCRIBED))
    assert told[-1] == Back.READY_FOR_QUERY


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("at", [0, 5, 10])
def test_an_error_ends_a_unit(feed: Callable[[Replies, bytes], bytes], kind: int, at: int) -> None:
    told: list[int] = []
    fill = make_fill()
    made, ready = replies(Op(kind, fill=fill, done=lambda each, _: told.append(each)))
    reply = (HEADS[kind][:at] if kind != ord("Q") else b"") + ERROR + Z
    if at > len(PARSE_COMPLETE) and kind in (BARE, DESCRIBED):
        reply = ERROR + Z
    assert feed(made, reply) == reply
    assert fill.spoiled
    assert told[-2:] == [Back.ERROR, Back.READY_FOR_QUERY]
    assert (ready, bool(made.pending)) == ([(b"I", False)], False)


def test_a_row_that_looks_like_the_reply_to_a_unit_is_a_row() -> None:
    fill = make_fill()
    made, ready = replies(Op(BARE, fill=fill))
    row = data_row([b"x" * 20 + BIND_COMPLETE + C + Z])
    first = BIND_COMPLETE + row[: -len(BIND_COMPLETE + C + Z)]
    rest = BIND_COMPLETE + C + Z
    assert made.feed(first) + made.feed(rest) == first + rest
    assert ready == []
    assert made.feed(C + Z) == C + Z
    assert fill.payload() == first + rest + C
    assert ready == [(b"I", False)]


def test_what_comes_behind_part_of_a_message_is_its_rest() -> None:
    made, ready = replies(Op(BARE, fill=make_fill()))
    assert made.feed(b"2\0\0") + made.feed(BIND_COMPLETE + C + Z) == b""
    assert ready == []


@pytest.mark.parametrize("bad", [
    BIND_COMPLETE + b"D\0\0\0\3" + C + Z, BIND_COMPLETE + b"D\0\0\0\0" + C + Z, D + C + Z, T + D + C + Z,
    BIND_COMPLETE + D + T + C + Z, BIND_COMPLETE + BIND_COMPLETE + C + Z, BIND_COMPLETE + C + C + Z,
])  # fmt: skip
def test_a_broken_reply_to_a_unit_is_refused(bad: bytes) -> None:
    made, _ = replies(Op(BARE, fill=make_fill()))
    with pytest.raises(ProtocolError):
        made.feed(bad)
