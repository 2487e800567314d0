"""L2 when its disk, its files or its neighbours fail: off with a reason, misses without an error, and back by itself.

``WARM_KILLS`` (10) is how often a writer is killed at a random moment, ``WARM_DAMAGE`` (60) how many files are damaged.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import warmchild
from muted import kept_and_muted
from records import Wall, digest, noise, record, settings, warm
from wait import until

from distribcache.tiers import keeper as keeper_module
from distribcache.tiers import place as place_module
from distribcache.tiers.keeper import Keeper
from distribcache.tiers.outcomes import BrokenError
from distribcache.tiers.pages import flaw
from distribcache.tiers.shelf import Shelf
from distribcache.tiers.warm import WarmCache

KILLS = int(os.environ.get("WARM_KILLS", "10"))
DAMAGES = int(os.environ.get("WARM_DAMAGE", "60"))
CHILD = Path(warmchild.__file__)
SIZE = "2MB"


@contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line, which is left to be read if it is not "on"."""
    process = subprocess.Popen(
        [sys.executable, CHILD, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def comes_back(cache: WarmCache, wall: Wall) -> None:
    """Look-ups alone bring it back, as time goes by."""

    def tried() -> bool:
        wall.now += 100
        assert cache.get(digest("nothing")) is None
        return not cache.reason

    until(tried, lambda: f"off: {cache.reason}, {cache.stats().detail}")


def works(cache: WarmCache) -> bool:
    given = record(noise("works", 3000))
    for _ in range(2):
        cache.get(digest("works"))
    return cache.put(digest("works"), given) and cache.flush(60) and cache.get(digest("works")) == given


def put_until_off(cache: WarmCache, most: int = 2000, size: int = 5000) -> None:
    """Every call answers, and none raises."""
    for number in range(most):
        cache.put(digest(number), record(noise(number, size), mark=number))
        if not number % 20:
            cache.flush(60)
        if cache.reason:
            break
    for number in range(50):
        assert cache.get(digest(number)) is None
        assert not cache.put(digest(number), record())


# The disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_turns_it_off_until_there_is_room(small_disk: Path) -> None:
    wall = Wall()
    with warm(small_disk / "l2", wall) as cache:
        put_until_off(cache)
        assert cache.reason == "disk_full"
        assert cache.stats().failures["disk_full"] == 1
        # A small write would succeed, and the next large one fail again: it stays off, however often it tries.
        for failures in (2, 3, 4):
            wall.now += 100
            cache.get(digest(1))
            until(lambda failures=failures: cache.stats().failures["disk_full"] >= failures, "tried again")
            assert cache.reason == "disk_full"
        subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
        comes_back(cache, wall)
        assert works(cache)
        assert sum(cache.get(digest(number)) is not None for number in range(100)) > 50


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    wall, fat = Wall(), small_disk / "fat"
    fat.write_bytes(bytes((2 << 20) - 8192))
    with warm(small_disk / "l2", wall) as cache:
        assert cache.reason == "disk_full"
        fat.unlink()
        comes_back(cache, wall)
        assert works(cache)


def test_a_file_that_may_not_grow_turns_it_off_until_it_may(tmp_path: Path) -> None:
    with child("limited", tmp_path / "l2", 400_000) as process:
        assert line(process) == "disk_full None False"
        assert line(process) == " True True True".strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_directory_that_may_not_be_written_turns_it_off_until_it_may() -> None:
    # Not below tmp_path, which nobody may enter.
    above = Path(tempfile.mkdtemp(prefix="distribcache-l2-"))
    try:
        above.chmod(0o755)
        (above / "l2").mkdir(0o700)
        with child("read_only", above / "l2") as process:
            assert line(process) == "not_allowed None False"
            assert line(process) == "True True True"
    finally:
        shutil.rmtree(above)


def test_errors_of_the_disk_are_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        assert works(cache)
        with monkeypatch.context() as patch:
            patch.setattr(Shelf, "write", _broken)
            cache.put(digest(1), record())
            assert not cache.flush(60)
            assert cache.reason == "io_error"
            assert cache.get(digest("works")) is None
        comes_back(cache, wall)
        assert cache.get(digest("works")) is not None
        with monkeypatch.context() as patch:
            patch.setattr(Shelf, "get", _broken)
            assert cache.get(digest("works")) is None
            assert cache.reason == "io_error"
        comes_back(cache, wall)
        assert works(cache)


def _broken(*_: object) -> None:
    raise BrokenError("io_error", "the disk is gone", anew=False)


def test_pauses_grow_and_are_short_again_after_a_success(tmp_path: Path) -> None:
    wall, path = Wall(), tmp_path / "l2"
    path.mkdir()
    path.chmod(0o777)
    with warm(path, wall) as cache:
        keeper, pauses = cache._keeper, []
        for tries in range(1, 9):
            until(lambda tries=tries: cache.stats().failures["unsafe_directory"] == tries, "tried")
            until(lambda: keeper._failed_at == wall.now, "and done with it")
            pauses.append(keeper._pause)
            wall.now += keeper._pause - 0.01
            assert not keeper._is_due()
            wall.now += 0.02
            cache.get(digest(1))
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
        path.chmod(0o700)
        comes_back(cache, wall)
        assert works(cache)
        assert keeper._pause == 0


def test_a_clock_that_was_set_back_does_not_keep_it_off(tmp_path: Path) -> None:
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        (tmp_path / "l2").chmod(0o777)
        cache._keeper.give_up(BrokenError("io_error", "as if", anew=False))
        until(lambda: "io_error" in cache.stats().failures, "off")
        wall.now += 10
        cache.get(digest(1))
        until(lambda: cache.reason == "unsafe_directory", "still off")
        (tmp_path / "l2").chmod(0o700)
        wall.now -= 10_000
        cache.get(digest(1))
        until(lambda: not cache.reason, "on again")


def test_what_nobody_foresaw_turns_it_off_and_it_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall()
    with warm(tmp_path / "l2", wall) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(Shelf, "write", lambda *_: 1 / 0)
            cache.put(digest(1), record())
            assert not cache.flush(60)
            assert cache.reason == "internal_error"
            assert "ZeroDivisionError" in cache.stats().detail
        comes_back(cache, wall)
        assert works(cache)


# The map.


def churn(cache: WarmCache, rounds: int) -> None:
    for number in range(rounds):
        cache.put(digest(number % 50), record(noise(number, 20_000)))
        assert cache.flush(60) or cache.reason


@kept_and_muted
def test_the_pages_that_a_killed_reader_pinned_come_back(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if muted:
        monkeypatch.setattr(Shelf, "forget_killed_readers", lambda self: 0)
    wall = Wall()
    with warm(tmp_path / "l2", wall, size=SIZE) as cache:
        churn(cache, 50)
        with child("hold", tmp_path / "l2", "read") as reader:
            assert line(reader) == "on"
            os.kill(reader.pid, signal.SIGKILL)
            reader.wait()
        churn(cache, 300)
        assert ("map_full" in cache.stats().failures) is muted
        if not muted:
            assert works(cache)
            assert cache.stats().entries > 40


def test_a_reader_that_never_ends_costs_the_old_file_and_no_more(tmp_path: Path) -> None:
    wall = Wall()
    with warm(tmp_path / "l2", wall, size=SIZE) as cache, child("hold", tmp_path / "l2", "read") as reader:
        assert line(reader) == "on"
        churn(cache, 300)
        assert cache.stats().failures["map_full"] > 0
        comes_back(cache, wall)
        churn(cache, 100)
        assert works(cache)


# Files that were damaged while nobody had them open.


def left_behind(path: Path) -> bytes:
    """The file of a tier whose only user was killed."""
    with child("leave", path, 300) as process:
        assert line(process) == "on"
        process.wait()
    return (path / "data.mdb").read_bytes()


def right(cache: WarmCache) -> int:
    count, wrong = warmchild.judge(cache)
    assert wrong == 0
    return count


def test_a_file_whose_user_was_killed_is_walked_and_kept(tmp_path: Path) -> None:
    left_behind(tmp_path / "l2")
    with warm(tmp_path / "l2", size=SIZE) as cache:
        assert (cache.reason, cache.stats().failures) == ("", {})
        assert right(cache) > 200


@pytest.mark.parametrize("sealed", [False, True], ids=["killed", "closed"])
def test_a_file_that_was_cut_off_is_begun_anew(tmp_path: Path, sealed: bool) -> None:
    path = tmp_path / "l2"
    whole = left_behind(path)
    if sealed:
        with warm(path, size=SIZE):
            pass
        whole = (path / "data.mdb").read_bytes()
    seal = (path / "users").read_bytes()
    for length in (0, 1, 100, 4096, 8192, 8193, 20_000, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        (path / "users").write_bytes(seal)
        (path / "data.mdb").write_bytes(whole[:length])
        with warm(path, size=SIZE) as cache:
            assert cache.reason == ""
            assert right(cache) < 300
            assert works(cache)
            if length < len(whole) - 8192 or sealed:
                assert cache.stats().failures == {"begun_anew": 1}


def damaged(whole: bytes, seed: int) -> bytes:
    """Bytes, words or pages overwritten, of the file or of the heads of its pages."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 3, 30))):
        page = rng.randrange(len(whole) // 4096) * 4096
        kind = rng.randrange(4)
        if kind == 0:
            data[page + rng.randrange(4096)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            at = page + rng.randrange(64)
            data[at : at + 2] = rng.randbytes(2)
        elif kind == 2:
            at = page + rng.randrange(4080)
            data[at : at + 16] = rng.randbytes(16)
        else:
            other = rng.randrange(len(whole) // 4096) * 4096
            data[page : page + 4096] = rng.choice((bytes(4096), rng.randbytes(4096), whole[other : other + 4096]))
    return bytes(data)


@pytest.mark.timeout(300 + 4 * DAMAGES)
def test_however_a_file_was_damaged_nothing_wrong_is_found_and_nobody_dies(tmp_path: Path) -> None:
    """The tier reads all that is there, and writes into it; in another process, so that a death is seen."""
    path = tmp_path / "l2"
    whole = left_behind(path)
    seal = (path / "users").read_bytes()
    kept = anew = 0
    for seed in range(DAMAGES):
        (path / "users").write_bytes(seal)
        (path / "data.mdb").write_bytes(damaged(whole, seed))
        (path / "lock.mdb").unlink(missing_ok=True)
        if seed % 10:
            with warm(path, size=SIZE) as cache:
                assert cache.reason == ""
                found = right(cache)
                assert works(cache)
        else:
            with child("look", path) as process:
                reason, good, wrong = line(process).split()
                found = int(good)
                assert (reason, wrong, process.wait()) == ("on", "0", 0), seed
        kept, anew = kept + (found > 0), anew + (found == 0)
    assert anew > DAMAGES // 10
    assert kept > DAMAGES // 10


def led_astray(whole: bytes) -> bytes:
    """Every node of a leaf is said to lie far outside its page."""
    data = bytearray(whole)
    for page in range(0, len(data), 4096):
        _, _, flags, lower, _ = struct.unpack_from("<QHHHH", data, page)
        if flags == 2:
            data[page + 16 : page + lower] = b"\xf0\xff" * ((lower - 16) // 2)
    assert data != whole
    return bytes(data)


@kept_and_muted
def test_a_file_that_leads_astray_is_walked_before_it_is_mapped(muted: bool, tmp_path: Path) -> None:
    path = tmp_path / "l2"
    whole = left_behind(path)
    (path / "data.mdb").write_bytes(led_astray(whole))
    script = (
        f"import sys; sys.path.insert(0, {str(CHILD.parent)!r})\n"
        "import distribcache.tiers.place as place, warmchild, pathlib\n"
        + ("place.flaw = lambda *_: ''\n" if muted else "")
        + f"warmchild.look(pathlib.Path({str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False, text=True)
    if muted:
        assert done.returncode < 0  # by a signal
    else:
        assert (done.returncode, done.stdout) == (0, "on 0 0\n")


def swapped(data: bytearray, page: int, at: int, other: int) -> None:
    data[page + at : page + at + 2], data[page + other : page + other + 2] = (
        data[page + other : page + other + 2],
        data[page + at : page + at + 2],
    )


def two_owners(data: bytearray, nodes: list[int], pages: int) -> None:
    large = [node for node in nodes if data[node + 4] == 1]
    first = next(node for node in large if (int.from_bytes(data[node : node + 4], "little") + 16) // 4096 + 1 == pages)
    same = next(node for node in large[1:] if data[node : node + 4] == data[first : first + 4])
    data[same + 24 : same + 32] = data[first + 24 : first + 32]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("two owners", lambda data, page, nodes: two_owners(data, nodes, 1)),
        ("two owners", lambda data, page, nodes: two_owners(data, nodes, 2)),
        ("do not ascend", lambda data, page, nodes: swapped(data, page, 16, 18)),
        ("another kind", lambda data, page, nodes: data.__setitem__(page + 10, 1)),
        ("no sensible bounds", lambda data, page, nodes: data.__setitem__(page + 13, 0xFF)),
        ("another one", lambda data, page, nodes: data.__setitem__(page + 3, 1)),
        ("a key of page", lambda data, page, nodes: data.__setitem__(nodes[0] + 7, 0xFF)),
        ("a node of page", lambda data, page, nodes: data.__setitem__(page + 17, 0xFF)),
        ("do not add up", lambda data, page, nodes: struct.pack_into("<H", data, page + 14, min(nodes) - page - 2)),
        ("not the large value", lambda data, page, nodes: data.__setitem__(nodes[0] + 1, data[nodes[0] + 1] ^ 0x40)),
        ("beyond the last", lambda data, page, nodes: data.__setitem__(nodes[0] + 27, 1)),
        ("of a kind that we do not write", lambda data, page, nodes: data.__setitem__(nodes[0] + 4, 5)),
    ],
)
def test_flaws_have_names(tmp_path: Path, name: str, harm: Callable[[bytearray, int, list[int]], None]) -> None:
    """Each done to a leaf of the tree of entries that begins with a large value."""
    data = bytearray(left_behind(tmp_path / "l2"))
    pages = []
    for page in range(8192, len(data), 4096):
        number, _, flags, lower, _ = struct.unpack_from("<QHHHH", data, page)
        if (number, flags) == (page // 4096, 2):
            nodes = [page + int.from_bytes(data[page + at : page + at + 2], "little") for at in range(16, lower, 2)]
            if data[nodes[0] + 4 : nodes[0] + 8] == b"\1\0\x10\0":
                pages.append((page, nodes))
    # Of old versions of a leaf the file may have several; one of them is reached.
    found = []
    for page, nodes in pages:
        harmed = bytearray(data)
        try:
            harm(harmed, page, nodes)
        except (IndexError, StopIteration):
            continue
        file = tmp_path / "file"
        file.write_bytes(harmed)
        descriptor = os.open(file, os.O_RDONLY)
        found.append(flaw(descriptor))
        os.close(descriptor)
    assert any(name in each for each in found), found


def test_the_walk_names_what_is_wrong_and_raises_nothing(tmp_path: Path) -> None:
    whole = left_behind(tmp_path / "l2")
    file = tmp_path / "file"

    def judged(data: bytes) -> str:
        file.write_bytes(data)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            return flaw(descriptor)
        finally:
            os.close(descriptor)

    assert judged(whole) == ""
    for length in (0, 1, 23, 24, 4095, 4096, 8191, 8192, 12288, len(whole) // 2):
        assert judged(whole[:length])
    for seed in range(100):
        judged(damaged(whole, seed))
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.pwrite(descriptor, whole, 0)
        for page in (0, 2, 3, len(whole) // 4096 - 1):
            for at in range(4096 * page, 4096 * page + 200):
                for value in (0, 0x7F, 0xFF):
                    os.pwrite(descriptor, bytes([value]), at)
                    flaw(descriptor)
                os.pwrite(descriptor, whole[at : at + 1], at)
        assert flaw(descriptor) == ""
    finally:
        os.close(descriptor)


# Those who are killed.


@pytest.mark.slow
@pytest.mark.timeout(300 + 20 * KILLS)
def test_whenever_a_writer_is_killed_what_can_be_read_is_right(tmp_path: Path) -> None:
    path, rng, found = tmp_path / "l2", random.Random(os.getpid()), []
    for turn in itertools.count():
        if turn >= KILLS and sum(found) > 50 * KILLS:  # who is killed early has written little
            break
        with child("churn", path, turn) as writer, child("churn", path, 1000 + turn) as other:
            assert line(writer) == "on"
            if turn % 2:
                assert line(other) == "on"
            time.sleep(rng.random() * 0.4)
            writer.kill()
            writer.wait()
        with warm(path, size=SIZE) as cache:
            assert (cache.reason, cache.stats().failures) == ("", {})
            assert cache.stats().bytes_used <= 2 << 20
            found.append(right(cache))
            assert works(cache)
            cache.discard(digest("works"))


def test_a_writer_that_is_killed_with_the_lock_keeps_nobody_waiting(tmp_path: Path) -> None:
    with warm(tmp_path / "l2", size=SIZE) as cache:
        assert works(cache)
        with child("hold", tmp_path / "l2", "write") as writer:
            assert line(writer) == "on"
            cache.put(digest(1), record())
            assert cache.get(digest("works")) is not None
            assert not cache.flush(0.05)
        assert cache.flush(60)
        assert works(cache)


# Files that vanish while they are open.


def gone_all(path: Path) -> None:
    shutil.rmtree(path)


def gone_data(path: Path) -> None:
    (path / "data.mdb").unlink()


def gone_lock(path: Path) -> None:
    (path / "lock.mdb").unlink()


def moved_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


@pytest.mark.parametrize("vanish", [gone_all, gone_data, gone_lock, moved_away])
def test_files_that_vanish_are_noticed_and_made_again(tmp_path: Path, vanish: Callable[[Path], None]) -> None:
    path, wall = tmp_path / "l2", Wall()
    with warm(path, wall) as cache:
        assert works(cache)
        vanish(path)
        cache.put(digest(1), record())
        until(lambda: cache.reason == "gone" or not cache.flush(60), lambda: cache.reason)
        assert cache.stats().failures == {"gone": 1}
        assert cache.get(digest("works")) is None
        comes_back(cache, wall)
        assert works(cache)
    with warm(path, wall) as cache:
        assert cache.get(digest("works")) is not None


@kept_and_muted
def test_a_second_process_does_not_join_half_of_the_files(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes on into the file that lost its lock; who joins must not share the file under another lock."""
    path = tmp_path / "l2"
    if muted:
        monkeypatch.setattr(place_module.Place, "sweep", lambda self, why: None)
    with child("churn", path, 1) as first:
        assert line(first) == "on"
        first.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        before = (path / "data.mdb").stat().st_ino
        (path / "lock.mdb").unlink()
        with warm(path, size=SIZE) as cache:
            assert cache.reason == ""
            assert ((path / "data.mdb").stat().st_ino == before) is muted


def test_several_open_at_once_and_all_are_on(tmp_path: Path) -> None:
    path = tmp_path / "l2"
    left_behind(path)
    with child("churn", path, 1) as one, child("churn", path, 2) as two, child("churn", path, 3) as three:
        assert [line(each) for each in (one, two, three)] == ["on"] * 3
        with warm(path, size=SIZE) as cache:
            assert cache.reason == ""
            assert warmchild.judge(cache)[1] == 0


@kept_and_muted
def test_after_a_failure_the_file_is_walked_before_it_is_used_again(
    muted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tier that failed leaves no seal."""
    if muted:
        monkeypatch.setattr(keeper_module.Place, "leave", lambda self, *, seal=False: _leave(self, seal=True))
    wall = Wall()
    walked: list[int] = []
    monkeypatch.setattr(place_module, "flaw", lambda *_: walked.append(1) or "")
    with warm(tmp_path / "l2", wall) as cache:
        assert works(cache)
        cache._keeper.give_up(BrokenError("io_error", "as if", anew=False))
        until(lambda: "io_error" in cache.stats().failures, "off")
        comes_back(cache, wall)
        assert bool(walked) is not muted


_leave = place_module.Place.leave


def test_closing_while_it_is_off_or_opening_ends(tmp_path: Path) -> None:
    path = tmp_path / "l2"
    path.mkdir()
    path.chmod(0o777)
    cache = WarmCache(settings(path), Wall())
    cache.open()
    began = time.monotonic()
    cache.close()
    assert time.monotonic() - began < 30
    assert cache.reason == "closed"
    assert not Keeper(settings(path), path, Wall()).is_running
