"""Reading PyTorch checkpoints, zip files and legacy pickles, without running code that is in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.limits import MAX_NAME_NBYTES

from .detect import detect_format
from .sharding import check_shard, read_shards
from .source import Source
from .training import is_training_key

try:
    import torch
except ImportError as err:
    raise ImportError("PyTorch checkpoints need PyTorch; run: pip install 'vqformat[torch]'") from err

from vqformat.torch import source_tensors, to_numpy

from .pytorch_structure import MAX_DEPTH, to_json

OLDEST_TORCH = (2, 10)  # older: CVE-2025-32434 (weights_only runs code), CVE-2026-24747 (heap corruption)

# Keys of the state dict in a checkpoint, if several of its parts have tensors
_STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params")

# Classes and functions of objects without weights that are common in checkpoints. The unpickler gets _LeftOut instead,
# so that none of their code is imported or run. PyTorch refuses all other names.
_HARMLESS = (
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "argparse.Namespace",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta",
)  # fmt: skip


class _LeftOut:
    """Placeholder for an object of a checkpoint that is not a tensor."""

    def __new__(cls, *args: Any) -> _LeftOut:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def open_pytorch(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint. The tensors of a zip file are memory-mapped.

    Args:
        include_optimizer: Whether everything beside the state dict is included. Then its tensors are exact, and
            ``origin["checkpoint"]`` has the structure of the checkpoint.

    Raises:
        ConversionError: It is damaged, has no tensors, or cannot be loaded without running code.
        ImportError: PyTorch is too old to read a checkpoint safely.
    """
    checkpoint = _load(path)
    notes: list[str] = []
    left_out: list[str] = []
    state, nesting = _find_state(checkpoint, left_out)
    tensors = _flatten(path, state, notes, left_out)
    origin: dict[str, Any] = {"format": "pytorch"}
    if nesting:
        origin["nesting"] = nesting
    weights = set(tensors)
    if include_optimizer:
        try:
            structure = to_json(checkpoint, tensors, notes)
        except ConversionError as err:
            raise ConversionError(f"{str(path)!r}: {err}") from err
        if checkpoint is not state or left_out or notes:  # more than a plain state dict
            origin["checkpoint"] = structure
    else:
        notes.extend(left_out)
        if _count(checkpoint) > len({id(tensor) for tensor in tensors.values()}):
            notes.append("--include-optimizer keeps what was left out")
    if not tensors:
        raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint without tensors: it holds {_summary(checkpoint)};"
                              " save a state dict: torch.save(model.state_dict(), …)")  # fmt: skip
    sources = [replace(source, is_exact=source.name not in weights) for source in _sources(path, tensors, notes)]
    return Source("pytorch", sources, {}, notes, origin)


def open_sharded(index: Path) -> Source:
    """Open a sharded model by its ``*.bin.index.json``. Shards are in the order of their names; one is open at a time.

    Raises:
        ConversionError: A shard is missing or damaged, or lacks a tensor of the index.
        ImportError: PyTorch is too old to read a checkpoint safely.
    """
    opened = _OpenShard()
    notes: list[str] = []
    sources: list[SourceTensor] = []
    for shard, placed in read_shards(index).items():
        path = index.parent / shard
        kind, _ = detect_format(path)
        if kind != "pytorch":
            raise ConversionError(f"{str(path)!r} is of format {kind}; the shard of a PyTorch checkpoint was expected")
        _check_zip(path)
        tensors = opened.tensors(path, notes)
        check_shard(index, shard, placed, tensors, notes)
        wanted = {name: tensor for name, tensor in tensors.items() if name in placed}
        sources.extend(replace(source, load=opened.loader(path, source.name))
                       for source in _sources(path, wanted, notes))  # fmt: skip
    return Source("pytorch", sources, {}, notes, {"format": "pytorch"}, opened.close)


