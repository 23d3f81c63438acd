"""From a .vqm back to a checkpoint: PyTorch, safetensors or NumPy."""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from vqformat.bits import pack_nibbles
from vqformat.dtypes import BY_NAME
from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, TensorNotFoundError
from vqformat.files import NewFile

from .source import RESERVED_PREFIX, Source

_SAFETENSORS = {
    "bool": "BOOL", "u8": "U8", "i8": "I8", "u16": "U16", "i16": "I16", "u32": "U32", "i32": "I32", "u64": "U64",
    "i64": "I64", "f16": "F16", "bf16": "BF16", "f32": "F32", "f64": "F64", "c64": "C64", "f8_e4m3fn": "F8_E4M3",
    "f8_e5m2": "F8_E5M2", "f8_e4m3fnuz": "F8_E4M3FNUZ", "f8_e5m2fnuz": "F8_E5M2FNUZ", "f8_e8m0fnu": "F8_E8M0",
    "f4_e2m1fn": "F4",
}  # fmt: skip
_WRITERS = {".pt": "pytorch", ".pth": "pytorch", ".bin": "pytorch", ".safetensors": "safetensors", ".npz": "npz"}


def export(source: Source, dst: Path, *, names: Iterable[str] | None, overwrite: bool) -> list[str]:
    """Write the tensors of a source to a checkpoint whose format its name says.

    Args:
        names: Names or patterns (``*``, ``?``, ``[…]``) of the tensors wanted; None for all.

    Returns:
        Notes: what the format could not keep.

    Raises:
        ConversionError: The format cannot hold a tensor, or is unknown.
        TensorNotFoundError: No tensor has one of the names.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    kind = _WRITERS.get(dst.suffix.lower())
    if kind is None:
        raise ConversionError(f"{str(dst)!r} does not say which format is wanted; end it in {', '.join(_WRITERS)}")
    tensors = select(source.tensors, names)
    notes: list[str] = []
    if kind == "pytorch":
        write = _pytorch_writer()
    else:
        write = _write_safetensors if kind == "safetensors" else _write_npz
    with NewFile(dst, overwrite=overwrite) as stream:
        write(stream, tensors, source, notes)
    return notes


def select(tensors: list[SourceTensor], names: Iterable[str] | None) -> list[SourceTensor]:
    """The tensors that are wanted, in their order; an alias whose target is not wanted stands for itself."""
    if names is None:
        return tensors
    known = {tensor.name for tensor in tensors}
    wanted: set[str] = set()
    for pattern in names:
        found = {pattern} & known or {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise TensorNotFoundError(pattern, known)
        wanted |= found
    kept: dict[str, str] = {}  # tensor that is not an alias -> the first wanted name of it
    result = []
    for tensor in tensors:
        if tensor.name in wanted:
            first = kept.setdefault(tensor.alias_of or tensor.name, tensor.name)
            alias_of = None if first == tensor.name else first
            result.append(SourceTensor(tensor.name, tensor.dtype, tensor.shape, tensor.load, alias_of))
    return result


def _pytorch_writer() -> Any:
    """The function that writes a state dict; found before a file is begun, since it needs PyTorch."""
    try:
        import torch
    except ImportError as err:
        raise ImportError("PyTorch checkpoints need PyTorch; run: pip install 'vqformat[torch]'") from err
    from vqformat.torch import from_numpy

    def write(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
        state: OrderedDict[str, torch.Tensor] = OrderedDict()
        for tensor in tensors:
            if tensor.alias_of is not None:
                state[tensor.name] = state[tensor.alias_of]
                continue
            state[tensor.name] = from_numpy(tensor.load())
            if tensor.dtype in ("u4", "i4"):
                notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which PyTorch does not have: stored as"
                             f" {state[tensor.name].dtype}")  # fmt: skip
        torch.save(state, stream)
        if source.metadata:
            notes.append("a state dict has no metadata: left out")

    return write


def _write_safetensors(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Header, then one tensor after another; data sorted by size of element, so that all of it is aligned."""
    for tensor in tensors:
        if tensor.dtype not in _SAFETENSORS:
            raise ConversionError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which safetensors cannot hold;"
                                  " export to .pt or .npz")  # fmt: skip
        if tensor.dtype == "f4_e2m1fn" and (not tensor.shape or tensor.shape[-1] % 2):
            raise ConversionError(f"tensor {tensor.name!r} has dtype {tensor.dtype} and shape {tensor.shape}:"
                                  " safetensors needs an even last axis; export to .npz")  # fmt: skip
    metadata = {key: value for key, value in source.metadata.items() if isinstance(value, str)}
    lost = [key for key in source.metadata if key not in metadata and not key.startswith(RESERVED_PREFIX)]
    if lost:
        notes.append(f"safetensors metadata holds strings only: left out {', '.join(map(repr, lost))}")
    if source.origin.get("format") == "pytorch":
        metadata.setdefault("format", "pt")  # without it the transformers library refuses the file
    order = sorted(tensors, key=lambda tensor: -BY_NAME[tensor.dtype].bits)
    offset = 0
    entries: dict[str, Any] = {}
    for tensor in order:
        entries[tensor.name] = {"dtype": _SAFETENSORS[tensor.dtype], "shape": list(tensor.shape),
                                "data_offsets": [offset, offset + tensor.nbytes]}  # fmt: skip
        offset += tensor.nbytes
    header = {"__metadata__": metadata} if metadata else {}
    header.update((tensor.name, entries[tensor.name]) for tensor in tensors)
    if "__metadata__" in entries:
        raise ConversionError("a safetensors file cannot hold a tensor of the name '__metadata__'")
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for tensor in order:
        data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
        stream.write(pack_nibbles(data) if BY_NAME[tensor.dtype].bits == 4 else data.data)
        if tensor.alias_of is not None:
            notes.append(f"{tensor.name!r} is tied to {tensor.alias_of!r}; safetensors cannot tell: stored as a copy")


def _write_npz(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """As ``numpy.savez`` writes, with a fixed date; dtypes that NumPy lacks are widened, without loss."""
    with zipfile.ZipFile(stream, "w") as archive:
        for tensor in tensors:
            if "\0" in tensor.name:
                raise ConversionError(f"tensor {tensor.name!r}: a NumPy archive cannot hold a name with U+0000")
            array = tensor.load()
            wide = _numpy_dtype(tensor.dtype)
            if array.dtype != wide:
                array = array.astype(wide)
                notes.append(f"{tensor.name!r} has dtype {tensor.dtype}, which NumPy does not have: stored as {wide},"
                             " same values")  # fmt: skip
            with archive.open(zipfile.ZipInfo(tensor.name + ".npy"), "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)
            if tensor.alias_of is not None:
                notes.append(f"{tensor.name!r} is tied to {tensor.alias_of!r}; NumPy cannot tell: stored as a copy")
    if source.metadata:
        notes.append("a NumPy archive has no metadata: left out")


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """The narrowest common dtype that holds all values: for those of ml_dtypes float32, for 4-bit integers 8 bits."""
    info = BY_NAME[name]
    if name in ("u4", "i4"):
        return np.dtype(info.numpy_name.replace("4", "8"))
    return info.numpy if hasattr(np, info.numpy_name) else np.dtype("<f4")
