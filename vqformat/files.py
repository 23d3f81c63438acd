"""Opening files, and writing files under a temporary name until they are complete."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import weakref
from types import TracebackType
from typing import BinaryIO

Path = str | os.PathLike[str]


class opened:
    """Context manager that gives a binary stream. A path is opened and closed; a stream is left open."""

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._own: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        if isinstance(self._source, (str, os.PathLike)):
            self._own = open(self._source, "rb")
            return self._own
        if not hasattr(self._source, "read"):
            raise TypeError(f"expected a path or a binary stream, not {type(self._source).__name__}")
        return self._source

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if self._own is not None:
            self._own.close()


class NewFile:
    """A file that is written under a temporary name in the same folder, and renamed when it is complete.

    As a context manager it gives the stream. It calls ``commit`` at the end, or ``discard`` after an exception.

    Args:
        path: The final name. A device or a pipe is written to directly. A symbolic link stays; its target is replaced.
        overwrite: Whether an existing file may be replaced.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        OSError: The temporary file cannot be created.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self._path = pathlib.Path(path).resolve()
        self._overwrite = overwrite
        self._temporary: pathlib.Path | None = None
        if self._path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder")
        if self._path.exists() and not self._path.is_file():
            self.stream: BinaryIO = open(self._path, "wb")  # noqa: SIM115
            return
        self._check_absent()
        # Not tempfile.mkstemp, whose files only the owner can read: here the umask decides
        self._temporary = self._path.with_name(f".{secrets.token_hex(8)}.vqm.tmp")
        try:
            self.stream = open(self._temporary, "x+b")  # noqa: SIM115
        except PermissionError as err:
            raise PermissionError(err.errno, "nothing can be written to this folder", str(self._path.parent)) from err
        except FileNotFoundError as err:
            raise FileNotFoundError(err.errno, "there is no such folder", str(self._path.parent)) from err
        # Removes the temporary file at the end of the program, too
        self._forget = weakref.finalize(self, _remove, self.stream, self._temporary, os.getpid())

    def _check_absent(self) -> None:
        if not self._overwrite and self._path.exists():
            raise FileExistsError(f"{str(self._path)!r} exists; it was not replaced")

    @property
    def folder(self) -> str | None:
        """The folder of the file; None for a device or a pipe."""
        return str(self._path.parent) if self._temporary is not None else None

    def commit(self) -> None:
        """Rename the temporary file. If it replaces a file, it gets the permissions of that."""
        try:
            self.stream.flush()
            if self._temporary is None:
                self.stream.close()
                return
            os.fsync(self.stream.fileno())
            self.stream.close()
            self._check_absent()
            with contextlib.suppress(OSError):  # no file is replaced, or the file system has no permissions
                os.chmod(self._temporary, self._path.stat().st_mode & 0o777)
            os.replace(self._temporary, self._path)
            self._forget.detach()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close and remove the temporary file."""
        if self._temporary is not None:
            self._forget()
        else:
            _close(self.stream)

    def __enter__(self) -> BinaryIO:
        return self.stream

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def _remove(stream: BinaryIO, path: pathlib.Path, process: int) -> None:
    if os.getpid() == process:  # a forked child must not remove the file of its parent
        _close(stream)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _close(stream: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # flushing may fail; the file is removed anyway
        stream.close()
