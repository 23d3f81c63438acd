"""Flax's MessagePack files (``flax.serialization.to_bytes``) as a source, read without Flax and JAX.

Names are the keys of nested dicts joined with dots, as transformers joins them in the safetensors files of its Flax
models: such a file extracted from the ``.vqm`` loads there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import BY_NAME, DTYPES
from vqformat.format.limits import MAX_RANK, MAX_TENSORS

from .file_region import Region
from .msgpack_walk import Binary, Extension, Walker
from .sharding import check_shard, read_shards
from .source import Source, take_metadata
from .training_keys import is_training_key, without_state

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # types of extensions
_MAX_METADATA_LENGTH = 1 << 20  # names and values
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {info.numpy_name: info.name for info in DTYPES if info.bits >= 8}


class _Array(NamedTuple):
    """An array of the file; its data lie there in C order, in one piece or in several."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Binary, ...]


def open_flax(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a file of parameters, or of a whole train state.

    Args:
        include_optimizer: Whether ``opt_state`` and the like are kept too, exactly.

    Raises:
        ConversionError: It is damaged, or has no arrays.
    """
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, 2)
            walker = Walker(stream, 0, size)
            tree = walker.value()
            if walker.position != size:
                raise ValueError(f"{size - walker.position} bytes follow its value")
            return _source(path, stream, tree, include_optimizer=include_optimizer)
    except (ValueError, EncodeError) as err:
        if isinstance(err, ConversionError):
            raise
        raise ConversionError(f"{str(path)!r} is a MessagePack file, perhaps of Flax, that cannot be read:"
                              f" {err}") from err  # fmt: skip


def open_sharded(index: Path) -> Source:
    """Open a model in several files by its ``*.msgpack.index.json``, in which slashes join the keys.

    Raises:
        ConversionError: A shard is missing or damaged, or does not have what the index says.
    """
    notes: list[str] = []
    tensors: list[SourceTensor] = []
    for shard, placed in read_shards(index).items():
        source = open_flax(index.parent / shard, include_optimizer=True)
        names = {name.replace("/", ".") for name in placed}
        check_shard(index, shard, names, [tensor.name for tensor in source.tensors], notes)
        tensors += [tensor for tensor in source.tensors if tensor.name in names]
    return Source("flax", tensors, {}, notes, {"format": "flax"}, left_out=list(notes))


def _source(path: Path, stream: BinaryIO, tree: Any, *, include_optimizer: bool) -> Source:
    whole = Region.of_file(path)
    tensors: dict[str, SourceTensor] = {}
    metadata: dict[str, Any] = {}
    n_left_out, room = 0, _MAX_METADATA_LENGTH
    for keys, leaf in _leaves(stream, tree, []):
        name = ".".join(keys)
        if isinstance(leaf, _Array):
            check_name(name)
            check_shape(name, leaf.shape)
            if name in tensors or len(tensors) == MAX_TENSORS:
                raise ValueError(f"two arrays would have the name {name!r}, or there are more than {MAX_TENSORS}")
            is_exact = len(keys) > 1 and is_training_key(keys[0])
            tensors[name] = SourceTensor(name, leaf.dtype, leaf.shape, _loader(whole, name, leaf), is_exact=is_exact,
                                         output_axis=-1)  # fmt: skip
        elif isinstance(leaf, (str, int)) and len(name) + len(str(leaf)) <= room:
            metadata[name] = leaf
            room -= len(name) + len(str(leaf))
        else:
            n_left_out += 1
    if not tensors:
        raise ValueError("it has no arrays of Flax")
    notes: list[str] = []
    if n_left_out:
        notes.append(f"left out {n_left_out} values that are no arrays, no whole numbers and no short text")
    sources = without_state(list(tensors.values()), notes, include_optimizer=include_optimizer)
    if not sources:
        raise ValueError("it has no arrays but the state of training; --include-optimizer keeps it")
    left_out = list(notes)
    return Source("flax", sources, take_metadata(metadata, notes), notes, {"format": "flax"}, left_out=left_out)


def _leaves(stream: BinaryIO, value: Any, keys: list[str]) -> Iterator[tuple[list[str], Any]]:
    """Arrays and other values, and the keys that lead to them."""
    if isinstance(value, Extension):
        yield keys, _array(stream, value)
    elif isinstance(value, dict) and _CHUNKED in value:
        yield keys, _chunked(stream, value)
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(stream, item, [*keys, str(key)])
    else:
        yield keys, value


def _array(stream: BinaryIO, value: Extension) -> _Array | None:
    """An array; None for a complex number of Python."""
    if value.kind == _COMPLEX:
        return None
    if value.kind not in (_NDARRAY, _SCALAR):
        raise ValueError(f"it has an extension of type {value.kind}, which Flax does not write")
    parts = Walker(stream, value.start, value.start + value.size).value()
    if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[2], Binary):
        raise ValueError(f"the array at byte {value.start} is no list of shape, dtype and data")
    shape, dtype, data = parts
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"an array has dtype {str(dtype)[:40]}, which a .vqm cannot hold")
    return _checked(_Array(_DTYPES[dtype], _shape(shape), (data,)))


def _chunked(stream: BinaryIO, value: dict[Any, Any]) -> _Array:
    """An array of more than 1 GiB. Flax cuts it into flat arrays, in dicts whose keys are numbers."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        raise ValueError("an array in chunks has no shape or no chunks")
    arrays = [_array(stream, chunk) if isinstance(chunk, Extension) else None for chunk in _ordered(chunks)]
    dtypes = {array.dtype if array else "" for array in arrays}
    if len(dtypes) != 1 or "" in dtypes:
        raise ValueError("the chunks of an array are none, or of several dtypes")
    pieces = tuple(piece for array in arrays if array for piece in array.pieces)
    return _checked(_Array(dtypes.pop(), _shape(_ordered(shape)), pieces))


def _ordered(items: dict[Any, Any]) -> list[Any]:
    keys = [str(number) for number in range(len(items))]
    if set(map(str, items)) != set(keys):
        raise ValueError("a list of an array in chunks has a gap")
    by_key = {str(key): item for key, item in items.items()}
    return [by_key[key] for key in keys]


def _shape(sizes: Any) -> tuple[int, ...]:
    is_shape = isinstance(sizes, list) and len(sizes) <= MAX_RANK and all(type(n) is int and n >= 0 for n in sizes)
    if not is_shape:
        raise ValueError(f"an array has the shape {str(sizes)[:80]}")
    return tuple(sizes)


def _checked(array: _Array) -> _Array:
    needed = BY_NAME[array.dtype].nbytes(prod(array.shape))
    have = sum(piece.size for piece in array.pieces)
    if needed != have:
        raise ValueError(f"an array of shape {array.shape} and dtype {array.dtype} needs {needed} bytes, but {have} are"
                         " there")  # fmt: skip
    return array


def _loader(whole: Region, name: str, array: _Array) -> Callable[[], npt.NDArray[Any]]:
    def load() -> npt.NDArray[Any]:
        data = np.empty(sum(piece.size for piece in array.pieces), np.uint8)
        done = 0
        for piece in array.pieces:
            try:
                whole.fill(data[done : done + piece.size], piece.start)
            except ValueError as err:
                raise ConversionError(f"{whole.label}: array {name!r} cannot be read: {err}") from err
            done += piece.size
        if array.dtype == "bool":
            data = (data != 0).view(np.uint8)
        return data.view(BY_NAME[array.dtype].numpy).reshape(array.shape)

    return load
