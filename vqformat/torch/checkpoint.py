"""Checkpoints and state dicts by their structure in ``vqm.source`` (SPEC 18): what lies beside the tensors."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import ConversionError
from ..format.checkpoint import (
    MAX_TEXT_NBYTES,
    NOTHING,
    Special,
    from_json,
    key_to_json,
    plain_to_json,
    to_json,
)
from ..read.safe_open import safe_open
from .deferred_tensor import DeferredTensor, deferred_tensor

_MAX_PLAIN_DEPTH = 32  # of an extra state


def read_checkpoint(text: Any, tensors: Mapping[str, Any], left_out: list[tuple[str, str]]) -> Any:
    """The checkpoint whose structure is ``checkpoint`` of ``vqm.source``.

    Args:
        tensors: By name.
        left_out: For each value that could not be kept when the ``.vqm`` was written, gets its keys joined by dots, and
            what it was.

    Raises:
        ConversionError: The structure cannot be read.
    """
    if not isinstance(text, str):
        raise ConversionError("the structure of the PyTorch checkpoint in vqm.source is no string; extract to"
                              " .safetensors or .npz")  # fmt: skip
    return from_json(text, tensors, _SPECIALS, left_out)


def split_state(state: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, torch.Tensor], set[str], dict[str, Any]]:
    """Split what ``state_dict()`` gives into tensors and what lies beside them.

    Args:
        notes: Gets a line for each extra state that a ``.vqm`` cannot keep.

    Returns:
        Tensors by name; the names of those in extra states; and ``vqm.source``, which has the other values and the
        versions of the modules. It is empty if there is nothing but tensors and all versions are 1, as those of most
        modules are: ``saved_state`` assumes so, and small files stay small.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    inner = {name for name in tensors if name.rpartition(".")[2] == "_extra_state"}
    kept: OrderedDict[str, Any] = OrderedDict()
    for name, value in state.items():
        is_kept = isinstance(value, torch.Tensor) or _is_plain(value, 0)
        kept[name] = value if is_kept else _Lost(type(value).__name__)
        if not is_kept:
            notes.append(f"left out {name!r}: a {type(value).__name__} is no plain value")
    metadata = getattr(state, "_metadata", None)
    if _is_plain(metadata, 0) and metadata is not None:
        kept._metadata = metadata  # type: ignore[attr-defined]
    versions = metadata.values() if isinstance(metadata, dict) else ()
    if len(tensors) == len(state) and all(version == {"version": 1} for version in versions):
        return tensors, inner, {}

    def leaf(value: Any, keys: list[Any]) -> Any:
        if isinstance(value, torch.Tensor):
            first = name = ".".join(map(str, keys))
            if len(keys) > 1:
                n = 2
                while name in tensors:
                    name, n = f"{first}#{n}", n + 1
                tensors[name] = value
                inner.add(name)
            return {"tensor": name}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return {"device": str(value)} if isinstance(value, torch.device) else {"left_out": value.name}

    text = to_json(kept, leaf)
    if len(text) > MAX_TEXT_NBYTES:
        notes.append(f"left out what lies beside the tensors: it takes {len(text)} bytes, and at most"
                     f" {MAX_TEXT_NBYTES} are allowed")  # fmt: skip
        return tensors, inner, {"format": "pytorch"}
    return tensors, inner, {"format": "pytorch", "checkpoint": text}


class _Lost:
    """Stands for a value that a ``.vqm`` cannot keep."""

    def __init__(self, name: str) -> None:
        self.name = name


def _is_plain(value: Any, depth: int) -> bool:
    """Whether a value goes into a structure and comes back the same."""
    if depth > _MAX_PLAIN_DEPTH:
        return False
    if isinstance(value, (torch.Tensor, torch.dtype, torch.device)):
        return True
    if type(value) in (dict, OrderedDict):
        return all(key_to_json(key) is not NOTHING for key in value) and all(
            _is_plain(item, depth + 1) for item in value.values())  # fmt: skip
    if type(value) in (list, tuple):
        return all(_is_plain(item, depth + 1) for item in value)
    if type(value) is set:
        return all(key_to_json(item) is not NOTHING for item in value)
    return type(value) in (bool, int, float, str, bytes, complex, type(None)) and plain_to_json(value) is not NOTHING


def saved_state(file: safe_open[torch.Tensor], model: torch.nn.Module) -> tuple[OrderedDict[str, Any], set[str]]:
    """The state dict in a file: tensors that are decoded when they are needed, extra states, and ``_metadata``.

    If the file was made of a checkpoint with one state dict in it, what lies beside the state dict is not in it. If the
    file tells no versions, those of the modules of ``model`` that have had one version only are known.

    Returns:
        The state dict, and the names of extra states that are not in the file.

    Raises:
        ConversionError: ``vqm.source`` is from PyTorch, but cannot be read.
    """
    tensors = _Tensors(file)
    origin = file.metadata().get("vqm.source")
    if isinstance(origin, dict) and origin.get("format") == "pytorch" and "checkpoint" in origin:
        left_out: list[tuple[str, str]] = []
        value = read_checkpoint(origin["checkpoint"], tensors, left_out)
        nesting = origin.get("nesting", [])
        for key in nesting if isinstance(nesting, list) else []:
            value = value.get(key) if isinstance(value, dict) and isinstance(key, str) else None
        if isinstance(value, dict) and any(isinstance(item, torch.Tensor) for item in value.values()):
            state = OrderedDict(_items_of(value))
            metadata = getattr(value, "_metadata", None)
            if isinstance(metadata, dict):
                state._metadata = _checked_metadata(metadata)  # type: ignore[attr-defined]
            prefix = "".join(f"{key}." for key in nesting)
            return state, {path.removeprefix(prefix) for path, _ in left_out if path.startswith(prefix)}
    state = OrderedDict(_items_of({name: tensors[name] for name in file}))
    modules = model.named_modules(remove_duplicate=False)
    versions = {name: {"version": 1} for name, module in modules if module._version == 1}
    state._metadata = versions  # type: ignore[attr-defined]
    return state, set()


