"""RESP2: replies whole, in pieces, with others behind them; and everything that ends a connection."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distribcache.tiers import resp
from distribcache.tiers.resp import MAX_LINE, MalformedReplyError, Refusal, Replies, command

REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b":0\r\n", 0),
    (b":-12\r\n", -12),
    (b"$0\r\n\r\n", b""),
    (b"$5\r\nhello\r\n", b"hello"),
    (b"$6\r\na\r\nb\r\n\r\n", b"a\r\nb\r\n"),
    (b"$-1\r\n", None),
    (b"*0\r\n", []),
    (b"*-1\r\n", None),
    (b"*2\r\n:1\r\n$1\r\na\r\n", [1, b"a"]),
    (b"*2\r\n*1\r\n*2\r\n:1\r\n:2\r\n*0\r\n", [[[1, 2]], []]),
    (b"*3\r\n*1\r\n:1\r\n$-1\r\n+x\r\n", [[1], None, b"x"]),
    (b"-ERR no\r\n", "ERR no"),
    (b"*1\r\n-MOVED 1 a:1\r\n", ["MOVED 1 a:1"]),
    (b"$3000\r\n" + b"\r\n$" * 1000 + b"\r\n", b"\r\n$" * 1000),
]


def plain(reply: Any) -> Any:
    """With refusals as their texts, so that they can be compared."""
    if isinstance(reply, list):
        return [plain(each) for each in reply]
    return reply.text if isinstance(reply, Refusal) else reply


def fed(*pieces: bytes, max_bulk: int = 5000) -> list[Any]:
    parser = Replies(max_bulk)
    return [plain(reply) for piece in pieces for reply in parser.feed(piece)]


@pytest.mark.parametrize(("data", "reply"), REPLIES, ids=[repr(data[:20]) for data, _ in REPLIES])
def test_whole_byte_by_byte_and_with_more_behind(data: bytes, reply: Any) -> None:
    assert fed(data) == [reply]
    assert fed(*(data[at : at + 1] for at in range(len(data)))) == [reply]
    for cut in range(len(data)):
        assert fed(data[:cut], data[cut:]) == [reply]
        assert fed(data[:cut]) == []
        assert fed(data + data[:cut], data[cut:] + data) == [reply] * 3


@given(st.lists(st.sampled_from(REPLIES), max_size=12), st.lists(st.integers(1, 40), max_size=200))
def test_any_pieces_give_what_hiredis_gives(replies: list[tuple[bytes, Any]], sizes: list[int]) -> None:
    data = b"".join(each for each, _ in replies)
    reader = hiredis.Reader(replyError=str)
    parser = Replies(5000)
    ours: list[Any] = []
    theirs: list[Any] = []
    at = 0
    for size in [*sizes, len(data)]:
        ours += map(plain, parser.feed(data[at : at + size]))
        reader.feed(data[at : at + size])
        while (reply := reader.gets()) is not False:
            theirs.append(reply)
        at += size
    assert ours == theirs == [reply for _, reply in replies]


MALFORMED = {
    "no kind": b"x",
    "an HTTP server": b"HTTP/1.1 200 OK\r\n",
    "RESP3": b"_\r\n",
    "a bulk without its end": b"$3\r\nabcd\r\n",
    "a bulk that ends too late": b"$3\r\nabc\n\n",
    "a negative bulk": b"$-2\r\n",
    "a bulk of blanks": b"$ 3\r\nabc\r\n",
    "a bulk with a plus": b"$+3\r\nabc\r\n",
    "a bulk with an underscore": b"$1_0\r\n0123456789\r\n",
    "a bulk without length": b"$\r\n",
    "a bulk of another script": "$٣\r\nabc\r\n".encode(),
    "a bulk beyond the bound": b"$5001\r\n",
    "a bulk of many digits": b"$" + b"9" * 30 + b"\r\n",
    "a number that is none": b":1.5\r\n",
    "a number of two": b":--5\r\n",
    "a negative array": b"*-2\r\n",
    "an array of too many": b"*262145\r\n",
    "arrays too deep": b"*1\r\n" * 6 + b":1\r\n",
    "a line without end": b"+" + b"a" * MAX_LINE,
    "an error without end": b"-" + b"a" * MAX_LINE,
    "a length without end": b"$" + b"1" * MAX_LINE,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_resp_is_an_error_at_once(data: bytes) -> None:
    with pytest.raises(MalformedReplyError) as error:
        fed(data)
    assert "abc" not in str(error.value)
    with pytest.raises(MalformedReplyError):
        fed(*(data[at : at + 1] for at in range(len(data))))
    with pytest.raises(MalformedReplyError):
        fed(b"+OK\r\n*2\r\n:1\r\n" + data)


def test_what_an_array_may_hold_is_bounded() -> None:
    one = b"$5000\r\n" + bytes(5000) + b"\r\n"
    with pytest.raises(MalformedReplyError):
        fed(b"*1000\r\n", *([one] * 1000))
    assert len(fed(*([one] * 1000))) == 1000, "alone each is within its bound"
    with pytest.raises(MalformedReplyError):
        fed(b"*200000\r\n", *([b"*2\r\n:1\r\n:1\r\n"] * 200_000))


def test_room_is_made_for_what_came_and_not_for_what_was_claimed() -> None:
    parser = Replies(1 << 30)
    assert parser.feed(b"$1073741824\r\nabc") == []
    assert sum(map(len, parser._pieces)) < 100
    parser = Replies(100)
    assert parser.feed(b"*262144\r\n") == []
    assert parser._open == [([], 262144)]


def test_a_long_bulk_in_many_pieces_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a megabyte in small pieces would be copied thousands of times."""
    numbers: list[int] = []
    number = resp._number
    monkeypatch.setattr(resp, "_number", lambda *args: numbers.append(1) or number(*args))
    data = b"$1000000\r\n" + bytes(1_000_000) + b"\r\n"
    assert fed(*(data[at : at + 1000] for at in range(0, len(data), 1000)), max_bulk=1 << 20) == [bytes(1_000_000)]
    assert len(numbers) == 2


def test_commands_are_packed_as_others_pack_them() -> None:
    for words in ((b"PING",), (b"SET", b"k", b"\r\n\x00", b"PX", b"5"), (b"GET", b"")):
        assert command(*words) == hiredis.pack_command(words)


def test_codes_of_refusals() -> None:
    assert Refusal(b"MOVED 1 a:1").code == "moved"
    assert Refusal(b"").code == ""
    assert Refusal(b"\xff\xfe x").text == "�� x"
