"""New files of one model: its shards and their index, which get their names together."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Sequence

from .files import NewFile, Path
from .leftovers import temporary_name


class NewShard(NewFile):
    """A new file that is told its name when it is complete.

    Args:
        folder: Its folder.
        asked: What the user has named, for errors.
    """

    def __init__(self, folder: pathlib.Path, asked: str) -> None:
        super().__init__(folder / temporary_name(), overwrite=True, asked=asked)

    def rename_to(self, path: pathlib.Path) -> None:
        """Give the complete file its name, which no file has."""
        self.asked, self._path, self._overwrite = str(path), path, False
        self.rename()


class NewShards:
    """The new files of one model. None gets its name before all are complete.

    Args:
        path: The name that the model would have in one file.
        earlier: Tells of the names of files in the folder which are those of an earlier model of this name.
        overwrite: Whether an earlier model may be replaced, as a whole.

    Raises:
        FileExistsError: There is one, and ``overwrite`` is false.
    """

    def __init__(self, path: Path, earlier: Callable[[str], bool], *, overwrite: bool) -> None:
        self._asked = os.fspath(path)
        self._folder = pathlib.Path(path).parent
        self._earlier, self._overwrite = earlier, overwrite
        self._check_absent()
        self._files: list[NewShard] = []

    def _check_absent(self) -> list[pathlib.Path]:
        """The files of an earlier model, which may be replaced."""
        if not self._folder.is_dir():
            return []  # opening a file tells that
        found = sorted(self._folder / name for name in os.listdir(self._folder) if self._earlier(name))
        for path in found:
            if path.is_dir() or not (path.is_file() or path.is_symlink()):
                raise FileExistsError(f"{str(path)!r} is no file, and is in the way")
        if found and not self._overwrite:
            raise FileExistsError(f"{str(found[0])!r} exists; it was not replaced")
        return found

    def open(self) -> NewShard:
        """Begin a file.

        Raises:
            OSError: It cannot be made.
        """
        self._files.append(NewShard(self._folder, self._asked))
        return self._files[-1]

    def commit(self, names: Sequence[str]) -> None:
        """Give the complete files their names, in this order. What was there before under such names is removed.

        If that fails, what was there before is put back.
        """
        aside: list[tuple[pathlib.Path, pathlib.Path]] = []
        named: list[pathlib.Path] = []
        try:
            # The index, whose name sorts last, first: no index is beside shards that are not its own
            for path in reversed(self._check_absent()):
                aside.append((path, path.with_name(temporary_name())))
                os.rename(*aside[-1])
            for file, name in zip(self._files, names, strict=True):
                file.rename_to(self._folder / name)
                named.append(self._folder / name)
        except BaseException:
            for path in named:
                path.unlink()
            for path, temporary in reversed(aside):
                with contextlib.suppress(OSError):
                    os.rename(temporary, path)
            raise
        finally:
            self.discard()
        for _, temporary in aside:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def discard(self) -> None:
        """Remove the files that have no name yet."""
        for file in self._files:
            file.discard()
