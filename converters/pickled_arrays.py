"""Arrays of NumPy in pickles that ``torch.save`` did not write: ``.pkl`` files, and object arrays of ``numpy.save``.

They are read as the pickles of PyTorch are: nothing is imported, and nothing is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError
from vqformat.format.checkpoint import join_keys
from vqformat.format.dtypes import BY_NAME

from .inert_pickle import Call, Input, PickleError, unpickle
from .model_folder import open_regular
from .pickled_tensors import Tensor
from .pytorch import Checkpoint
from .pytorch_parts import Compound
from .pytorch_storage import MAX_PICKLE_NBYTES, CheckpointFile
from .pytorch_training import items
from .pytorch_values import Interpreter
from .source import Source


class _PickleFile(CheckpointFile):
    """A file whose pickle begins at an offset and has all arrays in it."""

    def __init__(self, path: Path, offset: int) -> None:
        self._offset = offset
        super().__init__(path)

    def _open(self) -> Any:
        with open_regular(self.path) as stream:
            size = stream.seek(0, 2)
            if size > MAX_PICKLE_NBYTES:
                raise PickleError(f"it has {size} bytes, and at most {MAX_PICKLE_NBYTES} are read")
            stream.seek(self._offset)
            root = unpickle(stream)
            if stream.read(1):
                raise PickleError("more follows it")
        return _element(root)


def open_pickle(path: Path, *, include_optimizer: bool = False) -> Source:
    """Open a pickle of nested dicts and lists of arrays, as model zoos have them. It is kept as a PyTorch checkpoint.

    Raises:
        ConversionError: It has no arrays, is damaged, or would run code.
    """
    try:
        return _open_at(path, 0, include_optimizer=include_optimizer)
    except ConversionError as err:
        why = f" ({err.__cause__})" if isinstance(err.__cause__, PickleError) else ""
        raise ConversionError(f"{str(path)!r} is a Python pickle that torch.save did not write, and no arrays can be"
                              f" read from it{why}; pickles of other programs are never loaded, since they can run"
                              " code: save a state dict with torch.save, or arrays with numpy.savez"
                              ) from err  # fmt: skip


def open_object_array(path: Path, offset: int) -> Source:
    """Open a ``.npy`` file whose array of Python objects, a dict of arrays say, begins at an offset.

    Raises:
        ConversionError: It has no arrays of numbers, is damaged, or would run code.
    """
    return _open_at(path, offset, include_optimizer=False)


def _open_at(path: Path, offset: int, *, include_optimizer: bool) -> Source:
    opened = Checkpoint(_PickleFile(path, offset), include_optimizer=include_optimizer)
    return Source("pytorch", opened.sources(), {}, opened.notes, opened.origin, left_out=opened.left_out)


def tensors_of_objects(stream: Input, name: str) -> list[SourceTensor]:
    """The arrays of numbers in a pickled array of Python objects; none if it is damaged or would run code.

    Args:
        name: Of the array. Names of the tensors begin with it.
    """
    interpreter = Interpreter()
    try:
        root = interpreter.interpret(_element(unpickle(stream)))
    except (PickleError, ConversionError):
        return []
    found: dict[str, SourceTensor] = {}
    pending: list[tuple[list[Any], Any]] = [([name], root)]
    seen: set[int] = set()
    while pending:
        keys, value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for part in value.parts if isinstance(value, Compound) else [value]:
            if isinstance(part, Tensor):
                found[join_keys(keys)] = _source(join_keys(keys), part, interpreter.arrays[part.storage.key])
        pending.extend(([*keys, key], item) for key, item in reversed(list(items(value))))
    return list(found.values())


def _source(name: str, tensor: Tensor, data: bytes) -> SourceTensor:
    def load() -> npt.NDArray[Any]:
        return np.frombuffer(data, BY_NAME[tensor.dtype].numpy).reshape(tensor.shape)

    return SourceTensor(name, tensor.dtype, tensor.shape, load, is_exact=tensor.is_exact)


def _element(root: Any) -> Any:
    """What an array without axes contains; another value as it is."""
    state = root.state if isinstance(root, Call) else None
    if not isinstance(state, tuple) or len(state) != 5 or state[1] != () or not isinstance(state[4], list):
        return root
    return state[4][0] if len(state[4]) == 1 else root
