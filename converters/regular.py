"""Files found in a folder or named by another file: each must be a regular file, since others may never end."""

from __future__ import annotations

from pathlib import Path

from vqformat.errors import ConversionError


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
    """A file that is held in memory.

    Raises:
        ConversionError: It is too large, or no regular file.
    """
    if not path.is_file():
        raise ConversionError(f"{str(path)!r} is no regular file, as {what} must be")
    size = path.stat().st_size
    if size > limit:
        raise ConversionError(f"{str(path)!r} has {size} bytes; {what} has at most {limit}")
    with open(path, "rb") as stream:
        return stream.read(size)
