"""The registry of databases: a database is begun again only when nothing of ours is still leaving it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from distribcache.coherence.database import Databases, Options


class Followed:
    """Stands for the coherence of a database; its end takes until it is told."""

    mode = "wal"

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.story: list[str] = []

    async def start(self) -> None:
        self.story.append("start")

    async def stop(self) -> None:
        self.story.append("leaving")
        await self.told.wait()
        self.story.append("left")


async def settle() -> None:
    """Let every task that can run go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def followed(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Followed()
    monkeypatch.setattr(Databases, "_make", lambda self, name: made)
    return made


async def test_reopened_while_it_is_being_left(followed: Followed) -> None:
    some = Databases("host=nowhere", Options())
    some.acquire("shop")
    await settle()
    leaving = asyncio.ensure_future(some.close_for_ddl(["shop"]))
    await settle()
    some.reopen(["shop"])
    await settle()
    assert followed.story == ["start", "leaving"]
    followed.told.set()
    await leaving
    await settle()
    assert followed.story == ["start", "leaving", "left", "start"]


async def test_not_begun_again_while_a_statement_still_needs_it_left(followed: Followed) -> None:
    some = Databases("host=nowhere", Options())
    some.acquire("shop")
    await settle()
    followed.told.set()
    await some.close_for_ddl(["shop"])
    await some.close_for_ddl(["shop"])
    some.reopen(["shop"])
    await settle()
    assert followed.story.count("start") == 1
    some.reopen(["shop"])
    await settle()
    assert followed.story.count("start") == 2
