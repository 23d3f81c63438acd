"""A new file that may have no name until it is complete, and giving it one that no file has."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import shutil
from typing import Any

from .leftovers import lock

_DESCRIPTORS = "/proc/self/fd"  # Linux: a link to each open file, also to one without a name


class Written(io.FileIO):
    """A new file that remembers why it could not be written, and names it as the user does. It is locked.

    Libraries turn this error into others: torch.save into a RuntimeError, h5py into an OSError without a number.
    """

    def __init__(self, path: pathlib.Path, asked: str) -> None:
        self.error: OSError | None = None
        self._asked = asked
        self.has_name = False
        self._copy: int | None = None  # the descriptor of a copy that has the name
        try:
            super().__init__(path.parent, "r+", opener=_open_unnamed)
        except OSError:  # the system or the file system has no files without a name
            self.has_name = True
            super().__init__(path, "x+")
            lock(self.fileno(), waits=True)
            while not os.fstat(self.fileno()).st_nlink:  # removed as a leftover before it was locked
                super().__init__(path, "x+")
                lock(self.fileno(), waits=True)
        else:
            lock(self.fileno())

    def hold(self) -> int:
        """A descriptor that keeps the file locked when it is closed."""
        return os.dup(self.fileno() if self._copy is None else self._copy)

    def give_name(self, path: pathlib.Path) -> None:
        """Give a complete file without a name its first one."""
        if self.has_name:
            return
        try:
            folder = os.open(_DESCRIPTORS, os.O_RDONLY)
            try:  # src_dir_fd has no effect on an absolute path, but makes Python follow the link in /proc
                os.link(f"{_DESCRIPTORS}/{self.fileno()}", path, src_dir_fd=folder)
            finally:
                os.close(folder)
        except OSError:
            self.seek(0)
            with open(path, "xb") as copy:
                lock(copy.fileno())
                shutil.copyfileobj(self, copy)
                copy.flush()
                os.fsync(copy.fileno())
                self._copy = os.dup(copy.fileno())
        self.has_name = True

    def close(self) -> None:
        if not self.closed and self._copy is not None:
            os.close(self._copy)
        super().close()

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as err:
            err.filename = self._asked
            self.error = err
            raise


def _open_unnamed(folder: str, flags: int) -> int:
    """Open a new file that has no name, so that nothing of it is left if the process is killed (Linux: O_TMPFILE)."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(_DESCRIPTORS):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)


def link_new(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Give a file a name that no file has.

    Raises:
        FileExistsError: A file has this name.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):  # the file system has no links: the name is taken first
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise
    else:
        temporary.unlink()
