"""The files of a model: one file, or the shards that an index names; which of both a path stands for."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..errors import FormatError
from ..files import Path, opened
from ..format.shard_index import INDEX_SUFFIX, MAX_INDEX_JSON_NBYTES, ShardIndex
from ..hub import is_hub_file, is_hub_path


def index_of(source: object) -> Path | BinaryIO | None:
    """The index of shards that a model's path stands for; None if it stands for one file.

    Args:
        source: The path of an index, of a folder that has one, or of a ``.vqm`` that does not exist while its index
            does. An index may also be a file of fsspec.
    """
    if is_hub_path(source):
        return source if source.endswith(INDEX_SUFFIX) else None
    if not isinstance(source, (str, os.PathLike)):
        is_index = str(getattr(source, "path", "")).endswith(INDEX_SUFFIX) and hasattr(source, "fs")
        return source if is_index else None  # type: ignore[return-value]
    path = pathlib.Path(source)
    if path.name.endswith(INDEX_SUFFIX):
        return path
    if path.is_dir():
        found = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        usual = path / f"model{INDEX_SUFFIX}"
        return usual if usual in found else found[0] if len(found) == 1 else None
    index = path.with_name(f"{path.name.removesuffix('.vqm')}{INDEX_SUFFIX}") if path.name else path
    return index if path.suffix == ".vqm" and not os.path.lexists(path) and index.is_file() else None


def same_model(source: Path, target: Path) -> bool:
    """Whether both are the same file, or are in shards with the same index."""
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        return True
    index = index_of(source)
    if not isinstance(index, pathlib.Path) or not index.is_file():
        return False
    name = pathlib.Path(target).name.removesuffix(".index.json").removesuffix(".vqm") + INDEX_SUFFIX
    other = pathlib.Path(target).with_name(name)
    return other.is_file() and other.samefile(index)


class opened_model:
    """Context manager that gives the stream of a model in one file, or the ``Shards`` of one in several.

    Args:
        source: As for ``index_of``; or any path or stream of a ``.vqm``; or shards in memory.
        has_own_position, in_order: As for ``opened``.
    """

    def __init__(
        self, source: Path | BinaryIO | Shards, *, has_own_position: bool = False, in_order: bool = True
    ) -> None:
        self._source, self._how = source, {"has_own_position": has_own_position, "in_order": in_order}
        self._opened: opened | Shards | None = None

    def __enter__(self) -> BinaryIO | Shards:
        if isinstance(self._source, Shards):
            return self._enter(self._source)
        index = index_of(self._source)
        if index is not None:
            return self._enter(Shards(index, **self._how))
        if is_hub_path(self._source) and self._source.endswith(".vqm") and not is_hub_file(self._source):
            other = self._source.removesuffix(".vqm") + INDEX_SUFFIX
            if is_hub_file(other):
                return self._enter(Shards(other, **self._how))
        return self._enter(opened(self._source, **self._how))

    def _enter(self, inner: opened | Shards) -> BinaryIO | Shards:
        given = inner.__enter__()
        self._opened = inner
        return given

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        if self._opened is not None:
            self._opened.__exit__(kind, err, trace)

    def for_other_process(self) -> Path | BinaryIO | Shards:
        """What opens the same model in another process. Raises as ``opened`` does."""
        assert self._opened is not None
        return self._opened.for_other_process()


class Shards:
    """The shards of a model. As a context manager it reads and checks their index.

    Args:
        source: The path of the index, or a file of fsspec.
        has_own_position, in_order: As for ``opened``, of each shard.

    Attributes:
        label: Name of the index, for error texts.
        text: The bytes of the index.
        index: What it says.
        watch: Given each stream of a shard, returns what is read in its place; None for the stream itself.

    Raises:
        FormatError: It is no index, or a shard is a link that leads out of the folder.
        FileNotFoundError: It does not exist, or shards are missing.
    """

    text: bytes
    index: ShardIndex

    def __init__(
        self, source: Path | BinaryIO, *, has_own_position: bool = False, in_order: bool = True
    ) -> None:
        self._source: Any = source
        self._how = {"has_own_position": has_own_position, "in_order": in_order}
        self._path = None if is_hub_path(source) or not isinstance(source, (str, os.PathLike)) else pathlib.Path(source)
        self.label = str(getattr(source, "path", source)) if self._path is None else str(source)
        self.watch: Callable[[BinaryIO], BinaryIO] | None = None
        self._current: opened | None = None
        self._held: list[bytes] = []  # the bytes of the shards, if they are in memory

    def __enter__(self) -> Shards:
        if self._held:
            return self
        self.read_index()
        missing = self.missing()
        if missing:
            names = ", ".join(map(repr, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise FileNotFoundError(errno.ENOENT, f"{len(missing)} of its {len(self)} shards are not beside it:"
                                    f" {names}", self.label)  # fmt: skip
        return self

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        self.end()

    def __len__(self) -> int:
        return len(self.index.shards)

    def read_index(self) -> None:
        """Read and check the index alone."""
        if self._path is not None and not stat.S_ISREG(os.stat(self._path).st_mode):
            raise FormatError(f"{self.label!r} is no regular file")
        if self._path is not None and not is_hub_path(self._source):
            self._path = pathlib.Path(os.path.abspath(self._path))  # the working directory may change
        with opened(self._source) as stream:
            if self._path is None and not is_hub_path(self._source):
                stream.seek(0)
            self.text = stream.read(MAX_INDEX_JSON_NBYTES + 1)
        self.index = ShardIndex.parse(self.text, self.label)

    def missing(self) -> list[str]:
        """Names of the shards that are not there. Where asking needs a request, none is missing yet."""
        return [] if self._path is None else [name for at, name in enumerate(self.index.shards) if not self._is_at(at)]

    def path(self, at: int) -> pathlib.Path:
        """The path of a shard of a local model.

        Raises:
            FormatError: It is a link that leads out of the folder, or no regular file.
        """
        assert self._path is not None
        path = self._path.with_name(self.index.shards[at])
        beside = {os.path.realpath(self._path.parent), os.path.dirname(os.path.realpath(self._path))}
        folder = pathlib.Path(os.path.realpath(path)).parent
        # The files of a snapshot in the cache of the Hugging Face Hub are links to its blobs
        is_cache = folder.name == "blobs" and (folder.parent / "snapshots").is_dir()
        if str(folder) not in beside and not is_cache:
            raise FormatError(f"{self.label!r}: the shard {path.name!r} is a link that leads out of the folder")
        if not path.is_file() and os.path.lexists(path):
            raise FormatError(f"{self.label!r}: the shard {path.name!r} is no regular file")
        return path

    def _is_at(self, at: int) -> bool:
        return self.path(at).is_file()

    @property
    def nbytes(self) -> int:
        """Bytes of all shards of a local model; 0 for another one."""
        return 0 if self._path is None else sum(self.path(at).stat().st_size for at in range(len(self)))

    def open(self, at: int) -> opened:
        """A context manager that gives the stream of a shard, by its position."""
        if self._held:
            return opened(io.BytesIO(self._held[at]), **self._how)
        name = self.index.shards[at]
        if self._path is not None:
            return opened(self.path(at), **self._how)
        folder = self.label.rpartition("/")[0]
        if is_hub_path(self._source):
            return opened(f"{folder}/{name}", **self._how)
        how = {"block_size": self._source.blocksize, "cache_type": "readahead" if self._how["in_order"] else "none"}
        return _OwnStream(self._source.fs.open(f"{folder}/{name}", "rb", **how), **self._how)

    @contextlib.contextmanager
    def naming(self, at: int) -> Iterator[None]:
        """Context in which errors of a shard name it: their offsets are in its file."""
        try:
            yield
        except FormatError as err:
            name = repr(self.index.shards[at])
            if not err.message.startswith(name):
                err.message = f"{name}: {err.message}"
            raise

    def in_memory(self) -> Shards:
        """These shards, of which all bytes are in memory from now on."""
        held = []
        for at in range(len(self)):
            with self.open(at) as stream:
                held.append(stream.read())
        self._held = held
        return self

    def begin(self, at: int) -> BinaryIO:
        """Close the shard before, open one, and give its stream, or what ``watch`` gives in its place."""
        self.end()
        self._current = self.open(at)
        stream = self._current.__enter__()
        return stream if self.watch is None else self.watch(stream)

    def end(self) -> None:
        """Close the shard that ``begin`` has opened."""
        if self._current is not None:
            self._current.__exit__(None, None, None)
            self._current = None

    def check_names(self, at: int, names: list[str]) -> None:
        """Compare the tensors of a whole shard with the index.

        Raises:
            FormatError: It has not those that the index places there.
        """
        for name in names:
            self.check_place(at, name)
        if len(names) != sum(place == at for place in self.index.places.values()):
            found = set(names)
            lost = next(name for name, place in self.index.places.items() if place == at and name not in found)
            raise FormatError(f"{self.label!r} says that {self.index.shards[at]!r} has tensor {lost!r}, which is not"
                              " there")  # fmt: skip

    def check_place(self, at: int, name: str) -> None:
        """Raise FormatError unless the index places a tensor in this shard."""
        place = self.index.places.get(name)
        if place != at:
            said = "names no such tensor" if place is None else f"places it in {self.index.shards[place]!r}"
            raise FormatError(f"{self.index.shards[at]!r} has tensor {name!r}; {self.label!r} {said}")

    def check_digest(self, at: int, digest: bytes) -> None:
        """Raise FormatError unless a shard is the one for which the index was written."""
        if digest != self.index.digests[at]:
            raise FormatError(f"{self.index.shards[at]!r} is of another model than {self.label!r}, or of another"
                              f" version: its digest is {digest.hex()}, in the index"
                              f" {self.index.digests[at].hex()}")  # fmt: skip

    def for_other_process(self) -> Path | BinaryIO | Shards:
        """What opens the same shards in another process."""
        if self._held:
            return self
        if self._path is not None:
            return str(self._path)
        return opened(self._source).for_other_process() if not is_hub_path(self._source) else self._source


class _OwnStream(opened):
    """A stream that is closed at the end."""

    def __exit__(self, kind: object, err: object, trace: object) -> None:
        self._source.close()  # type: ignore[union-attr]
