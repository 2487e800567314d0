"""Is a file of LMDB (0.9) whole? Asked without LMDB, as LMDB believes what it reads.

LMDB maps its file and follows the page numbers and offsets in it. Where those are wrong it reads outside the map, and
the process ends with a signal that nothing can catch; a page that two owners think to be theirs mixes entries up later.
So a file whose past is not known (its last user was killed) is walked here first, with plain reads:

1. Both meta pages are of this format; the younger one is what LMDB will use.
2. Every page that is reached lies inside the file, says its own number, and is of the kind that its depth asks for.
3. Inside a page, offsets and sizes stay within it and fill what it says is filled, and keys ascend.
4. No page is reached twice, be it from a tree, as part of a large value, or as free.

The bytes of values are not looked at: their checksums are checked when they are read. Damage that is done while LMDB
has the file open is out of reach: nobody but this user can write there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct
from typing import Final

__all__ = ["flaw"]

_PAGE = Struct("=QHHHH")  # number, pad, flags, lower, upper; the last two are one count in a page of a large value
_META = Struct("=IIQQ")  # magic, version, address, map size
_TREE = Struct("=IHHQQQQQ")  # pad, flags, depth, branch pages, leaf pages, overflow pages, entries, root
_NODE = Struct("=HHHH")  # low and high half of a size (or page number), flags (or its top), size of the key
_ENDS = Struct("=QQ")  # of a meta page: the last page, the transaction
_LONG = Struct("=Q")
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _SUB, _DUP = 1, 2, 4
_NONE: Final = (1 << 64) - 1
_INTEGER_KEY, _KINDS_OF_TREE = 8, 0x7FFF
_DEEPEST: Final = 32
_REST_EVERY: Final = 128
_UNWRITTEN: Final = 1 << 16


class _FlawError(Exception):
    """What is wrong with the file."""


def flaw(file: int, rest: Callable[[], object] = lambda: None) -> str:
    """What is wrong with the LMDB file open as descriptor ``file``, in words; empty when nothing is.

    ``rest`` is called every few pages, for whoever must not keep others waiting. Raises ``OSError`` from reading.
    """
    try:
        _Walk(file, rest).whole()
    except _FlawError as error:
        return str(error)
    return ""


class _Walk:
    __slots__ = ("_file", "_last", "_length", "_read", "_rest", "_seen", "_size")

    def __init__(self, file: int, rest: Callable[[], object]) -> None:
        self._file = file
        self._rest = rest
        self._length = os.fstat(file).st_size
        self._read = 0
        self._size = 0
        self._last = 0
        self._seen = bytearray()

    def whole(self) -> None:
        metas = []
        size = self._page_size()
        for number in (0, 1):
            page = os.pread(self._file, size, number * size)
            if len(page) < size or not _PAGE.unpack_from(page)[2] & _META_PAGE:
                raise _FlawError(f"no meta page at {number}")
            magic, version, _, _ = _META.unpack_from(page, _PAGE.size)
            at = _PAGE.size + _META.size
            free, main = _TREE.unpack_from(page, at), _TREE.unpack_from(page, at + _TREE.size)
            last, txnid = _ENDS.unpack_from(page, at + 2 * _TREE.size)
            if magic != _MAGIC or version != _VERSION or free[0] != size:
                raise _FlawError(f"the meta page at {number} is not of this format")
            metas.append((txnid, last, free, main))
        _, self._last, free, main = max(metas, key=lambda meta: meta[0])
        self._size = size
        # Pages at the end that were taken and given back within one transaction are never written: only pages that
        # are read need to be there.
        if self._last >= self._length // size + _UNWRITTEN:
            raise _FlawError("the file is cut off")
        self._seen = bytearray(self._last + 1)
        self._claim(0, 2)
        self._tree(free, free_list=True)
        self._tree(main)

    def _page_size(self) -> int:
        start = os.pread(self._file, _PAGE.size + _META.size + 4, 0)
        if len(start) < _PAGE.size + _META.size + 4:
            raise _FlawError("the file is cut off")
        size = int.from_bytes(start[-4:], "little" if _LONG.pack(1)[0] else "big")
        if size < 512 or size > 1 << 16 or size & (size - 1):
            raise _FlawError("the page size makes no sense")
        return size

    def _claim(self, number: int, count: int) -> None:
        """Rule 4."""
        end = number + count
        if count < 1 or end > self._last + 1:
            raise _FlawError(f"page {number} is beyond the last one")
        seen = self._seen
        if count == 1:
            if seen[number]:
                raise _FlawError(f"page {number} has two owners")
            seen[number] = 1
        else:
            if seen.find(1, number, end) >= 0:
                raise _FlawError(f"page {number} has two owners")
            seen[number:end] = b"\1" * count

    def _load(self, number: int, size: int) -> bytes:
        self._read += 1
        if not self._read % _REST_EVERY:
            self._rest()
        page = os.pread(self._file, size, number * self._size)
        if len(page) < size or _PAGE.unpack_from(page)[0] != number:
            raise _FlawError(f"page {number} is missing or another one")
        return page

    def _tree(self, tree: tuple[int, ...], *, free_list: bool = False) -> None:
        _, kind, depth, _, _, _, entries, root = tree
        if kind & _KINDS_OF_TREE != (_INTEGER_KEY if free_list else 0):
            raise _FlawError("a tree is of a kind that we do not write")
        if root == _NONE:
            if entries:
                raise _FlawError("a tree has entries and no root")
            return
        if not 0 < depth <= _DEEPEST:
            raise _FlawError("the depth of a tree makes no sense")
        found = self._below(root, depth, free_list)
        if found != entries:
            raise _FlawError(f"a tree has {found} entries and says {entries}")

    def _below(self, number: int, depth: int, free_list: bool) -> int:
        self._claim(number, 1)
        page = self._load(number, self._size)
        _, _, flags, lower, upper = _PAGE.unpack_from(page)
        leaf = depth == 1
        if flags != (_LEAF if leaf else _BRANCH):
            raise _FlawError(f"page {number} is of another kind")
        size = self._size
        if not _PAGE.size <= lower <= upper <= size or lower % 2:
            raise _FlawError(f"page {number} has no sensible bounds")
        count = (lower - _PAGE.size) // 2
        if count < (1 if leaf else 2):
            raise _FlawError(f"page {number} is empty")
        before: bytes | int | None = None
        found = filled = 0
        for index in range(count):
            at = int.from_bytes(page[_PAGE.size + 2 * index : _PAGE.size + 2 * index + 2], _ORDER)
            if at < upper or at + 8 > size or at % 2:
                raise _FlawError(f"a node of page {number} lies outside")
            low, high, node_flags, key_size = _NODE.unpack_from(page, at)
            end = at + 8 + key_size
            if end > size:
                raise _FlawError(f"a key of page {number} lies outside")
            if index or leaf:  # the first key of a branch is not used
                key: bytes | int = page[at + 8 : end]
                if free_list:
                    if key_size != 8:
                        raise _FlawError(f"a key of page {number} is no transaction")
                    key = int.from_bytes(page[at + 8 : end], _ORDER)
                if before is not None and key <= before:  # type: ignore[operator]
                    raise _FlawError(f"the keys of page {number} do not ascend")
                before = key
            filled += 8 + key_size
            if leaf:
                found += 1
                length = 8 if node_flags & _BIG else low | high << 16
                if end + length > size:
                    raise _FlawError(f"a value of page {number} lies outside")
                filled += length
                self._value(page, end, low | high << 16, node_flags, free_list)
            else:
                found += self._below(low | high << 16 | node_flags << 32, depth - 1, free_list)
            filled += filled % 2
        if filled != size - upper:
            raise _FlawError(f"the nodes of page {number} do not add up")
        return found

    def _value(self, page: bytes, at: int, length: int, flags: int, free_list: bool) -> None:
        size = self._size
        if flags & _DUP or (flags & _SUB and (flags & _BIG or length != _TREE.size or free_list)):
            raise _FlawError("a value is of a kind that we do not write")
        if flags & _BIG:
            number = _LONG.unpack_from(page, at)[0]
            count = (_PAGE.size + length + size - 1) // size
            self._claim(number, count)
            head = self._load(number, _PAGE.size + length if free_list else _PAGE.size)
            _, _, kind, low, high = _PAGE.unpack_from(head)
            if kind != _OVERFLOW or _count(low, high) != count:
                raise _FlawError(f"page {number} is not the large value that it should be")
            if (number + count - 1) * size + (_PAGE.size + length) % size > self._length:
                raise _FlawError("the file is cut off")
            value = head[_PAGE.size :]
        else:
            value = page[at : at + length]
        if flags & _SUB:
            self._tree(_TREE.unpack(value))
        elif free_list:
            self._free(value)

    def _free(self, value: bytes) -> None:
        if len(value) < 8 or len(value) != 8 * (_LONG.unpack_from(value)[0] + 1):
            raise _FlawError("a list of free pages has another length than it says")
        for at in range(8, len(value), 8):
            self._claim(_LONG.unpack_from(value, at)[0], 1)


_ORDER: Final = "little" if _LONG.pack(1)[0] else "big"


def _count(low: int, high: int) -> int:
    return low | high << 16 if _ORDER == "little" else low << 16 | high
