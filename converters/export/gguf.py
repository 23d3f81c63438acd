"""Tensors as a GGUF file, with the metadata of the one that they came from."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError

from ..gguf import PLAIN, user_metadata
from ..gguf_header import Header, TensorEntry, aligned, read_header
from ..source import Source

_ELSEWHERE = "extract to .safetensors, .pt or .npz"
_TYPES = {dtype: kind for kind, dtype in PLAIN.items()}
_PIECE = 1 << 20  # zeros that are written at once

Part = tuple[int, int, Callable[[], Any]]  # offset, bytes, and what gives them


def write_gguf(stream: BinaryIO, tensors: list[SourceTensor], source: Source, notes: list[str]) -> None:
    """Write the file of which all tensors are there as they were, to the byte; else one that is like it."""
    header, hidden = _header(source)
    by_name = {tensor.name: tensor for tensor in tensors if tensor.name != hidden}
    kinds: dict[str, str] = {}  # of the tensors that are wanted
    for entry in header.tensors:
        if entry.name in by_name:
            kinds[entry.name] = _kind(by_name[entry.name], entry)
    strange = sorted(by_name.keys() - kinds.keys())
    if strange:
        raise ConversionError(f"tensor {strange[0]!r} is no tensor of the GGUF file that the .vqm came from;"
                              f" {_ELSEWHERE}")  # fmt: skip
    _note_metadata(header, source, notes)
    changed = [entry for entry in header.tensors if kinds.get(entry.name, entry.kind) != entry.kind]
    n_missing = len(header.tensors) - len(kinds)
    gaps = _gaps(header, source)
    if changed or n_missing or gaps is None:
        _note_changes(changed, kinds, n_missing, notes)
        header = header.with_tensors((entry.name, entry.shape, kinds[entry.name])
                                     for entry in header.tensors if entry.name in kinds)  # fmt: skip
        gaps = [], aligned(header.end, header.alignment)
    parts = [(header.data_start + entry.offset, entry.nbytes, _loader(by_name[entry.name], entry))
             for entry in header.tensors if entry.nbytes]  # fmt: skip
    parts += [(offset, len(data), partial(np.frombuffer, data, np.uint8)) for offset, data in gaps[0]]
    stream.write(header.data)
    _write(stream, len(header.data), sorted(parts, key=lambda part: part[0]), gaps[1])


def _header(source: Source) -> tuple[Header, str | None]:
    """The header of the file that the ``.vqm`` came from, and the name of the tensor that has it, if one does."""
    origin = source.origin.get("format", "somewhere unknown")
    if origin != "gguf":
        raise ConversionError(f"the .vqm came from {origin!r}, not GGUF: there is no metadata of a model's"
                              f" architecture; {_ELSEWHERE}")  # fmt: skip
    data = source.origin.get("header")
    name = data if isinstance(data, str) else None
    if name is not None:
        tensor = next((tensor for tensor in source.tensors if tensor.name == name and tensor.dtype == "u8"), None)
        data = None if tensor is None else tensor.load().tobytes()
    if not isinstance(data, bytes):
        raise ConversionError(f"the .vqm came from GGUF, but has no header of it; {_ELSEWHERE}")
    header = read_header(io.BytesIO(data), "the header in the .vqm")
    if len(header.data) != len(data):
        raise ConversionError(f"the header in the .vqm has {len(data)} bytes, and ends after {len(header.data)}")
    return header, name


def _kind(tensor: SourceTensor, entry: TensorEntry) -> str:
    """The type that a tensor gets: its old one where it is as it was."""
    if tensor.form is not None and (tensor.form.name, tensor.form.nbytes) == (entry.kind, entry.nbytes):
        return entry.kind
    if tensor.shape != entry.shape:
        raise ConversionError(f"tensor {tensor.name!r} has shape {tensor.shape}, in the GGUF file it had {entry.shape};"
                              f" {_ELSEWHERE}")  # fmt: skip
    if PLAIN.get(entry.kind) == tensor.dtype or not entry.nbytes:
        return entry.kind
    if tensor.dtype not in _TYPES:
        raise ConversionError(f"tensor {tensor.name!r} has dtype {tensor.dtype}, which GGUF cannot hold; {_ELSEWHERE}")
    return _TYPES[tensor.dtype]


def _note_metadata(header: Header, source: Source, notes: list[str]) -> None:
    known = user_metadata(header)
    lost = [key for key, value in source.metadata.items() if key not in known or known[key] != value]
    if lost:
        notes.append(f"the metadata is that of the GGUF file: left out {', '.join(map(repr, lost))}")


def _note_changes(changed: list[TensorEntry], kinds: dict[str, str], n_missing: int, notes: list[str]) -> None:
    if changed:
        olds, news = sorted({entry.kind for entry in changed}), sorted({kinds[entry.name] for entry in changed})
        notes.append(f"{len(changed)} tensors that were {', '.join(olds)} are {', '.join(news)} now: the .vqm has their"
                     " values, coded anew, and no blocks of them")  # fmt: skip
    if n_missing:
        notes.append(f"{n_missing} tensors of the model are left out: programs that run it will miss them")


def _gaps(header: Header, source: Source) -> tuple[list[tuple[int, bytes]], int] | None:
    """What lies between tensors where it is not zero, and the size of the file; None where they are not known."""
    size = source.origin.get("nbytes")
    found = source.origin.get("gaps", [])
    content_nbytes = len(header.data) + sum(entry.nbytes for entry in header.tensors)
    if type(size) is not int or not isinstance(found, list) or header.end > size:
        return None
    if size - content_nbytes > header.most_gap_nbytes:  # nor was a file read that has so much between its tensors
        return None
    gaps = []
    for gap in found:
        match gap:
            case [int(offset), bytes(data)] if 0 <= offset <= size - len(data):
                gaps.append((offset, data))
            case _:
                return None
    return gaps, size


def _loader(tensor: SourceTensor, entry: TensorEntry) -> Callable[[], Any]:
    if tensor.form is not None and tensor.form.name == entry.kind:
        return tensor.form.load
    return tensor.load


def _write(stream: BinaryIO, position: int, parts: list[Part], size: int) -> None:
    """Write parts at their offsets, and zeros between them and after them."""
    end: Part = size, 0, partial(np.empty, 0)
    for offset, nbytes, load in [*parts, end]:
        if offset < position:
            raise ConversionError(f"{nbytes} bytes of the GGUF file would lie at {offset}, and others up to {position}:"
                                  " what the .vqm says of the file is damaged")  # fmt: skip
        while position < offset:
            n = min(offset - position, _PIECE)
            stream.write(bytes(n))
            position += n
        data = np.ascontiguousarray(load()).reshape(-1).view(np.uint8).data
        if len(data) != nbytes:
            raise ConversionError(f"what belongs at byte {offset} of the GGUF file has {len(data)} bytes, not {nbytes}")
        stream.write(data)
        position += nbytes
