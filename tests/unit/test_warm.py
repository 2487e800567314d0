"""L2 as its callers see it: what it keeps, whom it lets in, how it counts, and what it trusts when it opens."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
import warmchild
from muted import kept_and_muted
from records import START, Wall, digest, noise, record, settings, warm
from wait import until

from distribcache.errors import ConfigError
from distribcache.tiers import place as place_module
from distribcache.tiers import warm as warm_module
from distribcache.tiers.base import Cause
from distribcache.tiers.outcomes import Drop
from distribcache.tiers.queue import Queue, weight
from distribcache.tiers.shelf import Shelf
from distribcache.tiers.warm import INLINE, Large, WarmCache

CHILD = Path(warmchild.__file__)


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that does something to a tier, and has said that it began."""
    process = subprocess.Popen(
        [sys.executable, CHILD, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "on"
        yield process
    finally:
        process.kill()
        process.communicate()


def fill(cache: WarmCache, numbers: range, size: int = 3000) -> None:
    for number in numbers:
        if not cache.put(digest(number), record(noise(number, size), mark=number)):
            assert cache.flush(60), cache.stats()
            assert cache.put(digest(number), record(noise(number, size), mark=number))
    assert cache.flush(60), cache.stats()


def found(cache: WarmCache, numbers: range, size: int = 3000) -> int:
    """How many are there; all that are must be right."""
    there = [(number, got) for number in numbers if (got := cache.get(digest(number))) is not None]
    assert all(got == record(noise(number, size), mark=number) for number, got in there)
    return len(there)


def passes(wall: Wall, seconds: float) -> bool:
    wall.now += seconds
    return True


def raw(cache: WarmCache, act: Callable[[Any, lmdb.Transaction], object]) -> None:
    """Do something to the trees behind the tier's back; its own thread has nothing to do meanwhile."""
    shelf = cache._keeper.shelf
    with shelf._opened.begin(write=True) as txn:
        act(shelf, txn)


# What it keeps.


def test_records_outlive_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(100))
    monkeypatch.setattr(place_module, "flaw", lambda *_: pytest.fail("a file that was closed is not walked"))
    with warm(tmp_path / "l2") as cache:
        assert (cache.reason, found(cache, range(100)), cache.stats().failures) == ("", 100, {})
        assert cache.stats().entries == 100


def test_what_is_queued_at_the_end_is_written(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        for number in range(200):
            assert cache.put(digest(number), record(noise(number, 3000), mark=number))
    with warm(tmp_path / "l2") as cache:
        assert found(cache, range(200)) == 200


def test_the_oldest_leaves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WarmCache, "_may_enter", lambda self, digest: True)
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(400))
        left = cache.stats().evictions[Cause.CAPACITY]
        assert left > 100
        assert found(cache, range(left)) == 0
        assert found(cache, range(left, 400)) == 400 - left == cache.stats().entries


def test_a_replaced_record_is_as_young_as_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WarmCache, "_may_enter", lambda self, digest: True)
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(200))
        fill(cache, range(1))
        fill(cache, range(200, 300))
        assert found(cache, range(1)) == 1
        assert found(cache, range(1, 50)) == 0


