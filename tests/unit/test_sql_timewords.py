"""Strings that the server may read as the present moment."""

from __future__ import annotations

import struct

import pytest

from distribcache.sql.timewords import dangerous_parameter, names_a_moment

MOMENTS = [
    "now", "NOW", " today ", "Tomorrow", "yesterday", "now()", "(now)", "today 10:00", "10:00 today", "today10:00",
    "today,", "now PST", "today 10:00 America/New_York", "10:00 America/Argentina/Buenos_Aires today", "today EST5EDT",
    "{today,2024-01-01}", "[today,tomorrow)", "(5,today)", '{"now"}', "{{now}}",
    '("long free text here with words",today)',
    "today allballs", "today am", "2024 today", "\ttoday\n", "today/now", "today_x",
]
HARMLESS = [
    "", "2024-01-01", "infinity", "epoch", "allballs", "knows", "snow", "nowadays", "todays", "tomorrows", "_nowhere",
    "what is the weather like today", "now or never my friend", "I know what you did yesterday evening, friend",
    "today " * 60 + "x" * 300,
]


@pytest.mark.parametrize("text", MOMENTS)
def test_moments(text: str) -> None:
    assert names_a_moment(text)
    assert dangerous_parameter(text.encode())


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless(text: str) -> None:
    assert not names_a_moment(text)
    assert not dangerous_parameter(text.encode())


def test_an_array_of_text_in_binary_is_looked_into() -> None:
    def array(*items: bytes) -> bytes:
        body = b"".join(struct.pack(">i", len(item)) + item for item in items)
        return struct.pack(">iiIii", 1, 0, 25, len(items), 1) + body

    assert dangerous_parameter(array(b"today"))
    assert dangerous_parameter(array(b"a long text before it, with many words", b"yesterday", b"and some after it"))
    assert not dangerous_parameter(array(b"some", b"words"))


def test_bytes_that_are_no_text_are_looked_at_too() -> None:
    assert dangerous_parameter(b"\xff\xfe today")
    assert not dangerous_parameter(bytes(range(256)))