def _items_of(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What ``load_state_dict`` takes: tensors, and values that stand where modules look for them."""
    for key, value in state.items():
        if isinstance(key, str) and key.rpartition(".")[2] == "_extra_state":
            yield key, _decoded(value)  # the module keeps it
        elif isinstance(key, str) and isinstance(value, (torch.Tensor, tuple, torch.dtype)):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", item) for name, item in _items_of(value))


def _decoded(value: Any) -> Any:
    """A value with its tensors in memory."""
    if isinstance(value, DeferredTensor):
        return value._decode()
    if isinstance(value, dict):
        items = ((key, _decoded(item)) for key, item in value.items())
        return OrderedDict(items) if isinstance(value, OrderedDict) else dict(items)
    if isinstance(value, (list, tuple)):
        found = [_decoded(item) for item in value]
        return found if isinstance(value, list) else tuple(found)
    return value


def _checked_metadata(metadata: dict[Any, Any]) -> dict[str, Any]:
    if not all(isinstance(name, str) and isinstance(value, dict) for name, value in metadata.items()):
        raise ConversionError("the versions of modules in vqm.source are no map of maps")
    # How tensors are loaded is the caller's to say
    return {name: {key: item for key, item in value.items() if key != "assign_to_params_buffers"}
            for name, value in metadata.items()}  # fmt: skip


class _Tensors(Mapping[str, torch.Tensor]):
    """The tensors of a file, each decoded whenever an operation needs its values."""

    def __init__(self, file: safe_open[torch.Tensor]) -> None:
        self._file = file
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            self._made[name] = deferred_tensor(self._file, name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file


def _dtype(parts: list[Any]) -> torch.dtype:
    (name,) = parts
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{str(name)[:40]!r} is no dtype")
    return dtype


def _device(parts: list[Any]) -> torch.device:
    (name,) = parts
    return torch.device(name)


def _numbers(parts: list[Any]) -> list[Any]:
    (tensor,) = parts
    if tensor.ndim != 1:
        raise ValueError("numbers that are no vector")
    found: list[Any] = tensor.tolist()
    return found


def _long_bytes(parts: list[Any]) -> bytes:
    (tensor,) = parts
    if tensor.ndim != 1 or tensor.dtype != torch.uint8:
        raise ValueError("bytes that are no vector of bytes")
    found: bytes = tensor.numpy().tobytes()
    return found


def _long_text(parts: list[Any]) -> str:
    return _long_bytes(parts).decode("utf-8", "surrogatepass")


def _quantized(parts: list[Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that quantized tensors will go; these are what the source had
        return _make_quantized(*parts)


def _make_quantized(scheme: str, values: Any, scale: Any, zero_point: Any, axis: int | None) -> torch.Tensor:
    if scheme == "per_tensor_affine":
        return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero_point))
    if scheme not in ("per_channel_affine", "per_channel_affine_float_qparams") or type(axis) is not int:
        raise ValueError(f"the quantization {str(scheme)[:40]!r}")
    if not 0 <= axis < values.ndim or scale.shape != zero_point.shape or scale.shape != values.shape[axis : axis + 1]:
        raise ValueError("scales that do not fit the axis")
    return torch._make_per_channel_quantized_tensor(values, scale, zero_point, axis)


_SPARSE = {"sparse_csr": torch.sparse_csr, "sparse_csc": torch.sparse_csc, "sparse_bsr": torch.sparse_bsr,
           "sparse_bsc": torch.sparse_bsc}  # fmt: skip


def _sparse(parts: list[Any]) -> torch.Tensor:
    layout, values, *rest = parts
    n_indices = 1 if layout == "sparse_coo" else 2
    indices, size = rest[:n_indices], rest[n_indices:]
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in size):
        raise ValueError("a size that is none")
    if layout == "sparse_coo":
        return torch.sparse_coo_tensor(indices[0], values, size, check_invariants=True)
    if layout not in _SPARSE:
        raise ValueError(f"the layout {str(layout)[:40]!r}")
    compressed, plain = indices
    return torch.sparse_compressed_tensor(compressed, plain, values, size, layout=_SPARSE[layout],
                                          check_invariants=True)  # fmt: skip


_SPECIALS: dict[str, Special] = {
    "dtype": _dtype, "device": _device, "numbers": _numbers, "long_bytes": _long_bytes, "long_text": _long_text,
    "quantized": _quantized, "sparse": _sparse,
}  # fmt: skip
