"""The state of a warm restart: its bytes, its file, and what a ledger is afterwards (coherence rule R8, trap 19)."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from muted import kept_and_muted

from distribcache.catalog.generation import CatalogueView, Relation, Relations
from distribcache.coherence import kept as kept_module
from distribcache.coherence.coverage import Coverage
from distribcache.coherence.decoding import Commit
from distribcache.coherence.freshness import Freshness
from distribcache.coherence.keeping import _capture, _copied
from distribcache.coherence.kept import PIECE, Kept, decode, encode, pack, read_tag
from distribcache.coherence.keptfile import KeptFile, LockedError, UnusableError
from distribcache.coherence.ledger import NEVER, SCHEMA, Ledger, W, tag_prefix
from distribcache.coherence.link import ServerIdentity
from distribcache.coherence.visibility import Snapshot
from distribcache.tiers.codec import DamagedError, ForeignError

COLUMNS = ("id",)
TAG = b"w" + tag_prefix(7, COLUMNS)


def state(**more: Any) -> Kept:
    made = Kept(
        system_identifier="712", postmaster_start="17.5", timeline=1, database_oid=5, slot="distribcache_5_x",
        nonce=bytes(range(16)), applied=900, schema=100, overflow=3, target=100, lost_at=0, row_slots=1 << 14,
        tables=64, fingerprint=(1, -2, 3), quick=(-4,), dense=[(b"t" + (7).to_bytes(8, "little"), 500), (TAG, 600)],
        rows=[(1, pack(struct.pack("<Q", 800) * (PIECE // 8)))],
    )  # fmt: skip
    return replace(made, **more)


def whole_of(kept: Kept) -> bytes:
    return b"".join(encode(kept))


def test_what_was_kept_comes_back() -> None:
    found = decode(whole_of(state()))
    assert found == state()
    assert found.unpacked == {1: struct.pack("<Q", 800) * (PIECE // 8)}
    assert pack(bytes(PIECE)) == b""
    assert pack(bytes(100)) == b""


def verdict(data: bytes) -> str:
    try:
        return "" if decode(data) == state() else "another"
    except (DamagedError, ForeignError) as error:
        return type(error).__name__


@kept_and_muted
def test_every_damage_is_found(monkeypatch: pytest.MonkeyPatch, muted: bool) -> None:
    """Muted: the checksum is whatever it is. Then some damage is read as another state."""
    whole = whole_of(state())
    if muted:

        class Any16(bytes):
            def __ne__(self, other: object) -> bool:
                return False

        monkeypatch.setattr(kept_module, "xxh3_128_digest", lambda _: Any16(16))
    found = set()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        found.add(verdict(bytes(data)))
    assert ("another" in found) == muted, found
    if not muted:
        assert found == {"DamagedError", "ForeignError"}
        assert {verdict(whole[:size]) for size in range(len(whole))} == {"DamagedError", "ForeignError"}
        assert verdict(whole + b"x") == "DamagedError"


@given(data=st.data())
def test_bytes_that_prove_themselves_are_read_as_if_they_did_not(data: st.DataObject) -> None:
    """A state of ours with other contents: an error or a state, and never much memory."""
    body = bytearray(whole_of(state())[kept_module._HEAD.size :])
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    head = kept_module._HEAD.pack(
        kept_module._MAGIC, kept_module._HEAD.size + len(body), kept_module.xxh3_128_digest(bytes(body))
    )
    try:
        decode(head + bytes(body))
    except (DamagedError, ForeignError):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [(0, pack(b"x" * (PIECE // 2)))]},
        {"rows": [(9, pack(b"x" * PIECE))]},
        {"rows": [(0, pack(b"x" * PIECE))] * 2},
        {"rows": [(0, b"not packed")]},
        {"dense": [(b"x", 1)]},
        {"dense": [(b"w" + tag_prefix(7, ()), 1)]},
        {"dense": [(TAG + b"x", 1)]},
        {"dense": [(TAG[:-1], 1)]},
        {"applied": NEVER},
    ],
)
def test_a_state_that_makes_no_sense_is_damaged(change: dict[str, Any]) -> None:
    with pytest.raises(DamagedError):
        decode(whole_of(state(**change)))


def test_other_versions_are_foreign() -> None:
    for change in ({"version": "0.0"}, {"ledger_format": 1}):
        with pytest.raises(ForeignError):
            decode(whole_of(state(**change)))
    with pytest.raises(ForeignError):
        decode(b"")
    assert read_tag(TAG) == (7, COLUMNS)


# -- the file


def test_a_state_is_there_as_a_whole_or_not(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "l2")
    file.lock("712", 5)
    assert file.read() == b""
    assert file.write([b"o", b"ne"], file.turn)
    assert file.write([b"two"], file.turn)
    assert file.read() == b"two"
    assert file.state.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "l2").stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in (tmp_path / "l2").iterdir()) == [".lock", ".state"]
    file.remove()
    assert file.read() == b""


@kept_and_muted
def test_what_was_captured_before_the_end_does_not_appear_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, muted: bool
) -> None:
    """The thread that writes is late. Muted: it has any turn."""
    file = KeptFile(tmp_path)
    file.lock("712", 5)
    turn = file.turn
    file.remove()
    if muted:
        monkeypatch.setattr(KeptFile, "_turn", turn, raising=False)
        file._turn = turn
    assert file.write([b"late"], turn) is muted
    assert (file.read() == b"late") is muted


def test_one_process_at_a_time(tmp_path: Path) -> None:
    one, two = KeptFile(tmp_path), KeptFile(tmp_path)
    one.lock("712", 5)
    one.lock("712", 5)
    with pytest.raises(LockedError):
        two.lock("712", 5)
    two.lock("712", 6)
    one.unlock()
    two.lock("712", 5)


def test_a_name_belongs_to_a_directory(tmp_path: Path) -> None:
    one = KeptFile(tmp_path / "one")
    assert one.name(make=False) == ""
    made = one.name(make=True)
    assert len(made) == 10
    assert KeptFile(tmp_path / "one").name(make=False) == made
    assert KeptFile(tmp_path / "two").name(make=True) != made
    (tmp_path / "one" / "follow.id").write_text("../../etc")
    assert len(one.name(make=True)) == 10


def test_two_who_name_a_directory_at_a_time_name_it_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is about to when another does: each would hold a slot, and only one of them is ever found again."""
    names: list[str] = []
    others: list[threading.Thread] = []

    def other() -> None:
        names.append(KeptFile(tmp_path).name(make=True))

    def random(count: int, urandom: Callable[[int], bytes] = os.urandom) -> bytes:
        if not others:
            others.append(threading.Thread(target=other))
            others[0].start()
            others[0].join(0.5)
        return urandom(count)

    monkeypatch.setattr("distribcache.coherence.keptfile.os.urandom", random)
    other()
    others[0].join()
    assert len(names) == 2 and set(names) == {(tmp_path / "follow.id").read_text()}


