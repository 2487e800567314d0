"""Whose turn it is: ``proxy.turns``, as workers see it."""

from __future__ import annotations

from typing import Any

import pytest

from distribcache.proxy import turns as module
from distribcache.proxy.turns import Turns


class Main:
    """The list, and what was told to whom."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, Any]] = []
        self.turns = Turns(lambda index, message: self.told.append((index, message["kind"], _what(message))))

    def ask(self, index: int, number: int, digest: str = "aa", seconds: float = 60) -> None:
        self.turns.hear(index, {"kind": "turn", "id": number, "digest": digest, "seconds": seconds})

    def over(self, index: int, digest: str = "aa") -> None:
        self.turns.hear(index, {"kind": "turn_over", "digest": digest})

    def news(self) -> list[tuple[int, str, Any]]:
        told, self.told = self.told, []
        return told


def _what(message: dict[str, Any]) -> Any:
    return (message["id"], message["mine"]) if message["kind"] == "answered" else message["digest"]


@pytest.fixture
def main() -> Main:
    return Main()


def test_one_asks_and_the_others_hear_when_it_is_over(main: Main) -> None:
    main.ask(0, 1)
    assert main.news() == [(0, "answered", (1, True))]
    main.ask(1, 7)
    main.ask(2, 8)
    assert main.news() == [(0, "wanted", "aa")], "once"
    main.over(0)
    assert main.news() == [(1, "answered", (7, False)), (2, "answered", (8, False))]
    main.ask(2, 9)
    assert main.news() == [(2, "answered", (9, True))]
    assert len(main.turns) == 1


def test_another_key_is_another_turn(main: Main) -> None:
    main.ask(0, 1)
    main.ask(1, 2, "bb")
    assert main.news() == [(0, "answered", (1, True)), (1, "answered", (2, True))]


def test_who_has_none_ends_none(main: Main) -> None:
    main.ask(0, 1)
    main.over(1)
    main.over(1, "bb")
    main.ask(1, 2)
    assert main.news() == [(0, "answered", (1, True)), (0, "wanted", "aa")]


def test_a_worker_that_ends_ends_its_turns(main: Main) -> None:
    main.ask(0, 1)
    main.ask(0, 2, "bb")
    main.ask(1, 3)
    main.news()
    main.turns.gone(0)
    assert main.news() == [(1, "answered", (3, False))]
    assert len(main.turns) == 0


def test_time_ends_a_turn(main: Main) -> None:
    main.ask(0, 1, seconds=60)
    main.ask(1, 2)
    main.news()
    main.turns._turns["aa"].until = 0
    main.ask(2, 3)
    assert main.news() == [(2, "answered", (3, True)), (2, "wanted", "aa")], "the one that waits goes on waiting"
    main.over(0)
    assert main.news() == []
    main.over(2)
    assert main.news() == [(1, "answered", (2, False))]


def test_its_own_worker_never_waits_for_itself(main: Main) -> None:
    main.ask(0, 1)
    main.ask(0, 2)
    assert main.news() == [(0, "answered", (1, True)), (0, "answered", (2, True))]


def test_turns_are_bounded(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    main.ask(0, 1, "aa", seconds=0)
    main.ask(0, 2, "bb")
    main.ask(0, 3, "cc")
    main.ask(0, 4, "dd")
    assert [what for _, _, what in main.news()] == [(1, True), (2, True), (3, True), (4, True)]
    assert len(main.turns) == 2, "the one whose time was over has made room"
    main.ask(1, 5, "dd")
    assert main.news() == [(1, "answered", (5, True))], "nobody waits for what is not known"
