"""The directory of the warm tier: who may use it, and whether what lies there is to be trusted.

The tier writes customers' rows. So the directory is made for its owner alone, and one that anybody else can write to is
refused: what others can put there, this process would map and read.

Files: ``data.mdb`` and ``lock.mdb`` are LMDB's. Two more are locked with flock, which the kernel gives back whatever
happens to their owner:

* ``gate``: held while somebody opens or closes, so that one at a time judges and mends.
* ``users``: held shared by whoever uses the files. Who can have it alone is the only one. It contains the *seal*.

Nothing is synced to disk while the tier works, so after a loss of power the files are anything. The seal tells what
happened. It says *open* (with the boot it was opened in, on disk before the first byte is written) or *closed* (written
by the last user to leave after a sync, with inode, size and time of the data). Then:

1. Closed, and the file is the one that was sealed: trusted. Closed, but another: somebody meddled; begun anew.
2. Open, in this boot: the last user was killed, the page cache has all it wrote. The file is walked (``pages.flaw``).
3. Open, in an earlier boot or one that cannot be told: begun anew. So is everything without a seal that can be read.
4. Somebody else is using the files: they are as good as they were for him.
5. Files of LMDB do not shrink: one that is larger than it may become now is begun anew.

Begun anew means unlinked, never overwritten: whoever has the old files mapped keeps them, and notices (``is_there``).
``data.mdb`` goes first: other data under an old lock is harmless, one file under two locks is not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

from distribcache.errors import CacheError, ConfigError
from distribcache.tiers.pages import flaw

__all__ = ["OffError", "Place", "code_of"]

_SEAL = Struct("<8sB36sQQq")  # magic, is it closed, boot, inode, size, time of the last change in ns
_SEAL_MAGIC: Final = b"dcseal\x01\n"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_PATIENCE: Final = 500
_CHUNK: Final = 1 << 16
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class OffError(CacheError):
    """The tier cannot be used now; ``code`` says why, in one stable word."""

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.code = code


def code_of(number: int | None) -> str:
    """The stable word for an ``errno``."""
    if number in _NO_ROOM:
        return "disk_full"
    if number in _NOT_ALLOWED:
        return "not_allowed"
    return "gone" if number in (errno.ENOENT, errno.ESTALE) else "io_error"


def _boot() -> bytes:
    """What tells this boot from others; empty where there is no such thing."""
    try:
        return _BOOT_ID.read_bytes().strip()[:36]
    except OSError:
        return b""


class Place:
    """One user's way into the directory. Not for several threads at once."""

    __slots__ = ("_boot", "_gate", "_known", "_users", "anew", "data", "lock", "path")

    anew: str
    """Why ``enter`` threw away what was there; empty when it did not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data.mdb"
        self.lock = path / "lock.mdb"
        self.anew = ""
        self._boot = _boot()
        self._gate = -1
        self._users = -1
        self._known: tuple[tuple[int, int], ...] = ()

    def check(self) -> None:
        """Raises ``ConfigError`` for a path that can never be one of ours."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("not a directory", where=f"l2.path = {self.path}", hint="name a directory of its own")

    def enter(self, most: int, rest: Callable[[], object] = lambda: None) -> None:
        """Look at what is there, and throw it away if it is not to be trusted. ``settle`` must follow, or ``leave``.

        ``most``: bytes that the data may take. ``rest`` is called now and then while others are waited for, or pages
        are walked; what it raises ends that. Raises ``OffError`` when the directory cannot be used now.
        """
        self.anew = ""
        try:
            self._look_at_directory()
            self._gate = os.open(self.path / "gate", _OPEN, 0o600)
            for _ in range(_PATIENCE):
                if _try_lock(self._gate, fcntl.LOCK_EX):
                    break
                rest()
            else:
                raise OffError("busy", "another process is opening or closing it", where=str(self.path))
            self._users = os.open(self.path / "users", _OPEN, 0o600)
            if _try_lock(self._users, fcntl.LOCK_EX):
                self._judge(most, rest)
                self._write_seal(closed=False)
            else:
                if not _try_lock(self._users, fcntl.LOCK_SH):
                    raise OffError("busy", "another process is closing it", where=str(self.path))
                if not (self.data.exists() and self.lock.exists()):
                    self.sweep("half of it was deleted")
        except OSError as error:
            self._let_go()
            raise OffError(code_of(error.errno), error.strerror or "", where=str(self.path)) from error
        except BaseException:
            self._let_go()
            raise

    def settle(self) -> None:
        """LMDB has the files open: let others in."""
        self._known = self._identities()
        fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(self._gate)
        self._gate = -1

    def is_there(self) -> bool:
        """Are the files at the path still those that were opened?"""
        return self._identities() == self._known

    def is_last(self) -> bool:
        """Does nobody else use the files? If so, nobody enters either before ``leave``."""
        with suppress(OSError):
            if self._gate < 0:
                self._gate = os.open(self.path / "gate", _OPEN, 0o600)
            return _try_lock(self._gate, fcntl.LOCK_EX) and _try_lock(self._users, fcntl.LOCK_EX)
        return False

    def leave(self, *, seal: bool = False) -> None:
        """Go. ``seal`` only after ``is_last``, a sync, and after LMDB has closed the files."""
        try:
            if seal and self.is_there():
                self._write_seal(closed=True)
        except OSError:
            pass  # without a seal the file is walked, or begun anew
        finally:
            self._let_go()

    def begin_anew(self) -> None:
        """What we had open is damaged: unlink it, unless somebody did already. Raises ``OSError``."""
        if self.is_there():
            self.sweep("it was found to be damaged")

    def sweep(self, why: str) -> None:
        """Unlink what is there. Raises ``OSError``."""
        self.anew = why
        self.data.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)

    def lack_of_room(self, needed: int) -> str:
        """Why the data could not grow by so many bytes now, as ``code_of`` says it; empty when it could.

        Tried on a file of its own: what is free says nothing of quotas and limits, and a write that was cut short by a
        full disk nothing of why.
        """
        probe = self.path / "probe"
        try:
            size = self.data.stat().st_size if self.data.exists() else 0
            file = os.open(probe, _OPEN, 0o600)
            try:
                end = size + needed
                while size < end:
                    size += os.pwrite(file, bytes(min(_CHUNK, end - size)), size)
            finally:
                os.close(file)
                probe.unlink()
        except OSError as error:
            return code_of(error.errno)
        return ""

    def _look_at_directory(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.path.stat()
        hint = f"chown it to the user that runs distribcache, and chmod 700 {self.path}"
        if found.st_uid != os.geteuid():
            raise OffError("unsafe_directory", "the directory belongs to another user", where=str(self.path), hint=hint)
        if found.st_mode & _OTHERS_WRITE:
            raise OffError("unsafe_directory", "others can write to the directory", where=str(self.path), hint=hint)

    def _judge(self, most: int, rest: Callable[[], object]) -> None:
        try:
            found = self.data.lstat()
        except FileNotFoundError:
            self.lock.unlink(missing_ok=True)
            return
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            self.sweep("the file could have been written by others")
            return
        if found.st_size > most:
            self.sweep("the file is larger than it may be since the size was lowered, and does not shrink")
            return
        seal = os.pread(self._users, _SEAL.size + 1, 0)
        if len(seal) != _SEAL.size or not seal.startswith(_SEAL_MAGIC):
            self.sweep("it is not known what happened to the file")
            return
        _, closed, boot, *sealed = _SEAL.unpack(seal)
        if closed:
            if sealed != [found.st_ino, found.st_size, found.st_mtime_ns]:
                self.sweep("the file was changed after it was closed")
        elif not self._boot or boot.rstrip(b"\0") != self._boot:
            self.sweep("the machine went down while the file was open")
        else:
            file = os.open(self.data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                wrong = flaw(file, rest)
            finally:
                os.close(file)
            if wrong:
                self.sweep(wrong)
        if found.st_mode & 0o077 and not self.anew:
            self.data.chmod(0o600)

    def _write_seal(self, *, closed: bool) -> None:
        inode = size = changed = 0
        if closed:
            found = self.data.stat()
            inode, size, changed = found.st_ino, found.st_size, found.st_mtime_ns
        os.pwrite(self._users, _SEAL.pack(_SEAL_MAGIC, closed, self._boot, inode, size, changed), 0)
        os.fsync(self._users)

    def _identities(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((found.st_dev, found.st_ino) for found in (self.data.stat(), self.lock.stat()))
        except OSError:
            return ()

    def _let_go(self) -> None:
        for file in (self._gate, self._users):
            if file >= 0:
                with suppress(OSError):
                    os.close(file)
        self._gate = self._users = -1
        self._known = ()


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