def test_what_a_full_disk_did_not_take_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeptFile(tmp_path)
    file.lock("712", 5)
    file.write([b"state"], file.turn)

    def full(number: int, data: Any, write: Callable[[int, Any], int] = os.write) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(number, data[:100])

    monkeypatch.setattr("distribcache.coherence.keptfile.os.write", full)
    with pytest.raises(OSError, match="no space"):
        file.write([b"x" * 1050], file.turn)
    monkeypatch.undo()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".state"]
    assert file.read() == b"state"


def test_what_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    file = KeptFile(tmp_path)
    file.lock("712", 5)
    file.write([b"state"], file.turn)
    file.state.chmod(0o622)
    with pytest.raises(UnusableError):
        file.read()
    file.state.unlink()
    file.state.symlink_to("/etc/hostname")
    with pytest.raises(UnusableError):
        file.read()
    file.unlock()
    tmp_path.chmod(0o777)
    with pytest.raises(UnusableError):
        file.lock("712", 5)
    tmp_path.chmod(0o700)
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(UnusableError):
            file.lock("712", 5)
        tmp_path.chmod(0o700)


# -- the ledger


RELATIONS = Relations(
    {b"public.a": (7,), b"public.b": (8,)},
    {oid: Relation(oid, "r", "d", False, (), frozenset((b"id",))) for oid in (7, 8)},
    frozenset((7, 8, 9)),
)


VIEW = CatalogueView(Snapshot(50, 60, frozenset((55,))), (1, -2, 3), (-4,), RELATIONS)


