"""Files to be read, and files that get their name when they are complete, so that a failure loses nothing."""

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
    """Context of a binary stream: a path is opened and closed, a stream left open."""

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._own: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        if isinstance(self._source, (str, os.PathLike)):
            self._own = open(self._source, "rb")
            return self._own
        if not hasattr(self._source, "read"):
            raise TypeError(f"a path or a binary stream is wanted, not {type(self._source).__name__}")
        return self._source

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if self._own is not None:
            self._own.close()


class NewFile:
    """A file to be written; its bytes go to a temporary one in the same folder.

    As a context manager it gives the stream, and ends by ``commit``, or by ``discard`` on an exception.

    Args:
        path: Its name. A device or a pipe is written to directly and never replaced; a link stays.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        OSError: It cannot be made.
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
        # Made as a plain open would make it: the umask decides who may read it
        self._temporary = self._path.with_name(f".{secrets.token_hex(8)}.vqm.tmp")
        try:
            self.stream = open(self._temporary, "x+b")  # noqa: SIM115
        except PermissionError as err:
            raise PermissionError(err.errno, "nothing can be written to this folder", str(self._path.parent)) from err
        except FileNotFoundError as err:
            raise FileNotFoundError(err.errno, "there is no such folder", str(self._path.parent)) from err
        # Also if the program ends
        self._forget = weakref.finalize(self, _remove, self.stream, self._temporary, os.getpid())

    def _check_absent(self) -> None:
        if not self._overwrite and self._path.exists():
            raise FileExistsError(f"{str(self._path)!r} exists; it was not replaced")

    @property
    def folder(self) -> str | None:
        """Where it is; None of a device or a pipe."""
        return str(self._path.parent) if self._temporary is not None else None

    def commit(self) -> None:
        """Give the file its name, with the permissions of the one that it replaces."""
        try:
            self.stream.flush()
            if self._temporary is None:
                self.stream.close()
                return
            os.fsync(self.stream.fileno())
            self.stream.close()
            self._check_absent()
            with contextlib.suppress(OSError):  # there is none, or the file system has no permissions
                os.chmod(self._temporary, self._path.stat().st_mode & 0o777)
            os.replace(self._temporary, self._path)
            self._forget.detach()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing behind."""
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
    if os.getpid() == process:  # and not one that was forked from it
        _close(stream)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _close(stream: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # what it could not flush is thrown away
        stream.close()
