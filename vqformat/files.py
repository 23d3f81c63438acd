"""Opening files, and writing files under a temporary name until they are complete."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import pickle
import stat
import tempfile
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, cast

from .hub import is_hub_path, open_hub_file
from .leftovers import remove_leftovers, temporary_name
from .written import Written, link_new

Path = str | os.PathLike[str]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the errors of a disk, a quota or a file that is full
_PIECE_NBYTES = 1 << 20  # that are read at once of a file that is read whole


class opened:
    """Context manager that gives a binary stream. A path is opened and closed; a stream is left open.

    Args:
        has_own_position: Whether a regular file that is opened must have a position of its own in a process that is
            forked later. The position of a descriptor is shared.
        in_order: Whether the file is read from its beginning to its end; of a file of the Hugging Face Hub, that is one
            request.
    """

    def __init__(
        self, source: Path | BinaryIO, *, has_own_position: bool = False, in_order: bool = True
    ) -> None:
        self._source = source
        self._in_order = in_order
        self._has_own_position = has_own_position and hasattr(os, "preadv")
        self._own: BinaryIO | None = None
        self._path = ""  # absolute, since the working directory may change

    def __enter__(self) -> BinaryIO:
        name: Any = self._source
        if is_hub_path(name):
            self._own = open_hub_file(name, in_order=self._in_order)
            return self._own
        if not isinstance(name, (str, os.PathLike)):
            if not hasattr(name, "read"):
                raise TypeError(f"expected a path or a binary stream, not {type(name).__name__}")
            name = getattr(name, "name", None) if reads_its_descriptor(name) else None
        if isinstance(name, (str, os.PathLike)):
            self._path = os.path.abspath(os.fspath(name))
        if not isinstance(self._source, (str, os.PathLike)):
            return self._source
        self._own = _PositionedFile.open(self._source) if self._has_own_position else open(self._source, "rb")
        return self._own

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if self._own is not None:
            self._own.close()

    def for_other_process(self) -> str | BinaryIO:
        """What opens the same file in another process: its path, or a stream that can be pickled.

        Raises:
            TypeError: There is no such thing: a stream without a path, or a file that is no longer under its path.
        """
        stream: Any = self._own or self._source
        if is_hub_path(self._source):
            return self._source
        if self._path:
            try:
                is_same = os.path.samestat(os.stat(self._path), os.fstat(stream.fileno()))
            except OSError:
                is_same = False
            if not is_same:
                raise TypeError(f"another process cannot open this file: it is not at {self._path!r} any more")
            return self._path
        if not isinstance(stream, io.BytesIO):
            try:
                pickle.dumps(stream)
            except Exception as err:
                raise TypeError(f"a file that was opened as a {type(stream).__name__} cannot be pickled; one that was"
                                " opened by its path, or as a BytesIO, can") from err  # fmt: skip
        return cast(BinaryIO, stream)


def reads_its_descriptor(stream: object) -> bool:
    """Whether a stream gives the bytes of its descriptor as they are. Others that have one, as of gzip, do not."""
    raw = stream.raw if type(stream) in (io.BufferedReader, io.BufferedRandom) else stream  # type: ignore[attr-defined]
    return type(raw) is io.FileIO


class _PositionedFile(io.FileIO):
    """A file that is read in order, with a position that a forked process does not share, if it is a regular file.

    A pipe or a device is read as it comes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._is_regular = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        # /dev/stdin of some systems is a copy of the descriptor, of which a part may have been read
        self._position = self.tell() if self._is_regular else 0

    @classmethod
    def open(cls, path: Path) -> BinaryIO:
        return io.BufferedReader(cls(path))

    def readinto(self, buffer: Any) -> int:
        if not self._is_regular:
            return super().readinto(buffer)
        n = os.preadv(self.fileno(), [buffer], self._position)
        self._position += n
        return n

    def readall(self) -> bytes:
        if not self._is_regular:
            return super().readall()
        pieces = []
        while piece := os.pread(self.fileno(), _PIECE_NBYTES, self._position):
            pieces.append(piece)
            self._position += len(piece)
        return b"".join(pieces)


@contextlib.contextmanager
def temporary_space(folder: Path | None = None) -> Iterator[None]:
    """Context in which an error of a full disk names the system's folder for temporary files, and TMPDIR.

    Args:
        folder: A folder made there. An error that names a file in it, or no file, is such an error.
    """
    try:
        yield
    except OSError as err:
        is_below = folder is not None and isinstance(err.filename, str) and err.filename.startswith(os.fspath(folder))
        if err.errno not in _FULL or not (err.filename is None or is_below):
            raise
        advice = f"{err.strerror}; set TMPDIR to another folder for temporary files"
        raise OSError(err.errno, advice, tempfile.gettempdir()) from err


def name_full_disk(err: BaseException | None, path: Path) -> None:
    """Give an error of a full disk the name of the file that was to be written, if it has no name."""
    if isinstance(err, OSError) and err.errno in _FULL and err.filename is None:
        err.filename = os.fspath(path)


