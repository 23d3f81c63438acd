"""PyTorch's distributed checkpoints as a source: a folder of ``.metadata`` and ``*.distcp``, read without PyTorch.

The pickle ``.metadata`` says which chunk of which tensor lies in which file; each chunk is a tensor of its own that
``torch.save`` wrote. Names are the ones of ``.metadata``: keys of nested state dicts joined with dots.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_TENSORS

from .file_region import Region
from .format_signatures import DISTRIBUTED_METADATA
from .inert_pickle import Call, HostileError, PickleError, unpickle
from .model_folder import beside, read_small
from .pickled_tensors import Tensor, name_of_dtype, size_of
from .pytorch_saved import Saved
from .source import Source
from .tensor_chunks import Box, check_boxes, put_together
from .training_keys import is_training_path, without_state

_WHAT = "a PyTorch distributed checkpoint"
_MAX_METADATA_NBYTES = 256 << 20
_MAX_OPCODES = 100_000_000  # of the metadata: about 70 for each chunk
_LARGEST = (1 << 63) - 1
_MAX_SHOWN = 4


def open_distributed(folder: Path, *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint that ``torch.distributed.checkpoint`` wrote.

    Args:
        include_optimizer: Whether tensors of the optimizer and the like are kept too, exactly.

    Raises:
        ConversionError: It is damaged, a file of it is missing, or chunks do not fill a tensor.
    """
    return _Checkpoint(folder / DISTRIBUTED_METADATA).source(include_optimizer=include_optimizer)