class AnyLink:
    identity = ServerIdentity("712", "17.5", False, 1, 5)


def coverage_of(tables: int = 64) -> Coverage:
    return Coverage(Ledger(tables, 1 << 14), Freshness(), full_poll_ns=10**9, quick_poll_ns=10**9)


def kept_of(coverage: Coverage) -> Kept:
    first, slots = _capture(AnyLink(), coverage, "s")  # type: ignore[arg-type]
    return decode(whole_of(_copied(coverage.ledger, first, slots)))


@pytest.mark.parametrize("asked_before", [False, True])
def test_every_slot_means_and_holds_what_it_did(asked_before: bool) -> None:
    one, two = coverage_of(), coverage_of()
    one.begin(100)
    one.relations, one.target = RELATIONS, 120
    one.watching.renew(RELATIONS)
    ledger = one.ledger
    ledger.slot_of(8, 130)
    one.watch(7, COLUMNS)
    chosen = random.Random(3)
    values = [b"%d" % chosen.randint(0, 10**6) for _ in range(300)]
    for place, value in enumerate(values):
        ledger.bump(ledger.row_slot(7, COLUMNS, (value,)), 1000 + place)
    one.received = 2000
    ledger.words[W] = 2000
    if asked_before:  # by clients who came before the database was followed
        two.watch(7, COLUMNS)
        two.slot_of(8)
        two.slot_of(7)
    two.resume(kept_of(one), VIEW)
    again = two.ledger
    assert again.words[W] == 2000
    assert again.words[SCHEMA] == ledger.words[SCHEMA]
    assert (two.nonce, two.target, two.received) == (one.nonce, 120, 2000)
    assert again.words[again.slot_of(8, 0)] == 130
    assert again.words[two.watch(7, COLUMNS)] == ledger.words[one.watch(7, COLUMNS)]
    for value in values:
        slot = ledger.row_slot(7, COLUMNS, (value,))
        tags = ledger.tags_of((slot,))
        assert tags is not None
        assert again.slots_for(tags, two.slot_of) == (again.row_slot(7, COLUMNS, (value,)),)
        assert again.words[again.row_slot(7, COLUMNS, (value,))] == ledger.words[slot]
    assert again.words[two.slot_of(9)] == 120, "a relation that nobody touched since the last change of the catalogue"
    assert two.watching.plan_of(b"public.a") is not None


def test_what_found_no_room_is_kept_too() -> None:
    one, two = coverage_of(4), coverage_of(4)
    one.begin(100)
    for oid in range(20, 30):
        one.ledger.touch(oid, oid * 10)
    two.resume(kept_of(one), VIEW)
    for oid in range(20, 30):
        assert two.ledger.words[two.ledger.slot_of(oid, 0)] >= oid * 10
    assert two.ledger.words[two.ledger.slot_of(99, 0)] >= 290


@kept_and_muted
def test_a_commit_that_comes_while_slots_are_copied(muted: bool) -> None:
    """Muted: W is read behind the slots. What the state claims, it does not hold."""
    coverage = coverage_of()
    coverage.begin(100)
    ledger = coverage.ledger
    slot = ledger.slot_of(8, 100)

    def commit() -> None:
        ledger.bump(slot, 300)
        ledger.words[W] = 300

    first, slots = _capture(AnyLink(), coverage, "s")  # type: ignore[arg-type]
    if muted:
        copied = _copied(ledger, first, slots)
        commit()
        copied = replace(copied, applied=ledger.words[W])
    else:
        commit()
        copied = _copied(ledger, first, slots)
    holds = copied.applied < 300 or dict(copied.dense)[b"t" + (8).to_bytes(8, "little")] >= 300
    assert holds is not muted


def test_what_the_look_has_seen_is_no_alarm_any_more() -> None:
    one, two = coverage_of(), coverage_of()
    one.begin(100)
    two.resume(kept_of(one), VIEW)
    for number, xid in enumerate((51, 52, 55, 60)):
        two.commit(Commit(xid, 110 + number, frozenset(), empty=True, ddl=False, rows=0))
    assert [alarm.xid for alarm in two.alarms.pending] == [-1, 55, 60]
    assert two.lost_at == 0