class NewFile:
    """A file that is written without a name, or under a temporary one, and gets its name when it is complete.

    As a context manager it gives the stream. It calls ``commit`` at the end, or ``discard`` after an exception. If a
    write failed, the error of the disk is raised in place of that exception.

    Args:
        path: The final name. A device or a pipe is written to directly. A symbolic link stays; its target is replaced.
        overwrite: Whether an existing file may be replaced.
        asked: What the user has named, for errors; None for the path.

    Raises:
        FileExistsError: The file exists and ``overwrite`` is false.
        OSError: The temporary file cannot be created.
    """

    def __init__(self, path: Path, *, overwrite: bool, asked: str | None = None) -> None:
        self.asked = os.fspath(path) if asked is None else asked
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
        self._temporary = self._path.with_name(temporary_name())
        remove_leftovers(self._path.parent)
        try:
            self._written = Written(self._temporary, self.asked)
        except PermissionError as err:
            raise PermissionError(err.errno, "nothing can be written to this folder", str(self._path.parent)) from err
        except FileNotFoundError as err:
            raise FileNotFoundError(err.errno, "there is no such folder", str(self._path.parent)) from err
        except OSError as err:
            raise OSError(err.errno, err.strerror, self.asked) from err
        self.stream = cast(BinaryIO, io.BufferedRandom(self._written))
        # Removes the temporary file at the end of the program, too
        self._held: list[int] = []  # descriptors that keep the temporary file locked until it has its name
        self._forget = weakref.finalize(self, _remove, self.stream, self._temporary, os.getpid(), self._held)

    def _check_absent(self) -> None:
        if not self._overwrite and self._path.exists():
            raise FileExistsError(f"{str(self._path)!r} exists; it was not replaced")

    @property
    def folder(self) -> str | None:
        """The folder of the file; None for a device or a pipe."""
        return str(self._path.parent) if self._temporary is not None else None

    def commit(self) -> None:
        """Rename the temporary file. If it replaces a file, it gets the permissions of that."""
        self.complete()
        self.rename()

    def complete(self) -> None:
        """Write everything to the disk and close the file, which has a temporary name then."""
        try:
            self.stream.flush()
            if self._temporary is not None:
                os.fsync(self.stream.fileno())
                self._written.give_name(self._temporary)
                self._held.append(self._written.hold())
            self.stream.close()
        except BaseException as err:
            self.discard()
            if isinstance(err, OSError) and self._temporary is not None:
                raise OSError(err.errno, err.strerror, self.asked) from err
            raise

    def rename(self) -> None:
        """Give the complete file its name."""
        if self._temporary is None:
            return
        try:
            self._check_absent()
            with contextlib.suppress(OSError):  # no file is replaced, or the file system has no permissions
                os.chmod(self._temporary, self._path.stat().st_mode & 0o777)
            try:
                if self._overwrite:
                    os.replace(self._temporary, self._path)
                else:
                    link_new(self._temporary, self._path)
            except FileExistsError as err:
                raise FileExistsError(f"{str(self._path)!r} exists; it was not replaced") from err
            except OSError as err:
                raise OSError(err.errno, err.strerror, self.asked) from err
            self._forget.detach()
            _release(self._held)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close and remove the temporary file."""
        if self._temporary is not None:
            self._forget()
        else:
            _close(self.stream)

    def failure(self, err: BaseException | None) -> OSError | None:
        """The error of the disk that is behind an exception; None if another error is."""
        name_full_disk(err, self.asked)
        if self._temporary is None or err is self._written.error or not isinstance(err, Exception):
            return None
        return self._written.error

    def __enter__(self) -> BinaryIO:
        return self.stream

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
            return
        self.discard()
        failure = self.failure(err)
        if failure is not None:
            raise failure from err


class NewFiles:
    """New files that belong together: none gets its name before all are complete. It is a context manager.

    Args:
        overwrite: Whether existing files may be replaced.
    """

    def __init__(self, *, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._files: list[NewFile] = []

    def open(self, path: Path) -> BinaryIO:
        """Begin a file. The first one gets its name last, so that it is never there without the others.

        Raises:
            FileExistsError, OSError: As for ``NewFile``.
        """
        self._files.append(NewFile(path, overwrite=self._overwrite))
        return self._files[-1].stream

    def __enter__(self) -> NewFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for file in self._files:
                file.discard()  # has no effect on a file that has got its name
        for file in self._files:
            failure = file.failure(err)
            if failure is not None:
                raise failure from err

    def _commit(self) -> None:
        for file in self._files:
            file.complete()
        new: list[NewFile] = []
        try:
            for file in reversed(self._files):
                is_new = not os.path.lexists(file.asked)
                file.rename()
                new += [file] * is_new
        except BaseException:
            for file in new:
                os.unlink(file.asked)
            raise


def _remove(stream: BinaryIO, path: pathlib.Path, process: int, held: list[int]) -> None:
    if os.getpid() == process:  # a forked child must not remove the file of its parent
        _close(stream)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        _release(held)


def _release(held: list[int]) -> None:
    while held:
        os.close(held.pop())


def _close(stream: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # flushing may fail; the file is removed anyway
        stream.close()