class _OpenShard:
    """Keeps only the last shard open: a legacy shard is in memory, and the pages of a mapped one take memory, too."""

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def tensors(self, path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
        if path != self._path:
            self.close()  # before the next is loaded
            self._tensors, self._path = _flatten(path, _load(path, is_checked=True), notes, notes), path
        return self._tensors

    def loader(self, path: Path, name: str) -> Callable[[], npt.NDArray[Any]]:
        def load() -> npt.NDArray[Any]:
            tensor = self.tensors(path, []).get(name)
            if tensor is None:
                raise ConversionError(f"{str(path)!r} changed while it was read: {name!r} is not there any more")
            return to_numpy(tensor, name)

        return load


def _sources(path: Path, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> list[SourceTensor]:
    try:
        return source_tensors(tensors, notes)
    except EncodeError as err:
        raise ConversionError(f"{str(path)!r}: {err}") from err


def _load(path: Path, *, is_checked: bool = False) -> Any:
    numbers = re.findall(r"\d+", torch.__version__)[:2]
    if tuple(map(int, numbers)) < OLDEST_TORCH:
        raise ImportError(f"PyTorch {torch.__version__} cannot read checkpoints safely (CVE-2026-24747); run:"
                          f" pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'")  # fmt: skip
    can_map = _can_map(path) if is_checked else _check_zip(path)
    try:
        with torch.serialization.safe_globals([(_LeftOut, name) for name in _HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except (OSError, MemoryError):
        raise
    except Exception as err:  # the unpickler of a damaged file raises anything: KeyError, EOFError, RuntimeError, …
        raise ConversionError(f"{str(path)!r} {_reason(err)}") from err


def _check_zip(path: Path) -> bool:
    """Check the CRCs of a zip file, which torch.load does not check.

    Returns:
        Whether it can be memory-mapped, see ``_can_map``.

    Raises:
        ConversionError: A member is damaged.
    """
    for member, archive in _members(path):
        if not member.CRC:  # torch.serialization.set_crc32_options(False) writes 0
            continue
        try:
            with archive.open(member) as stream:
                while stream.read(1 << 20):
                    pass
        except Exception as err:  # besides BadZipFile: zlib.error, NotImplementedError, RuntimeError, OSError, …
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint whose part {member.filename!r} is damaged"
                                  f" ({err}); fetch or save it again") from err  # fmt: skip
    return _can_map(path)


def _can_map(path: Path) -> bool:
    """Whether a checkpoint can be memory-mapped: it is a zip file without compressed members."""
    methods = {member.compress_type for member, _ in _members(path)}
    return methods == {zipfile.ZIP_STORED}


def _members(path: Path) -> Iterator[tuple[zipfile.ZipInfo, zipfile.ZipFile]]:
    """The members of a zip file, with the archive; none for a legacy file.

    Raises:
        ConversionError: It is a zip archive that is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as err:
        raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint and a zip archive that is damaged; fetch"
                              " or save it again") from err  # fmt: skip
    with archive:
        for member in archive.infolist():
            yield member, archive


def _reason(err: Exception) -> str:
    """The reason why a checkpoint was not loaded, and what to do."""
    text = str(err)
    if "UntypedStorage" in text:  # torch.load has legacy storage types only for old dtypes
        return ("is a legacy PyTorch checkpoint with a dtype, such as float8 or uint16, that PyTorch reads safely from"
                " its zip format only; load it in the program that wrote it and save it with torch.save")  # fmt: skip
    if "nested jagged" in text:
        return ("is a PyTorch checkpoint with a nested tensor; in the program that wrote it store the parts,"
                " tensor.unbind(), under names of their own")  # fmt: skip
    names = re.findall(r"GLOBAL ([\w.]+)", text)
    if names or "nsupported" in text:
        what = f"the Python object {names[0]}" if names else "Python objects other than tensors"
        return (f"is a PyTorch checkpoint that needs {what}; nothing but tensors is loaded, since a pickle can run"
                " code; in the program that wrote it save a state dict: torch.save(model.state_dict(), …)")  # fmt: skip
    first = text.split(". ", 1)[0].splitlines()[0][:200] if text.strip() else type(err).__name__
    return f"is a PyTorch checkpoint that is damaged or cut short ({first}); fetch or save it again"


def _find_state(checkpoint: Any, left_out: list[str]) -> tuple[Any, list[str]]:
    """The state dict in a checkpoint, and the keys that lead to it.

    Args:
        left_out: A line is appended for each part that is left out.
    """
    nesting: list[str] = []
    state = checkpoint
    while isinstance(state, Mapping) and len(nesting) < MAX_DEPTH:
        key = next((key for key in _STATE_KEYS if isinstance(state.get(key), Mapping) and _count(state[key])), None)
        if key is None:
            branches = [key for key, value in state.items() if isinstance(value, Mapping) and _count(value)]
            if len(branches) != 1 or any(isinstance(value, torch.Tensor) for value in state.values()):
                break
            key = branches[0]
            if not isinstance(key, str):
                break
        for other, value in state.items():
            if other != key:
                left_out.append(f"left out {_path(nesting, other)!r} ({_summary(value)})")
        nesting.append(key)
        state = state[key]
    return state, nesting


def _flatten(path: Path, state: Any, notes: list[str], left_out: list[str]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name. The keys of nested ones are joined with dots.

    Args:
        notes: A line is appended for names that a user may not expect.
        left_out: A line is appended for each value that is not a tensor of the model.
    """
    if isinstance(state, torch.Tensor):
        notes.append("the checkpoint is a single tensor; its name is 'tensor'")
        return {"tensor": state}
    tensors: dict[str, torch.Tensor] = {}
    visited = {id(state): "the checkpoint"}  # n nested shared containers could make 2^n names, or a cycle

    def visit(container: Any, keys: list[str]) -> None:
        if len(keys) > MAX_DEPTH:
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint nested deeper than {MAX_DEPTH} levels")
        for key, value in _items(container):
            name = _path(keys, key)
            if isinstance(value, torch.Tensor):
                if len(name) > MAX_NAME_NBYTES:
                    raise ConversionError(f"{str(path)!r}: the name {name[:40]!r}… is longer than {MAX_NAME_NBYTES}"
                                          " bytes")  # fmt: skip
                if name in tensors:
                    raise ConversionError(f"{str(path)!r}: two tensors would have the name {name!r}")
                tensors[name] = value
            elif not _count(value) or is_training_key(key):
                left_out.append(f"left out {name!r} ({_summary(value)})")
            elif id(value) in visited:
                left_out.append(f"left out {name!r}: it is the same object as {visited[id(value)]}")
            else:
                visited[id(value)] = repr(name)
                notes.append(f"the names of the tensors in {name!r} begin with {name + '.'!r}")
                visit(value, [*keys, str(key)])

    visit(state, [])
    return tensors


def _items(container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, Mapping):
        yield from container.items()
    elif isinstance(container, (list, tuple)):
        yield from enumerate(container)


def _path(keys: list[str], key: Any) -> str:
    """Keys joined with dots. A name that is too long is cut, but stays too long, so that it is refused."""
    return ".".join([*keys, str(key)])[: MAX_NAME_NBYTES + 1]


def _count(value: Any) -> int:
    """Number of tensors in nested containers. Each object is counted once, also because of cycles."""
    count = 0
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            count += id(item) not in seen
            seen.add(id(item))
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(inner for _, inner in _items(item))
    return count


def _summary(value: Any) -> str:
    """A description of a value in a few words."""
    if isinstance(value, torch.Tensor):
        if value.is_nested:
            return "nested tensor"
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, (Mapping, list, tuple)):
        kind = "dict" if isinstance(value, Mapping) else type(value).__name__
        count = _count(value)
        return f"{kind} of {len(value)} with {count} tensor{'' if count == 1 else 's'}"
    if isinstance(value, _LeftOut):
        return "a Python object"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return f"{type(value).__name__} {text}" if 0 < len(text) <= 40 else type(value).__name__