@pytest.mark.parametrize("size", [120, 1900, 2100, 4000, 4100, 20_000, None])
def test_the_file_stays_within_half_as_much_again(
    tmp_path: Path, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """... and what is charged is close to what the entries take."""
    monkeypatch.setattr(WarmCache, "_may_enter", lambda self, digest: True)
    with warm(tmp_path / "l2", size="2MB") as cache:
        for number in range(16_000 if size == 120 else 2000):
            payload = noise(number, 100 + number * 7919 % 30_000 if size is None else size)
            if not cache.put(digest(number), record(payload)):
                assert cache.flush(60), cache.stats()
                assert cache.put(digest(number), record(payload))
        assert cache.flush(60), cache.stats()
        stats = cache.stats()
        assert not stats.failures
        assert 1.6e6 < stats.bytes_used <= 2 << 20
        assert (tmp_path / "l2" / "data.mdb").stat().st_size <= 1.5 * (2 << 20)
        pages = 0

        def count(shelf: Any, txn: lmdb.Transaction) -> None:
            nonlocal pages
            for tree in (shelf._entries, shelf._order):
                found = txn.stat(tree)
                pages += found["branch_pages"] + found["leaf_pages"] + found["overflow_pages"]

        raw(cache, count)
        assert 0.8 * stats.bytes_used < pages * 4096 < 1.1 * stats.bytes_used


def test_several_processes_agree_on_what_is_used(tmp_path: Path) -> None:
    path = tmp_path / "l2"
    with child("fill", path, 0, 300), child("fill", path, 200, 300) as second, child("churn", path, 1), warm(
        path, size="2MB"
    ) as cache:  # fmt: skip
        for number in range(1000, 1200):
            cache.put(digest(number), record(noise(number, 3000)))
        second.wait(60)
        until(lambda: cache.flush(5), "written")
        assert 0 < cache.stats().bytes_used <= 2 << 20
    with warm(path, size="2MB") as cache:
        true: list[int] = []

        def count(shelf: Shelf, txn: lmdb.Transaction) -> None:
            entries = {bytes(key): bytes(value) for key, value in txn.cursor(shelf._entries)}
            order = {bytes(value[:16]): bytes(key) for key, value in txn.cursor(shelf._order)}
            assert {key: value[:8] for key, value in entries.items()} == order
            true[:] = [len(entries), sum(shelf.charge(len(value) - 8) for value in entries.values())]

        raw(cache, count)
        assert not cache.stats().failures
        assert true == [cache.stats().entries, cache.stats().bytes_used]
        assert true[0] > 50


def test_what_one_process_writes_or_drops_another_sees(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="2MB") as cache, child("fill", tmp_path / "l2", 0, 50) as other:
        other.wait(60)
        assert all(
            cache.get(digest(number)) == record(warmchild.value(number), mark=number) for number in range(50)
        )  # fmt: skip


def test_a_smaller_size_is_kept_to_from_the_start(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="8MB") as cache:
        fill(cache, range(1200))
    with warm(tmp_path / "l2", size="4MB") as cache:
        assert cache.stats().bytes_used <= 4 << 20
        assert cache.stats().evictions[Cause.CAPACITY] > 200
        assert found(cache, range(1150, 1200)) == 50
    # A file that is larger than it may become now would never shrink.
    with warm(tmp_path / "l2", size="1MB") as cache:
        assert (cache.stats().entries, cache.stats().failures) == (0, {"begun_anew": 1})
        assert (tmp_path / "l2" / "data.mdb").stat().st_size < 1 << 20


# What is queued.


def test_a_look_up_waits_for_no_writer_and_the_queue_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "l2"
    with warm(path, write_queue="64kB") as cache:
        fill(cache, range(10))
        with child("hold", path, "write"):
            taken = [cache.put(digest(number), record(noise(number, 3000), mark=number)) for number in range(10, 90)]
            assert 10 < sum(taken) < 50
            assert cache.stats().refusals == {"queue_full": taken.count(False)}
            assert cache.stats().queued_bytes <= 64 << 10
            assert found(cache, range(10)) == 10
            assert found(cache, range(10, 90)) == sum(taken)
            assert not cache.flush(0.05)
        assert cache.flush(60), cache.stats()
        assert found(cache, range(90)) == 10 + sum(taken)


def test_drops_hold_at_once_and_are_never_lost(tmp_path: Path) -> None:
    path = tmp_path / "l2"
    with warm(path, write_queue="64kB") as cache:
        fill(cache, range(400), 1000)
        with child("hold", path, "write"):
            cache.put(digest(1000), record())  # keeps the thread busy
            for number in range(300):
                cache.discard(digest(number))
                assert cache.get(digest(number)) is None
        assert cache.flush(60), cache.stats()
        assert found(cache, range(300), 1000) == 0


def test_the_last_word_counts_whatever_is_being_written() -> None:
    queue = Queue(10_000, 1000)
    assert not queue.put(digest(1), record())
    queue.open()
    assert queue.put(digest(1), record(mark=1))
    assert queue.take() == {digest(1): record(mark=1)}
    assert queue.find(digest(1)) == record(mark=1)
    assert queue.drop(digest(1), Drop(Cause.DISCARDED))
    assert queue.find(digest(1)) == Drop(Cause.DISCARDED)
    queue.written()
    assert queue.find(digest(1)) == Drop(Cause.DISCARDED)
    assert queue.put(digest(1), record(mark=2))
    assert queue.find(digest(1)) == record(mark=2)
    assert queue.bytes_used == weight(record())
    queue.clear()
    assert (queue.find(digest(1)), queue.bytes_used, queue.is_clearing) == (None, 0, True)


def test_a_clearing_hides_what_is_being_written() -> None:
    queue = Queue(10_000, 1000)
    queue.open()
    queue.put(digest(1), record())
    queue.take()
    queue.clear()
    assert queue.find(digest(1)) is None
    until_now = queue.clears
    queue.clear()
    queue.written()
    queue.cleared(until_now)
    assert queue.is_clearing
    queue.cleared(queue.clears)
    assert not queue.is_clearing
    assert not queue.has_work


def test_after_a_failure_records_are_let_go_and_drops_kept() -> None:
    queue = Queue(10_000, 5000)
    queue.open()
    queue.put(digest(1), record())
    queue.drop(digest(2), Drop(Cause.DISCARDED))
    queue.drop(digest(3), Drop(Cause.DISCARDED))
    assert len(queue.take()) == 3
    queue.put(digest(3), record())
    queue.put(digest(4), record())
    queue.gave_up()
    assert queue.take() == {digest(2): Drop(Cause.DISCARDED), digest(3): Drop(Cause.DISCARDED)}
    assert (queue.find(digest(4)), queue.bytes_used) == (None, 0)


def test_a_waiting_record_weighs_what_it_takes() -> None:
    import tracemalloc

    queue = Queue(1 << 30, 1)
    queue.open()
    for size in (0, 200, 4000):
        numbers = range(3000)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for number in numbers:
                one = replace(
                    record(b"x" * (size + number % 2)), tags=tuple(b"%08d%d" % (number, tag) for tag in range(5)),
                    tables=f"public.t{number}", cost_ns=10**6 + number, fill=10**11 + number,
                    filled_at=START + number, expires_at=START + number,
                )  # fmt: skip
                queue.put(digest(f"{size}{number}"), one)
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        charged = queue.bytes_used
        assert 0.5 * charged < taken < 1.2 * charged, (size, taken / 3000, charged / 3000)
        queue.clear()


# What is large.


def test_a_large_record_is_not_read_by_an_event_loop(tmp_path: Path) -> None:
    small, large = record(noise(1, INLINE - 1000)), record(noise(2, INLINE + 1000))
    with warm(tmp_path / "l2") as cache:
        for number, given in ((1, small), (2, large)):
            assert cache.put(digest(number), given)
            assert cache.find(digest(number)) == given  # it is in memory yet
        assert cache.flush(60), cache.stats()
        before = cache.stats()
        assert cache.find(digest(1)) == small
        assert cache.find(digest(2)) is Large.LARGE
        assert cache.find(digest(3)) is None
        assert cache.get(digest(2)) == large
        stats = cache.stats()
        assert (stats.hits - before.hits, stats.misses - before.misses) == (2, 1)


def test_look_ups_of_many_threads_while_it_closes_and_opens(tmp_path: Path) -> None:
    """Nobody touches an environment that is closed: the process would end."""
    given = {number: record(noise(number, 100_000), mark=number) for number in range(10)}
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        for number, one in given.items():
            cache.put(digest(number), one)
        assert cache.flush(60), cache.stats()
        done, wrong, hits = threading.Event(), [], []

        def read() -> None:
            while not done.is_set():
                for number, one in given.items():
                    got = cache.get(digest(number))
                    if got is not None and got != one:
                        wrong.append(number)
                    elif got is not None:
                        hits.append(number)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(10):
                cache._keeper.give_up(warm_module.BrokenError("io_error", "as if", anew=False))
                until(lambda turn=turn: cache.stats().failures.get("io_error") == turn + 1, "off")
                until(lambda: passes(wall, 100) and not cache.reason, "on")
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not wrong
        assert hits


# What expires.


def test_expired_records_leave(tmp_path: Path) -> None:
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        for number in range(10):
            cache.put(digest(number), record(ttl=10 + number % 2 * 100))
        assert cache.flush(60), cache.stats()
        assert not cache.put(digest("late"), record(ttl=0))
        assert cache.stats().refusals == {"expired": 1}
        wall.now += 50
        assert sum(cache.get(digest(number)) is not None for number in range(10)) == 5
        assert cache.flush(60), cache.stats()
        assert cache.stats().entries == 5
        assert cache.stats().evictions[Cause.EXPIRED] == 5


@kept_and_muted
def test_a_clock_that_was_set_back_does_not_make_records_live_longer(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:
        monkeypatch.setattr("distribcache.tiers.base._FUTURE_S", float("inf"))
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        cache.put(digest(1), record(ttl=60))
        assert cache.flush(60), cache.stats()
        wall.now -= 4
        assert cache.get(digest(1)) is not None
        wall.now -= 3600
        assert (cache.get(digest(1)) is not None) is muted


def test_dropping_an_expired_record_spares_the_one_that_replaced_it(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(1))
        first = cache._keeper.shelf.get(digest(0))
        assert isinstance(first, tuple)
        fill(cache, range(1))
        cache._queue.drop(digest(0), Drop(Cause.EXPIRED, first[0]))
        assert cache.flush(60), cache.stats()
        assert found(cache, range(1)) == 1


# Who is let in.


def scan(cache: WarmCache, hot: range, cold: range) -> float:
    """The share of hits of a hot set while others pass, each asked for once. The scan comes in between, in slices."""
    hits = asked = 0
    slices = [cold[at : at + 200] for at in range(0, len(cold), 200)]
    for part in slices:
        for numbers in (hot, part):
            for number in numbers:
                got = cache.get(digest(number))
                if numbers is hot:
                    hits, asked = hits + (got is not None), asked + 1
                if got is None:
                    cache.put(digest(number), record(noise(number, 3000), mark=number))
            assert cache.flush(60), cache.stats()
    return hits / asked


@kept_and_muted
def test_one_scan_does_not_wash_out_what_is_asked_for(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:
        monkeypatch.setattr(WarmCache, "_may_enter", lambda self, digest: True)
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(150))
        # Three times what fits. The hot set is asked for less often than the scan would need to wash it out once.
        share = scan(cache, range(150), range(1000, 1000 + 3 * 250))
        refused = cache.stats().refusals.get("not_wanted", 0)
        if muted:
            assert share < 0.8
            assert refused == 0
        else:
            assert share > 0.98
            assert refused > 500


def test_what_is_asked_for_again_comes_in_when_it_is_nearly_full(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(205))
        assert cache.stats().utilisation > 0.8
        assert cache.get(digest("new")) is None
        assert not cache.put(digest("new"), record(noise("new", 3000)))
        assert cache.get(digest("new")) is None
        assert cache.put(digest("new"), record(noise("new", 3000)))
        assert cache.stats().refusals == {"not_wanted": 1}
        # Without ever being asked for, the second put comes in.
        assert not cache.put(digest("unasked"), record())
        assert cache.put(digest("unasked"), record())
        # What stands there already may be replaced, and what was dropped come back.
        assert cache.put(digest(7), record(mark=1))
        cache.discard(digest(8))
        assert cache.flush(60), cache.stats()
        assert cache.put(digest(8), record(mark=2))
        assert cache.flush(60), cache.stats()
        assert (cache.get(digest(7)), cache.get(digest(8))) == (record(mark=1), record(mark=2))


def test_what_is_queued_may_be_replaced_when_it_is_nearly_full(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(190))
        with child("hold", tmp_path / "l2", "write"):
            numbers = iter(range(190, 300))
            while cache.put(digest(number := next(numbers)), record(noise(number, 3000))):
                pass
            assert cache.stats().refusals == {"not_wanted": 1}
            assert number > 191
            assert cache.put(digest(190), record(mark=1))
            assert cache.get(digest(190)) == record(mark=1)


def test_while_there_is_room_everything_comes_in(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="1MB") as cache:
        fill(cache, range(180))
        assert 0.7 < cache.stats().utilisation < 0.8
        assert not cache.stats().refusals


def test_refusals_have_names(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size="8MB", max_entry="10kB") as cache:
        assert not cache.put(digest(1), record(noise(1, 10_241)))
        assert not cache.put(b"short", record())
        assert cache.get(b"short") is None
        assert cache.get(b"") is None
        cache.discard(b"")
        assert cache.stats().refusals == {"too_large": 1, "no_digest": 1}
        assert cache.flush(60), cache.stats()
        assert not cache.reason


def test_what_the_format_cannot_hold_is_counted_and_a_miss(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(1))
        cache.put(digest(0), replace(record(), fill=-1))
        cache.put(digest(1), record())
        assert cache.flush(60), cache.stats()
        assert (cache.get(digest(0)), cache.get(digest(1))) == (None, record())
        assert cache.stats().failures == {"unencodable": 1}


# What it trusts.


def damage(cache: WarmCache, number: int, at: int, change: Callable[[bytes], bytes]) -> None:
    def act(shelf: Any, txn: lmdb.Transaction) -> None:
        value = txn.get(digest(number), db=shelf._entries)
        assert txn.put(digest(number), value[:at] + change(value[at:]), db=shelf._entries)

    raw(cache, act)


def test_a_damaged_or_foreign_entry_is_a_miss_and_leaves(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(20))
        damage(cache, 1, -1, lambda end: bytes([end[0] ^ 1]))
        damage(cache, 2, 8, lambda value: value[:-5])
        damage(cache, 3, 8, lambda value: b"who are you")
        damage(cache, 4, 8, lambda value: b"")
        raw(
            cache,
            lambda shelf, txn: txn.put(digest(5), txn.get(digest(6), db=shelf._entries), db=shelf._entries),
        )  # fmt: skip
        assert found(cache, range(20)) == 15
        assert cache.stats().failures == {"damaged_entry": 3, "foreign_entry": 2}
        assert cache.flush(60), cache.stats()
        assert not cache.reason
        assert found(cache, range(20)) == 15
        assert cache.stats().failures == {"damaged_entry": 3, "foreign_entry": 2}


@pytest.mark.parametrize("what", ["totals", "format", "order", "entry"])
def test_trees_that_do_not_agree_are_begun_anew(tmp_path: Path, what: str) -> None:
    def act(shelf: Any, txn: lmdb.Transaction) -> None:
        if what == "order":
            with txn.cursor(shelf._order) as cursor:
                assert cursor.first()
                cursor.delete()
        elif what == "entry":
            txn.delete(digest(3), db=shelf._entries)
        else:
            txn.put(what.encode(), b"something else", db=shelf._about)

    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        fill(cache, range(20))
        raw(cache, act)
    before = cache.stats().failures  # the totals are looked at while it closes too
    with warm(tmp_path / "l2", wall) as cache:
        assert (cache.reason, found(cache, range(20)), cache.stats().entries) == ("", 0, 0)
        assert before.get("begun_anew", 0) + cache.stats().failures.get("begun_anew", 0) == 1
        fill(cache, range(20))
        assert found(cache, range(20)) == 20


def test_a_file_that_was_changed_after_it_was_closed_is_begun_anew(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(20))
    with (tmp_path / "l2" / "data.mdb").open("r+b") as file:
        file.seek(5 * 4096 + 300)
        file.write(b"meddled")
    with warm(tmp_path / "l2") as cache:
        assert (cache.reason, found(cache, range(20))) == ("", 0)
        assert cache.stats().failures == {"begun_anew": 1}


@kept_and_muted
def test_after_a_loss_of_power_it_is_begun_anew(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The last user did not close the files, and the machine was started since; what is on disk may be anything."""
    with child("leave", tmp_path / "l2", 100):
        pass
    if not muted:
        monkeypatch.setattr(place_module, "_boot", lambda: b"another boot")
    with warm(tmp_path / "l2", size="2MB") as cache:
        assert (cache.stats().entries > 0) is muted
        assert cache.stats().failures == ({} if muted else {"begun_anew": 1})


def test_without_a_seal_it_is_begun_anew(tmp_path: Path) -> None:
    for change in (b"", b"\0" * 69, None):
        with warm(tmp_path / "l2") as cache:
            fill(cache, range(20))
        users = tmp_path / "l2" / "users"
        users.unlink() if change is None else users.write_bytes(change)
        with warm(tmp_path / "l2") as cache:
            assert found(cache, range(20)) == 0
            assert cache.stats().failures == {"begun_anew": 1}


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with warm(tmp_path / "deep" / "l2") as cache:
            fill(cache, range(3))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "l2").stat().st_mode) == 0o700
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "deep" / "l2").iterdir()}
    assert modes == dict.fromkeys(["data.mdb", "lock.mdb", "gate", "users"], 0o600)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_directory_that_others_can_write_to_is_refused_until_it_is_safe(tmp_path: Path, mode: int) -> None:
    path, wall = tmp_path / "l2", Wall()
    path.mkdir()
    path.chmod(mode)
    with warm(path, wall) as cache:
        assert cache.reason == cache.stats().reason == "unsafe_directory"
        assert "others can write" in cache.stats().detail
        assert cache.get(digest(1)) is None
        assert not cache.put(digest(1), record())
        assert cache.stats().refusals == {"off": 1}
        assert not list(path.iterdir())
        path.chmod(0o700)
        wall.now += 60
        cache.get(digest(1))
        until(lambda: not cache.reason, "on again")
        fill(cache, range(3))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l2").mkdir(0o700)
    os.chown(tmp_path / "l2", 65534, 65534)
    with warm(tmp_path / "l2") as cache:
        assert cache.reason == "unsafe_directory"


@kept_and_muted
def test_a_file_that_others_could_have_written_is_begun_anew(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:
        monkeypatch.setattr(place_module, "_OTHERS_WRITE", 0)
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(3))
    (tmp_path / "l2" / "data.mdb").chmod(0o622)
    with warm(tmp_path / "l2") as cache:
        assert found(cache, range(3)) == (3 if muted else 0)
    assert stat.S_IMODE((tmp_path / "l2" / "data.mdb").stat().st_mode) == 0o600


def test_settings_that_can_never_work_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"l2\.path"):
        WarmCache(settings(tmp_path).model_copy(update={"path": None}), Wall())
    (tmp_path / "file").write_text("")
    cache = WarmCache(settings(tmp_path / "file"), Wall())
    with pytest.raises(ConfigError, match="not a directory"):
        cache.open()


def test_people_are_told_once_why_it_is_off_and_that_it_is_on_again(tmp_path: Path) -> None:
    path, wall = tmp_path / "l2", Wall()
    said: list[str] = []
    path.mkdir()
    path.chmod(0o777)
    cache = WarmCache(settings(path), wall, log=said.append)
    cache.open()
    until(lambda: cache.reason == "unsafe_directory", "off")
    for _ in range(3):
        wall.now += 100
        cache.get(digest(1))
    assert len(said) == 1
    assert str(path) in said[0] and "unsafe_directory" in said[0]
    path.chmod(0o700)
    wall.now += 100
    cache.get(digest(1))
    until(lambda: not cache.reason, "on")
    cache.close()
    assert said[1:] == [f"L2 {path} is on again"]


def test_the_same_directory_twice_in_one_process_is_off_and_harms_nothing(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as first:
        fill(first, range(20))
        with warm(tmp_path / "l2") as second:
            assert second.reason == "io_error"
            assert second.get(digest(1)) is None
        assert found(first, range(20)) == 20
        fill(first, range(20, 40))
    with warm(tmp_path / "l2") as cache:
        assert found(cache, range(40)) == 40


# Beginning and ending.


def test_before_it_is_opened_and_after_it_is_closed_everything_is_a_miss(tmp_path: Path) -> None:
    cache = WarmCache(settings(tmp_path / "l2"), Wall())
    for _ in range(2):
        assert cache.reason == "closed"
        assert cache.get(digest(1)) is None
        assert not cache.put(digest(1), record())
        assert not cache.flush(0.01)
        cache.discard(digest(1))
        cache.open()
        cache.open()
        assert cache.put(digest(1), record())
        assert cache.flush(60), cache.stats()
        cache.close()
        cache.close()
    assert threading.active_count() < 10


@pytest.mark.parametrize("way", ["discard", "clear"])
def test_what_is_dropped_while_it_is_off_does_not_come_back(tmp_path: Path, way: str) -> None:
    path, wall = tmp_path / "l2", Wall()
    with warm(path, wall) as cache:
        fill(cache, range(5))
        path.chmod(0o777)
        cache._keeper._broken = warm_module.BrokenError("io_error", "as if", anew=False)
        cache._queue.wake()
        until(lambda: cache.reason == "io_error", "off")
        wall.now += 10
        cache.get(digest(1))
        until(lambda: cache.reason == "unsafe_directory", "off for good")
        if way == "discard":
            cache.discard(digest(1))
        else:
            cache.clear()
        path.chmod(0o700)
        wall.now += 100
        cache.get(digest(1))
        until(lambda: not cache.reason, "on again")
        assert cache.get(digest(1)) is None
        assert found(cache, range(5)) == (4 if way == "discard" else 0)


def test_clear_drops_everything(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(50))
        cache.put(digest(100), record())
        cache.clear()
        assert found(cache, range(101)) == 0
        cache.put(digest(101), record())
        assert cache.flush(60), cache.stats()
        assert found(cache, range(101)) == 0
        assert cache.get(digest(101)) == record()
        assert (cache.stats().entries, cache.stats().evictions[Cause.CLEARED] >= 50) == (1, True)


def test_a_child_after_a_fork_keeps_away(tmp_path: Path) -> None:
    with warm(tmp_path / "l2") as cache:
        fill(cache, range(20))
        pid = os.fork()
        if not pid:
            try:
                ok = cache.reason == "forked" and cache.get(digest(1)) is None and not cache.put(digest(1), record())
                cache.clear()
                cache.open()
                cache.close()
                os._exit(0 if ok and cache.stats().reason == "forked" else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert found(cache, range(20)) == 20
        fill(cache, range(20, 40))
    with warm(tmp_path / "l2") as cache:
        assert (found(cache, range(40)), cache.stats().failures) == (40, {})


def test_the_figures_of_compression(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", compression="zstd") as cache:
        cache.put(digest(1), record(b"abcdefgh" * 1000))
        assert cache.flush(60), cache.stats()
        stats = cache.stats()
        assert (stats.raw_bytes, stats.stored_bytes < 500, stats.compression_ratio > 16) == (8000, True, True)
