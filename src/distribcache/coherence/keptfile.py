"""The files of a warm restart, in the directory of L2: a name, and for each database a lock and a state.

* ``follow.id``: ten random characters, the part of our slots' names that belongs to this directory. The first one
  that is made stays: another one, made at the same time, would leave a slot that nobody finds again.
* ``follow-SYSTEM-OID.lock``: locked with flock by whoever follows that database from this directory. The kernel gives
  it back whatever happens to its owner. A second process gets neither the slot nor the state.
* ``follow-SYSTEM-OID.state``: see ``kept``. It is replaced as a whole: written beside it, synced, renamed, and the
  directory is synced, so that what is confirmed to the server afterwards is on disk.

The directory must be ours and nobody else's to write in: who can put a state there decides what is served.

A state that is being written when ``remove`` or ``cease`` is called never appears: each write belongs to a *turn*, and
both end it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from distribcache.coherence.kept import MOST_BYTES
from distribcache.errors import CacheError

__all__ = ["KeptFile", "LockedError", "UnusableError"]

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_ID: Final = re.compile(r"[0-9a-f]{10}")


class LockedError(CacheError):
    """Another process follows this database from this directory."""


class UnusableError(CacheError):
    """The directory cannot be used, or is not ours alone."""


class KeptFile:
    """Of one directory, and after ``lock`` of one database."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = -1
        self._locked = ""
        self._turn = 0
        self._writing = threading.Lock()

    @property
    def state(self) -> Path:
        """Where the state of the locked database is, or would be."""
        return self.directory / f"{self._locked}.state"

    @property
    def turn(self) -> int:
        """To be read when a state is captured, and given to ``write``."""
        return self._turn

    def name(self, *, make: bool) -> str:
        """The characters that belong to this directory; empty when it has none and none are to be made.

        Raises ``UnusableError``.
        """
        path = self.directory / "follow.id"
        try:
            if make:
                self._enter()
            found = _read_id(path)
            return found if found or not make else self._make_name(path)
        except OSError as error:
            raise _unusable(error, self.directory) from error

    def _make_name(self, path: Path) -> str:
        made = os.urandom(5).hex()
        beside = path.with_name(f"{path.name}.{made}")
        self._replace(beside, [made.encode()])
        try:
            os.link(beside, path)
        except FileExistsError:
            found = _read_id(path)
            if found:
                return found
            os.replace(beside, path)  # what stood there is no name
        finally:
            beside.unlink(missing_ok=True)
        self._sync_directory()
        return made

    def lock(self, system_identifier: str, oid: int) -> None:
        """Have this database for ourselves until ``unlock``. Raises ``LockedError`` or ``UnusableError``."""
        wanted = f"follow-{int(system_identifier)}-{oid}"
        if wanted == self._locked:
            return
        self.unlock()
        try:
            self._enter()
            file = os.open(self.directory / f"{wanted}.lock", os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        except OSError as error:
            raise _unusable(error, self.directory) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise LockedError(
                "another process follows this database", where=f"l2.path = {self.directory}",
                hint="give each process a directory of its own",
            ) from error
        self._lock, self._locked = file, wanted

    def unlock(self) -> None:
        """Let others have it."""
        file, self._lock, self._locked = self._lock, -1, ""
        if file >= 0:
            os.close(file)

    def read(self) -> bytes:
        """The state's bytes; none when there is none. Raises ``UnusableError`` when it is not to be trusted."""
        try:
            file = os.open(self.state, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unusable(error, self.state) from error
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(file)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _OTHERS_WRITE
            if not ours or found.st_size > MOST_BYTES:
                raise UnusableError("the state could have been written by others", where=str(self.state))
            try:
                return opened.read(MOST_BYTES)
            except OSError as error:
                raise _unusable(error, self.state) from error

    def write(self, data: Iterable[bytes], turn: int) -> bool:
        """Replace the state; returns when it is on disk. False: its turn was over. Raises OSError."""
        return self._replace(self.state, data, turn)

    def cease(self) -> None:
        """What is being written is not to appear; what is there stays."""
        with self._writing:
            self._turn += 1

    def remove(self) -> None:
        """There is no state from now on."""
        with self._writing:
            self._turn += 1
            if self._locked:
                with suppress(OSError):
                    self.state.unlink()

    def _replace(self, path: Path, data: Iterable[bytes], turn: int | None = None) -> bool:
        beside = path.with_name(path.name + ".new")
        with suppress(FileNotFoundError):
            beside.unlink()
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            for piece in data:
                view = memoryview(piece)
                while view:
                    view = view[os.write(file, view) :]
            os.fsync(file)
        except OSError:
            with suppress(OSError):  # room is scarce
                beside.unlink()
            raise
        finally:
            os.close(file)
        with self._writing:
            if turn not in (None, self._turn):
                beside.unlink()
                return False
            os.rename(beside, path)
        self._sync_directory()
        return turn in (None, self._turn)

    def _sync_directory(self) -> None:
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _enter(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            raise UnusableError(
                "others can write to the directory", where=f"l2.path = {self.directory}",
                hint=f"chown it to the user that runs distribcache, and chmod 700 {self.directory}",
            )


def _read_id(path: Path) -> str:
    """Empty when there is none."""
    with suppress(FileNotFoundError):
        found = path.read_text("ascii", "replace")
        return found if _ID.fullmatch(found) else ""
    return ""


def _unusable(error: OSError, path: Path) -> UnusableError:
    return UnusableError(
        f"cannot be used: {error.strerror or error}", where=str(path), hint="a directory of our own, on a local disk"
    )
