"""The structure of a PyTorch checkpoint as JSON, with its tensors by name (SPEC section 18).

JSON is used because the metadata of a ``.vqm`` cannot hold floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vqformat.errors import ConversionError
from vqformat.format.limits import MAX_NAME_NBYTES

MAX_DEPTH = 64
MAX_TEXT_NBYTES = 8 << 20  # of the metadata's 16 MiB
_MAX_INT_BITS = 2040  # limit of torch.load with weights_only
_SMALL = 64  # a container that occurs again is written again if it has at most so many values; else it is left out


def to_json(checkpoint: Any, tensors: dict[str, torch.Tensor], notes: list[str]) -> str:
    """The structure of a checkpoint, for ``from_json``.

    Args:
        tensors: Tensors that have a name already. The others are added, with the keys that lead to them as names.
        notes: A line is appended for each value that has no JSON. It is left out; in a list it becomes None.

    Raises:
        ConversionError: The structure is nested too deep, or too long.
    """
    node = _Writer(tensors, notes).write(checkpoint, [])
    text = json.dumps(None if node is _NOTHING else node, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_TEXT_NBYTES:
        raise ConversionError(f"what lies beside the tensors of the checkpoint takes {len(text)} bytes; at most"
                              f" {MAX_TEXT_NBYTES} are allowed: convert it without --include-optimizer")  # fmt: skip
    return text


class _Writer:
    def __init__(self, tensors: dict[str, torch.Tensor], notes: list[str]) -> None:
        self._tensors, self._notes = tensors, notes
        self._names = {id(tensor): name for name, tensor in reversed(tensors.items())}
        self._count = 0  # number of values written
        # For the id of each container the number of its values; more than _SMALL while it is being written
        self._sizes: dict[int, int] = {}

    def write(self, value: Any, keys: list[str]) -> Any:
        """The JSON of a value; _NOTHING, and a note, if it has none."""
        self._count += 1
        if isinstance(value, torch.Tensor):
            return {"tensor": self._name(value, keys)}
        if isinstance(value, (dict, list, tuple)):
            return self._container(value, keys)
        plain = _scalar(value)
        if plain is _NOTHING:
            self._notes.append(f"left out {'.'.join(keys)!r}: a Python object that is no plain value")
        return plain

    def _name(self, tensor: torch.Tensor, keys: list[str]) -> str:
        name = self._names.get(id(tensor))
        if name is None:
            first = name = ".".join(keys) or "tensor"
            if len(name) > MAX_NAME_NBYTES:
                raise ConversionError(f"the name {name[:40]!r}… has {len(name)} characters; at most {MAX_NAME_NBYTES}"
                                      " bytes are allowed")  # fmt: skip
            n = 2
            while name in self._tensors:
                name, n = f"{first}#{n}", n + 1
            self._tensors[name] = tensor
            self._names[id(tensor)] = name
        return name

    def _container(self, value: dict[Any, Any] | list[Any] | tuple[Any, ...], keys: list[str]) -> Any:
        if len(keys) >= MAX_DEPTH:
            raise ConversionError(f"the checkpoint is nested deeper than {MAX_DEPTH} levels")
        # n nested shared containers could make 2^n values, and cycles would not end
        if self._sizes.get(id(value), 0) > _SMALL:
            self._notes.append(f"left out {'.'.join(keys)!r}: the same object is in the checkpoint elsewhere")
            return _NOTHING
        before = self._count
        self._sizes[id(value)] = _SMALL + 1
        node: Any
        if isinstance(value, dict):
            node = {"dict": self._items(value, keys)}
        else:
            items = [self.write(item, [*keys, str(i)]) for i, item in enumerate(value)]
            node = {"list" if isinstance(value, list) else "tuple": [None if x is _NOTHING else x for x in items]}
        self._sizes[id(value)] = self._count - before
        return node

    def _items(self, value: dict[Any, Any], keys: list[str]) -> list[list[Any]]:
        items = []
        for key, item in value.items():
            plain = _scalar(key)
            path = [*keys, str(key)]
            if plain is _NOTHING:
                self._notes.append(f"left out {'.'.join(path)!r}: its key is a {type(key).__name__}")
            elif (node := self.write(item, path)) is not _NOTHING:
                items.append([plain, node])
        return items


_NOTHING = object()


def _scalar(value: Any) -> Any:
    """The JSON of a value that is not a container; _NOTHING if it has none."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int) and value.bit_length() < _MAX_INT_BITS:
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    return {"bytes": value.hex()} if isinstance(value, bytes) else _NOTHING


def from_json(text: str, tensors: Mapping[str, Any]) -> Any:
    """The checkpoint with a structure from ``to_json``. The text may come from an untrusted file.

    Args:
        tensors: The tensors by name. A tensor that occurs twice becomes the same object twice.

    Raises:
        ConversionError: The text is not such a structure, or it names a tensor that does not exist.
    """
    try:
        node = json.loads(text, parse_constant=_refuse)
        return _read(node, tensors, 0)
    except (ValueError, TypeError, RecursionError) as err:
        if isinstance(err, ConversionError):
            raise
        raise _broken(str(err) or type(err).__name__) from err


def _read(node: Any, tensors: Mapping[str, Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _broken(f"it is nested deeper than {MAX_DEPTH} levels")
    if node is None or isinstance(node, (bool, int, float, str)):
        if isinstance(node, int) and node.bit_length() >= _MAX_INT_BITS:
            raise _broken(f"an integer has {node.bit_length()} bits")
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise _broken("a value is neither plain nor an object with one tag")
    ((tag, content),) = node.items()
    if tag not in _TAGS or not isinstance(content, _TAGS[tag][0]):
        raise _broken(f"the tag {tag[:40]!r} with a {type(content).__name__}")
    return _TAGS[tag][1](content, tensors, depth + 1)


def _read_dict(pairs: list[Any], tensors: Mapping[str, Any], depth: int) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or set(pair[0] if isinstance(pair[0], dict) else ()) - _PLAIN:
            raise _broken("an item of a dict is no pair of a plain key and a value")
        key = _read(pair[0], tensors, depth)
        if key in result:
            raise _broken(f"a dict has the key {str(key)[:40]!r} twice")
        result[key] = _read(pair[1], tensors, depth)
    return result


def _read_tensor(name: str, tensors: Mapping[str, Any], _: int) -> Any:
    if name not in tensors:
        raise _broken(f"it names the tensor {name[:80]!r}, which the file does not have")
    return tensors[name]


def _read_float(text: str, *_: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise _broken(f"the float {text[:40]!r}")
    return float(text)


_Read = Callable[[Any, Mapping[str, Any], int], Any]
_PLAIN = {"float", "bytes"}  # tags of values that may be keys
_TAGS: dict[str, tuple[type, _Read]] = {
    "tensor": (str, _read_tensor),
    "dict": (list, _read_dict),
    "list": (list, lambda items, tensors, depth: [_read(item, tensors, depth) for item in items]),
    "tuple": (list, lambda items, tensors, depth: tuple([_read(item, tensors, depth) for item in items])),
    "bytes": (str, lambda text, *_: bytes.fromhex(text)),
    "float": (str, _read_float),
}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _broken(why: str) -> ConversionError:
    return ConversionError(f"the structure of the PyTorch checkpoint in vqm.source cannot be read: {why}; extract to"
                           " .safetensors or .npz")  # fmt: skip
