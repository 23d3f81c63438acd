"""A folder that is filled under a temporary name, and gets its name when it is complete."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable

Path = str | os.PathLike[str]


class NewFolder:
    """A new folder. As a context manager it gives the path to fill, beside the final one.

    At the end of the context the folder gets its name. After an exception it is removed.

    Args:
        path: The final name. An empty folder of this name is replaced. A symbolic link stays; its target is replaced.
        overwrite: Whether a folder that has files may be replaced, as a whole.
        is_replaceable: Whether this is the kind of folder that may be replaced.

    Raises:
        FileExistsError: The folder has files, and ``overwrite`` is false or ``is_replaceable`` is false of it.
        NotADirectoryError: A file has this name.
        FileNotFoundError: The folder in which it would be does not exist.
    """

    def __init__(self, path: Path, *, overwrite: bool, is_replaceable: Callable[[pathlib.Path], bool]) -> None:
        self._path = pathlib.Path(path).resolve()
        self._asked = os.fspath(path)
        self._overwrite, self._is_replaceable = overwrite, is_replaceable
        self._temporary = self._path.with_name(f".{secrets.token_hex(8)}.vqm.tmp")
        self.check()

    def check(self) -> None:
        """Check what has the name now. Raises as the class does."""
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"{self._asked!r} cannot be made: there is no folder {str(self._path.parent)!r}")
        if not os.path.lexists(self._path):
            return
        if not self._path.is_dir():
            raise NotADirectoryError(f"{self._asked!r} is no folder")
        if not any(self._path.iterdir()):
            return
        if not self._overwrite:
            raise FileExistsError(f"{self._asked!r} is a folder that is not empty; it was not replaced")
        if not self._is_replaceable(self._path):
            raise FileExistsError(f"{self._asked!r} is no folder of a model with its configuration, or is in use"
                                  " otherwise; it was not replaced")  # fmt: skip

    def __enter__(self) -> pathlib.Path:
        self._temporary.mkdir()
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, err: object, trace: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)  # absent if it has got its name

    def _commit(self) -> None:
        self.check()
        aside = self._path.with_name(f".{secrets.token_hex(8)}.vqm.tmp")
        before = self._path.exists()
        try:
            if before:
                os.rename(self._path, aside)
            os.rename(self._temporary, self._path)
        except OSError as err:
            if before and not self._path.exists():
                with contextlib.suppress(OSError):
                    os.rename(aside, self._path)
            raise OSError(err.errno, err.strerror, self._asked) from err
        shutil.rmtree(aside, ignore_errors=True)