class _Checkpoint:
    """A checkpoint whose ``.metadata`` has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = read_small(path, _MAX_METADATA_NBYTES, "the metadata of a distributed checkpoint")
        try:
            root = _fields(unpickle(io.BytesIO(data), max_opcodes=_MAX_OPCODES))
        except HostileError as err:
            raise self._refuse(str(err)) from err
        except PickleError as err:
            raise self._refuse(f"{err}; fetch or save it again") from err
        entries, places = root.get("state_dict_metadata"), root.get("storage_data")
        if not isinstance(entries, dict) or not isinstance(places, dict):
            raise self._refuse("it has no table of tensors")
        self._entries = entries
        if len(self._entries) > MAX_TENSORS:
            raise self._refuse(f"it has {len(self._entries)} entries, and a .vqm at most {MAX_TENSORS}")
        mapping = root.get("planner_data")
        self._keys = mapping if isinstance(mapping, dict) else {}
        self._places: dict[tuple[Any, Any], dict[str, Any]] = {}
        for index, place in places.items():
            key = _fields(index)
            offset = size_of(key.get("offset"))
            if isinstance(offset, tuple) and all(type(at) is int for at in offset):  # None: it is no tensor
                self._places[str(key.get("fqn")), offset] = _fields(place)
        self._files: dict[str, Region] = {}
        self._unused: dict[str, int] = {}  # bytes of each file that no chunk has taken

    def _refuse(self, why: str) -> ConversionError:
        why = "".join(c if c.isprintable() else "?" for c in why[:500])  # foreign names have any characters
        return ConversionError(f"{str(self._path)!r} is the metadata of {_WHAT} that cannot be read: {why}")

    def source(self, *, include_optimizer: bool) -> Source:
        tensors: list[SourceTensor] = []
        others: list[str] = []
        for name, entry in self._entries.items():
            fields = _fields(entry)
            if "chunks" in fields:
                tensors.append(self._tensor(name, fields))
            else:
                others.append(str(name))
        notes: list[str] = []
        tensors = without_state(tensors, notes, include_optimizer=include_optimizer)
        if others:
            shown = ", ".join(repr(name[:80]) for name in others[:_MAX_SHOWN]) + ", …" * (len(others) > _MAX_SHOWN)
            notes.append(f"left out {len(others)} values that are no tensors ({shown})")
        if not tensors:
            hint = f"; {notes[0]}" if notes else ""
            raise ConversionError(f"{str(self._path.parent)!r} is {_WHAT} without tensors of a model{hint}; save a"
                                  " state dict with it")  # fmt: skip
        return Source("pytorch-distributed", tensors, {}, notes, {"format": "pytorch-distributed"},
                      left_out=list(notes))  # fmt: skip

    def _tensor(self, name: Any, fields: dict[str, Any]) -> SourceTensor:
        try:
            check_name(name)
            dtype, shape = _dtype(fields.get("properties")), _sizes(fields.get("size"))
            check_shape(name, shape)
            chunks = fields["chunks"]
            if not isinstance(chunks, list):
                raise ValueError("its chunks are no list")
            boxes = [Box(_sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))) for chunk in map(_fields, chunks)]
            check_boxes(shape, boxes)
            parts = [(box, self._loader(name, dtype, box)) for box in boxes]
        except (ValueError, EncodeError) as err:
            raise self._refuse(f"tensor {str(name)[:200]!r}: {err}") from err
        key = self._keys.get(name)
        keys = key if isinstance(key, tuple) and key else name.split(".")
        return SourceTensor(name, dtype, shape, lambda: put_together(shape, BY_NAME[dtype].numpy, parts),
                            is_exact=is_training_path(keys))  # fmt: skip

    def _loader(self, name: str, dtype: str, box: Box) -> Callable[[], npt.NDArray[Any]]:
        """A function that reads a chunk. The place of the chunk is checked here."""
        place = self._places.get((name, box.offsets))
        if place is None:
            raise ValueError(f"its chunk at {box.offsets} is in no file")
        if place.get("transform_descriptors"):
            raise ValueError(f"its chunk at {box.offsets} is compressed or otherwise changed"
                             f" ({str(place['transform_descriptors'])[:80]}); save it without extensions")  # fmt: skip
        offset, length = _sizes((place.get("offset"), place.get("length")))
        file = str(place.get("relative_path"))
        if file not in self._files:
            self._files[file] = Region.of_file(beside(self._path, file, f"the metadata of {_WHAT}"))
            self._unused[file] = self._files[file].size
        whole = self._files[file]
        if offset + length > whole.size:
            raise ValueError(f"its chunk at {box.offsets} has {length} bytes at {offset} of {file!r}, which has"
                             f" {whole.size}: cut short, or of another checkpoint")  # fmt: skip
        needed = prod(box.sizes) * BY_NAME[dtype].numpy.itemsize
        self._unused[file] -= length
        if needed > length or self._unused[file] < 0:  # before memory is taken for the tensor
            raise ValueError(f"its chunk at {box.offsets} needs {needed} bytes and has {length}, or shares them with"
                             " another")  # fmt: skip
        region = whole.part(offset, length, "chunk")

        def load() -> npt.NDArray[Any]:
            where = f"{str(whole.path)!r}: the chunk at {box.offsets} of tensor {name!r}"
            try:
                saved = Saved(region)
                if not isinstance(saved.value, Tensor):
                    kind = saved.value.function if isinstance(saved.value, Call) else type(saved.value).__name__
                    raise ValueError(f"it is no tensor, but of {str(kind)[:80]!r}")
                array = saved.load(saved.value)
            except ValueError as err:
                raise ConversionError(f"{where} cannot be read: {err}") from err
            if array.shape != box.sizes or array.dtype != BY_NAME[dtype].numpy:
                raise ConversionError(f"{where} is {array.dtype} of shape {array.shape}; {dtype} of {box.sizes} was"
                                      " announced")  # fmt: skip
            return array

        return load


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object of the pickle."""
    state = value.state if isinstance(value, Call) else None
    return state if isinstance(state, dict) else {}


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = size_of(value)
    if not isinstance(sizes, tuple) or not all(type(size) is int and 0 <= size <= _LARGEST for size in sizes):
        raise ValueError("a shape, an offset or a length is no list of sizes")
    return sizes


def _dtype(properties: Any) -> str:
    """SPEC name of the dtype: the first of the properties, which have no names."""
    state = properties.state if isinstance(properties, Call) else None
    dtype = name_of_dtype(state[0]) if isinstance(state, tuple) and state else ""
    if dtype not in BY_NAME or BY_NAME[dtype].bits < 8:  # PyTorch counts pairs of 4-bit values
        raise ValueError(f"it has the dtype {dtype[:40]!r}, which a .vqm cannot hold")
    return dtype
