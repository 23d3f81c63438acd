"""PyTorch checkpoints as a source: zip files and legacy pickles, read without running anything that is in them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vqformat.errors import ConversionError, EncodeError

from .source import Source

try:
    import torch
except ImportError as err:
    raise ImportError("PyTorch checkpoints need PyTorch; run: pip install 'vqformat[torch]'") from err

from vqformat.torch import source_tensors

OLDEST_TORCH = (2, 10)  # before: CVE-2025-32434 (code runs in spite of weights_only), CVE-2026-24747 (heap corruption)

# Where the state dict lies in a checkpoint, if several of its parts have tensors
_STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params")
_TRAINING_PREFIXES = ("optim", "sched", "lr_sched", "scaler", "amp", "rng")  # state of a training run, no weights
_MAX_DEPTH = 64

# Objects without weights that checkpoints often hold. The unpickler gets _LeftOut in their place: nothing of
# theirs is imported or run. Any other name is refused by PyTorch.
_HARMLESS = (
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "argparse.Namespace",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "datetime.datetime", "datetime.timedelta",
)  # fmt: skip


class _LeftOut:
    """Stands where a checkpoint has an object that is no tensor."""

    def __new__(cls, *args: Any) -> _LeftOut:
        return object.__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def open_pytorch(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint; the tensors of a zip file are mapped, not read, until they are asked for.

    Raises:
        ConversionError: It is damaged, has no tensors, or would need code to be run.
        ImportError: PyTorch is too old to read a checkpoint safely.
    """
    checkpoint = _load(path)
    notes: list[str] = []
    state, nesting = _find_state(checkpoint, notes)
    tensors = _flatten(path, state, notes)
    if not tensors:
        raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint without tensors: it holds {_summary(checkpoint)};"
                              " save a state dict: torch.save(model.state_dict(), …)")  # fmt: skip
    try:
        sources = source_tensors(tensors, notes)
    except EncodeError as err:
        raise ConversionError(f"{str(path)!r}: {err}") from err
    origin: dict[str, Any] = {"format": "pytorch"}
    if nesting:
        origin["nesting"] = nesting
    return Source("pytorch", sources, {}, notes, origin)


def _load(path: Path) -> Any:
    numbers = re.findall(r"\d+", torch.__version__)[:2]
    if tuple(map(int, numbers)) < OLDEST_TORCH:
        raise ImportError(f"PyTorch {torch.__version__} cannot read checkpoints safely (CVE-2026-24747); run:"
                          f" pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'")  # fmt: skip
    can_map = _check_zip(path)
    try:
        with torch.serialization.safe_globals([(_LeftOut, name) for name in _HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except (OSError, MemoryError):
        raise
    except Exception as err:  # the unpickler of a damaged file raises anything: KeyError, EOFError, RuntimeError, …
        raise ConversionError(f"{str(path)!r} {_reason(err)}") from err


def _check_zip(path: Path) -> bool:
    """Compare the CRCs of a zip file, which torch.load does not.

    Returns:
        Whether it can be mapped: it is a zip file and its members are stored as they are.

    Raises:
        ConversionError: A member is damaged.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.CRC:  # torch.serialization.set_crc32_options(False) writes 0
                continue
            try:
                with archive.open(member) as stream:
                    while stream.read(1 << 20):
                        pass
            except Exception as err:  # besides BadZipFile: zlib.error, NotImplementedError, RuntimeError, OSError, …
                raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint whose part {member.filename!r} is damaged"
                                      f" ({err}); fetch or save it again") from err  # fmt: skip
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _reason(err: Exception) -> str:
    """Why a checkpoint was not loaded, and what to do."""
    text = str(err)
    if "UntypedStorage" in text:  # torch.load's own limit: it has old storage types for the old dtypes only
        return ("is a legacy PyTorch checkpoint with a dtype, such as float8 or uint16, that PyTorch reads safely from"
                " its zip format only; load it in the program that wrote it and save it with torch.save")  # fmt: skip
    names = re.findall(r"GLOBAL ([\w.]+)", text)
    if names or "nsupported" in text:
        what = f"the Python object {names[0]}" if names else "Python objects other than tensors"
        return (f"is a PyTorch checkpoint that needs {what}; nothing but tensors is loaded, since a pickle can run"
                " code; in the program that wrote it save a state dict: torch.save(model.state_dict(), …)")  # fmt: skip
    first = text.split(". ", 1)[0].splitlines()[0][:200] if text.strip() else type(err).__name__
    return f"is a PyTorch checkpoint that is damaged or cut short ({first}); fetch or save it again"


def _find_state(checkpoint: Any, notes: list[str]) -> tuple[Any, list[str]]:
    """The part of a checkpoint that is the state dict, and the keys that lead to it."""
    nesting: list[str] = []
    state = checkpoint
    while isinstance(state, Mapping) and len(nesting) < _MAX_DEPTH:
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
                notes.append(f"left out {_path(nesting, other)!r} ({_summary(value)})")
        nesting.append(key)
        state = state[key]
    return state, nesting


def _flatten(path: Path, state: Any, notes: list[str]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name; those of nested ones by names joined with a dot."""
    if isinstance(state, torch.Tensor):
        notes.append("the checkpoint is a single tensor; its name is 'tensor'")
        return {"tensor": state}
    tensors: dict[str, torch.Tensor] = {}
    visited = {id(state): "the checkpoint"}  # each container once: shared ones could make 2^n names, or a cycle

    def visit(container: Any, keys: list[str]) -> None:
        if len(keys) > _MAX_DEPTH:
            raise ConversionError(f"{str(path)!r} is a PyTorch checkpoint nested deeper than {_MAX_DEPTH} levels")
        for key, value in _items(container):
            name = _path(keys, key)
            if isinstance(value, torch.Tensor):
                if name in tensors:
                    raise ConversionError(f"{str(path)!r}: two tensors would have the name {name!r}")
                tensors[name] = value
            elif not _count(value) or str(key).lower().startswith(_TRAINING_PREFIXES):
                notes.append(f"left out {name!r} ({_summary(value)})")
            elif id(value) in visited:
                notes.append(f"left out {name!r}: it is the same object as {visited[id(value)]}")
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
    return ".".join([*keys, str(key)])


def _count(value: Any) -> int:
    """Tensors in nested containers; each container is counted once, so that cycles end."""
    count = 0
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            count += 1
        elif isinstance(item, (Mapping, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(inner for _, inner in _items(item))
    return count


def _summary(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, (Mapping, list, tuple)):
        kind = "dict" if isinstance(value, Mapping) else type(value).__name__
        count = _count(value)
        return f"{kind} of {len(value)} with {count} tensor{'' if count == 1 else 's'}"
    if isinstance(value, _LeftOut):
        return "a Python object"
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else ""
    return f"{type(value).__name__} {text}" if 0 < len(text) <= 40 else type(value).__name__
