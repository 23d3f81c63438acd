"""Files of untrusted model folders: only regular files are opened, and no name leads out of the folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vqformat.errors import ConversionError

_MAX_PATH_NBYTES = 4096
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
          stat.S_IFDIR: "a folder"}  # fmt: skip


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It is something else, or a link that leads to itself. A device may be read without end, and a
            pipe may be waited for without end.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # nonblocking: not to wait here
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # first, since opening a device may have effects
        if kind != stat.S_IFREG:
            raise _refused(path, kind)
        descriptor = os.open(path, flags)
    except OSError as err:
        if err.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        why = "a symbolic link that leads to itself" if err.errno == errno.ELOOP else "a name that is too long"
        raise ConversionError(f"{str(path)[:200]!r} is {why}") from err
    stream = open(descriptor, "rb")  # noqa: SIM115
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:  # it was replaced in between
        stream.close()
        raise _refused(path, kind)
    return stream


def _refused(path: Path, kind: int) -> ConversionError:
    advice = "; send it to stdin, and give '-' as the file" if kind == stat.S_IFIFO else "; give a file"
    return ConversionError(f"{str(path)!r} is {_KINDS.get(kind, 'no file')}, and a regular file is needed{advice}")


def check_regular(path: Path) -> None:
    """Check a file that a library will open, as ``open_regular`` does."""
    open_regular(path).close()


def read_file(path: Path, max_nbytes: int) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It is no regular file, has more than ``max_nbytes`` bytes, or changes while it is read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > max_nbytes:
            raise ConversionError(f"{str(path)!r} has {size:,} bytes, and at most {max_nbytes:,} are read")
        data = stream.read(size + 1)
    if len(data) != size:
        raise ConversionError(f"{str(path)!r} has {size:,} bytes, but gave {len(data):,}: it changed while it was read")
    return data


def is_plain(name: object) -> bool:
    """Whether this names a file in a folder or below it, such as ``w.bin``, ``./w.bin`` or ``dir/w.bin``."""
    if not isinstance(name, str) or set(name) & set("\\:\0") or name.startswith("/") or name.endswith("/"):
        return False
    try:
        nbytes = len(name.encode())
    except UnicodeEncodeError:
        return False
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return bool(parts) and ".." not in parts and nbytes <= _MAX_PATH_NBYTES


def inside(model: Path, name: object, where: str) -> Path:
    """The path of a file that a model names, which need not exist.

    Args:
        model: Path of the model, or of the index of a sharded model.
        name: A name, relative to the folder of the model.
        where: The beginning of an error text, up to the name.

    Raises:
        ConversionError: The name leads out of the folder, or is a link that does.
    """
    if not isinstance(name, str) or not is_plain(name):
        raise ConversionError(f"{where} {str(name)[:100]!r}; a plain file name is allowed, or a path below its folder")
    path = model.parent / name
    try:
        target = Path(os.path.realpath(path))
    except OSError as err:
        raise ConversionError(f"{where} {name[:100]!r}, which cannot be opened: {err.strerror}") from err
    # If the model is a link, its files may lie beside its target: download caches use links
    beside = os.path.dirname(os.path.realpath(model))
    is_below = target.is_relative_to(os.path.realpath(model.parent))
    if not is_below and str(target.parent) != beside and not _is_download_cache(target.parent):
        raise ConversionError(f"{where} {name!r}, a link that leads out of the folder; put the file itself there")
    return path


def _is_download_cache(folder: Path) -> bool:
    """Whether a folder is the ``blobs`` of a Hugging Face cache, to which the files of its ``snapshots`` are links."""
    return folder.name == "blobs" and (folder.parent / "snapshots").is_dir()


def is_plain_name(name: object) -> bool:
    """Whether this names a file in a folder, and nothing elsewhere."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        return False
    return len(name.encode(errors="replace")) <= 255  # the longest name of most file systems


def beside(owner: Path, name: object, what: str) -> Path:
    """The file of a name beside another that names it.

    Args:
        what: What the other is, in the error's text.

    Raises:
        ConversionError: The file would lie elsewhere, is missing, or is no regular file.
    """
    if not is_plain_name(name):
        raise ConversionError(f"{str(owner)!r} is {what} that names the file {str(name)[:100]!r}; a plain file name is"
                              " allowed")  # fmt: skip
    path = owner.with_name(str(name))
    if not path.is_file():
        why = "is a pipe, a device or a folder" if path.exists() else "is not there"
        raise ConversionError(f"{str(owner)!r} is {what} whose file {str(name)!r} {why}; fetch the files of the model"
                              " together")  # fmt: skip
    return path


def read_small(path: Path, limit: int, what: str) -> bytes:
    """Read a file into memory.

    Raises:
        ConversionError: It is too large, or no regular file.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise ConversionError(f"{str(path)!r} has {size} bytes; {what} has at most {limit}")
        return stream.read(size)
