"""Temporary files that a process leaves behind when it is killed: the next one removes them.

Whoever makes such a file or folder holds a lock on it (flock), which ends with the process. So what has no lock, and
was made on this machine, belongs to nobody. Where the system has no such locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import islice

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # locks of another machine on a shared disk may not be seen here
_FILE = re.compile(rf"\.{_HOST}[0-9a-f]{{16}}\.vqm\.tmp")
_FOLDER = f"vqm-{_HOST}-"
_MOST_ENTRIES = 10_000  # of a folder that are looked at


def temporary_name() -> str:
    """A name for a temporary file beside the one that it becomes."""
    return f".{_HOST}{secrets.token_hex(8)}.vqm.tmp"


def lock(descriptor: int, *, waits: bool = False) -> bool:
    """Lock an open file or folder as long as it is open, here or in a process that is forked.

    Args:
        waits: Whether to wait as long as another process has it.

    Returns:
        Whether it is locked now.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of dead processes from a folder of outputs."""
    for path in _named(folder, _FILE.fullmatch):
        with _locked(path, os.O_RDWR) as is_ours:
            if is_ours:
                with contextlib.suppress(OSError):
                    path.unlink()


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """Context that gives a folder in the system's folder for temporary files. Those of dead processes are removed."""
    for path in _named(tempfile.gettempdir(), lambda name: name.startswith(_FOLDER)):
        with _locked(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)) as is_ours:
            if is_ours:
                shutil.rmtree(path, ignore_errors=True)
    folder, descriptor = _new_folder()
    try:
        with folder as name:
            yield pathlib.Path(name)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _new_folder() -> tuple[tempfile.TemporaryDirectory[str], int | None]:
    """A new temporary folder, and the descriptor that locks it."""
    while True:
        folder = tempfile.TemporaryDirectory(prefix=_FOLDER)
        if fcntl is None:
            return folder, None
        with contextlib.suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            descriptor = os.open(folder.name, os.O_RDONLY)
            lock(descriptor)
            if os.path.exists(folder.name):
                return folder, descriptor
            os.close(descriptor)
        folder.cleanup()


def _named(folder: str | os.PathLike[str], is_temporary: Callable[[str], object]) -> list[pathlib.Path]:
    if fcntl is None:
        return []
    try:
        with os.scandir(folder) as entries:
            return [pathlib.Path(entry.path) for entry in islice(entries, _MOST_ENTRIES)
                    if is_temporary(entry.name)]  # fmt: skip
    except OSError:  # a folder that may be written to, but not listed
        return []


@contextlib.contextmanager
def _locked(path: pathlib.Path, flags: int) -> Iterator[bool]:
    """Context that locks a path, and tells whether it is a file or folder of this user that nobody has locked."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        found = os.fstat(descriptor)
        is_own = found.st_uid == os.geteuid() and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode))
        yield is_own and lock(descriptor) and _is_at(path, found)
    finally:
        os.close(descriptor)


def _is_at(path: pathlib.Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except OSError:
        return False
